"""The real KEDA on the rendered ScaledObjects, with the real KServe: from the signals that they read to replicas.

The signals come from the pods' own addresses, so these tests run in a network of pods.
"""

import contextlib
import copy
import datetime
import re
import urllib.parse

import pytest
import yaml
from cluster_harness import Release, lost, owners
from pod_server import PodServer

from inference_plane import checkout, tools
from inference_plane.cluster import definitions, embedded, keda, kserve
from inference_plane.cluster.client import Refused
from inference_plane.manifests import crds


def models(values):
    return {name: model for name, model in values["global"].get("models", {}).items() if model}


def scales(model):
    """By what the model says itself; replicas.max is 1 or replicas.min, whichever is more, where it says nothing."""
    return "max" in model.get("replicas", {}) or sleeps(model)


def sleeps(model):
    return model.get("replicas", {}).get("min") == 0


API = "keda.sh/v1alpha1"
ENVIRONMENTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(checkout.VALUES.glob("*.yaml"))}
#: Those that scale a model; the others have nothing for KEDA.
SCALING = [e for e, v in ENVIRONMENTS.items() if any(map(scales, models(v).values()))]
EVERY = pytest.mark.parametrize("environment", sorted(SCALING, key=lambda e: e != "staging"), indirect=True)
#: The environment with a model of each engine that scales. First of all, so that it is installed once.
STAGING = pytest.mark.parametrize("environment", ["staging"], indirect=True)

#: Of autoscaling, what makes a test wait; whatever it is, it must reach the autoscaler.
PACE = {"pods": 10, "periodSeconds": 1, "stabilizationSeconds": 0}
QUICK = {"pollingSeconds": 1, "scaleUp": PACE, "scaleDown": PACE, "cooldownSeconds": 4}


def POD_NETWORK():
    """Builds and fetches what can be neither built nor fetched inside."""
    embedded.build()
    for tool in (*keda.TOOLS, "kserve"):
        tools.build(tool)
    tools.source("keda-operator", keda.MODULE)
    tools.source("kserve", kserve.MODULE)
    definitions.documents([*definitions.RENDERED, *keda.DEFINITIONS])


@pytest.fixture(scope="module")
def controllers(cluster):
    if cluster.embedded is None:
        pytest.skip("KEDA runs beside an embedded control plane; --kubeconfig names another cluster")
    with kserve.running(cluster.embedded) as process, keda.running(cluster.embedded) as processes:
        cluster.logs += [process.log_path, *(p.log_path for p in processes)]
        yield


@contextlib.contextmanager
def installed(cluster, values):
    """A release of an environment that scales quickly, and what answers for its pods."""
    values = copy.deepcopy(values)
    for chart in ("vllm", "kserve"):
        section = values.setdefault(chart, {})
        section["autoscaling"] = section.get("autoscaling", {}) | QUICK
    for model in models(values).values():
        if sleeps(model):
            model["startSeconds"] = 1  # or such a cooldown is refused
    release = Release(cluster)
    cluster.make_namespaces(["inference"])
    cluster.make_nodes(values)
    # Helm would wait in vain for what KServe runs, once KEDA has scaled it (charts/kserve/README.md).
    release.upgrade("inference-plane", values, wait=not by_kserve(values))
    try:
        urls = [t["metadata"]["url"] for o in scaled(release) for t in o["spec"]["triggers"]]
        with PodServer(cluster.client, {urllib.parse.urlsplit(url).port for url in urls}) as pods:
            nobody_asks(release, pods)
            yield release, values, pods
    finally:
        release.remove()


def by_kserve(values):
    default = values["global"].get("modelDefaults", {}).get("engine", "vllm")
    return any(model.get("engine", default) == "kserve" for model in models(values).values())


@pytest.fixture(scope="module")
def environment(request, cluster, controllers):
    with installed(cluster, ENVIRONMENTS[request.param]) as found:
        yield found


def nobody_asks(release, pods):
    """And the policy service knows it."""
    pods.requests.clear()
    pods.demand |= {model(o): 0.0 for o in scaled(release)}


def scaled(release):
    return [o for o in release.manifest() if o["kind"] == "ScaledObject"]


def target(cluster, o):
    """The Deployment of a ScaledObject."""
    name = o["spec"]["scaleTargetRef"]["name"]
    return cluster.client.get("apps/v1", "Deployment", name, "inference") or {"spec": {}, "status": {}}


def replicas(cluster, objects):
    return {o["metadata"]["name"]: target(cluster, o)["spec"].get("replicas") for o in objects}


def autoscaler(cluster, o):
    name = f"keda-hpa-{o['metadata']['name']}"
    return cluster.client.get("autoscaling/v2", "HorizontalPodAutoscaler", name, "inference")


def problems(cluster, o):
    """What is amiss with a ScaledObject: by KEDA's own word, by its autoscaler's, and who else owns the replicas."""
    found = cluster.client.get(API, "ScaledObject", o["metadata"]["name"], "inference")
    conditions = (found or {}).get("status", {}).get("conditions") or ()
    said = [f"Ready={c['status']} {c.get('reason')}: {c.get('message')}" for c in conditions if c["type"] == "Ready"]
    said = [line for line in said if not line.startswith("Ready=True")] if said else ["KEDA says nothing yet"]
    # Without replicas there is no engine to read, and so it is the rule.
    fallbacks = [c for c in conditions if c["type"] == "Fallback" and o["spec"]["minReplicaCount"]]
    said += [f"Fallback=True: {c.get('message')}" for c in fallbacks if c["status"] == "True"]
    hpa = autoscaler(cluster, o)
    if hpa is None:
        said.append("it has no autoscaler")
    elif target(cluster, o)["spec"].get("replicas") != 0:
        unmet = [c for c in hpa["status"].get("conditions") or () if c["type"] in ("AbleToScale", "ScalingActive")]
        said += [f"{c['type']}={c['status']}: {c.get('message')}" for c in unmet if c["status"] != "True"]
        said += ["the autoscaler says nothing yet"] * (len(unmet) < 2)
    who = owners(cluster, o["spec"]["scaleTargetRef"]["name"], "inference")
    return said + [f"{len(who)} own the replicas: {', '.join(who)}"] * (len(who) > 1)


def warnings(cluster, o, since):
    """What KEDA has warned of a ScaledObject since a time in UTC, which is more than its conditions say."""
    selector = f"type=Warning,involvedObject.kind=ScaledObject,involvedObject.name={o['metadata']['name']}"
    for event in cluster.client.list("v1", "Event", "inference", fieldSelector=selector):
        last = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
        if last >= since:
            yield f"{event['reason']}: {event['message']}"


def served(cluster, objects):
    for o in objects:
        cluster.settle(f"{o['metadata']['name']} is scaled", lambda o=o: problems(cluster, o), 90)


def test_it_is_the_version_whose_definitions_the_charts_are_checked_against():
    pinned = [module.version for module in crds.modules() if module.module == keda.MODULE]
    assert pinned == [tools.version("keda-operator", keda.MODULE)]


@EVERY
def test_every_scaled_object_is_taken_and_scales(cluster, environment):
    """Ready, stored as it was sent, with an autoscaler that has its limits and its pace, and nobody beside it."""
    release, _, _ = environment
    assert scaled(release)
    for o in scaled(release):
        assert list(lost(o, release.stored(o))) == []
    served(cluster, scaled(release))
    for o in scaled(release):
        spec, hpa = o["spec"], autoscaler(cluster, o)["spec"]
        assert hpa["scaleTargetRef"] == spec["scaleTargetRef"]
        # KEDA itself takes the last replica; its autoscaler has at least one.
        assert hpa["minReplicas"] == max(1, spec["minReplicaCount"]) and hpa["maxReplicas"] == spec["maxReplicaCount"]
        pace = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert {way: hpa["behavior"][way] | pace[way] for way in pace} == hpa["behavior"]
        (metric,) = hpa["metrics"]
        modifiers = spec["advanced"]["scalingModifiers"]
        assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": modifiers["target"]}


@EVERY
def test_nobody_but_keda_sets_replicas(cluster, environment):
    """Neither Helm nor KServe owns the field of what a ScaledObject scales, so neither ever sets it back."""
    release, _, _ = environment
    for o in scaled(release):
        entries = target(cluster, o)["metadata"]["managedFields"]
        assert not [e["manager"] for e in entries if e["manager"] == "helm" and "f:replicas" in e["fieldsV1"]["f:spec"]]
        assert len(owners(cluster, o["spec"]["scaleTargetRef"]["name"], "inference")) == 1


@EVERY
def test_replicas_follow_what_the_pods_say(cluster, environment):
    """From the fewest to the most, by way of two, and back: to none at all where a model may sleep."""
    release, _, pods = environment
    objects = scaled(release)

    def ask(wanted):
        """Each fleet gets requests for as many replicas as `wanted` says of it."""
        for o in objects:
            name, full = o["metadata"]["name"], float(o["spec"]["advanced"]["scalingModifiers"]["target"])
            # Halfway between: an autoscaler leaves a tenth alone.
            load = max(0.0, full * (wanted(o) - 0.5)) if wanted(o) else 0.0
            pods.requests[name] = pods.demand[model(o)] = load

    def wrong(wanted):
        """The fleets with other replicas than were asked for, and how many they have."""
        found = replicas(cluster, objects)
        expected = {o["metadata"]["name"]: bounded(o, wanted(o)) for o in objects}
        return {name: count for name, count in found.items() if count != expected[name]}

    for wanted in (lambda o: 0, lambda o: 2, lambda o: o["spec"]["maxReplicaCount"], lambda o: 0):
        ask(wanted)
        cluster.settle("the replicas are as many as were asked for", lambda w=wanted: wrong(w), 90)
    addresses = {address for address, _ in pods.asked}
    assert addresses and all(address.startswith("10.244.") for address in addresses)


def model(o):
    return o["metadata"]["labels"]["inference-plane/model"]


def bounded(o, wanted):
    return min(max(wanted, o["spec"]["minReplicaCount"]), o["spec"]["maxReplicaCount"])


def full(cluster, release, pods):
    """All fleets at their most."""
    for o in scaled(release):
        load = float(o["spec"]["advanced"]["scalingModifiers"]["target"]) * o["spec"]["maxReplicaCount"]
        pods.requests[o["metadata"]["name"]] = pods.demand[model(o)] = load
    most = {o["metadata"]["name"]: o["spec"]["maxReplicaCount"] for o in scaled(release)}

    def settled(o):
        """Also no pod of an upgrade is left, which would have a share of the load and be no endpoint."""
        now = target(cluster, o)
        status, wanted = now["status"], most[o["metadata"]["name"]]
        current = status.get("observedGeneration") == now["metadata"]["generation"]
        counts = {status.get(f"{kind}eplicas") for kind in ("r", "updatedR", "readyR", "availableR")}
        counts |= {now["spec"]["replicas"], wanted + (status.get("terminatingReplicas") or 0)}
        return current and counts == {wanted}

    cluster.wait("all fleets are at their most", lambda: all(settled(o) for o in scaled(release)))
    return most


@STAGING
def test_an_upgrade_never_resets_live_replicas(cluster, environment):
    """Of either engine, in the one step by which its pods change: nothing sets them back and up again."""
    release, values, pods = environment
    served(cluster, scaled(release))
    most = full(cluster, release, pods)
    before = {o["metadata"]["name"]: target(cluster, o) for o in scaled(release)}
    changed = copy.deepcopy(values)
    for name in most:
        changed["global"]["models"][name]["env"] = {"VLLM_LOGGING_LEVEL": "DEBUG"}
    release.upgrade("inference-plane", changed, wait=False)
    for o in scaled(release):
        name = o["metadata"]["name"]

        def rolled(o=o, name=name):
            now = target(cluster, o)
            status = now["status"]
            return now["metadata"]["generation"] > before[name]["metadata"]["generation"] and (
                status.get("updatedReplicas") == status.get("readyReplicas") == most[name]
            )

        cluster.wait(f"{name} is rolled", rolled)
        now = target(cluster, o)
        assert now["spec"]["replicas"] == most[name]
        assert now["metadata"]["generation"] == before[name]["metadata"]["generation"] + 1
    release.upgrade("inference-plane", values, wait=False)


@STAGING
def test_while_no_engine_can_be_read_the_replicas_stay(cluster, environment):
    release, _, pods = environment
    served(cluster, scaled(release))
    most = full(cluster, release, pods)
    awake = [o for o in scaled(release) if o["spec"]["minReplicaCount"]]
    pods.silent = set(most)
    pods.demand.clear()
    try:
        for o in awake:
            cluster.wait("the autoscaler says so", lambda o=o: "ScalingActive=False" in str(problems(cluster, o)))
        pods.requests.clear()
        assert {name: most[name] for name in replicas(cluster, awake)} == replicas(cluster, awake)
    finally:
        pods.silent = set()
        nobody_asks(release, pods)
    served(cluster, scaled(release))


@STAGING
def test_a_fleet_grows_by_what_is_elsewhere(cluster, environment):
    """Its engines have nothing: what wants them is at the fallback, or was turned away."""
    release, _, pods = environment
    served(cluster, scaled(release))
    nobody_asks(release, pods)
    reads = [o for o in scaled(release) if "demand" in o["spec"]["advanced"]["scalingModifiers"]["formula"]]
    assert [o for o in reads if o["spec"]["minReplicaCount"]], "also of fleets that never sleep"
    for wanted in ("maxReplicaCount", "minReplicaCount"):
        for o in reads:
            full = float(o["spec"]["advanced"]["scalingModifiers"]["target"])
            pods.demand[model(o)] = full * o["spec"][wanted] if wanted == "maxReplicaCount" else 0.0
        expected = {o["metadata"]["name"]: o["spec"][wanted] for o in reads}
        cluster.wait(f"the replicas are at {wanted}", lambda e=expected: replicas(cluster, reads) == e, 90)


def wrong_format(o):
    o["spec"]["triggers"][-1]["metadata"]["format"] = "promethues"


def wrong_target(o):
    o["spec"]["scaleTargetRef"]["name"] = "clinical-sumary"


def wrong_formula(o):
    o["spec"]["advanced"]["scalingModifiers"]["formula"] = "running +* waiting"


def unknown_trigger(o):
    o["spec"]["advanced"]["scalingModifiers"]["formula"] = "running + waitng"


def wrong_metric(o):
    metadata = o["spec"]["triggers"][-1]["metadata"]
    metadata["valueLocation"] = metadata["valueLocation"].replace("num_requests", "num_request")


def wrong_service(o):
    metadata = o["spec"]["triggers"][-1]["metadata"]
    metadata["url"] = metadata["url"].replace("clinical-summary.", "clinical-sumary.")


#: What is broken in a rendered ScaledObject, and what is then said of it.
FAULTS = {
    wrong_format: 'parameter "format" value "promethues" must be one of',
    wrong_target: 'ScaledObjectCheckFailed: .*deployments.apps "clinical-sumary" not found',
    wrong_formula: "error validating formula in ScalingModifiers",
    unknown_trigger: r"error validating formula in ScalingModifiers\s+unknown name waitng",
    wrong_metric: "KEDAMetricSourceFailed: .*could not get any metric successfully",
    wrong_service: "KEDAMetricSourceFailed: .*no endpoints URLs were given for the service name",
}


@pytest.fixture
def summary(cluster, environment):
    """A ScaledObject with nothing amiss, before and after: so what is found in between is the fault."""
    release, _, _ = environment
    (o,) = [o for o in scaled(release) if o["metadata"]["name"] == "clinical-summary"]
    served(cluster, [o])
    stored = release.stored(o)  # with Helm's own marks, or Helm would not know it again
    kept = {key: stored["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
    o |= {"metadata": kept}
    yield o
    cluster.client.apply(o)
    served(cluster, [o])


@STAGING
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found(cluster, summary, fault):
    """By the check that finds nothing amiss before and after, with KEDA's own word why; or by its webhook at once."""
    o = copy.deepcopy(summary)
    # Times of events have whole seconds.
    since = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    fault(o)

    def found():
        amiss = problems(cluster, summary)
        return re.search(FAULTS[fault], "\n".join([*amiss, *warnings(cluster, o, since)])) if amiss else None

    try:
        cluster.client.apply(o)
    except Refused as error:
        said = re.search(FAULTS[fault], str(error))
        assert said, error
    else:
        said = cluster.wait(f"{FAULTS[fault]!r} is said", found, 90)
    print(said.string)


@STAGING
def test_two_owners_of_replicas_are_found(cluster, summary):
    """KEDA refuses to join an autoscaler; one that joins KEDA nobody refuses, so the check must find it."""
    name = "clinical-summary"
    second = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {"scaleTargetRef": summary["spec"]["scaleTargetRef"], "maxReplicas": 2},
    }
    cluster.client.create(second, "inference")
    assert f"2 own the replicas: HorizontalPodAutoscaler {name}, ScaledObject {name}" in problems(cluster, summary)
    cluster.client.delete(API, "ScaledObject", name, "inference")
    cluster.wait("KEDA has let go", lambda: cluster.client.get(API, "ScaledObject", name, "inference") is None)
    with pytest.raises(Refused, match=f"already managed by the hpa '{name}'"):
        cluster.client.create(summary)
    cluster.client.delete("autoscaling/v2", "HorizontalPodAutoscaler", name, "inference")
