"""Tools that come as Go modules: built once from the pins of the folder with their name, and kept in the cache.

The modules' checksums stand in go.sum, so that Go itself refuses a proxy that serves something else. Most tools have
pins of their own, because together they do not build; those of one control plane share theirs, and what they share is
compiled once.
"""

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from inference_plane.manifests import crds

PINS = Path(__file__).parent


class ToolError(RuntimeError):
    """A tool cannot be built; the message is Go's own, with what to do."""


#: One build alone may need the better part of this on two busy cores.
TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class Tool:
    """One tool: its package, how long the first build takes on two cores, and the folder of its pins.

    `stamped` tools are told the version of Kubernetes, which their own module leaves to whoever builds them.
    """

    package: str
    takes: str
    tags: str = ""
    pins: str = ""
    stamped: bool = False


TOOLS = {
    "actionlint": Tool("github.com/rhysd/actionlint/cmd/actionlint", "some seconds"),
    "ct": Tool("github.com/helm/chart-testing/v3/ct", "a minute"),
    # Stands beside the policies in `scripts/campaign mutations --compare`.
    "kube-score": Tool("github.com/zegl/kube-score/cmd/kube-score", "a minute"),
    # Rules need no service discovery, which is most of what there would be to compile.
    "promtool": Tool("github.com/prometheus/prometheus/cmd/promtool", "four minutes", tags="remove_all_sd"),
    # Counts token budgets; no registry of packages carries it.
    "ratelimit": Tool("github.com/envoyproxy/ratelimit/src/service_cmd", "a minute"),
    # A Kubernetes control plane, of which no registry of packages carries a binary.
    "etcd": Tool("go.etcd.io/etcd/server/v3", "half a minute", pins="controlplane"),
    "kube-apiserver": Tool("k8s.io/kubernetes/cmd/kube-apiserver", "four minutes", pins="controlplane", stamped=True),
    "kube-controller-manager": Tool(
        "k8s.io/kubernetes/cmd/kube-controller-manager", "a minute", pins="controlplane", stamped=True
    ),
    "kube-scheduler": Tool("k8s.io/kubernetes/cmd/kube-scheduler", "some seconds", pins="controlplane", stamped=True),
    "kwok": Tool("sigs.k8s.io/kwok/cmd/kwok", "half a minute", pins="controlplane"),
    # Brings nodes on AWS; no registry of packages carries it.
    "karpenter": Tool("github.com/aws/karpenter-provider-aws/cmd/controller", "four minutes"),
    # Makes load balancers on AWS, likewise.
    "lbc": Tool("sigs.k8s.io/aws-load-balancer-controller", "three minutes"),
    # Turns InferenceServices into Deployments.
    "kserve": Tool("github.com/kserve/kserve/cmd/manager", "four minutes"),
    # Sets replicas from demand: the adapter hands the operator's metrics to the HorizontalPodAutoscaler, and the
    # webhooks refuse a second owner of the same replicas.
    "keda-operator": Tool("github.com/kedacore/keda/v2/cmd/operator", "six minutes", pins="keda"),
    "keda-adapter": Tool("github.com/kedacore/keda/v2/cmd/adapter", "a minute", pins="keda"),
    "keda-webhooks": Tool("github.com/kedacore/keda/v2/cmd/webhooks", "a minute", pins="keda"),
    # Makes clusters of containers; the rest below is for its node image, where no registry gives one.
    "kind": Tool("sigs.k8s.io/kind", "half a minute"),
    "containerd": Tool("github.com/containerd/containerd/v2/cmd/containerd", "a minute"),
    "ctr": Tool("github.com/containerd/containerd/v2/cmd/ctr", "some seconds", pins="containerd"),
    "containerd-shim-runc-v2": Tool(
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "some seconds", pins="containerd"
    ),
    "kubelet": Tool("k8s.io/kubernetes/cmd/kubelet", "a minute", pins="kubenode", stamped=True),
    "kubeadm": Tool("k8s.io/kubernetes/cmd/kubeadm", "some seconds", pins="kubenode", stamped=True),
    "kubectl": Tool("k8s.io/kubernetes/cmd/kubectl", "some seconds", pins="kubenode", stamped=True),
    "kube-proxy": Tool("k8s.io/kubernetes/cmd/kube-proxy", "some seconds", pins="kubenode", stamped=True),
    "kube-router": Tool("github.com/cloudnativelabs/kube-router/cmd/kube-router", "two minutes"),
    # A package of ours, which names the plugins.
    "coredns": Tool("inference-plane/tools/coredns", "a minute"),
    "pause": Tool("inference-plane/tools/pause", "some seconds"),
}


def path(name: str, cache: Path = crds.CACHE) -> Path:
    """Where the tool's binary is, or will be, for its pins as they are."""
    pins = TOOLS[name].pins or name
    files = [PINS / pins / "go.mod", PINS / pins / "go.sum", *sorted((PINS / pins).glob("*.go"))]
    sums = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return cache / "tools" / f"{pins}-{sums[:12]}" / name


def version(name: str, module: str) -> str:
    """The version, such as v1.36.4, that the tool's pins have of a module.

    Raises:
        LookupError: they do not name it.
    """
    text = (PINS / (TOOLS[name].pins or name) / "go.mod").read_text()
    found = re.search(rf"^(?:require)?\s+{re.escape(module)} (v\S+)", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"the pins of {name} name no {module}")
    return found[1]


def source(name: str, module: str, cache: Path = crds.CACHE) -> Path:
    """The folder with the files of a module that a tool is built from, at the version of its pins.

    Raises:
        ToolError: it cannot be fetched.
        crds.CRDError: there is no Go, and none can be had.
    """
    done = crds.run(
        [crds.go(cache), "mod", "download", "-json", module],
        f"fetching {module}",
        cwd=PINS / (TOOLS[name].pins or name),
        env=_environment(),
    )
    try:
        return Path(json.loads(done.stdout)["Dir"])
    except (json.JSONDecodeError, KeyError):
        raise ToolError(
            f"{name}: `go mod download {module}` failed: {(done.stderr or done.stdout).strip()}. Set GOPROXY to a "
            f"module proxy that this machine reaches."
        ) from None


def build(name: str, cache: Path = crds.CACHE) -> Path:
    """The tool's binary, built on first use and again when its pins change; says so where that takes a while.

    Raises:
        KeyError: no such tool.
        ToolError: the build failed.
        crds.CRDError: there is no Go, and none can be had.
    """
    tool, binary = TOOLS[name], path(name, cache)
    if binary.is_file():
        return binary
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", f"-tags={tool.tags}"]
        flags.append("-ldflags=-s -w" + (_stamp(version(name, "k8s.io/kubernetes")) if tool.stamped else ""))
        done = crds.run(
            [crds.go(cache), "build", *flags, "-o", str(Path(folder) / name), tool.package],
            f"building {name} from its Go module, about {tool.takes}, once",
            cwd=PINS / (tool.pins or name),
            env=_environment(),
            timeout=TIMEOUT_SECONDS,
        )
        if done.returncode:
            raise ToolError(
                f"{name}: `go build {tool.package}` failed: {done.stderr.strip()}. Set GOPROXY to a module proxy that "
                f"this machine reaches, or use Go 1.26 or newer."
            )
        # Renamed whole, so that two tests at once never run half a binary.
        os.replace(Path(folder) / name, binary)
    return binary


def _environment() -> dict[str, str]:
    return os.environ | {"GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"}


def _stamp(version: str) -> str:
    """Linker flags for what `kubectl version`, and whoever asks the server for its version, is told."""
    major, minor, _ = version.removeprefix("v").split(".", 2)
    said = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return "".join(f" -X {package}.{name}={value}" for package in packages for name, value in said.items())
