"""A cluster and releases on it, as tests want them: with waits that say what is amiss when they give up."""

import contextlib
import dataclasses
import pathlib
import tempfile
import time

import yaml
from kubernetes.utils.quantity import parse_quantity

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.cluster import diagnose, nodes
from inference_plane.cluster.client import Client
from inference_plane.cluster.embedded import Embedded

HELM_SECONDS = 300


@dataclasses.dataclass
class Cluster:
    """One cluster; `embedded` is None where it was given, and then its nodes are its own."""

    kubeconfig: pathlib.Path
    embedded: Embedded | None = None
    logs: list[pathlib.Path] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.client = Client(self.kubeconfig)

    def report(self):
        return diagnose.report(self.client, self.logs)

    def wait(self, what, check, seconds=180):
        """The first true answer of `check`; fails with `what`, its last answer, and what is amiss on the cluster."""
        deadline = time.monotonic() + seconds
        while not (answer := check()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what} (last: {answer!r})\n{self.report()}"
            time.sleep(0.2)
        return answer

    def settle(self, what, amiss, seconds=60):
        """Waits until `amiss` has nothing to say any more; fails with what it said last."""
        deadline = time.monotonic() + seconds
        while said := amiss():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}: {said}\n{self.report()}"
            time.sleep(0.2)

    def make_namespaces(self, names):
        for name in names:
            if self.client.get("v1", "Namespace", name) is None:
                self.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def make_nodes(self, values):
        """Those that the models of these values run on."""
        if self.embedded is None:
            return
        for node in nodes.for_values(values):
            if self.client.get("v1", "Node", node["metadata"]["name"]) is None:
                self.client.create(node)

    def remove_nodes(self):
        """Those that models run on, so that somebody else brings them."""
        for node in self.client.list("v1", "Node", labelSelector="inference-plane/accelerator"):
            self.client.delete("v1", "Node", node["metadata"]["name"])

    def objects(self):
        """(kind, namespace, name) of all that the cluster stores, but for what only tells of the moment."""
        passing = {"events", "endpointslices", "endpoints", "leases", "componentstatuses"}
        found = set()
        for version, plural, _, verbs in self.client.kinds():
            if "list" in verbs and plural not in passing and version != "metrics.k8s.io/v1beta1":
                prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
                for item in self.client.call("GET", f"{prefix}/{plural}")["items"]:
                    found.add((plural, item["metadata"].get("namespace"), item["metadata"]["name"]))
        return found


class Release:
    """One release of Helm, by the real binary."""

    def __init__(self, cluster, name="plane", namespace="inference"):
        self.cluster, self.name, self.namespace = cluster, name, namespace

    def helm(self, *arguments):
        where = ["--kubeconfig", str(self.cluster.kubeconfig), "--namespace", self.namespace]
        return helm.run(*arguments, *where)

    def upgrade(self, chart, values, wait=True):
        """`helm upgrade --install`: of a chart by name, or of a folder. Its output."""
        folder = chart if isinstance(chart, pathlib.Path) else CHARTS / chart
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, self._explained():
            yaml.safe_dump(values, file)
            file.flush()
            waiting = ["--wait", "--timeout", f"{HELM_SECONDS}s"] if wait else []
            return self.helm("upgrade", "--install", self.name, str(folder), "--values", file.name, *waiting)

    def rollback(self, revision):
        with self._explained():
            return self.helm("rollback", self.name, str(revision), "--wait", "--timeout", f"{HELM_SECONDS}s")

    def uninstall(self):
        with self._explained():
            return self.helm("uninstall", self.name, "--wait", "--timeout", f"{HELM_SECONDS}s")

    @property
    def there(self):
        return bool(self.helm("list", "--short", "--filter", f"^{self.name}$").strip())

    def remove(self):
        """Whatever there is of it, and what its uninstalling keeps on purpose."""
        if not self.there:
            return
        kept = [o for o in self.manifest() if kept_on_purpose(o)]
        self.uninstall()
        for o in kept:
            self.cluster.client.delete(o["apiVersion"], o["kind"], o["metadata"]["name"])

    def manifest(self, what="manifest"):
        """The objects that Helm sent, or with `hooks` those that it would send for a hook."""
        return [o for o in yaml.safe_load_all(self.helm("get", what, self.name)) if o]

    def stored(self, o):
        """The API server's copy of an object that was sent."""
        meta = o["metadata"]
        found = self.cluster.client.get(o["apiVersion"], o["kind"], meta["name"], meta.get("namespace", self.namespace))
        assert found, f"{o['kind']} {meta['name']} is not there\n{self.cluster.report()}"
        return found

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except helm.HelmError as error:
            raise AssertionError(f"{error}\n{self.cluster.report()}") from None


def kept_on_purpose(o):
    return o["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"


#: Kinds that Kubernetes itself has, of which it leaves out a field that is false, 0 or empty.
BUILT_IN = {"", "apps", "coordination.k8s.io", "networking.k8s.io", "policy", "rbac.authorization.k8s.io"}
BUILT_IN |= {"scheduling.k8s.io"}


def lost(o, stored):
    """What of an object that was sent is not in the copy that is stored, or is another there: its paths."""
    group = o["apiVersion"].rpartition("/")[0]
    return _lost(o, stored, "", (None, {}, [], False, 0, "") if group in BUILT_IN else (None, {}, []))


def _lost(sent, stored, path, omitted):
    if stored is None and sent in omitted:
        return
    if isinstance(sent, dict) and isinstance(stored, dict):
        for key, value in sent.items():
            yield from _lost(value, stored.get(key), f"{path}.{key}", omitted)
    elif isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        for number, (one, other) in enumerate(zip(sent, stored, strict=True)):
            yield from _lost(one, other, f"{path}[{number}]", omitted)
    elif not same(sent, stored):
        yield f"{path}: {sent!r} is stored as {stored!r}"


def same(sent, stored):
    """Equal, or the same quantity: 1024Mi is stored as 1Gi."""
    if sent == stored:
        return True
    try:
        return stored is not None and parse_quantity(sent) == parse_quantity(stored)
    except (ValueError, TypeError):
        return False


def added(sent, stored, path=""):
    """What is in the stored copy of an object, or of a part of it, and was not sent: its paths."""
    if isinstance(sent, dict) and isinstance(stored, dict):
        for key, value in stored.items():
            if key in sent:
                yield from added(sent[key], value, f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(sent, list) and isinstance(stored, list):
        for number, value in enumerate(stored):
            if number < len(sent):
                yield from added(sent[number], value, f"{path}[{number}]")
            else:
                yield f"{path}[{number}]"


def owners(cluster, deployment, namespace):
    """Who sets the replicas of a Deployment: autoscalers, and ScaledObjects, whose own autoscaler does not count."""
    scaled = cluster.client.list("keda.sh/v1alpha1", "ScaledObject", namespace)
    found = [o for o in scaled if o["spec"]["scaleTargetRef"]["name"] == deployment]
    ours = {o["metadata"]["uid"] for o in found}
    for o in cluster.client.list("autoscaling/v2", "HorizontalPodAutoscaler", namespace):
        by = {reference["uid"] for reference in o["metadata"].get("ownerReferences", ())}
        if o["spec"]["scaleTargetRef"]["name"] == deployment and not by & ours:
            found.append(o)
    return sorted(f"{o['kind']} {o['metadata']['name']}" for o in found)
