"""What affinity.lua makes of a body: the same number for what shares a prefix, and nothing for models without."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

PREFIX = {"affinity/m": "prefix", "prefix_bytes": 512}
SESSION = {"affinity/m": "session", "prefix_bytes": 512}
SYSTEM = {"role": "system", "content": "You answer questions."}


def key(route: Any, context: dict[str, Any], headers: dict[str, str] | None = None, **body: Any) -> str | None:
    """The key of a body, once nothing but the key was made of it."""
    path = "/v1/responses" if "input" in body else "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    result = route(path, json.dumps({"model": "m", **body}).encode(), headers=headers, context=context)
    assert set(result.headers) == {":path", ":method", "x-plane-model", *(headers or {})}
    assert set(result.marked) <= {"affinity"}
    return result.marked.get("affinity")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def digest(text: str) -> int:
    """The same in whole numbers, which are exact."""
    data = text.encode()
    hash_, whole = len(data), len(data) // 4 * 4
    for at in range(0, whole, 4):
        hash_ = (hash_ * 1000003 + int.from_bytes(data[at : at + 4], "little")) % 4294967291
    for byte in data[whole:]:
        hash_ = (hash_ * 1000003 + byte) % 4294967291
    return hash_


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 63, 300])
def test_the_arithmetic_is_exact(route, length):
    text = "\N{LATIN SMALL LETTER Y WITH DIAERESIS}" * length  # bytes near 255
    raw = json.dumps(text, ensure_ascii=False)
    body = f'{{"model": "m", "prompt": {raw}}}'.encode()
    marked = route("/v1/completions", body, context={**PREFIX, "prefix_bytes": 10**6}).marked
    assert marked["affinity"] == str(digest(raw))


def test_a_model_without_affinity_has_no_key(route):
    assert key(route, {"affinity/other": "prefix", "prefix_bytes": 512}, messages=[user("hi")]) is None
    assert key(route, {}, messages=[user("hi")]) is None


def test_later_turns_begin_as_the_first_one(route):
    first = [SYSTEM, user("hi")]
    turns = [first, [*first, {"role": "assistant", "content": "yes?"}, user("and?")]]
    assert len({key(route, PREFIX, messages=messages) for messages in turns}) == 1
    assert key(route, PREFIX, messages=[SYSTEM, user("ho")]) != key(route, PREFIX, messages=first)
    assert key(route, PREFIX, messages=[{**SYSTEM, "content": "You do not."}, user("hi")]) != key(
        route, PREFIX, messages=first
    )


def test_no_more_than_the_limit_counts(route):
    packet = "page " * 200
    assert key(route, PREFIX, messages=[user(packet + "one")]) == key(route, PREFIX, messages=[user(packet + "two")])
    wide = {**PREFIX, "prefix_bytes": 4096}
    assert key(route, wide, messages=[user(packet + "one")]) != key(route, wide, messages=[user(packet + "two")])


def test_a_text_that_looks_like_a_user_s_role_ends_nothing(route):
    talk = [{"role": "system", "content": 'Reply with {"role": "user"} in braces.'}, user("one")]
    assert key(route, PREFIX, messages=talk) != key(route, PREFIX, messages=[talk[0], user("two")])


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": None},
        {"messages": "text"},
        {"messages": [1, [2], {}]},
        {"messages": [{"role": "assistant", "content": "no user"}]},
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2, 3]},
        {"input": [user("hi")], "instructions": "Be kind."},
        {"input": [{"type": "message", **user("hi")}]},
    ],
    ids=json.dumps,
)
def test_any_shape_of_prompt_has_one_key(route, body):
    found = key(route, PREFIX, **body)
    assert found and re.fullmatch(r"\d+(-\d+)?", found) and found == key(route, PREFIX, **body)


def test_a_body_without_a_prompt_has_none(route):
    assert key(route, PREFIX) is None


def test_a_session_is_the_header_or_else_the_cache_key(route):
    by_header = key(route, SESSION, {"x-session-id": "one"}, messages=[user("a")])
    assert by_header == str(digest("one"))
    assert key(route, SESSION, messages=[user("b")], prompt_cache_key="one") == by_header
    assert key(route, SESSION, {"x-session-id": "one"}, messages=[user("b")], prompt_cache_key="two") == by_header
    assert key(route, SESSION, messages=[user("a")]) is None


@pytest.mark.parametrize("name", [None, "", 7, {"a": 1}])
def test_what_is_no_name_is_no_session(route, name):
    assert key(route, SESSION, messages=[user("a")], prompt_cache_key=name) is None


def test_an_empty_header_is_no_session(route):
    assert key(route, SESSION, {"x-session-id": ""}, messages=[user("a")]) is None


def test_of_a_long_name_the_first_256_bytes_count(route):
    assert key(route, SESSION, {"x-session-id": "n" * 10**5}, messages=[]) == str(digest("n" * 256))


def test_a_refused_body_has_no_key(route):
    body = b'{"model": "m", "model": "m", "messages": []}'
    assert route(body=body, context=PREFIX).marked == {}
