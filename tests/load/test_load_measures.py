"""From samples to figures and verdicts: exact, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from load_cases import SOUND

from inference_plane.checkout import ROOT
from inference_plane.load import answers, measures, profiles, report, router, thresholds
from inference_plane.load.drive import Acted, Outcome
from inference_plane.load.samples import ANSWERED, CANCELLED, FAILED, UNSENT, Generator, Sample

PROFILE = profiles.parse(SOUND | {"slo": {"ttft": "1s", "tpot": "100ms"}}, "test", "test.yaml")


def sample(number: int = 0, **more: Any) -> Sample:
    """An answered stream of 11 tokens, first after 0.5 s, one each 0.05 s."""
    given = {
        "phase": "flat",
        "request": "chat",
        "model": "m",
        "tenant": "care",
        "residency": "",
        "restricted": False,
        "stream": True,
        "turn": 1,
        "due": float(number),
        "sent": float(number),
        "first": 0.5,
        "total": 1.0,
        "outcome": ANSWERED,
        "status": 200,
        "prompt_tokens": 100,
        "completion_tokens": 11,
        "gaps": [0.05] * 10,
        "backend": "fleet",
        "request_id": f"id-{number}",
    }
    return Sample(number=number, **{**given, **more})


def end(number: int, **more: Any) -> dict[str, Any]:
    """The router's line of that sample."""
    path = "/v1/chat/completions"
    line = {"request_id": f"id-{number}", "path": path, "status": 200, "backend": "fleet", "prompt_tokens": 100}
    return {**line, "completion_tokens": 11, "first_byte_ms": 499, "duration_ms": 998, **more}


@pytest.mark.parametrize(
    ("percent", "value"), [(1, 1), (10, 1), (10.1, 2), (50, 5), (90, 9), (95, 10), (99, 10), (100, 10)]
)
def test_percentiles_are_samples(percent: float, value: float) -> None:
    assert measures.percentile([10, 1, 9, 2, 8, 3, 7, 4, 6, 5], percent) == value


def test_a_percentile_of_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="no values"):
        measures.percentile([], 50)
    assert measures.summary([], {}, 1)["ttft"] is None


def test_percentiles_are_exact_where_buckets_are_not() -> None:
    """Locust keeps two digits above 100 ms, and whole milliseconds below."""
    found = measures.summary([sample(n, first=0.123456 + n * 1e-6) for n in range(100)], {}, 1)["ttft"]
    assert (found["p50"], found["p99"], found["count"]) == (0.123456 + 49e-6, 0.123456 + 98e-6, 100)


def test_times_are_vllms() -> None:
    one = sample()
    assert one.tpot == pytest.approx((1.0 - 0.5) / 10)
    assert sample(completion_tokens=1).tpot is None and sample(first=None).tpot is None
    found = measures.summary([one, sample(1, outcome=FAILED, first=9.0)], {}, 1)
    assert found["ttft"]["count"] == found["e2e"]["count"] == 1 and found["itl"]["count"] == 10


def test_every_request_is_one_outcome() -> None:
    outcomes = [ANSWERED, ANSWERED, FAILED, CANCELLED, UNSENT]
    found = measures.summary([sample(n, outcome=outcome) for n, outcome in enumerate(outcomes)], {}, 1)
    assert sum(found["outcomes"].values()) == found["requests"] == 5
    assert (found["failed"], found["unsent"]) == (1 / 4, 1 / 5)


def test_goodput_is_of_all_that_wanted_an_answer() -> None:
    found = [
        sample(0),
        sample(1, first=1.1),  # too late
        sample(2, total=2.0),  # too slow after that
        sample(3, first=None, stream=False, total=9.0),  # not streamed: neither can be missed
        sample(4, outcome=FAILED, error="http 503"),
        sample(5, outcome=CANCELLED),
    ]
    assert [measures.good(each, PROFILE.slo) for each in found] == [True, False, False, True, False, False]
    assert measures.shares(found, PROFILE.slo)["goodput"] == 2 / 5


def test_shares() -> None:
    found = [
        sample(0, backend="bedrock"),
        sample(1, sent=1.2),
        sample(2, outcome=FAILED, error="cut stream", refusals=2, silent=1, waits=[1.0]),
        sample(3, backend="bedrock", restricted=True, refusals=2, waits=[1.0, 2.0]),
    ]
    shares = measures.shares(found, {})
    assert (shares["fallback"], shares["late"], shares["withoutRetryAfter"]) == (2 / 3, 1 / 4, 1 / 4)
    assert (shares["lost"], shares["left"], shares["retriable"]) == (1, 1, 0)
    whole = measures.summary(found, {}, 1)
    assert (whole["retried"], whole["retried_and_answered"], whole["retry_after_waited_seconds"]) == (2, 1, 4.0)


def test_what_failed_before_its_answer_had_begun_could_have_been_tried_again() -> None:
    errors = ("http 503", "connection: ConnectionRefusedError", "cut stream", "timeout")
    found = measures.shares([sample(outcome=FAILED, error=error) for error in errors], {})
    assert (found["failed"], found["retriable"]) == (1.0, 3)


def test_a_target_that_does_not_say_who_answers_tells_nothing_of_what_left() -> None:
    found = measures.shares([sample(backend="", restricted=True)], {})
    assert (found["fallback"], found["left"]) == (None, None)
    assert measures.shares([sample(outcome=FAILED, backend="")], {})["left"] == 0, "nobody was answered"


def test_a_phases_rates_are_of_its_own_seconds() -> None:
    found = measures.document([sample(number, phase=phase.name) for number, phase in enumerate(PROFILE.curve)], PROFILE)
    for phase in PROFILE.curve:
        part = found["by_phase"][phase.name]
        assert part["requests_per_second"] == part["requests"] / phase.seconds


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        ("http 503", False),
        ("cut stream", True),
        ("connection: TimeoutError", True),
        ("timeout", True),
        ("error 500 in the stream", True),
    ],
)
def test_lost_is_what_has_no_status_or_no_end(error: str, lost: bool) -> None:
    assert measures.lost(sample(outcome=FAILED, error=error)) is lost


def test_throughput_is_of_the_whole_run() -> None:
    found = [sample(0), sample(9, total=1.0), sample(5, outcome=CANCELLED, completion_tokens=4)]
    whole = measures.document(found, PROFILE)["all"]
    assert measures.length(found) == 10
    assert (whole["requests_per_second"], whole["completion_tokens_per_second"]) == (0.2, 2.6)


def test_groups_add_up() -> None:
    found = [sample(n, model="mn"[n % 2], tenant=["care", ""][n % 2], phase=["flat", "up"][n % 2]) for n in range(10)]
    document = measures.document(found, PROFILE)
    for group in measures.GROUPS:
        assert sum(part["requests"] for part in document[f"by_{group}"].values()) == 10
    assert set(document["by_tenant"]) == {"care", "-"}


def test_the_timeline_counts_everything_once() -> None:
    found = [sample(n, due=n * 0.7, sent=n * 0.7, total=0.1 + (n % 5) * 0.9) for n in range(40)]
    windows = measures.timeline(found, PROFILE, 2.0)
    assert sum(window.sent for window in windows) * 2 == pytest.approx(40)
    assert sum(window.answered for window in windows) * 2 == pytest.approx(40)
    assert windows[0].offered == 2 and windows[0].ttft == {"p50": 0.5, "p95": 0.5, "p99": 0.5}
    assert windows[-1].under_way == 0


def judged(*demands: dict[str, Any], samples: list[Sample]) -> list[str]:
    profile = profiles.parse(SOUND | {"thresholds": list(demands)}, "test", "test.yaml")
    return [f"{'kept' if verdict.kept else 'not kept'}: {verdict}" for verdict in thresholds.judge(profile, samples)]


def test_verdicts_name_what_was_demanded_and_what_was_found() -> None:
    found = [
        sample(n, first=n / 10, phase="up" if n > 5 else "flat", backend="bedrock" if n == 9 else "fleet")
        for n in range(10)
    ]
    assert judged(
        {"measure": "ttft", "percentile": 50, "atMost": "400ms"},
        {"measure": "ttft", "percentile": 95, "atMost": "500ms"},
        {"measure": "ttft", "percentile": 100, "atMost": "500ms", "where": {"phase": ["flat"]}},
        {"measure": "fallback", "atLeast": 0.5, "where": {"backend": ["fleet", "bedrock"], "phase": ["up"]}},
        {"measure": "lost", "atMost": 0},
        samples=found,
    ) == [
        "kept: ttft p50 at most 0.4 s: 0.4",
        "not kept: ttft p95 at most 0.5 s: 0.9",
        "kept: ttft p100 at most 0.5 s where phase is flat: 0.5",
        "not kept: fallback at least 0.5 where backend is fleet or bedrock and phase is up: 0.25",
        "kept: lost at most 0: 0",
        "kept: late at most 0.01: 0",
    ]


def test_what_was_not_measured_is_not_kept() -> None:
    verdicts = judged(
        {"measure": "ttft", "percentile": 95, "atMost": "1h"}, {"measure": "failed", "atMost": 1}, samples=[]
    )
    assert verdicts[:2] == [
        "not kept: ttft p95 at most 3600 s: nothing was measured",
        "not kept: failed at most 1: nothing was measured",
    ]


def test_the_router_says_the_same() -> None:
    found = router.compare([sample(0), sample(1)], [end(0), end(1), end(2, path="/v1/models")])
    assert (found["compared"], found["differences"], found["lines_without_a_request"]) == (2, {}, 0)
    assert found["client_minus_router_ms"]["ttft"] == {"median": pytest.approx(1), "max": pytest.approx(1)}
    assert found["client_minus_router_ms"]["e2e"]["median"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("seen", "said", "difference"),
    [
        ({}, None, "requests without a line of the router"),
        ({"request_id": "", "outcome": FAILED}, None, "requests without an id of the router"),
        ({}, {"status": 503}, "another status"),
        ({}, {"backend": "bedrock"}, "another backend"),
        ({}, {"completion_tokens": 10}, "other completion tokens"),
        ({}, {"prompt_tokens": 1}, "other prompt tokens"),
    ],
)
def test_each_difference_to_the_router_is_named(
    seen: dict[str, Any], said: dict[str, Any] | None, difference: str
) -> None:
    lines = [] if said is None else [end(0, **said)]
    assert router.compare([sample(0, **seen)], lines)["differences"] == {difference: 1}


def test_a_client_that_left_before_the_headers_is_no_difference() -> None:
    assert router.compare([sample(0, request_id="", outcome=CANCELLED)], [])["differences"] == {}


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_captured_stream_is_read_as_vllm_means_it() -> None:
    """Its role alone is no token; a token may have no text; what was counted is the last usage."""
    one = sample(first=None, gaps=[], prompt_tokens=None, completion_tokens=None)
    stream = answers.Stream(one)
    lines = (ROOT / "tests" / "data" / "vllm-0.32" / "chat.sse").read_bytes().splitlines(keepends=True)
    stream.line(b": keep-alive\n", 0.01)
    for number, line in enumerate(lines):
        stream.line(line, 1.0 + number)
    stream.end()
    # Line 0 is the role; lines 2, 4, ... 16 are the tokens.
    assert (one.first, one.gaps, one.prompt_tokens, one.completion_tokens) == (3.0, [2.0] * 7, 16, 8)


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ([b'data: {"error": {"message": "x", "code": 503}}'], "error 503 in the stream"),
        ([b'data: {"choices": [{"delta": {"content": "a"}}]}'], "cut stream"),
        ([b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}', b"data: [DONE]"], "no token"),
    ],
)
def test_a_stream_that_is_no_answer(lines: list[bytes], kind: str) -> None:
    stream = answers.Stream(sample(first=None, completion_tokens=None))
    with pytest.raises(answers.Refused, match=kind):
        for line in lines:
            stream.line(line, 1.0)
        stream.end()


def test_an_answer_in_one_piece() -> None:
    one = sample(completion_tokens=None)
    assert answers.whole(one, (ROOT / "tests" / "data" / "vllm-0.32" / "chat.json").read_bytes())
    assert one.completion_tokens == 8
    with pytest.raises(answers.Refused, match="not an answer"):
        answers.whole(one, b"<html>")


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3), (" 10 ", 10), (None, None), ("Fri, 27 Nov 2026 10:00:00 GMT", None)]
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert answers.retry_after(value) == seconds


# --- reports ---------------------------------------------------------------------------------------------------------


def outcome(samples: list[Sample]) -> Outcome:
    generator = Generator(users=5, busy=3, lags=[0.001, 0.002], cpu=1.0, stats={})
    return Outcome(samples, generator, [Acted("rollout", 1.0, 1.1, 3.0)], 1.8e9)


def test_samples_survive_their_file() -> None:
    one = sample(3, gaps=[0.01, 0.02], waits=[1.0])
    assert Sample.read(one.line()) == one


def test_the_report_as_files(tmp_path: Path) -> None:
    samples = [sample(n, tenant="<b>") for n in range(5)] + [
        sample(5, outcome=FAILED, error="http 503"),
        sample(6, outcome=UNSENT, sent=None, first=None, total=None),
    ]
    verdicts = thresholds.judge(PROFILE, samples)
    made = report.document(PROFILE, "http://<target>", outcome(samples), verdicts, None)
    for kind in ("json", "csv", "html", "png"):
        getattr(report, f"write_{kind}")(tmp_path / kind, made, samples, PROFILE)
    assert json.loads((tmp_path / "json").read_text())["measures"]["all"]["ttft"]["p50"] == 0.5
    rows = (tmp_path / "csv").read_text().splitlines()
    assert len(rows) == 8 and rows[0].startswith("number,phase,request,model,tenant,")
    page = (tmp_path / "html").read_text()
    assert page.count("<svg") == 2 and "http://&lt;target&gt;" in page and "<target>" not in page
    # Nothing is fetched from anywhere: no script, no style, no picture of another place.
    assert not [each for each in ("<script", "<link", "src=", "@import") if each in page]
    assert (tmp_path / "png").read_bytes().startswith(b"\x89PNG")


def test_an_event_is_told_with_what_became_of_its_phase() -> None:
    """Its phase is that of its moment; a cut stream is a lost request, a 503 is not."""
    phase = PROFILE.curve[0].name
    samples = [sample(n, phase=phase) for n in range(3)] + [
        sample(3, phase=phase, outcome=FAILED, error="cut stream"),
        sample(4, phase=phase, outcome=FAILED, error="http 503"),
    ]
    made = report.document(PROFILE, "demo", outcome(samples), thresholds.judge(PROFILE, samples), None)
    assert made["events"][0]["phase"] == phase
    assert (
        f"rollout at 1 s: over after 2 s; of 5 requests in its phase {phase} 2 failed, 1 of them lost, 1 cut streams; "
        "0.0% from Bedrock" in report.text(made)
    )


def test_an_open_loop_that_was_not_kept_is_said() -> None:
    samples = [sample(0, sent=5.0), sample(1, outcome=UNSENT, sent=None, first=None, total=None)]
    made = report.document(PROFILE, "demo", outcome(samples), thresholds.judge(PROFILE, samples), None)
    assert (
        "OPEN LOOP NOT KEPT: 1 requests went out more than 0.1 s late, by up to 5.0 s, and 1 not at all."
        in report.text(made)
    )
    made = report.document(PROFILE, "demo", outcome([sample(0)]), [], None)
    assert "OPEN LOOP" not in report.text(made)
