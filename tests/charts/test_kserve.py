"""The chart `kserve`: the same pod in an InferenceService, what KServe's webhook wants of it, and what is refused."""

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from test_vllm import CPU, MODEL, NEURON, env, kinds, merged, values

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.manifests.kserve import deployments
from inference_plane.onehost.router import xds_files

CHART = CHARTS / "kserve"
CI = sorted(CHART.glob("ci/*-values.yaml"))
KSERVE = "serving.kserve.io"


def render(
    model: Mapping[str, Any] = {}, base: Mapping[str, Any] = MODEL, chart: str = "kserve", **over: Any
) -> helm.Render:
    """The chart with one model `m`, which is `base` with the fields of `model` and the chart's engine."""
    return helm.template(chart, values=values({"m": merged(base, {"engine": chart, **model})}, **over))


def refusal(
    model: Mapping[str, Any] = {}, base: Mapping[str, Any] = MODEL, chart: str = "kserve", **over: Any
) -> list[str]:
    with pytest.raises(helm.HelmError) as refused:
        render(model, base, chart, **over)
    return [line for line in str(refused.value).splitlines() if line.startswith("- ")]


def service(rendered: helm.Render, name: str = "m") -> dict[str, Any]:
    return rendered.find("InferenceService", name)


def predictor(rendered: helm.Render, name: str = "m") -> dict[str, Any]:
    return service(rendered, name)["spec"]["predictor"]


BASES = {"gpu": MODEL, "neuron": NEURON, "cpu": CPU}
EVERY_BASE = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


# --- the same as under the chart vllm --------------------------------------------------------------------------------


@EVERY_BASE
def test_the_pod_is_the_one_of_the_chart_vllm_but_for_what_kserve_asks(base):
    (brought,) = deployments(render(base=base).objects)
    ours = brought["spec"]["template"]["spec"]
    theirs = copy.deepcopy(render(base=base, chart="vllm").find("Deployment", "m")["spec"]["template"]["spec"])
    (container,) = theirs["containers"]
    container["name"] = "kserve-container"
    container["resources"]["limits"]["cpu"] = "1k"
    container["env"] = [variable for variable in container["env"] if variable["name"] != "PYTHONPATH"]
    container["command"] = ["env", "PYTHONPATH=/opt/plane", "vllm"]
    theirs["volumes"][0]["configMap"]["name"] = "plane-kserve-files"
    assert ours == theirs


def test_what_belongs_to_the_pods_is_that_of_the_chart_vllm():
    model, over = {"replicas": {"min": 2, "max": 4}}, {"podMonitor": {"enabled": True}}
    ours, theirs = render(model, **over), render(model, chart="vllm", **over)
    assert kinds(ours) ^ kinds(theirs) == {
        ("InferenceService", "m"),
        ("Deployment", "m"),
        ("ConfigMap", "plane-kserve-files"),
        ("ConfigMap", "plane-vllm-files"),
    }
    for kind in ("Service", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor"):
        own, other = ours.find(kind, "m"), theirs.find(kind, "m")
        assert (own.get("spec"), own["metadata"]["name"]) == (other.get("spec"), other["metadata"]["name"])
    strangers = [r.find("Pod", f"plane-{name}-stranger") for r, name in ((ours, "kserve"), (theirs, "vllm"))]
    assert strangers[0]["spec"] == strangers[1]["spec"]
    files = [r.find("ConfigMap", f"plane-{engine}-files")["data"] for r, engine in ((ours, "kserve"), (theirs, "vllm"))]
    assert files[0] == files[1]


def test_the_router_does_not_tell_the_engines_apart():
    network = {"global": {"network": {"policies": False}}, "auth": {"mode": "none"}}
    one, other = (
        xds_files(helm.template("router", values=values({"m": MODEL | {"engine": engine}}, **network)))
        for engine in ("vllm", "kserve")
    )
    assert one == other


@EVERY_BASE
def test_what_kserve_would_write_another_way_is_written_its_way(base):
    """Fields of an InferenceService that its webhook or its schema changes would be a difference for ever."""
    spec = predictor(render(base=base))
    for container in [*spec["initContainers"], *spec["containers"]]:
        assert {port.get("protocol") for port in container.get("ports", ())} <= {"TCP"}
        amounts = [value for kind in container["resources"].values() for value in kind.values()]
        assert {type(value) for value in amounts} == {str}


def test_selectors_find_the_pods_that_kserve_makes():
    rendered = render({"replicas": {"min": 2}}, podMonitor={"enabled": True})
    (brought,) = deployments(rendered.objects)
    labels = brought["spec"]["template"]["metadata"]["labels"].items()
    assert rendered.find("Service", "m")["spec"]["selector"].items() <= labels
    assert rendered.find("NetworkPolicy", "m")["spec"]["podSelector"]["matchLabels"].items() <= labels
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert rendered.find(kind, "m")["spec"]["selector"]["matchLabels"].items() <= labels


@pytest.mark.parametrize("chart", ["vllm", "kserve"])
def test_a_chart_runs_the_models_of_its_engine(chart):
    catalogue = values({"a": MODEL, "b": MODEL | {"engine": "kserve"}})
    names = {o["metadata"]["name"] for o in helm.template(chart, values=catalogue).of_kind("ServiceAccount")}
    assert names == {"vllm": {"a"}, "kserve": {"b"}}[chart]


def test_both_engines_share_a_release_and_a_namespace():
    network = {"global": {"network": {"albSubnetCidrs": ["10.0.9.0/24"]}}, "router": {"auth": {"mode": "none"}}}
    rendered = helm.template(
        "inference-plane", values=values({"a": MODEL, "b": MODEL | {"engine": "kserve"}}, **network)
    )
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in rendered.objects]
    assert len(names) == len(set(names))
    assert {"Deployment", "InferenceService"} <= {kind for kind, _, _ in names}


# --- what KServe's webhook and controller want (github.com/kserve/kserve v0.20.0) ------------------------------------


@pytest.mark.parametrize("file", CI, ids=lambda file: file.stem)
def test_ci_files_pass_the_rules_of_the_webhook(file):
    """pkg/apis/serving/v1beta1: inference_service_validation.go, predictor.go, predictor_custom.go, component.go."""
    services = helm.template(CHART, files=[file]).of_kind("InferenceService")
    assert services
    for found in services:
        spec, annotations = found["spec"]["predictor"], found["metadata"]["annotations"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found["metadata"]["name"])
        assert not {"model", "workerSpec", "sklearn", "huggingface"} & spec.keys(), (
            "exactly one implementation: the pod"
        )
        assert [c["name"] for c in spec["containers"]] == ["kserve-container"]
        for container in [*spec["containers"], *spec["initContainers"]]:
            # The first is refused; the others switch on what this chart does itself.
            assert not {"PYTHONPATH", "STORAGE_URI", "PROTOCOL", "MULTI_MODEL_SERVER"} & env(container).keys()
        assert annotations[f"{KSERVE}/deploymentMode"] == "Standard", "deploymentStrategy is refused under Knative"
        assert annotations[f"{KSERVE}/autoscalerClass"] in ("hpa", "keda", "external", "none")
        assert not {"scaleMetric", "scaleTarget", "autoScaling", "canaryTrafficPercent"} & spec.keys()


@EVERY_BASE
def test_kserve_finds_no_resource_to_fill_in(base):
    """setResourceRequirementDefaults would add a limit of one CPU below the request, which the API server refuses."""
    resources = predictor(render(base=base))["containers"][0]["resources"]
    assert {"cpu", "memory"} <= resources["requests"].keys() and {"cpu", "memory"} <= resources["limits"].keys()
    assert resources["limits"]["cpu"] == "1k" and float(resources["requests"]["cpu"]) < 1000


def test_nothing_but_the_router_leads_to_the_engine():
    assert service(render())["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"


@pytest.mark.parametrize(
    ("replicas", "owner", "minimum"), [({"min": 3}, "none", 3), ({"min": 1, "max": 3}, "external", None)]
)
def test_replicas_have_one_owner(replicas, owner, minimum):
    rendered = render({"replicas": replicas})
    assert service(rendered)["metadata"]["annotations"][f"{KSERVE}/autoscalerClass"] == owner
    assert predictor(rendered).get("minReplicas") == minimum and "maxReplicas" not in predictor(rendered)
    targets = [o["spec"]["scaleTargetRef"] for o in rendered.of_kind("ScaledObject")]
    assert targets == ([] if minimum else [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "m-predictor"}])
    assert [d["spec"].get("replicas") for d in deployments(rendered.objects)] == [minimum]


def test_an_upgrade_of_the_chart_does_not_replace_the_engines():
    """KServe gives labels and annotations of an InferenceService to its pods."""
    found = service(render())
    text = json.dumps(found["metadata"]) + json.dumps(found["spec"]["predictor"]["annotations"])
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    assert version not in text and "helm.sh/chart" not in text


@pytest.mark.parametrize(("rollout", "surge", "unavailable"), [("surge", 1, 0), ("inPlace", 0, 1)])
def test_a_rollout_takes_a_spare_accelerator_only_when_told(rollout, surge, unavailable):
    strategy = predictor(render({"rollout": rollout}))["deploymentStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}


def test_a_canary_is_an_inference_service_of_its_own():
    rendered = render({"canary": {"source": "s3://models/m/v2/", "percent": 10}})
    assert {o["metadata"]["name"] for o in rendered.of_kind("InferenceService")} == {"m", "m-canary"}
    assert predictor(rendered, "m-canary")["minReplicas"] == 1 and "canary" not in service(rendered)["spec"]
    assert "karpenter.sh/do-not-disrupt" not in predictor(rendered, "m-canary")["annotations"]
    assert predictor(rendered)["annotations"]["karpenter.sh/do-not-disrupt"] == "true"


# --- refusals --------------------------------------------------------------------------------------------------------


def test_knative_is_refused_with_the_reason():
    assert refusal({"deploymentMode": "Knative"}) == [
        "- global.models.m.deploymentMode: Knative, which this release does not run. Knative keeps "
        "an old revision's pods as "
        "long as requests reach them, and the router sends to every ready pod, so that no rollout "
        "would end; it takes no "
        "preStop hook and no grace period either. Set deploymentMode: Standard, with replicas.min: 0 to scale to zero."
    ]
    assert render({"deploymentMode": "Standard"}).text == render().text


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_a_mode_of_kserve_without_kserve_is_refused(mode):
    assert refusal({"deploymentMode": mode}, chart="vllm") == [
        f"- global.models.m.deploymentMode: {mode}, while engine is vllm. It is a mode of KServe, "
        "and no InferenceService is "
        "rendered. Set engine: kserve, or take deploymentMode out."
    ]


@pytest.mark.parametrize("mode", ["RawDeployment", "Serverless"])
def test_the_seed_names_of_the_modes_are_unknown(mode):
    with pytest.raises(helm.HelmError, match="deploymentMode"):
        render({"deploymentMode": mode})


@pytest.mark.parametrize(
    ("chart", "why"),
    [
        ("vllm", "A replica is one pod, and a pod is on one node"),
        ("kserve", "KServe's multi-node takes weights from pvc:// or oci://, never from s3://"),
    ],
)
def test_more_accelerators_than_a_node_has_are_refused(chart, why):
    assert refusal({"tensorParallelSize": 16}, chart=chart) == [
        "- global.models.m.tensorParallelSize: 16 needs 16 of nvidia.com/gpu, and the largest node has 8. "
        f"{why}. Set tensorParallelSize: 8 or less, or an accelerator with more memory."
    ]


def test_what_fits_no_node_is_not_proposed():
    (line,) = refusal({"weightsGiB": 500}, chart="vllm")
    assert "do not fit 40.2 GiB" in line and line.endswith("Set an accelerator with more memory.")


def test_whole_devices_are_counted_on_neuron():
    shape = {"tensorParallelSize": 64, "accelerator": "trainium2", "compiled": {"tensorParallelSize": 64}}
    assert render(shape, base=NEURON).of_kind("InferenceService"), "16 devices of 4 cores"


def test_a_name_that_kserve_gives_is_refused():
    models = {"m": MODEL | {"engine": "kserve"}, "m-predictor": MODEL}
    with pytest.raises(helm.HelmError) as refused:
        helm.template("kserve", values=values(models))
    assert (
        "- global.models.m: m-predictor is what KServe calls the Deployment and the Service of m. "
        "Two objects of one name "
        "would overwrite each other. Set another name, or another namespace."
    ) in str(refused.value)
    apart = merged(models, {"m-predictor": {"namespace": "elsewhere"}})
    assert helm.template("kserve", values=values(apart)).find("InferenceService", "m")


def test_images_without_a_digest_are_refused_where_one_is_required():
    digest = {"requireDigest": True, "images": {"vllm": {"digest": "sha256:" + "0" * 64}}}
    assert [line.partition(":")[0] for line in refusal(**{"global": digest})] == ["- global.images.curl.digest"]


@pytest.mark.parametrize(
    ("variable", "why"),
    [
        ("PYTHONPATH", "the chart sets it"),
        ("PROTOCOL", "KServe reads it"),
        ("STORAGE_URI", "it would open the engine or take its weights from elsewhere"),
    ],
)
def test_an_entry_may_not_set_what_kserve_reads(variable, why):
    assert refusal({"env": {variable: "x"}}) == [
        f"- global.models.m.env.{variable}: not for an entry to set. The variable is the chart's: {why}. Set another "
        "variable, or take this one out."
    ]


def test_the_umbrella_holds_the_drains_and_labels_of_both_engines_together():
    nodes = {
        "enabled": True,
        "nodeClass": {"role": "nodes", "subnetTags": {"tier": "private"}, "securityGroupTags": {"for": "nodes"}},
        "ec2": {"amiAlias": "bottlerocket@1.46.0"},
    }
    over = {"karpenter-nodepools": nodes, "router": {"clientNamespaces": ["c"], "auth": {"mode": "none"}}}
    longer = {"kserve": {"drain": {"shutdownTimeoutSeconds": 65}}}
    assert helm.template("inference-plane", values=values({"m": MODEL}, **over, **longer)).of_kind("NodePool")
    with pytest.raises(helm.HelmError) as refused:
        helm.template("inference-plane", values=values({"m": MODEL | {"engine": "kserve"}}, **over, **longer))
    assert "is less than the engines' grace period of 95 (kserve.drain)." in str(refused.value)


def test_the_umbrella_says_how_to_wait_and_which_images_have_no_digest(tmp_path):
    nodes = {
        "enabled": True,
        "nodeClass": {"role": "nodes", "subnetTags": {"tier": "private"}, "securityGroupTags": {"for": "nodes"}},
        "ec2": {"amiAlias": "bottlerocket@1.46.0"},
        "pools": {"l40s": {"interactive": {"headroom": 1}}},
    }
    models = {"a": MODEL, "b": MODEL | {"engine": "kserve", "canary": {"source": "s3://models/m/v2/", "percent": 5}}}
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values(models, **{"karpenter-nodepools": nodes, "router": {"clientNamespaces": ["c"], "auth": {"mode": "none"}}})))
    umbrella = str(CHARTS / "inference-plane")
    text = helm.run("install", "plane", umbrella, "--dry-run=client", "--namespace", "inference", "-f", str(file))
    notes = text.partition("NOTES:\n")[2]
    for name in ("a", "b-predictor", "b-canary-predictor"):
        assert f"rollout status deployment/{name} --timeout 30m" in notes
    assert "No digest for the images curl, envoy, pause, plane, vllm:" in notes
    assert "engine    kserve, image vllm" in notes
