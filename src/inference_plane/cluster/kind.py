"""A cluster of kind: nodes are containers, pods run, and NetworkPolicies are enforced.

One node has the control plane, and the workers the pods. The name of the cluster follows from its state folder, so that
what a killed keeper left is found again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from inference_plane import tools
from inference_plane.cluster import docker, node_image
from inference_plane.cluster.docker import Engine
from inference_plane.cluster.node_image import NodeImage
from inference_plane.cluster.state import ClusterError, undisturbed

WORKERS = 2
READY = "180s"
#: How long containers may take to go.
GONE_SECONDS = 30


class Kind:
    """A cluster in `folder`: `kubeconfig` is an administrator's, and `name` kind's own for it."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder = folder.resolve()
        self.engine = engine
        self.kubeconfig = self.folder / "kubeconfig"
        self.name = name(folder)

    def create(self, image: NodeImage) -> None:
        """Creates it, and waits until its nodes are ready.

        Raises:
            ClusterError: it does not come up; the message is kind's own.
        """
        file = self.folder / "kind.yaml"
        file.write_text(yaml.safe_dump(configuration(image, self.engine.info["CgroupVersion"])))
        self._kind(
            "create", "cluster", "--image", image.name, "--config", str(file), "--kubeconfig", str(self.kubeconfig),
            "--wait", READY,
        )  # fmt: skip

    def delete(self) -> None:
        """Removes its containers, if there are any, and nothing else of the engine.

        The engine goes on starting a container whose `docker run` was killed, so one may come while others go.

        Raises:
            ClusterError: some are still there after a while.
        """
        gone, deadline = 0, time.monotonic() + GONE_SECONDS
        while gone < 2:
            with tempfile.TemporaryDirectory() as elsewhere:  # kind would make the folder of the kubeconfig again
                self._kind("delete", "cluster", "--kubeconfig", str(Path(elsewhere) / "kubeconfig"))
            time.sleep(0.5)
            left = self.engine.run("ps", "--all", "--quiet", f"--filter=label=io.x-k8s.kind.cluster={self.name}")
            gone = 0 if left else gone + 1
            if left and time.monotonic() > deadline:
                raise ClusterError(f"containers of the cluster {self.name} stay: {', '.join(left.split())}")

    def nodes(self) -> list[str]:
        """The names of its nodes, which are those of their containers."""
        return sorted(self._kind("get", "nodes").split())

    def load(self, *images: str) -> None:
        """Gives the engine's images to every worker's kubelet, which then needs no registry for them.

        What they have already is left out, by the images' ids.
        """
        record = self.folder / "loaded.json"
        loaded = json.loads(record.read_text()) if record.is_file() else {}
        ids = {image: self.engine.run("image", "inspect", "--format={{.Id}}", image) for image in images}
        new = [image for image in images if loaded.get(image) != ids[image]]
        if not new:
            return
        archive = self.folder / "images.tar"
        try:
            self.engine.run("save", "--output", str(archive), *new)
            workers = [node for node in self.nodes() if not node.endswith("control-plane")]
            self._kind("load", "image-archive", str(archive), "--nodes", ",".join(workers))
        finally:
            archive.unlink(missing_ok=True)
        record.write_text(json.dumps(loaded | ids))

    def network(self) -> str:
        """The addresses of its nodes, as a CIDR."""
        configured = json.loads(self.engine.run("network", "inspect", "kind"))[0]["IPAM"]["Config"]
        return next(each["Subnet"] for each in configured if "." in each["Subnet"])

    def _kind(self, *words: str) -> str:
        command = [str(tools.build("kind")), *words[:2], "--name", self.name, *words[2:]]
        environment = self.engine.environment | {"KUBECONFIG": str(self.kubeconfig)}
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said, problem = process.communicate()
        except BaseException:
            # With the `docker run` that it waits for, or a node comes after all has been removed.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if process.returncode:
            raise ClusterError(f"`kind {' '.join(words[:2])}` failed: {(problem or said).strip()[-4000:]}")
        return said


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Kind]:
    """A cluster that is removed at the end, whatever ends it, and the engine with it where it is ours.

    Raises:
        ClusterError: there is no engine.
    """
    with docker.engine() as engine:
        found = Kind(folder, engine)
        try:
            found.delete()  # what a killed keeper left
            yield found
        finally:
            with undisturbed():
                found.delete()


def sweep(folder: Path, host: str | None) -> None:
    """Removes what a cluster's killed keeper left with an engine that goes on; one of ours has ended with it."""
    with contextlib.suppress(ClusterError, tools.ToolError):
        Kind(folder, Engine(host)).delete()


def name(folder: Path) -> str:
    return "inference-plane-" + hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]


def configuration(image: NodeImage, cgroups: str) -> dict:
    """kind's configuration; `cgroups` is the version of control groups that this machine has, 1 or 2."""
    config: dict = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": [{"role": "control-plane"}, *({"role": "worker"} for _ in range(WORKERS))],
    }
    patches = []
    if cgroups == "1":
        # The kubelet refuses to start there unless it is told otherwise.
        kubelet = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration"}
        patches.append(kubelet | {"failCgroupV1": False})
    if image.built:
        patches.append({"kind": "ClusterConfiguration", "etcd": {"local": {"imageTag": node_image.etcd()}}})
    if patches:
        config["kubeadmConfigPatches"] = [yaml.safe_dump(patch) for patch in patches]
    if not docker.has_sys_resource():
        # Then oom_score_adj may only be raised, and containerd asks for less than its own.
        config["containerdConfigPatches"] = ['[plugins."io.containerd.grpc.v1.cri"]\nrestrict_oom_score_adj = true\n']
    return config
