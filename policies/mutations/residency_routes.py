"""Breaks of where prompts can go: routes and clusters."""

import copy

from inference_plane.compliance.mutations import config, mutation

#: appeals-draft may fall back within the Region, clinical-summary may not leave the cluster.
FREE, KEPT = "appeals-draft", "clinical-summary"
RESTRICTED, SHIFTED, CHAT = (f"{FREE}/chat/restricted", f"{FREE}/chat/shifted", f"{FREE}/chat")
EVERYTHING = {"prefix": "/"}


def routes(objects):
    return config(objects, "router-routes", "routes.json")


def clusters(objects):
    return config(objects, "router-clusters", "clusters.json")


def listed(document, model):
    host = document["resources"][0]["virtual_hosts"][0]
    entry = host["matcher"]["matcher_tree"]["exact_match_map"]["map"][model]
    return entry["action"]["typed_config"]["routes"]


def named(found, name):
    return next(one for one in found if one["name"] == name)


def on_route(rule, name, change, model=FREE, of=CHAT, **more):
    """A mutation of one route."""

    @mutation(rule, name, **more)
    def _(objects):
        with routes(objects) as document:
            change(named(listed(document, model), of))


def on_routes(rule, name, change, model=FREE, **more):
    """A mutation of a model's list of routes."""

    @mutation(rule, name, **more)
    def _(objects):
        with routes(objects) as document:
            change(listed(document, model))


def on_cluster(rule, name, change, cluster=f"bedrock/{FREE}", **more):
    """A mutation of one cluster."""

    @mutation(rule, name, **more)
    def _(objects):
        with clusters(objects) as document:
            change(named(document["resources"], cluster))


# Ways out. Some are fields that the plane does not have at all; they are found as such, whatever they say.

BEDROCK = f"bedrock/{FREE}"
for name, action in {
    "straight to Bedrock": {"cluster": BEDROCK},
    "a share of weighted clusters": {
        "weighted_clusters": {"clusters": [{"name": f"fleet/{KEPT}", "weight": 99}, {"name": BEDROCK, "weight": 1}]}
    },
    "a weight of nothing": {
        "weighted_clusters": {"clusters": [{"name": f"fleet/{KEPT}", "weight": 100}, {"name": BEDROCK, "weight": 0}]}
    },
    "a mirror": {"cluster": f"fleet/{KEPT}", "request_mirror_policies": [{"cluster": BEDROCK}]},
    "another model's specifier": {"cluster_specifier_plugin": f"fleet-then-bedrock/{FREE}"},
    "another model's fleet": {"cluster": f"fleet/{FREE}"},
    "a cluster of nobody": {"cluster": "fleet/nobody"},
    "a cluster of the router itself": {"cluster": "jwks"},
    "the administration": {"cluster": "admin"},
    "a specifier of nobody": {"cluster_specifier_plugin": "nobody"},
}.items():

    def take(route, action=action):
        route["route"] = action

    on_route("PLANE_RES_20", name, take, KEPT, f"{KEPT}/chat")

for name, change in {
    "a cluster by a header": {"cluster_header": "x-cluster"},
    "a cluster by a header, in the other spelling": {"clusterHeader": "x-cluster"},
    "an inline specifier": {"inline_cluster_specifier_plugin": {"extension": {"name": "x"}}},
    "a mirror": {"request_mirror_policies": [{"cluster": BEDROCK}]},
    "a mirror in the other spelling": {"requestMirrorPolicies": [{"cluster": BEDROCK}]},
    "weighted clusters in the other spelling": {"weightedClusters": {"clusters": [{"name": BEDROCK, "weight": 1}]}},
    "an internal redirect": {"internal_redirect_policy": {"max_internal_redirects": 3}},
    "another host": {"host_rewrite_literal": "models.example.com"},
    "another path": {"prefix_rewrite": "/v1/messages"},
    "an upgrade": {"upgrade_configs": [{"upgrade_type": "CONNECT"}]},
    "a hedge": {"hedge_policy": {"hedge_on_per_try_timeout": True}},
    "a cluster in a list": {"cluster": [BEDROCK]},
    "a specifier that is an object": {"cluster_specifier_plugin": {"name": BEDROCK}},
}.items():

    def widen(route, change=change):
        route["route"].update(change)

    on_route("PLANE_RES_13", f"a route with {name}", widen, KEPT, f"{KEPT}/chat")

for name, change in {
    "a redirect": {"redirect": {"host_redirect": "models.example.com"}},
    "no answer of its own": {"non_forwarding_action": {}},
    "Lua of its own": {"typed_per_filter_config": {"envoy.filters.http.lua": {"disabled": True}}},
    "a disabled filter": {
        "typed_per_filter_config": {
            "envoy.filters.http.lua": {
                "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
                "disabled": True,
            }
        }
    },
    "a header early": {"request_headers_to_remove": ["x-residency"]},
    "a decorator": {"decorator": {"operation": "x"}},
    "another tracer": {"tracing": {"custom_tags": []}},
}.items():

    def add(route, change=change):
        route.update(change)

    on_route("PLANE_RES_13", f"a route with {name}", add, KEPT, f"{KEPT}/chat")

for name, match in {
    "a regular expression": {"safe_regex": {"regex": "/v1/.*"}},
    "another prefix": {"prefix": "/v1/"},
    "a path in any case": {"path": "/v1/chat/completions", "case_sensitive": False},
    "a template": {"path_match_policy": {"name": "x"}},
    "a query": {"prefix": "/", "query_parameters": [{"name": "direct"}]},
}.items():

    def early(found, match=match):
        found.insert(0, {"name": "early", "match": match, "route": {"cluster": BEDROCK}})

    on_routes("PLANE_RES_13", f"a route by {name}", early)
    on_routes("PLANE_RES_20", f"a route to Bedrock by {name}, before all others", early)

PLUGIN = {"cluster_specifier_plugin": f"fleet-then-bedrock/{FREE}"}
for name, match in {
    "everything": EVERYTHING,
    "the path alone": {"path": "/v1/chat/completions"},
    "a residency of its own": {
        "path": "/v1/chat/completions",
        "headers": [{"name": "x-residency", "string_match": {"exact": "cluster"}}],
    },
    "a header that a client sends": {
        "path": "/v1/chat/completions",
        "headers": [{"name": "x-urgent", "present_match": True}],
    },
}.items():

    def first(found, match=match):
        found.insert(0, {"name": "early", "match": match, "route": dict(PLUGIN)})

    on_routes("PLANE_RES_20", f"a way to Bedrock for {name}, before the restricted route", first)
    on_routes("PLANE_RES_21", f"a way to Bedrock for {name}, before the restricted route", first)


@mutation("PLANE_RES_20", "requests of no model are sent to Bedrock")
def _(objects):
    with routes(objects) as document:
        host = document["resources"][0]["virtual_hosts"][0]
        found = host["matcher"]["on_no_match"]["action"]["typed_config"]["routes"]
        found.insert(0, {"name": "any", "match": EVERYTHING, "route": {"cluster": BEDROCK}})


@mutation("PLANE_RES_20", "a model under another's name")
def _(objects):
    with routes(objects) as document:
        host = document["resources"][0]["virtual_hosts"][0]
        entries = host["matcher"]["matcher_tree"]["exact_match_map"]["map"]
        entries[KEPT] = entries[FREE]


@mutation("PLANE_RES_20", "a further name of a model that stays, for one that may go")
def _(objects):
    with routes(objects) as document:
        configuration = document["resources"][0]
        entries = configuration["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
        entries["summary"] = entries[FREE]
        told = configuration["typed_per_filter_config"]["envoy.filters.http.lua"]["filter_context"]
        told["name/summary"] = KEPT


@mutation("PLANE_RES_20", "a model that stays gets a cluster of Bedrock and a specifier")
def _(objects):
    with clusters(objects) as document:
        more = copy.deepcopy(named(document["resources"], BEDROCK))
        more["name"] = more["load_assignment"]["cluster_name"] = f"bedrock/{KEPT}"
        more["metadata"]["filter_metadata"]["inference-plane"].update(model=KEPT, residency="cluster")
        document["resources"].append(more)
    with routes(objects) as document:
        groups = document["resources"][0]["cluster_specifier_plugins"][-1]["extension"]["typed_config"][
            "priority_groups"
        ]
        groups.append({"name": "bedrock", "clusters": [{"cluster_name": f"bedrock/{KEPT}", "weight": 100}]})


@mutation("PLANE_RES_20", "another model's Bedrock in a specifier's second group")
def _(objects):
    with routes(objects) as document:
        groups = document["resources"][0]["cluster_specifier_plugins"][-1]["extension"]["typed_config"][
            "priority_groups"
        ]
        groups[1]["clusters"].append({"cluster_name": BEDROCK, "weight": 0})


on_cluster(
    "PLANE_RES_20",
    "a fleet that is Bedrock by its filters",
    lambda cluster: cluster["typed_extension_protocol_options"].update(
        {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "http_filters": [{"name": "envoy.filters.http.aws_request_signing", "typed_config": {}}]
            }
        }
    ),
    f"fleet/{KEPT}",
)

# The restricted route.

for rule in ("PLANE_RES_20", "PLANE_RES_21"):
    on_routes(rule, "no restricted route", lambda found: found.remove(named(found, RESTRICTED)))
    on_routes(
        rule, "the restricted route last", lambda found: found.append(found.pop(found.index(named(found, RESTRICTED))))
    )
    on_routes(
        rule,
        "the restricted route behind the shifted ones",
        lambda found: found.insert(5, found.pop(found.index(named(found, RESTRICTED)))),
    )
    for name, expression in {
        "cluster too": "^(cluster|region|geography|anywhere)$",
        "anything": "^.*$",
        "anything that contains region": "region",
        "any beginning": "^(region|geography|anywhere)",
        "no word at all": "^(region||anywhere)$",
    }.items():

        def let(route, expression=expression):
            route["match"]["headers"][2]["string_match"]["safe_regex"]["regex"] = expression

        on_route(rule, f"an expression that lets {name} on", let, of=RESTRICTED)
    for name, change in {
        "not inverted": lambda match: match["headers"][2].pop("invert_match"),
        "for one more header": lambda match: match["headers"].append({"name": "x-strict", "present_match": True}),
        "for GET": lambda match: match["headers"][0]["string_match"].update(exact="GET"),
        "for another path": lambda match: match.update(path="/v1/chat/completions/"),
        "for another header": lambda match: match["headers"][2].update(name="x-plane-residency"),
        "of half the requests": lambda match: match.update(
            runtime_fraction={"default_value": {"numerator": 50}, "runtime_key": f"fallback.{FREE}"}
        ),
        "of one team": lambda match: match.update(
            dynamic_metadata=[{"filter": "inference-plane", "path": [{"key": "team"}], "value": {"string_match": {}}}]
        ),
    }.items():
        on_route(rule, f"the restricted route {name}", lambda r, change=change: change(r["match"]), of=RESTRICTED)

on_route(
    "PLANE_RES_21",
    "an expression that keeps region, which was promised",
    lambda r: r["match"]["headers"][2]["string_match"]["safe_regex"].update(regex="^(geography|anywhere)$"),
    of=RESTRICTED,
)
on_route("PLANE_RES_20", "the restricted route goes to Bedrock", lambda r: r.update(route=dict(PLUGIN)), of=RESTRICTED)
on_route("PLANE_RES_21", "the restricted route goes to Bedrock", lambda r: r.update(route=dict(PLUGIN)), of=RESTRICTED)

for source in ("router/ci/fallback", "prod-dr"):

    @mutation("PLANE_RES_20", "no restricted route", source=source)
    def _(objects):
        with routes(objects) as document:
            host = document["resources"][0]["virtual_hosts"][0]
            for entry in host["matcher"]["matcher_tree"]["exact_match_map"]["map"].values():
                found = entry["action"]["typed_config"]["routes"]
                found[:] = [one for one in found if not one["name"].endswith("/restricted")]


# What routes set and tell.

for key, value in {
    "x-plane-target": "global.amazon.nova-lite-v1:0",
    "x-plane-model": KEPT,
    "x-residency": "anywhere",
    "X-Residency": "anywhere",
    ":authority": "models.example.com",
    "x-plane-first-token-budget": "4000, region",
    "x-plane-started-ms": "%REQ(x-started)%",
    "x-plane-start-seconds": "%REQ(x-residency)%",
    "x-envoy-upstream-alt-stat-name": "x",
}.items():

    def put(route, key=key, value=value):
        header = {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        route.setdefault("request_headers_to_add", []).append(header)

    on_route("PLANE_RES_22", f"a route that sets {key} to {value}", put)


@mutation("PLANE_RES_22", "a name that means nothing")
def _(objects):
    with routes(objects) as document:
        told = document["resources"][0]["typed_per_filter_config"]["envoy.filters.http.lua"]["filter_context"]
        told["name/summary"] = "nobody"


@mutation("PLANE_RES_22", "a context that nobody asks for")
def _(objects):
    with routes(objects) as document:
        told = document["resources"][0]["typed_per_filter_config"]["identity"]["filter_context"]
        told["residency/default"] = "anywhere"


# Runtime.

for name, change in {
    "a share by default": lambda f: f["default_value"].update(numerator=100),
    "a share of a millionth by default": lambda f: f["default_value"].update(numerator=1),
    "another model's key": lambda f: f.update(runtime_key="fallback.claims-triage"),
    "a key of its own": lambda f: f.update(runtime_key="upstream.share"),
    "no default": lambda f: f.pop("default_value"),
    "no key": lambda f: f.pop("runtime_key"),
}.items():
    on_route("PLANE_RES_15", name, lambda r, change=change: change(r["match"]["runtime_fraction"]), of=SHIFTED)
on_route(
    "PLANE_RES_13",
    "a share of a million",
    lambda r: r["match"]["runtime_fraction"]["default_value"].update(denominator="MILLION"),
    of=SHIFTED,
)

# The document around them.

for name, change in {
    "a second virtual host": lambda d: d["virtual_hosts"].append({"name": "x", "domains": ["x"], "routes": []}),
    "virtual hosts by another source": lambda d: d.update(vhds={"config_source": {"ads": {}}}),
    "routes that the map does not see": lambda d: d["virtual_hosts"][0].update(
        routes=[{"name": "x", "match": EVERYTHING, "route": {"cluster": BEDROCK}}]
    ),
    "mirrors for all": lambda d: d["virtual_hosts"][0].update(request_mirror_policies=[{"cluster": BEDROCK}]),
    "headers for all": lambda d: d.update(request_headers_to_add=[{"header": {"key": "x-residency", "value": "any"}}]),
    "a model by another header": lambda d: d["virtual_hosts"][0]["matcher"]["matcher_tree"]["input"][
        "typed_config"
    ].update(header_name="x-model"),
    "a prefix map": lambda d: d["virtual_hosts"][0]["matcher"]["matcher_tree"].update(prefix_match_map={"map": {}}),
    "another input": lambda d: d["virtual_hosts"][0]["matcher"]["matcher_tree"]["input"]["typed_config"].update(
        {"@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestTrailerMatchInput"}
    ),
    "a matcher list": lambda d: d["virtual_hosts"][0]["matcher"].update(matcher_list={"matchers": []}),
    "Lua for all routes": lambda d: d["typed_per_filter_config"]["envoy.filters.http.lua"].update(
        source_code={"inline_string": "x"}
    ),
    "Lua for all routes by name": lambda d: d["typed_per_filter_config"]["envoy.filters.http.lua"].update(name="x"),
    "another kind of specifier": lambda d: d["cluster_specifier_plugins"][0]["extension"]["typed_config"].update(
        {"@type": "type.googleapis.com/envoy.extensions.router.cluster_specifiers.lua.v3.LuaConfig"}
    ),
    "internal headers": lambda d: d.update(internal_only_headers=[]),
}.items():

    @mutation("PLANE_RES_13", f"routes with {name}")
    def _(objects, change=change):
        with routes(objects) as document:
            change(document["resources"][0])


@mutation("PLANE_RES_23", "a second route configuration of one name")
def _(objects):
    with routes(objects) as document:
        document["resources"].append(copy.deepcopy(document["resources"][0]))


@mutation("PLANE_RES_23", "a second specifier of one name")
def _(objects):
    with routes(objects) as document:
        plugins = document["resources"][0]["cluster_specifier_plugins"]
        plugins.append(copy.deepcopy(plugins[0]))


@mutation("PLANE_RES_23", "a cluster that nothing names")
def _(objects):
    with clusters(objects) as document:
        more = copy.deepcopy(document["resources"][1])
        more["name"] = "bedrock/spare"
        document["resources"].append(more)


@mutation("PLANE_RES_23", "a second cluster of one name")
def _(objects):
    with clusters(objects) as document:
        document["resources"].append(copy.deepcopy(document["resources"][0]))


@mutation("PLANE_RES_23", "no cluster for a name")
def _(objects):
    with clusters(objects) as document:
        document["resources"].remove(named(document["resources"], BEDROCK))


on_cluster(
    "PLANE_RES_23",
    "the endpoints of another cluster",
    lambda c: c["load_assignment"].update(cluster_name="x"),
    "fleet/case-search",
)
