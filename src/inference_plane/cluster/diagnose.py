"""What one looks at first when something on a cluster does not become what it should: as text, for a failure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inference_plane.cluster.client import Client, Object, Refused

#: Kinds whose conditions say why nothing happens, where the cluster has them.
CONDITIONED = (
    ("apps/v1", "Deployment"),
    ("karpenter.k8s.aws/v1", "EC2NodeClass"),
    ("karpenter.sh/v1", "NodePool"),
    ("karpenter.sh/v1", "NodeClaim"),
    ("serving.kserve.io/v1beta1", "InferenceService"),
    ("keda.sh/v1alpha1", "ScaledObject"),
)
EVENTS, LOG_LINES = 15, 8


def report(client: Client, logs: Sequence[Path] = ()) -> str:
    """Pods that are not ready, conditions that are not met, warnings, and what controllers last logged as an error."""
    parts = {
        "pods that are not ready": [_pod(pod) for pod in client.list("v1", "Pod") if not ready(pod)],
        "conditions": [line for kind in CONDITIONED for o in _list(client, *kind) for line in _conditions(o)],
        "warnings": _warnings(client),
    }
    parts |= {f"errors in {log}": _errors(log) for log in logs}
    return "\n".join(f"{title}:\n  " + "\n  ".join(lines) for title, lines in parts.items() if lines) or "nothing amiss"


def ready(pod: Object) -> bool:
    """Whether a pod is ready, or has done what it was for."""
    return condition(pod, "Ready") == "True" or pod.get("status", {}).get("phase") == "Succeeded"


def condition(o: Object, name: str) -> str:
    """The status of a condition: True, False or Unknown, and Unknown where it is not there."""
    found = (c["status"] for c in o.get("status", {}).get("conditions") or () if c["type"] == name)
    return next(found, "Unknown")


def _list(client: Client, api_version: str, kind: str) -> list[Object]:
    try:
        return client.list(api_version, kind)
    except (LookupError, Refused):
        return []  # a cluster without that controller


def _name(o: Object) -> str:
    namespace = o["metadata"].get("namespace")
    return f"{o['kind']} {namespace + '/' if namespace else ''}{o['metadata']['name']}"


def _pod(pod: Object) -> str:
    status = pod.get("status", {})
    waiting = [
        f"{state['name']}: {reason.get('reason')} {reason.get('message', '')}"
        for state in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
        for reason in state.get("state", {}).values()
        if not state.get("ready")
    ]
    unmet = [f"{c['type']}: {c.get('message', '')}" for c in status.get("conditions") or () if c["status"] != "True"]
    return f"{_name(pod)} {status.get('phase')}: " + "; ".join([*unmet, *waiting])


def _conditions(o: Object) -> list[str]:
    unmet = [c for c in o.get("status", {}).get("conditions") or () if c["status"] != "True"]
    return [f"{_name(o)} {c['type']}={c['status']} {c.get('reason', '')}: {c.get('message', '')}" for c in unmet]


def _warnings(client: Client) -> list[str]:
    events = [event for event in client.list("v1", "Event") if event.get("type") == "Warning"]
    events.sort(key=lambda event: event["metadata"]["creationTimestamp"])
    return [
        f"{e['involvedObject'].get('kind')} {e['involvedObject'].get('name')} {e.get('reason')}: {e.get('message')}"
        for e in events[-EVENTS:]
    ]


def _errors(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    words = ('"level":"ERROR"', '"level":"error"', "ERROR", "panic", "fatal")
    return [line[:400] for line in lines if line.startswith("E") or any(word in line for word in words)][-LOG_LINES:]
