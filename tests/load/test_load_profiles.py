"""Profiles: the ones that are here are sound, and one that is not is refused with path, reason and remedy."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from load_cases import SOUND

from inference_plane.load import marks, profiles
from inference_plane.loop.driver import LoopDriver

DEMANDED = ["cold-start", "from-zero", "losses", "monday-surge", "rollout", "smoke", "soak", "spiky", "spot-reclaim"]
DEMANDED += ["steady", "zone-loss"]
#: What the two planes of this machine act on.
MARKS = {*marks.PlaneDriver(None).marks, *LoopDriver(None).marks}  # type: ignore[arg-type]


def with_(path: str, value: Any) -> dict[str, Any]:
    """The sound profile with one value changed; a path such as curve.0.rate."""
    made = copy.deepcopy(SOUND)
    *parents, last = path.split(".")
    at: Any = made
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[int(last) if isinstance(at, list) else last] = value
    return made


def test_the_profiles_that_the_plane_is_judged_by_are_there() -> None:
    assert profiles.names() == DEMANDED


@pytest.mark.parametrize("name", DEMANDED)
def test_a_profile_is_sound_and_judges_what_it_runs(name: str) -> None:
    profile = profiles.load(name)
    assert profile.name == name and profile.seconds > 0 and len(profile.thresholds) > 1
    measured = {threshold.measure for threshold in profile.thresholds}
    assert {"lost", "failed", "late"} <= measured
    assert measured & {"ttft", "fallback"}
    # What it does to the fleet, somebody here can do.
    assert {event.mark for event in profile.events} <= MARKS


def test_monday_surges_eightfold_in_five_minutes() -> None:
    surge = next(phase for phase in profiles.load("monday-surge").curve if phase.name == "surge")
    assert (surge.seconds, surge.to / surge.rate) == (300, pytest.approx(8))


def test_the_schema_is_one_and_closed() -> None:
    schema = profiles.schema()
    jsonschema.Draft202012Validator.check_schema(schema)

    def objects(node: Any) -> Any:
        if isinstance(node, dict):
            if node.get("type") == "object":
                yield node
            for value in node.values():
                yield from objects(value)
        elif isinstance(node, list):
            for value in node:
                yield from objects(value)

    assert all("additionalProperties" in node for node in objects(schema))


@pytest.mark.parametrize(
    ("path", "value", "finding"),
    [
        (
            "curves",
            [],
            "the profile: Additional properties are not allowed ('curves' was unexpected). Set one of: curve,",
        ),
        ("curve.0.for", "10", "curve[0].for: '10' is not of the form: Such as 500ms, 2s, 5m or 1h."),
        ("curve.0.rate", -1, "curve[0].rate: -1 is less than the minimum of 0"),
        ("users", 0, "users: 0 is less than the minimum of 1"),
        (
            "requests.Chat",
            {"model": "m", "prompt": 1, "output": 1},
            "requests: 'Chat' does not match any of the regexes",
        ),
        (
            "requests.chat.prompt",
            "long",
            "requests.chat.prompt: 'long' is not what is expected here: tokens of each request",
        ),
        (
            "requests.chat.prompt",
            {"median": 5, "p95": 9},
            "(requests.chat.prompt: 'most' is a required property)",
        ),
        (
            "requests.chat.prompt",
            {"median": 50, "p95": 9, "most": 100},
            "requests.chat.prompt: p95 9 is below the median 50. Set p95 to the median or more",
        ),
        (
            "requests.chat.prompt",
            {"median": 50, "p95": 90, "most": 40},
            "requests.chat.prompt: the median 50 is not between least and most. Set least or most around it",
        ),
        ("requests.chat.residency", {"moon": 1}, "Set one of: anywhere, cluster, geography, own, region"),
        (
            "events",
            [{"at": "31s", "mark": "rollout"}],
            "events[0].at: 31s is not within the curve, which lasts 30 s. Nothing would be measured after it. Set an "
            "earlier time, or a longer curve",
        ),
        (
            "thresholds",
            [{"measure": "ttft", "atMost": "1s"}],
            "thresholds[0].percentile: ttft is a time and is judged at one. Set percentile, such as 95",
        ),
        (
            "thresholds",
            [{"measure": "failed", "percentile": 95, "atMost": 0}],
            "thresholds[0].percentile: failed is no time and has none. Leave it out",
        ),
        (
            "thresholds",
            [{"measure": "ttft", "percentile": 95, "atMost": 1}],
            "thresholds[0].atMost: 1 is not in the measure's unit. Set a duration, such as 2s",
        ),
        (
            "thresholds",
            [{"measure": "failed", "atMost": 5}],
            "thresholds[0].atMost: 5 is above 1, and failed is a share of all. Set at most 1",
        ),
        (
            "thresholds",
            [{"measure": "failed"}],
            "thresholds[0]: has not exactly one bound. It could not fail, or twice. Set atMost or atLeast",
        ),
        (
            "thresholds",
            [{"measure": "failed", "atMost": 0, "where": {"phase": ["down"]}}],
            "thresholds[0].where.phase: the profile has no down. It would never be judged. Set some of flat, up",
        ),
        (
            "curve",
            [{"phase": "off", "for": "9s", "rate": 0}],
            "curve: has no rate above 0. Nothing would be sent. Set `rate`",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_path(path: str, value: Any, finding: str) -> None:
    with pytest.raises(profiles.ProfileError) as refused:
        profiles.parse(with_(path, value), "test", "test.yaml")
    assert finding in str(refused.value) and str(refused.value).startswith("test.yaml: ")


def test_all_findings_come_together() -> None:
    wrong = with_("users", 0) | {"seed": -1}
    with pytest.raises(profiles.ProfileError) as refused:
        profiles.parse(wrong, "test", "test.yaml")
    assert len(str(refused.value).splitlines()) == 2


def test_a_generator_that_is_late_fails_a_profile_that_does_not_speak_of_it() -> None:
    (only,) = profiles.parse(SOUND, "test", "test.yaml").thresholds
    assert (only.measure, only.at_most) == ("late", 0.01)
    own = [{"measure": "late", "atMost": 0.5}]
    (only,) = profiles.parse(SOUND | {"thresholds": own}, "test", "test.yaml").thresholds
    assert only.at_most == 0.5


def test_scales_change_the_curve_and_the_events_alone() -> None:
    profile = profiles.parse(SOUND | {"events": [{"at": "10s", "mark": "rollout"}]}, "test", "test.yaml")
    scaled = profile.scaled(time=10, rate=3)
    assert [(phase.seconds, phase.rate, phase.to) for phase in scaled.curve] == [(1, 6, 6), (2, 6, 18)]
    assert scaled.events[0].at == 1 and scaled.slo == profile.slo and scaled.kinds == profile.kinds


def test_a_profile_is_found_by_name_or_path(tmp_path: Any) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(SOUND))
    assert profiles.load(str(file)).name == "own" and profiles.load("smoke").name == "smoke"
    file.write_text("a: [")
    with pytest.raises(profiles.ProfileError, match="not YAML"):
        profiles.load(str(file))
    with pytest.raises(profiles.ProfileError, match="no profile 'nope'. Profiles .*: cold-start, from-zero"):
        profiles.load("nope")


@pytest.mark.parametrize(("text", "value"), [("500ms", 0.5), ("2s", 2), ("1.5m", 90), ("1h", 3600)])
def test_durations(text: str, value: float) -> None:
    assert profiles.seconds(text) == value
