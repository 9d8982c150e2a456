"""Token budgets in the chart `router`: what is rendered for them, who may reach whom, and what is refused."""

import json

import pytest
import yaml

from inference_plane import helm
from inference_plane.onehost.router import xds_files

ENTRY = {"weightsGiB": 0.3, "accelerator": "cpu", "maxModelLen": 512, "source": "file:///models/tiny/v1/"}
VALUES = {
    "global": {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "none"},
        "network": {"albSubnetCidrs": ["10.0.0.0/20"], "jwksCidrs": ["10.0.80.0/24"]},
        "teams": {
            "care": {"claim": "grp-1", "tokensPerMinute": 200000, "models": {"records": {"tokensPerMinute": 1000}}},
            "claims": {"models": {"letters": {"tokensPerMinute": 1000000000}}},
            "search": {},
            "gone": None,
        },
        "models": {
            "records": {**ENTRY, "servedNames": ["org/records"], "access": {"teams": ["care"]}},
            "letters": ENTRY,
        },
    },
    "auth": {"issuer": "https://a.example", "audiences": ["a"], "jwks": {"uri": "https://a.example/keys"}},
}
NAMES = {"router-ratelimit", "router-valkey"}


def merged(base, overlay):
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: merged(base.get(key), value) for key, value in overlay.items()}


def render(overlay=None):
    return helm.template("router", values=merged(VALUES, overlay or {}))


def without():
    return {"global": {"teams": {"care": {"tokensPerMinute": None, "models": None}, "claims": {"models": None}}}}


def limits(rendered):
    return yaml.safe_load(rendered.find("ConfigMap", "router-ratelimit")["data"]["limits.yaml"])


def per_minute(tokens):
    return {"unit": "minute", "requests_per_unit": tokens}


def environment(rendered):
    (container,) = rendered.find("Deployment", "router-ratelimit")["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_the_limits_are_those_of_the_catalogue():
    assert limits(render()) == {
        "domain": "tokens",
        "descriptors": [
            {
                "key": "team",
                "value": "care",
                "rate_limit": per_minute(200000),
                "descriptors": [{"key": "model", "value": "records", "rate_limit": per_minute(1000)}],
            },
            {
                "key": "team",
                "value": "claims",
                "descriptors": [{"key": "model", "value": "letters", "rate_limit": per_minute(1000000000)}],
            },
        ],
    }


def test_a_dry_run_differs_in_what_the_service_answers_alone():
    dry, real = render({"budgets": {"mode": "dryRun"}}), render()
    text = dry.find("ConfigMap", "router-ratelimit")["data"]["limits.yaml"]
    assert text.count("quota_mode: true") == text.count("requests_per_unit") == 3
    router = [each.find("ConfigMap", "router-bootstrap")["data"] for each in (dry, real)]
    assert router[0] == router[1]


def test_the_routes_tell_identity_which_budgets_a_team_has():
    (routes,) = json.loads(xds_files(render())["routes.json"])["resources"]
    context = routes["typed_per_filter_config"]["identity"]["filter_context"]
    assert {key: facts for key, facts in context.items() if key != "claims"} == {
        "team/grp-1": {
            "team": "care",
            "budget": {"bytes_per_token": 4, "whole": True, "models": {"records": "records", "org/records": "records"}},
        },
        "team/claims": {"team": "claims", "budget": {"bytes_per_token": 4, "models": {"letters": "letters"}}},
        "team/search": {"team": "search"},
    }


@pytest.mark.parametrize("overlay", [without(), {"budgets": {"mode": "off"}}], ids=["no budget", "off"])
def test_without_budgets_nothing_of_them_is_rendered(overlay):
    text = render(overlay).text
    assert "ratelimit" not in text and "valkey" not in text and "budget_estimate" not in text.split("route.lua")[0]
    assert '"budget"' not in text


def test_a_changed_budget_restarts_nothing():
    changed = {"global": {"teams": {"care": {"tokensPerMinute": 7}, "search": {"tokensPerMinute": 7}}}}
    before, after = render(), render(changed)
    for name in ("router", "router-ratelimit", "router-valkey"):
        assert before.find("Deployment", name) == after.find("Deployment", name)
    assert limits(before) != limits(after)


def peers(rules, side):
    """Who and which ports a policy's rules let through, DNS aside."""
    found = set()
    for rule in rules or ():
        for peer in rule[side]:
            who = peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name")
            who = who or peer.get("ipBlock", {}).get("cidr")
            found |= {(who, port["port"]) for port in rule["ports"] if port["port"] != 53}
    return found


def test_router_reaches_ratelimit_reaches_valkey_and_nobody_else_does():
    rendered = render()
    policies = {p["metadata"]["name"]: p["spec"] for p in rendered.of_kind("NetworkPolicy")}
    assert peers(policies["router-ratelimit"]["ingress"], "from") == {("router", 8081)}
    assert peers(policies["router-ratelimit"]["egress"], "to") == {("router-valkey", 6379)}
    assert peers(policies["router-valkey"]["ingress"], "from") == {("router-ratelimit", 6379)}
    assert policies["router-valkey"].get("egress") is None
    assert policies["router-valkey"]["policyTypes"] == ["Ingress", "Egress"]
    assert ("router-ratelimit", 8081) in peers(policies["router"]["egress"], "to")


def test_pods_hold_no_token_and_may_write_nothing():
    rendered = render()
    for name in NAMES:
        pod = rendered.find("Deployment", name)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False and pod["serviceAccountName"] == name
        assert rendered.find("ServiceAccount", name)["automountServiceAccountToken"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["readinessProbe"] and container["livenessProbe"]


def test_the_valkey_that_comes_along_keeps_nothing_and_never_refuses_to_count():
    (container,) = render().find("Deployment", "router-valkey")["spec"]["template"]["spec"]["containers"]
    words = container["args"]
    settings = dict(zip(words[::2], words[1::2], strict=True))
    assert settings["--save"] == "" and settings["--appendonly"] == "no"
    assert int(settings["--maxmemory"]) == 96 * 1024 * 1024 and settings["--maxmemory-policy"] == "volatile-ttl"


STORE = {
    "budgets": {"store": {"address": "cache.example:6380", "passwordSecret": "cache"}},
    "global": {"network": {"budgetStoreCidrs": ["10.0.96.0/24"]}},
}


def test_a_store_of_ones_own_takes_the_place_of_valkey():
    rendered = render(STORE)
    assert "valkey" not in rendered.text
    env = environment(rendered)
    assert (env["REDIS_URL"], env["REDIS_TLS"]) == ("cache.example:6380", "true")
    assert env["REDIS_AUTH"] == {"secretKeyRef": {"name": "cache", "key": "password"}}
    policy = rendered.find("NetworkPolicy", "router-ratelimit")["spec"]
    assert peers(policy["egress"], "to") == {("10.0.96.0/24", 6380)}
    plain = environment(render(merged(STORE, {"budgets": {"store": {"tls": False, "passwordSecret": ""}}})))
    assert plain["REDIS_TLS"] == "false" and "REDIS_AUTH" not in plain


ISSUED = {"global": {"tls": {"mode": "certManager", "certManager": {"issuerRef": {"name": "internal"}}}}}


def test_with_tls_each_hop_proves_the_name_that_is_called():
    rendered = render(ISSUED)
    hosts = {name: f"{name}.inference.svc.cluster.local" for name in ("router-ratelimit", "router-valkey")}
    data = json.loads(rendered.find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])
    (cluster,) = [c for c in data["static_resources"]["clusters"] if c["name"] == "ratelimit"]
    context = cluster["transport_socket"]["typed_config"]
    common = context["common_tls_context"]
    (san,) = common["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"]
    assert context["sni"] == san["matcher"]["exact"] == hosts["router-ratelimit"]
    assert common["alpn_protocols"] == ["h2"]
    env = environment(rendered)
    assert (env["GRPC_SERVER_USE_TLS"], env["REDIS_TLS"]) == ("true", "true")
    # The service adds the given authorities to the image's: it finds the plane's in their place.
    assert env["SSL_CERT_FILE"] == env["REDIS_TLS_CACERT"] == f"{env['SSL_CERT_DIR']}/ca.crt"
    assert env["REDIS_URL"] == f"{hosts['router-valkey']}:6379"
    for name, host in hosts.items():
        assert rendered.find("Certificate", name)["spec"]["dnsNames"] == [host]
        pod = rendered.find("Deployment", name)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert (mounts["certificate"], mounts["ca"]) == ("/etc/inference-plane/certificate", "/etc/inference-plane/ca")
        assert {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v} == {f"{name}-tls"}
    (container,) = rendered.find("Deployment", "router-valkey")["spec"]["template"]["spec"]["containers"]
    settings = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert (settings["--port"], settings["--tls-port"]) == ("0", "6379"), "nothing in clear text"
    assert container["livenessProbe"]["exec"]["command"] == [
        "valkey-cli", "-s", settings["--unixsocket"], "CONFIG", "SET", "tls-cert-file", settings["--tls-cert-file"],
    ]  # fmt: skip


def test_a_store_of_ones_own_is_believed_by_the_authorities_of_the_image():
    rendered = render(merged(STORE, ISSUED))
    assert "router-valkey" not in rendered.text
    env = environment(rendered)
    assert env["REDIS_TLS"] == "true" and not {"REDIS_TLS_CACERT", "SSL_CERT_FILE"} & set(env)


@pytest.mark.parametrize(("mode", "denies"), [("serve", False), ("refuse", True)])
def test_the_filter_denies_where_that_is_chosen(mode, denies):
    data = render({"budgets": {"whenUnavailable": mode}}).find("ConfigMap", "router-bootstrap")["data"]
    (listener, *_) = json.loads(data["bootstrap.json"])["static_resources"]["listeners"]
    filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    names = [each["name"].removeprefix("envoy.filters.http.") for each in filters]
    assert names == [
        "jwt_authn", "identity", "caller", "rbac", "lua", "set_filter_state", "header_to_metadata", "ratelimit",
        "sse_to_metadata", "router",
    ]  # fmt: skip
    config = filters[7]["typed_config"]
    assert (config["failure_mode_deny"], config["timeout"]) == (denies, "0.1s")
    keys = {action["metadata"]["metadata_key"]["key"] for limit in config["rate_limits"] for action in limit["actions"]}
    assert keys == {"inference-plane"}, "no header of a client decides"


REFUSALS = {
    "budgets without tokens": (
        {"auth": {"mode": "none"}, "global": {"teams": {"claims": None}, "models": {"records": {"access": None}}}},
        "- global.teams.care: has a token budget, while the router's auth.mode is none. Nobody's team is known then, so "
        "it would look enforced and bind nobody. Set auth.mode: jwt, or budgets.mode: off.",
    ),
    "a model that does not exist": (
        {"global": {"teams": {"claims": {"models": {"leters": {"tokensPerMinute": 1}}}}}},
        "- global.teams.claims.models: leters is not in global.models. There are letters, records. Set one that exists, "
        "or add leters to global.models.",
    ),
    "a model that is not for the team": (
        {"global": {"teams": {"claims": {"models": {"records": {"tokensPerMinute": 1}}}}}},
        "- global.teams.claims.models.records: records is for care alone. The team may not call it, so there is nothing "
        "to count. Set null, or add claims to global.models.records.access.teams.",
    ),
    "a store behind policies": (
        {"budgets": {"store": {"address": "cache.example:6380"}}},
        "- global.network.budgetStoreCidrs: empty, while budgets.store.address is set. The NetworkPolicies deny what "
        "nobody names, and without its counters no budget is known. Set the CIDRs of the store, or "
        "global.network.policies: false.",
    ),
    "a password for nothing": (
        {"budgets": {"store": {"passwordSecret": "cache"}}},
        "- budgets.store.passwordSecret: cache, without an address. The Valkey that comes along has no password: the "
        "NetworkPolicy says who may reach it. Set address, or an empty passwordSecret.",
    ),
}


@pytest.mark.parametrize(("overlay", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses(overlay, message):
    with pytest.raises(helm.HelmError) as error:
        render(overlay)
    assert "values of the router do not fit together:\n" in str(error.value)
    assert message in str(error.value)


def test_budgets_that_are_off_go_with_no_tokens():
    open_ = {"auth": {"mode": "none"}, "global": {"models": {"records": {"access": None}}}}
    assert render({**open_, "budgets": {"mode": "off"}})


@pytest.mark.parametrize(
    ("tokens", "message"), [(0, "minimum: got 0, want 1"), ("1k", "got string"), (2000000000, "maximum")]
)
def test_the_schema_refuses(tokens, message):
    with pytest.raises(helm.HelmError, match="values don't meet the specifications of the schema") as error:
        render({"global": {"teams": {"care": {"tokensPerMinute": tokens}}}})
    assert "at '/global/teams/care/tokensPerMinute'" in str(error.value) and message in str(error.value)


def notes(overlay, tmp_path):
    file = tmp_path / "values.json"
    file.write_text(json.dumps(merged(VALUES, overlay)))
    text = helm.run("install", "x", str(helm.CHARTS / "router"), "--dry-run=client", "--values", str(file))
    return text[text.index("NOTES:"):]


def test_notes_say_which_team_has_what_and_who_is_unlimited(tmp_path):
    assert """Token budgets, tokens a minute: a team that has used its own up is answered 429 (budgets.mode enforce)
  care  200000, 1000 with records
  claims  1000000000 with letters
  unlimited: search
""" in notes({}, tmp_path)
    assert "Token budgets, tokens a minute: counted, never refused" in notes({"budgets": {"mode": "dryRun"}}, tmp_path)
    assert "neither counted nor enforced" in notes({"budgets": {"mode": "off"}}, tmp_path)
    assert "Token budgets: none, every team may use all that the engines give." in notes(without(), tmp_path)
