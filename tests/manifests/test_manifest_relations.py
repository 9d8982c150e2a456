"""Each relation between rendered objects: a small sound render, and one change that breaks exactly one rule."""

import copy
from collections.abc import Callable

import pytest
import yaml

from inference_plane.manifests import check, check_relations

SOUND = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: engine, namespace: models}
spec:
  replicas: 2
  selector: {matchLabels: {app: engine}}
  template:
    metadata: {labels: {app: engine, tier: model}}
    spec:
      serviceAccountName: engine
      terminationGracePeriodSeconds: 60
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      imagePullSecrets: [{name: registry}]
      initContainers:
        - name: fetch
          image: registry:5000/fetch:1.0
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      containers:
        - name: engine
          image: registry.example/vllm:v0.32.0
          ports: [{name: http, containerPort: 8000}, {name: metrics, containerPort: 8001}]
          envFrom: [{configMapRef: {name: settings}}, {secretRef: {name: maybe, optional: true}}]
          env:
            - name: MODE
              valueFrom: {configMapKeyRef: {name: settings, key: mode}}
          readinessProbe: {httpGet: {port: http, path: /health}}
          lifecycle: {preStop: {sleep: {seconds: 15}}}
          volumeMounts:
            - {name: settings, mountPath: /etc/settings.yaml, subPath: settings.yaml}
            - {name: all, mountPath: /etc/all}
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumes:
        - name: settings
          configMap: {name: settings, items: [{key: mode, path: settings.yaml}]}
        - name: all
          projected: {sources: [{configMap: {name: settings}}, {serviceAccountToken: {path: token}}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: models}
data: {mode: fast}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: engine, namespace: models}
automountServiceAccountToken: false
---
apiVersion: v1
kind: Service
metadata: {name: engine, namespace: models, labels: {app: engine}}
spec:
  selector: {app: engine}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: engine, namespace: models}
spec:
  podSelector: {matchLabels: {app: engine}}
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{port: http}]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: engine, namespace: models}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: engine}}}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: engine, namespace: models}
spec: {selector: {matchLabels: {app: engine}}, podMetricsEndpoints: [{port: metrics}]}
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: engine, namespace: models}
spec: {selector: {matchLabels: {app: engine}}, endpoints: [{port: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: policy, namespace: models}
spec:
  selector: {matchLabels: {app: policy}}
  template:
    metadata: {labels: {app: policy}}
    spec:
      serviceAccountName: policy
      containers:
        - name: policy
          image: registry.example/policy@sha256:HASH
          securityContext:
            runAsNonRoot: true
            allowPrivilegeEscalation: false
            seccompProfile: {type: RuntimeDefault}
            capabilities: {drop: [ALL]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: policy, namespace: models}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: policy, namespace: models}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: policy, namespace: models}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: policy}
subjects: [{kind: ServiceAccount, name: policy, namespace: models}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: policy, namespace: models}
spec: {podSelector: {matchLabels: {app: policy}}, policyTypes: [Ingress, Egress]}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: policy, namespace: models}
spec:
  scaleTargetRef: {name: policy}
  minReplicaCount: 1
  maxReplicaCount: 3
  triggers: [{type: cpu, metricType: Utilization, metadata: {value: "60"}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: front, namespace: models}
spec:
  rules:
    - http:
        paths: [{path: /, pathType: Prefix, backend: {service: {name: engine, port: {name: http}}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front, namespace: models}
spec:
  rules: [{backendRefs: [{name: engine, port: 80}]}]
""".replace("HASH", "0" * 64)
EXTERNAL = ["Secret models/registry"]
ENGINE, POLICY = "Deployment engine", "Deployment policy"
POD = "spec.template.spec."


def sound() -> list[dict]:
    return list(yaml.safe_load_all(SOUND))


def change(objects: list[dict], target: str, path: str, value: object) -> None:
    """Sets one field; `path` is dotted, numbers are list indices; DELETE removes it."""
    kind, name = target.split()
    node = next(o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    for part in parents:
        node = node[part] if isinstance(part, int) else node.setdefault(part, {})
    if value is DELETE:
        del node[last]
    else:
        node[last] = value


DELETE = object()


def test_the_sound_render_has_no_findings_of_any_kind():
    found = check(sound(), external=EXTERNAL)
    assert not found, "\n".join(map(str, found))


def test_a_render_in_the_release_namespace_is_judged_alike():
    objects = sound()
    for obj in objects:
        del obj["metadata"]["namespace"]
    assert not check_relations(objects, namespace="models", external=EXTERNAL)


C, INIT = POD + "containers.0.", POD + "initContainers.0."
BREAKS = [
    # (rule, object, path, value, words of the message)
    ("service-selector", "Service engine", "spec.selector.app", "other", "no rendered pod"),
    ("service-selector", "Service engine", "spec.ports.0.targetPort", "grpc", "no port named 'grpc'"),
    ("references", ENGINE, POD + "serviceAccountName", "nobody", "ServiceAccount models/nobody"),
    ("references", ENGINE, POD + "imagePullSecrets.0.name", "other", "Secret models/other"),
    ("references", ENGINE, C + "envFrom.0.configMapRef.name", "gone", "ConfigMap models/gone"),
    ("references", ENGINE, C + "env.0.valueFrom.configMapKeyRef.key", "gone", "no key 'gone'"),
    ("references", ENGINE, C + "env.0.valueFrom", {"secretKeyRef": {"name": "s", "key": "k"}}, "Secret models/s"),
    ("references", ENGINE, POD + "volumes.0.configMap.items.0.key", "gone", "no key 'gone'"),
    ("references", ENGINE, POD + "volumes.1.projected.sources.0.configMap.name", "gone", "ConfigMap models/gone"),
    ("references", ENGINE, POD + "volumes.1", {"name": "all", "secret": {"secretName": "gone"}}, "Secret models/gone"),
    (
        "references",
        ENGINE,
        POD + "volumes.1",
        {"name": "all", "persistentVolumeClaim": {"claimName": "gone"}},
        "PersistentVolumeClaim models/gone",
    ),
    ("references", "ConfigMap settings", "metadata.namespace", "elsewhere", "ConfigMap models/settings"),
    ("volume-mounts", ENGINE, C + "volumeMounts.1.name", "gone", "no volume is named 'gone'"),
    ("volume-mounts", ENGINE, C + "volumeMounts.1.mountPath", "/etc/settings.yaml/", "mounted on /etc/settings.yaml"),
    ("volume-mounts", ENGINE, C + "volumeMounts.0.subPath", "gone.yaml", "has no 'gone.yaml'"),
    ("named-ports", ENGINE, C + "readinessProbe.httpGet.port", "gone", "no port named 'gone'"),
    ("named-ports", ENGINE, C + "lifecycle.postStart", {"httpGet": {"port": "gone"}}, "no port named 'gone'"),
    ("named-ports", ENGINE, INIT + "ports", [{"name": "http", "containerPort": 9}], "another container of the pod"),
    ("network-policies", "NetworkPolicy engine", "spec.podSelector.matchLabels.tier", "x", "a dead policy"),
    ("network-policies", "NetworkPolicy engine", "spec.policyTypes", ["Ingress"], "none for Egress"),
    ("network-policies", "NetworkPolicy policy", "spec.policyTypes", DELETE, "none for Egress"),
    ("network-policies", "NetworkPolicy engine", "spec.policyTypes", ["Egress"], "none for Ingress"),
    ("network-policies", "NetworkPolicy engine", "spec.ingress.0.ports.0.port", "gone", "no port named 'gone'"),
    ("disruption-budgets", "PodDisruptionBudget engine", "spec.maxUnavailable", 0, "blocks every eviction"),
    ("disruption-budgets", "PodDisruptionBudget engine", "spec.maxUnavailable", "0%", "blocks every eviction"),
    ("disruption-budgets", "PodDisruptionBudget engine", "spec.maxUnavailable", DELETE, "set maxUnavailable or"),
    ("disruption-budgets", "PodDisruptionBudget engine", "spec.selector.matchLabels.app", "gone", "selects none"),
    ("disruption-budgets", "PodDisruptionBudget engine", "spec.selector", {}, "exactly one workload"),
    (
        "disruption-budgets",
        "PodDisruptionBudget engine",
        "spec",
        {"minAvailable": "51%", "selector": {"matchLabels": {"app": "engine"}}},
        "51% of 2 replicas blocks",
    ),
    (
        "disruption-budgets",
        "PodDisruptionBudget engine",
        "spec",
        {"minAvailable": 1, "selector": {"matchLabels": {"app": "policy"}}},
        "1 of 1 replicas blocks",
    ),
    ("scalers", "ScaledObject policy", "spec.scaleTargetRef.name", "gone", "Deployment models/gone is not in"),
    ("scalers", "ScaledObject policy", "spec.scaleTargetRef.name", "gone", "no scaler targets it"),
    ("scalers", "ScaledObject policy", "spec.scaleTargetRef.kind", "StatefulSet", "StatefulSet models/policy"),
    ("scalers", POLICY, "spec.replicas", 2, "owns replicas: do not render them"),
    ("scalers", ENGINE, "spec.replicas", DELETE, "no scaler targets it"),
    ("monitors", "PodMonitor engine", "spec.selector.matchLabels.app", "gone", "no rendered pod"),
    ("monitors", "PodMonitor engine", "spec.podMetricsEndpoints.0.port", "gone", "no port 'gone'"),
    ("monitors", "PodMonitor engine", "spec.podMetricsEndpoints.0", {"portNumber": 9}, "no port 9"),
    ("monitors", "PodMonitor engine", "spec.namespaceSelector", {"matchNames": ["other"]}, "no rendered pod in other"),
    ("monitors", "ServiceMonitor engine", "spec.selector.matchLabels.app", "gone", "no rendered Service"),
    ("monitors", "ServiceMonitor engine", "spec.endpoints.0.port", "gone", "no port 'gone'"),
    ("bindings", "RoleBinding policy", "roleRef.name", "gone", "Role gone is not in the render"),
    ("bindings", "RoleBinding policy", "roleRef.kind", "ClusterRole", "ClusterRole policy is not in the render"),
    ("bindings", "RoleBinding policy", "kind", "ClusterRoleBinding", "binds a ClusterRole"),
    ("bindings", "RoleBinding policy", "subjects.0.name", "gone", "ServiceAccount models/gone"),
    ("bindings", "RoleBinding policy", "subjects.0.namespace", DELETE, "needs a namespace"),
    ("tokens", "ServiceAccount engine", "automountServiceAccountToken", True, "no binding names it"),
    ("tokens", "ServiceAccount engine", "automountServiceAccountToken", DELETE, "no binding names it"),
    ("tokens", ENGINE, POD + "automountServiceAccountToken", True, "its account has no binding"),
    ("tokens", ENGINE, POD + "serviceAccountName", DELETE, "its account has no binding"),
    ("workload-selectors", ENGINE, "spec.selector.matchLabels.app", "gone", "does not match the template's labels"),
    (
        "workload-selectors",
        ENGINE,
        "spec.selector",
        {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
        "also matches the pods of apps/v1 Deployment models/policy",
    ),
    ("drain", ENGINE, POD + "terminationGracePeriodSeconds", 15, "sleeps 15 s of a"),
    ("drain", ENGINE, C + "lifecycle.preStop", {"exec": {"command": ["sh", "-c", "sleep 60; true"]}}, "sleeps 60 s"),
    ("drain", ENGINE, C + "lifecycle.preStop", {"exec": {"command": ["sleep", "90"]}}, "sleeps 90 s"),
    ("images", ENGINE, C + "image", "registry.example/vllm:latest", "needs a tag other than latest"),
    ("images", ENGINE, C + "image", "registry:5000/vllm", "needs a tag other than latest"),
    ("images", ENGINE, C + "image", "registry.example/vllm@sha256:abc", "no well-formed sha256 digest"),
    ("images", ENGINE, INIT + "image", "fetch", "needs a tag other than latest"),
    ("images", ENGINE, POD + "volumes.2", {"name": "w", "image": {"reference": "weights"}}, "'weights' needs a tag"),
    ("pod-security", ENGINE, POD + "securityContext.runAsNonRoot", False, "must be true"),
    ("pod-security", ENGINE, POD + "securityContext.runAsUser", 0, "must not be 0"),
    ("pod-security", ENGINE, POD + "securityContext.seccompProfile", DELETE, "must be RuntimeDefault"),
    ("pod-security", ENGINE, POD + "hostNetwork", True, "forbids it"),
    ("pod-security", ENGINE, POD + "hostPID", True, "forbids it"),
    ("pod-security", ENGINE, POD + "hostIPC", True, "forbids it"),
    ("pod-security", ENGINE, POD + "volumes.2", {"name": "h", "hostPath": {"path": "/"}}, "this kind of volume"),
    ("pod-security", ENGINE, C + "ports.0.hostPort", 8000, "hostPort 8000"),
    ("pod-security", ENGINE, C + "securityContext.privileged", True, "must not be true"),
    ("pod-security", ENGINE, C + "securityContext.runAsUser", 0, "must not be 0"),
    ("pod-security", ENGINE, C + "securityContext.runAsNonRoot", False, "must be true"),
    ("pod-security", ENGINE, C + "securityContext.allowPrivilegeEscalation", DELETE, "must be false"),
    ("pod-security", ENGINE, C + "securityContext.capabilities.add", ["NET_ADMIN"], "NET_BIND_SERVICE alone"),
    ("pod-security", ENGINE, INIT + "securityContext.capabilities.drop", ["NET_RAW"], "must hold ALL"),
    (
        "ingress-backends",
        "Ingress front",
        "spec.rules.0.http.paths.0.backend.service.name",
        "gone",
        "Service models/gone",
    ),
    ("ingress-backends", "Ingress front", "spec.rules.0.http.paths.0.backend.service.port", {"number": 1}, "no port 1"),
    ("ingress-backends", "HTTPRoute front", "spec.rules.0.backendRefs.0.name", "gone", "Service models/gone"),
    ("ingress-backends", "HTTPRoute front", "spec.rules.0.backendRefs.0.port", 1, "no port 1"),
]


@pytest.mark.parametrize(
    ("rule", "target", "path", "value", "words"), BREAKS, ids=[f"{b[0]}-{b[2]}-{i}" for i, b in enumerate(BREAKS)]
)
def test_one_change_breaks_the_rule(rule: str, target: str, path: str, value: object, words: str):
    objects = sound()
    if value != DELETE and path.endswith("volumes.2"):
        change(objects, target, path.removesuffix(".2"), [*_volumes(objects), value])
    else:
        change(objects, target, path, value)
    found = check_relations(objects, external=EXTERNAL)
    mine = [f for f in found if f.rule == rule and words in f.message]
    assert mine, f"no {rule} finding says {words!r}; found:\n" + "\n".join(map(str, found))


def _volumes(objects: list[dict]) -> list[dict]:
    return objects[0]["spec"]["template"]["spec"]["volumes"]


def _second_scaler(objects: list[dict]) -> None:
    scaler = copy.deepcopy(next(o for o in objects if o["kind"] == "ScaledObject"))
    scaler["metadata"]["name"] = "again"
    objects.append(scaler)


def _stray_hook(objects: list[dict]) -> None:
    metadata = {"name": "test", "namespace": "models", "annotations": {"helm.sh/hook": "test"}}
    container = {"name": "test", "image": "probe:1"}
    objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})


@pytest.mark.parametrize(
    ("edit", "rule", "words"),
    [
        (_second_scaler, "scalers", "2 scalers own it"),
        (_stray_hook, "network-policies", "none for Ingress"),
        (_stray_hook, "pod-security", "must hold ALL"),
        (_stray_hook, "tokens", "automountServiceAccountToken: false"),
    ],
)
def test_one_more_object_breaks_the_rule(edit: Callable, rule: str, words: str):
    objects = sound()
    edit(objects)
    found = check_relations(objects, external=EXTERNAL)
    assert [f for f in found if f.rule == rule and words in f.message], found


def test_every_rule_has_a_failing_case():
    from inference_plane.manifests.relations import RULES

    assert {r.__name__.replace("_", "-") for r in RULES} == {b[0] for b in BREAKS}


def test_what_the_caller_names_as_external_exists():
    missing = [f for f in check_relations(sound()) if f.rule == "references"]
    assert [f.path for f in missing] == ["spec.template.spec.imagePullSecrets[0]"]


def test_an_optional_reference_may_be_missing():
    objects = sound()
    ref = {"name": "gone", "key": "k", "optional": True}
    change(objects, ENGINE, C + "env.0.valueFrom", {"secretKeyRef": ref})
    assert not check_relations(objects, external=EXTERNAL)


@pytest.mark.parametrize(
    ("spec", "minimum"),
    [({"minAvailable": 1}, 2), ({"minAvailable": "50%"}, 2), ({"minAvailable": 2}, 3), ({"maxUnavailable": "1%"}, 1)],
)
def test_a_budget_that_leaves_room_passes(spec: dict, minimum: int):
    objects = sound()
    change(objects, ENGINE, "spec.replicas", minimum)
    change(objects, "PodDisruptionBudget engine", "spec", {**spec, "selector": {"matchLabels": {"app": "engine"}}})
    assert not check_relations(objects, external=EXTERNAL)


def test_built_in_cluster_roles_and_claim_templates_are_known():
    objects = sound()
    change(objects, "RoleBinding policy", "roleRef", {"kind": "ClusterRole", "name": "view"})
    change(objects, ENGINE, "kind", "StatefulSet")
    change(objects, "StatefulSet engine", "spec.volumeClaimTemplates", [{"metadata": {"name": "cache"}, "spec": {}}])
    change(objects, "StatefulSet engine", C + "volumeMounts.1.name", "cache")
    assert not check_relations(objects, external=EXTERNAL)
