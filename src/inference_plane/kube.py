"""How to read Kubernetes objects: names, the pods they make, what selectors select; nothing of right or wrong."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

CLUSTER_SCOPED = frozenset(
    "Namespace Node PersistentVolume ClusterRole ClusterRoleBinding PriorityClass StorageClass IngressClass "
    "CustomResourceDefinition ValidatingWebhookConfiguration MutatingWebhookConfiguration APIService RuntimeClass "
    "ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding MutatingAdmissionPolicy MutatingAdmissionPolicyBinding "
    "CSIDriver DeviceClass FlowSchema PriorityLevelConfiguration".split()
)


def group_version(obj: Mapping) -> tuple[str, str]:
    """`apps/v1` as ("apps", "v1"); the core group is the empty string."""
    group, _, version = str(obj.get("apiVersion") or "").rpartition("/")
    return group, version


def name_of(obj: Mapping) -> str:
    """`apps/v1 Deployment models/clinical-summary`; the namespace only where the object states one."""
    metadata = obj.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    name = metadata.get("name") or metadata.get("generateName") or "(no name)"
    namespace = metadata.get("namespace")
    return f"{obj.get('apiVersion')} {obj.get('kind')} {f'{namespace}/{name}' if namespace else name}"


def path_of(parts: Iterable[str | int]) -> str:
    """`["spec", "containers", 0, "image"]` as `spec.containers[0].image`; keys with dots are quoted in brackets."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif "." in part or "/" in part:
            path += f"['{part}']"
        else:
            path += f".{part}" if path else part
    return path


#: Every built-in kind that makes pods, and where in it their template stands.
POD_PATHS: dict[str, tuple[str, ...]] = {
    "core/Pod": (),
    "apps/Deployment": ("spec", "template"),
    "apps/StatefulSet": ("spec", "template"),
    "apps/DaemonSet": ("spec", "template"),
    "apps/ReplicaSet": ("spec", "template"),
    "batch/Job": ("spec", "template"),
    "batch/CronJob": ("spec", "jobTemplate", "spec", "template"),
}


def pod_spec(obj: Mapping) -> tuple[Mapping, str] | None:
    """The pod spec that an object of a built-in kind carries and its path, or None."""
    parts = POD_PATHS.get(f"{group_version(obj)[0] or 'core'}/{obj.get('kind')}")
    if parts is None:
        return None
    for part in (*parts, "spec"):
        obj = obj.get(part) if isinstance(obj, Mapping) else None
    return (obj, ".".join((*parts, "spec"))) if isinstance(obj, Mapping) else None


def containers(pod: Mapping, path: str) -> Iterator[tuple[Mapping, str]]:
    """Init containers and containers of a pod spec, each with its path."""
    for field in ("initContainers", "containers"):
        for index, container in enumerate(pod.get(field) or ()):
            yield container, f"{path}.{field}[{index}]"


# Every namespace has this ConfigMap, from the controller manager.
_BUILT_IN_REFERENCES = frozenset({("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")})


@dataclass(frozen=True, eq=False)
class Workload:
    """An object that makes pods: `labels` are the pods', `pod` their spec, `path` where that spec stands."""

    obj: Mapping
    kind: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    pod: Mapping
    path: str

    @property
    def containers(self) -> list[tuple[Mapping, str]]:
        return list(containers(self.pod, self.path))

    @property
    def replicas(self) -> int | None:
        return (self.obj.get("spec") or {}).get("replicas")

    def port_names(self) -> set[str]:
        return {p["name"] for c, _ in self.containers for p in c.get("ports") or () if p.get("name")}

    def port_numbers(self) -> set[int]:
        return {p["containerPort"] for c, _ in self.containers for p in c.get("ports") or () if p.get("containerPort")}


class Index:
    """The render, looked up by kind, namespace and name. An object without a namespace is in the release's."""

    def __init__(self, objects: Sequence[Mapping], namespace: str, external: Collection[str]) -> None:
        self.objects = objects
        self.namespace = namespace
        self.external = frozenset(external)
        self._by_name = {(o.get("kind"), self.namespace_of(o), meta(o).get("name")): o for o in objects}

    def namespace_of(self, obj: Mapping) -> str:
        if obj.get("kind") in CLUSTER_SCOPED:
            return ""
        return meta(obj).get("namespace") or self.namespace

    def kind(self, *kinds: str) -> Iterator[Mapping]:
        return (o for o in self.objects if o.get("kind") in kinds)

    def get(self, kind: str, namespace: str, name: str) -> Mapping | None:
        return self._by_name.get((kind, namespace, name))

    def exists(self, kind: str, namespace: str, name: str) -> bool:
        full = f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
        made = (kind, namespace, name) in self._by_name or (kind == "Secret" and (namespace, name) in self.issued)
        return made or full in self.external or (kind, name) in _BUILT_IN_REFERENCES

    @cached_property
    def issued(self) -> set[tuple[str, str]]:
        """(namespace, name) of the Secrets that cert-manager makes of Certificates."""
        return {(self.namespace_of(c), (c.get("spec") or {}).get("secretName", "")) for c in self.kind("Certificate")}

    @cached_property
    def workloads(self) -> list[Workload]:
        found = []
        for obj in self.objects:
            if not (located := pod_spec(obj)):
                continue
            pod, path = located
            template: Any = obj
            for part in path.split(".")[:-1]:
                template = template[part]
            labels = meta(template).get("labels") or {}
            found.append(
                Workload(obj, obj["kind"], self.namespace_of(obj), str(meta(obj).get("name")), labels, pod, path)
            )
        return found

    def pods(self, namespace: str, selector: Mapping) -> list[Workload]:
        """The workloads of a namespace whose pods a LabelSelector matches."""
        return [w for w in self.workloads if w.namespace == namespace and matches(selector, w.labels)]

    @cached_property
    def scalers(self) -> list[tuple[Mapping, str, str, str]]:
        """(scaler, namespace, kind and name of its target) of every ScaledObject and HorizontalPodAutoscaler.

        An InferenceService of KServe scales its own Deployment, unless its autoscaler class says that somebody else
        does or nobody (pkg/controller/v1beta1/inferenceservice/reconcilers/autoscaler of KServe v0.20.0).
        """
        found = []
        for service in self.kind("InferenceService"):
            predictor = (service.get("spec") or {}).get("predictor") or {}
            annotations = (meta(service).get("annotations") or {}) | (predictor.get("annotations") or {})
            owns = annotations.get("serving.kserve.io/autoscalerClass") not in ("external", "none")
            if owns and predictor.get("containers"):
                name = f"{meta(service).get('name')}-predictor"
                found.append((service, self.namespace_of(service), "Deployment", name))
        for scaler in self.kind("ScaledObject", "HorizontalPodAutoscaler"):
            target = (scaler.get("spec") or {}).get("scaleTargetRef") or {}
            found.append((scaler, self.namespace_of(scaler), target.get("kind", "Deployment"), target.get("name", "")))
        return found

    def scalers_of(self, workload: Workload) -> list[Mapping]:
        key = (workload.namespace, workload.kind, workload.name)
        return [scaler for scaler, *target in self.scalers if tuple(target) == key]

    @cached_property
    def bound_accounts(self) -> set[tuple[str, str]]:
        """(namespace, name) of the ServiceAccounts that a RoleBinding or ClusterRoleBinding names."""
        return {
            (subject.get("namespace") or self.namespace_of(binding), subject.get("name", ""))
            for binding in self.kind("RoleBinding", "ClusterRoleBinding")
            for subject in binding.get("subjects") or ()
            if subject.get("kind") == "ServiceAccount"
        }


def meta(obj: Mapping) -> Mapping:
    metadata = obj.get("metadata")
    return metadata if isinstance(metadata, Mapping) else {}


def matches(selector: Mapping | None, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector (matchLabels, matchExpressions) selects these labels; an empty one selects all.

    https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors
    """
    selector = selector or {}
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    for term in selector.get("matchExpressions") or ():
        value, values = labels.get(term["key"]), term.get("values") or ()
        holds = {
            "In": value is not None and value in values,
            "NotIn": value is None or value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[term["operator"]]:
            return False
    return True
