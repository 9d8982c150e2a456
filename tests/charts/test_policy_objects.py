"""The policy service's part of the chart `router`: what it may read, who reaches it, and what routers let it say."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.onehost.router import xds_files
from inference_plane.policy import config

VALUES = yaml.safe_load((CHARTS / "router" / "ci" / "fallback-values.yaml").read_text())
MODELS = VALUES["global"]["models"]


def render(**overlay: Any) -> helm.Render:
    return helm.template("router", values={**VALUES, **overlay})


def with_network(**network: Any) -> dict[str, Any]:
    return {"global": VALUES["global"] | {"network": VALUES["global"]["network"] | network}}


def with_models(**models: Any) -> dict[str, Any]:
    return {"global": VALUES["global"] | {"models": models}}


def names(rendered: helm.Render) -> set[str]:
    return {o["kind"] for o in rendered.objects if o["metadata"]["name"] == "router-policy"}


def routes(rendered: helm.Render) -> dict[str, list[dict[str, Any]]]:
    (configuration,) = json.loads(xds_files(rendered)["routes.json"])["resources"]
    by_model = configuration["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    return {name: entry["action"]["typed_config"]["routes"] for name, entry in by_model.items()}


def bootstrap(rendered: helm.Render) -> dict[str, Any]:
    return json.loads(rendered.find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])


def test_the_service_understands_its_configuration() -> None:
    """By its own reader, which refuses a key that it does not know."""
    text = render(policy={"tuning": {"holdSeconds": 60}}).find("ConfigMap", "router-policy")["data"]["config.json"]
    found = config.parse(text)
    assert found.tuning == dataclasses.replace(config.Tuning(), holdSeconds=60)
    assert found.routers == config.Routers(namespace="inference", service="router", port=8081)
    assert {name: model.fallback for name, model in found.models.items()} == {
        name: "fallback" in entry for name, entry in MODELS.items()
    }
    # Running and waiting ones, as vLLM's --max-num-queued-reqs counts them.
    assert {model.requestsPerReplica for model in found.models.values()} == {64 + 64}


def test_the_schema_knows_exactly_the_service_s_settings() -> None:
    schema = json.loads((CHARTS / "router" / "values.schema.json").read_text())
    known = schema["properties"]["policy"]["properties"]["tuning"]["propertyNames"]["enum"]
    assert known == [field.name for field in dataclasses.fields(config.Tuning)]


def test_a_canary_and_kserve_are_read_by_their_own_names() -> None:
    canary = {"source": "s3://payer-models/clinical-summary/v9/", "percent": 10}
    entry = MODELS["clinical-summary"] | {"engine": "kserve", "namespace": "care", "canary": canary}
    text = render(**with_models(m=entry)).find("ConfigMap", "router-policy")["data"]["config.json"]
    model = config.parse(text).models["m"]
    assert (model.namespace, model.fleets) == ("care", ("m", "m-canary"))
    assert model.deployments == ("m-predictor", "m-canary-predictor")


@pytest.mark.parametrize(
    "overlay",
    [{"policy": {"enabled": False}}, with_models(records=MODELS["records"])],
    ids=["off", "nothing falls back"],
)
def test_where_there_is_nothing_to_decide_nothing_of_it_is_rendered(overlay: dict[str, Any]) -> None:
    rendered = render(**overlay)
    assert not names(rendered)
    assert "layered_runtime" not in bootstrap(rendered)
    assert "runtime_key" not in xds_files(rendered)["routes.json"]
    assert "router-policy" not in yaml.safe_dump(rendered.find("NetworkPolicy", "router"))


def test_all_that_routers_let_it_say_is_the_order_of_what_may_leave() -> None:
    found = routes(render())
    for name, entry in MODELS.items():
        asked = [route for route in found[name] if "runtime_fraction" in route["match"]]
        if "fallback" not in entry:
            assert not asked
            continue
        order = [route["name"] for route in found[name]]
        assert [route["name"] for route in asked] == [f"{name}/chat/shifted/stream", f"{name}/chat/shifted"]
        # Behind the route that keeps the restricted, before those that ask the fleet first.
        assert order.index(f"{name}/chat/restricted") < order.index(f"{name}/chat/shifted/stream")
        assert order.index(f"{name}/chat/shifted") < order.index(f"{name}/chat/stream")
        for route in asked:
            assert route["match"]["runtime_fraction"] == {
                "default_value": {"numerator": 0},
                "runtime_key": f"fallback.{name}",
            }
            assert route["route"]["cluster_specifier_plugin"] == f"bedrock-then-fleet/{name}"


def test_a_router_serves_whether_or_not_it_answers() -> None:
    layer, fixed = bootstrap(render())["layered_runtime"]["layers"]
    assert fixed["rtds_layer"]["rtds_config"]["path_config_source"]["path"] == "xds/runtime.json"
    source = layer["rtds_layer"]["rtds_config"]
    assert source["initial_fetch_timeout"] == "1s"
    assert source["api_config_source"]["api_type"] == "REST"
    assert source["api_config_source"]["cluster_names"] == ["policy"]


def test_it_reads_what_it_must_and_writes_its_lease_and_events_alone() -> None:
    rendered = render(**with_models(m=MODELS["clinical-summary"] | {"namespace": "care"}))
    found = {
        role["metadata"]["namespace"]: [
            (*rule["apiGroups"], *rule["resources"], *rule.get("resourceNames", []), *rule["verbs"])
            for rule in role["rules"]
        ]
        for role in rendered.of_kind("Role")
    }
    reads = [("discovery.k8s.io", "endpointslices", "list"), ("", "pods", "list")]
    events, lease = ("events.k8s.io", "events", "create"), ("coordination.k8s.io", "leases", "router-policy", "get", "update")
    assert found == {"care": [*reads, events], "inference": [*reads, events, lease]}
    account = {"kind": "ServiceAccount", "name": "router-policy", "namespace": "inference"}
    assert [binding["subjects"] for binding in rendered.of_kind("RoleBinding")] == [[account], [account]]
    assert rendered.find("Lease", "router-policy")["metadata"]["namespace"] == "inference"


def test_only_its_pods_hold_a_token_of_the_api_server() -> None:
    mounts = {
        deployment["metadata"]["name"]: deployment["spec"]["template"]["spec"]["automountServiceAccountToken"]
        for deployment in render().of_kind("Deployment")
    }
    assert mounts == {"router": False, "router-policy": True}


def test_it_asks_nothing_of_aws() -> None:
    ack = VALUES["global"] | {
        "aws": {"region": "eu-central-1", "accountId": "111122223333", "clusterName": "prod"},
        "identity": {"manage": "ack"},
    }
    rendered = render(**{"global": ack})
    assert "router-policy" not in {o["spec"]["serviceAccount"] for o in rendered.of_kind("PodIdentityAssociation")}
    (container,) = rendered.find("Deployment", "router-policy")["spec"]["template"]["spec"]["containers"]
    assert {variable["name"] for variable in container["env"]} == {"POD_NAME", "POD_IP"}


def test_the_policy_names_every_flow_and_no_other() -> None:
    spec = render(**with_network(scraperNamespaces=["monitoring"], autoscalerNamespaces=["keda"])).find(
        "NetworkPolicy", "router-policy"
    )["spec"]
    pods = lambda name, component: {  # noqa: E731
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": name, "app.kubernetes.io/component": component}}
    }
    namespace = lambda name: {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}  # noqa: E731
    port = lambda number: [{"protocol": "TCP", "port": number}]  # noqa: E731
    itself, routers = pods("router-policy", "policy"), pods("router", "router")
    assert spec["ingress"] == [
        {"from": [routers, itself], "ports": port(8090)},
        {"from": [namespace("monitoring"), namespace("keda")], "ports": port(8091)},
    ]
    engines = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "engine"}}}
    assert spec["egress"] == [
        {"to": [itself], "ports": port(8090)},
        {"to": [routers], "ports": port(8081)},
        {"to": [namespace("inference") | engines], "ports": port(8001)},
        {"to": [{"ipBlock": {"cidr": "10.0.96.0/28"}}], "ports": port(443)},
    ]


def test_refuses_policies_that_keep_it_from_the_api_server() -> None:
    with pytest.raises(helm.HelmError) as error:
        render(**with_network(apiServerCidrs=[]))
    assert (
        "- global.network.apiServerCidrs: empty, while policy.enabled is true and a model falls back or scales to zero. "
        "The NetworkPolicies deny what nobody names, and the policy service finds engines and waiting pods by the API "
        "server. Set the subnets of the cluster's network interfaces, policy.enabled: false, or "
        "global.network.policies: false."
    ) in str(error.value)


ISSUED = {"mode": "certManager", "certManager": {"issuerRef": {"name": "internal"}}}


def test_routers_believe_what_proves_the_service_s_name() -> None:
    host = "router-policy.inference.svc.cluster.local"
    rendered = render(**{"global": VALUES["global"] | {"tls": ISSUED}})
    (cluster,) = [c for c in bootstrap(rendered)["static_resources"]["clusters"] if c["name"] == "policy"]
    context = cluster["transport_socket"]["typed_config"]
    validation = context["common_tls_context"]["combined_validation_context"]
    assert context["sni"] == host
    assert validation["default_validation_context"]["match_typed_subject_alt_names"] == [
        {"san_type": "DNS", "matcher": {"exact": host}}
    ]
    assert validation["validation_context_sds_secret_config"]["name"] == "ca"
    assert rendered.find("Certificate", "router-policy")["spec"]["dnsNames"] == [host]
    found = config.parse(rendered.find("ConfigMap", "router-policy")["data"]["config.json"])
    pod = rendered.find("Deployment", "router-policy")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert found.tls and found.tls.name == host
    assert {str(path.parent) for path in (found.tls.certificate, found.tls.key, found.tls.ca)} <= mounts
    # The kubelet's probes and Prometheus ask the port that has no TLS.
    assert container["readinessProbe"]["httpGet"]["port"] == container["livenessProbe"]["httpGet"]["port"] == "status"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"policy": found.listen.port, "status": found.listen.statusPort}


def test_a_switch_of_tls_starts_its_pods_anew_and_a_changed_catalogue_does_not() -> None:
    def annotations(**overlay: Any) -> dict[str, str]:
        return render(**overlay).find("Deployment", "router-policy")["spec"]["template"]["metadata"]["annotations"]

    assert annotations() != annotations(**{"global": VALUES["global"] | {"tls": {"mode": "none"}}})
    assert annotations() == annotations(**with_models(summary=MODELS["clinical-summary"]))
    assert annotations() != annotations(policy={"statusPort": 9000})
