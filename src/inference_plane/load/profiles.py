"""Load profiles: YAML files that say who sends what, how often and when, and what has to come of it.

The form is in profile.schema.yaml, the words are explained in docs/load.md. What a schema cannot say is checked here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from inference_plane.checkout import ROOT

FOLDER = ROOT / "tests" / "load" / "profiles"
SCHEMA = Path(__file__).with_name("profile.schema.yaml")

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")

#: Measures in seconds; they are judged at a percentile. The others are shares of requests, or counts.
TIMES = ("ttft", "tpot", "itl", "e2e")
SHARES = ("failed", "goodput", "fallback", "late", "unsent", "withoutRetryAfter")

#: Where a profile does not say otherwise: a generator that cannot keep its own times measures something else.
KEPT = {"measure": "late", "atMost": 0.01}


class ProfileError(Exception):
    """A profile cannot be used; the message has every finding, each with path, reason and what to set."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Lognormal, with that median and 95th percentile, then cut off below `least` and above `most` (None: no end)."""

    median: float
    p95: float
    least: float
    most: float | None

    @property
    def sigma(self) -> float:
        return math.log(self.p95 / self.median) / 1.6448536269514722


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the curve: `seconds` long, from `rate` to `to` requests a second."""

    name: str
    seconds: float
    rate: float
    to: float


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of request. Weights and shares are as the profile has them; lengths are in tokens, times in seconds."""

    name: str
    weight: float
    model: str
    tenants: Mapping[str, float]
    residency: Mapping[str, float]
    restricted: bool
    stream: float
    prompt: Spread
    output: Spread
    ignore_eos: bool
    shared: float
    texts: int
    turns: int
    think: float
    cancelled: float
    cancel_after: Spread | None


@dataclasses.dataclass(frozen=True)
class Event:
    """A mark in time on which a driver acts, `at` seconds after the beginning."""

    at: float
    mark: str


@dataclasses.dataclass(frozen=True)
class Threshold:
    """What has to be true of a measure at the end. Bounds are in seconds of times, else shares of 1 or counts."""

    measure: str
    percentile: float | None
    at_most: float | None
    at_least: float | None
    where: Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Profile:
    """A profile as it will run. `slo` has seconds by measure."""

    name: str
    description: str
    seed: int
    users: int
    pacing: str
    curve: tuple[Phase, ...]
    kinds: tuple[Kind, ...]
    retries: int
    retry_at_most: float
    timeout: float
    slo: Mapping[str, float]
    events: tuple[Event, ...]
    thresholds: tuple[Threshold, ...]

    @property
    def seconds(self) -> float:
        """How long requests are sent."""
        return sum(phase.seconds for phase in self.curve)

    @property
    def tenants(self) -> list[str]:
        return sorted({tenant for kind in self.kinds for tenant in kind.tenants if tenant})

    def asks(self) -> dict[str, list[str]]:
        """The models that each tenant asks for."""
        found: dict[str, set[str]] = {}
        for kind in self.kinds:
            for tenant in kind.tenants:
                found.setdefault(tenant, set()).add(kind.model)
        return {tenant: sorted(models) for tenant, models in found.items()}

    def phase(self, at: float) -> Phase:
        """That of a second of the run; the last one's from its end on."""
        for phase in self.curve[:-1]:
            if at < phase.seconds:
                return phase
            at -= phase.seconds
        return self.curve[-1]

    def scaled(self, time: float = 1.0, rate: float = 1.0) -> Profile:
        """The same in a `time`-th of the time, with `rate` times the requests a second.

        Curve and events are compressed. Lengths, think times, cancellations, SLO and thresholds are not: an answer
        takes as long as it takes.
        """
        curve = tuple(
            dataclasses.replace(phase, seconds=phase.seconds / time, rate=phase.rate * rate, to=phase.to * rate)
            for phase in self.curve
        )
        events = tuple(dataclasses.replace(event, at=event.at / time) for event in self.events)
        return dataclasses.replace(self, curve=curve, events=events)

    def marked(self, mark: str) -> Profile:
        """The same whose one event is another mark. Raises ProfileError where it has not exactly one."""
        if len(self.events) != 1:
            raise ProfileError(
                f"--mark {mark}: {self.name} has {len(self.events)} events. One mark stands in place of one other. Set "
                "a profile with one event, such as rollout"
            )
        return dataclasses.replace(self, events=(dataclasses.replace(self.events[0], mark=mark),))


def names() -> list[str]:
    """The profiles of this checkout."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(profile: str) -> Path:
    """The file of a profile: a name under tests/load/profiles/, or a path of its own.

    Raises:
        ProfileError: there is neither.
    """
    for path in (FOLDER / f"{profile}.yaml", Path(profile)):
        if path.is_file():
            return path
    raise ProfileError(
        f"no profile {profile!r}. Profiles (tests/load/profiles/*.yaml): {', '.join(names())}. Name one of them, or "
        "give "
        "the path of a file."
    )


def load(profile: str) -> Profile:
    """A profile by name or path.

    Raises:
        ProfileError: there is none, or it is not one.
    """
    path = find(profile)
    try:
        document = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ProfileError(f"{path}: not YAML: {error}") from error
    return parse(document, path.stem, str(path))


def parse(document: Any, name: str, source: str) -> Profile:
    """A profile from its document; `source` stands before each finding.

    Raises:
        ProfileError: with all findings.
    """
    if findings := [*_shape(document)] or [*_sense(document)]:
        raise ProfileError("\n".join(f"{source}: {finding}" for finding in findings))
    retry = document.get("retry") or {"times": 0}
    thresholds = list(document.get("thresholds", []))
    if not any(each["measure"] == "late" for each in thresholds):
        thresholds.append(KEPT)
    return Profile(
        name=name,
        description=document["description"],
        seed=document["seed"],
        users=document["users"],
        pacing=document.get("pacing", "poisson"),
        curve=tuple(
            Phase(each["phase"], seconds(each["for"]), each["rate"], each.get("to", each["rate"]))
            for each in document["curve"]
        ),
        kinds=tuple(_kind(kind, entry) for kind, entry in document["requests"].items()),
        retries=retry["times"],
        retry_at_most=seconds(retry.get("atMost", "30s")),
        timeout=seconds(document.get("timeout", "600s")),
        slo={measure: seconds(bound) for measure, bound in document["slo"].items()},
        events=tuple(
            sorted(
                (Event(seconds(each["at"]), each["mark"]) for each in document.get("events", [])), key=lambda e: e.at
            )
        ),
        thresholds=tuple(
            Threshold(
                each["measure"],
                each.get("percentile"),
                _bound(each.get("atMost")),
                _bound(each.get("atLeast")),
                each.get("where", {}),
            )
            for each in thresholds
        ),
    )


def seconds(text: str) -> float:
    """Of a duration such as 500ms, 2s, 5m or 1h. Raises ValueError for anything else."""
    found = _SECONDS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no duration: write it as 500ms, 2s, 5m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def _kind(name: str, entry: Mapping[str, Any]) -> Kind:
    shared, turns, cancel = (entry.get(key) or {} for key in ("sharedPrefix", "turns", "cancel"))
    return Kind(
        name=name,
        weight=entry.get("weight", 1),
        model=entry["model"],
        tenants=entry.get("tenants", {"": 1}),
        residency=entry.get("residency", {"own": 1}),
        restricted=entry.get("restricted", False),
        stream=entry.get("stream", 1),
        prompt=_tokens(entry["prompt"]),
        output=_tokens(entry["output"]),
        ignore_eos=entry.get("ignoreEos", False),
        shared=shared.get("share", 0),
        texts=shared.get("texts", 1),
        turns=turns.get("most", 1),
        think=seconds(turns.get("think", "0s")),
        cancelled=cancel.get("share", 0),
        cancel_after=_times(cancel["after"]) if cancel else None,
    )


def _tokens(value: Any) -> Spread:
    if isinstance(value, int):
        return Spread(value, value, value, value)
    return Spread(value["median"], value["p95"], value.get("least", 1), value["most"])


def _times(value: Any) -> Spread:
    median, p95 = (value, value) if isinstance(value, str) else (value["median"], value["p95"])
    return Spread(seconds(median), seconds(p95), 0, None)


def _bound(value: Any) -> float | None:
    return seconds(value) if isinstance(value, str) else value


@functools.cache
def schema() -> dict[str, Any]:
    """The form of a profile."""
    return yaml.safe_load(SCHEMA.read_text())


def _shape(document: Any) -> Iterator[str]:
    """What the schema finds, each with its path and what is expected there."""
    validator = jsonschema.Draft202012Validator(schema())
    for error in sorted(validator.iter_errors(document), key=lambda error: [str(part) for part in error.absolute_path]):
        yield f"{_at(error.absolute_path)}: {_expected(error)}"


def _expected(error: jsonschema.ValidationError) -> str:
    if error.validator in ("oneOf", "anyOf"):
        wanted = error.schema.get("description") or " or ".join(
            each.get("description")
            or each.get("type")
            or schema()["$defs"][each["$ref"].rsplit("/", 1)[-1]]["description"]
            for each in error.validator_value
        )
        # The variant that the value is meant to be says more than "none fits".
        deeper = [each for each in error.context if each.validator not in ("type",)]
        detail = f" ({_at(deeper[0].absolute_path)}: {_expected(deeper[0])})" if deeper else ""
        return f"{error.instance!r} is not what is expected here: {wanted[0].lower()}{wanted[1:].rstrip('.')}{detail}"
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {})) or [*error.schema.get("patternProperties", {})]
        return f"{error.message}. Set one of: {', '.join(known)}"
    if error.validator == "pattern" and error.schema.get("description"):
        return f"{error.instance!r} is not of the form: {error.schema['description']}"
    return error.message


def _at(path: Sequence[Any]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "the profile"


def _sense(document: Mapping[str, Any]) -> Iterator[str]:
    """What a schema cannot say: between fields."""
    whole = sum(seconds(each["for"]) for each in document["curve"])
    if not whole:
        yield "curve: lasts no time at all. Nothing would be sent. Set `for` of a phase above 0s"
    elif not any(each["rate"] or each.get("to") for each in document["curve"]):
        yield "curve: has no rate above 0. Nothing would be sent. Set `rate` of a phase"
    for name, entry in document["requests"].items():
        for key in ("prompt", "output"):
            yield from _spread(f"requests.{name}.{key}", entry[key])
        if cancel := entry.get("cancel"):
            after = cancel["after"]
            if isinstance(after, dict) and seconds(after["p95"]) < seconds(after["median"]):
                yield f"requests.{name}.cancel.after: p95 is below the median. Set p95 to the median or more"
        if not any(entry.get("residency", {"own": 1}).values()):
            yield f"requests.{name}.residency: has no weight above 0. Set one"
    for index, each in enumerate(document.get("events", [])):
        if seconds(each["at"]) >= whole:
            yield (
                f"events[{index}].at: {each['at']} is not within the curve, which lasts {whole:g} s. Nothing would be "
                "measured after it. Set an earlier time, or a longer curve"
            )
    phases = {each["phase"] for each in document["curve"]}
    for index, each in enumerate(document.get("thresholds", [])):
        yield from _threshold(f"thresholds[{index}]", each, document, phases)


def _spread(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value["p95"] < value["median"]:
            yield f"{path}: p95 {value['p95']} is below the median {value['median']}. Set p95 to the median or more"
        if not value.get("least", 1) <= value["median"] <= value["most"]:
            yield f"{path}: the median {value['median']} is not between least and most. Set least or most around it"


def _threshold(path: str, each: Mapping[str, Any], document: Mapping[str, Any], phases: set[str]) -> Iterator[str]:
    measure = each["measure"]
    if ("atMost" in each) == ("atLeast" in each):
        yield f"{path}: has not exactly one bound. It could not fail, or twice. Set atMost or atLeast"
    if (measure in TIMES) != ("percentile" in each):
        yield (
            f"{path}.percentile: {measure} is a time and is judged at one. Set percentile, such as 95"
            if measure in TIMES
            else f"{path}.percentile: {measure} is no time and has none. Leave it out"
        )
    for key in ("atMost", "atLeast"):
        bound = each.get(key)
        if bound is None:
            continue
        if isinstance(bound, str) != (measure in TIMES):
            yield f"{path}.{key}: {bound!r} is not in the measure's unit. Set " + (
                "a duration, such as 2s"
                if measure in TIMES
                else "a share of 1, such as 0.01"
                if measure in SHARES
                else "a count"
            )
        elif measure in SHARES and bound > 1:
            yield f"{path}.{key}: {bound} is above 1, and {measure} is a share of all. Set at most 1"
    known = {
        "request": set(document["requests"]),
        "phase": phases,
        "model": {e["model"] for e in document["requests"].values()},
    }
    for what, wanted in each.get("where", {}).items():
        if what in known and (strangers := [name for name in wanted if name not in known[what]]):
            yield (
                f"{path}.where.{what}: the profile has no {', '.join(strangers)}. It would never be judged. Set "
                "some of "
                f"{', '.join(sorted(known[what]))}"
            )
    if measure == "goodput" and not document["slo"]:
        yield f"{path}: goodput needs an slo"
