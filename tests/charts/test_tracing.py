"""Traces: one endpoint in the values, and the router and the engines send there, and may."""

import json

import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.manifests import check

ENDPOINT = "otel.observability.svc.cluster.local:4317"
MODEL = {"source": "s3://models/summary/v7/", "weightsGiB": 15.3, "accelerator": "l40s", "maxModelLen": 4096}


def values(tracing=None, *, model=None, network=None):
    return {
        "global": {
            "aws": {"region": "eu-central-1"},
            "tls": {"mode": "none"},
            "network": {
                "albSubnetCidrs": ["10.0.0.0/20"], "s3Cidrs": ["10.0.64.0/20"], "otlpCidrs": ["10.0.96.0/20"],
                **(network or {}),
            },
            "tracing": {"endpoint": ENDPOINT, **(tracing or {})},
            "models": {"summary": MODEL | (model or {})},
        },
    }  # fmt: skip


def router(tracing=None, **more):
    return helm.template("router", values=values(tracing, **more) | {"auth": {"mode": "none"}})


def bootstrap(rendered):
    return json.loads(rendered.find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])


def manager(rendered):
    listeners = {listener["name"]: listener for listener in bootstrap(rendered)["static_resources"]["listeners"]}
    return listeners["plane"]["filter_chains"][0]["filters"][0]["typed_config"]


def engine(rendered, name="summary"):
    (container,) = rendered.find("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return container["args"], {variable["name"]: variable["value"] for variable in container["env"]}


def ways_out(rendered, name):
    """CIDR and port of each way out of a policy that goes by address."""
    rules = rendered.find("NetworkPolicy", name)["spec"]["egress"]
    return {
        (peer["ipBlock"]["cidr"], port["port"]) for rule in rules for peer in rule["to"] if "ipBlock" in peer
        for port in rule["ports"]
    }  # fmt: skip


def test_nothing_is_traced_unless_it_is_said():
    rendered = router({"endpoint": ""})
    assert "tracing" not in manager(rendered) and "traceparent" not in rendered.text
    args, env = engine(helm.template("vllm", values=values({"endpoint": ""})))
    assert not [arg for arg in args if "otlp" in arg] and not [name for name in env if name.startswith("OTEL")]
    assert ("10.0.96.0/20", 4317) not in ways_out(rendered, "router")


def test_the_router_samples_and_drops_what_clients_say():
    found = manager(router({"samplePercent": 2.5}))
    assert found["tracing"]["random_sampling"] == {"value": 2.5}
    assert found["tracing"]["client_sampling"] == {"value": 0}
    (mutations,) = [one["typed_config"]["mutations"] for one in found["early_header_mutation_extensions"]]
    removed = {mutation["remove"] for mutation in mutations if "remove" in mutation}
    assert removed == {"traceparent", "tracestate", "baggage", "x-client-trace-id"}


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_router_and_engine_send_to_the_same_place(protocol, tls):
    tracing = {"protocol": protocol, "tls": tls}
    rendered = router(tracing)
    (cluster,) = [c for c in bootstrap(rendered)["static_resources"]["clusters"] if c["name"] == "traces"]
    address = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert f"{address['address']}:{address['port_value']}" == ENDPOINT
    assert ("transport_socket" in cluster) == tls
    provider = manager(rendered)["tracing"]["provider"]["typed_config"]
    url = f"{'https' if tls else 'http'}://{ENDPOINT}" + ("/v1/traces" if protocol == "http" else "")
    if protocol == "http":
        assert provider["http_service"]["http_uri"]["uri"] == url
    else:
        assert provider["grpc_service"]["envoy_grpc"] == {"cluster_name": "traces"}
    args, env = engine(helm.template("vllm", values=values(tracing)))
    assert f"--otlp-traces-endpoint={url}" in args
    assert env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == {"grpc": "grpc", "http": "http/protobuf"}[protocol]
    assert env["OTEL_SERVICE_NAME"] == "summary"


@pytest.mark.parametrize("source", ["s3://models/summary/v7/", "file:///models/summary/v7/"])
def test_the_policies_let_spans_out_and_nothing_more(source):
    engines = {"model": {"source": source}}
    traced, plain = (helm.template("vllm", values=values(way, **engines)) for way in ({}, {"endpoint": ""}))
    more = ways_out(traced, "summary") - ways_out(plain, "summary")
    assert more == {("10.0.96.0/20", 4317)}
    assert ways_out(router(), "router") - ways_out(router({"endpoint": ""}), "router") == more
    assert [str(finding) for finding in check(traced.objects)] == []


def test_each_fleet_has_a_name_of_its_own():
    canary = {"canary": {"source": "s3://models/summary/v8/", "percent": 10}}
    rendered = helm.template("vllm", values=values(model=canary))
    assert engine(rendered, "summary-canary")[1]["OTEL_SERVICE_NAME"] == "summary-canary"


def test_an_engine_without_the_exporter_is_left_out_and_notes_say_so(tmp_path):
    images = yaml.safe_load((CHARTS / "plane-lib" / "values.yaml").read_text())["defaults"]["images"]
    old = values()
    old["global"]["images"] = {"vllm": images["vllm"] | {"tag": "v0.16.0", "version": "0.16.0"}}
    rendered = helm.template("vllm", values=old)
    args, env = engine(rendered)
    assert not [arg for arg in args if "otlp" in arg] and "OTEL_SERVICE_NAME" not in env
    assert ways_out(rendered, "summary") == {("10.0.64.0/20", 443), ("169.254.170.23/32", 80)}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(old))
    install = ("install", "plane", str(CHARTS / "vllm"), "--dry-run=client", "--values", str(tmp_path / "values.yaml"))
    assert (
        "- vLLM 0.16.0 of summary has no --otlp-traces-endpoint: traces end at the router. Set an image of 0.17.1 or "
        "newer.\n"
    ) in helm.run(*install)


@pytest.mark.parametrize("chart", ["router", "vllm"])
def test_policies_that_would_keep_spans_in_are_refused(chart):
    with pytest.raises(helm.HelmError) as error:
        found = values(network={"otlpCidrs": []})
        helm.template(chart, values=found | ({"auth": {"mode": "none"}} if chart == "router" else {}))
    assert (
        f"- global.network.otlpCidrs: empty, while global.tracing.endpoint is {ENDPOINT}. The NetworkPolicies deny what "
        "nobody names. Set the CIDRs of the endpoint, or global.network.policies: false.\n"
    ) in str(error.value)


def test_an_entry_may_not_send_its_spans_elsewhere():
    with pytest.raises(helm.HelmError, match="args.otlp-traces-endpoint"):
        helm.template("vllm", values=values(model={"args": {"otlp-traces-endpoint": "http://elsewhere:4317"}}))


@pytest.mark.parametrize("endpoint", ["otel", "http://otel:4317", "otel:4317/v1", "OTEL:4317"])
def test_an_endpoint_is_a_host_and_a_port(endpoint):
    with pytest.raises(helm.HelmError, match="global/tracing/endpoint|global.tracing.endpoint"):
        router({"endpoint": endpoint})
