"""The image of kind's nodes: the public one, or one that is built here of Debian's packages and Go modules.

kind's own default, `kindest/node` pinned by digest, is taken wherever Docker can pull it. Elsewhere everything that is
in it is put together anew: a Debian of the archive's packages, Kubernetes and containerd from their modules, and in
place of kindnet, which no module has, kube-router, which enforces NetworkPolicies too. No storage provisioner: nothing
here asks for a volume that outlives its pod.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from inference_plane import tools
from inference_plane.checkout import ROOT
from inference_plane.cluster.docker import Engine
from inference_plane.cluster.state import ClusterError
from inference_plane.manifests import crds

FILES = ROOT / "images" / "kind"
SUITE = "bookworm"

#: What each node has on its PATH.
PROGRAMS = ("containerd", "ctr", "containerd-shim-runc-v2", "kubeadm", "kubelet", "kubectl")
#: What the images of a control plane have in them.
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "coredns", "pause")
#: The same, of those that call iptables and its like.
NETWORK = ("kube-proxy", "kube-router")

TOOLS = (*PROGRAMS, *CONTROL_PLANE, *NETWORK)

DEFAULT = re.compile(r'const Image = "(\S+)"')
SANDBOX = re.compile(r'sandbox_image = "(\S+)"')

#: Documentation and translations stay out of images, and dpkg need not wait for the disk.
SLIM = (
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)


@dataclass(frozen=True)
class NodeImage:
    """`built` is whether it was made here, and not by the kind project."""

    name: str
    built: bool


def find(engine: Engine) -> NodeImage:
    """The public image where Docker has it or can pull it, else one built here, once.

    Raises:
        ClusterError: neither is possible; it says what is missing.
        tools.ToolError, crds.CRDError: a program cannot be built.
    """
    public = DEFAULT.search((_kind() / "pkg/apis/config/defaults/image.go").read_text())[1]
    own = name()
    if engine.has(public):
        return NodeImage(public, built=False)
    if engine.has(own):
        return NodeImage(own, built=True)
    try:
        engine.run("pull", "--quiet", public, what=f"pulling {public}")
    except ClusterError as error:
        why = str(error)[-300:]
        print(f"no registry gives a node image ({why}): it is built here, once", file=sys.stderr, flush=True)
        _build(engine, own)
        return NodeImage(own, built=True)
    return NodeImage(public, built=False)


def name() -> str:
    """The built image, named for everything that is in it. Debian's packages are those of the day it was built."""
    pins = sorted({tools.path(tool).parent.name for tool in TOOLS})
    files = sorted(file for file in (FILES / "node").iterdir())
    text = "\n".join([*pins, tools.version("kind", "sigs.k8s.io/kind"), *(file.read_text() for file in files)])
    return f"inference-plane/node:{_kubernetes()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def debian(engine: Engine) -> str:
    """An image with a small Debian, made of the archive's packages.

    Raises:
        ClusterError: that is not possible here.
    """
    image = f"inference-plane/debian:{SUITE}"
    if engine.has(image):
        return image
    if shutil.which("mmdebstrap") is None:
        raise ClusterError(
            "no registry gives a node image, so that it is built of Debian's packages, and mmdebstrap is not on PATH. "
            "On Debian `apt-get install mmdebstrap`; elsewhere give Docker a registry that has kindest/node."
        )
    with context() as folder:
        root = folder / "root.tar"
        options = [f"--dpkgopt={option}" for option in SLIM]
        done = crds.run(
            ["mmdebstrap", "--variant=minbase", *options, SUITE, str(root)], f"unpacking Debian {SUITE}", timeout=1800
        )
        if done.returncode:
            raise ClusterError(f"mmdebstrap {SUITE} failed: {done.stderr.strip()[-2000:]}")
        engine.run("import", str(root), image)
    return image


def build(engine: Engine, image: str, context: Path, file: Path | None = None, **arguments: str) -> None:
    """`docker build`, with the host's network, as a registry's mirror or a proxy may be reached from there alone."""
    words = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    named = ["--file", str(file)] if file else []
    engine.run(
        "build", "--quiet", "--network=host", "--tag", image, *named, *words, str(context), what=f"building {image}"
    )


def components() -> dict[str, str]:
    """The images of a built node's control plane and network: program -> image, named as kubeadm and kind ask for."""
    registry, version = "registry.k8s.io", _kubernetes()
    network = tools.version("kube-router", "github.com/cloudnativelabs/kube-router")
    sandbox = SANDBOX.search((_kind() / "images/base/files/etc/containerd/config.toml").read_text())[1]
    return {
        "kube-apiserver": f"{registry}/kube-apiserver:{version}",
        "kube-controller-manager": f"{registry}/kube-controller-manager:{version}",
        "kube-scheduler": f"{registry}/kube-scheduler:{version}",
        "kube-proxy": f"{registry}/kube-proxy:{version}",
        "etcd": f"{registry}/etcd:{etcd()}",
        "coredns": f"{registry}/coredns/coredns:{tools.version('coredns', 'github.com/coredns/coredns')}",
        "pause": sandbox,
        "kube-router": f"inference-plane/kube-router:{network}",
    }


def etcd() -> str:
    """The tag of etcd's image, which kubeadm is told, as it would take another version."""
    return tools.version("etcd", "go.etcd.io/etcd/server/v3").removeprefix("v")


def _kubernetes() -> str:
    return tools.version("kubelet", "k8s.io/kubernetes")


def _kind() -> Path:
    return tools.source("kind", "sigs.k8s.io/kind")


def _build(engine: Engine, own: str) -> None:
    binaries = {tool: tools.build(tool) for tool in TOOLS}
    base = debian(engine)
    images = components()
    with context() as folder:
        network = f"inference-plane/network:{SUITE}"
        packages = "conntrack ipset iproute2 iptables kmod nftables procps"
        (folder / "Dockerfile").write_text(
            f"FROM {base}\nRUN apt-get update -qq && apt-get install -yqq --no-install-recommends {packages} "
            f"&& rm -rf /var/lib/apt/lists/* /var/cache/apt/*\n"
        )
        build(engine, network, folder)
    for tool, image in images.items():
        with context() as folder:
            _place(binaries[tool], folder / tool)
            lines = (
                f"FROM {network if tool in NETWORK else 'scratch'}",
                "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                f"COPY {tool} /usr/local/bin/{tool}",
                f'ENTRYPOINT ["/usr/local/bin/{tool}"]',
            )
            (folder / "Dockerfile").write_text("\n".join(lines))
            build(engine, image, folder)
    with context() as folder:
        engine.run("save", "--output", str(folder / "components.tar"), *images.values(), what="saving them")
        shutil.copytree(FILES / "node", folder, dirs_exist_ok=True)
        (folder / "programs").mkdir()
        for tool in PROGRAMS:
            _place(binaries[tool], folder / "programs" / tool)
        _files(folder / "kind", images["kube-router"])
        build(engine, own, folder, DEBIAN=base)


def _files(root: Path, network: str) -> None:
    """kind's own files of a node, out of its module, which has no modes, and the manifest of the network."""
    source = _kind() / "images" / "base" / "files"
    for file in (file for part in ("usr", "kind", "etc") for file in (source / part).rglob("*") if file.is_file()):
        place = root / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        place.chmod(0o755 if "bin" in place.parent.parts[-1:] else 0o644)
    (root / "etc/systemd/system/containerd-fuse-overlayfs.service").unlink()
    (root / "kind/manifests").mkdir()
    (root / "kind/version").write_text(_kubernetes())
    manifest = (FILES / "node" / "default-cni.yaml").read_text()
    (root / "kind/manifests/default-cni.yaml").write_text(manifest.replace("@IMAGE@", network))


def _place(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:
        shutil.copy(file, place)


def context() -> tempfile.TemporaryDirectory:
    """A folder for a build, beside the tools, so that they need not be copied into it."""
    crds.CACHE.mkdir(exist_ok=True)
    return _Context(prefix="build-", dir=os.path.realpath(crds.CACHE))


class _Context(tempfile.TemporaryDirectory):
    def __enter__(self) -> Path:
        return Path(super().__enter__())
