"""Which addresses an EndpointSlice lists for new requests."""

from __future__ import annotations

from inference_plane.cluster.client import Object


def ready(each: Object) -> list[str]:
    """The addresses of its endpoints that are ready, of which a DNS server and a load balancer tell."""
    return [
        address
        for endpoint in each.get("endpoints") or () if endpoint["conditions"].get("ready")
        for address in endpoint["addresses"]
    ]
