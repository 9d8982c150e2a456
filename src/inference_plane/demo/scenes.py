"""What the demonstration shows: each scene as data, with what must come back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

CHAT = "/v1/chat/completions"
BEDROCK_CHAT = "/openai/v1/chat/completions"
#: In every prompt that must not leave the cluster, and in every prompt that may: a leak is counted by content.
SECRET, OPEN = "marker-stays-7Q2", "marker-may-leave-4X9"

#: Who answers. `none` is the router where no engine is left, `router` the router without asking further.
FLEET, BEDROCK, NONE, ROUTER, STAND_IN = "fleet", "bedrock", "none", "router", "stand-in"


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How the plane is while a scene plays. Delays are in seconds and simulated; `fleet` False: no engine is ready.

    `minute_left` is how many seconds of a minute are left at least, for scenes after which a minute must not turn.
    """

    fleet_first_token: float = 0.0
    fleet_token: float = 0.0
    bedrock_first_token: float = 0.0
    fleet: bool = True
    # Whether the policy service runs, and the share of `assistant` that it sends to Amazon Bedrock first, in points of
    # 100. Without it each request finds its own way, as most scenes show.
    policy: bool = False
    shifted: tuple[int, int] = (0, 100)
    minute_left: float = 0.0


@dataclasses.dataclass(frozen=True)
class Call:
    """One HTTP request. `to` is `router`, or `stand-in` for the one of Amazon Bedrock.

    `signature` of a call to the stand-in: `none`, `forged` (with another secret key) or `valid`. A call to the router
    has a token of the team `team` that is good for `token_seconds`, or none where `team` is empty.
    """

    body: bytes | None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    method: str = "POST"
    path: str = CHAT
    to: str = ROUTER
    signature: str = "none"
    team: str = "care"
    token_seconds: float = 300


@dataclasses.dataclass(frozen=True)
class Expect:
    """What must hold for every answer of a scene. Times are in seconds; None is not looked at.

    `answered_by` is who answers: each of them at least once and nobody else.
    """

    answered_by: frozenset[str] = frozenset({FLEET})
    status: int = 200
    attempts: int | None = None
    tokens: int | None = None
    first_token_at_least: float | None = None
    first_token_at_most: float | None = None
    total_at_least: float | None = None
    retry_after: bool = False
    says: str = ""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A title, what is sent in few words, the requests (all at once), what must come back, how the plane is."""

    title: str
    sent: str
    calls: tuple[Call, ...]
    expect: Expect
    conditions: Conditions = Conditions()


def chat(
    model: str, words: str, *, secret: bool = False, headers: Mapping[str, str] | None = None, **more: Any
) -> Call:
    """A chat completion; `more` are further keys of the body. `secret` marks a prompt that must stay."""
    content = f"{words} ({SECRET if secret else OPEN})"
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 24, **more}
    return Call(json.dumps(body).encode(), headers or {})


def scenes(*, budget: float, fallback: str, tokens: int = 0, together: int = 200) -> list[Scene]:
    """The scenes in order.

    Args:
        budget: the first-token budget of `assistant` in seconds, without what the size of a body adds to it.
        fallback: the Bedrock id of `assistant`.
        tokens: the token budget a minute of the team `trial`; without one its scenes are left out.
        together: how many requests saturate the fleet.
    """
    slow = Conditions(fleet_first_token=budget + 1.5)
    slow_both = dataclasses.replace(slow, bedrock_first_token=budget + 0.5)
    long_tokens = 32
    slow_tokens = Conditions(fleet_token=1.5 * budget / long_tokens)
    empty = Conditions(fleet=False)
    hello = "Say hello in one short sentence."
    fleet, bedrock, stand_in = frozenset({FLEET}), frozenset({BEDROCK}), frozenset({STAND_IN})
    refused = Expect(frozenset({ROUTER}), 400, says="invalid_request_error")

    def stranger(says: str, status: int = 401, model: str = "assistant", **caller: Any) -> dict[str, Any]:
        call = dataclasses.replace(chat(model, hello, secret=model == "records"), **caller)
        return {"calls": (call,), "expect": Expect(frozenset({ROUTER}), status, says=says)}

    def by(team: str) -> tuple[Call]:
        return (dataclasses.replace(chat("assistant", hello), team=team),)

    budgets = [
        Scene(
            f"a team with {tokens} tokens a minute",
            "assistant, by the team trial",
            by("trial"),
            Expect(fleet, attempts=1),
            Conditions(minute_left=20),
        ),
        Scene(
            "its budget is spent: 429",
            "the same",
            by("trial"),
            Expect(frozenset({NONE}), 429, retry_after=True, says=f"The team `trial` has used its {tokens} tokens"),
        ),
        Scene("another team's is not", "assistant, by the team care", by("care"), Expect(fleet, attempts=1)),
    ]

    # Replies slow enough for the fleet to stay full while the policy service looks.
    crowded = Conditions(fleet_token=0.5, policy=True)
    shifted, over = Conditions(policy=True, shifted=(30, 100)), Conditions(policy=True, shifted=(0, 0))
    shift = [
        Scene(
            "more than the fleet takes, for some seconds",
            f"assistant, {together // 2} at once, fleet slowed",
            tuple(chat("assistant", "Is it night?", max_tokens=8, ignore_eos=True) for _ in range(together // 2)),
            Expect(frozenset({FLEET, BEDROCK})),
            crowded,
        ),
        Scene(
            "the policy service has shifted a share",
            f"assistant, {together} at once, short",
            tuple(chat("assistant", "Is it day?", max_tokens=1) for _ in range(together)),
            Expect(frozenset({FLEET, BEDROCK})),
            shifted,
        ),
        Scene(
            "and what must stay is not in it",
            "assistant, x-residency: cluster, and records",
            (
                chat("assistant", hello, secret=True, headers={"x-residency": "cluster"}),
                chat("records", hello, secret=True),
            ),
            Expect(fleet),
            shifted,
        ),
        Scene("the load is over: back to the fleet", "assistant", (chat("assistant", hello),), Expect(fleet, attempts=1), over),
    ]

    def direct(model: str, signature: str) -> tuple[Call]:
        call = chat(model, hello, max_tokens=4)
        return (dataclasses.replace(call, path=BEDROCK_CHAT, to=STAND_IN, signature=signature),)

    return [
        Scene("a completion", "assistant", (chat("assistant", hello),), Expect(fleet, attempts=1)),
        Scene(
            "a stream",
            "assistant, stream",
            (chat("assistant", hello, stream=True),),
            Expect(fleet, attempts=1, first_token_at_most=budget),
        ),
        Scene(
            "a model that never leaves",
            "records, stream",
            (chat("records", "Summarize: the claim of 3 May was paid.", secret=True, stream=True),),
            Expect(fleet, attempts=1),
        ),
        Scene(
            "the catalogue",
            "GET /v1/models",
            (Call(None, method="GET", path="/v1/models"),),
            Expect(frozenset({ROUTER}), says='"id":"assistant"'),
        ),
        Scene(
            "a long answer in one piece: never cut",
            f"assistant, {long_tokens} tokens, fleet slowed",
            (chat("assistant", "Tell me about rivers.", max_tokens=long_tokens, ignore_eos=True),),
            Expect(fleet, attempts=1, tokens=long_tokens, total_at_least=budget),
            slow_tokens,
        ),
        Scene(
            "first token late: Bedrock answers",
            f"assistant, stream, fleet slowed {slow.fleet_first_token:g} s",
            (chat("assistant", hello, stream=True),),
            Expect(bedrock, attempts=3, first_token_at_least=budget),
            slow,
        ),
        Scene(
            "Bedrock late too: never cut",
            f"the same, Bedrock slowed {slow_both.bedrock_first_token:g} s",
            (chat("assistant", hello, stream=True),),
            Expect(bedrock, attempts=3, first_token_at_least=budget + slow_both.bedrock_first_token),
            slow_both,
        ),
        Scene(
            "first token late, must stay: waits",
            "stream, slowed, x-residency: cluster",
            (chat("assistant", hello, secret=True, headers={"x-residency": "cluster"}, stream=True),),
            Expect(fleet, attempts=1, first_token_at_least=slow.fleet_first_token),
            slow,
        ),
        Scene(
            "saturation: all are answered",
            f"assistant, {together} at once, half streams",
            tuple(chat("assistant", "Is it day?", stream=n % 2 == 0, max_tokens=3) for n in range(together)),
            Expect(frozenset({FLEET, BEDROCK})),
        ),
        Scene(
            "no engine left: Bedrock answers",
            "assistant",
            (chat("assistant", hello),),
            Expect(bedrock, attempts=3),
            empty,
        ),
        Scene(
            "no engine left, must stay: 503",
            "records",
            (chat("records", "Summarize: the claim of 4 May was denied.", secret=True),),
            Expect(frozenset({NONE}), 503, retry_after=True, says="overloaded_error"),
            empty,
        ),
        Scene("the fleet is back", "assistant", (chat("assistant", hello),), Expect(fleet, attempts=1)),
        Scene(
            "an unknown model",
            "no-such-model",
            (chat("no-such-model", hello),),
            Expect(frozenset({ROUTER}), 404, says="not_found_error"),
        ),
        Scene("no token", "assistant, no authorization", **stranger("authentication_error", team="")),
        Scene("a token that has expired", "assistant", **stranger("Jwt is expired", token_seconds=-300)),
        Scene(
            "a team without access",
            "records, by the team appeals",
            **stranger("The team `appeals` may not call", 403, "records", team="appeals"),
        ),
        *(budgets if tokens else []),
        *shift,
        Scene("a body that is not JSON", "model=assistant", (Call(b"model=assistant"),), refused),
        Scene("a body without a model", '{"messages": []}', (Call(b'{"messages": []}'),), refused),
        Scene(
            "a body with two models",
            '{"model": ..., "model": ...}',
            (Call(b'{"model": "records", "model": "assistant", "messages": []}'),),
            refused,
        ),
        Scene(
            "stand-in of Bedrock: no signature",
            f"{fallback}, no router",
            direct(fallback, "none"),
            Expect(stand_in, 403, says="Missing Authentication Token"),
        ),
        Scene(
            "stand-in of Bedrock: forged signature",
            "the same, with another key",
            direct(fallback, "forged"),
            Expect(stand_in, 403, says="signature we calculated does not match"),
        ),
        Scene(
            "stand-in of Bedrock: unknown model",
            "anthropic.claude-v2, signed",
            direct("anthropic.claude-v2", "valid"),
            Expect(stand_in, 404, says="model identifier is invalid"),
        ),
        Scene(
            "stand-in of Bedrock: all in order",
            f"{fallback}, signed",
            direct(fallback, "valid"),
            Expect(stand_in),
        ),
    ]
