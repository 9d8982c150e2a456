"""What the demonstration expects and says: judged on made-up answers, without a plane."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest
import rich.console

from inference_plane.demo import client, report
from inference_plane.demo.client import Answer
from inference_plane.demo.scenes import BEDROCK, FLEET, OPEN, ROUTER, SECRET, Expect, Scene, scenes

FROM_FLEET = frozenset({FLEET})
GOOD = Answer(FLEET, 200, 1, 0.2, 1.5, 40, 8, request_id="a", text="Hello.")


def answer(**changes: Any) -> Answer:
    return dataclasses.replace(GOOD, **changes)


def line(**changes: Any) -> dict[str, Any]:
    known = {
        "request_id": "a",
        "model": "assistant",
        "backend": FLEET,
        "status": 200,
        "attempts": 1,
        "prompt_tokens": 40,
        "completion_tokens": 8,
        "duration_ms": 1500,
    }
    return known | changes


def printed(table: Any, width: int = 100) -> str:
    out = io.StringIO()
    rich.console.Console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.mark.parametrize(
    ("expect", "changes", "problem"),
    [
        (Expect(status=503), {"text": "a  long\nbody"}, "status 200, expected 503: a long body"),
        (Expect(attempts=3), {}, "1 attempts, expected 3"),
        (Expect(tokens=32), {}, "8 tokens, expected 32"),
        (Expect(first_token_at_least=2), {}, "first token after 0.20 s, expected 2 s at least"),
        (Expect(first_token_at_least=2), {"first_token": None}, "first token after inf s, expected 2 s at least"),
        (Expect(first_token_at_most=0.1), {}, "first token after 0.20 s, expected 0.1 s at most"),
        (Expect(first_token_at_most=9), {"first_token": None}, "first token after inf s, expected 9 s at most"),
        (Expect(total_at_least=2), {}, "over after 1.50 s, expected 2 s at least"),
        (Expect(retry_after=True), {}, "no Retry-After in seconds"),
        (Expect(says="overloaded"), {}, "the body does not say 'overloaded': Hello."),
        (Expect(frozenset({BEDROCK})), {}, "answered by fleet, expected bedrock"),
    ],
)
def test_an_answer_that_is_not_as_expected_is_named(expect: Expect, changes: dict[str, Any], problem: str) -> None:
    assert report.problems(Expect(FROM_FLEET, 200, 1, 8, 0.1, 0.3, 1, says="Hello"), [GOOD]) == []
    assert report.problems(expect, [answer(**changes)]) == [problem]


def test_many_answers_are_judged_together() -> None:
    both = Expect(frozenset({FLEET, BEDROCK}))
    assert report.problems(both, [GOOD, answer(answered_by=BEDROCK)]) == []
    assert report.problems(both, [GOOD, GOOD]) == ["answered by fleet, expected bedrock and fleet"]
    lost = answer(answered_by=ROUTER, status=0, text="no whole answer")
    assert report.problems(Expect(), [GOOD, lost, lost]) == [
        "status 0, expected 200: no whole answer (2 of 3)",
        "answered by fleet and router, expected fleet",
    ]


def test_a_row_says_what_happened() -> None:
    scene = Scene("both", "2 at once", (), Expect(frozenset({FLEET, BEDROCK})))
    row = report.row(scene, [GOOD, answer(answered_by=BEDROCK, attempts=3, first_token=0.4, total=2.0)])
    assert (row.ok, row.first_token_ms, row.total_ms) == (True, 300, 2000)
    assert (row.prompt_tokens, row.completion_tokens) == (80, 16)
    assert (row.answered_by, row.status, row.attempts) == ({"fleet": 1, "bedrock": 1}, {"200": 2}, {"1": 1, "3": 1})
    silent = report.row(scene, [answer(first_token=None, prompt_tokens=None, completion_tokens=None)])
    assert (silent.first_token_ms, silent.completion_tokens) == (None, None)


def test_the_table_fits_a_terminal_and_takes_text_as_text() -> None:
    scene = Scene("a body", "[bold]{}[/] :smile:", (), Expect())
    text = printed(report.table([report.row(scene, [GOOD]), report.row(scene, [answer(status=500)])]), 100)
    assert "[bold]{}[/] :smile:" in text
    assert "yes" in text and "NO" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_document_is_json_and_fails_with_any_row() -> None:
    good = report.row(Scene("a", "b", (), Expect()), [GOOD])
    document = json.loads(json.dumps(report.document([good], [line()], {"real": {"model": "yes"}})))
    assert document["ok"] and document["real"] == {"model": "yes"}
    assert document["rows"][0]["answered_by"] == {"fleet": 1}
    assert document["audit"][0]["lines"] == 1
    bad = report.row(Scene("a", "b", (), Expect(status=404)), [GOOD])
    document = report.document([good, bad], [], {})
    assert not document["ok"] and [row["ok"] for row in document["rows"]] == [True, False]


def test_a_leak_is_a_problem_and_so_is_a_check_that_saw_nothing() -> None:
    assert report.leaks(3, 0, 9).ok
    assert report.leaks(3, 1, 9).problems == ("1 prompts that must stay were seen at Bedrock",)
    assert report.leaks(3, 0, 0).problems == ("Bedrock saw no prompt at all, so this check shows nothing",)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "1 lines missing: status 200, backend fleet, attempts 1, prompt tokens 40, completion tokens 8"),
        (
            [line(), line()],
            "1 lines of no request: status 200, backend fleet, attempts 1, prompt tokens 40, completion tokens 8",
        ),
        ([line(), line(status=400)], "1 lines of no request: status 400"),
    ],
)
def test_an_audit_line_too_few_or_too_many_is_a_problem(lines: list[dict[str, Any]], problem: str) -> None:
    assert report.audited([GOOD], lines).problems == (problem,)


def test_audit_lines_say_what_clients_saw() -> None:
    refused = answer(answered_by=ROUTER, status=400, attempts=None, request_id="b")
    empty = answer(answered_by="none", status=503, request_id="c")
    lines = [line(request_id="c", status=503), line(), line(request_id="b", status=400, backend=None)]
    assert report.audited([GOOD, refused, empty], lines).ok
    assert not report.audited([GOOD], [line(request_id="b")]).ok
    wrong = report.audited([GOOD], [line(completion_tokens=7)])
    assert [problem.split(":")[0] for problem in wrong.problems] == ["1 lines missing", "1 lines of no request"]


def test_equal_audit_lines_are_told_together() -> None:
    groups = report.audit_groups([line(), line(duration_ms=500), line(backend=None, prompt_tokens=None)])
    assert [group["lines"] for group in groups] == [2, 1]
    assert (groups[0]["prompt_tokens"], groups[0]["duration_ms"], groups[1]["prompt_tokens"]) == (80, 1000, 0)
    assert "assistant" in printed(report.audit_table([line()]))


def test_a_stream_is_timed_by_its_first_text() -> None:
    found = Answer(ROUTER)
    client.event(found, {"choices": [{"delta": {"role": "assistant", "content": ""}}]}, 0.1)
    assert found.first_token is None
    client.event(found, {"choices": [{"delta": {"content": "Hel"}}]}, 0.2)
    client.event(found, {"choices": [{"delta": {"content": "lo"}}]}, 0.3)
    client.event(found, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}, 0.4)
    assert (found.first_token, found.text, found.prompt_tokens, found.completion_tokens) == (0.2, "Hello", 5, 2)


def test_an_answer_in_one_piece_is_its_text_or_its_body() -> None:
    found = Answer(ROUTER)
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    client.whole(found, json.dumps({"choices": [{"message": {"content": "Hello"}}], "usage": usage}))
    assert (found.text, found.completion_tokens) == ("Hello", 2)
    client.whole(found, "upstream connect error")
    assert found.text == "upstream connect error"


def test_every_scene_is_marked_by_where_its_prompt_may_go() -> None:
    for scene in scenes(budget=2.0, fallback="openai.gpt-oss-20b-1:0", together=4):
        for call in scene.calls:
            body = (call.body or b"").decode()
            must_stay = '"records"' in body or call.headers.get("x-residency") == "cluster"
            assert (SECRET in body) == (must_stay and '"content"' in body), scene.title
            assert not (SECRET in body and OPEN in body)
            if SECRET in body:
                assert BEDROCK not in scene.expect.answered_by


def test_scenes_leave_no_doubt_about_the_budget() -> None:
    """Whoever is meant to miss the budget is slowed by more than it, and who must not be cut takes longer than it."""
    for scene in scenes(budget=2.0, fallback="openai.gpt-oss-20b-1:0"):
        if scene.conditions.fleet_first_token:
            assert scene.conditions.fleet_first_token > 2.0
        if scene.conditions.fleet_token and not scene.conditions.policy:  # there it keeps the fleet full
            assert scene.conditions.fleet_token * ((scene.expect.tokens or 0) - 1) > (scene.expect.total_at_least or 0)
