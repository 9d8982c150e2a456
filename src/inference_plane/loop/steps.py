"""The way of a model from no replica to its first answer and back, step by step: from what was seen. Pure."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from .times import Times

Line = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """One model at one moment. `demand` is what KEDA is told (None: not known); of its pods, so many are there, have a
    node, have a container that runs, are ready; Envoy finds `found` engines healthy. `nodes` are those of its pods."""

    demand: float | None = None
    replicas: int = 0
    pods: int = 0
    bound: int = 0
    started: int = 0
    ready: int = 0
    found: int = 0
    nodes: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Claim:
    """A NodeClaim: whether EC2 has launched its instance, whether its node is ready, that node's name once there is
    one, and the models that have a pod there."""

    launched: bool = False
    ready: bool = False
    node: str = ""
    hosts: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Glance:
    """What was seen at one moment, `at` in epoch seconds: the models that sleep, every NodeClaim by its name, and the
    machine's load average."""

    at: float
    models: Mapping[str, Model]
    claims: Mapping[str, Claim]
    load: float = 0.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What all steps of one model are told from: everything that was seen, and the router's lines."""

    glances: Sequence[Glance]
    lines: Sequence[Line]
    name: str

    def first(self, found: Callable[[Glance, Model], bool], since: float) -> float | None:
        """When something was first seen to be so, of what was seen from `since` on."""
        return next((g.at for g in self.glances if g.at >= since and found(g, g.models[self.name])), None)

    def claims(self) -> set[str]:
        """The NodeClaims whose nodes had one of its pods."""
        nodes = {node for glance in self.glances for node in glance.models[self.name].nodes}
        return {name for glance in self.glances for name, claim in glance.claims.items() if claim.node in nodes}


#: What a glance has to show for a step, with the model's NodeClaims.
Sign = Callable[[Glance, Model, Collection[str]], bool]


@dataclasses.dataclass(frozen=True)
class Step:
    """A step between the first request and the first answer, or between the last answer and no node. `simulated` is
    which of the simulated times is in it."""

    name: str
    text: str
    sign: Sign
    simulated: str = ""


WAKE = (
    Step("demand", "the policy service tells a demand", lambda g, m, c: bool(m.demand)),
    Step("replica", "KEDA sets a replica", lambda g, m, c: m.replicas > 0),
    Step("pod", "its pod is there", lambda g, m, c: m.pods > 0),
    Step("claim", "Karpenter makes a NodeClaim", lambda g, m, c: any(name in g.claims for name in c)),
    Step("launched", "EC2 has launched the instance", lambda g, m, c: _any(g, c, "launched")),
    Step("node", "the node is ready", lambda g, m, c: _any(g, c, "ready"), "boot"),
    Step("bound", "the pod is bound to it", lambda g, m, c: m.bound > 0),
    Step("started", "image pulled, container started", lambda g, m, c: m.started > 0, "image"),
    Step("ready", "weights loaded, pod ready", lambda g, m, c: m.ready > 0, "weights"),
    Step("found", "Envoy finds it healthy", lambda g, m, c: m.found > 0),
)
BACK = (
    Step("calm", "the policy service tells no demand", lambda g, m, c: m.demand == 0),
    Step("none", "KEDA sets no replica", lambda g, m, c: m.replicas == 0),
    Step("drained", "its pod is gone", lambda g, m, c: m.pods == 0),
    Step("gone", "node and NodeClaim are gone", lambda g, m, c: not m.pods and not _idle(g, c)),
)
#: Beside the glances' steps: those that the router's lines tell, to the millisecond.
REQUEST, ANSWER, LAST = "first request", "first answer of the fleet", "last answer"


def asleep(glance: Glance) -> bool:
    """Whether nobody asks for any of the models, none has a pod, and no node is there for nobody."""
    calm = all(m.demand == 0 and not m.replicas and not m.pods for m in glance.models.values())
    return calm and not _idle(glance, glance.claims)


def document(glances: Sequence[Glance], lines: Sequence[Line], began: float, times: Times) -> dict[str, Any]:
    """For a report: each model's way there and back.

    A step's `at` is in seconds from `began` (None: it was not seen), `took` is how much later that is than all steps
    before it, `simulated` how many seconds of it are a simulated time. `late` is how much later than it was a step can
    have been seen, the longest time between two looks. `load` is the machine's load average meanwhile.
    """
    seen = [glance for glance in glances if glance.at >= began]
    names = sorted({name for glance in seen for name in glance.models})
    loads = [glance.load for glance in seen]
    gaps = [later.at - earlier.at for earlier, later in itertools.pairwise(seen)]
    return {
        "late": max(gaps, default=0.0),
        "models": {name: _model(Seen(seen, lines, name), began, times) for name in names},
        "load": {"least": min(loads, default=0.0), "most": max(loads, default=0.0)},
    }


def _model(seen: Seen, began: float, times: Times) -> dict[str, list[dict[str, Any]]]:
    own = [line for line in seen.lines if line.get("requested_model") == seen.name]
    answers = [line for line in own if line["status"] == 200]
    fleet = [line for line in answers if line.get("backend") == "fleet"]
    asked = min(map(_began, own), default=None)
    answered = min((_began(line) + (line["first_byte_ms"] or 0) / 1e3 for line in fleet), default=None)
    last = max((_began(line) + (line["duration_ms"] or 0) / 1e3 for line in answers), default=None)
    return {
        "wake": _way(seen, (REQUEST, asked), WAKE, (ANSWER, answered), began, times),
        "back": _way(seen, (LAST, last), BACK, None, began, times),
    }


def _way(
    seen: Seen, start: tuple[str, float | None], steps: Sequence[Step], end: tuple[str, float | None] | None,
    began: float, times: Times,
) -> list[dict[str, Any]]:  # fmt: skip
    (what, latest), own = start, seen.claims()
    made: list[dict[str, Any]] = []

    def add(name: str, text: str, at: float | None, simulated: float = 0.0) -> None:
        nonlocal latest
        took = None if at is None or latest is None else max(0.0, at - latest)
        made.append({
            "step": name, "what": text, "at": None if at is None else at - began, "took": took, "simulated": simulated,
        })
        latest = latest if at is None or latest is None else max(latest, at)

    add("start", what, latest)
    for step in steps:
        at = None if latest is None else seen.first(lambda g, m, s=step: s.sign(g, m, own), latest)
        add(step.name, step.text, at, getattr(times, step.simulated) if step.simulated else 0.0)
    if end:
        add("end", *end)
    return made


def _any(glance: Glance, claims: Collection[str], field: str) -> bool:
    return any(getattr(glance.claims[name], field) for name in claims if name in glance.claims)


def _idle(glance: Glance, claims: Collection[str]) -> bool:
    return any(name in glance.claims and not glance.claims[name].hosts for name in claims)


def _began(line: Line) -> float:
    return datetime.datetime.fromisoformat(line["time"]).timestamp()
