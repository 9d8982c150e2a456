"""What of the plane can be reached from where: the load balancer, and Services."""

import ipaddress
import json
from collections.abc import Iterator, Mapping

from inference_plane.compliance import envoy
from inference_plane.compliance.envoy import dig, items, text
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, meta

_ALB = "alb.ingress.kubernetes.io/"
_SCHEME = f"{_ALB}scheme"
_PUBLIC = "inference-plane/public-because"
#: Annotations of an Ingress that say nothing of who gets its requests.
_ANNOTATIONS = frozenset(
    f"{_ALB}{name}"
    for name in (
        "scheme subnets tags target-type backend-protocol listen-ports ssl-policy certificate-arn inbound-cidrs "
        "security-group-prefix-lists wafv2-acl-arn healthcheck-port healthcheck-protocol healthcheck-path "
        "healthcheck-interval-seconds healthcheck-timeout-seconds healthy-threshold-count unhealthy-threshold-count "
        "success-codes target-group-attributes load-balancer-attributes"
    ).split()
)
#: The widest block of addresses that clients may come from: the whole of 10.0.0.0/8, or a provider's IPv6.
_WIDEST = {4: 8, 6: 32}


def _notes(obj: Mapping) -> Mapping[str, str]:
    found = meta(obj).get("annotations")
    return {k: str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _excused(*objects: Mapping) -> bool:
    """Whether an object says who decided that the internet may come, and why."""
    return any(len(_notes(obj).get(_PUBLIC, "").strip()) >= 10 for obj in objects)


def _parameters(ingress: Mapping, index: Index) -> Mapping | None:
    """The IngressClassParams that hold for an Ingress, whatever its annotations say."""
    named = dig(ingress, "spec", "ingressClassName")
    for kind in index.kind("IngressClass"):
        if meta(kind).get("name") == named and dig(kind, "spec", "parameters", "kind") == "IngressClassParams":
            return index.get("IngressClassParams", "", text(dig(kind, "spec", "parameters", "name"))) or next(
                (p for p in index.kind("IngressClassParams") if meta(p).get("name") == named), None
            )
    return None


@rule(
    "PLANE_RES_01",
    "The load balancer is internal",
    severity="CRITICAL",
    kinds={
        "networking.k8s.io/Ingress",
        "networking.k8s.io/IngressClass",
        "eks.amazonaws.com/IngressClassParams",
        "gateway.networking.k8s.io/Gateway",
        "gateway.k8s.aws/LoadBalancerConfiguration",
    },
    why="An internet-facing load balancer has public addresses: prompts then cross networks that nobody stated.",
    remedy="Leave alb-ingress.scheme at internal, or say in publicBecause who decided otherwise, and why.",
    source="https://kubernetes-sigs.github.io/aws-load-balancer-controller/latest/guide/ingress/annotations/#scheme",
    example="alb.ingress.kubernetes.io/scheme: internet-facing",
)
def internal_scheme(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    kind = obj.get("kind")
    if kind == "Ingress":
        scheme, parameters = _notes(obj).get(_SCHEME), _parameters(obj, index)
        if scheme is None and parameters is not None:
            return  # The parameters are judged themselves.
        if scheme != "internal" and not _excused(obj):
            yield f"metadata.annotations['{_SCHEME}']", f"is {scheme!r}, not internal"
    elif kind == "IngressClass":
        if dig(obj, "spec", "controller") == "eks.amazonaws.com/alb" and not any(
            meta(p).get("name") == dig(obj, "spec", "parameters", "name") for p in index.kind("IngressClassParams")
        ):
            yield ("spec.parameters", "name no IngressClassParams of the render, which would say the scheme")
    elif kind == "Gateway":
        ref = dig(obj, "spec", "infrastructure", "parametersRef") or {}
        named = index.get("LoadBalancerConfiguration", index.namespace_of(obj), text(ref.get("name")))
        if ref.get("kind") != "LoadBalancerConfiguration" or named is None:
            yield (
                "spec.infrastructure",
                "names no LoadBalancerConfiguration of the render, which would say the scheme",
            )
    else:
        scheme = dig(obj, "spec", "scheme")
        if scheme != "internal" and not _excused(*index.kind("Ingress", "Gateway")):
            yield "spec.scheme", f"is {scheme!r}, not internal"


@rule(
    "PLANE_RES_02",
    "The load balancer takes connections from named sources",
    severity="HIGH",
    kinds={"networking.k8s.io/Ingress", "gateway.k8s.aws/LoadBalancerConfiguration"},
    why="Without a list the controllers open the security group to everybody.",
    remedy="Set alb-ingress.inbound.cidrs or inbound.prefixLists to the networks of the plane's clients.",
    source="https://kubernetes-sigs.github.io/aws-load-balancer-controller/latest/guide/ingress/annotations/",
    example="alb.ingress.kubernetes.io/inbound-cidrs: 0.0.0.0/0",
)
def named_sources(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    if obj.get("kind") == "Ingress":
        notes = _notes(obj)
        blocks = [one.strip() for one in notes.get(f"{_ALB}inbound-cidrs", "").split(",") if one.strip()]
        lists = [one.strip() for one in notes.get(f"{_ALB}security-group-prefix-lists", "").split(",") if one.strip()]
        where = f"metadata.annotations['{_ALB}inbound-cidrs']"
    else:
        blocks, lists = (dig(obj, "spec", "sourceRanges"), dig(obj, "spec", "securityGroupPrefixes") or [])
        where = "spec.sourceRanges"
        if not isinstance(blocks, list):
            yield (where, "is not there: a Gateway without it lets everybody in, prefix lists or not")
            blocks = []
    if not blocks and not lists:
        yield where, "names nobody, which lets everybody in"
    for block in blocks:
        try:
            network = ipaddress.ip_network(block)
        except ValueError:
            yield where, f"has {block!r}, which is no block of addresses"
            continue
        if network.prefixlen < _WIDEST[network.version]:
            yield where, f"has {block}: wider than /{_WIDEST[network.version]}"
    for one in lists:
        if not text(one).startswith("pl-"):
            yield where, f"has {one!r}, which is no prefix list"


def _is_router(name: str, namespace: str, index: Index) -> bool:
    """Whether a Service is the router's: by the pods that it selects, or its name where its chart is not in the "
    "render."""
    service = index.get("Service", namespace, name)
    if service is None:
        return name == "router" and not any(envoy.routers(index))
    pods = index.pods(namespace, {"matchLabels": dig(service, "spec", "selector") or {"": ""}})
    return bool(pods) and all(any(router.workload is pod for router in envoy.routers(index)) for pod in pods)


@rule(
    "PLANE_RES_03",
    "Nothing but the router is behind the load balancer",
    severity="CRITICAL",
    kinds={
        "networking.k8s.io/Ingress",
        "gateway.networking.k8s.io/Gateway",
        "gateway.networking.k8s.io/HTTPRoute",
        "gateway.k8s.aws/TargetGroupConfiguration",
    },
    why="Who reaches an engine directly passes by identity, budgets and the residency that a request asked for; a "
    "redirect or a mirror takes prompts elsewhere.",
    remedy="Leave the one backend of charts/alb-ingress, the Service router at its port for clients.",
    source="docs/residency.md#the-way-itself",
    example="backend: {service: {name: clinical-summary, port: {number: 8000}}}",
)
def only_the_router(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    namespace, spec = index.namespace_of(obj), obj.get("spec") or {}
    backends: list[tuple[str, object, object]] = []
    if obj.get("kind") == "Ingress":
        if "defaultBackend" in spec:
            yield "spec.defaultBackend", "answers what no rule names"
        for i, one in enumerate(items(spec.get("rules"))):
            for j, path in enumerate(items(dig(one, "http", "paths"))):
                service = dig(path, "backend", "service") or {}
                port = dig(service, "port", "name") or dig(service, "port", "number")
                backends.append((f"spec.rules[{i}].http.paths[{j}].backend", service.get("name"), port))
        for note in _notes(obj):
            if note.startswith(_ALB) and note not in _ANNOTATIONS:
                yield (f"metadata.annotations['{note}']", "can give requests to others than the rules name")
    elif obj.get("kind") == "HTTPRoute":
        for i, one in enumerate(items(spec.get("rules"))):
            if one.get("filters"):
                yield (f"spec.rules[{i}].filters", "can mirror, redirect or rewrite requests")
            for j, ref in enumerate(items(one.get("backendRefs"))):
                where = f"spec.rules[{i}].backendRefs[{j}]"
                if (
                    ref.get("kind", "Service") != "Service"
                    or ref.get("namespace", namespace) != namespace
                    or ref.get("filters")
                ):
                    yield (where, "is not a Service of the route's own namespace, and nothing more")
                backends.append((where, ref.get("name"), ref.get("port")))
    elif obj.get("kind") == "TargetGroupConfiguration":
        backends.append(("spec.targetReference", dig(spec, "targetReference", "name"), 443))
        if spec.get("routeConfigurations"):
            yield "spec.routeConfigurations", "says otherwise for some routes"
    else:
        for i, listener in enumerate(items(spec.get("listeners"))):
            if dig(listener, "allowedRoutes", "namespaces", "from") != "Same":
                yield (f"spec.listeners[{i}].allowedRoutes", "lets routes of other namespaces add backends")
        return
    if not backends:
        yield "spec", "names no backend"
    for where, name, port in backends:
        if not _is_router(text(name), namespace, index):
            yield where, f"is the Service {name}, which is not the router's"
        elif port not in ("http", "https", 80, 443):
            yield where, f"is the port {port} of the router, which is not for clients"


@rule(
    "PLANE_RES_04",
    "Services stay inside the cluster",
    severity="CRITICAL",
    kinds={"core/Service", "core/Endpoints", "discovery.k8s.io/EndpointSlice"},
    why="A Service of another type opens an engine to the network, or gives its name, which prompts are sent to, to a "
    "host elsewhere.",
    remedy="Leave Services at ClusterIP with a selector; the load balancer is charts/alb-ingress.",
    source="https://kubernetes.io/docs/concepts/services-networking/service/#publishing-services-service-types",
    example="type: ExternalName\nexternalName: models.example.com",
)
def services_stay(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    if obj.get("kind") != "Service":
        yield ("", "names addresses by hand, which may be anywhere: a Service finds its pods by its selector")
        return
    spec = obj.get("spec") or {}
    if spec.get("type", "ClusterIP") != "ClusterIP":
        yield "spec.type", f"is {spec['type']}, not ClusterIP"
    for field in ("externalIPs", "externalName", "loadBalancerIP", "loadBalancerSourceRanges", "loadBalancerClass"):
        if spec.get(field):
            yield f"spec.{field}", f"is {spec[field]!r}: it leads outside the cluster"
    if not spec.get("selector"):
        yield "spec.selector", "is empty: who answers is said somewhere else"
    for note in _notes(obj):
        if "load-balancer" in note or note.startswith("external-dns.alpha.kubernetes.io/"):
            yield (f"metadata.annotations['{note}']", "asks for an address outside the cluster")
    pods = index.pods(index.namespace_of(obj), {"matchLabels": spec.get("selector") or {"": ""}})
    own = {text(dig(pod.labels, "app.kubernetes.io/component")) for pod in pods}
    if len(own) > 1:
        yield ("spec.selector", f"selects pods of {', '.join(sorted(own))}: one name for several kinds of them")
    named = {text(dig(pod.labels, "app.kubernetes.io/name")) for pod in pods}
    if len(named) > 1:
        yield "spec.selector", f"selects pods of {', '.join(sorted(named))}: prompts for one reach the others"


@rule(
    "PLANE_RES_83",
    "The load balancer listens once, and for one namespace",
    severity="HIGH",
    kinds={"networking.k8s.io/Ingress", "eks.amazonaws.com/IngressClassParams"},
    why="A listener without TLS beside the one with it takes prompts in the clear. Parameters of a class hold whatever "
    "an Ingress says, and a class for every namespace shares the load balancer with them.",
    remedy="Leave the one listener of charts/alb-ingress, and the class's parameters to its namespace.",
    source="https://docs.aws.amazon.com/eks/latest/userguide/auto-configure-alb.html",
    example='alb.ingress.kubernetes.io/listen-ports: \'[{"HTTP": 80}, {"HTTPS": 443}]\'',
)
def one_listener(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    spec = obj.get("spec") or {}
    if obj.get("kind") == "Ingress":
        where = f"metadata.annotations['{_ALB}listen-ports']"
        given = _notes(obj).get(f"{_ALB}listen-ports", "[]")
        try:
            ports = [protocol for one in json.loads(given) for protocol in one]
        except (ValueError, TypeError):
            ports = []
        if len(ports) != 1:
            yield where, f"is {given}, not one listener"
        if "HTTP" in ports and f"{_ALB}certificate-arn" in _notes(obj):
            yield where, "has a listener without TLS, and there is a certificate"
        return
    names = dig(spec, "namespaceSelector", "matchLabels") or {}
    if set(names) != {"kubernetes.io/metadata.name"} or dig(spec, "namespaceSelector", "matchExpressions"):
        yield "spec.namespaceSelector", "names no one namespace: others share the load balancer"
    for field in ("group", "inboundCIDRs", "prefixListsIDs", "sslPolicy", "listeners", "targetType"):
        if spec.get(field):
            yield f"spec.{field}", "holds whatever the Ingress says, and no chart renders it"
