"""Each rendered object on its own: its schema, and what an API server refuses although the schema allows it.

Built-in kinds are judged by the strict JSON schemas that the package `kubernetes-validate` carries, read once per
Kubernetes version. What those schemas leave out (names, labels, port ranges, quantities, enumerations) is added to them
as data in REFINEMENTS; what relates two fields stands in small functions.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from inference_plane.kube import CLUSTER_SCOPED, containers, group_version, name_of, pod_spec

from .cel import CustomResource
from .crds import Catalogue
from .findings import Finding
from .schema import Validator, parse_quantity, schema_findings

KUBERNETES_VERSION = "1.36"
# Found without importing the package, which takes half a second for code that is not wanted here.
_SCHEMAS = Path(importlib.util.find_spec("kubernetes_validate").origin).with_name("kubernetes-json-schema")

# Syntax of names: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/ and .../labels/
_LABEL = {
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "maxLength": 63,
    "x-why": "a DNS-1123 label: at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit",
}
_SUBDOMAIN = {
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    "maxLength": 253,
    "x-why": "a DNS-1123 subdomain: at most 253 of a-z, 0-9, - and ., beginning and ending with a letter or digit",
}
_SERVICE_NAME = {
    "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
    "maxLength": 63,
    "x-why": "a DNS-1035 label: at most 63 of a-z, 0-9 and -, beginning with a letter",
}
_PATH_SEGMENT = {"pattern": r"^[^/%]+$", "x-why": "free of / and %"}
_PORT_NAME = {
    "pattern": r"^(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "maxLength": 15,
    "x-why": "a port name: at most 15 of a-z, 0-9 and single -, with a letter among them",
}
_LABEL_VALUE = {
    "pattern": r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
    "maxLength": 63,
    "x-why": "a label value: at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit",
}
_QUALIFIED = {
    "pattern": r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
    "x-why": "a qualified name: an optional DNS prefix and /, then at most 63 letters, digits, -, _ and .",
}
_LABELS = {"propertyNames": _QUALIFIED, "additionalProperties": _LABEL_VALUE}
_PORT = {"minimum": 1, "maximum": 65535, "x-why": "a port from 1 to 65535"}
_PORT_OR_NAME = {"if": {"type": "integer"}, "then": _PORT, "else": _PORT_NAME}
_KEYS = {
    "propertyNames": {"pattern": r"^[-._a-zA-Z0-9]+$", "maxLength": 253, "x-why": "of letters, digits, -, _ and ."}
}


def _one_of(*values: str) -> dict:
    return {"enum": [*values, None], "x-why": "one of " + ", ".join(values)}


# (definition without its io.k8s. prefix, property) -> what an API server demands of it beyond the published schema.
REFINEMENTS: dict[tuple[str, str], dict] = {
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "labels"): _LABELS,
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "annotations"): {"propertyNames": _QUALIFIED},
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "namespace"): _LABEL,
    ("apimachinery.pkg.apis.meta.v1.LabelSelector", "matchLabels"): _LABELS,
    ("apimachinery.pkg.apis.meta.v1.LabelSelectorRequirement", "operator"): _one_of(
        "In", "NotIn", "Exists", "DoesNotExist"
    ),
    ("api.autoscaling.v2.HorizontalPodAutoscalerSpec", "minReplicas"): {"minimum": 0},
    ("api.autoscaling.v2.HorizontalPodAutoscalerSpec", "maxReplicas"): {"minimum": 1},
    ("api.apps.v1.DeploymentSpec", "replicas"): {"minimum": 0},
    ("api.apps.v1.StatefulSetSpec", "replicas"): {"minimum": 0},
    ("api.core.v1.ConfigMap", "data"): _KEYS,
    ("api.core.v1.ConfigMap", "binaryData"): _KEYS,
    ("api.core.v1.Secret", "data"): _KEYS,
    ("api.core.v1.Secret", "stringData"): _KEYS,
    ("api.core.v1.Container", "name"): _LABEL,
    ("api.core.v1.Container", "imagePullPolicy"): _one_of("Always", "IfNotPresent", "Never"),
    ("api.core.v1.ContainerPort", "containerPort"): _PORT,
    ("api.core.v1.ContainerPort", "hostPort"): _PORT,
    ("api.core.v1.ContainerPort", "name"): _PORT_NAME,
    ("api.core.v1.ContainerPort", "protocol"): _one_of("TCP", "UDP", "SCTP"),
    ("api.core.v1.EnvVar", "name"): {"pattern": r"^[ -<>-~]+$", "x-why": "printable ASCII without ="},
    ("api.core.v1.GRPCAction", "port"): _PORT,
    ("api.core.v1.HTTPGetAction", "port"): _PORT_OR_NAME,
    ("api.core.v1.HTTPGetAction", "scheme"): _one_of("HTTP", "HTTPS"),
    ("api.core.v1.TCPSocketAction", "port"): _PORT_OR_NAME,
    ("api.core.v1.PodSpec", "nodeSelector"): _LABELS,
    ("api.core.v1.PodSpec", "restartPolicy"): _one_of("Always", "OnFailure", "Never"),
    ("api.core.v1.PodSpec", "terminationGracePeriodSeconds"): {"minimum": 0},
    ("api.core.v1.SeccompProfile", "type"): _one_of("RuntimeDefault", "Localhost", "Unconfined"),
    ("api.core.v1.ServicePort", "name"): _LABEL,
    ("api.core.v1.ServicePort", "nodePort"): _PORT,
    ("api.core.v1.ServicePort", "port"): _PORT,
    ("api.core.v1.ServicePort", "protocol"): _one_of("TCP", "UDP", "SCTP"),
    ("api.core.v1.ServicePort", "targetPort"): _PORT_OR_NAME,
    ("api.core.v1.ServiceSpec", "selector"): _LABELS,
    ("api.core.v1.ServiceSpec", "type"): _one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    ("api.core.v1.Toleration", "effect"): _one_of("", "NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("api.core.v1.Toleration", "operator"): _one_of("", "Exists", "Equal", "Lt", "Gt"),
    ("api.core.v1.TopologySpreadConstraint", "maxSkew"): {"minimum": 1},
    ("api.core.v1.TopologySpreadConstraint", "whenUnsatisfiable"): _one_of("DoNotSchedule", "ScheduleAnyway"),
    ("api.core.v1.Volume", "name"): _LABEL,
    ("api.core.v1.VolumeMount", "mountPath"): {"minLength": 1, "pattern": "^[^:]+$", "x-why": "a path without :"},
    ("api.networking.v1.NetworkPolicyPort", "endPort"): _PORT,
    ("api.networking.v1.NetworkPolicyPort", "port"): _PORT_OR_NAME,
    ("api.networking.v1.NetworkPolicySpec", "policyTypes"): {"items": _one_of("Ingress", "Egress")},
    ("api.policy.v1.PodDisruptionBudgetSpec", "unhealthyPodEvictionPolicy"): _one_of("IfHealthyBudget", "AlwaysAllow"),
    ("api.rbac.v1.RoleRef", "kind"): _one_of("Role", "ClusterRole"),
    ("api.rbac.v1.Subject", "kind"): _one_of("ServiceAccount", "User", "Group"),
    ("api.scheduling.v1.PriorityClass", "value"): {"maximum": 1_000_000_000},
}
_QUANTITY_DEFINITION = "io.k8s.apimachinery.pkg.api.resource.Quantity"

# Names of objects: a DNS-1123 subdomain unless the kind asks for more; the numbers leave room for what the controller
# appends (https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/: 52, a Job's name becomes a pod label).
_NAMES: dict[tuple[str, str], dict] = {
    ("", "Namespace"): _LABEL,
    ("", "Service"): _SERVICE_NAME,
    ("apps", "StatefulSet"): _LABEL,
    ("batch", "CronJob"): {**_SUBDOMAIN, "maxLength": 52, "x-why": "a DNS-1123 subdomain of at most 52 characters"},
    ("batch", "Job"): {**_SUBDOMAIN, "maxLength": 63, "x-why": "a DNS-1123 subdomain of at most 63 characters"},
} | {
    ("rbac.authorization.k8s.io", kind): _PATH_SEGMENT
    for kind in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
}

class _BuiltIn:
    """The strict schemas of one Kubernetes version, with references inlined: twice as fast as resolving them."""

    def __init__(self, version: str) -> None:
        folder = _SCHEMAS / f"v{version}.0-local-strict"
        if not folder.is_dir():
            have = sorted(
                (f.name.removeprefix("v").removesuffix(".0-local-strict") for f in _SCHEMAS.glob("*-strict")),
                key=lambda v: [int(n) for n in v.split(".")],
            )
            package = f"kubernetes-validate {importlib.metadata.version('kubernetes-validate')}"
            raise ValueError(
                f"{package} has no schemas of Kubernetes {version}. "
                f"Set one of {', '.join(have)}, or a newer kubernetes-validate in pyproject.toml."
            )
        self._definitions = json.loads((folder / "_definitions.json").read_bytes())["$defs"]
        for (name, prop), more in REFINEMENTS.items():
            definition = self._definitions.get(f"io.k8s.{name}")
            if definition is None or prop not in definition["properties"]:
                raise ValueError(f"Kubernetes {version} has no {name}.{prop}: correct REFINEMENTS in {__file__}.")
            before = definition["properties"][prop]
            definition["properties"][prop] = {**before, "allOf": [*before.get("allOf", ()), more]}
        self._definitions[_QUANTITY_DEFINITION] = {"type": ["string", "number"], "format": "quantity"}
        self._names = {
            (g["group"], g["version"], g["kind"]): name
            for name, definition in self._definitions.items()
            for g in definition.get("x-kubernetes-group-version-kind", ())
        }
        self._inlined: dict[str, dict] = {}
        self._validators: dict[str, Any] = {}

    def validator(self, group: str, version: str, kind: str) -> Any | None:
        name = self._names.get((group, version, kind))
        if name is None:
            return None
        if name not in self._validators:
            self._validators[name] = Validator(self._definition(name))
        return self._validators[name]

    def metadata(self) -> Any:
        name = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
        return self._validators.setdefault(name, Validator(self._definition(name)))

    def _definition(self, name: str) -> dict:
        if name not in self._inlined:
            # Entered before it is filled: some definitions (JSONSchemaProps) contain themselves.
            self._inlined[name] = {}
            self._inlined[name].update(self._inline(self._definitions[name]))
        return self._inlined[name]

    def _inline(self, schema: Any) -> Any:
        if not isinstance(schema, Mapping):
            return schema
        if "$ref" in schema:
            target = self._definition(schema["$ref"].rpartition("/")[2])
            more = schema.get("allOf")
            return {"allOf": [target, *more]} if more else target
        out = {}
        for key, value in schema.items():
            if key in ("properties", "patternProperties"):
                out[key] = {k: self._inline(v) for k, v in value.items()}
            elif key in ("allOf", "anyOf", "oneOf"):
                out[key] = [self._inline(v) for v in value]
            elif key in ("items", "additionalProperties"):
                out[key] = self._inline(value)
            elif key not in ("description", "x-kubernetes-group-version-kind"):
                out[key] = value
        return out


@lru_cache(maxsize=4)
def _built_in(version: str) -> _BuiltIn:
    return _BuiltIn(version)


@lru_cache(maxsize=1)
def _catalogue() -> Catalogue:
    return Catalogue()


# A schema of a CRD is compiled once; the entry keeps the schema alive, so its id stays its own.
_custom: dict[int, tuple[Mapping, CustomResource]] = {}


def _custom_resource(schema: Mapping) -> CustomResource:
    entry = _custom.get(id(schema))
    if entry is None:
        entry = _custom[id(schema)] = (schema, CustomResource(schema))
    return entry[1]


def check_objects(
    objects: Sequence[Mapping],
    kubernetes_version: str = KUBERNETES_VERSION,
    *,
    namespace: str = "default",
    crds: Catalogue | None = None,
) -> list[Finding]:
    """What an API server of that version would refuse or silently drop, object by object.

    `kubernetes_version` is `1.36` or `v1.36.2` (the patch is ignored); `namespace` is where an object without one
    goes (the release's); `crds` holds the custom kinds, by default those pinned in crds.yaml. An object whose kind has
    no schema is a finding. Raises ValueError for a version without schemas and crds.CRDError where CRDs cannot be had.
    """
    built_in = _built_in(".".join(kubernetes_version.removeprefix("v").split(".")[:2]))
    crds = _catalogue() if crds is None else crds
    found = [f for obj in objects for f in _check(obj, built_in, crds)]
    return found + list(_duplicates(objects, namespace))


def _check(obj: Mapping, built_in: _BuiltIn, crds: Catalogue) -> Iterator[Finding]:
    if not isinstance(obj, Mapping) or not obj.get("apiVersion") or not obj.get("kind"):
        text = repr(obj)[:80]
        yield Finding(text, "", "schema", "not a Kubernetes object: apiVersion and kind must be set")
        return
    group, version = group_version(obj)
    kind, name = obj["kind"], name_of(obj)
    if kind == "List" or (kind.endswith("List") and isinstance(obj.get("items"), list)):
        yield Finding(name, "", "schema", "lists hide their objects from checks and policies: render each on its own")
        return
    validator = built_in.validator(group, version, kind)
    if validator is not None:
        broken = schema_findings(validator, obj, name)
        yield from broken
        if not broken:
            for rule in _RULES.get(kind, ()):
                yield from rule(obj)
            if pod := pod_spec(obj):
                yield from _pod(obj, *pod)
    elif (schema := crds.find(group, version, kind)) is not None:
        own = " (by this project's own schema)" if (group, version, kind) in crds.own else ""
        for finding in _custom_resource(schema).check(obj):
            yield Finding(finding.object, finding.path, finding.rule, finding.message + own)
        metadata = obj.get("metadata")
        if isinstance(metadata, Mapping):
            for finding in schema_findings(built_in.metadata(), metadata, name):
                yield Finding(name, f"metadata.{finding.path}".rstrip("."), finding.rule, finding.message)
    else:
        yield Finding(
            name,
            "",
            "no-schema",
            f"no schema for {kind} in {obj['apiVersion']}, so nothing vouches for it: correct apiVersion or kind, "
            "or pin the module that carries its CRD in manifests/crds.yaml",
        )
    yield from _name(obj, group)


def _name(obj: Mapping, group: str) -> Iterator[Finding]:
    metadata = obj.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not name:
        if not (isinstance(metadata, Mapping) and metadata.get("generateName")):
            yield Finding(name_of(obj), "metadata.name", "name", "every object needs a name")
        return
    for error in Validator(_NAMES.get((group, obj["kind"]), _SUBDOMAIN)).iter_errors(name):
        yield Finding(name_of(obj), "metadata.name", "name", f"{name!r} must be {error.schema['x-why']}")


def _duplicates(objects: Sequence[Mapping], namespace: str) -> Iterator[Finding]:
    seen = set()
    for obj in objects:
        metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
        if not isinstance(metadata, Mapping) or not metadata.get("name"):
            continue
        where = "" if obj.get("kind") in CLUSTER_SCOPED else metadata.get("namespace") or namespace
        key = (group_version(obj)[0], obj.get("kind"), where, metadata["name"])
        if key in seen:
            yield Finding(name_of(obj), "", "duplicate", "rendered twice: the later one overwrites the earlier one")
        seen.add(key)


def _pod(obj: Mapping, pod: Mapping, path: str) -> Iterator[Finding]:
    name = name_of(obj)
    seen: set[str] = set()
    for container, at in containers(pod, path):
        if container["name"] in seen:
            yield Finding(name, f"{at}.name", "container-names", f"{container['name']!r} names another container too")
        seen.add(container["name"])
        names = [p["name"] for p in container.get("ports") or () if p.get("name")]
        for port in sorted({n for n in names if names.count(n) > 1}):
            yield Finding(name, f"{at}.ports", "port-names", f"two ports are named {port!r}")
        yield from _resources(name, container.get("resources") or {}, f"{at}.resources")
        for index, variable in enumerate(container.get("env") or ()):
            if variable.get("value") and variable.get("valueFrom"):
                message = "value and valueFrom exclude each other"
                yield Finding(name, f"{at}.env[{index}]", "env", message)
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            settings = container.get(probe)
            if settings is None:
                continue
            if sum(1 for h in ("exec", "httpGet", "tcpSocket", "grpc") if settings.get(h) is not None) != 1:
                yield Finding(name, f"{at}.{probe}", "probe", "set exactly one of exec, httpGet, tcpSocket and grpc")
            if probe != "readinessProbe" and (settings.get("successThreshold") or 1) != 1:
                yield Finding(name, f"{at}.{probe}.successThreshold", "probe", "must be 1")
    for index, volume in enumerate(pod.get("volumes") or ()):
        sources = sorted(k for k, v in volume.items() if k != "name" and v is not None)
        if len(sources) > 1:
            message = f"a volume has one source, not {', '.join(sources)}"
            yield Finding(name, f"{path}.volumes[{index}]", "volume", message)
    policy = pod.get("restartPolicy") or "Always"
    job = obj["kind"] in ("Job", "CronJob")
    if obj["kind"] != "Pod" and job == (policy == "Always"):
        allowed = "OnFailure or Never (unset means Always)" if job else "Always"
        yield Finding(name, f"{path}.restartPolicy", "restart-policy", f"must be {allowed}")


def _resources(name: str, resources: Mapping, path: str) -> Iterator[Finding]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for resource in sorted({*limits, *requests}):
        limit, request = limits.get(resource), requests.get(resource, limits.get(resource))
        # Extended resources cannot be overcommitted: whole numbers, limit set, request equal
        # (https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#extended-resources).
        if "/" in resource and (limit is None or parse_quantity(limit) != parse_quantity(request)):
            message = f"{resource} cannot be overcommitted: set the same number as limit"
            yield Finding(name, f"{path}.limits", "resources", message)
        elif "/" in resource and parse_quantity(limit) % 1:
            yield Finding(name, f"{path}.limits", "resources", f"{resource} comes in whole numbers, not {limit!r}")
        elif limit is not None and parse_quantity(request) > parse_quantity(limit):
            message = f"requests {resource} {request}, more than its limit {limit}"
            yield Finding(name, f"{path}.requests", "resources", message)


def _service(obj: Mapping) -> Iterator[Finding]:
    spec = obj.get("spec") or {}
    ports = spec.get("ports") or ()
    if not ports and spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None":
        yield Finding(name_of(obj), "spec.ports", "service-ports", "a Service needs a port unless it is headless")
    names = [p.get("name") for p in ports]
    if len(ports) > 1 and not all(names):
        yield Finding(name_of(obj), "spec.ports", "service-ports", "with more than one port each needs a name")
    for port in sorted({n for n in names if n and names.count(n) > 1}):
        yield Finding(name_of(obj), "spec.ports", "service-ports", f"two ports are named {port!r}")


def _horizontal_pod_autoscaler(obj: Mapping) -> Iterator[Finding]:
    spec = obj["spec"]
    if (spec.get("minReplicas") or 1) > spec["maxReplicas"]:
        message = f"minReplicas {spec['minReplicas']} is above maxReplicas {spec['maxReplicas']}"
        yield Finding(name_of(obj), "spec.minReplicas", "hpa-range", message)


def _pod_disruption_budget(obj: Mapping) -> Iterator[Finding]:
    spec = obj.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        message = "minAvailable and maxUnavailable exclude each other: set one"
        yield Finding(name_of(obj), "spec", "pdb-fields", message)


def _config_size(obj: Mapping) -> Iterator[Finding]:
    size = sum(len(v.encode()) for field in ("data", "stringData") for v in (obj.get(field) or {}).values() if v)
    if size > 1_048_576:
        message = f"{size} bytes of data, above the limit of 1 MiB of an API server"
        yield Finding(name_of(obj), "data", "size", message)


_RULES = {
    "ConfigMap": (_config_size,),
    "HorizontalPodAutoscaler": (_horizontal_pod_autoscaler,),
    "PodDisruptionBudget": (_pod_disruption_budget,),
    "Secret": (_config_size,),
    "Service": (_service,),
}
