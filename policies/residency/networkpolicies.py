"""Who may speak with whom: the second lock, which holds whatever a process in a pod does."""

import ipaddress
from collections.abc import Iterator, Mapping

from inference_plane.compliance import envoy
from inference_plane.compliance.envoy import dig, items, text
from inference_plane.compliance.pods import KINDS as PODS
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, Workload, matches, meta

_POLICY = {"networking.k8s.io/NetworkPolicy"}
_COMPONENT, _NAME = "app.kubernetes.io/component", "app.kubernetes.io/name"
_NAMESPACE = "kubernetes.io/metadata.name"
#: A VPC has at most a /16, in IPv6 a /44: https://docs.aws.amazon.com/vpc/latest/userguide/vpc-cidr-blocks.html
_WIDEST = {4: 16, 6: 44}
_INSTANCE_METADATA = (ipaddress.ip_network("169.254.169.254/32"), ipaddress.ip_network("fd00:ec2::254/128"))
_LINK_LOCAL = ipaddress.ip_network("169.254.0.0/16")


def _selected(policy: Mapping, index: Index) -> list[Workload]:
    return index.pods(index.namespace_of(policy), dig(policy, "spec", "podSelector") or {})


def _component(policy: Mapping) -> str:
    """What a policy is for, by the pods that it selects alone."""
    return text((dig(policy, "spec", "podSelector", "matchLabels") or {}).get(_COMPONENT))


def _peers(policy: Mapping, side: str) -> Iterator[tuple[Mapping, Mapping, str]]:
    """(rule, peer, path) of one direction."""
    for i, one in enumerate(items(dig(policy, "spec", side))):
        for j, peer in enumerate(items(one.get({"ingress": "from", "egress": "to"}[side]))):
            yield one, peer, f"spec.{side}[{i}].{'from' if side == 'ingress' else 'to'}[{j}]"


def _block(peer: Mapping) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text(dig(peer, "ipBlock", "cidr")))
    except ValueError:
        return None


def _ports(one: Mapping) -> set:
    return {port.get("port") for port in items(one.get("ports"))}


@rule(
    "PLANE_RES_40",
    "Every pod has a NetworkPolicy for both directions",
    severity="CRITICAL",
    kinds=PODS,
    why="A pod that no policy selects may speak with everybody; one on the node's network passes policies by.",
    remedy="Leave global.network.policies at true, and each pod on the cluster's network.",
    source="https://kubernetes.io/docs/concepts/services-networking/network-policies/#the-two-sorts-of-pod-isolation",
    example="policyTypes: [Ingress]",
)
def every_pod_is_bounded(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for workload in (w for w in index.workloads if w.obj is obj):
        policies = [
            policy
            for policy in index.kind("NetworkPolicy")
            if index.namespace_of(policy) == workload.namespace
            and matches(dig(policy, "spec", "podSelector") or {}, workload.labels)
        ]
        if not any({"Ingress", "Egress"} <= set(dig(policy, "spec", "policyTypes") or ()) for policy in policies):
            names = ", ".join(text(meta(policy).get("name")) for policy in policies)
            found = f"by {names} in one direction alone" if names else "by none"
            yield workload.path, f"is selected {found}: what is not selected is open"
        if workload.pod.get("hostNetwork"):
            yield f"{workload.path}.hostNetwork", "is true: no NetworkPolicy holds on the node's network"
        for container, path in workload.containers:
            for i, port in enumerate(items(container.get("ports"))):
                if port.get("hostPort"):
                    yield f"{path}.ports[{i}].hostPort", f"opens {port['hostPort']} of the node"


@rule(
    "PLANE_RES_41",
    "Egress names pods or blocks of addresses, and ports",
    severity="CRITICAL",
    kinds=_POLICY,
    why="An empty list of peers or ports means all of them; a block as wide as the internet means the same in other "
    "words.",
    remedy="Name the subnets of endpoints in global.network, none wider than a VPC.",
    source="https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/",
    example="egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]",
)
def egress_is_named(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    yield from _named(obj, "egress", "to")


@rule(
    "PLANE_RES_42",
    "Ingress names pods, namespaces or private blocks of addresses, and ports",
    severity="HIGH",
    kinds=_POLICY,
    why="An empty list of sources means everybody; whoever reaches an engine or a router's status port by another way "
    "passes by what the router knows.",
    remedy="Name who calls in global.network; clients come from the load balancer's subnets.",
    source="https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/",
    example="ingress: [{ports: [{port: 8000}]}]",
)
def ingress_is_named(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    yield from _named(obj, "ingress", "from")
    for _, peer, path in _peers(obj, "ingress"):
        if (block := _block(peer)) and not block.is_private:
            yield path, f"is {block}, public addresses: the load balancer is internal"


def _named(obj: Mapping, side: str, field: str) -> Iterator[tuple[str, str]]:
    selector = dig(obj, "spec", "podSelector") or {}
    if side == "ingress" and not selector.get("matchLabels"):
        yield "spec.podSelector", "names no label: it opens its ports on whatever else is in the namespace"
    if set(dig(obj, "spec", "policyTypes") or ()) != {"Ingress", "Egress"}:
        yield "spec.policyTypes", f"is {dig(obj, 'spec', 'policyTypes')}, not both directions"
    written = dig(obj, "spec", side)
    if written is not None and not isinstance(written, list):
        yield f"spec.{side}", f"is {written!r}, not a list"
    for i, one in enumerate(written if isinstance(written, list) else []):
        where = f"spec.{side}[{i}]"
        one = one if isinstance(one, dict) else {}
        if extra := set(one) - {field, "ports"}:
            yield where, f"has {', '.join(sorted(extra))}: the {side} that it means is not read"
        if not items(one.get(field)):
            yield f"{where}.{field}", "is empty or not there, which means everybody"
        if not items(one.get("ports")):
            yield f"{where}.ports", "is empty or not there, which means every port"
        for j, port in enumerate(items(one.get("ports"))):
            if "port" not in port or "endPort" in port or port.get("protocol", "TCP") not in ("TCP", "UDP"):
                yield f"{where}.ports[{j}]", f"is {dict(port)}, not one port"
        for j, peer in enumerate(items(one.get(field))):
            for why in _wide(peer, side):
                yield f"{where}.{field}[{j}]", why


def _wide(peer: Mapping, side: str) -> Iterator[str]:
    """Why a peer is more than somebody who was named."""
    if not peer or set(peer) - {"ipBlock", "podSelector", "namespaceSelector"}:
        yield f"is {dict(peer)}, which names nobody"
    if "ipBlock" in peer:
        block = _block(peer)
        if block is None or set(peer) != {"ipBlock"}:
            yield f"is {dict(peer)}, no block of addresses"
        elif block.prefixlen < _WIDEST[block.version]:
            yield f"is {block}, wider than a VPC's /{_WIDEST[block.version]}"
        elif any(block.version == one.version and block.supernet_of(one) for one in _INSTANCE_METADATA):
            yield f"is {block}: the node's credentials are there"
        return
    pods, spaces = peer.get("podSelector"), peer.get("namespaceSelector")
    named = isinstance(pods, dict) and pods.get("matchLabels") and not pods.get("matchExpressions")
    if "podSelector" in peer and not named:
        yield "selects pods by no label that they must have, so it selects all"
    if "namespaceSelector" in peer:
        labels = spaces.get("matchLabels") if isinstance(spaces, dict) else None
        if not labels or _NAMESPACE not in labels or spaces.get("matchExpressions"):
            yield "selects namespaces by other words than their name, so it selects whatever calls itself so"
        if side == "egress" and "podSelector" not in peer:
            yield "is a whole namespace"


@rule(
    "PLANE_RES_43",
    "Only the router reaches an engine",
    severity="CRITICAL",
    kinds=_POLICY,
    why="An engine asks nobody who calls: identity, budgets, residency and the audit line are the router's.",
    remedy="Leave the engine's policy as charts/vllm renders it: its port for the router, its metrics for the others.",
    source="docs/residency.md#read-it-from-the-manifests",
    example="from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: apps}}}]",
)
def only_the_router_reaches_engines(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    engines = [w for w in _selected(obj, index) if w.labels.get(_COMPONENT) == "engine"]
    if not engines and _component(obj) != "engine":
        return
    metrics: set = set()
    for engine in engines:
        for container, _ in engine.containers:
            found = items(container.get("ports"))
            metrics |= {p.get("containerPort") for p in found if text(container.get("name")) == "metrics"}
    metrics = metrics or {8001}
    for one, peer, path in _peers(obj, "ingress"):
        labels = dig(peer, "podSelector", "matchLabels") or {}
        if labels.get(_COMPONENT) == "router" and labels.get(_NAME) == "router":
            continue
        if open_ports := _ports(one) - metrics | ({"metrics"} & _ports(one)):
            who = labels or dig(peer, "namespaceSelector", "matchLabels") or peer.get("ipBlock") or "everybody"
            yield path, f"lets {who} reach port {', '.join(map(str, sorted(open_ports, key=str)))} of an engine"
        elif "ipBlock" in peer:
            yield path, f"lets addresses reach an engine, not pods: {peer['ipBlock']}"


@rule(
    "PLANE_RES_44",
    "An engine speaks with AWS, names and traces alone",
    severity="CRITICAL",
    kinds=_POLICY,
    why="An engine holds prompts in clear. It needs its weights, credentials and names; nothing else takes its calls.",
    remedy="Leave the engine's egress at DNS, the credentials' source, global.network.s3Cidrs and otlpCidrs.",
    source="docs/residency.md#read-it-from-the-manifests",
    example="to: [{podSelector: {matchLabels: {app: logs}}}]",
)
def engines_speak_with_aws(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    engines = [w for w in _selected(obj, index) if w.labels.get(_COMPONENT) == "engine"]
    if not engines and _component(obj) != "engine":
        return
    for one, peer, path in _peers(obj, "egress"):
        ports, block = _ports(one), _block(peer)
        if block is None:
            labels = dig(peer, "podSelector", "matchLabels") or {}
            if ports != {53} or labels.get("k8s-app") != "kube-dns":
                yield path, f"lets an engine call {labels or dict(peer)} at {sorted(ports, key=str)}"
        elif block.version == 4 and block.subnet_of(_LINK_LOCAL):
            if not ports <= {53} and ports != {80}:
                yield path, f"lets an engine call the node at {block}, ports {sorted(ports, key=str)}"
        elif ports == {443}:
            continue
        elif not block.is_private:
            yield path, f"lets an engine call {block}, public addresses, at {sorted(ports, key=str)}"
        elif not _traces(engines):
            yield path, f"lets an engine call {block} at {sorted(ports, key=str)}, for which it has no use"


def _traces(engines: list[Workload]) -> bool:
    words = [str(word) for engine in engines for c, _ in engine.containers for word in c.get("args") or ()]
    return any(word.startswith("--otlp-traces-endpoint") for word in words)


@rule(
    "PLANE_RES_45",
    "AWS is reached by endpoints of the VPC",
    severity="HIGH",
    kinds=_POLICY,
    why="Public addresses of AWS are reached through a NAT gateway, over networks that carry whatever goes out. "
    "Weights "
    "may come from the public list of a gateway endpoint of S3, which leaves nothing of that; prompts may not.",
    remedy="Set global.network.bedrockCidrs and stsCidrs to the subnets of interface endpoints with private DNS.",
    source="https://docs.aws.amazon.com/bedrock/latest/userguide/vpc-interface-endpoints.html",
    example="bedrockCidrs: [3.64.0.0/16]",
)
def aws_by_endpoints(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    component = _component(obj)
    if component == "engine":
        return  # RES_44 says which public addresses an engine may call.
    routers = [r for r in envoy.routers(index) if any(r.workload.obj is w.obj for w in _selected(obj, index))]
    clusters = [cluster for router in routers for cluster in router.clusters]
    # The issuer of tokens is elsewhere; no route of a prompt leads there.
    issuer = {port for c in clusters if c.name == "jwks" for _, port in c.hosts}
    private = False
    for one, peer, path in _peers(obj, "egress"):
        block = _block(peer)
        if block is None or (block.version == 4 and block.subnet_of(_LINK_LOCAL)):
            continue
        private |= block.is_private and 443 in _ports(one)
        if not block.is_private and not _ports(one) <= issuer:
            yield path, f"is {block}, public addresses, for {component or 'whatever it selects'}"
    if any(c.name.startswith("bedrock/") for c in clusters) and not private:
        yield "spec.egress", "names no private addresses at 443, so Amazon Bedrock would be reached by public ones"


@rule(
    "PLANE_RES_46",
    "Names mean what the cluster says",
    severity="HIGH",
    kinds=envoy.KINDS,
    why="A host's name is what the other rules judge; who answers for names decides where it leads.",
    remedy="Leave hostAliases, dnsConfig and dnsPolicy alone, and router.dns.resolvers at addresses of the cluster.",
    source="https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#pod-s-dns-policy",
    example="hostAliases: [{ip: 198.51.100.7, hostnames: [records.inference.svc.cluster.local]}]",
)
def names_are_the_clusters(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for workload in (w for w in index.workloads if w.obj is obj):
        for field in ("hostAliases", "dnsConfig"):
            if workload.pod.get(field):
                yield f"{workload.path}.{field}", f"is {workload.pod[field]!r}: names mean something else in this pod"
        if workload.pod.get("dnsPolicy", "ClusterFirst") != "ClusterFirst":
            yield f"{workload.path}.dnsPolicy", f"is {workload.pod['dnsPolicy']}: it asks others than the cluster"
    for router in envoy.routers(index):
        file = router.bootstrap
        if file is None or file.owner is not obj:
            continue
        where = ("typed_dns_resolver_config", "typed_config", "resolvers")
        for i, resolver in enumerate(items(dig(file.parsed, *where))):
            address = text(dig(resolver, "socket_address", "address"))
            try:
                private = ipaddress.ip_address(address).is_private
            except ValueError:
                private = False
            if not private:
                yield file.at(*where, i), f"asks {address or 'nobody'} for names, which is not of the cluster"
