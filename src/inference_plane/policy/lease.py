"""Who leads: a Lease of coordination.k8s.io, taken and renewed as client-go's leader election does it.

Time is the own monotonic clock alone: a Lease is old when nobody changed it for its duration as seen from here, so no
clocks are compared and none may jump.

A leader that cannot reach the API server goes on: nobody else can take the Lease then either, and the engines and
routers are as readable as before. Should it alone be cut off and the other replica take over, both decide from the same
engines and routers until it hears of that; two deciders write nothing that could conflict.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from .config import Lease
from .decide import NEVER
from .fetch import ReadError
from .kubernetes import Kubernetes


def own_identity(name: str, address: str, port: int, *, tls: bool) -> str:
    """`NAME_ADDRESS:PORT`, or `NAME_https://ADDRESS:PORT`. An IPv6 address gets its brackets."""
    address = f"[{address}]" if ":" in address else address
    return f"{name}_{'https://' if tls else ''}{address}:{port}"


class Elector:
    """One candidate. `identity` is unique to the process and tells where it answers, as `own_identity` makes it."""

    def __init__(self, kubernetes: Kubernetes, namespace: str, lease: Lease, identity: str) -> None:
        self._kubernetes, self._namespace, self._lease, self.identity = kubernetes, namespace, lease, identity
        self._seen: Mapping[str, Any] | None = None
        self._seen_at = self._renewed_at = -NEVER
        self.leading = False
        self.holder: str | None = None

    @property
    def leader_url(self) -> str | None:
        """Where the leader answers, if it is another and known."""
        if not self.holder or self.holder == self.identity or "_" not in self.holder:
            return None
        address = self.holder.rpartition("_")[2]
        return address if "://" in address else f"http://{address}"

    def held(self, now: float) -> bool:
        """Whether it leads by a Lease that is still good."""
        return self.leading and now - self._renewed_at <= self._lease.durationSeconds

    async def step(self, now: float) -> None:
        """Renew, or take the Lease where nobody holds it. Raises ReadError; a race that is lost is none."""
        found = await self._kubernetes.lease(self._namespace, self._lease.name)
        if found is None:
            new = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._lease.name, "namespace": self._namespace},
                "spec": self._spec({}),
            }
            await self._write(self._kubernetes.create_lease(self._namespace, new), now)
            return
        spec = found.get("spec") or {}
        if spec != self._seen:
            self._seen, self._seen_at = spec, now
        self.holder = spec.get("holderIdentity") or None
        if self.holder not in (None, self.identity):
            duration = spec.get("leaseDurationSeconds") or self._lease.durationSeconds
            if now - self._seen_at < duration:
                self.leading = False
                return
        await self._write(self._kubernetes.replace_lease(self._namespace, found | {"spec": self._spec(spec)}), now)

    async def release(self) -> None:
        """Give it up, so that the other replica need not wait. Raises ReadError."""
        if not self.leading:
            return
        self.leading = False
        found = await self._kubernetes.lease(self._namespace, self._lease.name)
        if found is None or (found.get("spec") or {}).get("holderIdentity") != self.identity:
            return
        spec = found["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        await self._kubernetes.replace_lease(self._namespace, found | {"spec": spec})

    async def _write(self, request: Any, now: float) -> None:
        try:
            written = await request
        except ReadError as error:
            if error.status == 409:
                return  # Another was quicker; the next look tells who.
            raise
        self._seen, self._seen_at, self._renewed_at = written.get("spec"), now, now
        self.holder, self.leading = self.identity, True

    def _spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        mine = before.get("holderIdentity") == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._lease.durationSeconds)),
            "acquireTime": before["acquireTime"] if mine and before.get("acquireTime") else _now(),
            "renewTime": _now(),
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (bool(before) and not mine),
        }


def _now() -> str:
    """For people: nothing here reads it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
