"""Judges answers against what was expected, and lays out what happened. Pure: nothing here does I/O."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.box
import rich.table
import rich.text

from .client import Answer
from .scenes import BEDROCK, FLEET, Expect, Scene


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. Times are in ms: of several answers the median first token, and the longest total.

    `answered_by`, `status` and `attempts` say how often each value came; tokens are summed. A check of the whole run
    has none of these.
    """

    scene: str
    sent: str
    answered_by: Mapping[str, int] = dataclasses.field(default_factory=dict)
    status: Mapping[str, int] = dataclasses.field(default_factory=dict)
    first_token_ms: int | None = None
    total_ms: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


def row(scene: Scene, answers: Sequence[Answer]) -> Row:
    """The line of a scene."""
    first = [answer.first_token for answer in answers if answer.first_token is not None]
    counted = [answer for answer in answers if answer.completion_tokens is not None]
    return Row(
        scene.title,
        scene.sent,
        answered_by=dict(Counter(answer.answered_by for answer in answers)),
        status=dict(Counter(str(answer.status or "none") for answer in answers)),
        first_token_ms=_ms(statistics.median(first)) if first else None,
        total_ms=_ms(max(answer.total for answer in answers)),
        prompt_tokens=sum(answer.prompt_tokens or 0 for answer in counted) if counted else None,
        completion_tokens=sum(answer.completion_tokens or 0 for answer in counted) if counted else None,
        attempts=dict(Counter(str(answer.attempts) for answer in answers if answer.attempts)),
        problems=tuple(problems(scene.expect, answers)),
    )


def counts(found: Mapping[str, int], between: str = ", ") -> str:
    """Values with their counts in words; one value stands alone."""
    if len(found) == 1:
        return next(iter(found))
    return between.join(f"{count} x {value}" for value, count in sorted(found.items()))


def problems(expect: Expect, answers: Sequence[Answer]) -> list[str]:
    """What is not as expected, one sentence each; a sentence that several answers share is told once, counted."""
    found = Counter(problem for answer in answers for problem in _problems(expect, answer))
    told = [f"{text} ({count} of {len(answers)})" if len(answers) > 1 else text for text, count in found.items()]
    seen = {answer.answered_by for answer in answers}
    if seen != expect.answered_by:
        told.append(f"answered by {_names(seen)}, expected {_names(expect.answered_by)}")
    return told


def _problems(expect: Expect, answer: Answer) -> Iterable[str]:
    first = math.inf if answer.first_token is None else answer.first_token
    earliest, latest, least = expect.first_token_at_least, expect.first_token_at_most, expect.total_at_least
    if answer.status != expect.status:
        yield f"status {answer.status}, expected {expect.status}: {short(answer.text)}"
    elif expect.says not in answer.text:
        yield f"the body does not say {expect.says!r}: {short(answer.text)}"
    if expect.attempts not in (None, answer.attempts):
        yield f"{answer.attempts} attempts, expected {expect.attempts}"
    if expect.tokens not in (None, answer.completion_tokens):
        yield f"{answer.completion_tokens} tokens, expected {expect.tokens}"
    if earliest is not None and not earliest <= first < math.inf:
        yield f"first token after {first:.2f} s, expected {earliest:g} s at least"
    if latest is not None and first > latest:
        yield f"first token after {first:.2f} s, expected {latest:g} s at most"
    if least is not None and answer.total < least:
        yield f"over after {answer.total:.2f} s, expected {least:g} s at least"
    if expect.retry_after and not answer.retry_after.isdigit():
        yield "no Retry-After in seconds"


def leaks(prompts: int, seen: int, others: int) -> Row:
    """The check that no prompt which must stay was ever at Bedrock.

    Args:
        prompts: how many such prompts were sent.
        seen: how many of them Bedrock's stand-in saw, by content, in requests that it refused too.
        others: how many prompts that may leave it saw; 0 would make the check worthless.
    """
    told = []
    if seen:
        told.append(f"{seen} prompts that must stay were seen at Bedrock")
    if not others:
        told.append("Bedrock saw no prompt at all, so this check shows nothing")
    sent = f"{prompts} prompts, {seen} seen there; {others} others were"
    return Row("nothing that must stay was at Bedrock", sent, problems=tuple(told))


def audited(answers: Sequence[Answer], lines: Sequence[Mapping[str, Any]]) -> Row:
    """The check that every answer of the router has exactly one audit line, which says the same of it as its client."""
    told = Counter((answer.request_id, *_said(answer)) for answer in answers)
    seen = Counter((line["request_id"], *_audited(line)) for line in lines)
    few, many = told - seen, seen - told
    return Row(
        "one true audit line a request",
        f"{len(answers)} requests, {len(lines)} lines",
        problems=(*_which(few, "missing"), *_which(many, "of no request")),
    )


def _said(answer: Answer) -> tuple[Any, ...]:
    # Status, backend, attempts, prompt and completion tokens of an answer of a model; of any other its status alone.
    if answer.status != 200 or answer.answered_by not in (FLEET, BEDROCK):
        return (answer.status,)
    return (answer.status, answer.answered_by, answer.attempts, answer.prompt_tokens, answer.completion_tokens)


def _audited(line: Mapping[str, Any]) -> tuple[Any, ...]:
    if line["status"] != 200 or line["backend"] is None:
        return (line["status"],)
    return tuple(line[key] for key in ("status", "backend", "attempts", "prompt_tokens", "completion_tokens"))


def _which(found: Counter[tuple[Any, ...]], what: str) -> Iterable[str]:
    names = ("status", "backend", "attempts", "prompt tokens", "completion tokens")
    alike: Counter[tuple[Any, ...]] = Counter()
    for (_, *said), count in found.items():
        alike[tuple(said)] += count
    for said, count in alike.items():
        yield f"{count} lines {what}: " + ", ".join(f"{k} {v}" for k, v in zip(names, said, strict=False))


def table(rows: Sequence[Row]) -> rich.table.Table:
    """The lines for a person."""
    made = _table("what happened")
    made.add_column("scene\nand what was sent", overflow="fold")
    made.add_column("answered\nby")
    for heading in ("\nstatus", "token\n1, ms", "total\nms", "tokens\nin, out", "\ntries", "as ex-\npected"):
        made.add_column(heading, justify="right")
    for number, one in enumerate(rows, start=1):
        # Text, not markup: a body in brackets would be read as a style.
        scene = rich.text.Text(f"{number}. {one.scene}\n").append(one.sent, "dim")
        tokens = "" if one.completion_tokens is None else f"{one.prompt_tokens}\n{one.completion_tokens}"
        made.add_row(
            scene,
            counts(one.answered_by, "\n"),
            counts(one.status, "\n"),
            _number(one.first_token_ms),
            _number(one.total_ms),
            tokens,
            counts(one.attempts, "\n"),
            rich.text.Text("yes", "green") if one.ok else rich.text.Text("NO", "bold red"),
        )
    return made


def audit_groups(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Audit lines that agree in model, backend, status and attempts, as one: counted, tokens summed, the median ms."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    keys = ("model", "backend", "status", "attempts")
    for line in lines:
        # An unknown model is nobody's in the catalogue, so the request's own word stands for it.
        known = {**line, "model": line.get("model") or line.get("requested_model")}
        groups.setdefault(tuple(known.get(key) for key in keys), []).append(line)
    return [
        dict(zip(keys, key, strict=True))
        | {
            "lines": len(group),
            "prompt_tokens": sum(line.get("prompt_tokens") or 0 for line in group),
            "completion_tokens": sum(line.get("completion_tokens") or 0 for line in group),
            "duration_ms": round(statistics.median(line["duration_ms"] for line in group)),
        }
        for key, group in groups.items()
    ]


def audit_table(lines: Sequence[Mapping[str, Any]]) -> rich.table.Table:
    """The audit lines for a person."""
    made = _table("the router's audit lines, equal ones together")
    headings: dict[str, str] = {
        "lines": "lines",
        "model": "model",
        "backend": "backend",
        "status": "status",
        "attempts": "tries",
        "prompt_tokens": "prompt tokens",
        "completion_tokens": "completion tokens",
        "duration_ms": "median ms",
    }
    for key, heading in headings.items():
        made.add_column(heading, justify="left" if key in ("model", "backend") else "right")
    for group in audit_groups(lines):
        made.add_row(*("-" if group[key] is None else str(group[key]) for key in headings))
    return made


def document(rows: Sequence[Row], lines: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The whole for a machine: `ok`, `facts`, `rows` and `audit`."""
    return {
        "ok": all(one.ok for one in rows),
        **facts,
        "rows": [dataclasses.asdict(one) | {"ok": one.ok} for one in rows],
        "audit": audit_groups(lines),
    }


def _table(title: str) -> rich.table.Table:
    return rich.table.Table(
        box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", show_edge=False, collapse_padding=True
    )


def _names(values: Iterable[str]) -> str:
    return " and ".join(sorted(values))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def short(text: str, length: int = 160) -> str:
    """The text on one line, cut to a length."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."

