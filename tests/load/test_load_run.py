"""Whole runs by locust: against engines of this process, and against the plane on this machine.

What is asserted holds on any machine, however busy: counts, who answered, exit codes and their lines; of times only
that nothing is measured before it happened.
"""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from load_cases import SOUND

from inference_plane.bench import generator
from inference_plane.checkout import CHARTS
from inference_plane.cluster.certificates import Authority
from inference_plane.commands import load as command
from inference_plane.load import plan, targets, thresholds
from inference_plane.onehost.bedrock import Call
from inference_plane.onehost.replay import ReplayEngine
from inference_plane.onehost.timed import Speed, TimedEngine

#: Hang guard of requests that are to be answered.
TIMEOUT = "120s"
CAPTURED = Path(__file__).parents[1] / "data" / "vllm-0.32"
MIDDLEWARE = CHARTS / "vllm" / "files" / "plane_middleware.py"
QUICK = Speed(step_seconds=0.01, sequence_seconds=0, prefill_tokens_per_second=1e6)
#: No test is about being late, unless it is: a busy machine may be.
CALM = {"measure": "late", "atMost": 1}


@pytest.fixture
def engine() -> Iterator[TimedEngine]:
    """With the plane's middleware, so that a full one answers 429 with Retry-After."""
    with TimedEngine(
        served_model_name="m", speed=QUICK, max_num_seqs=4, middleware=MIDDLEWARE, report=lambda line: None
    ) as running:
        yield running


class Ran:
    """One run of the command: its exit code, and what it wrote."""

    def __init__(self, folder: Path, profile: dict[str, Any], *arguments: str) -> None:
        file = folder / "profile.yaml"
        file.write_text(yaml.safe_dump(profile))
        files = [f"--{kind}={folder / kind}" for kind in ("json", "csv")]
        self.code = command.main([str(file), *files, "--keep-logs", str(folder / "logs"), *arguments])
        self.document: dict[str, Any] = {}
        if self.code != 2:
            self.document = json.loads((folder / "json").read_text())
            self.all = self.document["measures"]["all"]
            with open(folder / "csv", newline="") as rows:
                self.rows = list(csv.DictReader(rows))
        self.folder = folder

    def outcomes(self) -> tuple[int, int, int, int]:
        """answered, failed, cancelled, unsent; together they are what was planned."""
        found = self.all["outcomes"]
        assert sum(found.values()) == self.all["requests"] == len(self.rows)
        return found["answered"], found["failed"], found["cancelled"], found["unsent"]


def profile(*, rate: float = 10, seconds: int = 2, thresholds: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    request = {"model": "m", "prompt": 20, "output": 8, **more.pop("request", {})}
    return {
        **SOUND,
        "users": 60,
        "pacing": "even",
        "timeout": TIMEOUT,
        "curve": [{"phase": "steady", "for": f"{seconds}s", "rate": rate}],
        "requests": {"chat": request},
        "thresholds": [CALM, *(thresholds or [])],
        **more,
    }


def test_every_request_is_answered_and_counted(engine: TimedEngine, tmp_path: Path) -> None:
    ran = Ran(tmp_path, profile(request={"stream": 0.5}), f"--target={engine.url}")
    assert (ran.code, ran.outcomes()) == (0, (19, 0, 0, 0))
    assert engine.surface.counters.finished["length"] == 19
    assert (ran.all["prompt_tokens"], ran.all["completion_tokens"]) == (19 * 20, 19 * 8)
    streams = [row for row in ran.rows if row["stream"] == "True"]
    assert 0 < len(streams) < 19 and all(int(row["gaps"]) == 7 for row in streams)
    # Eight steps of 10 ms: no client can have seen that sooner, and the first token not before the first step's end.
    assert all(float(row["total"]) >= 0.08 for row in ran.rows)
    assert all(0.01 <= float(row["first"]) <= float(row["total"]) for row in streams)
    assert all(not row["first"] for row in ran.rows if row["stream"] == "False")
    assert all(float(row["sent"]) >= float(row["due"]) for row in ran.rows)  # nothing goes out early
    # Locust has counted the same.
    stats = ran.document["generator"]["locust"]
    assert (stats["e2e"]["count"], stats["ttft"]["count"]) == (19, len(streams))


def test_a_threshold_that_is_not_kept_is_the_exit_code_and_a_line(
    engine: TimedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demands = [
        {"measure": "ttft", "percentile": 95, "atMost": "1ms"},
        {"measure": "failed", "atMost": 0},
        {"measure": "goodput", "atLeast": 0.5},
    ]
    ran = Ran(tmp_path, profile(thresholds=demands, slo={"ttft": "1ms"}), f"--target={engine.url}")
    assert ran.code == 1
    lines = capsys.readouterr().err.splitlines()
    broken = [line for line in lines if line.startswith("not kept: ")]
    assert len(broken) == 2 and broken[0].startswith("not kept: ttft p95 at most 0.001 s: 0.")
    assert broken[1] == "not kept: goodput at least 0.5: 0"
    assert [each["kept"] for each in ran.document["thresholds"]] == [True, False, True, False]


def test_clients_that_leave_are_counted_and_free_the_engine(engine: TimedEngine, tmp_path: Path) -> None:
    leaving = {"output": 10_000, "cancel": {"share": 1, "after": "300ms"}}
    ran = Ran(tmp_path, profile(rate=5, request=leaving), f"--target={engine.url}")
    assert (ran.code, ran.outcomes()) == (0, (0, 0, 9, 0))
    assert engine.surface.counters.finished["abort"] == 9 and engine.surface.queue.running == 0
    assert ran.all["failed"] is None and ran.all["e2e"] is None  # neither failures nor answers


def test_an_open_loop_that_users_cannot_keep_is_said(
    engine: TimedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One user, ten requests a second, and each takes longer than their distance."""
    demand = {"measure": "late", "atMost": 0.01}
    slow = profile(request={"output": 40}, thresholds=[], users=1) | {"thresholds": [demand]}
    ran = Ran(tmp_path, slow, f"--target={engine.url}")
    said = capsys.readouterr()
    assert ran.code == 1 and ran.outcomes() == (19, 0, 0, 0)
    assert "OPEN LOOP NOT KEPT: " in said.out and "Set --users higher" in said.out
    assert "not kept: late at most 0.01: " in said.err
    assert ran.document["generator"]["most_under_way"] == 1
    # The wait for a place is in no answer's time, which is why it must be said.
    sent = sorted(float(row["sent"]) for row in ran.rows)
    assert sent[-1] >= 18 * 0.4


def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    """One place, and everybody comes at once: the others are refused, and come again when they are told to."""
    with TimedEngine(
        served_model_name="m",
        speed=QUICK,
        max_num_seqs=1,
        max_num_queued_reqs=1,
        middleware=MIDDLEWARE,
        report=lambda line: None,
    ) as engine:
        crowd = profile(rate=8, seconds=1, request={"output": 30}, retry={"times": 10, "atMost": "5s"})
        crowd["thresholds"].append({"measure": "withoutRetryAfter", "atMost": 0})
        ran = Ran(tmp_path, crowd, f"--target={engine.url}")
        again = [row for row in ran.rows if int(row["refusals"])]
        assert ran.code == 0 and sum(ran.outcomes()) == 7 and again
        assert ran.all["refusals"] == engine.surface.counters.rejections
        for row in again:  # a second for each refusal, which is in its times
            if row["outcome"] == "answered":
                assert float(row["waited"]) == int(row["refusals"]) <= float(row["first"])
        silent = profile(rate=8, seconds=1, request={"output": 30})
        refused = Ran(tmp_path, silent, f"--target={engine.url}")
        assert refused.all["errors"] == {"http 429": refused.all["outcomes"]["failed"]} and refused.all["retried"] == 0


def test_cut_streams_are_lost(engine: TimedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.behaviour.update({"fault": "cut"})
    ran = Ran(tmp_path, profile(thresholds=[{"measure": "lost", "atMost": 0}]), f"--target={engine.url}")
    assert ran.code == 1 and ran.all["errors"] == {"cut stream": 19} and ran.all["lost"] == 19
    assert "not kept: lost at most 0: 19" in capsys.readouterr().err


def test_conversations_carry_what_was_said(engine: TimedEngine, tmp_path: Path) -> None:
    turns = {"turns": {"most": 3, "think": "200ms"}, "prompt": 32}
    ran = Ran(tmp_path, profile(seconds=3, request=turns), f"--target={engine.url}")
    assert ran.code == 0
    by_turn = {turn: [int(row["prompt_tokens"]) for row in ran.rows if row["turn"] == turn] for turn in "123"}
    assert {turn: set(found) for turn, found in by_turn.items()} == {
        "1": {32},
        "2": {32 + 8 + 32},  # the question before, its answer, the next one
        "3": {32 + 8 + 32 + 8 + 32},
    }
    assert ran.all["cached_tokens"] >= 32 * len(by_turn["2"] + by_turn["3"])


def test_a_driver_acts_on_the_events(engine: TimedEngine, tmp_path: Path) -> None:
    log, driver = tmp_path / "acted", tmp_path / "driver"
    driver.write_text(f'#!/bin/sh\nif [ "$1" = marks ]; then echo rollout; else echo "$@" >> {log}; fi\n')
    driver.chmod(driver.stat().st_mode | stat.S_IXUSR)
    marked = profile(events=[{"at": "500ms", "mark": "rollout"}])
    ran = Ran(tmp_path, marked, f"--target={engine.url}", f"--driver={driver}")
    assert ran.code == 0 and log.read_text() == "act rollout\n"
    (event,) = ran.document["events"]
    assert event["mark"] == "rollout" and 0.5 <= event["began"] <= event["ended"]


def test_a_mark_that_came_too_late_to_be_acted_on_fails_the_run(
    engine: TimedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = tmp_path / "driver"
    driver.write_text('#!/bin/sh\nif [ "$1" = marks ]; then echo rollout; else sleep 8; fi\n')
    driver.chmod(driver.stat().st_mode | stat.S_IXUSR)
    marked = profile(events=[{"at": "500ms", "mark": "rollout"}, {"at": "1s", "mark": "rollout"}])
    ran = Ran(tmp_path, marked, f"--target={engine.url}", f"--driver={driver}")
    assert ran.code == 2
    assert "not acted on before the last answer: rollout at 1 s" in capsys.readouterr().err
    assert not (tmp_path / "logs" / "load" / "run.json").exists(), "it has the callers' tokens"


@pytest.mark.parametrize(
    ("marks", "arguments", "refusal"),
    [
        (
            "rollout",
            [],
            "nothing acts on its events rollout at {url}. They would be lines in a plot, and their thresholds",
        ),
        ("moon", ["--driver={driver}"], "Set --driver to a command that knows them; this one knows rollout"),
        ("rollout", ["--driver=/nowhere"], "--driver: /nowhere marks cannot be run: No such file or directory."),
        (
            "rollout",
            ["--driver=false"],
            "--driver: false marks ended with 1: . A driver prints what it knows for `marks`",
        ),
    ],
)
def test_events_that_nobody_acts_on_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], marks: str, arguments: list[str], refusal: str
) -> None:
    driver, url = tmp_path / "driver", "http://127.0.0.1:9"
    driver.write_text("#!/bin/sh\necho rollout\n")
    driver.chmod(driver.stat().st_mode | stat.S_IXUSR)
    marked = profile(events=[{"at": "500ms", "mark": marks}])
    ran = Ran(tmp_path, marked, f"--target={url}", *(each.format(driver=driver) for each in arguments))
    assert ran.code == 2 and refusal.format(url=url) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (["--target=http://127.0.0.1:9"], "error: http://127.0.0.1:9: does not answer (["),
        (
            ["--target={url}", "--model=m=other"],
            "has no model other, only m. Every request for it would be a 404. Set --model other=NAME",
        ),
        (
            ["--target={url}", "--model=m"],
            "--model m: is no NAME=NAME. Set the profile's name first, then the target's",
        ),
        (["--target={url}", "--token-file=/nowhere"], "error: --token-file /nowhere: cannot be read"),
        (["--ca-file=ca.crt"], "error: --target demo: has tokens of its own and no certificate, so --token-file and"),
        (["--target=router"], "error: --target router: is neither demo nor elastic nor a URL"),
    ],
)
def test_a_target_that_cannot_be_used_is_refused(
    engine: TimedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], refusal: str
) -> None:
    ran = Ran(tmp_path, profile(), *(each.format(url=engine.url) for each in arguments))
    assert ran.code == 2 and refusal in capsys.readouterr().err


def test_a_target_is_asked_for_its_models_by_who_vouches_for_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    crt, key = authority.issue("engine", "engine", hosts=["127.0.0.1"])
    with ReplayEngine(CAPTURED, served_model_name="m", certfile=str(crt), keyfile=str(key)) as engine:
        assert targets.check(engine.url, ["m"], None, str(authority.certificate)) is None
        with pytest.raises(targets.TargetError, match="does not answer .*certificate verify failed"):
            targets.check(engine.url, ["m"], None)


@pytest.mark.parametrize("users", ["0", "-1", "few"])
def test_users_are_one_or_more(capsys: pytest.CaptureFixture[str], users: str) -> None:
    with pytest.raises(SystemExit):
        command.main(["smoke", "--users", users])
    assert "--users" in capsys.readouterr().err


def test_models_can_have_other_names_at_the_target(engine: TimedEngine, tmp_path: Path) -> None:
    named = profile(request={"model": "assistant"}, seconds=1)
    ran = Ran(tmp_path, named, f"--target={engine.url}", "--model=assistant=m")
    assert ran.code == 0 and set(ran.document["measures"]["by_model"]) == {"assistant"}


def test_the_dry_run_needs_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["monday-surge", "--dry-run", "--target=http://127.0.0.1:9", "--time-scale=10"]) == 0
    shown = capsys.readouterr().out
    assert "requests in 240 s (948.0 expected, poisson, seed 3)" in shown


def test_a_mark_takes_the_place_of_the_profiles_one_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["rollout", "--mark=router-rollout", "--dry-run"]) == 0
    assert "router-rollout" in capsys.readouterr().out
    assert command.main(["steady", "--mark=router-rollout", "--dry-run"]) == 2
    assert capsys.readouterr().err == (
        "error: --mark router-rollout: steady has 0 events. One mark stands in place of one other. Set a profile with "
        "one event, such as rollout\n"
    )
    assert command.main(["rollout", "--mark=router-rollout"]) == 2
    assert "nothing acts on its events router-rollout at demo" in capsys.readouterr().err


def test_the_generators_times_are_the_servers() -> None:
    """Against known delays: nothing is measured before the server wrote it, and every token is in its place."""
    rows, facts = generator.measure(seconds=2, rate=10, progress=lambda line: None)
    by = {row.measure: row for row in rows}
    assert by["ttft"].samples == by["e2e"].samples == facts["requests"] > 5
    assert by["itl"].samples == facts["requests"] * (generator.TOKENS - 1)
    assert by["ttft"].error_p50 > 0 and by["e2e"].error_p50 > 0
    assert by["ttft"].known_p50 >= facts["asked_p50_ms"] - 1


def test_a_restricted_prompt_is_found_by_its_content_and_fails_any_profile() -> None:
    seen = targets.Restricted()
    for text in (b"an open prompt", plan.RESTRICTED.encode(), b"another"):
        seen.append(Call({}, text))
    verdict = thresholds.nothing_left(seen.count)
    assert (seen.count, verdict.kept) == (1, False)
    assert str(verdict) == "restricted prompts at Amazon Bedrock's stand-in at most 0: 1"


def test_smoke_through_the_plane_on_this_machine(tmp_path: Path) -> None:
    files = [f"--{kind}={tmp_path / kind}" for kind in ("json", "csv", "html")]
    assert command.main(["smoke", "--time-scale=2", "--keep-logs", str(tmp_path / "logs"), *files]) in (0, 1)
    document = json.loads((tmp_path / "json").read_text())
    kept = {each["threshold"]: each["kept"] for each in document["thresholds"]}
    # Whatever the machine: no request failed, none was lost, no restricted prompt left, and the router says the same.
    assert kept["failed at most 0"] and kept["lost at most 0"] and kept["left at most 0"]
    whole = document["measures"]["all"]
    assert sum(whole["outcomes"].values()) == whole["requests"] == 22
    assert whole["ttft"]["p50"] <= whole["ttft"]["p95"] <= whole["ttft"]["p99"]
    assert set(document["measures"]["by_model"]) == {"assistant", "records"}
    assert document["router"]["compared"] >= 20 and document["router"]["differences"] == {}
    assert kept["restricted prompts at Amazon Bedrock's stand-in at most 0"]
    assert "<svg" in (tmp_path / "html").read_text()
