"""What a cluster of the router is: where its hosts are, how they prove it, and what the plane says of it."""

from collections.abc import Iterator, Mapping

from inference_plane.compliance import bedrock, envoy
from inference_plane.compliance.bedrock import RESIDENCIES, rank
from inference_plane.compliance.envoy import Cluster, Fault, Router, dig, items, text
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, meta

_CONFIG = {"core/ConfigMap"}
_RETENTIONS = ("none", "default", "provider_data_share")
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
MODEL, RESIDENCY = "inference-plane/model", "inference-plane/residency"


def in_cluster(router: Router, host: str) -> bool:
    """Whether a host is a Service: name, namespace, `svc` and the domain that the router's own object states."""
    domain = router.home.get(envoy.DOMAIN, "")
    first, found, rest = host.partition(".svc.")
    return bool(domain and found and rest == domain and first.count(".") == 1 and not first.startswith("."))


def fleets(router: Router) -> list[Cluster]:
    return [c for c in router.clusters if c.name.startswith("fleet/") or c.facts.get("backend") == "fleet"]


def bedrocks(router: Router) -> list[Cluster]:
    found = [c for c in router.clusters if c.file is not router.bootstrap and c not in fleets(router)]
    return [c for c in found if c.name.startswith("bedrock/") or c.facts.get("backend") == "bedrock" or c.filters]


def asked_of(cluster: Cluster) -> Mapping[str, list[str]]:
    """What the first filter on the way to Bedrock sets: each header with its values."""
    found: dict[str, list[str]] = {}
    for one in cluster.filters:
        for change in items(dig(one, "typed_config", "mutations", "request_mutations")):
            header = dig(change, "append", "header")
            found.setdefault(text(dig(header, "key")), []).append(text(dig(header, "value")))
    return found


@rule(
    "PLANE_RES_30",
    "A cluster is a fleet in the Kubernetes cluster, or Amazon Bedrock",
    severity="CRITICAL",
    kinds=_CONFIG,
    why="A cluster's name says nothing of its hosts: one that is called fleet/records can be any host of the internet.",
    remedy="Leave a fleet's hosts at SERVICE.NAMESPACE.svc.DOMAIN of its own name and at the no-capacity listener.",
    source="docs/residency.md#read-it-from-the-manifests",
    example='"name": "fleet/records", "socket_address": {"address": "records.example.com", "port_value": 443}',
)
@envoy.judged
def hosts_are_known(router: Router, index: Index) -> Iterator[Fault]:
    ports = {
        dig(listener, "address", "socket_address", "port_value")
        for listener in items(dig(router.bootstrap and router.bootstrap.parsed, "static_resources", "listeners"))
        if listener.get("name") == "no-capacity"
    }
    kinds = {id(c): "fleet" for c in fleets(router)} | {id(c): "bedrock" for c in bedrocks(router)}
    for cluster in router.clusters:
        kind = kinds.get(id(cluster), "own" if cluster.file is router.bootstrap else "")
        owner = cluster.file.owner
        if not kind or (kind != "own" and not cluster.name.startswith(f"{kind}/")):
            yield (
                owner,
                cluster.at("name"),
                f"{cluster.name} is neither of a fleet nor of Amazon Bedrock by name and facts",
            )
        if not cluster.endpoints:
            yield (owner, cluster.at("load_assignment"), f"of {cluster.name} has no endpoint: its hosts are unknown")
        for endpoint, path in cluster.endpoints:
            socket = dig(endpoint, "endpoint", "address", "socket_address")
            if why := _wrong_host(router, cluster, kind, endpoint, socket, ports):
                yield owner, cluster.file.at(*path), f"of {cluster.name} {why}"
        if kind == "fleet":
            service = text(cluster.facts.get("model"))
            name = cluster.name.removeprefix("fleet/")
            if name not in (service, f"{service}-canary"):
                message = f"is {cluster.name} and says it is of {service or 'no model'}"
                yield owner, cluster.at("metadata"), message


def _wrong_host(
    router: Router, cluster: Cluster, kind: str, endpoint: Mapping, socket: Mapping | None, ports: set
) -> str:
    if socket is None:
        pipe = dig(endpoint, "endpoint", "address", "pipe", "path")
        own = {"admin": "run/admin.sock", "jwks": "run/jwks-proxy.sock" if router.tunnel else ""}.get(cluster.name)
        return "" if own and pipe == own else f"is at {pipe or 'no address'}"
    host, port = text(socket.get("address")), socket.get("port_value")
    exempt = dig(endpoint, "metadata", "filter_metadata", "envoy.transport_socket_match", "loopback")
    if host == envoy.LOOPBACK:
        return (
            "" if kind == "fleet" and port in ports else f"is {host}:{port}, where no listener says that nobody serves"
        )
    if exempt is not None:
        return f"is {host} and is exempt from TLS as if it were the pod itself"
    if kind == "fleet":
        service = host.partition(".")[0]
        if not in_cluster(router, host) or cluster.name != f"fleet/{service}":
            return f"is {host}, not {cluster.name.removeprefix('fleet/')}.NAMESPACE.svc.{router.home.get(envoy.DOMAIN)}"
    elif kind == "bedrock":
        if not bedrock.region_of(host) or port != 443:
            return f"is {host}:{port}, which is no endpoint of Bedrock's runtime at 443"
    elif cluster.name in ("policy", "ratelimit") and not in_cluster(router, host):
        return f"is {host}, which is no Service of the cluster"
    elif cluster.name == "admin":
        return f"is {host}:{port}: Envoy's administration has no address"
    return ""


@rule(
    "PLANE_RES_31",
    "Engines and clusters state one residency",
    severity="CRITICAL",
    kinds=envoy.KINDS | {"serving.kserve.io/InferenceService"},
    why="Every other rule judges by what is stated; two words for one model would let the wider one count.",
    remedy="Set global.models.MODEL.residency, and render engines and router from the same values.",
    source="docs/residency.md",
    example="inference-plane/residency: region on an engine whose cluster says cluster",
)
def one_residency(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    yield from _of_engine(obj)
    yield from _of_clusters(obj, index)


def _of_engine(obj: Mapping) -> Iterator[tuple[str, str]]:
    spec = obj.get("spec") if isinstance(obj.get("spec"), Mapping) else {}
    template = spec.get("template") if isinstance(spec.get("template"), Mapping) else {}
    top, pod = meta(obj).get("labels") or {}, meta(template).get("labels") or {}
    both = {**pod, **top}
    if obj.get("kind") == "ConfigMap" or both.get("app.kubernetes.io/component") != "engine":
        return
    path = f"metadata.labels['{RESIDENCY}']"
    for where, found in ((path, top), (f"spec.template.{path}", pod)) if template else ((path, top),):
        if found.get(RESIDENCY) not in RESIDENCIES:
            yield (where, f"is {found.get(RESIDENCY)!r}, none of {', '.join(RESIDENCIES)}")
        if not found.get(MODEL):
            yield (where.replace(RESIDENCY, MODEL), "names no model, whose residency it would be")
    if template and top.get(RESIDENCY) != pod.get(RESIDENCY):
        yield (f"spec.template.{path}", f"is {pod.get(RESIDENCY)!r}, while the object says {top.get(RESIDENCY)!r}")


@envoy.judged
def _of_clusters(router: Router, index: Index) -> Iterator[Fault]:
    engines = {}
    for workload in index.workloads:
        labels = meta(workload.obj).get("labels") or {}
        if labels.get("app.kubernetes.io/component") == "engine":
            engines.setdefault(labels.get(MODEL), set()).add(labels.get(RESIDENCY))
    residencies: dict[str, set] = {}
    for cluster in (*fleets(router), *bedrocks(router)):
        residencies.setdefault(text(cluster.facts.get("model")), set()).add(cluster.facts.get("residency"))
    for cluster in (*fleets(router), *bedrocks(router)):
        model, residency = (text(cluster.facts.get("model")), cluster.facts.get("residency"))
        where = cluster.at("metadata", "filter_metadata", "inference-plane", "residency")
        if residency not in RESIDENCIES:
            yield (cluster.file.owner, where, f"of {cluster.name} is {residency!r}, none of {', '.join(RESIDENCIES)}")
        elif engines.get(model, {residency}) != {residency}:
            others = ", ".join(sorted(str(one) for one in engines[model] - {residency}))
            yield (
                cluster.file.owner,
                where,
                f"of {cluster.name} is {residency}, while an engine of {model} says {others}",
            )
        elif residencies[model] != {residency}:
            others = ", ".join(sorted(str(one) for one in residencies[model] - {residency}))
            yield (cluster.file.owner, where, f"of {cluster.name} is {residency}, while another cluster says {others}")


@rule(
    "PLANE_RES_32",
    "A Bedrock id shows where it is processed, within the residency",
    severity="CRITICAL",
    kinds=_CONFIG,
    why="A bare model is processed in the Region that is called, a system inference profile in its geography, a "
    "global one "
    "anywhere. An ARN, an application inference profile or a prompt router says nothing of it.",
    remedy="Set a foundation-model id, or a listed profile of the plane's geography with residency: geography.",
    source="https://docs.aws.amazon.com/bedrock/latest/userguide/inference-profiles-support.html",
    example="x-plane-target: global.anthropic.claude-sonnet-4-5-20250929-v1:0 for a model with residency region",
)
@envoy.judged
def ids_show_their_reach(router: Router, index: Index) -> Iterator[Fault]:
    geography = router.home.get(envoy.GEOGRAPHY, "")
    for cluster in bedrocks(router):
        owner, where = (cluster.file.owner, cluster.at("typed_extension_protocol_options"))
        ids = asked_of(cluster).get("x-plane-target", [])
        if len(ids) != 1:
            yield (
                owner,
                where,
                f"of {cluster.name} sets x-plane-target {len(ids)} times: {', '.join(ids) or 'nothing'}",
            )
            continue
        asked, residency = ids[0], cluster.facts.get("residency")
        far = bedrock.reach(asked, geography)
        if far == "hidden":
            yield (owner, where, f"of {cluster.name} asks for {asked!r}, which does not show where it is processed")
        elif rank(far) > rank(residency):
            yield (owner, where, f"of {cluster.name} asks for {asked}, which reaches {far}, beyond {residency}")
        elif far == "geography":
            listed = bedrock.tables()[1].get(geography, [])
            if router.home.get(envoy.REGION) not in listed:
                message = f"asks for {asked}, whose geography does not have {router.home.get(envoy.REGION)}"
                yield owner, where, f"of {cluster.name} {message}"
        for fact, value in (("model_version", asked), ("reach", far)):
            if cluster.facts.get(fact) != value:
                message = f"of {cluster.name} is {cluster.facts.get(fact)!r}, while its target says {value!r}"
                yield (owner, cluster.at("metadata", "filter_metadata", "inference-plane", fact), message)


@rule(
    "PLANE_RES_33",
    "Amazon Bedrock is called in the plane's own Region",
    severity="CRITICAL",
    kinds=_CONFIG,
    why="A bare model id is processed in whatever Region is called: the host decides, not the id.",
    remedy="Set global.aws.region, and router.bedrock.host only to an endpoint of that Region.",
    source="https://docs.aws.amazon.com/general/latest/gr/bedrock.html",
    example="bedrock-runtime.us-east-1.amazonaws.com in a plane of eu-central-1",
)
@envoy.judged
def own_region(router: Router, index: Index) -> Iterator[Fault]:
    home = router.home.get(envoy.REGION, "")
    for cluster in bedrocks(router):
        owner = cluster.file.owner
        if not home:
            message = (
                f"the router's {router.workload.kind} states no {envoy.REGION}, where {cluster.name} may be called"
            )
            yield owner, cluster.at(), message
        hosts = {host for host, _ in cluster.hosts}
        said = {
            "its host": {bedrock.region_of(host) for host in hosts},
            "what it signs for": {text(dig(one, "typed_config", "region")) for one in _signers(cluster)},
            "its facts": {text(cluster.facts.get("region"))},
        }
        for what, regions in said.items():
            if regions != {home}:
                named = ", ".join(sorted(regions)) or "nothing"
                yield (owner, cluster.at(), f"{cluster.name} is called in {named} by {what}, not in {home}")
        sni = text(dig(cluster.config, "transport_socket", "typed_config", "sni"))
        for what, names in (("x-plane-authority", set(asked_of(cluster).get("x-plane-authority", []))), ("sni", {sni})):
            if names != hosts or len(hosts) != 1:
                message = (
                    f"{cluster.name}: {what} is {', '.join(sorted(names)) or 'nothing'}, the host {', '.join(hosts)}"
                )
                yield owner, cluster.at(), message


def _signers(cluster: Cluster) -> list[Mapping]:
    return [one for one in cluster.filters if "aws_request_signing" in text(dig(one, "typed_config", "@type"))]


@rule(
    "PLANE_RES_34",
    "What the account retains is stated, and not shared with a provider",
    severity="HIGH",
    kinds=_CONFIG,
    why="Amazon Bedrock can keep prompts, or hand them to the model's provider: a place that no Region bounds.",
    remedy="Set global.models.MODEL.fallback.retention to how the account is set; provider_data_share only with "
    "residency: anywhere.",
    source="docs/residency.md#retention",
    example="retention: provider_data_share for a model with residency region",
)
@envoy.judged
def retention_is_stated(router: Router, index: Index) -> Iterator[Fault]:
    for cluster in bedrocks(router):
        retention, residency = (cluster.facts.get("retention"), cluster.facts.get("residency"))
        where = cluster.at("metadata", "filter_metadata", "inference-plane", "retention")
        if retention not in _RETENTIONS:
            message = f"of {cluster.name} is {retention!r}, none of {', '.join(_RETENTIONS)}"
            yield cluster.file.owner, where, message
        elif retention == "provider_data_share" and residency != "anywhere":
            message = f"of {cluster.name} hands prompts to the provider, beyond the residency {residency}"
            yield cluster.file.owner, where, message


@rule(
    "PLANE_RES_35",
    "A request to Bedrock is addressed, rewritten and signed, with the pod's own role",
    severity="CRITICAL",
    kinds=_CONFIG,
    why="bedrock.lua writes the one target into the body and takes off what the plane knows of the caller; a request "
    "that "
    "passes it by asks for what the client named. Keys of another account would have prompts processed, and logged, "
    "there.",
    remedy="Leave the filters of charts/router: header_mutation, lua, aws_request_signing, upstream_codec.",
    source="https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/aws_request_signing_filter",
    example='"credential_provider": {"environment_credential_provider": {}}',
)
@envoy.judged
def rewritten_and_signed(router: Router, index: Index) -> Iterator[Fault]:
    order = [
        f"envoy.filters.http.{name}" for name in ("header_mutation", "lua", "aws_request_signing", "upstream_codec")
    ]
    for cluster in router.clusters:
        owner, where = (cluster.file.owner, cluster.at("typed_extension_protocol_options"))
        filters = [text(one.get("name")) for one in cluster.filters]
        if cluster not in bedrocks(router):
            if filters not in ([], ["restore", order[-1]]):
                yield (owner, where, f"of {cluster.name} has the filters {filters}, which only Bedrock's clusters have")
            continue
        if filters != order:
            yield (owner, where, f"of {cluster.name} has the filters {filters}, not {order}")
        for key, values in asked_of(cluster).items():
            if key not in ("x-plane-target", "x-plane-target-keys", "x-plane-authority") or len(values) != 1:
                yield (owner, where, f"of {cluster.name} sets {key} to {', '.join(values)}")
        for one in _signers(cluster):
            credentials = dig(one, "typed_config", "credential_provider") or {}
            kinds = set(credentials) - {"custom_credential_provider_chain"}
            if credentials.get("custom_credential_provider_chain") is not True or len(kinds) != 1:
                message = f"takes credentials from {', '.join(sorted(kinds)) or 'anywhere'}, not from one named source"
                yield owner, where, f"of {cluster.name} {message}"
            elif kinds == {"assume_role_with_web_identity_provider"}:
                role = text(dig(credentials, "assume_role_with_web_identity_provider", "role_arn"))
                account = index.get(
                    "ServiceAccount", router.workload.namespace, text(router.workload.pod.get("serviceAccountName"))
                )
                own = (meta(account or {}).get("annotations") or {}).get("eks.amazonaws.com/role-arn")
                if own != role:
                    yield (owner, where, f"of {cluster.name} assumes {role}, while the ServiceAccount has {own}")
            elif kinds != {"container_credential_provider"}:
                message = f"takes credentials from {', '.join(kinds)}, not from the pod's own role"
                yield owner, where, f"of {cluster.name} {message}"


#: The plane's own services that the router asks.
_INNER = ("policy", "ratelimit")


@rule(
    "PLANE_RES_36",
    "Every upstream proves its name",
    severity="CRITICAL",
    kinds=_CONFIG,
    why="TLS without an authority, or for another name, encrypts a prompt for whoever answers.",
    remedy="Leave sni, match_typed_subject_alt_names and the authorities as charts/router renders them; see "
    "docs/tls.md.",
    source="https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/security/ssl",
    example="a transport_socket without match_typed_subject_alt_names",
)
@envoy.judged
def upstreams_prove_their_name(router: Router, index: Index) -> Iterator[Fault]:
    encrypted = {cluster.name for cluster in fleets(router) if cluster.config.get("transport_socket")}
    listener = dig(router.bootstrap and router.bootstrap.parsed, "static_resources", "listeners")
    clear = [x for x in items(listener) if x.get("name") == "plane"]
    front = any(chain.get("transport_socket") for x in clear for chain in items(x.get("filter_chains")))
    for cluster in router.clusters:
        owner, socket = cluster.file.owner, cluster.config.get("transport_socket")
        names = {host for host, _ in cluster.hosts if host != envoy.LOOPBACK}
        if cluster.name == "jwks" and router.tunnel and not names:
            names = {router.tunnel}  # The proxy carries bytes; TLS is with the issuer.
        outside = {host for host in names if not in_cluster(router, host)}
        if not socket:
            if outside and cluster.name not in ("admin", "traces", "jwks-proxy"):
                yield (owner, cluster.at(), f"{cluster.name} sends in clear text to {', '.join(sorted(outside))}")
            elif (cluster in fleets(router) or cluster.name in _INNER) and (encrypted or front):
                why = "clients are served" if front else f"{sorted(encrypted)[0]} is asked"
                yield (owner, cluster.at(), f"{cluster.name} is asked in clear text, while {why} by TLS")
            continue
        where, config = (cluster.at("transport_socket"), dig(socket, "typed_config") or {})
        if text(config.get("sni")) not in names or len(names) != 1:
            yield (owner, where, f"of {cluster.name} has the sni {config.get('sni')!r} for {', '.join(sorted(names))}")
        common = dig(config, "common_tls_context") or {}
        context = common.get("validation_context") or dig(
            common, "combined_validation_context", "default_validation_context"
        )
        matchers = items(dig(context, "match_typed_subject_alt_names"))
        proven = {text(dig(one, "matcher", "exact")) for one in matchers if one.get("san_type") == "DNS"}
        if proven != names or len(matchers) != 1:
            yield (owner, where, f"of {cluster.name} takes a certificate of {', '.join(sorted(proven)) or 'anybody'}")
        if "validation_context" in common and "combined_validation_context" in common:
            yield (owner, where, f"of {cluster.name} has two contexts that say whom to believe")
        inside = dig(common, "combined_validation_context", "validation_context_sds_secret_config", "name") == "ca"
        ca = dig(common, "validation_context", "trusted_ca") or {}
        inline = text(ca.get("inline_string")) and cluster.name == "jwks"
        if not (
            inside
            if cluster in fleets(router) or cluster.name in _INNER
            else ca == {"filename": _AUTHORITIES} or inline
        ):
            yield owner, where, f"of {cluster.name} believes {ca or 'no authority'}"
    for cluster in router.clusters:
        for i, match in enumerate(items(cluster.config.get("transport_socket_matches"))):
            if match.get("match") != {"loopback": True} or cluster not in fleets(router):
                where = cluster.at("transport_socket_matches", i)
                yield (cluster.file.owner, where, f"of {cluster.name} takes TLS from what {match.get('match')} matches")
