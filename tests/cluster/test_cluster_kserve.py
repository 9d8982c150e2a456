"""The real KServe manager on the rendered InferenceServices: what it admits, what it makes of them, what it refuses."""

import copy
import re

import pytest
from cluster_harness import Release, added, lost, owners

from inference_plane import tools
from inference_plane.cluster import kserve
from inference_plane.cluster.client import Refused
from inference_plane.cluster.diagnose import condition, ready
from inference_plane.environments import cases
from inference_plane.manifests import crds
from inference_plane.manifests.kserve import deployments

API = "serving.kserve.io/v1beta1"


def by_kserve(values):
    """Whether KServe runs a model of these values."""
    ours = values["global"]
    default = ours.get("modelDefaults", {}).get("engine", "vllm")
    return any((model or {}).get("engine", default) == "kserve" for model in ours.get("models", {}).values())


CASES = [
    case
    for case in cases()
    if (case.chart == "inference-plane" or case.name.startswith("kserve/ci/")) and by_kserve(case.values)
]


@pytest.fixture(scope="module")
def manager(cluster):
    if cluster.embedded is None:
        pytest.skip("KServe runs beside an embedded control plane; --kubeconfig names another cluster")
    with kserve.running(cluster.embedded) as process:
        cluster.logs.append(process.log_path)
        yield process


@pytest.fixture(scope="module", params=CASES, ids=[case.name for case in CASES])
def installed(request, cluster, manager):
    case, release = request.param, Release(cluster)
    cluster.make_namespaces(["inference"])
    cluster.make_nodes(case.values)
    release.upgrade(case.chart, case.values)
    yield case, release
    release.remove()


def services(release):
    """The InferenceServices that were sent."""
    found = [o for o in release.manifest() if o["kind"] == "InferenceService"]
    assert found
    return found


def made(cluster, service):
    """The Deployment that KServe made of an InferenceService."""
    found = cluster.client.get("apps/v1", "Deployment", f"{service['metadata']['name']}-predictor", "inference")
    assert found, cluster.report()
    return found


def pods(cluster, deployment):
    labels = deployment["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    found = cluster.client.list("v1", "Pod", deployment["metadata"]["namespace"], labelSelector=selector)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def problems(cluster, name, namespace="inference"):
    """What is amiss with an InferenceService, by KServe's own word; and who owns the replicas beside its one owner."""
    found = cluster.client.get(API, "InferenceService", name, namespace)
    status = found.get("status", {})
    unmet = [c for c in status.get("conditions") or () if c["status"] != "True" and c.get("severity") != "Info"]
    said = [f"{c['type']}={c['status']} {c.get('reason', '')}: {c.get('message', '')}" for c in unmet]
    if condition(found, "Ready") != "True" and not said:
        said = ["KServe says nothing yet"]
    if failure := status.get("modelStatus", {}).get("lastFailureInfo"):
        said.append(f"{failure.get('reason')}: {failure.get('message')}")
    who = owners(cluster, f"{name}-predictor", namespace)
    return said + [f"{len(who)} own the replicas: {', '.join(who)}"] * (len(who) > 1)


def test_it_is_the_version_whose_definitions_the_charts_are_checked_against():
    pinned = [module.version for module in crds.modules() if module.module == kserve.MODULE]
    assert pinned == [tools.version("kserve", kserve.MODULE)]


def test_all_are_ready(cluster, installed):
    _, release = installed
    for o in services(release):
        name = o["metadata"]["name"]
        cluster.settle(f"{name} is served", lambda n=name: problems(cluster, n))


def test_the_webhook_leaves_them_as_they_were_sent(installed):
    """Field by field, not a quantity written another way nor a default more: Argo CD would show it for ever."""
    _, release = installed
    for o in services(release):
        stored = release.stored(o)
        assert stored["spec"] == o["spec"]
        for kind in ("labels", "annotations"):
            assert {k: v for k, v in stored["metadata"][kind].items() if k not in BY_HELM} == o["metadata"][kind]


def test_applying_them_again_changes_nothing(cluster, installed):
    """By server-side apply as Argo CD does it, which is refused where a value would become another; then by Helm."""
    case, release = installed

    def state():
        found = [release.stored(o) for o in services(release)]
        made_of = [made(cluster, o) for o in found]
        told = {o["metadata"]["name"]: (o["metadata"]["generation"], o["spec"]) for o in [*found, *made_of]}
        return told, sorted(pod["metadata"]["uid"] for o in made_of for pod in pods(cluster, o))

    before = state()
    for o in services(release):
        cluster.client.apply(o, "inference", manager="argocd-controller", force=False)
    release.upgrade(case.chart, case.values)
    assert state() == before


#: What the API server, and KServe in its place, gives a field of a pod that was left out.
DEFAULTED = {
    *("dnsPolicy", "restartPolicy", "schedulerName", "serviceAccount", "terminationMessagePath", "imagePullPolicy"),
    *("terminationMessagePolicy", "successThreshold", "timeoutSeconds", "protocol", "defaultMode", "scheme"),
}

#: What Helm marks an InferenceService with; KServe gives it to the Deployment and its pods.
BY_HELM = {"app.kubernetes.io/managed-by", "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"}


def test_the_deployment_is_the_one_that_the_charts_are_judged_by(cluster, installed):
    """Every field; what KServe itself adds to the pod is one variable."""
    _, release = installed
    sent = services(release)
    for o, expected in zip(sent, deployments(sent), strict=True):
        found = made(cluster, o)
        template, pod = found["spec"]["template"], found["spec"]["template"]["spec"]
        assert [c["name"] for c in pod["containers"]] == ["kserve-container"]
        pod["containers"][0]["env"].remove({"name": "INFERENCE_SERVICE_NAME", "value": o["metadata"]["name"]})
        assert list(lost(expected, found)) == []
        judged = expected["spec"]["template"]
        assert {path.rpartition(".")[2] for path in added(judged["spec"], pod)} <= DEFAULTED
        for kind in ("labels", "annotations"):
            assert template["metadata"][kind].keys() - judged["metadata"][kind].keys() <= BY_HELM


def test_the_engine_leaves_as_gently_as_without_kserve(cluster, installed):
    """Written out, because KServe has defaults of its own for most of it."""
    _, release = installed
    for o in services(release):
        pod = made(cluster, o)["spec"]["template"]["spec"]
        (engine,) = pod["containers"]
        sent = o["spec"]["predictor"]["containers"][0]
        sleep = engine["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert sleep == sent["lifecycle"]["preStop"]["sleep"]["seconds"] >= 15
        drain = [int(a.partition("=")[2]) for a in engine["args"] if a.startswith("--shutdown-timeout=")]
        assert pod["terminationGracePeriodSeconds"] > sleep + sum(drain)
        assert {kind: engine[kind]["httpGet"]["path"] for kind in PROBES} == dict.fromkeys(PROBES, "/health")
        # Weights come by vLLM's own streamer, or by the chart's own container: KServe adds none, and no agent.
        names = {container["name"] for container in pod["initContainers"]}
        assert names <= {"certificate", "metrics", "artifacts"} and "metrics" in names


PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def test_pods_run_on_accelerators_and_the_fleets_service_finds_them(cluster, installed):
    """KServe's second webhook sees every pod, and adds nothing; the router resolves the Service, fleet by fleet."""
    _, release = installed
    accelerators = {
        node["metadata"]["name"]: node["metadata"]["labels"].get("inference-plane/accelerator")
        for node in cluster.client.list("v1", "Node")
    }
    for o in services(release):
        name, deployment = o["metadata"]["name"], made(cluster, o)
        template, found = deployment["spec"]["template"]["spec"], pods(cluster, deployment)
        assert found and all(map(ready, found))
        for pod in found:
            assert accelerators[pod["spec"]["nodeName"]]
            for kind in ("containers", "initContainers"):
                same = [[c["name"] for c in spec[kind]] for spec in (template, pod["spec"])]
                assert same[0] == same[1]
        service = cluster.client.get("v1", "Service", name, "inference")
        assert service["spec"]["clusterIP"] == "None"

        def endpoints(name=name):
            slices = cluster.client.list(
                "discovery.k8s.io/v1", "EndpointSlice", "inference", labelSelector=f"kubernetes.io/service-name={name}"
            )
            return sorted(a for s in slices for e in s["endpoints"] or () for a in e["addresses"])

        wanted = sorted(pod["status"]["podIP"] for pod in found)
        cluster.wait(f"the Service {name} has its pods", lambda e=endpoints, w=wanted: e() == w)


def test_nothing_leads_past_the_router_and_nobody_else_scales(cluster, installed):
    _, release = installed
    for api, kind in (
        ("networking.k8s.io/v1", "Ingress"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ):
        found = cluster.client.list(api, kind, "inference")
        assert [o["metadata"]["name"] for o in found if o["metadata"].get("ownerReferences")] == [], kind
    scaled = [o for o in release.manifest() if o["kind"] == "ScaledObject"]
    targets = {o["spec"]["scaleTargetRef"]["name"] for o in scaled}
    for o in services(release):
        deployment, minimum = made(cluster, o), o["spec"]["predictor"].get("minReplicas")
        assert (deployment["metadata"]["name"] in targets) is (minimum is None)
        # With nobody to scale it yet, what a ScaledObject is to own starts at one.
        assert deployment["spec"]["replicas"] == (1 if minimum is None else minimum)


def test_a_canary_is_a_fleet_of_its_own(cluster, manager):
    """Other weights under a Service of its own; the stable fleet's Service has none of its pods."""
    (case,) = [case for case in CASES if case.name == "kserve/ci/standard"]
    release = Release(cluster)
    cluster.make_nodes(case.values)
    release.upgrade(case.chart, case.values)
    sources = {o["metadata"]["name"]: made(cluster, o)["spec"]["template"] for o in services(release)}
    arguments = {name: template["spec"]["containers"][0]["args"] for name, template in sources.items()}
    assert {name: words[1] for name, words in arguments.items()} == {
        "appeal-letters": "s3://payer-models/appeal-letters/v3/",
        "appeal-letters-canary": "s3://payer-models/appeal-letters/v4/",
    }
    for name in sources:
        selector = cluster.client.get("v1", "Service", name, "inference")["spec"]["selector"]
        selected = [n for n, t in sources.items() if selector.items() <= t["metadata"]["labels"].items()]
        assert selected == [name]
    release.remove()


def test_an_upgrade_of_the_engine_keeps_the_replicas_that_are_there(cluster, manager):
    """KServe writes the Deployment anew; what an autoscaler has set stays."""
    (case,) = [case for case in CASES if case.name == "kserve/ci/standard"]
    release, values = Release(cluster), copy.deepcopy(case.values)
    cluster.make_nodes(values)
    release.upgrade(case.chart, values)
    (service,) = [o for o in services(release) if o["metadata"]["name"] == "appeal-letters"]
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    change = {"spec": {"replicas": 4}}
    cluster.client.patch("apps/v1", "Deployment", "appeal-letters-predictor", change, "inference")
    before = made(cluster, service)["metadata"]["generation"]
    values["global"]["models"]["appeal-letters"]["maxModelLen"] = 8192
    release.upgrade(case.chart, values, wait=False)
    cluster.wait("KServe has written it anew", lambda: made(cluster, service)["metadata"]["generation"] > before)
    engine = made(cluster, service)["spec"]["template"]["spec"]["containers"][0]
    assert "--max-model-len=8192" in engine["args"]
    assert made(cluster, service)["spec"]["replicas"] == 4
    cluster.wait("four are ready", lambda: made(cluster, service)["status"].get("readyReplicas") == 4)

    # Why that upgrade did not wait: KServe gives the Deployment's generation for the InferenceService's own, and
    # `helm upgrade --wait` waits until the two are the same, which they are not once somebody has scaled.
    def generations():
        stored = release.stored(service)
        return stored["metadata"]["generation"], stored["status"]["observedGeneration"]

    latest = made(cluster, service)["metadata"]["generation"]
    cluster.wait("KServe tells the Deployment's generation", lambda: generations() == (2, latest))
    assert latest > 2
    release.remove()


def without_limit(o):
    del o["spec"]["predictor"]["containers"][0]["resources"]["limits"]["cpu"]


def wrong_format(o):
    o["spec"]["predictor"] = {"model": {"modelFormat": {"name": "vlm"}, "storageUri": "s3://models/m/v1/"}}


def scaled_by_kserve_too(o):
    del o["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"]


def without_mode(o):
    del o["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]


def python_path(o):
    o["spec"]["predictor"]["containers"][0]["env"].append({"name": "PYTHONPATH", "value": "/opt/plane"})


#: What is broken in a rendered InferenceService, and what is then said of it.
FAULTS = {
    without_limit: r'PredictorReady=False .*Invalid value: "3": must be less than or equal to cpu limit of 1',
    wrong_format: "NoSupportingRuntime: No runtime found to support specified framework/version",
    scaled_by_kserve_too: "2 own the replicas: HorizontalPodAutoscaler claims-triage-predictor, ScaledObject claims",
    without_mode: "customizing deploymentStrategy is only supported for raw deployment mode",
    python_path: "PYTHONPATH",
}


@pytest.fixture(scope="module")
def broken(cluster, manager):
    """A namespace with what an InferenceService of the staging environment needs, and the objects as rendered."""
    (case,) = [case for case in CASES if case.name == "staging/inference-plane"]
    release = Release(cluster)
    cluster.make_namespaces(["inference", "broken"])
    cluster.make_nodes(case.values)
    release.upgrade(case.chart, case.values)
    found = {o["kind"]: o for o in release.manifest() if o["metadata"]["name"] == "claims-triage"}
    release.remove()
    rendered = [found[kind] for kind in ("ServiceAccount", "ScaledObject", "InferenceService")]
    for o in rendered:
        o["metadata"]["namespace"] = "broken"
    *others, service = rendered
    for o in others:
        cluster.client.create(o)
    yield service
    cluster.client.delete("keda.sh/v1alpha1", "ScaledObject", "claims-triage", "broken")


@pytest.fixture(params=[None, *FAULTS], ids=lambda fault: fault.__name__ if fault else "as_rendered")
def fault(request, cluster, broken):
    yield request.param
    name = broken["metadata"]["name"]
    cluster.client.delete(API, "InferenceService", name, "broken")
    cluster.wait("it is gone", lambda: cluster.client.get(API, "InferenceService", name, "broken") is None)
    cluster.wait("its Deployment is gone", lambda: not cluster.client.list("apps/v1", "Deployment", "broken"))


def test_a_fault_is_found(cluster, broken, fault):
    """By `problems`, which finds none in the object as it is rendered; or by the webhook, at once."""
    o = copy.deepcopy(broken)
    if fault is None:
        cluster.client.create(o)
        cluster.settle("it is served", lambda: problems(cluster, o["metadata"]["name"], "broken"))
        return
    fault(o)

    def found():
        try:
            cluster.client.create(o)
        except Refused as error:
            if error.reason != "AlreadyExists":
                return str(error)
        return "\n".join(problems(cluster, o["metadata"]["name"], "broken"))

    said = cluster.wait(f"{FAULTS[fault]} is said", lambda: re.search(FAULTS[fault], found()))
    print(said.string)
