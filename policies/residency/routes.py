"""Where a model's prompts can go: every way through the routes, for every residency that a request can ask for."""

from collections.abc import Iterator, Mapping

from inference_plane.compliance import bedrock, envoy
from inference_plane.compliance.bedrock import RESIDENCIES, rank
from inference_plane.compliance.envoy import Cluster, Fault, Route, Router, dig, items, text
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, meta

MODEL, RESIDENCY = "inference-plane/model", "inference-plane/residency"
_CONFIG = {"core/ConfigMap"}


def labels(obj: Mapping) -> Mapping:
    found = meta(obj).get("labels")
    return found if isinstance(found, dict) else {}


def stated(router: Router, index: Index, model: str) -> str:
    """The tightest residency that anything says of a model; empty where nothing says one."""
    found = [c.facts.get("residency") for c in router.clusters if c.facts.get("model") == model]
    found += [labels(w.obj).get(RESIDENCY) for w in index.workloads if labels(w.obj).get(MODEL) == model]
    return min((text(one) for one in found), key=rank, default="")


def reach(router: Router, cluster: Cluster) -> str:
    """How far a cluster of Bedrock takes a prompt, by its target's id alone."""
    return bedrock.reach(target(cluster), router.home.get(envoy.GEOGRAPHY, ""))


def target(cluster: Cluster) -> str:
    """The id that bedrock.lua asks for: the header of the first filter on the way."""
    found = [
        text(dig(change, "append", "header", "value"))
        for one in cluster.filters
        for change in items(dig(one, "typed_config", "mutations", "request_mutations"))
        if dig(change, "append", "header", "key") == "x-plane-target"
    ]
    return found[0] if len(found) == 1 else ""


def is_bedrock(cluster: Cluster) -> bool:
    """Whether a cluster is or may be Amazon Bedrock: whatever says so, or has a host of AWS."""
    signs = any("aws_request_signing" in text(one.get("name")) for one in cluster.filters)
    hosts = any("amazonaws" in host for host, _ in cluster.hosts)
    return signs or hosts or cluster.facts.get("backend") == "bedrock" or cluster.name.startswith("bedrock/")


@rule(
    "PLANE_RES_20",
    "No way takes a prompt beyond its residency",
    severity="CRITICAL",
    kinds=_CONFIG,
    why="Each way through the routes of a model is followed to every cluster that it can end at, for a request without "
    "x-residency, with each residency, and with words that are none. A prompt travels no farther than the model's "
    "residency and the request's.",
    remedy="Set the model's residency or its fallback so that the one covers the other; charts/router renders the "
    "routes.",
    source="docs/residency.md#the-header",
    example='"route": {"weighted_clusters": {"clusters": [{"name": "bedrock/assistant", "weight": 1}]}}',
)
@envoy.judged
def no_way_beyond(router: Router, index: Index) -> Iterator[Fault]:
    entries = dict.fromkeys(route.entry for route in router.routes)
    for entry in entries:
        told: set[tuple[int, str]] = set()
        for asked in envoy.ASKED:
            for route in router.reachable(entry, asked):
                for name, where in router.targets(route):
                    if why := _beyond(router, index, route, name, asked):
                        if (id(route), name) not in told:
                            yield (route.file.owner, route.at(*where), f"route {route.name}: {why}")
                        told.add((id(route), name))


def _beyond(router: Router, index: Index, route: Route, name: str, asked: str | None) -> str:
    """Why a request of a route, which asks for a residency, must not end at a cluster; empty where it may."""
    cluster, model = router.cluster(name), router.model_of(route)
    if not model:
        return f"sends requests of no model to {name}"
    if cluster is None:
        return f"sends prompts of {model} to {name}, a cluster that no file has: whatever gets this name gets them"
    if cluster.facts.get("model") != model:
        return f"sends prompts of {model} to {name}, which is of {cluster.facts.get('model') or 'no model'}"
    residency = stated(router, index, model)
    if not is_bedrock(cluster):
        if cluster.facts.get("backend") != "fleet":
            return f"sends prompts of {model} to {name}, which says of no backend of a model that it is one"
        return ""
    far = reach(router, cluster)
    if far == "hidden":
        return f"sends prompts of {model} to {name}, whose id {target(cluster)!r} hides where it is processed"
    if rank(residency) < rank(far):
        return f"sends prompts of {model} to {name}, which reaches {far}, beyond its residency {residency or '(none)'}"
    # What is no residency is the tightest of all: so route.lua makes it, and so a route has to take it without.
    if asked is not None and (asked not in RESIDENCIES or rank(asked) < rank(far)):
        return f"sends a prompt of {model} that asks for x-residency {asked!r} to {name}, which reaches {far}"
    return ""


@rule(
    "PLANE_RES_21",
    "What asks to stay meets the restricted route first",
    severity="CRITICAL",
    kinds=_CONFIG,
    why="The route that knows the fleet alone has to stand before every way to Amazon Bedrock, for exactly the "
    "residencies "
    "that do not reach it: one fewer lets a prompt out, one more takes a fallback away that was promised.",
    remedy="Leave MODEL/chat/restricted where charts/router puts it, with the expression of the fallback's reach.",
    source="docs/residency.md#the-header",
    example='"string_match": {"safe_regex": {"regex": "^(cluster|region|geography|anywhere)$"}}',
)
@envoy.judged
def restricted_first(router: Router, index: Index) -> Iterator[Fault]:
    for entry in dict.fromkeys(route.entry for route in router.routes):
        kept: dict[str, str] = {}
        for route in (one for one in router.routes if one.entry == entry):
            ends = [router.cluster(name) for name, _ in router.targets(route)]
            far = max((reach(router, c) for c in ends if c and is_bedrock(c)), key=rank, default="")
            match = route.config.get("match") or {}
            others, words = _restricted(match)
            if words and not far:
                kept.setdefault(others, words)
            elif far:
                wide = f"^({'|'.join(RESIDENCIES[rank(far) :])})$"
                if others not in kept:
                    message = (
                        f"route {route.name} reaches {far}, and no restricted route of the same requests is before it"
                    )
                    yield route.file.owner, route.at("match"), message
                elif kept[others] != wide:
                    message = (
                        f"route {route.name} reaches {far}; the route before it lets {kept[others]} on, not {wide}"
                    )
                    yield route.file.owner, route.at("match"), message


def _restricted(match: Mapping) -> tuple[str, str]:
    """(path and method, the expression of what passes it by) of a route; the expression is empty where it is no
    restricted route."""
    headers = items(match.get("headers"))
    method = [dig(h, "string_match", "exact") for h in headers if h.get("name") == ":method"]
    ours = [h for h in headers if h.get("name") == "x-residency"]
    expression = ""
    if (
        len(headers) == 3
        and len(ours) == 2
        and set(match) == {"path", "headers"}
        and ours[0].get("present_match") is True
    ):
        if ours[1].get("invert_match") is True and set(ours[0]) == {"name", "present_match"}:
            expression = text(dig(ours[1], "string_match", "safe_regex", "regex"))
    return f"{method} {match.get('path')}", expression


@rule(
    "PLANE_RES_22",
    "Routes change nothing that says whose prompt it is",
    severity="CRITICAL",
    kinds=_CONFIG,
    why="A header that a route sets can be the model, the residency or the target that a later filter goes by.",
    remedy="Let routes set the first-token budget and its start, and how long a replica takes to start, alone.",
    source="docs/router.md#headers-inside-the-plane",
    example='"request_headers_to_add": [{"header": {"key": "x-plane-model", "value": "records"}}]',
)
@envoy.judged
def routes_set_nothing_else(router: Router, index: Index) -> Iterator[Fault]:
    for route in router.routes:
        for i, added in enumerate(items(route.config.get("request_headers_to_add"))):
            key, value = (text(dig(added, "header", "key")), text(dig(added, "header", "value")))
            fine = {
                "x-plane-first-token-budget": value.replace(";per-kib=", "").isdigit(),
                "x-plane-started-ms": value == "%START_TIME(%s%3f)%",
                "x-plane-start-seconds": value.isdigit(),
            }
            if not fine.get(key):
                yield (route.file.owner, route.at("request_headers_to_add", i), f"sets {key} to {value!r}")
    for config, file, path in router.configurations:
        told = dig(config, "typed_per_filter_config", "envoy.filters.http.lua", "filter_context") or {}
        for key, model in told.items() if isinstance(told, dict) else ():
            where = (*path, "typed_per_filter_config", "envoy.filters.http.lua", "filter_context", key)
            if key.startswith("name/"):
                if not any(c.facts.get("model") == model for c in router.clusters):
                    yield (file.owner, file.at(*where), f"says that a name means {model!r}, which is no model here")
            elif not key.startswith("affinity/") and key != "prefix_bytes":
                yield (file.owner, file.at(*where), "tells route.lua what it does not ask for")
        claims = dig(config, "typed_per_filter_config", "identity", "filter_context") or {}
        for key in claims if isinstance(claims, dict) else ():
            if key != "claims" and not key.startswith("team/"):
                where = (*path, "typed_per_filter_config", "identity", "filter_context", key)
                yield (file.owner, file.at(*where), "tells identity.lua what it does not ask for")


@rule(
    "PLANE_RES_23",
    "Every cluster is named by what may use it, and every name has one",
    severity="HIGH",
    kinds=_CONFIG,
    why="A cluster that nothing names is a way that waits for a name; a name without a cluster goes to whatever gets "
    "it.",
    remedy="Remove the cluster, or the name.",
    source="https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/cluster/v3/cluster.proto",
    example='{"name": "spare", "load_assignment": {"endpoints": [...]}}',
)
@envoy.judged
def clusters_are_named(router: Router, index: Index) -> Iterator[Fault]:
    if not router.bootstrap:
        return
    written = router.bootstrap.written
    own = {
        "admin": True,
        "policy": '"rtds_layer"' in written,
        "jwks": '"remote_jwks"' in written,
        "jwks-proxy": bool(router.tunnel),
        "ratelimit": '"rate_limit_service"' in written,
        "traces": '"tracing"' in written,
    }
    named = {name for route in router.routes for name, _ in router.targets(route)}
    names = [cluster.name for cluster in router.clusters]
    for cluster in router.clusters:
        static = cluster.file is router.bootstrap
        if names.count(cluster.name) > 1:
            yield (
                cluster.file.owner,
                cluster.at("name"),
                f"is {cluster.name}, of which there are {names.count(cluster.name)}",
            )
        elif static and cluster.name not in own:
            yield (cluster.file.owner, cluster.at("name"), f"is {cluster.name}, which is none of {', '.join(own)}")
        elif not (own[cluster.name] if static else cluster.name in named):
            yield (cluster.file.owner, cluster.at("name"), f"is {cluster.name}, which nothing names")
        if dig(cluster.config, "load_assignment", "cluster_name") not in (cluster.name, None):
            yield (cluster.file.owner, cluster.at("load_assignment"), "has the endpoints of another cluster's name")
    for name, used in own.items():
        if used and name not in names:
            yield (router.bootstrap.owner, router.bootstrap.at(), f"asks the cluster {name}, which is not there")
    for config, file, path in router.configurations:
        for i, plugin in enumerate(items(config.get("cluster_specifier_plugins"))):
            where, name = ((*path, "cluster_specifier_plugins", i), text(dig(plugin, "extension", "name")))
            every = [text(dig(p, "extension", "name")) for p in items(config.get("cluster_specifier_plugins"))]
            if every.count(name) > 1:
                yield (file.owner, file.at(*where), f"is {name}, of which there are {every.count(name)}")
            for cluster in router.plugin(name) or ():
                if cluster not in names:
                    yield (file.owner, file.at(*where), f"{name} chooses {cluster}, which is not there")
    listed: set[Mapping] = set()
    for config, file, path in router.configurations:
        if config.get("name") in listed:
            yield (file.owner, file.at(*path), f"is a second route configuration {config.get('name')}")
        listed.add(config.get("name"))
