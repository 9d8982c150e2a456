"""The cluster of a process of tests: an embedded control plane, or the one that --kubeconfig names."""

import pathlib

import pytest
from cluster_harness import Cluster, Release

from inference_plane.cluster import definitions, nodes
from inference_plane.cluster.embedded import Embedded
from inference_plane.onehost.processes import Processes


@pytest.fixture(scope="session")
def cluster(request, tmp_path_factory):
    if given := request.config.getoption("--kubeconfig"):
        found = Cluster(pathlib.Path(given))
        definitions.install(found.client)
        yield found
        return
    with Processes() as processes:
        embedded = Embedded(tmp_path_factory.mktemp("cluster"), processes)
        embedded.start()
        found = Cluster(embedded.kubeconfig, embedded, sorted((embedded.folder / "logs").glob("*.log")))
        definitions.install(found.client)
        for node in nodes.ordinary("eu-central-1"):
            found.client.create(node)
        yield found


@pytest.fixture
def release(cluster):
    """A release that is removed at the end, with what its uninstalling keeps on purpose."""
    release = Release(cluster)
    cluster.make_namespaces([release.namespace])
    yield release
    release.remove()
