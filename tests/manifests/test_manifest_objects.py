"""Each object on its own: schemas, syntax and what an API server refuses beyond its schema."""

import copy
import statistics
import time

import pytest
import yaml

from inference_plane.manifests import Finding, check_objects
from inference_plane.manifests.objects import REFINEMENTS

OBJECTS = {
    o["kind"]: o
    for o in yaml.safe_load_all("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: engine, namespace: models, labels: {app.kubernetes.io/name: engine}, annotations: {a.example/b: "1"}}
spec:
  replicas: 1
  selector: {matchLabels: {app: engine}}
  template:
    metadata: {labels: {app: engine}}
    spec:
      nodeSelector: {karpenter.sh/nodepool: l40s}
      terminationGracePeriodSeconds: 60
      tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}
      containers:
        - name: engine
          image: vllm:1
          ports: [{name: http, containerPort: 8000}, {name: udp, containerPort: 8000, protocol: UDP}]
          env: [{name: A, value: "1"}, {name: B, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
          resources: {limits: {cpu: 2, memory: 16Gi, nvidia.com/gpu: 1}, requests: {cpu: 1500m}}
          livenessProbe: {httpGet: {port: http, path: /}, successThreshold: 1}
          startupProbe: {tcpSocket: {port: 8000}}
          volumeMounts: [{name: shm, mountPath: /dev/shm}]
      volumes: [{name: shm, emptyDir: {medium: Memory, sizeLimit: 2Gi}}]
---
apiVersion: v1
kind: Service
metadata: {name: engine}
spec:
  selector: {app: engine}
  ports: [{name: http, port: 80, targetPort: http}, {name: m, port: 81, targetPort: 8001}]
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {settings.yaml: "a: 1"}}
---
{apiVersion: v1, kind: Secret, metadata: {name: key}, data: {key: aGVsbG8=}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: sweep}
spec:
  schedule: "0 * * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: sweep, image: "sweep:1"}]}}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: engine}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: engine}, minReplicas: 1, maxReplicas: 4}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: engine}
spec: {maxUnavailable: 1, unhealthyPodEvictionPolicy: AlwaysAllow, selector: {matchLabels: {app: engine}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: engine}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{ports: [{port: 53, protocol: UDP}, {port: 443, endPort: 444}]}]
---
{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: headroom}, value: -10}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: "plane:read"}, rules: []}
""")
}
C = "spec.template.spec.containers.0."
POD = "spec.template.spec."


def set_at(obj: dict, path: str, value: object) -> dict:
    obj = copy.deepcopy(obj)
    node = obj
    *parents, last = [int(p) if p.isdigit() else p for p in path.replace("~", ".").split("|" if "|" in path else ".")]
    for part in parents:
        node = node[part] if isinstance(part, int) else node.setdefault(part, {})
    node[last] = value
    return obj


def test_sound_objects_have_no_findings():
    assert check_objects(list(OBJECTS.values())) == []


LONG = "x" * 64
REFUSED = [
    # (kind, path, value, path of the finding, words of its message)
    ("Deployment", "spec.replica", 2, "spec", "unknown field 'replica': did you mean 'replicas'?"),
    ("Deployment", C + "env.0.value", 1, C + "env.0.value", "1 is not of type string"),
    ("Deployment", "spec.replicas", "2", "spec.replicas", "'2' is not of type integer"),
    ("Deployment", "spec.replicas", 2**31, "spec.replicas", "not a valid int32"),
    ("Deployment", "metadata.name", "UPPER_case", "metadata.name", "DNS-1123 subdomain"),
    ("Deployment", "metadata.name", "engine\n", "metadata.name", "DNS-1123 subdomain"),
    ("Deployment", "metadata.name", "", "metadata.name", "every object needs a name"),
    ("Deployment", "metadata.namespace", "a.b", "metadata.namespace", "DNS-1123 label"),
    ("Deployment", "metadata.labels", {"team": LONG}, "metadata.labels.team", "a label value: at most 63"),
    ("Deployment", "metadata.labels", {"team": "a/b"}, "metadata.labels.team", "a label value"),
    ("Deployment", "metadata.labels", {"a b": "c"}, "metadata.labels", "a qualified name"),
    ("Deployment", "metadata.annotations", {"a/b/c": "d"}, "metadata.annotations", "a qualified name"),
    ("Deployment", "metadata.annotations", {"a": True}, "metadata.annotations.a", "True is not of type string"),
    ("Deployment", "spec.selector.matchLabels.app", LONG, "spec.selector.matchLabels.app", "a label value"),
    ("Deployment", "spec.template.metadata.labels.app", "-", "spec.template.metadata.labels.app", "a label value"),
    ("Deployment", POD + "nodeSelector", {"a": "b c"}, POD + "nodeSelector.a", "a label value"),
    ("Deployment", POD + "restartPolicy", "Never", POD + "restartPolicy", "must be Always"),
    ("Deployment", POD + "tolerations.0.operator", "Equals", POD + "tolerations.0.operator", "one of"),
    ("Deployment", POD + "topologySpreadConstraints.0.maxSkew", 0, POD + "topologySpreadConstraints.0.maxSkew", "0"),
    ("Deployment", POD + "volumes.0.secret", {"secretName": "s"}, POD + "volumes.0", "emptyDir, secret"),
    ("Deployment", POD + "volumes.0.emptyDir.sizeLimit", "2 GB", POD + "volumes.0.emptyDir.sizeLimit", "quantity"),
    ("Deployment", C + "name", "Engine", C + "name", "DNS-1123 label"),
    ("Deployment", C + "imagePullPolicy", "always", C + "imagePullPolicy", "one of Always"),
    ("Deployment", C + "ports.0.containerPort", 99999, C + "ports.0.containerPort", "from 1 to 65535"),
    ("Deployment", C + "ports.0.name", "a-very-long-port-name", C + "ports.0.name", "a port name"),
    ("Deployment", C + "ports.0.name", "8080", C + "ports.0.name", "a port name"),
    ("Deployment", C + "ports.1.name", "http", C + "ports", "two ports are named 'http'"),
    ("Deployment", C + "ports.1.protocol", "TCP", C + "ports.1", "duplicate entry: containerPort 8000"),
    ("Deployment", C + "env.1.name", "A", C + "env.1", "duplicate entry: name 'A'"),
    ("Deployment", C + "env.1.value", "x", C + "env.1", "exclude each other"),
    ("Deployment", C + "env.1.name", "A=B", C + "env.1.name", "without ="),
    ("Deployment", C + "resources.limits.memory", "banana", C + "resources.limits.memory", "not a valid quantity"),
    ("Deployment", C + "resources.requests.cpu", "2100m", C + "resources.requests", "more than its limit"),
    ("Deployment", C + "resources.requests", {"nvidia.com/gpu": 2}, C + "resources.limits", "cannot be overcommitted"),
    ("Deployment", C + "resources.limits", {"nvidia.com/gpu": "500m"}, C + "resources.limits", "whole numbers"),
    ("Deployment", C + "livenessProbe.successThreshold", 2, C + "livenessProbe.successThreshold", "must be 1"),
    ("Deployment", C + "livenessProbe.exec", {"command": ["a"]}, C + "livenessProbe", "exactly one of"),
    ("Deployment", C + "livenessProbe.httpGet.port", 0, C + "livenessProbe.httpGet.port", "from 1 to 65535"),
    ("Deployment", C + "volumeMounts.0.mountPath", "/a:b", C + "volumeMounts.0.mountPath", "a path without :"),
    ("Service", "metadata.name", "4o-mini", "metadata.name", "DNS-1035 label"),
    ("Service", "spec.type", "Headless", "spec.type", "one of ClusterIP"),
    ("Service", "spec.ports.1.port", 80, "spec.ports.1", "duplicate entry: port 80, protocol 'TCP'"),
    ("Service", "spec.ports.1.name", "http", "spec.ports", "two ports are named 'http'"),
    ("Service", "spec.ports.1.name", None, "spec.ports", "each needs a name"),
    ("Service", "spec.ports", [], "spec.ports", "needs a port"),
    ("Service", "spec.ports.0.targetPort", 70000, "spec.ports.0.targetPort", "from 1 to 65535"),
    ("ConfigMap", "data", {"a b": "c"}, "data", "of letters, digits"),
    ("ConfigMap", "data", {"a": 1}, "data.a", "1 is not of type string"),
    ("ConfigMap", "data", {"a": "x" * 1_048_577}, "data", "limit of 1 MiB"),
    ("Secret", "data", {"key": "not base64!"}, "data.key", "not a valid byte"),
    ("CronJob", "metadata.name", "x" * 53, "metadata.name", "at most 52"),
    (
        "CronJob",
        "spec.jobTemplate.spec.template.spec.restartPolicy",
        None,
        "spec.jobTemplate.spec.template.spec.restartPolicy",
        "OnFailure or Never",
    ),
    ("HorizontalPodAutoscaler", "spec.minReplicas", 5, "spec.minReplicas", "minReplicas 5 is above maxReplicas 4"),
    ("PodDisruptionBudget", "spec.minAvailable", 1, "spec", "exclude each other"),
    ("PodDisruptionBudget", "spec.unhealthyPodEvictionPolicy", "Always", "spec.unhealthyPodEvictionPolicy", "one of"),
    ("NetworkPolicy", "spec.policyTypes", ["egress"], "spec.policyTypes.0", "one of Ingress, Egress"),
    ("NetworkPolicy", "spec.egress.0.ports.0.port", 65536, "spec.egress.0.ports.0.port", "from 1 to 65535"),
    ("PriorityClass", "value", 2_000_000_000, "value", "2000000000"),
    ("ClusterRole", "metadata.name", "a/b", "metadata.name", "free of / and %"),
    ("Deployment", "apiVersion", "apps/v1beta1", "", "no schema for Deployment in apps/v1beta1"),
    ("Deployment", "apiVersion", "apps.example.com/v1", "", "no schema for Deployment in apps.example.com/v1"),
    ("Deployment", "kind", "Deploiment", "", "no schema for Deploiment"),
    ("Deployment", "kind", "", "", "apiVersion and kind must be set"),
    ("ConfigMap", "kind", "List", "", "render each on its own"),
]


@pytest.mark.parametrize(
    ("kind", "path", "value", "where", "words"), REFUSED, ids=[f"{r[0]}-{r[1]}-{i}" for i, r in enumerate(REFUSED)]
)
def test_what_an_api_server_refuses_is_a_finding(kind: str, path: str, value: object, where: str, words: str):
    found = check_objects([set_at(OBJECTS[kind], path, value)])
    where = ".".join(where.split("."))
    for digit in "01":
        where = where.replace(f".{digit}", f"[{digit}]")
    assert [f for f in found if f.path == where and words in f.message], "\n".join(map(str, found)) or "no finding"


def test_two_containers_of_one_name_are_refused_across_init_containers():
    deployment = set_at(OBJECTS["Deployment"], POD + "initContainers", [{"name": "engine", "image": "a:1"}])
    assert [f.rule for f in check_objects([deployment])] == ["container-names"]


def test_one_object_twice_is_a_finding_whatever_its_version_and_stated_namespace():
    config = OBJECTS["ConfigMap"]
    stated = set_at(config, "metadata.namespace", "models")
    assert [f.rule for f in check_objects([config, stated], namespace="models")] == ["duplicate"]
    assert check_objects([config, stated], namespace="other") == []


def test_an_unknown_kubernetes_version_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no schemas of Kubernetes 9\.99\. Set one of .*1\.36"):
        check_objects([], "9.99")


@pytest.mark.parametrize("version", ["1.33", "v1.36.2", "1.37"])
def test_several_kubernetes_versions_take_the_sound_objects(version: str):
    assert check_objects(list(OBJECTS.values()), version) == []


def test_every_refinement_points_at_a_field_of_the_schemas():
    # A wrong name would raise when the schemas are read; this states that there is something to read.
    assert len(REFINEMENTS) > 40
    check_objects([OBJECTS["Service"]])


def test_a_finding_reads_as_one_line():
    finding = Finding("v1 Service models/engine", "spec.ports", "service-ports", "two ports are named 'http'")
    assert str(finding) == "v1 Service models/engine: spec.ports: two ports are named 'http' [service-ports]"


def test_an_ordinary_object_costs_milliseconds():
    check_objects([OBJECTS["Deployment"]])
    costs = []
    for _ in range(20):
        started = time.process_time()
        check_objects([OBJECTS["Deployment"]])
        costs.append(time.process_time() - started)
    print(f"a Deployment costs {statistics.median(costs) * 1000:.2f} ms of CPU")
    # A hang guard: about 1.5 ms is usual, reading the schemas each time would be 20 and more.
    assert statistics.median(costs) < 0.015
