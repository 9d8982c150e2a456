"""Token budgets in a real Envoy on the rendered files, with the real rate-limit service. Redis stands in for Valkey."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from budgets_harness import (
    APPS,
    USED,
    Ask,
    asked,
    asker,
    bearer,
    estimate,
    refused,
    room,
    settled,
    values,
)
from router_harness import CHAT, HANG, Audit, Client, Reply, chat_body, wait_until

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.budgets import write_limits
from inference_plane.onehost.issuer import Issuer


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def budget_bed(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Bed]:
    with Bed(tmp_path_factory.mktemp("budgets"), values=values(issuer), apps=APPS) as bed:
        yield bed


@pytest.fixture
def bed(budget_bed: Bed) -> Bed:
    """As new, with counters at zero."""
    budget_bed.reset()
    room(20)
    budget_bed.store.clear()
    return budget_bed


@pytest.fixture(scope="module")
def client(budget_bed: Bed) -> Iterator[Client]:
    client = Client(budget_bed.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def audit(budget_bed: Bed) -> Audit:
    return Audit(budget_bed)


@pytest.fixture
def team(client: Client, issuer: Issuer) -> Ask:
    return asker(client, issuer)


# --- who is refused, and what it looks like ---------------------------------------------------------------------------


def test_a_budget_runs_out_for_one_team_and_for_no_other(bed, team, audit):
    for number in range(1, 6):
        reply = team("care", "drafts")
        assert reply.status == 200, str(reply)
        settled(bed, "team_care", USED * number)
    reply = team("care", "drafts")
    refused(reply, 200)
    line = audit.of(reply)
    assert (line["status"], line["reason"], line["budget"], line["upstream"]) == (429, "token-budget", "refused", None)
    assert (line["team"], line["requested_model"], line["prompt_tokens"]) == ("care", "drafts", None)
    assert not bed.bedrock.calls, "a budget is no reason to fall back"
    for number in range(1, 8):
        reply = team("appeals", "drafts")
        assert reply.status == 200, str(reply)
        assert audit.of(reply)["budget"] == "within"
        settled(bed, "team_appeals", USED * number)
    assert bed.store.count("team_care") == 5 * USED


def test_a_budget_with_a_model_runs_out_for_that_model_alone(bed, team):
    for number in range(1, 4):
        assert team("care", "summaries").status == 200
        settled(bed, "team_care_model_summaries", USED * number)
    refused(team("care", "summaries"), 100)
    assert team("care", "drafts").status == 200
    settled(bed, "team_care", 4 * USED)
    assert bed.store.count("team_care_model_summaries") == 3 * USED


def test_all_names_of_a_model_have_one_budget(bed, team):
    assert team("claims", "org/summaries").status == 200
    assert team("claims", None, path="/summaries/v1/chat/completions").status == 200
    assert team("claims", "summaries").status == 200
    settled(bed, "team_claims_model_summaries", 3 * USED)
    refused(team("claims", "org/summaries"), 100)
    refused(team("claims", None, path="/summaries/v1/chat/completions"), 100)


def told(reply: Reply) -> tuple[str, str]:
    return reply.headers["x-ratelimit-limit-tokens"], reply.headers["x-ratelimit-remaining-tokens"]


def test_a_reply_says_what_is_left(bed, team):
    first = team("care", "drafts")
    assert told(first) == ("200", "200")
    settled(bed, "team_care", USED)
    # Of two budgets the one with less: 200 - 45 of the team, 100 of the team with this model.
    second = team("care", "summaries")
    assert told(second) == ("100", "100")
    assert "retry-after" not in second.headers


def test_without_a_budget_nothing_is_asked_counted_or_said(bed, team, audit):
    before = asked(bed)
    for name, model_ in (("search", "summaries"), ("search", "drafts"), ("claims", "drafts")):
        reply = team(name, model_)
        assert reply.status == 200, str(reply)
        assert not [header for header in reply.headers if header.lower().startswith("x-ratelimit")]
        line = audit.of(reply)
        assert (line["budget"], line["budget_estimate"]) == ("none", None)
    assert asked(bed) == before
    assert bed.store.ask("DBSIZE") == [":0"]


def test_the_order_is_token_team_model_access_budget(bed, team, client, audit, issuer):
    """Each request is wrong in all that comes later too, and none of them is counted."""
    for number in range(1, 6):
        assert team("care", "drafts").status == 200
        settled(bed, "team_care", USED * number)
    before = asked(bed)
    twice = b'{"model": "drafts", "model": "drafts"}'
    stranger = bearer(issuer, "strangers")
    for headers, body, status in (
        ([], twice, 401),
        (stranger, twice, 403),
        (bearer(issuer, "care"), twice, 400),
        (bearer(issuer, "care"), chat_body("no-such-model"), 404),
        (bearer(issuer, "care"), chat_body("theirs"), 403),
    ):
        reply = client.ask(CHAT, body, headers)
        assert reply.status == status, str(reply)
        assert audit.of(reply)["budget"] == "none"
    assert client.ask("/v1/embeddings", {"model": "drafts", "input": "x"}, bearer(issuer, "care")).status == 404
    assert client.ask("/v1/models", headers=bearer(issuer, "care")).status == 200
    assert asked(bed) == before
    refused(team("care", "drafts"), 200)
    assert bed.store.count("team_care") == 5 * USED


def test_a_client_sends_nothing_that_decides(bed, client, issuer):
    names = ("x-plane-team", "x-team", "x-plane-budget-team", "x-ratelimit-limit-tokens", "x-envoy-internal")
    for _ in range(3):
        reply = client.ask(CHAT, chat_body("drafts"), [*bearer(issuer, "care"), *((name, "appeals") for name in names)])
        assert reply.status == 200
    settled(bed, "team_care", 3 * USED)
    assert bed.store.count("team_appeals") == 0


# --- what is charged --------------------------------------------------------------------------------------------------


def test_a_stream_is_charged_as_a_reply_in_one_piece(bed, team):
    reply = team("appeals", "summaries", stream=True)
    assert reply.status == 200 and reply.events[-1] == "[DONE]"
    settled(bed, "team_appeals", USED)


def test_embeddings_are_charged_their_prompt(bed, client, issuer):
    body = {"model": "summaries", "input": "x"}
    assert client.ask("/v1/embeddings", body, bearer(issuer, "appeals")).status == 200
    settled(bed, "team_appeals", max(11, estimate(body)))


@pytest.mark.parametrize("stream", [False, True])
def test_an_estimate_of_the_prompt_is_charged_at_admission_and_the_rest_at_the_end(bed, client, audit, issuer, stream):
    body = chat_body("notes", "a prompt of some words " * 10, stream=stream, x_test={"first_token_delay": 1.0})
    future = client.start(CHAT, body, bearer(issuer, "appeals"))
    settled(bed, "team_appeals", estimate(body))
    line = audit.of(future.result())
    assert line["budget_estimate"] == estimate(body)
    settled(bed, "team_appeals", max(estimate(body), line["prompt_tokens"] + line["completion_tokens"]))


def test_an_estimate_above_what_was_used_is_not_given_back(bed, team):
    body = chat_body("drafts", "x" * 1000)
    assert team("appeals", "drafts", "x" * 1000).status == 200
    assert estimate(body) > USED
    # A later charge shows that the first one is done.
    assert team("appeals", "drafts").status == 200
    settled(bed, "team_appeals", estimate(body) + USED)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_charged_the_estimate(bed, client, audit, issuer, stream):
    """What an engine generated for nobody is not known: usage comes at the end."""
    body = chat_body("notes", "leaves", stream=stream, x_test={"answer_delay": 20.0, "token_delay": 5.0})
    future = client.start(CHAT, body, bearer(issuer, "appeals"))
    settled(bed, "team_appeals", estimate(body))
    future.cancel()
    line = audit.find(lambda line: line["budget_estimate"] == estimate(body) and line["team"] == "appeals", "who left")
    assert line["flags"] == "DownstreamConnectionTermination"
    used = (line["prompt_tokens"] or 0) + (line["completion_tokens"] or 0)
    settled(bed, "team_appeals", max(estimate(body), used))


def test_what_no_engine_answered_keeps_its_estimate(bed, team):
    bed.scale("notes", 0)
    bed.wait_for_engines({"notes": 0})
    assert team("appeals", "notes").status == 503
    settled(bed, "team_appeals", estimate(chat_body("notes")))


@pytest.mark.parametrize("stream", [False, True])
def test_what_bedrock_served_is_charged_once_for_all_tries(bed, team, audit, stream):
    bed.scale("drafts", 0)
    bed.wait_for_engines({"drafts": 0})
    reply = team("appeals", "drafts", stream=stream)
    assert (reply.status, reply.backend, reply.attempts) == (200, "bedrock", 3), str(reply)
    line = audit.of(reply)
    settled(bed, "team_appeals", max(line["budget_estimate"], line["prompt_tokens"] + line["completion_tokens"]))


def test_who_is_refused_is_charged_nothing(bed, team):
    """Neither to the budget that is spent nor, again and again, to the team's other one."""
    for number in range(1, 4):
        assert team("care", "summaries").status == 200
        settled(bed, "team_care_model_summaries", USED * number)
    for _ in range(20):
        refused(team("care", "summaries", "x" * 4000), 100)
    assert bed.store.count("team_care") == bed.store.count("team_care_model_summaries") == 3 * USED
    assert team("care", "drafts").status == 200


def test_a_hundred_at_once_overshoot_by_no_more_than_their_answers(bed, client, issuer, capsys):
    """A burst is bound by its prompts' estimates. What it goes over by is at most what the answers use beyond them.

    Where the budget ends between a request's look and its charge, the request is refused and charged its estimate all
    the same: to a budget that is spent.
    """
    body, together, limit = chat_body("drafts"), 100, 200
    futures = [client.start(CHAT, body, bearer(issuer, "care")) for _ in range(together)]
    statuses = Counter(future.result().status for future in futures)
    assert set(statuses) == {200, 429}, statuses
    used, rest = statuses[200] * USED, USED - estimate(body)
    wait_until(lambda: bed.store.count("team_care") >= used, "the last charge")
    with capsys.disabled():
        print(f"\n{together} at once, {USED} tokens each, {limit} a minute: {statuses[200]} served, {used} tokens used")
    assert used <= limit + together * rest + estimate(body)
    assert bed.store.count("team_care") <= used + statuses[429] * estimate(body)
    refused(client.ask(CHAT, body, bearer(issuer, "care")), 200)


# --- changes and the minute's turn ------------------------------------------------------------------------------------


def test_other_limits_are_in_force_without_a_restart(bed, team):
    for number in range(1, 6):
        assert team("care", "drafts").status == 200
        settled(bed, "team_care", USED * number)
    refused(team("care", "drafts"), 200)
    pids = bed.ratelimit.process.pid, bed.router.process.pid
    wider = json.loads(json.dumps(bed.values))
    wider["global"]["teams"]["care"]["tokensPerMinute"] = 5000
    try:
        write_limits(bed.rendered(wider), bed.ratelimit.folder)
        wait_until(lambda: team("care", "drafts").status == 200, "the wider budget")
        assert team("care", "drafts").headers["x-ratelimit-limit-tokens"] == "5000"
    finally:
        write_limits(bed.render, bed.ratelimit.folder)
        wait_until(lambda: team("care", "drafts").status == 429, "the old budget")
    assert (bed.ratelimit.process.pid, bed.router.process.pid) == pids


def test_a_new_minute_has_a_new_budget_and_ends_old_streams(bed, client, team, audit, issuer):
    """A stream over the turn is charged its estimate in the old minute and the rest in the new one."""
    time.sleep(max(0.0, 40 - time.time() % 60))  # a counter outlives its last charge by a minute
    for number in range(1, 6):
        assert team("care", "drafts").status == 200
        settled(bed, "team_care", USED * number)
    reply = team("care", "drafts")
    refused(reply, 200)
    wait = int(reply.headers["retry-after"])
    body = chat_body("notes", "over the turn", stream=True, x_test={"first_token_delay": wait + 1.0, "tokens": 60})
    future = client.start(CHAT, body, bearer(issuer, "appeals"), timeout=wait + HANG)
    settled(bed, "team_appeals", estimate(body))
    time.sleep(wait + 0.2)
    assert team("care", "drafts").status == 200
    line = audit.of(future.result(wait + HANG))
    used = line["prompt_tokens"] + line["completion_tokens"]
    assert used > estimate(body)
    settled(bed, "team_appeals", used)
