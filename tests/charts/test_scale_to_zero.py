"""A model whose `replicas.min` is 0: who wakes it, who owns its replicas, and what its clients hear meanwhile."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from test_canary import FALLBACK
from test_vllm import MODEL, merged, values

from inference_plane import helm
from inference_plane.manifests.kserve import deployments
from inference_plane.onehost.router import xds_files
from inference_plane.policy import config

ASLEEP = {"replicas": {"min": 0, "max": 3}}
BEDROCK = {"global": {"network": {"bedrockCidrs": ["10.0.1.0/24"]}}}
HAVE = "(running ?? 0) + (waiting ?? 0)"
ENGINES = pytest.mark.parametrize("engine", ["vllm", "kserve"])


def render(engine: str, model: Mapping[str, Any] = {}, **over: Any) -> helm.Render:
    return helm.template(engine, values=values({"m": merged(MODEL, {"engine": engine, **ASLEEP, **model})}, **over))


def refusal(chart: str, given: Mapping[str, Any]) -> list[str]:
    with pytest.raises(helm.HelmError) as refused:
        helm.template(chart, values=given)
    return [line for line in str(refused.value).splitlines() if line.startswith("- ")]


# --- the engines -----------------------------------------------------------------------------------------------------


@ENGINES
def test_one_formula_of_the_demand_and_of_what_the_engines_have(engine):
    spec = render(engine).find("ScaledObject", "m")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"], spec["cooldownPeriod"]) == (0, 3, 1800)
    assert spec["advanced"]["scalingModifiers"] == {
        "formula": f"demand == nil ? max(1, {HAVE}) : max(demand, {HAVE})",
        "target": "36",
        "metricType": "AverageValue",
    }
    # `??` takes the place of what could not be read, under this behaviour alone. More replicas than none are needed for
    # KEDA to leave the replicas as they are until a value has failed that often.
    assert spec["fallback"] == {"failureThreshold": 2, "replicas": 1, "behavior": "scalingModifiers"}
    demand, *queues = spec["triggers"]
    assert demand == {
        "type": "metrics-api",
        "name": "demand",
        "metadata": {
            "url": "http://router-policy.inference.svc:8091/demand/m",
            "format": "json",
            "valueLocation": "demand",
            "aggregateFromKubeServiceEndpoints": "true",
            "aggregationType": "max",
            "targetValue": "1",
            "timeout": "3s",
        },
    }
    awake = render(engine, {"replicas": {"min": 1, "max": 3}}).find("ScaledObject", "m")["spec"]
    assert queues == awake["triggers"] and "fallback" not in awake and "cooldownPeriod" not in awake
    assert awake["advanced"]["scalingModifiers"]["formula"] == "running + waiting"


@ENGINES
def test_what_is_at_the_fallback_wants_an_engine_too(engine):
    """Of a fleet that never sleeps as well: it would not grow by what it sheds otherwise."""
    found = FALLBACK | {"replicas": {"min": 2, "max": 3}}
    spec = render(engine, found, **BEDROCK).find("ScaledObject", "m")["spec"]
    assert spec["advanced"]["scalingModifiers"]["formula"] == f"demand == nil ? running + waiting : max(demand, {HAVE})"
    assert spec["fallback"] == {"failureThreshold": 2, "replicas": 2, "behavior": "scalingModifiers"}
    assert [trigger["name"] for trigger in spec["triggers"]] == ["demand", "running", "waiting"]
    assert "cooldownPeriod" not in spec
    alone = render(engine, found, **BEDROCK, autoscaling={"demandPort": None}).find("ScaledObject", "m")["spec"]
    assert alone["advanced"]["scalingModifiers"]["formula"] == "running + waiting"
    assert [trigger["name"] for trigger in alone["triggers"]] == ["running", "waiting"] and "fallback" not in alone


def test_two_fleets_share_the_demand_of_their_model():
    canary = {"canary": {"source": "s3://models/m/v2/", "percent": 10, "replicas": {"min": 1, "max": 2}}}
    rendered = render("vllm", FALLBACK | {"replicas": {"min": 1, "max": 3}} | canary, **BEDROCK)
    formulas = [o["spec"]["advanced"]["scalingModifiers"]["formula"] for o in rendered.of_kind("ScaledObject")]
    assert formulas == [f"demand == nil ? running + waiting : max(demand * {share}, {HAVE})" for share in (0.9, 0.1)]
    asked = {o["spec"]["triggers"][0]["metadata"]["url"] for o in rendered.of_kind("ScaledObject")}
    assert asked == {"http://router-policy.inference.svc:8091/demand/m"}


@ENGINES
def test_replicas_have_one_owner(engine):
    rendered = render(engine, {"replicas": {"min": 0}})
    assert rendered.find("ScaledObject", "m")["spec"]["maxReplicaCount"] == 1, "one, where the entry says no more"
    brought = deployments(rendered.objects) if engine == "kserve" else [rendered.find("Deployment", "m")]
    assert [deployment["spec"].get("replicas") for deployment in brought] == [None]
    assert not rendered.of_kind("PodDisruptionBudget")


def test_the_demand_is_asked_for_where_the_router_is():
    over = {"global": {"routerNamespace": "edge"}, "autoscaling": {"demandPort": 9091}}
    trigger = render("vllm", {"namespace": "care"}, **over).find("ScaledObject", "m")["spec"]["triggers"][0]
    assert trigger["metadata"]["url"] == "http://router-policy.edge.svc:9091/demand/m"


def test_a_canary_of_a_model_that_sleeps_stays_awake():
    canary = {"canary": {"source": "s3://models/m/v2/", "percent": 10}}
    rendered = render("vllm", canary)
    assert [o["metadata"]["name"] for o in rendered.of_kind("ScaledObject")] == ["m"]
    assert rendered.find("Deployment", "m-canary")["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("model", "over", "message"),
    [
        (
            {},
            {"autoscaling": {"cooldownSeconds": 422}},
            "- autoscaling.cooldownSeconds: 422 is not above the 422 s that m takes to start. It would go back to sleep "
            "before those who woke it come back. Set more than 422, or a startSeconds that was measured.",
        ),
        (
            {"startSeconds": 1800},
            {},
            "- autoscaling.cooldownSeconds: 1800 is not above the 1800 s that m takes to start. It would go back to "
            "sleep before those who woke it come back. Set more than 1800, or a startSeconds that was measured.",
        ),
        (
            {},
            {"autoscaling": {"demandPort": None}},
            "- autoscaling.demandPort: null, while global.models.m.replicas.min is 0. The policy service alone knows that "
            "somebody asks for a model without replicas, so it would never be started. Set the port of the policy service "
            "(8091), or m.replicas.min: 1.",
        ),
        (
            {},
            {"autoscaling": {"pollingSeconds": 31}},
            "- autoscaling.pollingSeconds: 31 is more than 30, while m scales to zero. The policy service tells for a "
            "minute that somebody asked, and KEDA could miss it. Set 30 or less.",
        ),
        (
            {},
            {"global": {"network": {"autoscalerNamespaces": []}}},
            "- global.network.autoscalerNamespaces: empty, while m scale by queue. KEDA reads the queue from the pods, "
            "and the NetworkPolicies deny what nobody names. Set the namespace of KEDA, or equal replicas.min and "
            "replicas.max.",
        ),
    ],
)
def test_refused(model, over, message):
    assert refusal("vllm", values({"m": merged(MODEL, {**ASLEEP, **model})}, **over)) == [message]


@pytest.mark.parametrize(
    ("fallback", "line"),
    [
        ({}, "the first request starts a replica, which takes some 422 s: it hears 503 with Retry-After"),
        (FALLBACK, "the first request starts a replica, which takes some 422 s: Amazon Bedrock answers meanwhile"),
    ],
)
def test_notes_say_what_zero_means(fallback, line, tmp_path):
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values({"m": merged(MODEL, {**ASLEEP, **fallback})}, **BEDROCK)))
    text = helm.run("install", "x", str(helm.CHARTS / "vllm"), "--dry-run=client", "--values", str(file))
    assert f"  at zero   {line}\n" in text and "One replica of m" not in text


# --- the router ------------------------------------------------------------------------------------------------------


def router_values(model: Mapping[str, Any] = {}, **over: Any) -> dict[str, Any]:
    network = {"bedrockCidrs": ["10.0.1.0/24"], "apiServerCidrs": ["10.0.2.0/28"]}
    given = {"global": {"network": network}, "clientNamespaces": ["c"], "auth": {"mode": "none"}}
    return values({"m": merged(MODEL, {**ASLEEP, **model})}, **merged(given, over))


def told(rendered: helm.Render) -> dict[str, str | None]:
    """By route, what its requests tell an empty fleet."""
    (configuration,) = json.loads(xds_files(rendered)["routes.json"])["resources"]
    entry = configuration["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]["m"]
    headers = {
        route["name"]: {one["header"]["key"]: one["header"]["value"] for one in route.get("request_headers_to_add", [])}
        for route in entry["action"]["typed_config"]["routes"]
        if "route" in route
    }
    return {name: found.get("x-plane-start-seconds") for name, found in headers.items()}


@pytest.mark.parametrize("fallback", [{}, FALLBACK, FALLBACK | {"firstTokenBudget": "2s"}])
def test_every_way_to_the_fleet_says_how_long_it_takes_to_start(fallback):
    found = told(helm.template("router", values=router_values(fallback)))
    # 360 and 15.3 GiB at a quarter of a GiB a second.
    assert set(found.values()) == {"422"} and len(found) == (6 if fallback else 2)
    assert set(told(helm.template("router", values=router_values(fallback | {"startSeconds": 90}))).values()) == {"90"}
    awake = fallback | {"replicas": {"min": 1, "max": 3}}
    assert set(told(helm.template("router", values=router_values(awake))).values()) == {None}


def test_the_budget_of_a_first_token_stays():
    rendered = helm.template("router", values=router_values(FALLBACK | {"firstTokenBudget": "2s"}))
    (configuration,) = json.loads(xds_files(rendered)["routes.json"])["resources"]
    entry = configuration["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]["m"]
    (route,) = [r for r in entry["action"]["typed_config"]["routes"] if r["name"] == "m/chat/stream"]
    assert [one["header"]["key"] for one in route["request_headers_to_add"]] == [
        "x-plane-start-seconds",
        "x-plane-first-token-budget",
        "x-plane-started-ms",
    ]


def test_the_policy_service_comes_with_it_and_routers_ask_it_nothing():
    rendered = helm.template("router", values=router_values())
    text = rendered.find("ConfigMap", "router-policy")["data"]["config.json"]
    assert config.parse(text).models["m"].minReplicas == 0
    bootstrap = json.loads(rendered.find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])
    assert "layered_runtime" not in bootstrap
    assert [cluster["name"] for cluster in bootstrap["static_resources"]["clusters"]] == ["admin"]
    ours, theirs = (rendered.find("NetworkPolicy", name)["spec"] for name in ("router-policy", "router"))
    assert [rule["ports"][0]["port"] for rule in ours["ingress"]] == [8090, 8091]
    (peer,) = ours["ingress"][0]["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "router-policy", "the other replica alone"
    keda = [peer["namespaceSelector"]["matchLabels"] for peer in ours["ingress"][1]["from"]]
    assert {"kubernetes.io/metadata.name": "keda"} in keda
    assert "router-policy" not in json.dumps(theirs["egress"]) and "router-policy" in json.dumps(theirs["ingress"])


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"policy": {"enabled": False}},
            "- policy.enabled: false, while global.models.m.replicas.min is 0. The policy service alone knows that "
            "somebody asks for a model without replicas, so it would never be started. Set policy.enabled: true, or "
            "m.replicas.min: 1.",
        ),
        (
            {"global": {"network": {"apiServerCidrs": []}}},
            "- global.network.apiServerCidrs: empty, while policy.enabled is true and a model falls back or scales to "
            "zero. The NetworkPolicies deny what nobody names, and the policy service finds engines and waiting pods by "
            "the API server. Set the subnets of the cluster's network interfaces, policy.enabled: false, or "
            "global.network.policies: false.",
        ),
    ],
)
def test_refused_of_the_router(over, message):
    assert refusal("router", router_values(**over)) == [message]


def test_the_umbrella_wants_one_port_of_the_demand():
    given = values({"m": merged(MODEL, ASLEEP)}, **{"global": {"network": {"apiServerCidrs": ["10.0.2.0/28"]}}})
    given |= {"router": {"clientNamespaces": ["c"], "auth": {"mode": "none"}, "policy": {"statusPort": 9091}}}
    why = "KEDA would ask where nobody answers, and a model at zero replicas would be started for it"
    assert refusal("inference-plane", given) == [
        f"- {engine}.autoscaling.demandPort: 8091, while router.policy.statusPort is 9091. {why}. Set 9091 in both places."
        for engine in ("vllm", "kserve")
    ]
    given["vllm"] = given["kserve"] = {"autoscaling": {"demandPort": 9091}}
    rendered = helm.template("inference-plane", values=given)
    assert ":9091/demand/m" in rendered.find("ScaledObject", "m")["spec"]["triggers"][0]["metadata"]["url"]


def test_the_umbrella_has_keda_ask_no_policy_service_that_is_off():
    network = {"bedrockCidrs": ["10.0.1.0/24"], "apiServerCidrs": ["10.0.2.0/28"]}
    model = merged(MODEL, FALLBACK | {"replicas": {"min": 1, "max": 2}})
    given = values({"m": model}, **{"global": {"network": network}})
    given |= {"router": {"clientNamespaces": ["c"], "auth": {"mode": "none"}, "policy": {"enabled": False}}}
    assert refusal("inference-plane", given) == [
        "- vllm.autoscaling.demandPort: 8091, while router.policy.enabled is false. KEDA would ask nobody how many requests "
        "want m, and report it as failing for ever. Set null, so that its engines' queues alone count, or "
        "router.policy.enabled: true."
    ]
    given["vllm"] = {"autoscaling": {"demandPort": None}}
    assert len(helm.template("inference-plane", values=given).find("ScaledObject", "m")["spec"]["triggers"]) == 2
