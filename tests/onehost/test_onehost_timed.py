"""The engine that keeps vLLM's time: its steps by arithmetic, its queue, cache, aborts and metrics over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference_plane.checkout import CHARTS, ROOT
from inference_plane.onehost.timed import PrefixCache, Sequence, Speed, TimedEngine, step

SPEED = Speed(step_seconds=0.02, sequence_seconds=0.001, prefill_tokens_per_second=1000, max_num_batched_tokens=100)
QUICK = Speed(step_seconds=0.002, sequence_seconds=0, prefill_tokens_per_second=1e6)


def test_a_step_gives_each_sequence_a_token() -> None:
    running = [Sequence(0, 5), Sequence(0, 5), Sequence(0, 5)]
    made = step(running, SPEED)
    assert made.tokens == running and made.seconds == pytest.approx(0.02 + 3 * 0.001)


def test_a_long_prompt_takes_several_steps_beside_the_others() -> None:
    """Chunked prefill: 100 tokens a step, of which each decoding sequence takes one."""
    decoding, prompt, later = Sequence(0, 9), Sequence(150, 9), Sequence(30, 9)
    first, second = (step([decoding, prompt, later], SPEED) for _ in range(2))
    assert (first.tokens, first.prefilled) == ([decoding], 99)
    assert first.seconds == pytest.approx(0.02 + 0.001 + 0.099)
    # The rest of the prompt, and then the one behind it: both have their first token now.
    assert (second.tokens, second.prefilled) == ([decoding, prompt, later], 51 + 30)


@pytest.mark.parametrize(("streams", "published"), [(1, 21.9), (8, 22.3), (64, 27.5), (128, 36.0)])
def test_the_defaults_are_near_what_was_published(streams: int, published: float) -> None:
    """Milliseconds per output token; the source stands at `Speed`."""
    made = step([Sequence(0, 9) for _ in range(streams)], Speed())
    assert made.seconds * 1e3 == pytest.approx(published, rel=0.05)


def test_the_prefix_cache_finds_whole_blocks_of_the_beginning() -> None:
    cache, words = PrefixCache(1000), [f"w{n}" for n in range(100)]
    assert cache.take(words) == 0
    assert cache.take(words) == 96  # six blocks of 16
    assert cache.take([*words[:40], *["x"] * 60]) == 32
    assert cache.take(["y", *words]) == 0
    assert cache.take(words[:16]) == 15  # the last token of a prompt is always computed
    assert (cache.queries, cache.hits) == (100 + 100 + 100 + 101 + 16, 96 + 32 + 15)


def test_the_prefix_cache_forgets_what_was_not_used_for_longest() -> None:
    cache = PrefixCache(64)
    one, other = ([f"{name}{n}" for n in range(32)] for name in "ab")
    for words in (one, other, one, [f"c{n}" for n in range(32)]):
        cache.take(words)
    assert cache.take(other) == 0


def body(words: int = 10, tokens: int = 5, stream: bool = True) -> bytes:
    messages = [{"role": "user", "content": " ".join(f"w{n}" for n in range(words))}]
    return json.dumps({"model": "m", "messages": messages, "max_tokens": tokens, "stream": stream}).encode()


def ask(engine: TimedEngine, **more: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(engine.host, engine.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", body(**more), {"content-type": "application/json"})
    return connection, connection.getresponse()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass within a minute"
        time.sleep(0.01)


@pytest.fixture
def engine() -> Iterator[TimedEngine]:
    with TimedEngine(served_model_name="m", speed=QUICK, max_num_seqs=2, max_num_queued_reqs=3) as running:
        yield running


def test_a_stream_has_as_many_tokens_as_it_may(engine: TimedEngine) -> None:
    _, reply = ask(engine, words=40, tokens=7)
    events = [json.loads(line[6:]) for line in reply.read().decode().splitlines() if line.startswith("data: {")]
    assert events[-1]["usage"] == {"prompt_tokens": 40, "total_tokens": 47, "completion_tokens": 7}
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    _, again = ask(engine, words=40, tokens=7, stream=False)
    assert json.loads(again.read())["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}
    assert 'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 32.0' in engine.surface.metrics()


def test_headers_leave_before_the_first_token() -> None:
    with TimedEngine(served_model_name="m", speed=Speed(step_seconds=3600)) as slow:
        connection, reply = ask(slow)
        assert reply.status == 200 and slow.surface.counters.generation_tokens == 0
        connection.close()


def test_what_does_not_fit_waits_and_what_does_not_fit_there_is_refused(engine: TimedEngine) -> None:
    engine.behaviour.update({"first_token_delay": 3600})
    held = [ask(engine) for _ in range(3)]  # headers come at once, also of the one that waits
    wait(lambda: (engine.surface.queue.running, engine.surface.queue.waiting) == (2, 1))
    _, refused = ask(engine)
    assert refused.status == 503 and json.loads(refused.read())["error"]["type"] == "Service Unavailable"
    for connection, reply in held:
        reply.close()
        connection.close()
    wait(lambda: engine.surface.counters.finished["abort"] == 3)
    assert engine.surface.queue.running == engine.surface.queue.waiting == 0


def test_a_client_that_leaves_frees_the_engine(engine: TimedEngine) -> None:
    connection, reply = ask(engine, tokens=16_000)
    reply.readline()
    reply.close()
    connection.close()
    wait(lambda: engine.surface.counters.finished["abort"] == 1)
    assert engine.surface.queue.running == 0 and engine.surface.counters.generation_tokens < 16_000
    ask(engine, tokens=2)[1].read()  # and serves the next
    assert engine.surface.counters.finished["length"] == 1


def test_many_streams_at_once_all_end_and_are_all_counted() -> None:
    with TimedEngine(served_model_name="m", speed=QUICK, max_num_seqs=32) as engine:
        replies: list[bytes] = []
        threads = [threading.Thread(target=lambda: replies.append(ask(engine, tokens=20)[1].read())) for _ in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(replies) == 60 and all(reply.endswith(b"data: [DONE]\n\n") for reply in replies)
        assert engine.surface.counters.generation_tokens == 60 * 20
        metrics = engine.surface.metrics()
    for name, count in {
        "time_to_first_token": 60,
        "inter_token_latency": 60 * 19,
        "request_time_per_output_token": 60,
        "e2e_request_latency": 60,
        "request_queue_time": 60,
    }.items():
        assert f'vllm:{name}_seconds_count{{engine="0",model_name="m"}} {count}.0' in metrics
        assert f'vllm:{name}_seconds_bucket{{engine="0",le="+Inf",model_name="m"}} {count}.0' in metrics


def test_its_metrics_are_a_part_of_the_captured_ones(engine: TimedEngine) -> None:
    def names(text: str) -> set[str]:
        return set(re.findall(r"^(vllm:\w+)\{", text, re.MULTILINE))

    ours = names(engine.surface.metrics())
    assert ours and ours <= names((ROOT / "tests" / "data" / "vllm-0.32" / "metrics-saturated.txt").read_text())


def test_a_new_start_is_a_new_engine(engine: TimedEngine) -> None:
    ask(engine)[1].read()
    port = engine.port
    engine.stop()
    with pytest.raises(OSError, match="refused"):
        ask(engine)
    engine.start()
    assert engine.port == port and engine.surface.counters.generation_tokens == 0
    assert ask(engine)[1].read().endswith(b"data: [DONE]\n\n")


def test_the_planes_middleware_serves_in_front_of_it() -> None:
    lines: list[str] = []
    file = CHARTS / "vllm" / "files" / "plane_middleware.py"
    with TimedEngine(served_model_name="m", speed=QUICK, middleware=file, report=lines.append) as engine:
        ask(engine, words=20, tokens=4)[1].read()
        wait(lambda: bool(lines))
    line = json.loads(lines[0])
    assert (line["prompt_tokens"], line["completion_tokens"], line["outcome"]) == (20, 4, "finished")
