"""A canary in the catalogue: the second fleet that each chart makes of it, and what is refused."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from test_vllm import MODEL, NEURON, engine, env, kinds, merged, pod, refusal, render, values

from inference_plane import fit, helm
from inference_plane.onehost.router import xds_files

CANARY = {"source": "s3://models/m/v2/", "percent": 10}
WITH = {"canary": CANARY}


def canary(**over: Any) -> dict[str, Any]:
    return {"canary": CANARY | over}


# --- the engines -----------------------------------------------------------------------------------------------------


def test_a_canary_has_all_that_a_fleet_has():
    plain, rendered = render({"replicas": {"min": 2}}), render({"replicas": {"min": 2}} | WITH)
    assert kinds(rendered) - kinds(plain) == {
        ("Deployment", "m-canary"),
        ("Service", "m-canary"),
        ("ServiceAccount", "m-canary"),
        ("NetworkPolicy", "m-canary"),
    }
    for kind, name in kinds(plain):
        assert rendered.find(kind, name) == plain.find(kind, name), "the stable fleet does not change"


def test_null_ends_a_canary():
    assert render({"canary": None}).text == render().text


def test_a_canary_differs_in_its_weights_and_answers_to_the_same_names():
    rendered = render({"servedNames": ["org/m"]} | canary(weightsGiB=8))
    stable, other = engine(rendered), engine(rendered, "m-canary")
    differs = [(mine, its) for mine, its in zip(stable["args"], other["args"], strict=True) if mine != its]
    assert [pair for pair in differs if "--model-loader" not in pair[0]] == [("s3://models/m/v1/", "s3://models/m/v2/")]
    assert other["args"][2:5] == ["--served-model-name", "m", "org/m"]
    assert stable["resources"] == other["resources"]
    versions = [env(container).pop("PLANE_MODEL_VERSION") for container in (stable, other)]
    assert versions == ["v1", "v2"] and env(stable) | {"PLANE_MODEL_VERSION": "v2"} == env(other)
    assert stable["startupProbe"]["failureThreshold"] > other["startupProbe"]["failureThreshold"]


def test_a_canary_is_told_apart_by_name_version_and_account():
    rendered = render(WITH)
    deployment = rendered.find("Deployment", "m-canary")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert (labels["inference-plane/model"], labels["inference-plane/version"]) == ("m", "v2")
    assert labels["app.kubernetes.io/name"] == "m-canary"
    assert pod(rendered, "m-canary")["serviceAccountName"] == "m-canary"
    for kind in ("Service", "NetworkPolicy"):
        own, other = (rendered.find(kind, name)["spec"] for name in ("m", "m-canary"))
        selects = [spec.get("selector") or spec["podSelector"]["matchLabels"] for spec in (own, other)]
        assert [selected["app.kubernetes.io/name"] for selected in selects] == ["m", "m-canary"]


@pytest.mark.parametrize(
    ("replicas", "fixed", "scaled"),
    [(None, 1, None), ({"min": 2}, 2, None), ({"max": 3}, None, (1, 3)), ({"min": 2, "max": 3}, None, (2, 3))],
)
def test_a_canary_has_one_replica_or_what_it_says(replicas, fixed, scaled):
    rendered = render({"replicas": {"min": 4, "max": 8}} | canary(**({"replicas": replicas} if replicas else {})))
    assert rendered.find("Deployment", "m-canary")["spec"].get("replicas") == fixed
    found = [o["spec"] for o in rendered.of_kind("ScaledObject") if o["metadata"]["name"] == "m-canary"]
    assert [(spec["minReplicaCount"], spec["maxReplicaCount"]) for spec in found] == ([scaled] if scaled else [])
    for spec in found:
        assert spec["scaleTargetRef"]["name"] == "m-canary"
        assert {t["metadata"]["url"] for t in spec["triggers"]} == {"http://m-canary.inference.svc:8001/metrics"}
        assert all('model_name="m"' in t["metadata"]["valueLocation"] for t in spec["triggers"])


def test_a_canary_may_be_moved_because_the_other_fleet_has_its_requests():
    rendered = render(WITH)
    asked = {
        name: "karpenter.sh/do-not-disrupt"
        in rendered.find("Deployment", name)["spec"]["template"]["metadata"]["annotations"]
        for name in ("m", "m-canary")
    }
    assert asked == {"m": True, "m-canary": False}


def test_a_canary_tries_another_engine_version():
    images = {"images": {"next": {"repository": "docker.io/vllm/vllm-openai", "tag": "v0.28.0", "version": "0.28.0"}}}
    rendered = render(canary(image="next"), **{"global": images})
    assert engine(rendered, "m-canary")["image"] == "docker.io/vllm/vllm-openai:v0.28.0"
    flags = [
        any(arg.startswith("--max-num-queued-reqs") for arg in engine(rendered, n)["args"]) for n in ("m", "m-canary")
    ]
    assert flags == [True, False]


def test_a_canary_on_neuron_has_an_artifact_of_its_own():
    compiled = NEURON["compiled"] | {"source": "s3://models/n-compiled/v2/"}
    rendered = render({"canary": {"source": "s3://models/n/v2/", "percent": 5, "compiled": compiled}}, base=NEURON)
    (artifacts,) = [c for c in pod(rendered, "m-canary")["initContainers"] if c["name"] == "artifacts"]
    assert artifacts["args"][::2] == ["s3://models/n/v2/", "s3://models/n-compiled/v2/"]


# --- the router ------------------------------------------------------------------------------------------------------


def router(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The route configuration and the clusters."""
    network = {
        "global": {"network": {"bedrockCidrs": ["10.0.1.0/24"], "apiServerCidrs": ["10.0.2.0/28"]}},
        "clientNamespaces": ["c"],
        "auth": {"mode": "none"},
    }
    data = xds_files(helm.template("router", values=values({"m": MODEL | model}, **network)))
    return json.loads(data["routes.json"])["resources"][0], json.loads(data["clusters.json"])["resources"]


def groups(routes: Mapping[str, Any]) -> dict[str, list[dict[str, int]]]:
    """By plugin, the clusters of each group with their weights."""
    return {
        plugin["extension"]["name"]: [
            {c["cluster_name"]: c["weight"] for c in group["clusters"]}
            for group in plugin["extension"]["typed_config"]["priority_groups"]
        ]
        for plugin in routes.get("cluster_specifier_plugins", [])
    }


FALLBACK = {"residency": "region", "fallback": {"model": "openai.gpt-oss-120b-1:0", "retention": "none"}}


@pytest.mark.parametrize("fallback", [{}, FALLBACK], ids=["kept", "fallback"])
def test_the_router_splits_the_first_try_alone(fallback):
    routes, clusters = router(WITH | fallback)
    split, stable, bedrock = {"fleet/m": 90, "fleet/m-canary": 10}, {"fleet/m": 100}, {"bedrock/m": 100}
    expected = {"fleets/m": [split, stable]}
    if fallback:
        expected["fleet-then-bedrock/m"] = [split, stable, bedrock]
        expected["bedrock-then-fleet/m"] = [bedrock, split, stable]
    assert groups(routes) == expected
    assert [c["name"] for c in clusters] == ["fleet/m", *(["bedrock/m"] if fallback else []), "fleet/m-canary"]


def test_a_share_of_nothing_makes_the_cluster_known_and_sends_it_nothing():
    routes, clusters = router(canary(percent=0))
    assert groups(routes) == {"fleets/m": [{"fleet/m": 100}, {"fleet/m": 100}]}
    assert [c["name"] for c in clusters] == ["fleet/m", "fleet/m-canary"]
    assert render(canary(percent=0)).text == render(canary()).text, "the engines are there"


def test_each_fleets_cluster_says_its_own_version():
    _, clusters = router(WITH)
    facts = {c["name"]: c["metadata"]["filter_metadata"]["inference-plane"] for c in clusters}
    assert {name: (f["model"], f["model_version"]) for name, f in facts.items()} == {
        "fleet/m": ("m", "v1"),
        "fleet/m-canary": ("m", "v2"),
    }


def test_no_route_leads_past_the_split():
    """A route to the stable cluster alone would give the canary less than its share, and nobody would notice."""
    text = json.dumps(router(WITH | FALLBACK)[0]["virtual_hosts"])
    assert '"cluster": "fleet/m"' not in text and text.count('"fleets/m"') == 2


# --- nodes and memory ------------------------------------------------------------------------------------------------


def pools(model: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        "nodeClass": {"role": "n", "subnetTags": {"t": "p"}, "securityGroupTags": {"f": "n"}},
        "ec2": {"amiAlias": "bottlerocket@1.46.0"},
    }
    return helm.template("karpenter-nodepools", values=values({"m": MODEL | model}, **own)).find(
        "NodePool", "inference-l40s-interactive"
    )["spec"]["limits"]


def test_node_pools_have_room_for_the_canary():
    assert pools({})["nvidia.com/gpu"] + 3 == pools(canary(replicas={"min": 2}))["nvidia.com/gpu"], (
        "2 and one that surges"
    )


def test_scripts_fit_weighs_the_canary(tmp_path):
    defaults = {"modelDefaults": {"tensorParallelSize": 1}, "accelerators": {"l40s": {"resource": "nvidia.com/gpu"}}}
    found = fit.resolve({"global": {"models": {"m": MODEL | canary(weightsGiB=30)}}}, defaults)
    assert {name: (m["weightsGiB"], m["path"]) for name, m in found.items()} == {
        "m": (15.3, "global.models.m"),
        "m-canary": (30, "global.models.m.canary"),
    }


# --- refusals --------------------------------------------------------------------------------------------------------

PATH = "global.models.m.canary"
REFUSED = {
    "the entry's own weights": (
        canary(source=MODEL["source"]),
        f"- {PATH}.source: s3://models/m/v1/ is the entry's own. Both fleets would serve the same weights under one "
        "version, and nothing would be tried. Set the prefix of another version, or canary: null.",
    ),
    "a moving source": (
        canary(source="s3://models/m/latest/"),
        f"- {PATH}.source: s3://models/m/latest/ passes through latest. What a moving name holds "
        "changes without a rollout, "
        "and no audit can tell which weights answered. Set a path with a version at its end, such as "
        "s3://models/clinical-summary/v7/.",
    ),
    "weights that do not fit": (
        canary(weightsGiB=60),
        f"- {PATH}: weights 60.0 + overhead 2.0 + one sequence of 16384 tokens 2.0 = 64.0 GiB do "
        "not fit 40.2 GiB (44.7 GiB "
        "x 1 l40s x 0.9). Set tensorParallelSize: 2, or an accelerator with more memory.",
    ),
    "replicas": (
        canary(replicas={"min": 3, "max": 2}),
        f"- {PATH}.replicas: min 3 is above max 2. No number of replicas is both. Set max: 3 or "
        "more, or min: 2 or less.",
    ),
    "scale to zero": (
        canary(replicas={"min": 0}),
        f"- {PATH}.replicas.min: 0 scales a canary to zero. The stable fleet answers while a canary sleeps, so that "
        "nothing would be learned of it. Set replicas.min to 1, or canary: null.",
    ),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(model, message):
    assert refusal(model) == [message]


def test_an_image_that_does_not_exist_is_refused():
    (line,) = refusal(canary(image="nightly"))
    assert line.startswith(f"- {PATH}.image: nightly is not in global.images. There are curl, envoy, ")


def named(*names: str) -> list[str]:
    catalogue = {name: MODEL | (WITH if not name.endswith("-canary") else {}) for name in names}
    with pytest.raises(helm.HelmError) as refused:
        helm.template("vllm", values=values(catalogue))
    return [line for line in str(refused.value).splitlines() if line.startswith("- ")]


def test_names_that_leave_no_room_for_the_canarys_are_refused():
    assert helm.template("vllm", values=values({"m" * 33: MODEL | WITH})).find("Deployment", "m" * 33 + "-canary")
    assert named("m" * 34) == [
        f"- global.models.{'m' * 34}.canary: the fleet's name {'m' * 34}-canary has 41 characters. "
        "A fleet's objects take "
        "its name, which has at most 40 as a model's has. Set the canary for a model whose name "
        "has at most 33 characters."
    ]
    assert named("m", "m-canary") == [
        f"- {PATH}: m-canary is a model of its own. The canary's Service and that model's would be "
        "one object. Set another "
        "name for global.models.m-canary."
    ]


def test_a_canary_on_neuron_without_a_fitting_artifact_is_refused():
    own = {"source": "s3://models/n/v2/", "percent": 5}
    assert refusal({"canary": own}, base=NEURON) == [
        f"- {PATH}.compiled: absent, while inferentia2 is Neuron. Without a compiled artifact each "
        "replica compiles for "
        "minutes to hours at its start. Set compiled.source and the tensorParallelSize, "
        "maxModelLen and maxNumSeqs it was "
        "compiled for."
    ]
    other = merged(NEURON["compiled"], {"source": "s3://models/n-compiled/v2/", "maxModelLen": 2048})
    assert refusal({"canary": own | {"compiled": other}}, base=NEURON) == [
        f"- {PATH}.compiled.maxModelLen: 4096, but the artifact was compiled for 2048. Neuron runs "
        "only the shapes that were "
        "compiled, and would compile again at each start. Set maxModelLen: 2048, or an artifact compiled for 4096."
    ]


@pytest.mark.parametrize("wrong", [{"percent": -1}, {"percent": 100}, {"residency": "anywhere"}, {"maxModelLen": 8}])
def test_what_a_canary_may_not_say_is_refused_by_the_schema(wrong):
    with pytest.raises(helm.HelmError, match="canary"):
        render(canary(**wrong))


def test_a_flag_that_the_entry_may_not_set_is_refused_once():
    assert len(refusal({"args": {"port": 1}} | WITH)) == 1
