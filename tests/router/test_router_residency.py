"""How far a prompt travels. Amazon Bedrock is asked what it saw, by content: each prompt has words of its own."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Callable

import pytest
from router_harness import (
    ANYWHERE_TARGET,
    BUDGET_MS,
    CHAT,
    GEOGRAPHY_TARGET,
    HANG,
    REGION_TARGET,
    Audit,
    Client,
    chat_body,
    marker,
    openai_error,
    raw_request,
)

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.router import xds_files

RANKS = {"cluster": 0, "region": 1, "geography": 2, "anywhere": 3}
REACHES = {"intake": None, "summary": "region", "letters": "geography", "triage": "anywhere"}
TARGETS = {"summary": REGION_TARGET, "letters": GEOGRAPHY_TARGET, "triage": ANYWHERE_TARGET}
LATE = BUDGET_MS / 1000 + 0.6

#: What a client says about residency, and the residency that it means; None leaves the model's own.
SAID: dict[str, tuple[list[str], str | None]] = {
    "absent": ([], None),
    **{name: ([name], name) for name in RANKS},
    "unknown": (["world"], "cluster"),
    "empty": ([""], "cluster"),
    "repeated": (["anywhere", "anywhere"], "cluster"),
    "contradictory": (["anywhere", "cluster"], "cluster"),
    "upper case": (["ANYWHERE"], "cluster"),
    "capitalised": (["Region"], "cluster"),
    "blanks around": (["  anywhere  "], "anywhere"),  # RFC 9110 section 5.5: no part of the value
    "a blank inside": (["any where"], "cluster"),
    "a list": (["region,anywhere"], "cluster"),
    "quoted": (['"anywhere"'], "cluster"),
    "a prefix": (["anywher"], "cluster"),
    "a longer word": (["anywhere-else"], "cluster"),
    "a pattern": ([".*"], "cluster"),
    "latin-1": (["anywh\u00e9re"], "cluster"),
}


def _may_leave(model: str, said: str) -> bool:
    reach, meant = REACHES[model], SAID[said][1]
    return reach is not None and (meant is None or RANKS[meant] >= RANKS[reach])


def _faults(fault: str) -> Callable[[Bed, str], None]:
    def apply(bed: Bed, model: str) -> None:
        for engine in bed.engines[model]:
            engine.behaviour.update({"fault": fault})

    return apply


def _empty(bed: Bed, model: str) -> None:
    bed.scale(model, 0)
    bed.wait_for_engines({model: 0})


def _late(bed: Bed, model: str) -> None:
    for engine in bed.engines[model]:
        engine.behaviour.update({"first_token_delay": LATE})


#: How the fleet is, and whether a request that is (not) streamed leaves it then, where it may.
FLEETS: dict[str, tuple[Callable[[Bed, str], None], bool, bool]] = {
    "healthy": (lambda bed, model: None, False, False),
    "empty": (_empty, True, True),
    "full": (_faults("overloaded"), True, True),
    "full after the headers": (_faults("overloaded-after-headers"), True, True),
    "draining": (_faults("draining"), True, True),
    "resetting connections": (_faults("reset"), True, True),
    "late": (_late, True, False),
}


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("model", REACHES)
def test_a_prompt_leaves_the_fleet_only_where_model_and_header_allow(
    bed: Bed, client: Client, model: str, fleet: str
) -> None:
    break_fleet, streams_leave, wholes_leave = FLEETS[fleet]
    if fleet == "late" and model == "letters":
        streams_leave = False  # it has no budget
    break_fleet(bed, model)
    cases = {}
    for said, (values, _) in SAID.items():
        for streams in (True, False):
            prompt = marker()
            body = chat_body(model, prompt, stream=streams)
            future = client.start(CHAT, body, [("x-residency", value) for value in values])
            cases[said, streams] = (prompt, future)
    concurrent.futures.wait([future for _, future in cases.values()], HANG)
    for (said, streams), (prompt, future) in cases.items():
        leaves = _may_leave(model, said) and (streams_leave if streams else wholes_leave)
        reply, seen = future.result(0), bed.bedrock.seen(prompt)
        where = f"{model}, residency {said}, stream {streams}, fleet {fleet}: {reply}"
        assert seen == int(leaves), f"Bedrock saw {seen}. {where}"
        if leaves:
            assert (reply.status, reply.backend, reply.version) == (200, "bedrock", TARGETS[model]), where
        else:
            assert reply.backend in ("fleet", "none"), where
            assert (reply.status == 200) == (fleet in ("healthy", "late")), where


def test_a_cluster_models_catalogue_has_no_way_out_at_all(bed: Bed) -> None:
    """What an auditor reads: no cluster, no specifier and no route of that model names Bedrock."""
    data = xds_files(bed.render)
    for name in ("intake", "embedder", "cached"):
        assert f"bedrock/{name}" not in data["clusters.json"]
        assert f"fleet-then-bedrock/{name}" not in data["routes.json"]


@pytest.mark.parametrize("path", ["/v1/completions", "/summary/v1/completions"])
def test_only_chats_leave_the_fleet(bed: Bed, client: Client, path: str) -> None:
    _empty(bed, "summary")
    prompt = marker()
    reply = client.ask(path, {"model": "summary", "prompt": prompt})
    assert reply.status == 503 and openai_error(reply)["type"] == "overloaded_error"
    assert bed.bedrock.seen(prompt) == 0 and not bed.bedrock.calls


@pytest.mark.parametrize("name", ["org/summary:8b", "summary-latest"])
def test_another_name_of_a_model_travels_no_farther(bed: Bed, client: Client, name: str) -> None:
    _empty(bed, "summary")
    allowed, restricted = marker(), marker()
    assert client.chat(name, allowed).backend == "bedrock"
    assert client.chat(name, restricted, {"x-residency": "cluster"}).status == 503
    assert (bed.bedrock.seen(allowed), bed.bedrock.seen(restricted)) == (1, 0)
    assert [call.body["model"] for call in bed.bedrock.calls if call.body] == [REGION_TARGET]


@pytest.mark.parametrize("name", ["Proxy-Connection", "TE", "Keep-Alive", "Trailer", "Vary"])
def test_a_hop_by_hop_header_cannot_take_the_residency_away(bed: Bed, name: str) -> None:
    _empty(bed, "summary")
    prompt = marker()
    body = json.dumps(chat_body("summary", prompt)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-residency: cluster\r\n{name}: close, x-residency\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    status, _, _ = raw_request(bed.url, head.encode() + body)
    assert status in (400, 503) and bed.bedrock.seen(prompt) == 0


def test_a_residency_that_the_client_declares_hop_by_hop_was_not_said(bed: Bed) -> None:
    """Envoy's codec removes what `Connection` names (RFC 9110 section 7.6.1) before any filter can see it.

    Such a request has its model's own residency, as if the client had not asked for a tighter one, and no wider one.
    """
    body = json.dumps(chat_body("summary", marker())).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-residency: cluster\r\nconnection: x-residency\r\n"
    _empty(bed, "summary")
    _empty(bed, "intake")
    status, headers, _ = raw_request(bed.url, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert (status, headers["x-inference-backend"]) == (200, "bedrock")
    body = json.dumps(chat_body("intake", prompt := marker())).encode()
    status, headers, _ = raw_request(bed.url, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert (status, bed.bedrock.seen(prompt)) == (503, 0)


def test_a_header_after_the_body_does_not_widen_the_residency(bed: Bed) -> None:
    _empty(bed, "summary")
    prompt = marker()
    body = json.dumps(chat_body("summary", prompt)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-residency: cluster\r\ntransfer-encoding: chunked\r\n\r\n"
    trailed = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\nx-residency: anywhere\r\n\r\n"
    status, _, _ = raw_request(bed.url, head.encode() + trailed)
    assert status == 503 and bed.bedrock.seen(prompt) == 0


#: Headers that mean something to Envoy or inside the plane, with values that would do harm.
FORGED = {
    "x-plane-model": "summary",
    "x-plane-target": "anthropic.claude",
    "x-plane-target-keys": "user,metadata",
    "x-plane-authority": "attacker.example",
    "x-plane-stream": "usage",
    "x-plane-refused": "forged",
    "x-plane-first-token-budget": "1",
    "x-plane-started-ms": "1",
    "x-plane-reason": "forged",
    "x-plane-prompt-tokens": "999999",
    "x-envoy-retry-on": "never",
    "x-envoy-retry-grpc-on": "never",
    "x-envoy-max-retries": "0",
    "x-envoy-retriable-status-codes": "200",
    "x-envoy-retriable-header-names": "content-type",
    "x-envoy-hedge-on-per-try-timeout": "true",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-upstream-rq-per-try-timeout-ms": "1",
    "x-envoy-upstream-stream-duration-ms": "1",
    "x-envoy-upstream-rq-timeout-alt-response": "1",
    "x-envoy-expected-rq-timeout-ms": "1",
    "x-envoy-original-path": "/metrics",
    "x-envoy-original-url": "http://attacker.example/",
    "x-envoy-original-dst-host": "127.0.0.1:1",
    "x-envoy-upstream-alt-stat-name": "forged",
    "x-envoy-attempt-count": "7",
    "x-envoy-decorator-operation": "forged",
    "x-envoy-internal": "true",
    "x-envoy-external-address": "203.0.113.9",
    "x-envoy-peer-metadata": "forged",
    "x-inference-backend": "forged",
    "x-inference-model-version": "forged",
}


def test_forged_headers_change_nothing_and_do_not_reach_an_engine(bed: Bed, client: Client, audit: Audit) -> None:
    prompt = marker()
    reply = client.chat("intake", prompt, FORGED, x_test={"answer_delay": 0.2})
    assert (reply.status, reply.backend, reply.version, reply.attempts) == (200, "fleet", "v7", 1), str(reply)
    (received,) = bed.engines["intake"][0].requests
    forged = {name: value for name, value in FORGED.items() if received.headers.get(name) == value}
    assert not forged
    own = {name for name in received.headers if name.startswith(("x-plane-", "x-envoy-", "x-inference-"))}
    assert own == {
        "x-plane-model",
        "x-envoy-attempt-count",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-external-address",
    }
    line = audit.of(reply)
    assert (line["model"], line["prompt_tokens"]) == ("intake", received.prompt_tokens)
    assert bed.bedrock.seen(prompt) == 0


@pytest.mark.parametrize("restricted", [{}, {"x-residency": "cluster"}], ids=["free", "restricted"])
def test_what_a_client_proved_to_the_plane_does_not_reach_an_engine(
    bed: Bed, client: Client, audit: Audit, restricted: dict[str, str]
) -> None:
    secret = marker()
    headers = {"authorization": f"Bearer {secret}", "cookie": f"session={secret}", **restricted}
    asked = [(model, stream) for model in ("intake", "summary") for stream in (True, False)]
    for model, stream in asked:
        assert client.chat(model, headers=headers, stream=stream).backend == "fleet"
    assert client.ask("/v1/completions", {"model": "intake", "prompt": "x"}, headers).backend == "fleet"
    engines = [engine for model in ("intake", "summary") for engine in bed.engines[model]]
    received = [request for engine in engines for request in engine.requests]
    assert len(received) == len(asked) + 1
    assert not [request.headers for request in received if secret in str(request.headers)]


def test_forged_headers_do_not_shorten_the_way_of_a_stream(bed: Bed, client: Client) -> None:
    """A budget of the client's own would end it after 1 ms; without retries, one full pod would."""
    delay = BUDGET_MS / 1000 / 4
    for _ in range(6):
        bed.engines["summary"][0].behaviour.update({"fault": "overloaded"})
        reply = client.chat("summary", "hello", FORGED, stream=True, x_test={"first_token_delay": delay})
        assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
    for request in bed.engines["summary"][1].requests:
        assert request.headers["x-plane-first-token-budget"].startswith(f"{BUDGET_MS};per-kib=")
        assert request.headers["x-plane-stream"] == "plain"


def test_forged_headers_do_not_reach_bedrock(bed: Bed, client: Client) -> None:
    _empty(bed, "summary")
    reply = client.chat("summary", "hello", {**FORGED, "x-residency": "region"}, user="somebody")
    assert (reply.status, reply.backend, reply.version) == (200, "bedrock", REGION_TARGET), str(reply)
    (call,) = bed.bedrock.calls
    assert not {name for name in call.headers if name.startswith(("x-plane-", "x-envoy-", "x-inference-", "x-res"))}
    assert call.body is not None and set(call.body) == {"model", "messages"}


def test_forged_headers_cannot_make_up_a_model_or_a_refusal(bed: Bed, client: Client) -> None:
    for name, status in (("x-plane-model", 404), ("x-plane-refused", 404)):
        reply = client.ask("/metrics", headers={name: "summary"})
        assert reply.status == status and "summary" not in openai_error(reply)["message"]
