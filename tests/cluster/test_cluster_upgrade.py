"""`helm upgrade` from what people have to what is here, and back: on an API server that refuses what cannot change."""

import io
import subprocess
import tarfile

import pytest
import yaml
from cluster_harness import kept_on_purpose, lost

from inference_plane import checkout

ENVIRONMENTS = sorted(path.stem for path in checkout.VALUES.glob("*.yaml"))


def git(*words):
    return subprocess.run(["git", *words], cwd=checkout.ROOT, capture_output=True, check=True).stdout


def reference(environment):
    """Where an upgrade starts: the last release that has the environment, or the commit that brought it."""
    file = f"values/{environment}.yaml"
    tags = git("tag", "--merged", "HEAD", "--no-contains", "HEAD", "--sort=-creatordate", "v*").decode().split()
    for tag in tags:
        if git("ls-tree", tag, file).strip():
            return tag
    commits = git("log", "--reverse", "--format=%H", "--", file).decode().split()
    return commits[0] if commits else None


@pytest.fixture
def before(tmp_path, environment):
    """The charts and environments as they were there."""
    if git("rev-parse", "--is-shallow-repository").strip() == b"true":
        pytest.skip("a shallow clone has no charts to upgrade from: git fetch --unshallow --tags")
    start = reference(environment)
    if start is None:
        pytest.skip(f"values/{environment}.yaml is not committed yet")
    with tarfile.open(fileobj=io.BytesIO(git("archive", start, "charts", "values"))) as archive:
        archive.extractall(tmp_path, filter="tar")
    print(f"{environment} from {start[:12]}")
    return tmp_path


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_upgrades_and_rolls_back(cluster, release, before, environment):
    was = yaml.safe_load((before / "values" / f"{environment}.yaml").read_text())
    now = yaml.safe_load((checkout.VALUES / f"{environment}.yaml").read_text())
    cluster.make_nodes(was)
    cluster.make_nodes(now)
    release.upgrade(before / "charts" / "inference-plane", was)
    for step in (lambda: release.upgrade("inference-plane", now), lambda: release.rollback(1)):
        replaced = {identity(o): o for o in release.manifest()}
        step()
        sent = {identity(o): o for o in release.manifest()}
        assert [f"{who}{path}" for who, o in sent.items() for path in lost(o, release.stored(o))] == []
        # What only the other version has is gone, unless it is kept on purpose.
        for who in replaced.keys() - sent.keys():
            o = replaced[who]
            found = cluster.client.get(o["apiVersion"], o["kind"], o["metadata"]["name"], release.namespace)
            assert bool(found) is kept_on_purpose(o), who
            if found:
                cluster.client.delete(o["apiVersion"], o["kind"], o["metadata"]["name"])


def identity(o):
    return f"{o['kind']} {o['metadata']['name']}"
