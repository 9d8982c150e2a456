"""Breaks of the router's pod and of what Envoy starts with."""

import copy
import json

from inference_plane.compliance.mutations import config, find, mutation

FREE = "appeals-draft"


def bootstrap(objects):
    return config(objects, "router-bootstrap", "bootstrap.json")


def pod(objects):
    return find(objects, "Deployment", "router")["spec"]["template"]["spec"]


def envoy(objects):
    return pod(objects)["initContainers"][0]


def volume(objects, name):
    return next(v for v in pod(objects)["volumes"] if v["name"] == name)


def manager(document, listener=0):
    listeners = document["static_resources"]["listeners"]
    return listeners[listener]["filter_chains"][0]["filters"][0]["typed_config"]


def on(rule, name, change, **more):
    """A mutation of the bootstrap."""

    @mutation(rule, name, **more)
    def _(objects):
        with bootstrap(objects) as document:
            change(document)


def lua(config):
    """The filter of route.lua, wherever it stands."""
    (found,) = [one for one in config["http_filters"] if one["name"] == "envoy.filters.http.lua"]
    return found


def on_front(rule, name, change, **more):
    """A mutation of what clients meet first."""
    on(rule, name, lambda document: change(manager(document)), **more)


# Where files come from.

for name, source in {
    "the node": {"hostPath": {"path": "/etc/envoy"}},
    "a Secret and a ConfigMap": {"projected": {"sources": [{"secret": {"name": "routes"}}]}},
    "a volume of somebody": {"persistentVolumeClaim": {"claimName": "routes"}},
    "another image": {"image": {"reference": "example.com/routes"}},
    "a driver": {"csi": {"driver": "secrets-store.csi.k8s.io"}},
    "a ConfigMap that is not here": {"configMap": {"name": "router-routes-night"}},
    "scratch space": {"emptyDir": {}},
}.items():

    @mutation("PLANE_RES_10", f"routes from {name}")
    def _(objects, source=source):
        mounted = volume(objects, "xds")
        mounted.clear()
        mounted.update(name="xds", **source)


@mutation("PLANE_RES_20", "a second copy of the routes, mounted in place of the first")
def _(objects):
    more = copy.deepcopy(find(objects, "ConfigMap", "router-routes"))
    more["metadata"]["name"] = "router-routes-night"
    more["data"]["routes.json"] = more["data"]["routes.json"].replace(
        f'"cluster":"fleet/{FREE}"', f'"cluster_specifier_plugin":"fleet-then-bedrock/{FREE}"'
    )
    objects.append(more)
    volume(objects, "xds")["projected"]["sources"][1]["configMap"]["name"] = "router-routes-night"


@mutation("PLANE_RES_20", "a second router with routes of its own")
def _(objects):
    more = copy.deepcopy(find(objects, "ConfigMap", "router-routes"))
    more["metadata"]["name"] = "night-routes"
    more["data"]["routes.json"] = more["data"]["routes.json"].replace(
        f'"cluster":"fleet/{FREE}"', f'"cluster_specifier_plugin":"fleet-then-bedrock/{FREE}"'
    )
    second = copy.deepcopy(find(objects, "Deployment", "router"))
    second["metadata"]["name"] = "night"
    sources = next(v for v in second["spec"]["template"]["spec"]["volumes"] if v["name"] == "xds")["projected"][
        "sources"
    ]
    sources[1]["configMap"]["name"] = "night-routes"
    objects += [more, second]


@mutation("PLANE_RES_11", "a second copy of the routes that nobody mounts")
def _(objects):
    more = copy.deepcopy(find(objects, "ConfigMap", "router-routes"))
    more["metadata"]["name"] = "router-routes-night"
    objects.append(more)


@mutation("PLANE_RES_11", "a bootstrap in YAML that nobody mounts")
def _(objects):
    more = copy.deepcopy(find(objects, "ConfigMap", "router-routes"))
    more["metadata"]["name"] = "spare"
    more["data"] = {"envoy.yaml": "staticResources: {listeners: []}\n"}
    objects.append(more)


@mutation("PLANE_RES_11", "clusters in binary that nobody mounts")
def _(objects):
    more = copy.deepcopy(find(objects, "ConfigMap", "router-routes"))
    more["metadata"]["name"] = "spare"
    more["data"], more["binaryData"] = {}, {"routes.pb": "AAAA"}
    objects.append(more)


@mutation("PLANE_RES_11", "routes without a router")
def _(objects):
    objects.remove(find(objects, "Deployment", "router"))


@mutation("PLANE_RES_10", "no ConfigMap of routes")
def _(objects):
    objects.remove(find(objects, "ConfigMap", "router-routes"))


@mutation("PLANE_RES_10", "a file more")
def _(objects):
    data = find(objects, "ConfigMap", "router-routes")["data"]
    data["more.json"] = data["routes.json"]


@mutation("PLANE_RES_10", "one file from two ConfigMaps")
def _(objects):
    find(objects, "ConfigMap", "router-clusters")["data"]["routes.json"] = find(objects, "ConfigMap", "router-routes")[
        "data"
    ]["routes.json"]


@mutation("PLANE_RES_10", "a key twice")
def _(objects):
    data = find(objects, "ConfigMap", "router-routes")["data"]
    data["routes.json"] = data["routes.json"].replace('{"resources":', '{"resources":[],"resources":', 1)


@mutation("PLANE_RES_10", "routes in binary")
def _(objects):
    find(objects, "ConfigMap", "router-routes")["binaryData"] = {"routes.json": "e30="}


@mutation("PLANE_RES_10", "routes cut short")
def _(objects):
    data = find(objects, "ConfigMap", "router-routes")["data"]
    data["routes.json"] = data["routes.json"][:-2]


@mutation("PLANE_RES_10", "one file of a ConfigMap in place of the folder")
def _(objects):
    next(m for m in envoy(objects)["volumeMounts"] if m["name"] == "xds")["subPath"] = "routes.json"


@mutation("PLANE_RES_10", "a bootstrap in YAML")
def _(objects):
    data = find(objects, "ConfigMap", "router-bootstrap")["data"]
    data["bootstrap.yaml"] = data.pop("bootstrap.json")
    args = envoy(objects)["args"]
    args[1] = "bootstrap/bootstrap.yaml"


@mutation("PLANE_RES_10", "files under other names")
def _(objects):
    source = volume(objects, "xds")["projected"]["sources"][1]["configMap"]
    source["items"] = [{"key": "routes.json", "path": "other.json"}]


on_front(
    "PLANE_RES_10",
    "routes from another file",
    lambda m: m["rds"]["config_source"]["path_config_source"].update(path="run/r"),
)
on("PLANE_RES_10", "no clusters' file", lambda d: d.pop("dynamic_resources"))

# What runs.

for name, change in {
    "configuration in an argument": ["--config-yaml", "static_resources: {}"],
    "a second file": ["--config-path", "bootstrap/other.json"],
    "another mode": ["--mode", "validate"],
    "a log of all": ["--log-level", "trace"],
    "a log of a component": ["--component-log-level", "http:trace"],
    "an address for the administration": ["--admin-address-path", "run/x"],
    "another cluster's name": ["--service-cluster", "x"],
    "unknown fields": ["--allow-unknown-fields"],
    "ignored fields": ["--ignore-unknown-dynamic-fields"],
}.items():

    @mutation("PLANE_RES_12", f"an argument for {name}")
    def _(objects, change=change):
        envoy(objects)["args"] += change


@mutation("PLANE_RES_12", "misspelt conditions pass")
def _(objects):
    envoy(objects)["args"].remove("--reject-unknown-dynamic-fields")


@mutation("PLANE_RES_12", "a log of everything")
def _(objects):
    envoy(objects)["args"][-1] = "debug"


@mutation("PLANE_RES_12", "a shell")
def _(objects):
    envoy(objects).update(command=["sh", "-c"], args=["exec envoy --config-path bootstrap/bootstrap.json"])


@mutation("PLANE_RES_12", "the entrypoint of the image")
def _(objects):
    del envoy(objects)["command"]


for field in ("containers", "initContainers"):

    @mutation("PLANE_RES_12", f"another process among {field}")
    def _(objects, field=field):
        pod(objects)[field].append({"name": "logs", "image": "example.com/fluent-bit:1"})


@mutation("PLANE_RES_12", "a drain that does more")
def _(objects):
    pod(objects)["containers"][0]["command"] = ["sh", "-c", "python -m inference_plane.drain"]


for name, value in {
    "AWS_ACCESS_KEY_ID": "AKIA",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://credentials.example.com/",
    "ENVOY_RUNTIME": "x",
}.items():

    @mutation("PLANE_RES_12", f"the variable {name}")
    def _(objects, name=name, value=value):
        envoy(objects).setdefault("env", []).append({"name": name, "value": value})


@mutation("PLANE_RES_12", "variables of a Secret")
def _(objects):
    envoy(objects)["envFrom"] = [{"secretRef": {"name": "x"}}]


@mutation("PLANE_RES_12", "a command at the start")
def _(objects):
    envoy(objects)["lifecycle"] = {"postStart": {"exec": {"command": ["sh"]}}}


# Fields of the bootstrap.

for name, change in {
    "the administration on TCP": lambda d: d["admin"].update(
        address={"socket_address": {"address": "0.0.0.0", "port_value": 9901}}
    ),
    "the administration on a local address": lambda d: d["admin"].update(
        address={"socket_address": {"address": "127.0.0.1", "port_value": 9901}}
    ),
    "the administration's log": lambda d: d["admin"].update(access_log_path="/tmp/log"),
    "listeners by a server": lambda d: d["dynamic_resources"].update(lds_config={"ads": {}}),
    "everything by a server": lambda d: d["dynamic_resources"].update(
        ads_config={"api_type": "GRPC", "grpc_services": [{"envoy_grpc": {"cluster_name": "policy"}}]}
    ),
    "clusters by a server": lambda d: d["dynamic_resources"]["cds_config"].update(
        api_config_source={"api_type": "REST", "cluster_names": ["policy"]}
    ),
    "clusters of the other spelling": lambda d: d["dynamic_resources"].update(cdsConfig={"ads": {}}),
    "statistics for somebody": lambda d: d.update(stats_sinks=[{"name": "envoy.stat_sinks.statsd"}]),
    "a health service": lambda d: d.update(hds_config={"api_type": "GRPC"}),
    "a tracer of all": lambda d: d.update(tracing={"http": {"name": "envoy.tracers.zipkin"}}),
    "extensions": lambda d: d.update(bootstrap_extensions=[{"name": "envoy.bootstrap.wasm"}]),
    "an inline header": lambda d: d.update(inline_headers=[]),
    "layers that a disk has": lambda d: d["layered_runtime"]["layers"].append(
        {"name": "disk", "disk_layer": {"symlink_root": "/run"}}
    ),
    "layers that the administration sets": lambda d: d["layered_runtime"]["layers"].append(
        {"name": "admin", "admin_layer": {}}
    ),
    "another runtime": lambda d: d["layered_runtime"]["layers"][0]["rtds_layer"]["rtds_config"].update(ads={}),
    "a runtime of another cluster": lambda d: d["layered_runtime"]["layers"][0]["rtds_layer"]["rtds_config"][
        "api_config_source"
    ].update(cluster_names=["jwks"]),
    "a runtime by gRPC of Google": lambda d: d["layered_runtime"]["layers"][0]["rtds_layer"]["rtds_config"][
        "api_config_source"
    ].update(grpc_services=[{"google_grpc": {"target_uri": "example.com"}}]),
    "a proxy of names": lambda d: d.update(
        typed_dns_resolver_config={"name": "envoy.network.dns_resolver.getaddrinfo"}
    ),
    "a file more for secrets": lambda d: d["static_resources"].update(secrets=[{"name": "x"}]),
    "a listener for datagrams": lambda d: d["static_resources"]["listeners"][0].update(udp_listener_config={}),
    "a filter before TLS": lambda d: d["static_resources"]["listeners"][0].update(
        listener_filters=[{"name": "envoy.filters.listener.original_dst"}]
    ),
    "a listener of what was meant": lambda d: d["static_resources"]["listeners"][0].update(use_original_dst=True),
    "the log of a listener": lambda d: d["static_resources"]["listeners"][0].update(access_log=[]),
    "another address": lambda d: d["static_resources"]["listeners"][0].update(additional_addresses=[]),
    "a chain by default": lambda d: d["static_resources"]["listeners"][0].update(default_filter_chain={}),
    "a proxy of TCP": lambda d: d["static_resources"]["listeners"][0]["filter_chains"][0]["filters"].insert(
        0, {"name": "envoy.filters.network.tcp_proxy"}
    ),
}.items():
    on("PLANE_RES_13", f"a bootstrap with {name}", change)

for kind in (
    "ext_proc ext_authz wasm tap dynamic_forward_proxy original_src grpc_web file_system_buffer cache golang "
    "dynamic_modules aws_lambda on_demand composite custom_response gcp_authn json_to_metadata proto_message_logging"
).split():
    filter_ = {"name": f"envoy.filters.http.{kind}", "typed_config": {"@type": "x"}}
    on_front("PLANE_RES_13", f"the filter {kind}", lambda m, one=filter_: m["http_filters"].insert(0, dict(one)))
    on_front("PLANE_RES_16", f"the filter {kind}", lambda m, one=filter_: m["http_filters"].insert(0, dict(one)))
on_front(
    "PLANE_RES_13",
    "another filter under a known name",
    lambda m: lua(m)["typed_config"].update(
        {"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"}
    ),
)
on_front("PLANE_RES_13", "inline Lua", lambda m: lua(m)["typed_config"].update(inline_code="x"))
on_front("PLANE_RES_13", "a route for upgrades", lambda m: m.update(upgrade_configs=[{"upgrade_type": "websocket"}]))
on_front("PLANE_RES_13", "routes by scope", lambda m: m.update(scoped_routes={"name": "x"}))
on_front("PLANE_RES_13", "routes by the other spelling", lambda m: m.update({"routeConfig": {"virtualHosts": []}}))
on_front("PLANE_RES_13", "certificates of clients passed on", lambda m: m.update(forward_client_cert_details="ALWAYS"))

# Listeners.


def another(document):
    more = copy.deepcopy(document["static_resources"]["listeners"][0])
    more["address"]["socket_address"]["port_value"] = 9000
    document["static_resources"]["listeners"].append(more)


on("PLANE_RES_14", "a second listener for clients", another)
on("PLANE_RES_14", "no status listener", lambda d: d["static_resources"]["listeners"].pop(2))
for name, change in {
    "no-capacity for all": lambda x: x[1]["address"]["socket_address"].update(address="0.0.0.0"),
    "another port for clients": lambda x: x[0]["address"]["socket_address"].update(port_value=8000),
    "another port for status": lambda x: x[2]["address"]["socket_address"].update(port_value=8080),
}.items():
    on("PLANE_RES_14", name, lambda d, change=change: change(d["static_resources"]["listeners"]))
for name, change in {
    "the whole administration": lambda m: m["route_config"]["virtual_hosts"][0]["routes"].append(
        {"match": {"prefix": "/"}, "route": {"cluster": "admin"}}
    ),
    "an administration that is posted to": lambda m: m["route_config"]["virtual_hosts"][0]["routes"][2]["match"].pop(
        "headers"
    ),
    "metrics that are all": lambda m: m["route_config"]["virtual_hosts"][0]["routes"][2]["route"].pop("prefix_rewrite"),
}.items():
    on("PLANE_RES_14", f"a status listener with {name}", lambda d, change=change: change(manager(d, 2)))
on(
    "PLANE_RES_14",
    "a no-capacity listener that routes",
    lambda d: manager(d, 1).update(rds=manager(d)["rds"], route_config=None),
)
on_front(
    "PLANE_RES_14", "routes in the bootstrap", lambda m: m.update(route_config={"virtual_hosts": []}) or m.pop("rds")
)

# Runtime.

for keys in (
    {"fallback.nobody": 100},
    {"fallback": {"clinical-summary": 100}},
    {"fallback": {"nobody": {"numerator": 100, "denominator": "HUNDRED"}}},
):
    on(
        "PLANE_RES_15",
        f"a layer that sets {json.dumps(keys)}",
        lambda d, keys=keys: d["layered_runtime"]["layers"].append({"name": "pins", "static_layer": keys}),
    )
on(
    "PLANE_RES_15",
    "a layer of a disk",
    lambda d: d["layered_runtime"]["layers"].append({"name": "d", "disk_layer": {}}),
)
on("PLANE_RES_15", "a layer of nobody", lambda d: d["static_resources"]["clusters"].pop(1))

# Filters.

for name, change in {
    "without route.lua": lambda f: f.pop(3),
    "with route.lua before identity": lambda f: f.insert(0, f.pop(3)),
    "with route.lua after the budget": lambda f: f.insert(6, f.pop(3)),
    "twice the router": lambda f: f.append(f[-1]),
    "without rbac": lambda f: f.pop(2),
    "without the token": lambda f: f.pop(0),
    "without the router": lambda f: f.pop(),
}.items():
    on_front("PLANE_RES_16", f"filters {name}", lambda m, change=change: change(m["http_filters"]))
for name, change in {
    "x-plane- of clients": lambda m: m["early_header_mutation_extensions"][0]["typed_config"]["mutations"].pop(0),
    "x-envoy- of clients": lambda m: m["early_header_mutation_extensions"][0]["typed_config"]["mutations"].pop(1),
    "all headers of clients": lambda m: m.pop("early_header_mutation_extensions"),
    "paths as they come": lambda m: m.pop("normalize_path"),
    "slashes as they come": lambda m: m.update(merge_slashes=False),
    "escaped slashes": lambda m: m.update(path_with_escaped_slashes_action="UNESCAPE_AND_FORWARD"),
    "underscores": lambda m: m["common_http_protocol_options"].update(headers_with_underscores_action="ALLOW"),
}.items():
    on_front("PLANE_RES_16", f"a listener that takes {name}", change)
on("PLANE_RES_16", "a filter where nobody serves", lambda d: manager(d, 1)["http_filters"].insert(0, {"name": "x"}))

# Lua.

for name, change in {
    "a call": lambda d: d.update({"route.lua": d["route.lua"] + "\nfunction f(h) h:httpCall('jwks', {}, '', 1) end\n"}),
    "a blank less": lambda d: d.update({"bedrock.lua": d["bedrock.lua"].replace("  ", " ", 1)}),
    "another tightest residency": lambda d: d.update(
        {"route.lua": d["route.lua"].replace("TIGHTEST = {cluster", "TIGHTEST = {anywhere", 1)}
    ),
    "an empty restore": lambda d: d.update({"restore.lua": ""}),
    "a file of its own": lambda d: d.update({"more.lua": "x = 1\n"}),
    "no identity": lambda d: d.pop("identity.lua"),
    "files exchanged": lambda d: d.update({"route.lua": d["bedrock.lua"]}),
}.items():

    @mutation("PLANE_RES_17", f"Lua with {name}")
    def _(objects, change=change):
        change(find(objects, "ConfigMap", "router-bootstrap")["data"])


on_front(
    "PLANE_RES_17",
    "another file",
    lambda m: lua(m)["typed_config"].update(default_source_code={"filename": "run/x.lua"}),
)
on_front(
    "PLANE_RES_17",
    "a script in the bootstrap",
    lambda m: lua(m)["typed_config"].update(default_source_code={"inline_string": "x"}),
)


@mutation("PLANE_RES_17", "another script on the way to Bedrock")
def _(objects):
    data = find(objects, "ConfigMap", "router-clusters")["data"]
    data["clusters.json"] = data["clusters.json"].replace("bootstrap/bedrock.lua", "bootstrap/route.lua")


@mutation("PLANE_RES_17", "another script on the way back")
def _(objects):
    data = find(objects, "ConfigMap", "router-routes")["data"]
    data["routes.json"] = data["routes.json"].replace("bootstrap/restore.lua", "bootstrap/bedrock.lua")


# Lines.

for operator in (
    "%REQ(:path)%",
    "%REQ(authorization)%",
    "%PATH(WQ)%",
    "%DYNAMIC_METADATA(inference-plane:prompt)%",
    "%DYNAMIC_METADATA(inference-plane)%",
    "%FILTER_STATE(inference-plane.affinity)%",
    "%CEL(request.headers['x-prompt'])%",
    "%RESP(x-completion)%",
    "%TRAILER(x)%",
    "%RESPONSE_CODE%%REQ(x-prompt)%",
):
    on_front(
        "PLANE_RES_18",
        f"a line with {operator}",
        lambda m, operator=operator: m["access_log"][0]["typed_config"]["log_format"]["json_format"].update(
            more=f"a {operator}"
        ),
    )
on_front(
    "PLANE_RES_18",
    "a counter by words of clients",
    lambda m: m["access_log"][1]["typed_config"]["counters"][0]["stat"]["tags"].append(
        {"name": "x", "value_format": "%REQ(x-words)%"}
    ),
)
on("PLANE_RES_18", "lines of the status listener", lambda d: manager(d, 2).update(access_log=manager(d)["access_log"]))
for kind in ("file", "http_grpc", "tcp_grpc", "open_telemetry", "wasm", "fluentd"):
    on_front(
        "PLANE_RES_13",
        f"lines by {kind}",
        lambda m, kind=kind: m["access_log"].append(
            {"name": f"envoy.access_loggers.{kind}", "typed_config": {"@type": "x"}}
        ),
    )
on_front(
    "PLANE_RES_13",
    "headers in lines by another format",
    lambda m: m["access_log"][0]["typed_config"].update(
        log_format={"text_format_source": {"inline_string": "%REQ(x)%"}}
    ),
)


# What is fixed of the runtime, and what is kept of a request.


def _runtime(rule, name, change):
    @mutation(rule, name)
    def _(objects):
        with config(objects, "router-clusters", "runtime.json") as runtime:
            change(runtime)


_runtime(
    "PLANE_RES_15", "a share that is fixed", lambda r: r["resources"][0]["layer"].update({"fallback.records": 100})
)
_runtime("PLANE_RES_13", "a layer of another name", lambda r: r["resources"][0].update(name="policy"))
_runtime(
    "PLANE_RES_13", "a resource of another type", lambda r: r["resources"][0].update({"@type": "type.googleapis.com/x"})
)
on(
    "PLANE_RES_10",
    "a runtime from another file",
    lambda d: d["layered_runtime"]["layers"][1]["rtds_layer"]["rtds_config"]["path_config_source"].update(
        path="run/r.json"
    ),
)


def kept(document, name):
    """What the filter keeps, one entry each."""
    (found,) = [one for one in manager(document)["http_filters"] if one["name"] == name]
    return found["typed_config"]["on_request_headers"]


for name, text in {"a prompt's header": "%REQ(x-prompt)%", "the token": "%REQ(authorization)%"}.items():
    for filter_ in ("caller", "envoy.filters.http.set_filter_state"):
        on(
            "PLANE_RES_13",
            f"{filter_} keeps {name}",
            lambda d, f=filter_, t=text: kept(d, f)[0]["format_string"]["text_format_source"].update(inline_string=t),
        )
on(
    "PLANE_RES_13",
    "something kept for another filter",
    lambda d: kept(d, "caller")[0].update(object_key="envoy.tcp_proxy.cluster"),
)
on_front(
    "PLANE_RES_16", "who asks is said after the route", lambda m: m["http_filters"].insert(5, m["http_filters"].pop(2))
)

# The tunnel to the issuer's keys.


def tunnel(document):
    """The listener that carries bytes to the proxy of keys."""
    (found,) = [one for one in document["static_resources"]["listeners"] if one["name"] == "jwks-proxy"]
    return found


def keys(document, name="jwks"):
    (found,) = [one for one in document["static_resources"]["clusters"] if one["name"] == name]
    return found


PROXIED = {"source": "router/ci/egress-proxy"}
for name, change in {
    "bytes to a fleet": lambda x: x["filter_chains"][0]["filters"][0]["typed_config"].update(cluster="fleet/letters"),
    "bytes to a cluster of their choice": lambda x: x["filter_chains"][0]["filters"][0]["typed_config"].update(
        weighted_clusters={"clusters": []}
    ),
    "a copy in a log": lambda x: x["filter_chains"][0]["filters"][0]["typed_config"].update(access_log=[]),
    "another socket": lambda x: x["address"]["pipe"].update(path="/tmp/jwks.sock"),
    "a socket for everybody": lambda x: x["address"]["pipe"].update(mode=438),
}.items():
    on("PLANE_RES_13", f"the tunnel of keys: {name}", lambda d, change=change: change(tunnel(d)), **PROXIED)
for name, change in {
    "the tunnel of keys at an address": lambda d: tunnel(d).update(
        address={"socket_address": {"address": "0.0.0.0", "port_value": 3128}}
    ),
    "bytes as they are, for clients": lambda d: d["static_resources"]["listeners"][0]["filter_chains"][0][
        "filters"
    ].insert(0, tunnel(d)["filter_chains"][0]["filters"][0]),
    "routes in the tunnel of keys": lambda d: tunnel(d)["filter_chains"][0]["filters"].append(
        d["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    ),
    "clients by the socket of the tunnel": lambda d: d["static_resources"]["listeners"][0].update(
        address=tunnel(d)["address"]
    ),
}.items():
    on("PLANE_RES_14", name, change, **PROXIED)
on(
    "PLANE_RES_30",
    "keys from the administration",
    lambda d: keys(d)["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["pipe"].update(
        path="run/admin.sock"
    ),
    **PROXIED,
)
on("PLANE_RES_36", "keys in clear text through the proxy", lambda d: keys(d).pop("transport_socket"), **PROXIED)
on(
    "PLANE_RES_36",
    "keys of another host through the proxy",
    lambda d: keys(d)["transport_socket"]["typed_config"].update(sni="other.example"),
    **PROXIED,
)
