"""What the kubelets of the elastic plane say of a pod."""

from __future__ import annotations

import time
from typing import Any

from inference_plane.cluster.client import Client, Object


def tell(client: Client, obj: Object, address: str, *, started: bool = False, ready: bool = False) -> None:
    """Tells the API server what a kubelet tells of a pod: its address, whether its containers run, and its gates."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def statuses(field_name: str) -> list[dict[str, Any]]:
        state = {"running": {"startedAt": now}} if started else {"waiting": {"reason": "ContainerCreating"}}
        return [
            {"name": each["name"], "image": each["image"], "imageID": "", "restartCount": 0, "ready": ready,
             "started": ready, "state": state}
            for each in obj["spec"].get(field_name, ())
        ]

    conditions = {"PodScheduled": True, "Initialized": started, "ContainersReady": ready, "Ready": ready}
    conditions |= {gate["conditionType"]: ready for gate in obj["spec"].get("readinessGates", ())}
    status = {
        "phase": "Running" if started else "Pending",
        "startTime": obj.get("status", {}).get("startTime", now),
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            {"type": name, "status": str(value), "lastTransitionTime": now} for name, value in conditions.items()
        ],
        "containerStatuses": statuses("containers"),
        "initContainerStatuses": statuses("initContainers"),
    }
    meta = obj["metadata"]
    client.patch("v1", "Pod", meta["name"], {"status": status}, meta["namespace"], subresource="status")
