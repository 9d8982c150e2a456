"""One audit line for each request: its tokens are those that the engine counted, and no word of it is in there."""

from __future__ import annotations

import concurrent.futures
import datetime
import json
import time

import pytest
from router_harness import CHAT, REGION_TARGET, Audit, Client, Reply, chat_body, marker, wait_until

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.replay import ReplayEngine

FIELDS = {
    "type",
    "time",
    "request_id",
    "client",
    "method",
    "path",
    "requested_model",
    "requested_residency",
    "model",
    "residency",
    "content_type",
    "route",
    "backend",
    "model_version",
    "upstream",
    "attempts",
    "status",
    "reason",
    "details",
    "flags",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "request_bytes",
    "response_bytes",
    "connect_ms",
    "first_byte_ms",
    "duration_ms",
}


def _tokens(line: dict[str, object]) -> tuple[object, object, object]:
    return line["prompt_tokens"], line["completion_tokens"], line["cached_tokens"]


def _empty(bed: Bed, model: str) -> None:
    bed.scale(model, 0)
    bed.wait_for_engines({model: 0})


def test_a_line_says_all_that_a_bill_and_an_auditor_need(bed: Bed, client: Client, audit: Audit) -> None:
    body = json.dumps(chat_body("summary", stream=True)).encode()
    reply = client.ask(CHAT + "?trace=1", body, {"x-residency": "region"})
    line = audit.of(reply)
    assert set(line) >= FIELDS
    started = datetime.datetime.fromisoformat(line["time"])
    assert abs((datetime.datetime.now(datetime.UTC) - started).total_seconds()) < 60
    (request,) = [request for engine in bed.engines["summary"] for request in engine.requests]
    wanted = {
        "request_id": reply.request_id,
        "client": "127.0.0.1",
        "method": "POST",
        "type": "end",
        "path": CHAT,
        "requested_model": "summary",
        "requested_residency": "region",
        "model": "summary",
        "residency": "region",
        "content_type": "text/event-stream; charset=utf-8",
        "route": "summary/chat/stream",
        "backend": "fleet",
        "model_version": "v7",
        "attempts": 1,
        "status": 200,
        "reason": None,
        "details": "via_upstream",
        "request_bytes": len(body),
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": request.completion_tokens,
    }
    assert {name: line[name] for name in wanted} == wanted
    assert line["upstream"] in {f"{engine.host}:{engine.port}" for engine in bed.engines["summary"]}
    # Bytes of a chunked reply are counted with their framing.
    assert len(reply.body) <= line["response_bytes"] < 2 * len(reply.body)
    assert 0 <= line["first_byte_ms"] <= line["duration_ms"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"stream": True, "stream_options": {"include_usage": False}},
        {"max_tokens": 3},
        {"max_tokens": 200, "stream": True},
    ],
    ids=["json", "stream", "usage", "continuous", "no usage", "short", "long"],
)
def test_the_tokens_of_a_line_are_those_that_the_engine_counted(
    bed: Bed, client: Client, audit: Audit, body: dict[str, object]
) -> None:
    reply = client.chat("intake", **body)
    assert reply.status == 200 and not reply.error
    (request,) = bed.engines["intake"][0].requests
    assert request.prompt_tokens > 0 and request.completion_tokens > 0
    line = audit.of(reply)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (request.prompt_tokens, request.completion_tokens)
    assert line["content_type"].startswith("text/event-stream" if body.get("stream") else "application/json")


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_ends_with_usage_only_for_who_asked(bed: Bed, client: Client, options: dict[str, object]) -> None:
    events = client.chat("intake", stream=True, **options).events
    assert events[-1] == "[DONE]"
    assert bool([event for event in events[:-1] if not event["choices"]]) == bool(options)


@pytest.mark.parametrize("stream", [True, False])
def test_cached_tokens_are_counted(bed: Bed, client: Client, audit: Audit, stream: bool) -> None:
    counters = {
        f"usage.tokens.team..cost_center..model.cached.backend.fleet.kind.{kind}": count
        for kind, count in {"prompt": 40, "completion": 5, "cached": 32}.items()
    }
    before = bed.router.stats(counters)
    assert _tokens(audit.of(client.chat("cached", stream=stream))) == (40, 5, 32)
    after = bed.router.stats(counters)
    assert {name: after[name] - before[name] for name in counters} == counters


def test_embeddings_are_counted(bed: Bed, client: Client, audit: Audit) -> None:
    reply = client.ask("/v1/embeddings", {"model": "embedder", "input": "words"})
    assert _tokens(audit.of(reply)) == (11, 0, 0)


def test_text_completions_are_counted(bed: Bed, client: Client, audit: Audit) -> None:
    reply = client.ask("/v1/completions", {"model": "intake", "prompt": "words", "stream": True})
    (request,) = bed.engines["intake"][0].requests
    assert _tokens(audit.of(reply))[:2] == (request.prompt_tokens, request.completion_tokens)


@pytest.mark.parametrize("stream", [True, False])
def test_bedrocks_tokens_are_counted_too(bed: Bed, client: Client, audit: Audit, stream: bool) -> None:
    _empty(bed, "summary")
    reply = client.chat("summary", stream=stream, stream_options={"include_usage": True} if stream else None)
    usage = reply.events[-2]["usage"] if stream else reply.json["usage"]
    line = audit.of(reply)
    assert _tokens(line)[:2] == (usage["prompt_tokens"], usage["completion_tokens"]) == (21, 10)
    assert (line["backend"], line["model_version"], line["model"], line["attempts"]) == (
        "bedrock",
        REGION_TARGET,
        "summary",
        3,
    )


def test_a_line_counts_the_tries(bed: Bed, client: Client, audit: Audit) -> None:
    bed.engines["summary"][0].behaviour.update({"fault": "overloaded"})
    replies = [client.chat("summary") for _ in range(12)]
    assert {reply.attempts for reply in replies} == {1, 2}
    for reply in replies:
        assert audit.of(reply)["attempts"] == reply.attempts


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_leaves_a_line(bed: Bed, client: Client, audit: Audit, stream: bool) -> None:
    knobs = {"token_delay": 0.05, "tokens": 2000} if stream else {"answer_delay": 30}
    future = client.start(CHAT, chat_body("intake", stream=stream, x_test=knobs))
    (request,) = wait_until(lambda: bed.engines["intake"][0].requests, "the request at the engine")
    time.sleep(0.3)  # into the stream
    future.cancel()
    line = audit.find(lambda line: line["request_id"] == request.headers["x-request-id"], "the aborted request")
    assert (line["model"], line["backend"], line["attempts"]) == ("intake", "fleet", 1)
    assert "DownstreamConnectionTermination" in line["flags"]
    assert line["status"] == (200 if stream else 0)
    wait_until(lambda: request.finished, "the engine's end of the request")
    assert request.aborted and bed.engines["intake"][0].surface.queue.running == 0


def test_no_line_has_a_word_of_prompt_or_completion(bed: Bed, client: Client, audit: Audit) -> None:
    prompt = marker()
    replies: list[Reply] = []
    for body in (
        {},
        {"stream": True},
        {"user": prompt},
        {"x_test": {"fault": "draining"}},
        {"x_test": {"fault": "cut"}},
    ):
        replies.append(client.chat("summary", prompt, **body))
    replies.append(client.ask("/v1/embeddings", {"model": "embedder", "input": prompt}))
    replies.append(client.ask(CHAT, f'{{"model":"{prompt}","messages":["{prompt}"'.encode()))
    for model in ("summary", "nobody"):  # the routes of a model take some headers away, a refusal none
        replies.append(client.chat(model, "x", {"cookie": prompt, "authorization": prompt, "x-other": prompt}))
    for path in (f"{CHAT}?q={prompt}", f"/summary{CHAT}?{prompt}", f"/v1/models?{prompt}", f"/nowhere?{prompt}"):
        replies.append(client.ask(path, chat_body("summary", prompt)))
    _empty(bed, "summary")
    for body in ({}, {"stream": True}):
        replies.append(client.chat("summary", prompt, **body))
    bed.bedrock.behaviour.update({"fault": "throttled"})
    replies.append(client.chat("summary", prompt))
    for reply in replies:
        audit.of(reply)
    engines = [engine for fleet in bed.engines.values() for engine in fleet if isinstance(engine, ReplayEngine)]
    seen = [line for engine in engines for line in engine.lines]
    assert len(seen) > 5 and any(prompt in reply.body.decode() or "4567 ,." in reply.body.decode() for reply in replies)
    text = bed.router.logged() + "".join(seen)
    assert prompt not in text
    assert "documents a denied claim" not in text and "4567 ,." not in text and '"content"' not in text


def test_simultaneous_requests_each_have_their_own_line(bed: Bed, client: Client, audit: Audit) -> None:
    futures = {
        tokens: client.start(CHAT, chat_body("intake", stream=tokens % 2 == 0, max_tokens=tokens))
        for tokens in range(1, 31)
    }
    concurrent.futures.wait(futures.values(), 30)
    counted = {tokens: audit.of(future.result(0))["completion_tokens"] for tokens, future in futures.items()}
    assert counted == {tokens: tokens for tokens in futures}


def test_a_line_names_the_client_whom_the_load_balancer_saw(bed: Bed, client: Client, audit: Audit) -> None:
    """It appends to x-forwarded-for; whatever stands before was the client's own to write."""
    reply = client.chat("intake", headers={"x-forwarded-for": "192.0.2.1, 203.0.113.7, 198.51.100.4"})
    assert audit.of(reply)["client"] == "198.51.100.4"


def test_a_line_has_the_beginning_of_a_path_and_no_query(bed: Bed, client: Client, audit: Audit) -> None:
    long = f"{CHAT}/{'x' * 1000}"
    assert audit.of(client.ask(f"{long}?q", chat_body("intake")))["path"] == long[:128]
    assert audit.of(client.ask(f"{CHAT}?{marker()}", chat_body("intake")))["path"] == CHAT


def test_a_request_that_no_filter_saw_has_a_line_too(bed: Bed, client: Client, audit: Audit) -> None:
    before = len(audit.grow())
    assert client.ask(CHAT + "%2f", chat_body("intake")).status == 400
    wait_until(
        lambda: [line for line in audit.grow()[before:] if line["details"] == "path_normalization_failed"],
        "the line of a path that was refused",
    )
