"""A Kubernetes control plane as processes on loopback: etcd, API server, controller manager, scheduler, and KWOK.

What the API server, the controllers and the scheduler say is real. Nodes and kubelets are not: KWOK answers for every
node that has the annotation `kwok.x-k8s.io/node: fake`, and its pods run as soon as they are bound. There is no
network between them, so NetworkPolicies are stored and never enforced.
"""

from __future__ import annotations

import functools
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import yaml

from inference_plane import tools
from inference_plane.cluster.certificates import Authority, signing_key
from inference_plane.onehost.processes import Process, Processes, free_port

TOOLS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
SERVICE_CIDR, POD_CIDR = "10.96.0.0/16", "10.244.0.0/16"
READY_SECONDS = 90

#: Stages of KWOK's module: nodes and pods that are as soon as they can be.
STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
)

Say = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Component:
    """One process of the control plane: its arguments and the URL that answers 200 once it serves."""

    name: str
    arguments: tuple[str, ...]
    ready: str


class Embedded:
    """A control plane in `folder`, which must be empty; `processes` ends it.

    `kubeconfig` is an administrator's, and `server` the API server's address. KWOK leaves the pods of the components
    `left_out` (their label `app.kubernetes.io/component`) to another kubelet.
    """

    def __init__(self, folder: Path, processes: Processes, left_out: Sequence[str] = ()) -> None:
        self.folder, self._left_out = folder.resolve(), left_out
        self.kubeconfig = self.folder / "kubeconfig"
        self.server = f"https://127.0.0.1:{free_port()}"
        self.authority: Authority | None = None
        self.running: dict[str, Process] = {}
        self.processes = processes
        self._components = _components(self.folder, self.server)

    def start(self, say: Say = lambda what: nullcontext()) -> None:
        """Builds what is not built, and starts every component. `say` tells of each step while it takes.

        Raises:
            NotReady, TimeoutError: a component ended, or does not answer.
            tools.ToolError, crds.CRDError: a component cannot be built.
        """
        binaries, stages = build()
        with say("certificates"):
            for name in ("certificates", "logs"):
                (self.folder / name).mkdir()
            self._certify()
            (self.folder / "stages.yaml").write_text(_without(stages.read_text(), self._left_out))
        with say("etcd and the API server"):
            for component in self._components[:2]:
                self._start(component, binaries[component.name])
            self._wait(self._components[1].ready)
        with say("controllers, scheduler and KWOK"):
            for component in self._components[2:]:
                self._start(component, binaries[component.name])
            for component in self._components[2:]:
                self._wait(component.ready)
            # Pods of a namespace are refused until it is there.
            self._wait(f"{self.server}/api/v1/namespaces/default/serviceaccounts/default")

    def restart(self, name: str) -> None:
        """Kills a component, as a crash does, and starts it again with the arguments and data that it had.

        Raises:
            NotReady, TimeoutError: it ended again, or does not answer.
        """
        component = next(component for component in self._components if component.name == name)
        self.running[name].kill()
        self.processes.stop(self.running[name])
        self._start(component, tools.build(name))
        self._wait(component.ready)

    def _certify(self) -> None:
        folder = self.folder / "certificates"
        self.authority = Authority(folder)
        hosts = ("localhost", "127.0.0.1", "10.96.0.1", "kubernetes.default.svc")
        self.authority.issue("server", "kube-apiserver", hosts=hosts)
        self.authority.issue("front-proxy", "front-proxy-client")
        certificate, key = self.authority.issue("admin", "admin", group="system:masters")
        signing_key(folder / "service-account.key")
        user = {"client-certificate": str(certificate), "client-key": str(key)}
        write_kubeconfig(self.kubeconfig, self.server, self.authority.certificate, user)

    def _start(self, component: Component, binary: Path) -> None:
        log = self.folder / "logs" / f"{component.name}.log"
        self.running[component.name] = self.processes.start(
            component.name, [binary, *component.arguments], environment(), log
        )

    def _wait(self, url: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not (problem := self._problem(url)) == "":
            self.processes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} does not answer 200 after {READY_SECONDS} s: {problem}")
            time.sleep(0.05)

    def _problem(self, url: str) -> str:
        """Why a URL does not answer 200; empty where it does."""
        handlers = [urllib.request.ProxyHandler({})]
        if url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=self._tls))
        try:
            with urllib.request.build_opener(*handlers).open(url, timeout=2):
                return ""
        except (urllib.error.URLError, OSError) as error:
            return str(error)

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        folder = self.folder / "certificates"
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        context.load_cert_chain(folder / "admin.crt", folder / "admin.key")
        return context


def build() -> tuple[dict[str, Path], Path]:
    """The binaries by name, and the file of KWOK's stages; built and fetched where they are not there yet.

    Raises:
        tools.ToolError, crds.CRDError: that is not possible.
    """
    return {name: tools.build(name) for name in TOOLS}, _stages()


def _without(stages: str, components: Sequence[str]) -> str:
    """The stages, of which those of pods do not apply to these components'; all as they are where none is named."""
    if not components:
        return stages
    found = list(yaml.safe_load_all(stages))
    other = {"key": '.metadata.labels["app.kubernetes.io/component"]', "operator": "NotIn", "values": [*components]}
    for stage in found:
        if stage["spec"]["resourceRef"]["kind"] == "Pod":
            stage["spec"]["selector"]["matchExpressions"].append(other)
    return yaml.safe_dump_all(found)


def _stages() -> Path:
    """One file with KWOK's stages, beside its binary; Go is asked for them once, as for that."""
    file = tools.path("kwok").with_name("stages.yaml")
    if not file.is_file():
        folder = tools.source("kwok", "sigs.k8s.io/kwok") / "kustomize" / "stage"
        new = file.with_name(f".stages-{os.getpid()}")
        new.write_text("\n---\n".join((folder / stage).read_text() for stage in STAGES))
        os.replace(new, file)
    return file


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a component sees of this process's environment: nothing that points it at another cluster or account."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return kept | dict(extra or {})


def write_kubeconfig(file: Path, server: str, authority: Path, user: Mapping[str, str]) -> None:
    """A kubeconfig with one cluster and one user."""
    name = "inference-plane"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": name, "user": dict(user)}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    file.touch(mode=0o600)
    file.write_text(json.dumps(config, indent=2))


def _components(folder: Path, server: str) -> tuple[Component, ...]:
    """The control plane in the order of its start."""
    secret = folder / "certificates"
    client, peer, controllers, scheduler, kwok = (free_port() for _ in range(5))
    store = f"http://127.0.0.1:{client}"
    serving = (f"--tls-cert-file={secret / 'server.crt'}", f"--tls-private-key-file={secret / 'server.key'}")
    kubeconfig = f"--kubeconfig={folder / 'kubeconfig'}"
    # Nobody else asks this API server, and the default rates make the first seconds twice as long.
    unthrottled = ("--kube-api-qps=1000", "--kube-api-burst=2000")
    return (
        Component(
            "etcd",
            (
                f"--data-dir={folder / 'etcd'}",
                "--unsafe-no-fsync",  # nothing here is to survive the machine
                "--log-level=warn",
                f"--listen-client-urls={store}",
                f"--advertise-client-urls={store}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-cluster=default=http://127.0.0.1:{peer}",
            ),
            f"{store}/health",
        ),
        Component(
            "kube-apiserver",
            (
                f"--etcd-servers={store}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--secure-port={server.rpartition(':')[2]}",
                "--endpoint-reconciler-type=none",
                f"--service-cluster-ip-range={SERVICE_CIDR}",
                f"--client-ca-file={secret / 'ca.crt'}",
                *serving,
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={secret / 'service-account.key'}",
                f"--service-account-signing-key-file={secret / 'service-account.key'}",
                f"--requestheader-client-ca-file={secret / 'ca.crt'}",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                f"--proxy-client-cert-file={secret / 'front-proxy.crt'}",
                f"--proxy-client-key-file={secret / 'front-proxy.key'}",
            ),
            f"{server}/readyz",
        ),
        Component(
            "kube-controller-manager",
            (
                kubeconfig,
                *unthrottled,
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--secure-port={controllers}",
                *serving,
                "--authorization-always-allow-paths=/healthz",
                f"--service-account-private-key-file={secret / 'service-account.key'}",
                f"--root-ca-file={secret / 'ca.crt'}",
                "--use-service-account-credentials=true",
                f"--cluster-signing-cert-file={secret / 'ca.crt'}",
                f"--cluster-signing-key-file={secret / 'ca.key'}",
                "--horizontal-pod-autoscaler-sync-period=2s",
            ),
            f"https://127.0.0.1:{controllers}/healthz",
        ),
        Component(
            "kube-scheduler",
            (
                kubeconfig,
                *unthrottled,
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--secure-port={scheduler}",
                *serving,
                "--authorization-always-allow-paths=/readyz",
            ),
            f"https://127.0.0.1:{scheduler}/readyz",
        ),
        Component(
            "kwok",
            (
                kubeconfig,
                f"--config={folder / 'stages.yaml'}",
                "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                f"--cidr={POD_CIDR}",
                "--node-ip=127.0.0.1",
                "--node-lease-duration-seconds=40",
                f"--server-address=127.0.0.1:{kwok}",
            ),
            f"http://127.0.0.1:{kwok}/healthz",
        ),
    )
