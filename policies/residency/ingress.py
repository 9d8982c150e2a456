"""What of the plane can be reached from where."""

from collections.abc import Iterator, Mapping

from inference_plane.compliance.rules import rule
from inference_plane.kube import Index

_SCHEME = "alb.ingress.kubernetes.io/scheme"


@rule(
    "PLANE_RES_01",
    "The load balancer is internal",
    severity="CRITICAL",
    kinds={"networking.k8s.io/Ingress"},
    why="An internet-facing load balancer has public addresses: prompts then cross networks that nobody stated.",
    remedy="Leave alb-ingress.scheme at internal.",
    source="https://kubernetes-sigs.github.io/aws-load-balancer-controller/latest/guide/ingress/annotations/#scheme",
    example="alb.ingress.kubernetes.io/scheme: internet-facing",
)
def internal_scheme(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    scheme = ((obj.get("metadata") or {}).get("annotations") or {}).get(_SCHEME)
    if scheme != "internal":
        yield f"metadata.annotations['{_SCHEME}']", f"is {scheme!r}, not internal"
