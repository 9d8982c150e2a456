"""The cluster of a process of tests: an embedded control plane, or the one that --kubeconfig names."""

import os
import pathlib

import pytest
from cluster_harness import Cluster, Release
from elsewhere import REPORTS, Elsewhere, Reporter

from inference_plane.cluster import definitions, nodes
from inference_plane.cluster.embedded import Embedded
from inference_plane.onehost.processes import Processes

ELSEWHERE = pytest.StashKey[Elsewhere]()


def pytest_configure(config):
    if REPORTS in os.environ:
        config.pluginmanager.register(Reporter(config))


def pytest_runtest_protocol(item, nextitem):
    """Tests of a module with POD_NETWORK run in there, all of them in one process."""
    given = item.config.getoption("--kubeconfig")  # whose pods nobody here can answer for
    if given or REPORTS in os.environ or not hasattr(item.module, "POD_NETWORK"):
        return None
    if ELSEWHERE not in item.config.stash:
        together = [other for other in item.session.items if other.path == item.path]
        item.config.stash[ELSEWHERE] = Elsewhere(together)
    elsewhere = item.config.stash[ELSEWHERE]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in elsewhere.reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    if nextitem is None or nextitem.path != item.path:
        elsewhere.close()
        del item.config.stash[ELSEWHERE]
    return True


def pytest_unconfigure(config):
    """After Ctrl-C, or the first failure under -x."""
    if ELSEWHERE in config.stash:
        config.stash[ELSEWHERE].close()


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
