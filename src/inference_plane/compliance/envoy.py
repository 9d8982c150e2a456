"""The routers of a render, and what their Envoy is told: which files its pod mounts, and what stands in them.

Nothing is found by its name. A router is a pod that runs Envoy; its configuration is what that pod mounts and Envoy's
arguments name, followed from file to file as Envoy follows them. What cannot be followed is a problem that a rule
reports, and never nothing.
"""

import functools
import json
import posixpath
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference_plane.checkout import CHARTS
from inference_plane.compliance.bedrock import RESIDENCIES
from inference_plane.kube import POD_PATHS, Index, Workload, meta, path_of

#: (the object, the path in it, what is wrong)
Fault = tuple[Mapping, str, str]
#: Where the plane is at home, on the Deployment of the router.
REGION, GEOGRAPHY, DOMAIN = (f"inference-plane/{name}" for name in ("region", "geography", "cluster-domain"))
#: The residencies that a request can ask for: none, each, and words that are none of them. One that is repeated is what
#: route.lua makes of it.
ASKED = (None, *RESIDENCIES, "", "Region", "region ", "region,anywhere", "xanywhere", "anywherex", "any", "*")
LOOPBACK = "127.0.0.1"
#: The filter of the one listener that carries bytes as they are: to the proxy by which keys are fetched.
TUNNEL = "envoy.filters.network.tcp_proxy"


def items(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; nothing of what is no list. Rules judge what is there, whatever shape it has."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def dig(value: Any, *keys: str | int) -> Any:
    """What stands at a path; None where there is nothing, or something else on the way."""
    for key in keys:
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def text(value: Any) -> str:
    """A string, or the empty one in place of anything else."""
    return value if isinstance(value, str) else ""


def strict(written: str) -> Any:
    """JSON whose objects have each key once.

    Raises:
        ValueError: no JSON, or a key twice, of which one reader takes the first and another the last.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(made := dict(pairs)) != len(pairs):
            twice = sorted({key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1})
            raise ValueError(f"the key {twice[0]} twice in one object")
        return made

    return json.loads(written, object_pairs_hook=once)


@dataclass(frozen=True)
class File:
    """A key of a ConfigMap that Envoy sees as a file. `parsed` is None where `error` says why."""

    owner: Mapping
    key: str
    written: str
    parsed: Any = None
    error: str = ""

    def at(self, *path: str | int) -> str:
        """A place in the document, as a path in the ConfigMap."""
        inside = path_of(path)
        return path_of(("data", self.key)) + (f": {inside}" if inside else "")


@dataclass(frozen=True)
class Cluster:
    """A cluster, and the file and path where it stands."""

    config: Mapping[str, Any]
    file: File
    path: tuple[str | int, ...]

    @property
    def name(self) -> str:
        return text(self.config.get("name"))

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the plane says of it: backend, model, model_version, residency; of Bedrock reach, region, retention."""
        found = dig(self.config, "metadata", "filter_metadata", "inference-plane")
        return found if isinstance(found, dict) else {}

    @property
    def endpoints(self) -> list[tuple[dict[str, Any], tuple[str | int, ...]]]:
        """Each endpoint with its path in the file."""
        found = []
        for i, group in enumerate(items(dig(self.config, "load_assignment", "endpoints"))):
            for j, endpoint in enumerate(items(group.get("lb_endpoints"))):
                found.append((endpoint, (*self.path, "load_assignment", "endpoints", i, "lb_endpoints", j)))
        return found

    @property
    def hosts(self) -> list[tuple[str, int]]:
        """(host, port) of every endpoint that has one."""
        sockets = [dig(e, "endpoint", "address", "socket_address") or {} for e, _ in self.endpoints]
        return [(text(s.get("address")), s.get("port_value")) for s in sockets if s]

    @property
    def filters(self) -> list[dict[str, Any]]:
        """The HTTP filters on the way to it."""
        options = dig(self.config, "typed_extension_protocol_options")
        found = [items(dig(o, "http_filters")) for o in (options or {}).values()] if isinstance(options, dict) else []
        return [one for some in found for one in some]

    def at(self, *path: str | int) -> str:
        return self.file.at(*self.path, *path)


@dataclass(frozen=True)
class Route:
    """A route, and the name of the map's entry that it stands under; None for requests of no entry."""

    config: Mapping[str, Any]
    entry: str | None
    file: File
    path: tuple[str | int, ...]

    @property
    def name(self) -> str:
        return text(self.config.get("name")) or "(no name)"

    def at(self, *path: str | int) -> str:
        return self.file.at(*self.path, *path)


@dataclass(eq=False)
class Router:
    """A pod that runs Envoy. `files` are by path relative to Envoy's working directory, `problems` what kept it from
    being read as a whole."""

    workload: Workload
    container: Mapping
    path: str
    files: dict[str, File] = field(default_factory=dict)
    #: Folders of the pod that hold what is not in the render: Secrets, tokens, scratch space.
    opaque: list[str] = field(default_factory=list)
    problems: list[Fault] = field(default_factory=list)
    #: What was found to read each file, by its path: a key of envoy_fields.FILES.
    read: dict[str, str] = field(default_factory=dict)
    #: Answers of rules, by their function.
    memory: dict[Callable, list[Fault]] = field(default_factory=dict)

    @property
    def home(self) -> Mapping[str, str]:
        """Where the plane says it is at home: annotations of the router's own object."""
        found = meta(self.workload.obj).get("annotations")
        return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}

    @functools.cached_property
    def bootstrap(self) -> File | None:
        return next((self.files[path] for path, kind in self.read.items() if kind == "bootstrap"), None)

    def of(self, kind: str) -> list[File]:
        """The files of a kind, as Envoy reads them: bootstrap, clusters, routes, secret."""
        return [self.files[path] for path, read in self.read.items() if read == kind and path in self.files]

    @functools.cached_property
    def clusters(self) -> list[Cluster]:
        """Those of the bootstrap and those of the files that it names."""
        found = []
        if self.bootstrap:
            static = items(dig(self.bootstrap.parsed, "static_resources", "clusters"))
            found = [Cluster(c, self.bootstrap, ("static_resources", "clusters", i)) for i, c in enumerate(static)]
        for file in self.of("clusters"):
            found += [Cluster(c, file, ("resources", i)) for i, c in enumerate(items(dig(file.parsed, "resources")))]
        return found

    @functools.cached_property
    def tunnel(self) -> str:
        """The host at the end of the tunnel through which keys of callers are fetched; empty where there is none."""
        for listener in items(dig(self.bootstrap and self.bootstrap.parsed, "static_resources", "listeners")):
            for chain in items(listener.get("filter_chains")):
                for one in items(chain.get("filters")):
                    if one.get("name") == TUNNEL:
                        return text(dig(one, "typed_config", "tunneling_config", "hostname")).rpartition(":")[0]
        return ""

    def cluster(self, name: str) -> Cluster | None:
        return next((cluster for cluster in self.clusters if cluster.name == name), None)

    @functools.cached_property
    def managers(self) -> list[tuple[str, Mapping[str, Any], tuple[str | int, ...]]]:
        """(name of the listener, configuration, path in the bootstrap) of each HTTP connection manager.

        Whatever else filters of a listener are is for the rule of listeners to say.
        """
        if not self.bootstrap:
            return []
        found = []
        root = ("static_resources", "listeners")
        for i, listener in enumerate(items(dig(self.bootstrap.parsed, *root))):
            for j, chain in enumerate(items(listener.get("filter_chains"))):
                for k, one in enumerate(items(chain.get("filters"))):
                    if one.get("name") == TUNNEL:
                        continue
                    config = one.get("typed_config")
                    path = (*root, i, "filter_chains", j, "filters", k, "typed_config")
                    found.append((text(listener.get("name")), config if isinstance(config, dict) else {}, path))
        return found

    @functools.cached_property
    def configurations(self) -> list[tuple[Mapping[str, Any], File, tuple[str | int, ...]]]:
        """The route configurations that clients of the plane meet, each with its file and path."""
        return [
            (resource, file, ("resources", i))
            for file in self.of("routes")
            for i, resource in enumerate(items(dig(file.parsed, "resources")))
        ]

    @functools.cached_property
    def routes(self) -> list[Route]:
        """Every route, in the order in which Envoy tries those of an entry."""
        found = []
        for config, file, path in self.configurations:
            for i, host in enumerate(items(config.get("virtual_hosts"))):
                here = (*path, "virtual_hosts", i)
                found += [Route(r, None, file, (*here, "routes", j)) for j, r in enumerate(items(host.get("routes")))]
                tree = ("matcher", "matcher_tree", "exact_match_map", "map")
                entries = dig(host, *tree)
                actions = [(k, (*here, *tree, k), v) for k, v in (entries if isinstance(entries, dict) else {}).items()]
                actions.append((None, (*here, "matcher", "on_no_match"), dig(host, "matcher", "on_no_match")))
                for entry, where, action in actions:
                    inside = ("action", "typed_config", "routes")
                    listed = items(dig(action, *inside))
                    found += [Route(r, entry, file, (*where, *inside, j)) for j, r in enumerate(listed)]
        return found

    @functools.cached_property
    def names(self) -> Mapping[str, str]:
        """The model of each further name, as the routes tell route.lua."""
        context: dict[str, Any] = {}
        for config, _, _ in self.configurations:
            told = dig(config, "typed_per_filter_config", "envoy.filters.http.lua", "filter_context")
            context |= told if isinstance(told, dict) else {}
        return {k.removeprefix("name/"): text(v) for k, v in context.items() if k.startswith("name/")}

    def model_of(self, route: Route) -> str:
        """The model whose requests meet a route; empty for requests of no model."""
        return self.names.get(route.entry, route.entry) if route.entry is not None else ""

    def plugin(self, name: str) -> list[str] | None:
        """The clusters that a cluster specifier can choose, in order; None where there is none of the name."""
        for config, _, _ in self.configurations:
            for plugin in items(config.get("cluster_specifier_plugins")):
                if dig(plugin, "extension", "name") == name:
                    groups = items(dig(plugin, "extension", "typed_config", "priority_groups"))
                    return [text(c.get("cluster_name")) for g in groups for c in items(g.get("clusters"))]
        return None

    def targets(self, route: Route) -> list[tuple[str, tuple[str | int, ...]]]:
        """(cluster, path in the route) of whatever a route can send a request, or a copy of it, to."""
        action = route.config.get("route")
        if not isinstance(action, dict):
            return []
        found: list[tuple[str, tuple[str | int, ...]]] = []
        if "cluster" in action:
            found.append((text(action["cluster"]), ("route", "cluster")))
        if "cluster_specifier_plugin" in action:
            where = ("route", "cluster_specifier_plugin")
            chosen = self.plugin(text(action["cluster_specifier_plugin"]))
            named = [f"(no specifier {action['cluster_specifier_plugin']})"] if chosen is None else chosen
            found += [(name, where) for name in named]
        for i, one in enumerate(items(dig(action, "weighted_clusters", "clusters"))):
            found.append((text(one.get("name")) or "(by a header)", ("route", "weighted_clusters", "clusters", i)))
        for i, one in enumerate(items(action.get("request_mirror_policies"))):
            found.append((text(one.get("cluster")) or "(by a header)", ("route", "request_mirror_policies", i)))
        return found

    def reachable(self, entry: str | None, asked: str | None) -> list[Route]:
        """The routes of an entry that some request which asks for a residency can meet.

        A route hides a later one where it takes every request that the later one would: where each of its conditions,
        but those on x-residency, which are known, is one of the other's too. So a condition that nobody understands
        hides nothing, and shows as a way that is open.
        """
        open_ways, before = [], []
        for route in self.routes:
            if route.entry != entry:
                continue
            match = conditions(route.config.get("match"), asked)
            if match is None:
                continue
            if not any(earlier <= match for earlier in before):
                open_ways.append(route)
            if not any(condition.startswith("runtime_fraction") for condition in match):
                before.append(match)
        return open_ways


def conditions(match: Any, asked: str | None) -> frozenset[str] | None:
    """What a request that asks for a residency must have beside that to match, each condition as text; None where it
    cannot match."""
    if not isinstance(match, dict):
        return frozenset({"(no match)"})
    found = set()
    for key, value in match.items():
        if key == "prefix" and value == "/":
            continue
        if key != "headers":
            found |= {
                f"{key} {json.dumps(one, sort_keys=True)}" for one in (value if isinstance(value, list) else [value])
            }
            continue
        for header in items(value):
            holds = residency_holds(header, asked) if text(header.get("name")).lower() == "x-residency" else None
            if holds is False:
                return None
            if holds is None:
                found.add(f"headers {json.dumps(header, sort_keys=True)}")
    return frozenset(found)


def residency_holds(header: Mapping[str, Any], asked: str | None) -> bool | None:
    """Whether a condition on x-residency holds for its value (None: it is not there); None where nobody can say.

    Envoy takes an absent header to match nothing, inverted or not, unless `treat_missing_header_as_empty`.
    """
    if set(header) - {"name", "present_match", "string_match", "invert_match"}:
        return None
    invert = header.get("invert_match", False) is True
    if "present_match" in header:
        if "string_match" in header:
            return None
        return ((asked is not None) == (header["present_match"] is True)) != invert
    matcher = header.get("string_match")
    if not isinstance(matcher, dict) or len(matcher) != 1:
        return None
    if asked is None:
        return False
    if "exact" in matcher:
        return (asked == matcher["exact"]) != invert
    expression = dig(matcher, "safe_regex", "regex")
    if not isinstance(expression, str) or not re.fullmatch(r"\^\([a-z|]+\)\$", expression):
        return None
    return bool(re.fullmatch(expression, asked)) != invert


# Finding routers, and what they read.

_known: "weakref.WeakKeyDictionary[Index, list[Router]]" = weakref.WeakKeyDictionary()


def routers(index: Index) -> list[Router]:
    """Every pod of a render that runs Envoy."""
    if index not in _known:
        found = [
            _read(Router(workload, container, path), index)
            for workload in index.workloads
            for container, path in workload.containers
            if runs_envoy(container)
        ]
        _known[index] = found
    return _known[index]


def runs_envoy(container: Mapping) -> bool:
    """Whether a container starts Envoy: by its image, its command, or a shell that does."""
    image = text(container.get("image")).rsplit("/", 1)[-1]
    words = " ".join(str(word) for key in ("command", "args") for word in _list(container.get(key)))
    return "envoy" in image.lower() or bool(re.search(r"(?i)\benvoy\b|--config-(path|yaml)\b", words))


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _read(router: Router, index: Index) -> Router:
    directory = text(router.container.get("workingDir")) or "/"
    volumes = {text(v.get("name")): v for v in items(router.workload.pod.get("volumes"))}
    for i, mount in enumerate(items(router.container.get("volumeMounts"))):
        where = f"{router.path}.volumeMounts[{i}]"
        folder = posixpath.relpath(text(mount.get("mountPath")) or "/", directory)
        if set(mount) - {"name", "mountPath", "readOnly"}:
            extra = ", ".join(sorted(set(mount) - {"name", "mountPath", "readOnly"}))
            router.problems.append((router.workload.obj, where, f"has {extra}: it hides which file Envoy reads"))
        _mount(router, index, volumes.get(text(mount.get("name"))), folder, where)
    _follow(router)
    return router


def _mount(router: Router, index: Index, volume: Mapping | None, folder: str, where: str) -> None:
    kinds = set(volume or ()) - {"name"}
    sources: list[Mapping]
    if volume is None or len(kinds) != 1:
        router.problems.append((router.workload.obj, where, f"mounts a volume of {sorted(kinds) or 'nothing'}"))
        return
    if "configMap" in volume:
        sources = [volume["configMap"]]
    elif "projected" in volume:
        listed = items(dig(volume, "projected", "sources"))
        sources = [one["configMap"] for one in listed if set(one) == {"configMap"}]
        if rest := [one for one in listed if set(one) not in ({"configMap"}, {"serviceAccountToken"})]:
            kind = ", ".join(sorted({key for one in rest for key in one}))
            router.problems.append((router.workload.obj, where, f"projects {kind}, which nobody can read here"))
        if not sources:
            router.opaque.append(folder)
    elif kinds & {"secret", "emptyDir"}:
        router.opaque.append(folder)
        return
    else:
        router.problems.append((router.workload.obj, where, f"mounts {kinds.pop()}, which nobody can read here"))
        return
    for source in sources:
        name = text(dig(source, "name"))
        config = index.get("ConfigMap", router.workload.namespace, name)
        keys = {text(i.get("key")): text(i.get("path")) for i in items(dig(source, "items"))}
        if config is None and set(keys) == {"ca.crt"}:
            router.opaque.append(folder)  # Authorities that somebody else brings: no configuration.
        elif config is None:
            message = f"mounts the ConfigMap {name}, which is not in the render: what Envoy is told cannot be judged"
            router.problems.append((router.workload.obj, where, message))
        else:
            _add(router, config, keys, folder)


def _add(router: Router, config: Mapping, keys: Mapping[str, str], folder: str) -> None:
    if config.get("binaryData"):
        router.problems.append((config, "binaryData", "is what Envoy would read and nobody here can"))
    data = config.get("data")
    for key, written in (data if isinstance(data, dict) else {}).items():
        if keys and key not in keys:
            continue
        path = posixpath.normpath(posixpath.join(folder, keys.get(key, key)))
        file = _parse(config, key, text(written))
        if path in router.files:
            router.problems.append((config, file.at(), f"is {path}, which another ConfigMap of the pod has too"))
        router.files[path] = file


def _parse(owner: Mapping, key: str, written: str) -> File:
    if not key.endswith(".json"):
        return File(owner, key, written)
    try:
        return File(owner, key, written, strict(written))
    except ValueError as error:
        return File(owner, key, written, error=str(error))


#: The field that names a file, and what Envoy reads the file as.
_WANTED = {"cds_config": "clusters", "rds": "routes", "sds_config": "secret", "rtds_config": "runtime"}


def _follow(router: Router) -> None:
    """Marks each file that Envoy reads with what it reads it as."""
    words = [str(word) for word in _list(router.container.get("args"))]
    start = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--config-path"]
    if len(start) != 1:
        message = f"names {len(start)} files with --config-path: which configuration Envoy starts with cannot be told"
        router.problems.append((router.workload.obj, f"{router.path}.args", message))
        return
    _mark(router, start[0], "bootstrap", router.workload.obj, f"{router.path}.args")
    while True:
        before = dict(router.read)
        for path in before:
            file = router.files.get(path)
            if file is not None:
                for inside, named in _sources(file.parsed):
                    kind = _WANTED.get(named[1], "")
                    if kind:
                        _mark(router, named[0], kind, file.owner, file.at(*inside))
        if router.read == before:
            return


def _mark(router: Router, path: str, kind: str, owner: Mapping, where: str) -> None:
    path = posixpath.normpath(path)
    file = router.files.get(path)
    fault = ""
    if file is None:
        fault = f"names the file {path}, which no ConfigMap of the pod has"
    elif not file.key.endswith(".json"):
        fault = f"names the file {path}; only JSON is read here, as the charts write it"
    elif router.read.get(path, kind) != kind:
        fault = f"names the file {path} as {kind}, which is read as {router.read[path]} too"
    if fault:
        if (owner, where, fault) not in router.problems:
            router.problems.append((owner, where, fault))
        return
    router.read[path] = kind


def _sources(value: Any, inside: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], tuple[str, str]]]:
    """(path, (file, the field that wants it)) of each source of configuration that is a file."""
    if isinstance(value, dict):
        file = dig(value, "path_config_source", "path")
        if isinstance(file, str):
            wanted = next((str(key) for key in reversed(inside) if key in _WANTED), "")
            yield inside, (file, wanted)
        for key, item in value.items():
            yield from _sources(item, (*inside, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _sources(item, (*inside, number))


# The Lua that the charts ship.

_ASSEMBLED = re.compile(r"^(\w+\.lua): \|$((?:\n  \{\{- \.Files\.Get \"[^\"]+\" \| nindent 2 \}\})+)", re.M)


@functools.cache
def shipped() -> Mapping[str, str]:
    """The text of each Lua file as charts/router puts it together, by the key in the ConfigMap.

    Raises:
        ValueError: the template is written in a way that is not understood here.
    """
    chart = CHARTS / "router"
    template = (chart / "templates" / "_files.tpl").read_text()
    found = {
        key: "\n".join((chart / part).read_text() for part in re.findall(r'"([^"]+)"', parts)).rstrip() + "\n"
        for key, parts in _ASSEMBLED.findall(template)
    }
    if set(found) != set(re.findall(r"^(\w+\.lua):", template, re.M)) or not found:
        raise ValueError(f"{chart}/templates/_files.tpl: the Lua files cannot be put together as the chart does")
    return found


# How rules are written of routers.

#: Whoever can run Envoy, and what tells it what to do: a violation is one of the object that it stands in.
KINDS = frozenset({"core/ConfigMap", *POD_PATHS})


def judged(judge: Callable[[Router, Index], Iterator[Fault]]) -> Callable[[Mapping, Index], Iterator[tuple[str, str]]]:
    """Makes a rule of a function that judges a router: each object is told what is wrong in itself."""

    @functools.wraps(judge)
    def each(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
        found = {}
        for router in routers(index):
            if judge not in router.memory:
                router.memory[judge] = list(judge(router, index))
            found |= {(path, message): None for owner, path, message in router.memory[judge] if owner is obj}
        yield from found

    return each
