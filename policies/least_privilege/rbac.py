"""What ServiceAccounts may ask of the Kubernetes API."""

from collections.abc import Iterator, Mapping

from inference_plane.compliance.rules import rule
from inference_plane.kube import Index


@rule(
    "PLANE_LP_01",
    "No wildcard in a role",
    severity="HIGH",
    kinds={"rbac.authorization.k8s.io/Role", "rbac.authorization.k8s.io/ClusterRole"},
    why="A wildcard grants what nobody listed, and what a later version of the cluster adds.",
    remedy="Name each API group, resource and verb that the workload calls.",
    source="https://kubernetes.io/docs/concepts/security/rbac-good-practices/#least-privilege",
    example='verbs: ["*"]',
)
def no_wildcard(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for number, entry in enumerate(obj.get("rules") or ()):
        for field in ("apiGroups", "resources", "verbs", "resourceNames", "nonResourceURLs"):
            for value in entry.get(field) or ():
                if "*" in str(value):
                    yield f"rules[{number}].{field}", f"has {value!r}"
