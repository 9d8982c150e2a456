"""The chart `router`: what it refuses, word by word, and what its objects say."""

import json
import pathlib

import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.onehost.router import containers, xds_files

VALUES = yaml.safe_load((CHARTS / "router" / "ci" / "fallback-values.yaml").read_text())


def merged(base, overlay):
    """Values as Helm merges them: maps by key, anything else replaced."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: merged(base.get(key), value) for key, value in overlay.items()}


def render(overlay=None):
    return helm.template("router", values=merged(VALUES, overlay or {}))


def xds(rendered, name):
    return json.loads(xds_files(rendered)[name])["resources"]


#: Keys that nobody fetches.
INLINE = {"jwks": {"uri": "", "inline": {"keys": [{"kty": "RSA", "kid": "1", "n": "AQAB", "e": "AQAB"}]}}}

REFUSALS = {
    "tokens of nobody": (
        {"auth": {"issuer": ""}},
        "- auth.issuer: empty, while auth.mode is jwt. A token is believed of one issuer alone, and without a token "
        "nobody is served. Set the `iss` of your tokens, such as https://payer.okta.example/oauth2/default, or "
        "auth.mode: none to serve whoever reaches the router.",
    ),
    "tokens for anything": (
        {"auth": {"audiences": []}},
        "- auth.audiences: empty, while auth.mode is jwt. A token that the issuer made for another service would be "
        "good here. Set the `aud` of the tokens that are meant for this plane.",
    ),
    "no keys": (
        {"auth": {"jwks": {"uri": ""}}},
        "- auth.jwks: has neither uri nor inline.keys. The keys of the issuer come from one place. Set uri to the "
        "issuer's `jwks_uri`, or inline to its key set.",
    ),
    "keys from two places": (
        {"auth": {"jwks": {"inline": INLINE["jwks"]["inline"]}}},
        "- auth.jwks: has both uri and inline.keys. The keys of the issuer come from one place. Set uri to the "
        "issuer's `jwks_uri`, or inline to its key set.",
    ),
    "keys that nobody may fetch": (
        {"global": {"network": {"jwksCidrs": []}}},
        "- global.network.jwksCidrs: empty, while auth.jwks.uri is set. The NetworkPolicies deny what nobody names, and "
        "without keys every token is refused. Set the CIDRs of the issuer, or of auth.jwks.proxy, auth.jwks.inline in "
        "the uri's place, or global.network.policies: false.",
    ),
    "a proxy for keys that nobody fetches": (
        {"auth": {"jwks": {"proxy": "proxy.example:3128", "uri": "", "inline": INLINE["jwks"]["inline"]}}},
        "- auth.jwks.proxy: proxy.example:3128, without a uri. Keys that stand inline are fetched by nobody. Set uri, or "
        "an empty proxy.",
    ),
    "one group for two teams": (
        {"global": {"teams": {"appeals": {"claim": "inference-care"}}}},
        "- global.teams.care.claim: inference-care means the team appeals already. A token names exactly one team. Set "
        "another claim.",
    ),
    "no team": (
        {"global": {"teams": {"appeals": None, "care": None}, "models": {"clinical-summary": None, "records": None}}},
        "- global.teams: empty, while auth.mode is jwt. Who is of no team is let in nowhere. Set the teams that may "
        "call, or auth.mode: none.",
    ),
    "access that nothing enforces": (
        {"auth": {"mode": "none"}},
        "- global.models.records.access: for care alone, while the router's auth.mode is none. Nobody's team is known "
        "then, so it would look enforced and bind nobody. Set auth.mode: jwt, or access: null.",
    ),
    "a time-out that no load balancer has": (
        {"requestTimeout": "4001s"},
        "- requestTimeout: 4001s is longer than 4000s. A load balancer's idle timeout cannot be longer, so it would cut "
        "such an answer. Set at most 4000s.",
    ),
    "a hang guard that outlasts the request": (
        {"hangGuard": "10m"},
        "- hangGuard: 10m is not below requestTimeout 600s. The fallback would never have its turn. Set a shorter "
        "hangGuard.",
    ),
    "a budget that outlasts the hang guard": (
        {"global": {"models": {"clinical-summary": {"firstTokenBudget": "2m"}}}},
        "- global.models.clinical-summary.firstTokenBudget: 2m is not below the router's hangGuard 120s. The hang guard "
        "would end the try first. Set a shorter budget, or a longer hangGuard.",
    ),
    "one port twice": (
        {"status": {"port": 8080}},
        "- listener.port, status.port, noCapacity.port: 8080, 8080, 8082 are not three ports. Only one listener can open "
        "a port. Set three different ports.",
    ),
    "clear text to Amazon Bedrock": (
        {"bedrock": {"tls": False}},
        "- bedrock.tls: false with the host bedrock-runtime.eu-central-1.amazonaws.com. Prompts would leave the pod in "
        "clear text. Set bedrock.tls: true; it may be off only for a stand-in on loopback.",
    ),
    "policies that let no client in": (
        {"global": {"network": {"albSubnetCidrs": []}}},
        "- global.network.albSubnetCidrs: empty, while network.policies is true and clientNamespaces names nobody. No "
        "client could reach the router. Set the CIDRs of the load balancer's subnets, or clientNamespaces.",
    ),
    "more models than a ConfigMap holds": (
        {"global": {"models": {
            f"model-{n}": VALUES["global"]["models"]["clinical-summary"] | {"servedNames": []} for n in range(250)
        }}},
        "KiB of the 900 that a ConfigMap holds for them. The API server would refuse the ConfigMap. Set fewer models in "
        "this environment, or split them over two planes.",
    ),
}


@pytest.mark.parametrize(("overlay", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses(overlay, message):
    with pytest.raises(helm.HelmError) as error:
        render(overlay)
    assert "values of the router do not fit together:\n" in str(error.value)
    assert message in str(error.value).replace("\n\n", "\n")


WRONG_FORMS = {
    "a unit after a blank": ({"requestTimeout": "600 s"}, "at '/requestTimeout': '600 s' does not match pattern"),
    "an unknown key": ({"replcas": 3}, "at '': additional properties 'replcas' not allowed"),
    "more than half of a fleet ejected": ({"health": {"maxEjectionPercent": 100}}, "at '/health/maxEjectionPercent'"),
    "keys in clear text": ({"auth": {"jwks": {"uri": "http://issuer.example/keys"}}}, "at '/auth/jwks/uri'"),
    "a private key": (
        {"auth": {"jwks": {"inline": {"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "d": "x"}]}}}},
        "at '/auth/jwks/inline/keys/0': additional properties 'd' not allowed",
    ),
    "a shared secret": (
        {"auth": {"jwks": {"inline": {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}}}},
        "at '/auth/jwks/inline/keys/0/kty': value must be one of 'RSA', 'EC', 'OKP'",
    ),
    "a key where certificates belong": (
        {"auth": {"jwks": {"caCertificates": "-----BEGIN PRIVATE KEY-----"}}}, "at '/auth/jwks/caCertificates'",
    ),
    "access for nobody": (
        {"global": {"models": {"records": {"access": {"teams": []}}}}},
        "at '/global/models/records/access/teams': minItems: got 0, want 1",
    ),
    "a host name as resolver": ({"dns": {"resolvers": ["dns:53"]}}, "at '/dns/resolvers/0'"),
}


@pytest.mark.parametrize(("overlay", "message"), WRONG_FORMS.values(), ids=WRONG_FORMS)
def test_the_schema_refuses(overlay, message):
    with pytest.raises(helm.HelmError, match="values don't meet the specifications of the schema") as error:
        render(overlay)
    assert message in str(error.value)


def test_only_a_model_with_a_fallback_has_a_way_to_bedrock():
    rendered = render()
    clusters = {cluster["name"] for cluster in xds(rendered, "clusters.json")}
    assert clusters == {
        "fleet/clinical-summary", "bedrock/clinical-summary", "fleet/letters", "bedrock/letters", "fleet/records",
    }  # fmt: skip
    (routes,) = xds(rendered, "routes.json")
    by_model = routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    assert set(by_model) == {"clinical-summary", "clinical/summary", "letters", "records"}
    assert "bedrock" not in json.dumps(by_model["records"])


@pytest.mark.parametrize(("model", "wide_enough"), [
    ("clinical-summary", "^(region|geography|anywhere)$"),
    ("letters", "^(geography|anywhere)$"),
])
def test_the_first_chat_route_keeps_a_tighter_residency_in_the_fleet(model, wide_enough):
    (routes,) = xds(render(), "routes.json")
    by_model = routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    chat = [
        route for route in by_model[model]["action"]["typed_config"]["routes"]
        if route["match"].get("path") == "/v1/chat/completions"
    ]  # fmt: skip
    _, present, narrow = chat[0]["match"]["headers"]
    assert present == {"name": "x-residency", "present_match": True}
    assert (narrow["name"], narrow["invert_match"]) == ("x-residency", True)
    assert narrow["string_match"]["safe_regex"]["regex"] == wide_enough
    assert chat[0]["route"]["cluster"] == f"fleet/{model}"


def test_every_cluster_states_its_limits_and_bedrock_its_tls():
    for cluster in xds(render(), "clusters.json"):
        (limits,) = cluster["circuit_breakers"]["thresholds"]
        assert {"max_connections", "max_pending_requests", "max_requests", "max_retries"} <= set(limits)
        if cluster["name"].startswith("bedrock/"):
            tls = cluster["transport_socket"]["typed_config"]
            assert tls["sni"] == "bedrock-runtime.eu-central-1.amazonaws.com"
            (name,) = tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
            assert name["matcher"] == {"exact": tls["sni"]}
            (options,) = cluster["typed_extension_protocol_options"].values()
            filters = options["http_filters"]
            assert [f["name"].rsplit(".", 1)[1] for f in filters] == [
                "header_mutation", "lua", "aws_request_signing", "upstream_codec",
            ]  # fmt: skip


def test_a_cluster_says_what_the_catalogue_says_and_not_what_the_fallback_reaches():
    clusters = xds(render({"global": {"models": {"clinical-summary": {"residency": "anywhere"}}}}), "clusters.json")
    facts = {cluster["name"]: cluster["metadata"]["filter_metadata"]["inference-plane"] for cluster in clusters}
    for backend in ("fleet", "bedrock"):
        fact = facts[f"{backend}/clinical-summary"]
        assert (fact["backend"], fact["model"], fact["residency"]) == (backend, "clinical-summary", "anywhere")
    assert facts["fleet/records"]["residency"] == "cluster"


def test_bedrock_is_called_in_the_own_region_as_the_pods_own_role_and_is_who_it_says():
    called = [cluster for cluster in xds(render(), "clusters.json") if cluster["name"].startswith("bedrock/")]
    assert len(called) == 2
    for cluster in called:
        options = cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
        signing = options["http_filters"][2]["typed_config"]
        assert (signing["service_name"], signing["region"]) == ("bedrock", "eu-central-1")
        # Without the custom chain Envoy also takes keys from the environment and the node's role.
        only_the_pods = {"custom_credential_provider_chain": True, "container_credential_provider": {}}
        assert signing["credential_provider"] == only_the_pods
        trust = cluster["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"]
        assert trust["trusted_ca"] == {"filename": "/etc/ssl/certs/ca-certificates.crt"}


def model_routes(rendered):
    """Every route of every model that leads to a cluster."""
    (routes,) = xds(rendered, "routes.json")
    by_model = routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    every = [route for entry in by_model.values() for route in entry["action"]["typed_config"]["routes"]]
    found = [route for route in every if "route" in route]
    assert len(found) > 5
    return found


def test_only_a_stream_that_may_fall_back_has_a_hang_guard_and_a_budget():
    """On anything else a guard would cut long answers, and start them anew elsewhere."""
    for route in model_routes(render({"hangGuard": "100s", "requestTimeout": "700s"})):
        shifted = route["name"].endswith("/chat/shifted/stream")
        budgeted = route["name"].endswith("/chat/stream")
        guarded = budgeted or shifted
        assert float(route["route"]["timeout"].removesuffix("s")) == 700, route["name"]
        guard = route["route"].get("retry_policy", {}).get("per_try_timeout")
        assert (guard and float(guard.removesuffix("s"))) == (100 if guarded else None), route["name"]
        added = {header["header"]["key"] for header in route.get("request_headers_to_add", [])}
        assert added <= ({"x-plane-first-token-budget", "x-plane-started-ms"} if budgeted else set()), route["name"]


def test_what_the_fleet_cluster_says_of_health():
    """Rules that only a lost node or a split fleet would show, so that no test on one machine can."""
    fleets = [cluster for cluster in xds(render(), "clusters.json") if cluster["name"].startswith("fleet/")]
    assert len(fleets) == 3
    for fleet in fleets:
        assert fleet["common_lb_config"]["healthy_panic_threshold"] == {"value": 0}
        assert fleet["ignore_health_on_host_removal"] is True
        probes = fleet["upstream_connection_options"]["tcp_keepalive"]
        assert probes["keepalive_time"] + probes["keepalive_interval"] * probes["keepalive_probes"] <= 60


def test_the_admin_interface_is_a_file_that_only_envoy_reads_and_three_of_its_pages_are_served():
    bootstrap = json.loads(render().find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])
    assert bootstrap["admin"]["address"] == {"pipe": {"path": "run/admin.sock", "mode": 0o600}}
    listeners = {listener["name"]: listener for listener in bootstrap["static_resources"]["listeners"]}
    assert set(listeners) == {"plane", "no-capacity", "status"}
    assert listeners["no-capacity"]["address"]["socket_address"]["address"] == "127.0.0.1"
    # A full router is not a dead one.
    assert listeners["status"]["bypass_overload_manager"] is True
    (network_filter,) = listeners["status"]["filter_chains"][0]["filters"]
    (host,) = network_filter["typed_config"]["route_config"]["virtual_hosts"]
    get = [{"name": ":method", "string_match": {"exact": "GET"}}]
    served = ("/ready", "/alive", "/metrics")
    assert [route["match"] for route in host["routes"]] == [{"path": path, "headers": get} for path in served]


def test_a_drain_takes_one_router_at_a_time():
    rendered = render()
    assert rendered.find("PodDisruptionBudget", "router")["spec"]["maxUnavailable"] == 1
    strategy = rendered.find("Deployment", "router")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert not render({"replicas": 1, "policy": {"replicas": 1}}).of_kind("PodDisruptionBudget")


def test_a_changed_catalogue_restarts_nothing_and_a_changed_listener_does():
    def checksum(overlay):
        template = render(overlay).find("Deployment", "router")["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/bootstrap"]

    same = checksum({})
    assert checksum({"global": {"models": {"records": {"enabled": False}}}}) == same
    assert checksum({"maxBodyMiB": 8}) != same


def test_a_leaving_pod_serves_as_long_as_it_says_and_is_not_killed_before():
    pod = render({"drainSeconds": 90, "endpointStalenessSeconds": 7}).find("Deployment", "router")["spec"]["template"]
    (main,), (envoy,) = pod["spec"]["containers"], pod["spec"]["initContainers"]
    assert main["command"] == ["python", "-m", "inference_plane.drain"]
    assert main["args"] == ["--limit", "90", "--staleness", "7"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > 90
    # Kubernetes ends a sidecar after the other containers; an ordinary one the pod would wait for.
    assert (envoy["name"], envoy["restartPolicy"]) == ("envoy", "Always")
    assert pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "envoy"
    run = {"name": "run", "mountPath": "/etc/inference-plane/run"}
    assert main["volumeMounts"] == [run] and run in envoy["volumeMounts"]
    assert main["workingDir"] == envoy["workingDir"]


def test_a_drain_that_ends_before_clients_have_noticed_is_refused():
    with pytest.raises(helm.HelmError) as error:
        render({"drainSeconds": 20})
    assert (
        "- endpointStalenessSeconds: 20 is not below drainSeconds 20. A router would leave while clients are still "
        "sent to it, and every request of the last seconds would be cut. Set a longer drainSeconds.\n"
    ) in str(error.value)


def test_probes_ask_the_listener_that_a_full_router_answers():
    container = containers(render())["envoy"]
    asked = [container[f"{kind}Probe"]["httpGet"] for kind in ("readiness", "liveness")]
    assert asked == [{"path": "/ready", "port": "status"}, {"path": "/alive", "port": "status"}]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    bootstrap = json.loads(render().find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])
    listeners = {one["name"]: one["address"]["socket_address"] for one in bootstrap["static_resources"]["listeners"]}
    assert ports == {"https": listeners["plane"]["port_value"], "status": listeners["status"]["port_value"]}


def test_the_policy_names_every_flow_and_no_other():
    policy = render().find("NetworkPolicy", "router")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    cidrs = [peer["ipBlock"]["cidr"] for rule in policy["egress"] for peer in rule["to"] if "ipBlock" in peer]
    assert cidrs == ["169.254.170.23/32", "10.0.64.0/20", "10.0.80.0/24"]


def test_without_a_fallback_nothing_leaves_the_cluster():
    overlay = {"global": {"models": {"clinical-summary": None, "letters": None}}, "auth": INLINE}
    rendered = render(overlay)
    policy = rendered.find("NetworkPolicy", "router")["spec"]
    assert not [peer for rule in policy["egress"] for peer in rule["to"] if "ipBlock" in peer]
    assert "bedrock" not in xds_files(rendered)["clusters.json"]


def test_the_container_runs_where_the_files_are_mounted():
    container = containers(render())["envoy"]
    mounts = {pathlib.PurePath(mount["mountPath"]) for mount in container["volumeMounts"]}
    work = pathlib.PurePath(container["workingDir"])
    assert {mount.relative_to(work).as_posix() for mount in mounts} == {"bootstrap", "xds", "run", "certificate", "ca"}


def test_a_router_that_fills_up_refuses_requests_before_the_kernel_ends_it():
    rendered = render({"resources": {"limits": {"memory": "512Mi"}}})
    overload = json.loads(rendered.find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])["overload_manager"]
    (heap,) = [m["typed_config"] for m in overload["resource_monitors"] if m["name"].endswith(".fixed_heap")]
    assert int(heap["max_heap_size_bytes"]) == 512 * 2**20
    (action,) = overload["actions"]
    assert action["name"] == "envoy.overload_actions.stop_accepting_requests"
    assert action["triggers"] == [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": 0.7}}]


# --- who calls -------------------------------------------------------------------------------------------------------


def bootstrap(rendered):
    return json.loads(rendered.find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])


def filters(rendered):
    (listener,) = [one for one in bootstrap(rendered)["static_resources"]["listeners"] if one["name"] == "plane"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return {one["name"].rsplit(".", 1)[-1]: one["typed_config"] for one in manager["http_filters"]}


def test_the_token_is_looked_at_before_the_body():
    assert list(filters(render()))[:5] == ["jwt_authn", "identity", "caller", "rbac", "lua"]
    (provider,) = filters(render())["jwt_authn"]["providers"].values()
    assert (provider["issuer"], provider["audiences"]) == ("https://payer.okta.example/oauth2/default", ["inference"])
    assert (provider["require_expiration"], provider["forward"]) == (True, False)


def test_without_tokens_nothing_of_them_is_rendered():
    rendered = render({"auth": {"mode": "none"}, "global": {"models": {"records": {"access": None}}}})
    assert not {"jwt_authn", "identity", "caller", "rbac"} & set(filters(rendered))
    assert "identity.lua" not in rendered.find("ConfigMap", "router-bootstrap")["data"]
    assert [cluster["name"] for cluster in bootstrap(rendered)["static_resources"]["clusters"]] == ["admin", "policy"]
    cidrs = [p["ipBlock"]["cidr"] for rule in rendered.find("NetworkPolicy", "router")["spec"]["egress"]
             for p in rule["to"] if "ipBlock" in p]  # fmt: skip
    assert "10.0.80.0/24" not in cidrs


def test_keys_come_from_a_host_that_proves_its_name_and_has_a_rule_of_its_own():
    uri = "https://issuer.example:8443/keys"
    pem = "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n"
    rendered = render({"auth": {"jwks": {"uri": uri, "caCertificates": pem, "cacheDuration": "90s"}}})
    (provider,) = filters(rendered)["jwt_authn"]["providers"].values()
    assert provider["remote_jwks"]["http_uri"]["uri"] == uri
    assert float(provider["remote_jwks"]["cache_duration"].removesuffix("s")) == 90
    (cluster,) = [c for c in bootstrap(rendered)["static_resources"]["clusters"] if c["name"] == "jwks"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "issuer.example", "port_value": 8443}
    trust = cluster["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"]
    assert trust["trusted_ca"] == {"inline_string": pem}
    assert trust["match_typed_subject_alt_names"] == [{"san_type": "DNS", "matcher": {"exact": "issuer.example"}}]
    (rule,) = [r for r in rendered.find("NetworkPolicy", "router")["spec"]["egress"] if r["ports"][0]["port"] == 8443]
    assert rule["to"] == [{"ipBlock": {"cidr": "10.0.80.0/24"}}]


def test_keys_by_a_proxy_are_believed_as_they_are_without_and_the_policy_opens_its_port_alone():
    uri, proxy = "https://issuer.example:8443/keys", "proxy.example:3128"
    rendered, straight = render({"auth": {"jwks": {"uri": uri, "proxy": proxy}}}), render({"auth": {"jwks": {"uri": uri}}})
    clusters = {c["name"]: c for c in bootstrap(rendered)["static_resources"]["clusters"]}
    before = {c["name"]: c for c in bootstrap(straight)["static_resources"]["clusters"]}
    assert clusters["jwks"]["transport_socket"] == before["jwks"]["transport_socket"]
    (endpoint,) = clusters["jwks-proxy"]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "proxy.example", "port_value": 3128}
    listeners = {each["name"]: each for each in bootstrap(rendered)["static_resources"]["listeners"]}
    (tcp,) = listeners["jwks-proxy"]["filter_chains"][0]["filters"]
    assert tcp["typed_config"]["tunneling_config"] == {"hostname": "issuer.example:8443"}
    assert listeners["jwks-proxy"]["address"] == {"pipe": {"path": "run/jwks-proxy.sock", "mode": 384}}
    egress = rendered.find("NetworkPolicy", "router")["spec"]["egress"]
    (rule,) = [r for r in egress if r["to"] == [{"ipBlock": {"cidr": "10.0.80.0/24"}}]]
    assert rule["ports"] == [{"protocol": "TCP", "port": 3128}]
    assert "8443" not in str(egress)


def test_the_routes_say_what_each_claim_means():
    (routes,) = xds(render(), "routes.json")
    context = routes["typed_per_filter_config"]["identity"]["filter_context"]
    assert context == {
        "claims": {"team": ["groups"], "subject": ["sub"], "residency": []},
        "team/appeals": {"team": "appeals", "cost_center": "4711"},
        "team/inference-care": {"team": "care", "cost_center": "4712"},
    }


def test_verified_tokens_are_remembered_where_that_is_asked_for_alone():
    def provider(auth):
        return filters(render({"auth": auth}))["jwt_authn"]["providers"]["caller"]

    assert "jwt_cache_config" not in provider({})
    assert provider({"cachedTokens": 500})["jwt_cache_config"] == {"jwt_cache_size": 500}


def test_access_is_the_first_route_under_each_name_of_a_model():
    rendered = render({"global": {"models": {"records": {"servedNames": ["org/records"]}}}})
    (routes,) = xds(rendered, "routes.json")
    by_model = routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    for name, entry in by_model.items():
        first = entry["action"]["typed_config"]["routes"][0]
        assert (first["name"] == "records/access") == (name in ("records", "org/records"))
    first = by_model["records"]["action"]["typed_config"]["routes"][0]
    assert first["direct_response"] == {"status": 403}
    (match,) = first["match"]["dynamic_metadata"]
    assert (match["filter"], match["path"], match["invert"]) == ("inference-plane", [{"key": "team"}], True)
    assert match["value"]["string_match"]["safe_regex"]["regex"] == "^(care)$"


def test_a_hundred_and_thirty_five_models_with_access_fit_the_files():
    """Ten teams, each of which sees another catalogue: the most that lists of models can take."""
    entry = VALUES["global"]["models"]["clinical-summary"] | {"servedNames": [], "team": "appeals"}
    teams = [f"team-{n}" for n in range(10)]
    models = {f"model-{n:03}": entry | {"access": {"teams": [teams[n % 10], teams[(n + 1) % 10]]}} for n in range(100)}
    data = render({"global": {"teams": {team: {} for team in teams}, "models": models}})
    sizes = {file: len(text) for file, text in xds_files(data).items()}
    assert max(sizes.values()) < 900 * 1024 * 100 / 135, sizes  # so that 135 of them fit


# --- affinity --------------------------------------------------------------------------------------------------------


def affinity(kind, name="clinical-summary"):
    return render({"global": {"models": {name: {"affinity": kind, "servedNames": ["summary"]}}}})


def routed(rendered, name):
    """The actions of the routes that lead to a model's engines, under each of its names."""
    (config,) = xds(rendered, "routes.json")
    names = config["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    lists = [names[served]["action"]["typed_config"]["routes"] for served in (name, "summary")]
    return [route["route"] for routes in lists for route in routes if "route" in route]


@pytest.mark.parametrize("kind", ["session", "prefix"])
def test_a_model_with_affinity_is_hashed_in_each_of_its_fleets(kind):
    canary = {"canary": {"source": "s3://payer-models/clinical-summary/v8/", "percent": 10}}
    rendered = render({"global": {"models": {"clinical-summary": {"affinity": kind, "servedNames": ["summary"]} | canary}}})
    clusters = {cluster["name"]: cluster for cluster in xds(rendered, "clusters.json")}
    for fleet in ("clinical-summary", "clinical-summary-canary"):
        cluster = clusters[f"fleet/{fleet}"]
        assert cluster["lb_policy"] == "MAGLEV" and cluster["maglev_lb_config"] == {"table_size": 5003}
        assert cluster["common_lb_config"]["consistent_hashing_lb_config"] == {"hash_balance_factor": 200}
    policies = [action["hash_policy"] for action in routed(rendered, "clinical-summary")]
    assert policies and policies == [[{"filter_state": {"key": "inference-plane.affinity"}}]] * len(policies)
    (config,) = xds(rendered, "routes.json")
    told = config["typed_per_filter_config"]["envoy.filters.http.lua"]["filter_context"]
    assert {key: value for key, value in told.items() if not key.startswith("name/")} == {
        "affinity/clinical-summary": kind, "affinity/summary": kind, "prefix_bytes": 2048,
    }  # fmt: skip


def test_affinity_of_one_model_changes_no_other():
    before, after = render(), affinity("prefix")
    for name in ("clusters.json", "routes.json"):
        assert json.dumps(xds(before, name)) != json.dumps(xds(after, name))
    others = lambda rendered: [  # noqa: E731
        cluster for cluster in xds(rendered, "clusters.json") if cluster["name"] != "fleet/clinical-summary"
    ]
    assert others(before) == others(after)
    assert "hash_policy" not in json.dumps(xds(before, "routes.json"))
    assert bootstrap(before) == bootstrap(after), "a changed model restarts no router"


def test_the_key_is_in_no_header_and_in_no_audit_line():
    (network_filter,) = bootstrap(render())["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    manager = network_filter["typed_config"]
    assert "affinity" not in json.dumps(manager["access_log"])
    (setter,) = [f for f in manager["http_filters"] if "affinity" in json.dumps(f)]
    assert setter["name"] == "envoy.filters.http.set_filter_state"
