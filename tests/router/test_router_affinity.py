"""What shares a prefix meets the same engine, as long as that one is well and not overloaded, and nobody hears why."""

from __future__ import annotations

import collections
import json
import math
from typing import Any

import pytest
from router_harness import (
    CHAT,
    HANG,
    QUICK,
    REGION_TARGET,
    Client,
    Reply,
    catalogue,
    chat_body,
    marker,
    model,
    wait_until,
)

from inference_plane.onehost.bed import Bed

REPLICAS = 3
SESSIONS = [f"session-{number}" for number in range(24)]
SYSTEM = "You answer questions about benefits. " * 8
API = ["chat", "completions", "responses"]
FLEET = {
    "session": model("session", "region", REGION_TARGET, replicas=REPLICAS, affinity="session"),
    "prefix": model(
        "prefix", "region", REGION_TARGET, replicas=REPLICAS, affinity="prefix", api=API
    ),
    "none": model("none", "cluster", replicas=REPLICAS),
    "split": model(
        "split", "cluster", replicas=2, affinity="session", canary={"source": "s3://models/split/v8/", "percent": 30}
    ),
}
BED = {"values": catalogue(FLEET, **QUICK), "max_num_seqs": 512}


def by_engine(bed: Bed, fleet: str) -> list[int]:
    """How many requests each engine of a fleet has had."""
    return [len(engine.requests) for engine in bed.engines[fleet]]


def turns(system: str, *said: str) -> list[list[dict[str, str]]]:
    """The messages of each turn of a conversation."""
    messages, found = [{"role": "system", "content": system}], []
    for text in said:
        messages = [*messages, {"role": "user", "content": text}]
        found.append(messages)
        messages = [*messages, {"role": "assistant", "content": f"On {text}: yes."}]
    return found


def engines_of(bed: Bed, fleet: str, key: Any) -> dict[str, set[int]]:
    """Which engines had requests, by what `key` makes of each body and its headers."""
    found: dict[str, set[int]] = collections.defaultdict(set)
    for number, engine in enumerate(bed.engines[fleet]):
        for request in engine.requests:
            found[key(request)].add(number)
    return found


def by_header(request: Any) -> str:
    return request.headers["x-session-id"]


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_session_meets_one_engine(bed: Bed, client: Client, stream: bool, restricted: bool) -> None:
    more = {"x-residency": "cluster"} if restricted else {}
    for _ in range(4):
        for session in SESSIONS:
            reply = client.chat("session", marker(), {"x-session-id": session, **more}, stream=stream)
            assert (reply.status, reply.backend, reply.attempts) == (200, "fleet", 1), str(reply)
    met = engines_of(bed, "session", by_header)
    assert set(met) == set(SESSIONS) and {len(engines) for engines in met.values()} == {1}
    assert {engine for engines in met.values() for engine in engines} == set(range(REPLICAS))


def test_two_routers_send_a_session_to_the_same_engine(bed: Bed, tmp_path: Any) -> None:
    with bed.another_router(tmp_path) as other:
        other.wait_for_engines({"session": REPLICAS})
        for url in (bed.url, other.url):
            client = Client(url)
            for session in SESSIONS:
                assert client.chat("session", marker(), {"x-session-id": session}).status == 200
            client.close()
    assert {len(engines) for engines in engines_of(bed, "session", by_header).values()} == {1}


def test_the_cache_key_of_the_body_is_a_session_too_and_the_header_comes_first(bed: Bed, client: Client) -> None:
    for number in range(4):
        for key in SESSIONS:
            client.chat("session", marker(), prompt_cache_key=key)
            client.chat("session", marker(), {"x-session-id": key}, prompt_cache_key=f"{key}-{number}")
    met = engines_of(bed, "session", lambda request: request.headers.get("x-session-id") or request.json["prompt_cache_key"])
    assert set(met) == set(SESSIONS) and {len(engines) for engines in met.values()} == {1}


def test_without_a_session_any_engine_answers(bed: Bed, client: Client) -> None:
    for _ in range(60):
        assert client.chat("session").status == 200
    assert min(by_engine(bed, "session")) > 0


def test_a_conversation_stays_where_it_began_and_others_begin_elsewhere(bed: Bed, client: Client) -> None:
    talks = [turns(SYSTEM, f"my question {number}", "and then?", "and in 2026?") for number in range(24)]
    for turn in range(3):
        for talk in talks:
            reply = client.ask(CHAT, {"model": "prefix", "messages": talk[turn]})
            assert (reply.status, reply.attempts) == (200, 1), str(reply)
    met = engines_of(bed, "prefix", lambda request: request.json["messages"][1]["content"])
    assert len(met) == 24 and {len(engines) for engines in met.values()} == {1}
    assert {engine for engines in met.values() for engine in engines} == set(range(REPLICAS))


def test_what_comes_after_the_beginning_does_not_count(bed: Bed, client: Client) -> None:
    packet = "A long packet of documents. " * 200  # beyond affinity.prefixBytes
    for number in range(12):
        client.chat("prefix", f"{packet} Question {number}?")
    assert sorted(by_engine(bed, "prefix")) == [0, 0, 12]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", lambda text: {"prompt": f"{SYSTEM}{text}"}),
        ("/v1/responses", lambda text: {"input": text, "instructions": SYSTEM}),
        ("/v1/responses", lambda text: {"input": [{"role": "user", "content": text}]}),
    ],
    ids=["completions", "responses", "responses with a list"],
)
def test_other_apis_have_beginnings_too(bed: Bed, client: Client, path: str, body: Any) -> None:
    """The replayed engine knows chats and completions alone; which engine was asked is the question."""
    for _ in range(3):
        for number in range(24):
            client.ask(path, {"model": "prefix", **body(f"question {number}")})
    met = engines_of(bed, "prefix", lambda request: json.dumps(request.json, sort_keys=True))
    if path == "/v1/completions":
        assert len(met) == 24 and {len(engines) for engines in met.values()} == {1}
    assert all(len(engines) == 1 for engines in met.values())


def test_a_session_that_asks_for_more_than_its_share_spills_over(bed: Bed, client: Client) -> None:
    """24 that run at once, of one session: at 200 percent of the mean one of three engines takes two thirds of them.

    They come one after the other, as Envoy counts a request only once it has a connection to the engine.
    """
    started = []
    for number in range(1, 25):
        body = chat_body("session", x_test={"answer_delay": 4.0})
        started.append(client.start(CHAT, body, {"x-session-id": "greedy"}))
        wait_until(lambda number=number: sum(by_engine(bed, "session")) == number, f"{number} requests", every=0.005)
    replies = [future.result(HANG) for future in started]
    assert {(reply.status, reply.attempts) for reply in replies} == {(200, 1)}
    most = max(by_engine(bed, "session"))
    print(f"one session, 24 requests at once: {by_engine(bed, 'session')}")
    assert 24 / REPLICAS < most <= math.ceil(24 * 2 / REPLICAS) + 2
    before = by_engine(bed, "session")
    for _ in range(6):
        client.chat("session", marker(), {"x-session-id": "greedy"})
    after = by_engine(bed, "session")
    assert sorted(new - old for new, old in zip(after, before, strict=True)) == [0, 0, 6], "it is back where it was"


def test_an_engine_that_goes_moves_little_but_its_own_sessions(bed: Bed, client: Client) -> None:
    def met() -> dict[str, set[int]]:
        for engine in bed.engines["session"]:
            engine.requests.clear()
        for number in range(150):
            reply = client.chat("session", marker(), {"x-session-id": f"session-{number}"})
            assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
        return engines_of(bed, "session", by_header)

    gone = {REPLICAS - 1}
    before = met()
    bed.scale("session", REPLICAS - 1)
    bed.wait_for_engines({"session": REPLICAS - 1})
    without = met()
    assert all(engines != gone for engines in without.values())
    stay = [session for session in before if before[session] != gone]
    moved = [session for session in stay if without[session] != before[session]]
    print(f"{len(before) - len(stay)} of {len(before)} sessions lost their engine, {len(moved)} of the others moved")
    assert len(moved) < len(stay) / 5
    bed.scale("session", REPLICAS)
    bed.wait_for_engines({"session": REPLICAS})
    assert met() == before


def test_a_second_try_meets_another_engine(bed: Bed, client: Client) -> None:
    session = {"x-session-id": "unlucky"}
    client.chat("session", marker(), session)
    (mine,) = [engine for engine in bed.engines["session"] if engine.requests]
    mine.behaviour.update({"fault": "overloaded"})
    for _ in range(5):
        reply = client.chat("session", marker(), session)
        assert (reply.status, reply.backend, reply.attempts) == (200, "fleet", 2), str(reply)


@pytest.mark.parametrize("name", ["session", "prefix"])
def test_a_full_fleet_falls_back_and_a_restricted_prompt_does_not(bed: Bed, client: Client, name: str) -> None:
    for engine in bed.engines[name]:
        engine.behaviour.update({"fault": "overloaded"})
    kept, sent = marker(), marker()
    reply = client.chat(name, kept, {"x-residency": "cluster", "x-session-id": "one"})
    assert (reply.status, reply.headers["x-plane-reason"]) == (429, "engine-busy"), str(reply)
    reply = client.chat(name, sent, {"x-session-id": "one"})
    assert (reply.status, reply.backend) == (200, "bedrock"), str(reply)
    prompts = b"".join(call.raw for call in bed.bedrock.calls)
    assert sent.encode() in prompts and kept.encode() not in prompts


def test_an_empty_fleet_says_when_to_come_back(bed: Bed, client: Client) -> None:
    bed.scale("session", 0)
    bed.wait_for_engines({"session": 0})
    reply = client.chat("session", headers={"x-residency": "cluster", "x-session-id": "one"})
    assert (reply.status, reply.headers["x-plane-reason"]) == (503, "no-capacity"), str(reply)
    assert client.chat("session", headers={"x-session-id": "one"}).backend == "bedrock"


def test_the_canary_has_its_share_of_each_session(bed: Bed, client: Client) -> None:
    started = [client.start(CHAT, chat_body("split"), {"x-session-id": "one"}) for _ in range(300)]
    replies: list[Reply] = [future.result(HANG) for future in started]
    versions = collections.Counter(reply.version for reply in replies)
    # Five standard deviations of the binomial distribution.
    assert set(versions) == {"v7", "v8"} and abs(versions["v8"] - 90) < 40, versions
    assert {(reply.status, reply.attempts) for reply in replies} == {(200, 1)}


def test_nobody_is_told_the_key(bed: Bed, client: Client) -> None:
    """What an engine, Amazon Bedrock and the audit line get is what they get of a model without affinity."""

    def seen(name: str) -> tuple[set[str], bytes]:
        client.chat(name, "hello", {"x-session-id": "one", "x-plane-affinity": "from-a-client"})
        (request,) = [request for engine in bed.engines[name] for request in engine.requests]
        return set(request.headers), request.body.replace(f'"{name}"'.encode(), b'""')

    plain = seen("none")
    assert seen("session") == plain and seen("prefix") == plain
    for engine in bed.engines["session"]:
        engine.behaviour.update({"fault": "overloaded"})
    assert client.chat("session", "hello", {"x-session-id": "one"}).backend == "bedrock"
    (call,) = bed.bedrock.calls
    assert not [name for name in call.headers if name.startswith("x-plane-") or "session" in name or "affinity" in name]
    lines = wait_until(lambda: [line for line in bed.router.audit() if line["model"] == "session"], "an audit line")
    assert {key for line in lines for key in line} == {key for line in bed.router.audit() for key in line}
    assert "affinity" not in bed.router.audit_path.read_text()
