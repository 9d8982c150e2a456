"""What the tests of token budgets share: a catalogue, teams with budgets, and what is expected of a refusal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

from router_harness import (
    CHAT,
    QUICK,
    REGION_TARGET,
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
    "theirs": model("theirs", "cluster", access={"teams": ["appeals"]}),
}
USED = 45
#: The chart's default.
BYTES_PER_TOKEN = 4
TEAMS = {
    "care": {"tokensPerMinute": 200, "models": {"summaries": {"tokensPerMinute": 100}}},
    "appeals": {"tokensPerMinute": 1000000},
    "claims": {"models": {"summaries": {"tokensPerMinute": 100}}},
    "search": {},
}


Ask = Callable[..., Reply]


def asker(client: Client, issuer: Issuer) -> Ask:
    """Asks a chat completion as a team: (team, model, prompt, **body) -> Reply."""

    def ask(name: str, asked: str | None, prompt: str = "hello", *, path: str = CHAT, **body: Any) -> Reply:
        return client.ask(path, chat_body(asked, prompt, **body), bearer(issuer, name))

    return ask


def bearer(issuer: Issuer, name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {issuer.token(name)}")]


def values(issuer: Issuer, **budgets: Any) -> dict[str, Any]:
    made = catalogue(MODELS, **QUICK)
    made["global"]["teams"] = TEAMS
    # Loopback on a busy machine; what is lost at the default is not of interest here.
    return {**made, "auth": issuer.values(), "budgets": {"timeout": "5s", **budgets}}


APPS = {name: counting_engine for name in ("summaries", "drafts", "theirs")}


def refused(reply: Reply, limit: int) -> None:
    assert reply.status == 429, str(reply)
    assert reply.headers["x-plane-reason"] == "token-budget"
    error = openai_error(reply)
    assert error["type"] == "rate_limit_error" and f"its {limit} tokens of this minute" in error["message"]
    assert reply.headers["x-ratelimit-limit-tokens"] == str(limit)
    assert reply.headers["x-ratelimit-remaining-tokens"] == "0"
    left = 60 - time.time() % 60
    assert left - 3 < int(reply.headers["retry-after"]) == int(reply.headers["x-ratelimit-reset-tokens"]) < left + 3
    assert (reply.attempts, reply.backend) == (0, "none")


def settled(bed: Bed, entries: str, tokens: int) -> None:
    """So many tokens are counted, once the last charge has arrived."""
    wait_until(lambda: bed.store.count(entries) == tokens, f"{tokens} tokens of {entries}")


def estimate(body: dict[str, Any]) -> int:
    return math.ceil(len(json.dumps(body)) / BYTES_PER_TOKEN)


def room(seconds: float) -> None:
    """Waits for a minute with so much of it left, so that none turns within a test."""
    if (left := 60 - time.time() % 60) < seconds:
        time.sleep(left + 0.1)


def asked(bed: Bed) -> int:
    """How often the router has called the rate-limit service."""
    return bed.router.stats(["cluster.ratelimit.upstream_rq_total"])["cluster.ratelimit.upstream_rq_total"]
