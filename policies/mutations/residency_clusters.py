"""Breaks of clusters: hosts, what they say of themselves, TLS, credentials."""

from inference_plane.compliance.mutations import config, find, mutation

FREE, KEPT = "appeals-draft", "clinical-summary"
BEDROCK, FLEET = f"bedrock/{FREE}", f"fleet/{KEPT}"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def on(rule, name, change, cluster=BEDROCK, **more):
    """A mutation of one cluster, wherever it stands."""

    @mutation(rule, name, **more)
    def _(objects):
        for holder, key, at in (
            ("router-clusters", "clusters.json", ("resources",)),
            ("router-bootstrap", "bootstrap.json", ("static_resources", "clusters")),
        ):
            with config(objects, holder, key) as document:
                for part in at:
                    document = document[part]
                for one in document:
                    if one["name"] == cluster:
                        change(one)


def socket(cluster, endpoint=0):
    return cluster["load_assignment"]["endpoints"][endpoint]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]


def facts(cluster):
    return cluster["metadata"]["filter_metadata"]["inference-plane"]


def filters(cluster):
    return cluster["typed_extension_protocol_options"][OPTIONS]["http_filters"]


def header(cluster, key):
    mutations = filters(cluster)[0]["typed_config"]["mutations"]["request_mutations"]
    return next(m["append"]["header"] for m in mutations if m["append"]["header"]["key"] == key)


def target(cluster, value):
    header(cluster, "x-plane-target")["value"] = value
    facts(cluster)["model_version"] = value


def tls(cluster):
    return cluster["transport_socket"]["typed_config"]


# Hosts.

for host in (
    "models.example.com",
    "clinical-summary.inference.svc.example.com",
    "clinical-summary.inference.svc.cluster.local.example.com",
    "appeals-draft.inference.svc.cluster.local",
    "bedrock-runtime.eu-central-1.amazonaws.com",
    "198.51.100.7",
    "10.1.2.3",
    "169.254.169.254",
    "",
):
    on("PLANE_RES_30", f"a fleet at {host or 'nothing'}", lambda c, host=host: socket(c).update(address=host), FLEET)
for name, change in {
    "a second host": lambda c: c["load_assignment"]["endpoints"][0]["lb_endpoints"].append(
        {"endpoint": {"address": {"socket_address": {"address": "models.example.com", "port_value": 443}}}}
    ),
    "a third priority": lambda c: c["load_assignment"]["endpoints"].append(
        {
            "priority": 1,
            "lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "x.example", "port_value": 1}}}}],
        }
    ),
    "another port of the pod itself": lambda c: socket(c, 1).update(port_value=8081),
    "a host that is exempt from TLS": lambda c: socket(c, 1).update(address="10.1.2.3"),
    "no endpoint": lambda c: c.update(load_assignment={"cluster_name": FLEET}),
    "a pipe": lambda c: c["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"].update(
        address={"pipe": {"path": "run/other.sock"}}
    ),
    "another model's facts": lambda c: facts(c).update(model="case-search"),
    "no facts": lambda c: c.pop("metadata"),
}.items():
    on("PLANE_RES_30", f"a fleet with {name}", change, FLEET)
on("PLANE_RES_30", "the policy service elsewhere", lambda c: socket(c).update(address="policy.example.com"), "policy")
on("PLANE_RES_30", "the rate-limit service elsewhere", lambda c: socket(c).update(address="10.1.2.3"), "ratelimit")
on("PLANE_RES_15", "the policy service elsewhere", lambda c: socket(c).update(address="policy.example.com"), "policy")
for host, port in (
    ("bedrock.eu-central-1.amazonaws.com", 443),
    ("bedrock-runtime.eu-central-1.amazonaws.com.example.com", 443),
    ("bedrock-runtime.eu-central-1.amazonaws.com", 80),
    ("bedrock-runtime.eu-central-1.amazonaws.com", 8443),
    ("bedrock-agent-runtime.eu-central-1.amazonaws.com", 443),
    ("vpce-0a1b.bedrock-runtime.eu-central-1.vpce.example.com", 443),
):
    on("PLANE_RES_30", f"Bedrock at {host}:{port}", lambda c, h=host, p=port: socket(c).update(address=h, port_value=p))

for name, change in {
    "hosts by the request": lambda c: c.update(cluster_type={"name": "envoy.clusters.original_dst"}),
    "the type ORIGINAL_DST": lambda c: c.update(type="ORIGINAL_DST"),
    "the type EDS": lambda c: c.update(type="EDS", eds_cluster_config={"eds_config": {"ads": {}}}),
    "hosts by a dynamic proxy": lambda c: c["cluster_type"].update(name="envoy.clusters.dynamic_forward_proxy"),
    "hosts that it learns in service": lambda c: c.update(lrs_server={"self": {}}),
    "an HTTP proxy": lambda c: c["transport_socket"].update(name="envoy.transport_sockets.http_11_proxy"),
    "a tap": lambda c: c["transport_socket"].update(name="envoy.transport_sockets.tap"),
    "a redirect to another address": lambda c: c.update(
        upstream_bind_config={"source_address": {"address": "0.0.0.0"}}
    ),
    "a load balancer of its own": lambda c: c.update(load_balancing_policy={"policies": []}),
    "panic over sickness": lambda c: c["common_lb_config"]["healthy_panic_threshold"].update(value=50),
    "its name in other letters": lambda c: c.update({"loadAssignment": c.pop("load_assignment")}),
    "a hostname for checks": lambda c: c["health_checks"][0]["http_health_check"].update(host="models.example.com"),
    "a checker that posts": lambda c: c["health_checks"][0]["http_health_check"].update(method="POST"),
    "an event log": lambda c: c["health_checks"][0].update(event_log_path="/tmp/log"),
    "keys of TLS in a log": lambda c: tls(c)["common_tls_context"].update(key_log={"path": "/tmp/keys"}),
    "any certificate that is not verified": lambda c: tls(c)["common_tls_context"]["combined_validation_context"][
        "default_validation_context"
    ].update(trust_chain_verification="ACCEPT_UNTRUSTED"),
    "a name by a pattern": lambda c: tls(c)["common_tls_context"]["combined_validation_context"][
        "default_validation_context"
    ]["match_typed_subject_alt_names"][0].update(matcher={"suffix": "local"}),
    "an older TLS": lambda c: tls(c)["common_tls_context"]["tls_params"].update(tls_minimum_protocol_version="TLSv1_0"),
}.items():
    on("PLANE_RES_13", f"a cluster with {name}", change, FLEET)
on(
    "PLANE_RES_13",
    "another filter on the way to Bedrock",
    lambda c: filters(c).insert(0, {"name": "envoy.filters.http.tap"}),
)
on(
    "PLANE_RES_13",
    "credentials from the environment",
    lambda c: filters(c)[2]["typed_config"]["credential_provider"].update(environment_credential_provider={}),
)
on("PLANE_RES_13", "a query in place of a header", lambda c: filters(c)[2]["typed_config"].update(query_string={}))

# What it says of itself, and of its target.

for residency in ("region", "anywhere", "Cluster", "", None):
    on("PLANE_RES_31", f"a fleet that says {residency!r}", lambda c, r=residency: facts(c).update(residency=r), FLEET)
on("PLANE_RES_31", "a Bedrock that says anywhere", lambda c: facts(c).update(residency="anywhere"))
on("PLANE_RES_31", "a canary that says region", lambda c: facts(c).update(residency="region"), f"{FLEET}-canary")
RESIDENCY = "inference-plane/residency"


@mutation("PLANE_RES_31", "an engine that says more than its cluster")
def _(objects):
    engine = find(objects, "Deployment", KEPT)
    for holder in (engine, engine["spec"]["template"]):
        holder["metadata"]["labels"][RESIDENCY] = "region"


@mutation("PLANE_RES_31", "pods that say more than their Deployment")
def _(objects):
    find(objects, "Deployment", KEPT)["spec"]["template"]["metadata"]["labels"][RESIDENCY] = "anywhere"


@mutation("PLANE_RES_31", "an engine that says nothing")
def _(objects):
    del find(objects, "Deployment", KEPT)["metadata"]["labels"][RESIDENCY]


@mutation("PLANE_RES_31", "an engine of no model")
def _(objects):
    engine = find(objects, "Deployment", KEPT)
    for holder in (engine, engine["spec"]["template"]):
        del holder["metadata"]["labels"]["inference-plane/model"]


@mutation("PLANE_RES_31", "an InferenceService that says nothing it could mean", source="kserve/ci/standard")
def _(objects):
    find(objects, "InferenceService", "appeal-letters")["metadata"]["labels"][RESIDENCY] = "eu"


for value in (
    "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "Global.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "eu.amazon.nova-lite-v1:0",
    "us.amazon.nova-lite-v1:0",
    "apac.amazon.nova-lite-v1:0",
    "arn:aws:bedrock:eu-central-1::foundation-model/openai.gpt-oss-120b-1:0",
    "arn:aws:bedrock:us-east-1:111122223333:application-inference-profile/abcdefgh1234",
    "arn:aws:bedrock:eu-central-1:111122223333:default-prompt-router/anthropic.claude:1",
    "abcdefgh1234",
    "acme.model-v1",
    "eu.acme.model-v1",
    "",
):
    on("PLANE_RES_32", f"the target {value or 'of nobody'}", lambda c, value=value: target(c, value))
    if value:  # With reach stated to fit, so that the id alone tells.
        on(
            "PLANE_RES_32",
            f"the target {value}, said to stay",
            lambda c, value=value: (target(c, value), facts(c).update(reach="region")),
        )
for name, change in {
    "another model in its facts": lambda c: facts(c).update(model_version="amazon.nova-lite-v1:0"),
    "another reach in its facts": lambda c: facts(c).update(reach="cluster"),
    "a second target": lambda c: filters(c)[0]["typed_config"]["mutations"]["request_mutations"].append(
        {"append": {"header": {"key": "x-plane-target", "value": "global.amazon.nova-lite-v1:0"}}}
    ),
    "no target": lambda c: filters(c)[0]["typed_config"]["mutations"]["request_mutations"].pop(0),
}.items():
    on("PLANE_RES_32", f"a Bedrock with {name}", change)


@mutation("PLANE_RES_32", "a geography in which the plane is not", source="router/ci/fallback")
def _(objects):
    find(objects, "Deployment", "router")["metadata"]["annotations"]["inference-plane/region"] = "us-east-1"


@mutation("PLANE_RES_32", "another geography of the plane", source="router/ci/fallback")
def _(objects):
    find(objects, "Deployment", "router")["metadata"]["annotations"]["inference-plane/geography"] = "us"


def call(cluster, region, host=None):
    """All that says where Bedrock is called, but the facts."""
    host = host or f"bedrock-runtime.{region}.amazonaws.com"
    socket(cluster)["address"] = tls(cluster)["sni"] = header(cluster, "x-plane-authority")["value"] = host
    context = tls(cluster)["common_tls_context"]["validation_context"]
    context["match_typed_subject_alt_names"][0]["matcher"]["exact"] = host
    filters(cluster)[2]["typed_config"]["region"] = region


for region in ("us-east-1", "eu-west-1"):
    on("PLANE_RES_33", f"called in {region}", lambda c, region=region: call(c, region))
    on(
        "PLANE_RES_33",
        f"called in {region}, and said to be",
        lambda c, region=region: (call(c, region), facts(c).update(region=region)),
    )
for name, change in {
    "another Region's host alone": lambda c: socket(c).update(address="bedrock-runtime.us-east-1.amazonaws.com"),
    "another Region's endpoint of a VPC": lambda c: call(
        c, "eu-central-1", "vpce-0a1b.bedrock-runtime.us-east-1.vpce.amazonaws.com"
    ),
    "another Region's signature": lambda c: filters(c)[2]["typed_config"].update(region="us-east-1"),
    "no Region to sign for": lambda c: filters(c)[2]["typed_config"].pop("region"),
    "another authority": lambda c: header(c, "x-plane-authority").update(
        value="bedrock-runtime.us-east-1.amazonaws.com"
    ),
    "no authority": lambda c: filters(c)[0]["typed_config"]["mutations"]["request_mutations"].pop(1),
    "another Region in its facts": lambda c: facts(c).update(region="eu-west-1"),
    "another sni": lambda c: tls(c).update(sni="bedrock-runtime.us-east-1.amazonaws.com"),
}.items():
    on("PLANE_RES_33", f"a Bedrock with {name}", change)


@mutation("PLANE_RES_33", "a plane that does not say where it is")
def _(objects):
    del find(objects, "Deployment", "router")["metadata"]["annotations"]["inference-plane/region"]


for retention in ("provider_data_share", "None", "", "off", None):
    on("PLANE_RES_34", f"retention {retention!r}", lambda c, r=retention: facts(c).update(retention=r))
on("PLANE_RES_34", "no retention", lambda c: facts(c).pop("retention"))

# The way to Bedrock.

for name, change in {
    "without its Lua": lambda c: filters(c).pop(1),
    "with its Lua after the signature": lambda c: filters(c).insert(2, filters(c).pop(1)),
    "without a signature": lambda c: filters(c).pop(2),
    "with a header more": lambda c: header(c, "x-plane-authority").update(key="authorization"),
    "with credentials of anybody": lambda c: filters(c)[2]["typed_config"]["credential_provider"].pop(
        "custom_credential_provider_chain"
    ),
    "with the chain switched off": lambda c: filters(c)[2]["typed_config"]["credential_provider"].update(
        custom_credential_provider_chain=False
    ),
    "with the node's credentials": lambda c: filters(c)[2]["typed_config"].update(
        credential_provider={"custom_credential_provider_chain": True, "instance_profile_credential_provider": {}}
    ),
    "with keys in the file": lambda c: filters(c)[2]["typed_config"].update(
        credential_provider={"custom_credential_provider_chain": True, "inline_credential": {"access_key_id": "x"}}
    ),
    "with another's role": lambda c: filters(c)[2]["typed_config"].update(
        credential_provider={
            "custom_credential_provider_chain": True,
            "assume_role_with_web_identity_provider": {"role_arn": "arn:aws:iam::999999999999:role/other"},
        }
    ),
    "with no source of credentials": lambda c: filters(c)[2]["typed_config"].pop("credential_provider"),
}.items():
    on("PLANE_RES_35", f"Bedrock {name}", change)
on(
    "PLANE_RES_35",
    "a fleet with a filter",
    lambda c: filters(c).insert(0, {"name": "envoy.filters.http.lua"}),
    f"fleet/{FREE}",
)


@mutation("PLANE_RES_35", "another role than the ServiceAccount's", source="router/ci/irsa")
def _(objects):
    annotations = find(objects, "ServiceAccount", "router")["metadata"]["annotations"]
    annotations["eks.amazonaws.com/role-arn"] = "arn:aws:iam::999999999999:role/other"


# TLS.

for cluster, context in ((BEDROCK, "validation_context"), (FLEET, "combined_validation_context")):

    def names(c, context=context):
        found = tls(c)["common_tls_context"][context]
        return found.get("default_validation_context", found)

    for name, change in {
        "clear text": lambda c: c.pop("transport_socket"),
        "no names": lambda c, names=names: names(c).pop("match_typed_subject_alt_names"),
        "any of no names": lambda c, names=names: names(c).update(match_typed_subject_alt_names=[]),
        "another name": lambda c, names=names: names(c)["match_typed_subject_alt_names"][0]["matcher"].update(
            exact="x"
        ),
        "one name more": lambda c, names=names: names(c)["match_typed_subject_alt_names"].append(
            {"san_type": "DNS", "matcher": {"exact": "models.example.com"}}
        ),
        "a name that is an address": lambda c, names=names: names(c)["match_typed_subject_alt_names"][0].update(
            san_type="IP_ADDRESS"
        ),
        "no sni": lambda c: tls(c).pop("sni"),
        "another sni": lambda c: tls(c).update(sni="models.example.com"),
        "no context": lambda c: tls(c).pop("common_tls_context"),
    }.items():
        on("PLANE_RES_36", f"{cluster} with {name}", change, cluster)
on("PLANE_RES_36", "no authorities", lambda c: tls(c)["common_tls_context"]["validation_context"].pop("trusted_ca"))
on(
    "PLANE_RES_36",
    "authorities of somebody else",
    lambda c: tls(c)["common_tls_context"]["validation_context"].update(trusted_ca={"inline_string": "x"}),
)
on(
    "PLANE_RES_36",
    "authorities of no file",
    lambda c: tls(c)["common_tls_context"]["combined_validation_context"].pop("validation_context_sds_secret_config"),
    FLEET,
)
on("PLANE_RES_36", "keys of the issuer in clear text", lambda c: c.pop("transport_socket"), "jwks")
on("PLANE_RES_36", "no TLS for anybody", lambda c: c["transport_socket_matches"][0].update(match={}), FLEET)
on(
    "PLANE_RES_36",
    "no TLS for some",
    lambda c: c["transport_socket_matches"][0].update(match={"loopback": False}),
    FLEET,
)
