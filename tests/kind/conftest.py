"""One cluster of kind for the whole layer, with the local environment installed and a client's pod beside it."""

import pathlib

import pytest
from kind_harness import AGENT, CLIENTS, NAMESPACE, Cluster, Plane, agent, client_pod

from inference_plane import tools
from inference_plane.cluster import pod_images, state
from inference_plane.cluster.docker import Engine
from inference_plane.cluster.kind import Kind


@pytest.fixture(scope="session")
def cluster(request, tmp_path_factory):
    """The one whose state folder --kind names, or one of its own."""
    given = request.config.getoption("--kind")
    folder = pathlib.Path(given) if given else tmp_path_factory.mktemp("kind") / "state"
    if given:
        found = state.read(folder)
        assert found and found.ready and found.kind == "kind", f"--kind {given}: no cluster of kind is up there"
    else:
        tools.build("kind")
        found = state.start(folder, ["kind"], lambda told: None)
    try:
        kind = Kind(folder, Engine(found.facts["docker"]))
        cluster = Cluster(kind, built=found.facts["built"])
        kind.load(*pod_images.build(kind.engine, registry=not cluster.built))
        yield cluster
    finally:
        if not given:
            state.end(folder)


@pytest.fixture(scope="session")
def plane(cluster):
    """The local environment under restricted Pod Security, and the pods that tests ask from."""
    for node in cluster.kind.nodes():
        cluster.kind.engine.run("exec", node, "ip", "address", "replace", f"{AGENT}/32", "dev", "lo")
    cluster.client.apply(agent())
    cluster.client.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
    )
    # One where clients are let in, and strangers: in the plane's own namespace, and in another.
    cluster.client.apply(client_pod(), CLIENTS)
    cluster.client.apply(client_pod("stranger"), CLIENTS)
    cluster.client.apply(client_pod("stranger"), NAMESPACE)
    plane = Plane(cluster)
    plane.install()
    for name, namespace in (("client", CLIENTS), ("stranger", CLIENTS), ("stranger", NAMESPACE)):
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--namespace", namespace, "--timeout=300s")
    cluster.kubectl(
        "rollout", "status", "daemonset/pod-identity-agent-stand-in", "--namespace=kube-system", "--timeout=300s"
    )
    yield plane
    plane.helm("uninstall", "plane", "--ignore-not-found", "--wait")
