"""What the elastic plane needs of the world, which it cannot reach once it runs."""

from __future__ import annotations

from inference_plane import tools
from inference_plane.cluster import definitions, embedded, karpenter, keda, kserve

TOOLS = (*embedded.TOOLS, "karpenter", *keda.TOOLS)


def fetch(*, with_kserve: bool) -> None:
    """Builds and fetches what is not there yet, which takes a quarter of an hour the first time.

    Raises:
        tools.ToolError, crds.CRDError: that is not possible.
    """
    embedded.build()
    for tool in (*TOOLS, *(("kserve",) if with_kserve else ())):
        tools.build(tool)
    tools.source("keda-operator", keda.MODULE)
    if with_kserve:
        tools.source("kserve", kserve.MODULE)
    definitions.documents([*definitions.RENDERED, *karpenter.DEFINITIONS, *keda.DEFINITIONS])
