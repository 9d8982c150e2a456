"""Token budgets in a real Envoy on the rendered files, with the real rate-limit service. Redis stands in for Valkey."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from router_harness import (
    CHAT,
    QUICK,
    REGION_TARGET,
    Audit,
    Client,
    Reply,
    catalogue,
    chat_body,
    counting_engine,
    model,
    openai_error,
    wait_until,
)

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Issuer

#: `summaries` and `drafts` (which may fall back) are served by an engine whose answers use 45 tokens, 40 of them the
#: prompt's; `notes` by one that replays vLLM.
MODELS = {
    "summaries": model("summaries", "cluster", servedNames=["org/summaries"], api=["chat", "embeddings"]),
    "drafts": model("drafts", "region", REGION_TARGET),
    "notes": model("notes", "cluster"),
    "private": model("private", "cluster", access={"teams": ["care"]}),
}
USED = 45
TEAMS = {
    "care": {"tokensPerMinute": 200, "models": {"summaries": {"tokensPerMinute": 100}}},
    "appeals": {"tokensPerMinute": 1000000},
    "claims": {"models": {"summaries": {"tokensPerMinute": 100}}},
    "search": {},
}


def values(issuer: Issuer, **budgets: Any) -> dict[str, Any]:
    made = catalogue(MODELS, **QUICK)
    made["global"]["teams"] = TEAMS
    # Loopback on a busy machine; what is lost at the default is not of interest here.
    return {**made, "auth": issuer.values(), "budgets": {"timeout": "5s", **budgets}}


APPS = {name: counting_engine for name in ("summaries", "drafts", "private")}


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def budget_bed(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Bed]:
    with Bed(tmp_path_factory.mktemp("budgets"), values=values(issuer), apps=APPS) as bed:
        yield bed


@pytest.fixture
def bed(budget_bed: Bed) -> Bed:
    """As new, with counters at zero and at least 20 s of a minute left, so that no window turns in a test."""
    budget_bed.reset()
    if (left := 60 - time.time() % 60) < 20:
        time.sleep(left + 0.1)
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
def team(client: Client, issuer: Issuer):
    """Asks a chat completion as a team: (team, model, prompt, **body) -> Reply."""

    def ask(name: str, asked: str, prompt: str = "hello", path: str = CHAT, **body: Any) -> Reply:
        headers = [("authorization", f"Bearer {issuer.token(name)}")]
        return client.ask(path, chat_body(asked, prompt, **body), headers)

    return ask


def refused(reply: Reply, limit: int) -> None:
    assert reply.status == 429, str(reply)
    assert reply.headers["x-plane-reason"] == "token-budget"
    error = openai_error(reply)
    assert error["type"] == "rate_limit_error" and f"its {limit} tokens of this minute" in error["message"]
    assert reply.headers["x-ratelimit-limit-tokens"] == str(limit)
    assert reply.headers["x-ratelimit-remaining-tokens"] == "0"
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert (reply.attempts, reply.backend) == (0, "none")


def settled(bed: Bed, entries: str, tokens: int) -> None:
    """So many tokens are counted, once the last charge has arrived."""
    wait_until(lambda: bed.store.count(entries) == tokens, f"{tokens} tokens of {entries}, not {bed.store.count(entries)}")


def test_a_budget_runs_out_for_one_team_and_for_no_other(bed, team, audit):
    for number in range(3):
        assert team("care", "summaries").status == 200
        settled(bed, "team_care", USED * (number + 1))
    reply = team("care", "summaries")
    refused(reply, 100)
    line = audit.of(reply)
    assert (line["status"], line["reason"], line["budget"], line["upstream"]) == (429, "token-budget", "refused", None)
    assert (line["team"], line["requested_model"]) == ("care", "summaries")
    for _ in range(5):
        reply = team("appeals", "summaries")
        assert reply.status == 200, str(reply)
        assert audit.of(reply)["budget"] == "within"
    settled(bed, "team_appeals", 5 * USED)
    assert bed.store.count("team_care") == 3 * USED
