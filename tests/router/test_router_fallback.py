"""When a request moves on, to another pod or to Amazon Bedrock, and what Bedrock is asked."""

from __future__ import annotations

import json

import pytest
from router_harness import (
    BUDGET_MS,
    CHAT,
    GEOGRAPHY_TARGET,
    REGION_TARGET,
    Audit,
    Client,
    chat_body,
    marker,
    openai_error,
    wait_until,
)

from inference_plane.onehost.bed import Bed

BUDGET = BUDGET_MS / 1000


def _arrived(bed: Bed, model: str) -> list[int]:
    return [len(engine.requests) for engine in bed.engines[model]]


def _break(bed: Bed, model: str, *numbers: int, **behaviour: object) -> None:
    for number in numbers:
        bed.engines[model][number].behaviour.update(behaviour)


def _empty(bed: Bed, model: str) -> None:
    bed.scale(model, 0)
    bed.wait_for_engines({model: 0})


# --- the first-token budget ------------------------------------------------------------------------------------------


def test_a_stream_whose_first_token_is_late_comes_from_bedrock_after_one_budget(
    bed: Bed, client: Client, audit: Audit
) -> None:
    _break(bed, "summary", 0, 1, first_token_delay=4 * BUDGET)
    reply = client.chat("summary", stream=True)
    assert (reply.status, reply.backend, reply.version, reply.attempts) == (200, "bedrock", REGION_TARGET, 3), str(
        reply
    )
    assert reply.events[-1] == "[DONE]" and not reply.error
    # The second pod is asked, but not with a second budget: its middleware refuses before the engine sees it.
    assert sum(_arrived(bed, "summary")) == 1
    assert 0.9 * BUDGET < reply.first_byte < 1.9 * BUDGET
    assert audit.of(reply)["first_byte_ms"] >= 900 * BUDGET


def test_a_budget_miss_frees_the_place_in_the_engine(bed: Bed, client: Client) -> None:
    _break(bed, "summary", 0, 1, first_token_delay=60)
    assert client.chat("summary", stream=True).backend == "bedrock"
    (request,) = [request for engine in bed.engines["summary"] for request in engine.requests]
    assert request.aborted and request.finished
    assert [engine.surface.queue.running for engine in bed.engines["summary"]] == [0, 0]


def test_bedrocks_own_slow_first_token_is_not_cut(bed: Bed, client: Client) -> None:
    _empty(bed, "summary")
    bed.bedrock.behaviour.update({"first_token_delay": 2 * BUDGET})
    reply = client.chat("summary", stream=True)
    assert (reply.status, reply.backend, reply.error) == (200, "bedrock", ""), str(reply)
    assert reply.first_byte >= 2 * BUDGET and len(bed.bedrock.calls) == 1


def test_a_slow_answer_that_is_not_streamed_stays_in_the_fleet(bed: Bed, client: Client) -> None:
    _break(bed, "summary", 0, 1, answer_delay=1.5 * BUDGET)
    reply = client.chat("summary")
    assert (reply.status, reply.backend, reply.attempts) == (200, "fleet", 1), str(reply)
    assert not bed.bedrock.calls


def test_a_stream_that_is_slow_after_its_first_token_stays_in_the_fleet(bed: Bed, client: Client) -> None:
    reply = client.chat("summary", stream=True, x_test={"token_delay": BUDGET / 4, "tokens": 7})
    assert (reply.backend, reply.error) == ("fleet", "") and reply.total > 1.2 * BUDGET
    assert not bed.bedrock.calls


def test_the_budget_grows_with_the_prompt(bed: Bed, client: Client) -> None:
    """20 ms a KiB: the same delay misses the budget of a short prompt and keeps that of 100 KiB."""
    late = {"first_token_delay": 1.6 * BUDGET}
    short = client.start(CHAT, chat_body("summary", "x", stream=True, x_test=late))
    long = client.start(CHAT, chat_body("summary", "x" * 100 * 1024, stream=True, x_test=late))
    assert (short.result(30).backend, long.result(30).backend) == ("bedrock", "fleet")


def test_a_restricted_stream_has_no_budget(bed: Bed, client: Client) -> None:
    reply = client.chat(
        "summary", "x", {"x-residency": "cluster"}, stream=True, x_test={"first_token_delay": 1.5 * BUDGET}
    )
    assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
    (request,) = [request for engine in bed.engines["summary"] for request in engine.requests]
    assert "x-plane-first-token-budget" not in request.headers


# --- one pod, both pods ----------------------------------------------------------------------------------------------

SICK = ["overloaded", "overloaded-after-headers", "draining", "reset"]


def _until_it_was_asked(bed: Bed, client: Client, streams: bool) -> None:
    """Chats, all answered by the fleet, until the sick pod had one of them.

    Several at once: a pod whose health check fails as well is left out after some hundred milliseconds.
    """
    for _ in range(4):
        replies = client.all([(CHAT, chat_body("summary", stream=streams))] * 10)
        for reply in replies:
            assert (reply.status, reply.backend, reply.error) == (200, "fleet", ""), str(reply)
        if any(reply.attempts == 2 for reply in replies):
            return
    pytest.fail(f"the sick pod was never asked: {_arrived(bed, 'summary')}")


@pytest.mark.parametrize("fault", SICK)
@pytest.mark.parametrize("streams", [True, False])
def test_what_one_pod_cannot_take_the_other_answers(bed: Bed, client: Client, fault: str, streams: bool) -> None:
    _break(bed, "summary", 0, fault=fault)
    _until_it_was_asked(bed, client, streams)
    assert not bed.bedrock.calls


@pytest.mark.parametrize("streams", [True, False])
def test_a_pod_that_is_gone_costs_a_try_on_the_other(bed: Bed, client: Client, streams: bool) -> None:
    engine = bed.engines["summary"][0]
    engine.stop()
    try:
        for _ in range(10):
            reply = client.chat("summary", stream=streams)
            assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
    finally:
        engine.start()
    assert not bed.bedrock.calls


@pytest.mark.parametrize("fault", SICK)
@pytest.mark.parametrize("streams", [True, False])
def test_what_no_pod_can_take_bedrock_answers_after_both_were_asked(
    bed: Bed, client: Client, audit: Audit, fault: str, streams: bool
) -> None:
    _break(bed, "summary", 0, 1, fault=fault)
    reply = client.chat("summary", stream=streams)
    assert (reply.status, reply.backend, reply.attempts, reply.error) == (200, "bedrock", 3, ""), str(reply)
    if fault.startswith("overloaded") or fault == "draining":
        assert _arrived(bed, "summary") == [1, 1]
    line = audit.of(reply)
    assert (line["status"], line["backend"], line["attempts"]) == (200, "bedrock", 3)


@pytest.mark.parametrize("fault", ["overloaded", "draining", "reset"])
def test_without_a_fallback_the_client_hears_why_in_openais_words(bed: Bed, client: Client, fault: str) -> None:
    _break(bed, "intake", 0, fault=fault)
    reply = client.chat("intake")
    assert reply.status == {"overloaded": 429, "draining": 500, "reset": 503}[fault], str(reply)
    openai_error(reply)
    assert reply.headers.get("x-plane-reason") == ("engine-busy" if fault == "overloaded" else None)
    assert ("retry-after" in reply.headers) == (fault != "draining")


def test_a_stream_that_breaks_is_a_cut_stream(bed: Bed, client: Client, audit: Audit) -> None:
    for model in ("summary", "intake"):
        reply = client.chat(model, stream=True, x_test={"fault": "cut"})
        assert reply.status == 200 and reply.error, f"the client took {reply.body[-200:]!r} for a whole answer"
        assert "[DONE]" not in reply.events
        line = audit.of(reply)
        assert line["status"] == 200 and line["flags"].startswith("Upstream"), line
    assert not bed.bedrock.calls


def test_bedrocks_broken_stream_is_a_cut_stream_too(bed: Bed, client: Client) -> None:
    _empty(bed, "summary")
    bed.bedrock.behaviour.update({"fault": "cut"})
    reply = client.chat("summary", stream=True)
    assert (reply.status, reply.backend) == (200, "bedrock") and reply.error and "[DONE]" not in reply.events


def test_a_clients_own_mistake_is_answered_by_the_first_pod(bed: Bed, client: Client) -> None:
    reply = client.chat("summary", max_tokens=10**9)
    assert (reply.status, reply.backend, reply.attempts) == (400, "fleet", 1), str(reply)
    assert sum(_arrived(bed, "summary")) == 1 and not bed.bedrock.calls


# --- no pod at all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
def test_an_empty_fleet_without_a_fallback_says_when_to_come_back(
    bed: Bed, client: Client, audit: Audit, streams: bool
) -> None:
    _empty(bed, "intake")
    reply = client.chat("intake", stream=streams)
    assert reply.status == 503 and openai_error(reply)["type"] == "overloaded_error"
    assert (reply.headers["retry-after"], reply.headers["x-plane-reason"], reply.backend) == (
        "15",
        "no-capacity",
        "none",
    )
    line = audit.of(reply)
    assert (line["status"], line["reason"], line["route"]) == (503, "no-capacity", "intake/chat")


@pytest.mark.parametrize("model", ["summary", "letters"])
def test_an_empty_fleet_with_a_fallback_is_answered_by_bedrock(bed: Bed, client: Client, model: str) -> None:
    _empty(bed, model)
    for streams in (True, False):
        reply = client.chat(model, stream=streams)
        assert (reply.status, reply.backend, reply.attempts) == (200, "bedrock", 3), str(reply)


def test_a_fleet_whose_listed_pods_are_all_sick_never_loses_its_way_out(
    bed: Bed, client: Client, audit: Audit
) -> None:
    """Then every request meets the no-capacity endpoint, which must not be ejected for what it says."""
    healthy = "cluster.fleet/summary.membership_healthy"
    for engine in bed.engines["summary"]:
        engine.stop()
    try:
        wait_until(lambda: bed.router.stats([healthy])[healthy] == 1, "both pods out of rotation")
        for _ in range(15):
            reply = client.chat("summary")
            assert (reply.status, reply.backend) == (200, "bedrock"), str(reply)
            kept = client.chat("summary", headers={"x-residency": "cluster"})
            assert (kept.status, kept.backend) == (503, "none"), str(kept)
            assert kept.headers["x-plane-reason"] == "no-capacity"
    finally:
        for engine in bed.engines["summary"]:
            engine.start()


def test_a_fleet_that_comes_back_takes_its_requests_back(bed: Bed, client: Client) -> None:
    _empty(bed, "summary")
    assert client.chat("summary").backend == "bedrock"
    bed.scale("summary", 1)
    bed.wait_for_engines({"summary": 1})
    assert client.chat("summary").backend == "fleet"


@pytest.mark.parametrize(("fault", "status"), [("throttled", 429), ("unavailable", 503), ("error", 500)])
@pytest.mark.parametrize("streams", [True, False])
def test_bedrocks_refusal_keeps_its_status(
    bed: Bed, client: Client, audit: Audit, fault: str, status: int, streams: bool
) -> None:
    _empty(bed, "summary")
    bed.bedrock.behaviour.update({"fault": fault})
    reply = client.chat("summary", stream=streams)
    assert (reply.status, reply.backend) == (status, "bedrock"), str(reply)
    assert reply.headers["content-type"] == "application/json" and isinstance(reply.json, dict)
    assert (audit.of(reply)["status"], audit.of(reply)["backend"]) == (status, "bedrock")


def test_bedrocks_400_is_the_clients(bed: Bed, client: Client) -> None:
    _empty(bed, "summary")
    reply = client.ask(CHAT, {"model": "summary", "messages": "not a list"})
    assert (reply.status, reply.backend, len(bed.bedrock.calls)) == (400, "bedrock", 1), str(reply)
    assert isinstance(reply.json, dict)


# --- what Bedrock is asked -------------------------------------------------------------------------------------------


def test_bedrock_gets_the_chat_and_nothing_else(bed: Bed, client: Client) -> None:
    _empty(bed, "summary")
    prompt = marker() + ' "model": "other" \\" {'
    reply = client.chat(
        "summary",
        prompt,
        {"authorization": "Bearer secret", "cookie": "a=b", "x-tenant": "t", "x-residency": "region"},
        temperature=0.25,
        max_tokens=7,
        stop=["\n"],
        user="a person",
        metadata={"patient": "4711"},
        top_k=5,
        n=1,
        priority=-1,
        guided_json={},
        x_test={"tokens": 3},
        store=True,
    )
    assert (reply.status, reply.backend) == (200, "bedrock"), str(reply)
    (call,) = bed.bedrock.calls
    assert call.body == {
        "model": REGION_TARGET,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0.25,
        "max_tokens": 7,
        "stop": ["\n"],
    }
    assert set(call.headers) == {
        "host",
        "accept",
        "user-agent",
        "content-type",
        "content-length",
        "authorization",
        "x-amz-date",
        "x-amz-security-token",
        "x-amz-content-sha256",
        "x-request-id",  # the router's own, which the audit line and the reply carry
    }
    assert call.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=")  # the stand-in checked it


def test_each_model_has_its_own_target(bed: Bed, client: Client) -> None:
    for model in ("summary", "letters"):
        _empty(bed, model)
        client.chat(model)
    assert [call.body["model"] for call in bed.bedrock.calls if call.body] == [REGION_TARGET, GEOGRAPHY_TARGET]


def test_usage_of_a_stream_is_always_asked_of_bedrock(bed: Bed, client: Client) -> None:
    _empty(bed, "summary")
    for options in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": {"include_usage": True}}):
        assert client.chat("summary", stream=True, **options).status == 200
    assert [call.body["stream_options"] for call in bed.bedrock.calls if call.body] == [{"include_usage": True}] * 3


def test_a_long_prompt_falls_back_whole(bed: Bed, client: Client) -> None:
    _empty(bed, "summary")
    prompt = "\u00fc\U0001f600" * 500_000
    assert client.chat("summary", prompt).backend == "bedrock"
    assert bed.bedrock.calls[0].prompts == [prompt]


def test_the_path_form_falls_back_too(bed: Bed, client: Client) -> None:
    _empty(bed, "summary")
    reply = client.ask("/summary/v1/chat/completions", chat_body(None))
    assert (reply.status, reply.backend) == (200, "bedrock"), str(reply)
    assert json.loads(bed.bedrock.calls[0].raw)["model"] == REGION_TARGET


def test_every_answer_says_who_served_it(bed: Bed, client: Client) -> None:
    served = [client.chat("summary"), client.chat("summary", stream=True), client.chat("summary", max_tokens=10**9)]
    assert {(reply.backend, reply.version) for reply in served} == {("fleet", "v7")}
    _empty(bed, "summary")
    served = [client.chat("summary"), client.chat("summary", stream=True)]
    assert {(reply.backend, reply.version) for reply in served} == {("bedrock", REGION_TARGET)}
    assert client.chat("summary", headers={"x-residency": "cluster"}).backend == "none"
    for reply in served:
        assert not {name for name in reply.headers if name.lower().startswith("x-plane-")}
