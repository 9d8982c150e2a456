"""What the router's pod runs and reads: whether its configuration is known as a whole."""

import re
from collections.abc import Iterator, Mapping

from inference_plane.compliance import envoy, pods
from inference_plane.compliance.envoy import Fault, Router, dig, items, text
from inference_plane.compliance.envoy_fields import FILES, unknown
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index

#: Envoy's flags with what may follow each; None where nothing does.
_FLAGS = {
    "--config-path": lambda value: value == "bootstrap/bootstrap.json",
    "--concurrency": str.isdigit,
    "--file-flush-interval-msec": str.isdigit,
    "--log-level": lambda value: value in ("warning", "error", "critical", "off"),
    "--disable-hot-restart": None,
    "--reject-unknown-dynamic-fields": None,
}
_AGENT = "http://169.254.170.23/v1/credentials"


@rule(
    "PLANE_RES_10",
    "All that a router reads is in the render",
    severity="CRITICAL",
    kinds=envoy.KINDS,
    why="A file that comes from elsewhere can hold any route, and none of it can be judged.",
    remedy="Render the router's Deployment and its ConfigMaps together, mounted as charts/router mounts them.",
    source="https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/overview/xds_api#filesystem-subscriptions",
    example="volumes: [{name: bootstrap, hostPath: {path: /etc/envoy}}]",
)
@envoy.judged
def everything_is_known(router: Router, index: Index) -> Iterator[Fault]:
    yield from router.problems
    for path, file in router.files.items():
        if path in router.read and file.error:
            yield (file.owner, file.at(), f"is no JSON that all readers take alike: {file.error}")
        elif path not in router.read and not file.key.endswith(".lua"):
            yield (file.owner, file.at(), f"is the file {path}, which nothing names: nobody says what it is for")
    if router.bootstrap and not router.of("routes"):
        yield router.bootstrap.owner, router.bootstrap.at(), "names no file of routes"


@rule(
    "PLANE_RES_11",
    "No Envoy configuration that no router of the render reads",
    severity="HIGH",
    kinds={"core/ConfigMap"},
    why="Whoever mounts it routes by it; without the pod nobody can say what it does.",
    remedy="Remove the ConfigMap, or render the pod that mounts it.",
    source="docs/residency.md#read-it-from-the-manifests",
    example="a copy of the ConfigMap router-routes under another name",
)
def no_stray_configuration(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    read = {id(file.owner) for router in envoy.routers(index) for file in router.files.values()}
    if id(obj) in read:
        return
    for field in ("data", "binaryData"):
        for key, written in (obj.get(field) or {}).items():
            squeezed = re.sub(r"[^a-z./]", "", str(written).lower())
            if "type.googleapis.com/envoy" in squeezed or "staticresources" in squeezed or field == "binaryData":
                yield (f"{field}['{key}']", "looks like configuration of Envoy, and no router of the render mounts it")


@rule(
    "PLANE_RES_12",
    "The router runs Envoy and its drain, as the chart starts them",
    severity="CRITICAL",
    kinds=pods.KINDS,
    why="Another argument (--config-yaml), a shell, or a process beside Envoy can send prompts where no file says.",
    remedy="Leave the pod of charts/router as it is rendered.",
    source="https://www.envoyproxy.io/docs/envoy/v1.40.0/operations/cli",
    example='args: [--config-path, bootstrap/bootstrap.json, --config-yaml, "static_resources: {...}"]',
)
@envoy.judged
def only_envoy_runs(router: Router, index: Index) -> Iterator[Fault]:
    pod = router.workload.obj
    for container, path in router.workload.containers:
        name, command = text(container.get("name")), container.get("command")
        if container is not router.container and (
            name != "drain" or command != ["python", "-m", "inference_plane.drain"]
        ):
            yield (pod, path, f"runs {name or '(no name)'}: {command or text(container.get('image'))}, beside Envoy")
        for field in ("lifecycle", "envFrom", "stdin"):
            if container.get(field):
                yield pod, f"{path}.{field}", "is set, which the chart does not"
    if router.container.get("command") != ["envoy"]:
        yield (pod, f"{router.path}.command", f"is {router.container.get('command')}, not [envoy]")
    words, seen = [str(word) for word in router.container.get("args") or ()], set()
    while words:
        flag = words.pop(0)
        if flag not in _FLAGS:
            yield (pod, f"{router.path}.args", f"has {flag}, which the chart does not give to Envoy")
            continue
        if flag in seen:
            yield pod, f"{router.path}.args", f"has {flag} twice"
        seen.add(flag)
        allowed = _FLAGS[flag]
        if allowed and not (words and allowed(words.pop(0))):
            yield (pod, f"{router.path}.args", f"has {flag} with another value than the chart gives")
    for flag in ("--reject-unknown-dynamic-fields",):
        if flag not in seen:
            yield (pod, f"{router.path}.args", f"lacks {flag}: Envoy leaves a condition that it does not know out")
    for i, variable in enumerate(items(router.container.get("env"))):
        name, value = text(variable.get("name")), variable.get("value")
        fine = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": value == _AGENT,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": text(value).startswith("/var/run/secrets/"),
        }
        if not fine.get(name, False):
            yield (pod, f"{router.path}.env[{i}]", f"sets {name} to {value!r}, which the chart does not")


@rule(
    "PLANE_RES_13",
    "Every field of the router's configuration is known",
    severity="CRITICAL",
    kinds={"core/ConfigMap"},
    why="Envoy has hundreds of fields that send a request, a copy or a log of it elsewhere; only those are allowed of "
    "which the other rules know what they do.",
    remedy="Render the configuration with charts/router. A field that a new version of the chart renders goes into "
    "inference_plane/compliance/envoy_fields.py.",
    source="https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api",
    example='"route": {"cluster": "fleet/records", "request_mirror_policies": [{"cluster": "bedrock/assistant"}]}',
)
@envoy.judged
def fields_are_known(router: Router, index: Index) -> Iterator[Fault]:
    for kind, shape in FILES.items():
        for file in router.of(kind):
            for path, message in unknown(file.parsed, shape):
                yield file.owner, f"{file.at()}: {path}" if path else file.at(), message


@rule(
    "PLANE_RES_14",
    "Envoy listens where the plane says",
    severity="CRITICAL",
    kinds={"core/ConfigMap"},
    why="Another listener is another way in, past the filters that say whose prompt it is; the status port leads to "
    "Envoy's administration.",
    remedy="Leave the three listeners of charts/router: plane, no-capacity on 127.0.0.1, status with three paths.",
    source="https://www.envoyproxy.io/docs/envoy/v1.40.0/operations/admin",
    example='listeners: [{"name": "plane", ...}, {"name": "debug", "address": {"socket_address": {"port_value": 9}}}]',
)
@envoy.judged
def listeners_are_known(router: Router, index: Index) -> Iterator[Fault]:
    if not router.bootstrap:
        return
    file, root = router.bootstrap, ("static_resources", "listeners")
    ports = {text(p.get("name")): p.get("containerPort") for p in items(router.container.get("ports"))}
    listeners = items(dig(file.parsed, *root))
    names = [text(listener.get("name")) for listener in listeners]
    if sorted(set(names) - {"jwks-proxy"}) != ["no-capacity", "plane", "status"] or len(set(names)) != len(names):
        yield (file.owner, file.at(*root), f"are {', '.join(names) or 'none'}, not plane, no-capacity and status")
    for i, listener in enumerate(listeners):
        tunnels = [
            one.get("name") == envoy.TUNNEL
            for c in items(listener.get("filter_chains"))
            for one in items(c.get("filters"))
        ]
        if any(tunnels) != (names[i] == "jwks-proxy") or (any(tunnels) and tunnels != [True]):
            yield (file.owner, file.at(*root, i), f"of {names[i]}: bytes as they are go to the proxy of keys alone")
        if ("pipe" in (dig(listener, "address") or {})) != (names[i] == "jwks-proxy"):
            yield (file.owner, file.at(*root, i, "address"), f"of {names[i]} is {listener.get('address')}")
        name, socket = names[i], dig(listener, "address", "socket_address") or {}
        if name == "no-capacity" and socket.get("address") != envoy.LOOPBACK:
            where = file.at(*root, i, "address")
            yield (file.owner, where, f"is {socket.get('address')}: only the router itself may reach no-capacity")
        port = {"plane": ports.get("http", ports.get("https")), "status": ports.get("status")}.get(name)
        if port is not None and socket.get("port_value") != port:
            message = f"is {socket.get('port_value')}, where the pod says {port}"
            yield file.owner, file.at(*root, i, "address"), message
    for name, manager, path in router.managers:
        routes = [r for host in items(dig(manager, "route_config", "virtual_hosts")) for r in items(host.get("routes"))]
        wanted = {
            "plane": [],
            "no-capacity": [("/", None, None)],
            "status": [
                ("/ready", "admin", None),
                ("/alive", "admin", "/hot_restart_version"),
                ("/metrics", "admin", "/stats/prometheus"),
            ],
        }.get(name, [])
        has = []
        for route in routes:
            match = dig(route, "match") or {}
            is_get = [dig(h, "string_match", "exact") for h in items(match.get("headers"))] == ["GET"]
            place = match.get("path") if name == "status" and is_get else match.get("prefix")
            has.append((place, dig(route, "route", "cluster"), dig(route, "route", "prefix_rewrite")))
        if has != wanted:
            yield (file.owner, file.at(*path, "route_config"), f"of {name} leads {has}, where the chart has {wanted}")
        if (name == "plane") != ("rds" in manager):
            yield (file.owner, file.at(*path), f"of {name} {'lacks' if name == 'plane' else 'has'} the file of routes")


@rule(
    "PLANE_RES_15",
    "The router is told by its files, and its runtime by the policy service alone",
    severity="CRITICAL",
    kinds={"core/ConfigMap"},
    why="A server of configuration can replace every route while nobody looks. Of Envoy's runtime the service may set "
    "the share of each model that is asked of Amazon Bedrock first, of two places where the prompt may go anyway.",
    remedy="Leave sources of configuration at path_config_source, and runtime keys at fallback.MODEL with a default "
    "of 0.",
    source="docs/policy.md",
    example='"runtime_fraction": {"default_value": {"numerator": 100}, "runtime_key": "fallback.records"}',
)
@envoy.judged
def told_by_files(router: Router, index: Index) -> Iterator[Fault]:
    used = set()
    for route in router.routes:
        fraction = dig(route.config, "match", "runtime_fraction")
        if fraction is None:
            continue
        key, default = (dig(fraction, "runtime_key"), dig(fraction, "default_value", "numerator"))
        used.add(key)
        if key != f"fallback.{router.model_of(route)}":
            message = f"is {key!r}, not fallback.{router.model_of(route)} of its own model"
            yield (route.file.owner, route.at("match", "runtime_fraction", "runtime_key"), message)
        if default != 0 or isinstance(default, bool):
            message = f"is {default!r}: without a word of the policy service nothing may be shifted"
            yield (route.file.owner, route.at("match", "runtime_fraction", "default_value"), message)
    file = router.bootstrap
    if not file:
        return
    for i, layer in enumerate(items(dig(file.parsed, "layered_runtime", "layers"))):
        where = ("layered_runtime", "layers", i)
        if set(layer) & {"admin_layer", "disk_layer"}:
            yield (file.owner, file.at(*where), "can be written by somebody else than the policy service")
        for key in _keys(layer.get("static_layer")):
            if key.split(".")[0] == "fallback" and key not in used:
                yield (file.owner, file.at(*where), f"names {key}, which no route asks for")
    for runtime in router.of("runtime"):
        for i, resource in enumerate(items(dig(runtime.parsed, "resources"))):
            for key in _keys(resource.get("layer")):
                if key.split(".")[0] == "fallback":
                    yield (
                        runtime.owner,
                        runtime.at("resources", i),
                        f"fixes {key}, a share that the policy service says",
                    )
    policy = router.cluster("policy")
    if dig(file.parsed, "layered_runtime") and "rtds_layer" in str(file.parsed["layered_runtime"]):
        for host, _ in policy.hosts if policy else [("nobody", 0)]:
            if not host.endswith(f".svc.{router.home.get(envoy.DOMAIN, '')}"):
                message = f"asks {host} for runtime, which is no Service of the cluster"
                yield file.owner, file.at("layered_runtime"), message


def _keys(value: object, prefix: str = "") -> Iterator[str]:
    """The keys of a runtime layer, nested ones with dots, as Envoy reads them."""
    for key, inside in (value if isinstance(value, dict) else {}).items():
        if isinstance(inside, dict) and not {"numerator", "denominator"} & set(inside):
            yield from _keys(inside, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@rule(
    "PLANE_RES_16",
    "Requests pass the filters in their order",
    severity="CRITICAL",
    kinds={"core/ConfigMap"},
    why="route.lua makes one known word of x-residency and says which model is asked for; the listener takes headers "
    "away that a client must not send. Without them, or after others, a route decides by the client's own words.",
    remedy="Leave the filters of charts/router as they are.",
    source="docs/router.md#the-way-of-a-request",
    example="http_filters without envoy.filters.http.lua",
)
@envoy.judged
def filters_in_order(router: Router, index: Index) -> Iterator[Fault]:
    order = [
        "envoy.filters.http.jwt_authn",
        "identity",
        "caller",
        "envoy.filters.http.rbac",
        "envoy.filters.http.lua",
        "envoy.filters.http.set_filter_state",
        "envoy.filters.http.header_to_metadata",
        "envoy.filters.http.ratelimit",
        "envoy.filters.http.sse_to_metadata",
        "envoy.filters.http.router",
    ]
    needed = {"envoy.filters.http.lua", order[-1]}
    for name, manager, path in router.managers:
        file, where = router.bootstrap, (*path, "http_filters")
        filters = [text(one.get("name")) for one in items(manager.get("http_filters"))]
        if name != "plane":
            if filters != order[-1:]:
                yield (file.owner, file.at(*where), f"of {name} are {filters}, not the router alone")
            continue
        if filters != [one for one in order if one in filters] or not needed <= set(filters):
            yield (file.owner, file.at(*where), f"are {filters}, not those of the chart in its order")
        if 0 < len(set(order[:4]) & set(filters)) < 4:
            yield (file.owner, file.at(*where), f"have {filters[:3]} of {order[:4]}, which stand or fall together")
        removed = {
            dig(mutation, "remove_on_match", "key_matcher", "prefix")
            for extension in items(manager.get("early_header_mutation_extensions"))
            for mutation in items(dig(extension, "typed_config", "mutations"))
        }
        for prefix in ("x-plane-", "x-envoy-", "x-inference-"):
            if prefix not in removed:
                message = f"leave a client's {prefix}* in, which the plane takes for its own"
                yield (file.owner, file.at(*path, "early_header_mutation_extensions"), message)
        for field, value in {
            "normalize_path": True,
            "merge_slashes": True,
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
        }.items():
            if manager.get(field) != value:
                yield (file.owner, file.at(*path, field), f"is {manager.get(field)!r}, not {value!r}")
        underscores = dig(manager, "common_http_protocol_options", "headers_with_underscores_action")
        if underscores != "REJECT_REQUEST":
            message = f"is {underscores!r}: an engine may take x_residency for x-residency"
            yield file.owner, file.at(*path, "common_http_protocol_options"), message


@rule(
    "PLANE_RES_17",
    "The Lua is the chart's own",
    severity="CRITICAL",
    kinds={"core/ConfigMap"},
    why="A script can read prompts, call any cluster and choose the route.",
    remedy="Render the ConfigMap with charts/router of the same version as this check.",
    source="https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/lua_filter",
    example='route.lua: |\n  h:httpCall("bedrock/assistant", ...)',
)
@envoy.judged
def lua_is_the_charts(router: Router, index: Index) -> Iterator[Fault]:
    shipped = envoy.shipped()
    for path, file in router.files.items():
        if not file.key.endswith(".lua"):
            continue
        if file.key not in shipped or path != f"bootstrap/{file.key}":
            yield file.owner, file.at(), f"is {path}, which charts/router does not have"
        elif file.written != shipped[file.key]:
            lines = list(zip(file.written.splitlines(), shipped[file.key].splitlines(), strict=False))
            first = next((n for n, (one, other) in enumerate(lines, 1) if one != other), len(lines) + 1)
            yield (file.owner, file.at(), f"differs from the {file.key} of charts/router in line {first}")
    for holder, wanted in _scripts(router):
        file, path, config = holder
        named = text(dig(config, "filename"))
        if named != f"bootstrap/{wanted}":
            yield (file.owner, file.at(*path), f"runs {named or config!r}, not bootstrap/{wanted}")
        elif named not in router.files:
            yield (file.owner, file.at(*path), f"runs {named}, which no ConfigMap of the pod has")


def _scripts(router: Router) -> Iterator[tuple[tuple, str]]:
    """((file, path, the source of code), the file that it must be) of each script that runs."""
    code = "default_source_code"
    for _, manager, path in router.managers:
        for i, one in enumerate(items(manager.get("http_filters"))):
            wanted = {"envoy.filters.http.lua": "route.lua", "identity": "identity.lua"}.get(text(one.get("name")))
            if wanted:
                where = (*path, "http_filters", i, "typed_config", code)
                yield (router.bootstrap, where, dig(one, "typed_config", code)), wanted
    for cluster in router.clusters:
        for one in cluster.filters:
            kind = text(dig(one, "typed_config", "@type"))
            if kind.endswith(".lua.v3.Lua") and one.get("name") != "restore":
                where = (*cluster.path, "typed_extension_protocol_options")
                yield ((cluster.file, where, dig(one, "typed_config", code)), "bedrock.lua")
    for route in router.routes:
        if restore := dig(route.config, "typed_per_filter_config", "restore"):
            where = (*route.path, "typed_per_filter_config", "restore")
            yield (route.file, where, dig(restore, "source_code")), "restore.lua"


@rule(
    "PLANE_RES_18",
    "The audit line has no word of a prompt",
    severity="HIGH",
    kinds={"core/ConfigMap"},
    why="Lines go to wherever the cluster's logs go, which no residency covers. What a client wrote is in headers, "
    "queries and bodies; the line has listed facts instead.",
    remedy="Log to standard output alone, with the operators that charts/router uses.",
    source="https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/observability/access_log/usage",
    example='"json_format": {"query": "%REQ(:path)%"}',
)
@envoy.judged
def no_prompt_in_lines(router: Router, index: Index) -> Iterator[Fault]:
    for name, manager, path in router.managers:
        file, logs = router.bootstrap, items(manager.get("access_log"))
        if logs and name != "plane":
            yield (file.owner, file.at(*path, "access_log"), f"of {name}: only requests of clients have lines")
        for i, log in enumerate(logs):
            for where, written in _strings(log.get("typed_config")):
                for operator in _operators(written):
                    if not _is_fact(operator):
                        message = f"has %{operator}%, which is no listed fact of a request"
                        yield (file.owner, file.at(*path, "access_log", i, "typed_config", *where), message)
        for i, tag in enumerate(items(dig(manager, "tracing", "custom_tags"))):
            for operator in _operators(text(tag.get("value"))):
                if not _is_fact(operator):
                    message = f"has %{operator}%, which is no listed fact of a request"
                    yield (file.owner, file.at(*path, "tracing", "custom_tags", i), message)


#: What the charts' own filters say of a request: who asks, for which of the catalogue's models, how far it may go.
_FOUND = ("team", "cost_center", "subject", "requested_model", "requested_residency")
#: What a line may say of a request.
_FACTS = frozenset(
    [
        *(
            "START_TIME REQ(x-request-id) REQ(:method) DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT PATH(NQ):128 ROUTE_NAME "
            "UPSTREAM_HOST UPSTREAM_REQUEST_ATTEMPT_COUNT RESPONSE_CODE RESP(content-type) RESP(x-plane-reason) "
            "RESPONSE_CODE_DETAILS RESPONSE_FLAGS_LONG BYTES_RECEIVED BYTES_SENT "
            "UPSTREAM_CONNECTION_POOL_READY_DURATION RESPONSE_DURATION DURATION"
        ).split(),
        *(f"FILTER_STATE(inference-plane.{key}:PLAIN)" for key in _FOUND),
        *(f"DYNAMIC_METADATA(inference-plane:{key})" for key in (*_FOUND, "budget_estimate")),
        *(f"DYNAMIC_METADATA(usage:{kind}_tokens)" for kind in ("prompt", "completion", "cached")),
    ]
)


def _is_fact(operator: str) -> bool:
    if operator.startswith("START_TIME("):
        return True
    if operator.startswith("CLUSTER_METADATA(inference-plane:") and operator.endswith(")"):
        return True
    if operator.startswith("CEL("):
        return not any(word in operator for word in ("request.", "request[", "connection.", "xds.", "filter_state"))
    return operator in _FACTS


def _operators(written: str) -> list[str]:
    """What stands between percent signs, where a time's format has some of its own."""
    found, rest = [], written
    while (start := rest.find("%")) >= 0:
        rest, depth, end = rest[start + 1 :], 0, 0
        while end < len(rest) and (rest[end] != "%" or depth):
            depth += (rest[end] == "(") - (rest[end] == ")")
            end += 1
        found.append(rest[:end])
        rest = rest[end + 1 :]
    return found


def _strings(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inside in value.items():
            yield from _strings(inside, (*path, key))
    elif isinstance(value, list):
        for number, inside in enumerate(value):
            yield from _strings(inside, (*path, number))
