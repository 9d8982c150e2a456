"""Kubernetes Events when a model begins to use its fallback and when it stops; at a bounded rate."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from .config import Model
from .decide import Decision, Reason

_CONTROLLER = "inference-plane/policy"
#: Seconds between two Events of one model; how many may come at once, and seconds until there may be one more.
_MODEL_SECONDS = 60.0
_BURST, _REFILL_SECONDS = 20, 10.0

_WORDS = {
    Reason.SIGNALS_LOST: "nothing is known of the fleet",
    Reason.NO_ENGINE: "no engine is ready",
    Reason.ERRORS: "engines answer with errors",
    Reason.KV_CACHE: "the engines' KV caches are full",
    Reason.PENDING: "engine pods wait for accelerators",
    Reason.QUEUE: "more requests than the engines take",
    Reason.FIRST_TOKEN: "first tokens are later than the budget",
    Reason.REFUSED: "engines refuse requests",
    Reason.RECOVERING: "the fleet recovers",
}


class Budget:
    """How many Events may be written. A share that comes and goes quickly is in the metrics; Events are for people."""

    def __init__(self) -> None:
        self._tokens, self._at = float(_BURST), 0.0
        self._last: dict[tuple[str, bool], float] = {}

    def allows(self, model: str, began: bool, now: float) -> bool:
        self._tokens = min(_BURST, self._tokens + max(0.0, now - self._at) / _REFILL_SECONDS)
        self._at = now
        last = self._last.get((model, began))
        if self._tokens < 1 or (last is not None and now - last < _MODEL_SECONDS):
            return False
        self._tokens -= 1
        self._last[model, began] = now
        return True


def words(reasons: Sequence[Reason]) -> str:
    return ", ".join(_WORDS[reason] for reason in reasons) or "no reason is left"


def event(name: str, model: Model, before: int, decision: Decision, instance: str) -> dict[str, Any]:
    """An Event about the model's first Deployment, of a share that left 0 or came back to it."""
    began = before == 0
    note = (
        f"{decision.share} % of the requests to {name} that may leave go to its fallback first: "
        + words(decision.reasons)
        if began
        else f"All requests to {name} go to its fleet first again"
    )
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}-fallback-", "namespace": model.namespace},
        "eventTime": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning" if began and not _expected(model, decision) else "Normal",
        "reason": "FallbackShareRaised" if began else "FallbackShareEnded",
        "action": "Route",
        "note": note[:1024],
        "regarding": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "namespace": model.namespace,
            "name": (model.deployments or model.fleets)[0],
        },
        "reportingController": _CONTROLLER,
        "reportingInstance": instance[:128],
    }


def _expected(model: Model, decision: Decision) -> bool:
    """A model that may have no replica has none."""
    return decision.reasons == (Reason.NO_ENGINE,) and model.minReplicas == 0
