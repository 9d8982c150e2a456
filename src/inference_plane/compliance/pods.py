"""The pods that objects make, as rules see them."""

from collections.abc import Iterator, Mapping
from typing import Any

from inference_plane.kube import POD_PATHS, Index, Workload

#: Every kind that makes pods.
KINDS = frozenset(POD_PATHS)


class NoPod(ValueError):
    """An object of a kind that makes pods has no pod spec, so nothing of it can be judged."""


def workload(obj: Mapping, index: Index) -> Workload:
    """The pods that the object makes.

    Raises:
        NoPod: it has no pod spec.
    """
    for found in index.workloads:
        if found.obj is obj:
            return found
    raise NoPod(f"{obj.get('kind')} {(obj.get('metadata') or {}).get('name')} has no pod spec")


def containers(obj: Mapping, index: Index) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every container of the object's pods with its path, ephemeral ones too."""
    pod = workload(obj, index)
    yield from pod.containers
    for number, container in enumerate(pod.pod.get("ephemeralContainers") or ()):
        yield container, f"{pod.path}.ephemeralContainers[{number}]"


def setting(pod: Mapping, container: Mapping, name: str) -> Any:
    """A field of the container's securityContext, or of the pod's where the container has none."""
    own = (container.get("securityContext") or {}).get(name)
    return own if own is not None else (pod.get("securityContext") or {}).get(name)


def accelerators(container: Mapping) -> dict[str, Any]:
    """The extended resources (`nvidia.com/gpu: 1`) that a container asks for."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return {name: count for name, count in limits.items() if "/" in name}
