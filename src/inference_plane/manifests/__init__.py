"""Checks of rendered manifests: schemas and CEL rules of each object, and the relations between objects."""

from collections.abc import Collection, Mapping, Sequence

from .crds import Catalogue, CRDError
from .findings import Finding
from .kserve import deployments
from .objects import KUBERNETES_VERSION, check_objects
from .relations import check_relations

__all__ = ["CRDError", "Catalogue", "Finding", "check", "check_objects", "check_relations"]


def check(
    objects: Sequence[Mapping],
    *,
    kubernetes_version: str = KUBERNETES_VERSION,
    namespace: str = "default",
    external: Collection[str] = (),
    crds: Catalogue | None = None,
) -> list[Finding]:
    """All findings about one render, hooks included; none means that an API server of that version takes it.

    Relations are judged only once every object has the shape of its schema. Arguments and errors are those of
    `check_objects` and `check_relations`. What KServe makes of an InferenceService is checked with it.
    """
    objects = [*objects, *deployments(objects)]
    found = check_objects(objects, kubernetes_version, namespace=namespace, crds=crds)
    if any(f.rule == "schema" for f in found):
        return found
    return found + check_relations(objects, namespace=namespace, external=external)
