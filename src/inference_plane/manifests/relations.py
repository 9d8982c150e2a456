"""Relations between rendered objects: names, ports, selectors and owners that no schema of one object can judge.

Each rule is a small function over an index of the whole render and says in its docstring why it is one. Objects that a
controller or a person makes outside the render are named by the caller (`external`), never guessed.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_plane.kube import Index, Workload, group_version, matches, meta, name_of

from .findings import Finding

_BUILT_IN_CLUSTER_ROLES = re.compile(r"cluster-admin|admin|edit|view|system:.+")


def _show(selector: Mapping | None) -> str:
    selector = selector or {}
    terms = [f"{k}={v}" for k, v in (selector.get("matchLabels") or {}).items()]
    terms += [
        f"{t['key']} {t['operator']} {','.join(t.get('values') or ())}".strip()
        for t in selector.get("matchExpressions") or ()
    ]
    return ", ".join(terms) or "(everything)"


def _list(names: Collection) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


def service_selector(ix: Index) -> Iterator[Finding]:
    """A Service that selects no pod, or targets a port name that its pods lack, has no endpoints and says nothing."""
    rule = "service-selector"
    for service in ix.kind("Service"):
        spec = service.get("spec") or {}
        if group_version(service)[0] or not spec.get("selector"):
            continue
        pods = ix.pods(ix.namespace_of(service), {"matchLabels": spec["selector"]})
        if not pods:
            message = f"no rendered pod in {ix.namespace_of(service)} has {_show({'matchLabels': spec['selector']})}"
            yield Finding(name_of(service), "spec.selector", rule, message)
        for index, port in enumerate(spec.get("ports") or ()):
            target = port.get("targetPort")
            for pod in pods:
                if isinstance(target, str) and target not in pod.port_names():
                    message = f"{pod.kind} {pod.name} has no port named {target!r}, only {_list(pod.port_names())}"
                    yield Finding(name_of(service), f"spec.ports[{index}].targetPort", rule, message)


def _produced(ix: Index, namespace: str, kind: str, name: str, items: Any) -> set[str] | None:
    """The file names that a ConfigMap or Secret volume makes; None where the object is not in the render."""
    if items:
        return {item["path"] for item in items}
    return _keys(ix.get(kind, namespace, name))


def _keys(obj: Mapping | None) -> set[str] | None:
    if obj is None:
        return None
    return {key for field in ("data", "binaryData", "stringData") for key in obj.get(field) or {}}


@dataclass(frozen=True)
class _Reference:
    """What a pod needs by name: `keys` must be in it; an optional one may be missing."""

    kind: str
    name: str
    path: str
    keys: tuple[str, ...] = ()
    optional: bool = False


def _volume_references(pod: Mapping, path: str) -> Iterator[_Reference]:
    for index, volume in enumerate(pod.get("volumes") or ()):
        at = f"{path}.volumes[{index}]"
        sources = [(volume, at)]
        sources += [(s, f"{at}.projected.sources[{i}]") for i, s in enumerate(_in(volume, "projected", "sources"))]
        for source, here in sources:
            for field, kind, name_field in (
                ("configMap", "ConfigMap", "name"),
                ("secret", "Secret", "secretName" if source is volume else "name"),
            ):
                if (ref := source.get(field)) is not None:
                    keys = tuple(item["key"] for item in ref.get("items") or ())
                    yield _Reference(kind, ref.get(name_field, ""), f"{here}.{field}", keys, bool(ref.get("optional")))
        if claim := volume.get("persistentVolumeClaim"):
            yield _Reference("PersistentVolumeClaim", claim["claimName"], f"{at}.persistentVolumeClaim")


def _in(obj: Mapping, *path: str) -> Any:
    for part in path:
        obj = obj.get(part) or {}
    return obj or ()


def _references(workload: Workload) -> Iterator[_Reference]:
    pod, path = workload.pod, workload.path
    yield from _volume_references(pod, path)
    if account := pod.get("serviceAccountName"):
        yield _Reference("ServiceAccount", account, f"{path}.serviceAccountName")
    for index, secret in enumerate(pod.get("imagePullSecrets") or ()):
        yield _Reference("Secret", secret.get("name", ""), f"{path}.imagePullSecrets[{index}]")
    for container, at in workload.containers:
        for index, source in enumerate(container.get("envFrom") or ()):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if ref := source.get(field):
                    here = f"{at}.envFrom[{index}].{field}"
                    yield _Reference(kind, ref.get("name", ""), here, optional=bool(ref.get("optional")))
        for index, variable in enumerate(container.get("env") or ()):
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if ref := (variable.get("valueFrom") or {}).get(field):
                    here = f"{at}.env[{index}].valueFrom.{field}"
                    yield _Reference(kind, ref.get("name", ""), here, (ref["key"],), bool(ref.get("optional")))


def references(ix: Index) -> Iterator[Finding]:
    """A pod whose ConfigMap, Secret, ServiceAccount or claim is missing stays Pending or in ContainerCreating."""
    for workload in ix.workloads:
        for ref in _references(workload):
            if not ix.exists(ref.kind, workload.namespace, ref.name):
                if not ref.optional:
                    message = (
                        f"{ref.kind} {workload.namespace}/{ref.name} is not in the render: render it, "
                        "correct the name, or pass it as external"
                    )
                    yield Finding(name_of(workload.obj), ref.path, "references", message)
                continue
            keys = _keys(ix.get(ref.kind, workload.namespace, ref.name))
            for key in ref.keys:
                if keys is not None and key not in keys and not ref.optional:
                    message = f"{ref.kind} {ref.name} has no key {key!r}, only {_list(keys)}"
                    yield Finding(name_of(workload.obj), ref.path, "references", message)


def volume_mounts(ix: Index) -> Iterator[Finding]:
    """An API server refuses a mount of no volume and two on one path; a subPath without file is an empty folder."""
    rule = "volume-mounts"
    for workload in ix.workloads:
        volumes = {v["name"]: v for v in workload.pod.get("volumes") or ()}
        claims = {meta(t).get("name") for t in (workload.obj.get("spec") or {}).get("volumeClaimTemplates") or ()}
        for container, at in workload.containers:
            paths: set[str] = set()
            for index, mount in enumerate(container.get("volumeMounts") or ()):
                here = f"{at}.volumeMounts[{index}]"
                if mount["name"] not in volumes and mount["name"] not in claims:
                    message = f"no volume is named {mount['name']!r}, only {_list(volumes.keys() | claims)}"
                    yield Finding(name_of(workload.obj), here, rule, message)
                path = mount["mountPath"].rstrip("/") or "/"
                if path in paths:
                    yield Finding(name_of(workload.obj), here, rule, f"something else is mounted on {path} already")
                paths.add(path)
                files = _files(ix, workload.namespace, volumes.get(mount["name"], {}))
                sub = (mount.get("subPath") or "").split("/")[0]
                if sub and files is not None and sub not in {f.split("/")[0] for f in files}:
                    message = f"the volume {mount['name']!r} has no {sub!r}, only {_list(files)}"
                    yield Finding(name_of(workload.obj), f"{here}.subPath", rule, message)


def _files(ix: Index, namespace: str, volume: Mapping) -> set[str] | None:
    """The files that a volume of ConfigMaps and Secrets holds; None where the render cannot tell."""
    if (source := volume.get("configMap")) is not None:
        return _produced(ix, namespace, "ConfigMap", source.get("name", ""), source.get("items"))
    if (source := volume.get("secret")) is not None:
        return _produced(ix, namespace, "Secret", source.get("secretName", ""), source.get("items"))
    files: set[str] = set()
    sources = _in(volume, "projected", "sources")
    for source in sources:
        kind = "ConfigMap" if source.get("configMap") else "Secret" if source.get("secret") else None
        ref = source.get("configMap") or source.get("secret")
        some = _produced(ix, namespace, kind, ref.get("name", ""), ref.get("items")) if kind and ref else None
        if some is None:
            return None
        files |= some
    return files if sources else None


def named_ports(ix: Index) -> Iterator[Finding]:
    """A probe or hook on a port name that its container lacks fails for ever; one used twice in a pod is a lottery."""
    for workload in ix.workloads:
        name = name_of(workload.obj)
        seen: set[str] = set()
        for container, at in workload.containers:
            names = {p["name"] for p in container.get("ports") or () if p.get("name")}
            for twice in sorted(seen & names):
                message = f"another container of the pod has a port named {twice!r}: a Service would take the first"
                yield Finding(name, f"{at}.ports", "named-ports", message)
            seen |= names
            lifecycle = container.get("lifecycle") or {}
            handlers = [(p, container.get(p)) for p in ("livenessProbe", "readinessProbe", "startupProbe")]
            handlers += [(f"lifecycle.{hook}", lifecycle.get(hook)) for hook in ("postStart", "preStop")]
            for where, handler in handlers:
                for action in ("httpGet", "tcpSocket"):
                    port = ((handler or {}).get(action) or {}).get("port")
                    if isinstance(port, str) and port not in names:
                        message = f"the container has no port named {port!r}, only {_list(names)}"
                        yield Finding(name, f"{at}.{where}.{action}.port", "named-ports", message)


def _policy_types(spec: Mapping) -> set[str]:
    # Unset, a policy is for ingress, and for egress only where it has egress rules (NetworkPolicySpec.policyTypes).
    return set(spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]))


def network_policies(ix: Index) -> Iterator[Finding]:
    """A policy without pods protects nothing, and a pod that none selects is open in a render that means to close."""
    rule = "network-policies"
    policies = [p for p in ix.kind("NetworkPolicy") if group_version(p)[0] == "networking.k8s.io"]
    covered: dict[Workload, set[str]] = {w: set() for w in ix.workloads}
    for policy in policies:
        spec = policy.get("spec") or {}
        selected = ix.pods(ix.namespace_of(policy), spec.get("podSelector") or {})
        if not selected:
            message = (
                f"no rendered pod in {ix.namespace_of(policy)} has {_show(spec.get('podSelector'))}: a dead policy"
            )
            yield Finding(name_of(policy), "spec.podSelector", rule, message)
        for workload in selected:
            covered[workload] |= _policy_types(spec)
            for i, entry in enumerate(spec.get("ingress") or ()):
                for j, port in enumerate(entry.get("ports") or ()):
                    name = port.get("port")
                    if isinstance(name, str) and name not in workload.port_names():
                        message = f"{workload.kind} {workload.name} has no port named {name!r}"
                        yield Finding(name_of(policy), f"spec.ingress[{i}].ports[{j}].port", rule, message)
    if policies:
        for workload, kinds in covered.items():
            for kind in sorted({"Ingress", "Egress"} - kinds):
                message = f"the render has NetworkPolicies, but none for {kind} selects these pods"
                yield Finding(name_of(workload.obj), "", rule, message)


def _minimum(ix: Index, workload: Workload) -> int:
    """The fewest replicas that a workload may have at rest, at least one: with none there is nothing to disrupt."""
    for scaler in ix.scalers_of(workload):
        spec = scaler["spec"]
        return max(1, spec.get("minReplicaCount" if scaler["kind"] == "ScaledObject" else "minReplicas") or 0)
    return max(1, 1 if workload.replicas is None else workload.replicas)


def _count(value: int | str, replicas: int) -> int:
    """Pods behind a number or a percentage; Kubernetes rounds up for both fields of a PodDisruptionBudget."""
    return math.ceil(int(value.rstrip("%")) * replicas / 100) if isinstance(value, str) else value


def disruption_budgets(ix: Index) -> Iterator[Finding]:
    """A budget that never allows an eviction stops node drains and Karpenter; one on two workloads guards neither."""
    rule = "disruption-budgets"
    for budget in ix.kind("PodDisruptionBudget"):
        spec, name = budget.get("spec") or {}, name_of(budget)
        selected = ix.pods(ix.namespace_of(budget), spec.get("selector") or {})
        if len(selected) != 1:
            message = f"selects {_list(f'{w.kind} {w.name}' for w in selected)}: it must select exactly one workload"
            yield Finding(name, "spec.selector", rule, message)
        unavailable, available = spec.get("maxUnavailable"), spec.get("minAvailable")
        if unavailable is None and available is None:
            yield Finding(name, "spec", rule, "set maxUnavailable or minAvailable")
        elif unavailable is not None and _count(unavailable, 100) == 0:
            yield Finding(name, "spec.maxUnavailable", rule, "0 blocks every eviction: set at least 1")
        for workload in selected if available is not None else ():
            least = _minimum(ix, workload)
            if _count(available, least) >= least:
                message = f"{available} of {least} replicas blocks every eviction: set less, or maxUnavailable: 1"
                yield Finding(name, "spec.minAvailable", rule, message)


def scalers(ix: Index) -> Iterator[Finding]:
    """One owner for `replicas`: a number beside a scaler overwrites it at each upgrade; neither of the two means 1."""
    rule = "scalers"
    for scaler, namespace, kind, target in ix.scalers:
        if not ix.exists(kind, namespace, target):
            message = f"{kind} {namespace}/{target} is not in the render: correct name, kind or namespace"
            yield Finding(name_of(scaler), "spec.scaleTargetRef", rule, message)
    for workload in ix.workloads:
        if workload.kind not in ("Deployment", "StatefulSet"):
            continue
        owners, name = ix.scalers_of(workload), name_of(workload.obj)
        if len(owners) > 1:
            message = f"{len(owners)} scalers own it ({_list(name_of(o) for o in owners)}): they fight"
            yield Finding(name, "spec.replicas", rule, message)
        if owners and workload.replicas is not None:
            message = f"{name_of(owners[0])} owns replicas: do not render them"
            yield Finding(name, "spec.replicas", rule, message)
        if not owners and workload.replicas is None:
            yield Finding(name, "spec.replicas", rule, "no scaler targets it: render replicas")


def _monitored_namespaces(ix: Index, monitor: Mapping) -> set[str]:
    selector = (monitor.get("spec") or {}).get("namespaceSelector") or {}
    if selector.get("any"):
        return {ix.namespace_of(o) for o in ix.objects}
    return set(selector.get("matchNames") or (ix.namespace_of(monitor),))


def monitors(ix: Index) -> Iterator[Finding]:
    """A monitor that matches nothing scrapes nothing, and an alert on an absent metric never fires."""
    rule = "monitors"
    for monitor in ix.kind("PodMonitor"):
        spec, name = monitor.get("spec") or {}, name_of(monitor)
        namespaces = _monitored_namespaces(ix, monitor)
        pods = [w for ns in sorted(namespaces) for w in ix.pods(ns, spec.get("selector") or {})]
        if not pods:
            message = f"no rendered pod in {_list(namespaces)} has {_show(spec.get('selector'))}"
            yield Finding(name, "spec.selector", rule, message)
        for index, endpoint in enumerate(spec.get("podMetricsEndpoints") or ()):
            for pod in pods:
                known = {"port": pod.port_names(), "portNumber": pod.port_numbers()}
                yield from _endpoint(endpoint, known, name, f"spec.podMetricsEndpoints[{index}]", pod)
    for monitor in ix.kind("ServiceMonitor"):
        spec, name = monitor.get("spec") or {}, name_of(monitor)
        namespaces = _monitored_namespaces(ix, monitor)
        services = [
            s
            for s in ix.kind("Service")
            if ix.namespace_of(s) in namespaces and matches(spec.get("selector"), meta(s).get("labels") or {})
        ]
        if not services:
            message = f"no rendered Service in {_list(namespaces)} is labelled {_show(spec.get('selector'))}"
            yield Finding(name, "spec.selector", rule, message)
        for index, endpoint in enumerate(spec.get("endpoints") or ()):
            for service in services:
                known = {p.get("name") for p in (service.get("spec") or {}).get("ports") or ()}
                yield from _endpoint(endpoint, {"port": known}, name, f"spec.endpoints[{index}]", service)


def _endpoint(
    endpoint: Mapping, known: Mapping[str, set], name: str, path: str, target: Workload | Mapping
) -> Iterator[Finding]:
    obj = target.obj if isinstance(target, Workload) else target
    for field, ports in known.items():
        if (port := endpoint.get(field)) is not None and port not in ports:
            message = f"{name_of(obj)} has no port {port!r}, only {_list(p for p in ports if p)}"
            yield Finding(name, f"{path}.{field}", "monitors", message)


def bindings(ix: Index) -> Iterator[Finding]:
    """A binding to a role or account that does not exist grants nothing, silently."""
    for binding in ix.kind("RoleBinding", "ClusterRoleBinding"):
        name, namespace = name_of(binding), ix.namespace_of(binding)
        role = binding.get("roleRef") or {}
        kind, role_name = role.get("kind", ""), role.get("name", "")
        built_in = kind == "ClusterRole" and _BUILT_IN_CLUSTER_ROLES.fullmatch(role_name)
        if binding["kind"] == "ClusterRoleBinding" and kind == "Role":
            yield Finding(name, "roleRef.kind", "bindings", "a ClusterRoleBinding binds a ClusterRole")
        elif not built_in and not ix.exists(kind, "" if kind == "ClusterRole" else namespace, role_name):
            yield Finding(name, "roleRef", "bindings", f"{kind} {role_name} is not in the render")
        for index, subject in enumerate(binding.get("subjects") or ()):
            if subject.get("kind") != "ServiceAccount":
                continue
            # A ServiceAccount subject states its namespace; a server refuses one without it.
            if not subject.get("namespace"):
                message = "a ServiceAccount subject needs a namespace"
                yield Finding(name, f"subjects[{index}].namespace", "bindings", message)
            elif not ix.exists("ServiceAccount", subject["namespace"], subject.get("name", "")):
                message = f"ServiceAccount {subject['namespace']}/{subject.get('name')} is not in the render"
                yield Finding(name, f"subjects[{index}]", "bindings", message)


def tokens(ix: Index) -> Iterator[Finding]:
    """A pod that never calls the API server carries no token for it (NSA/CISA hardening guide, CIS 5.1.6)."""
    for account in ix.kind("ServiceAccount"):
        bound = (ix.namespace_of(account), meta(account).get("name")) in ix.bound_accounts
        if not bound and account.get("automountServiceAccountToken") is not False:
            message = "no binding names it: set automountServiceAccountToken: false"
            yield Finding(name_of(account), "automountServiceAccountToken", "tokens", message)
    for workload in ix.workloads:
        account, mount = workload.pod.get("serviceAccountName"), workload.pod.get("automountServiceAccountToken")
        bound = (workload.namespace, account) in ix.bound_accounts
        if not bound and (mount is True or (mount is None and not account)):
            message = "its account has no binding: set automountServiceAccountToken: false"
            path = f"{workload.path}.automountServiceAccountToken"
            yield Finding(name_of(workload.obj), path, "tokens", message)


def workload_selectors(ix: Index) -> Iterator[Finding]:
    """A selector that misses its own pods is refused; one that takes another workload's pods makes the two fight."""
    rule = "workload-selectors"
    for workload in ix.workloads:
        if workload.kind not in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"):
            continue
        selector, name = (workload.obj.get("spec") or {}).get("selector") or {}, name_of(workload.obj)
        if not matches(selector, workload.labels):
            message = (
                f"{_show(selector)} does not match the template's labels {_show({'matchLabels': workload.labels})}"
            )
            yield Finding(name, "spec.selector", rule, message)
        for other in ix.pods(workload.namespace, selector):
            if other is not workload:
                message = f"{_show(selector)} also matches the pods of {name_of(other.obj)}: tell them apart by a label"
                yield Finding(name, "spec.selector", rule, message)


_SLEEP = re.compile(r"\bsleep\s+(\d+)")


def drain(ix: Index) -> Iterator[Finding]:
    """The grace period includes the preStop hook; a sleep that uses it up leaves SIGKILL as the only signal."""
    for workload in ix.workloads:
        grace = workload.pod.get("terminationGracePeriodSeconds")
        grace = 30 if grace is None else grace
        for container, at in workload.containers:
            hook = (container.get("lifecycle") or {}).get("preStop") or {}
            command = " ".join(map(str, (hook.get("exec") or {}).get("command") or ()))
            seconds = (hook.get("sleep") or {}).get("seconds") or sum(map(int, _SLEEP.findall(command)))
            if seconds >= grace:
                message = (
                    f"sleeps {seconds} s of a terminationGracePeriodSeconds of {grace}: nothing is left to stop in"
                )
                yield Finding(name_of(workload.obj), f"{at}.lifecycle.preStop", "drain", message)


_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\Z")
_TAG = re.compile(r":([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})\Z")


def images(ix: Index) -> Iterator[Finding]:
    """An image without tag or digest, or `latest`, is another one tomorrow: no rollback and no audit."""
    for workload in ix.workloads:
        named = [(c.get("image"), f"{at}.image") for c, at in workload.containers]
        named += [
            ((v.get("image") or {}).get("reference"), f"{workload.path}.volumes[{i}].image.reference")
            for i, v in enumerate(workload.pod.get("volumes") or ())
            if v.get("image")
        ]
        for image, path in named:
            image = image or ""
            tag = _TAG.search(image.rpartition("/")[2].partition("@")[0])
            if "@" in image and not _DIGEST.search(image):
                yield Finding(name_of(workload.obj), path, "images", f"{image!r} has no well-formed sha256 digest")
            elif "@" not in image and (tag is None or tag[1] == "latest"):
                yield Finding(
                    name_of(workload.obj), path, "images", f"{image!r} needs a tag other than latest, or a digest"
                )


_SAFE_VOLUMES = frozenset(
    "name configMap csi downwardAPI emptyDir ephemeral persistentVolumeClaim projected secret image".split()
)


def pod_security(ix: Index) -> Iterator[Finding]:
    """The restricted Pod Security Standard, which the namespaces enforce: other pods are refused when they start.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    for workload in ix.workloads:
        pod, path = workload.pod, workload.path
        for at, message in _insecure(pod, path, workload.containers):
            yield Finding(name_of(workload.obj), at, "pod-security", message)


def _insecure(pod: Mapping, path: str, found: list[tuple[Mapping, str]]) -> Iterator[tuple[str, str]]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{path}.{field}", "restricted Pod Security forbids it"
    for index, volume in enumerate(pod.get("volumes") or ()):
        for kind in sorted(k for k, v in volume.items() if v is not None and k not in _SAFE_VOLUMES):
            yield f"{path}.volumes[{index}].{kind}", "restricted Pod Security forbids this kind of volume"
    shared = pod.get("securityContext") or {}
    if shared.get("runAsUser") == 0:
        yield f"{path}.securityContext.runAsUser", "must not be 0"
    for container, at in found:
        own, at = container.get("securityContext") or {}, f"{at}.securityContext"
        capabilities = own.get("capabilities") or {}
        non_root = own["runAsNonRoot"] if own.get("runAsNonRoot") is not None else shared.get("runAsNonRoot")
        seccomp = (own.get("seccompProfile") or shared.get("seccompProfile") or {}).get("type")
        if own.get("privileged"):
            yield f"{at}.privileged", "must not be true"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{at}.allowPrivilegeEscalation", "must be false"
        if "ALL" not in (capabilities.get("drop") or ()):
            yield f"{at}.capabilities.drop", "must hold ALL"
        if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
            yield f"{at}.capabilities.add", "may hold NET_BIND_SERVICE alone"
        if non_root is not True:
            yield f"{at}.runAsNonRoot", "must be true, here or for the pod"
        if own.get("runAsUser") == 0:
            yield f"{at}.runAsUser", "must not be 0"
        if seccomp not in ("RuntimeDefault", "Localhost"):
            yield f"{at}.seccompProfile.type", "must be RuntimeDefault or Localhost, here or for the pod"
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                yield at.replace(".securityContext", ".ports"), f"hostPort {port['hostPort']}: restricted forbids it"


def _ingress_services(spec: Mapping) -> Iterator[tuple[str, str, Any]]:
    """(path, name of the Service, name or number of its port) of each backend of an Ingress."""
    backends = [("spec.defaultBackend", spec.get("defaultBackend"))]
    backends += [
        (f"spec.rules[{i}].http.paths[{j}].backend", path.get("backend"))
        for i, rule in enumerate(spec.get("rules") or ())
        for j, path in enumerate(_in(rule, "http", "paths"))
    ]
    for path, backend in backends:
        wanted = (backend or {}).get("service") or {}
        port = wanted.get("port") or {}
        # With `use-annotation` the AWS Load Balancer Controller reads an action, not a Service.
        if wanted and port.get("name") != "use-annotation":
            yield f"{path}.service", wanted["name"], port.get("name") or port.get("number")


def _route_services(spec: Mapping) -> Iterator[tuple[str, str, Any]]:
    """The same of an HTTPRoute; backends in other namespaces need a ReferenceGrant and are not judged."""
    for i, rule in enumerate(spec.get("rules") or ()):
        for j, backend in enumerate(rule.get("backendRefs") or ()):
            if backend.get("kind", "Service") == "Service" and not backend.get("namespace"):
                yield f"spec.rules[{i}].backendRefs[{j}]", backend["name"], backend.get("port")


_ROUTERS = {
    ("networking.k8s.io", "Ingress"): _ingress_services,
    ("gateway.networking.k8s.io", "HTTPRoute"): _route_services,
}


def ingress_backends(ix: Index) -> Iterator[Finding]:
    """An Ingress or HTTPRoute to a Service or port that does not exist is an ALB rule that answers 503."""
    for route in ix.kind("Ingress", "HTTPRoute"):
        services = _ROUTERS.get((group_version(route)[0], route["kind"]))
        for path, wanted, port in services(route.get("spec") or {}) if services else ():
            service = ix.get("Service", ix.namespace_of(route), wanted)
            if service is None:
                if not ix.exists("Service", ix.namespace_of(route), wanted):
                    message = f"Service {ix.namespace_of(route)}/{wanted} is not in the render"
                    yield Finding(name_of(route), path, "ingress-backends", message)
                continue
            ports = (service.get("spec") or {}).get("ports") or ()
            if port not in {p.get("name") for p in ports} | {p.get("port") for p in ports}:
                message = f"{name_of(service)} has no port {port!r}"
                yield Finding(name_of(route), f"{path}.port", "ingress-backends", message)


RULES: tuple[Callable[[Index], Iterator[Finding]], ...] = (
    service_selector,
    references,
    volume_mounts,
    named_ports,
    network_policies,
    disruption_budgets,
    scalers,
    monitors,
    bindings,
    tokens,
    workload_selectors,
    drain,
    images,
    pod_security,
    ingress_backends,
)


def check_relations(
    objects: Sequence[Mapping], *, namespace: str = "default", external: Collection[str] = ()
) -> list[Finding]:
    """What does not fit together in one render, hooks included. Expects objects that pass `check_objects`.

    `namespace` is where an object without one goes (the release's). `external` names what exists without being
    rendered, as `Secret models/registry` or, for cluster-scoped kinds, `ClusterRole auditor`.
    """
    index = Index(objects, namespace, external)
    return [finding for rule in RULES for finding in rule(index)]
