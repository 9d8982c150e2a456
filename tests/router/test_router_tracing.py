"""A trace of a request: the router's span, one for each try, and its context at the engine; never a prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from router_harness import QUICK, REGION_TARGET, Client, catalogue, marker, model, wait_until

from inference_plane.onehost import collector
from inference_plane.onehost.bed import Bed
from inference_plane.onehost.collector import Collector, Span
from inference_plane.onehost.processes import free_addresses, free_port

SERVER, CLIENT = 2, 3  # kinds of spans
NAME = "otel.observability.svc.cluster.local"
TRACEPARENT = "00-11111111111111111111111111111111-2222222222222222-01"
SENT = "tracing.opentelemetry.spans_sent"
LOST = "cluster.traces.upstream_rq_5xx"  # exports; Envoy counts their spans as sent all the same


@dataclass
class Traced:
    bed: Bed
    client: Client
    collector: Collector
    port: int

    def spans(self, request_id: str, count: int) -> list[Span]:
        """The spans of a request's trace, once there are so many."""
        wait_until(lambda: len(self.collector.of(request_id)) >= count, f"{count} spans of {request_id}")
        spans = self.collector.of(request_id)
        assert len(spans) == count, spans
        return spans


def values(protocol: str, port: int, percent: float = 100) -> dict[str, Any]:
    fleet = {
        "summary": model("summary", "region", REGION_TARGET, replicas=2),
        "kept": model("kept", "cluster"),
    }
    found = catalogue(fleet, **QUICK)
    found["global"] |= {
        "tracing": {"endpoint": f"{NAME}:{port}", "protocol": protocol, "samplePercent": percent},
        "aws": {"region": "eu-central-1", "clusterName": "inference-test"},
        "tls": {"mode": "none"},
    }
    return found


@pytest.fixture(scope="module", params=["grpc", "http"])
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with collector.serve(request.param, "127.0.0.1") as (found, port):
        with Bed(
            tmp_path_factory.mktemp("bed"), values=values(request.param, port), names={NAME: ["127.0.0.1"]}
        ) as bed:
            client = Client(bed.url)
            yield Traced(bed, client, found, port)
            client.close()


@pytest.fixture
def traced(started: Traced) -> Traced:
    started.bed.reset()
    return started


def engine_requests(bed: Bed, name: str) -> list[Any]:
    return [request for engine in bed.engines[name] for request in engine.requests]


def test_a_request_is_a_span_and_its_try_another_and_the_engine_is_told(traced: Traced) -> None:
    reply = traced.client.chat("summary", marker(), stream=True)
    assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
    spans = {span.kind: span for span in traced.spans(reply.request_id, 2)}
    whole, attempt = spans[SERVER], spans[CLIENT]
    assert whole.parent == "" and attempt.parent == whole.id
    (request,) = engine_requests(traced.bed, "summary")
    assert request.headers["traceparent"] == f"00-{whole.trace}-{attempt.id}-01"
    assert {key: whole.attributes[key] for key in whole.attributes if key.startswith("inference.")} == {
        "inference.model": "summary",
        "inference.model_version": "v7",
        "inference.backend": "fleet",
        "inference.residency": "region",
        "inference.route": "summary/chat/stream",
        "inference.attempts": "1",
    }
    assert whole.attributes["http.status_code"] == "200"
    wanted = {
        "service.name": "inference-router",
        "service.namespace": "inference-plane",
        "k8s.namespace.name": "inference",
        "k8s.cluster.name": "inference-test",
    }
    assert {key: whole.resource.get(key) for key in wanted} == wanted


def test_each_try_has_a_span_and_amazon_bedrock_is_told_nothing(traced: Traced) -> None:
    for engine in traced.bed.engines["summary"]:
        engine.behaviour.update({"fault": "overloaded"})
    reply = traced.client.chat("summary", marker())
    assert (reply.status, reply.backend, reply.attempts) == (200, "bedrock", 3), str(reply)
    spans = traced.spans(reply.request_id, 4)
    (whole,) = [span for span in spans if span.kind == SERVER]
    tries = [span for span in spans if span.kind == CLIENT]
    assert {span.parent for span in tries} == {whole.id}
    assert (whole.attributes["inference.backend"], whole.attributes["inference.attempts"]) == ("bedrock", "3")
    told = {request.headers["traceparent"] for request in engine_requests(traced.bed, "summary")}
    assert len(told) == 2 and told < {f"00-{whole.trace}-{span.id}-01" for span in tries}
    (call,) = traced.bed.bedrock.calls
    assert not {"traceparent", "tracestate", "baggage"} & set(call.headers)


def test_a_refused_request_has_a_span_too(traced: Traced) -> None:
    reply = traced.client.chat("nobody")
    (span,) = traced.spans(reply.request_id, 1)
    assert reply.status == 404
    assert (span.attributes["inference.route"], span.attributes["http.status_code"]) == ("unknown-model", "404")
    assert "inference.model" not in span.attributes


def test_no_span_has_a_word_of_a_prompt_or_of_an_answer(traced: Traced) -> None:
    for engine in traced.bed.engines["summary"]:
        engine.behaviour.update({"fault": "overloaded"})
    secret, text = marker(), {}
    for name, stream in (("summary", False), ("summary", True), ("kept", False), ("nobody", False)):
        reply = traced.client.chat(name, secret, {"x-session-id": secret, "cookie": secret}, stream=stream)
        if reply.status == 200 and not stream:
            text[name] = reply.json["choices"][0]["message"]["content"]
        wait_until(lambda reply=reply: traced.collector.of(reply.request_id), "a trace")
    exported = b"".join(traced.collector.raw)
    assert secret.encode() not in exported
    assert text and not [answer for answer in text.values() if answer.encode() in exported]


def test_a_client_s_context_is_dropped(traced: Traced) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "their=state", "baggage": "a=b", "x-client-trace-id": "theirs"}
    reply = traced.client.chat("kept", marker(), headers)
    (whole,) = [span for span in traced.spans(reply.request_id, 2) if span.kind == SERVER]
    assert whole.trace != "1" * 32 and whole.parent == ""
    (request,) = engine_requests(traced.bed, "kept")
    assert request.headers["traceparent"].split("-")[1] == whole.trace
    assert "baggage" not in request.headers and "their" not in json.dumps(dict(request.headers))


def test_spans_are_counted(traced: Traced) -> None:
    before = traced.bed.router.stats([SENT])[SENT]
    reply = traced.client.chat("kept", marker())
    traced.spans(reply.request_id, 2)
    wait_until(lambda: traced.bed.router.stats([SENT])[SENT] >= before + 2, "two more spans sent")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_collector_that_is_gone_costs_spans_and_no_request(protocol: str, tmp_path: Path) -> None:
    (address,) = free_addresses(1, port := free_port())
    with Bed(tmp_path, values=values(protocol, port), names={NAME: [address]}) as bed:
        client = Client(bed.url)
        replies = [client.chat("kept", marker(), stream=bool(number % 2)) for number in range(40)]
        assert {(reply.status, reply.backend, reply.error) for reply in replies} == {(200, "fleet", "")}
        assert max(reply.total for reply in replies) < 10
        wait_until(lambda: bed.router.stats([LOST])[LOST] > 0, "lost exports are counted")
        with collector.serve(protocol, address, port) as (found, _):
            wait_until(lambda: client.chat("kept", marker()) and found.spans, "a trace once it is back", every=0.5)
        client.close()


def test_what_is_not_sampled_leaves_no_span_and_a_client_cannot_ask_for_one(tmp_path: Path) -> None:
    with collector.serve("grpc", "127.0.0.1") as (found, port):
        with Bed(tmp_path, values=values("grpc", port, percent=0), names={NAME: ["127.0.0.1"]}) as bed:
            client = Client(bed.url)
            for headers in (
                {},
                {"traceparent": TRACEPARENT},
                {"x-client-trace-id": "theirs"},
                {"x-envoy-force-trace": "true"},
                {"x-b3-sampled": "1"},
            ):
                assert client.chat("kept", marker(), headers).status == 200
            told = [request.headers["traceparent"] for request in engine_requests(bed, "kept")]
            client.close()
            bed.router.process.popen.terminate()  # so that nothing waits to be sent
            bed.router.process.popen.wait(30)
    assert len(told) == 5 and {context[-3:] for context in told} == {"-00"}, "the engine is told not to trace"
    assert found.spans == []
