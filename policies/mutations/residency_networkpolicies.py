"""Breaks of who may speak with whom."""

import copy

from inference_plane.compliance.mutations import config, find, mutation

ENGINE = "clinical-summary"
HTTPS = [{"protocol": "TCP", "port": 443}]


def policy(objects, name=ENGINE):
    return find(objects, "NetworkPolicy", name)["spec"]


def on(rule, name, change, of=ENGINE, **more):
    """A mutation of a policy's spec."""

    @mutation(rule, name, **more)
    def _(objects):
        change(policy(objects, of))


# Whom policies select.

for name in (ENGINE, "router", "router-policy", "router-ratelimit", "router-valkey", "headroom", "plane-vllm-stranger"):

    @mutation("PLANE_RES_40", f"no policy {name}")
    def _(objects, name=name):
        objects.remove(find(objects, "NetworkPolicy", name))

    @mutation("PLANE_RES_40", f"policy {name} in another namespace")
    def _(objects, name=name):
        find(objects, "NetworkPolicy", name)["metadata"]["namespace"] = "default"

    @mutation("PLANE_RES_40", f"policy {name} for pods that are not there")
    def _(objects, name=name):
        policy(objects, name)["podSelector"]["matchLabels"]["app.kubernetes.io/component"] = "Engine"

    for types in (["Ingress"], ["Egress"], [], None):

        @mutation("PLANE_RES_40", f"policy {name} of {types}")
        def _(objects, name=name, types=types):
            policy(objects, name)["policyTypes"] = types


@mutation("PLANE_RES_40", "a pod on the node's network")
def _(objects):
    find(objects, "Deployment", ENGINE)["spec"]["template"]["spec"]["hostNetwork"] = True


@mutation("PLANE_RES_40", "a port of the node")
def _(objects):
    pod = find(objects, "Deployment", ENGINE)["spec"]["template"]["spec"]
    pod["containers"][0]["ports"][0]["hostPort"] = 8000


@mutation("PLANE_RES_40", "a second engine without a policy")
def _(objects):
    more = copy.deepcopy(find(objects, "Deployment", ENGINE))
    more["metadata"]["name"] = "night"
    for labels in (more["spec"]["selector"]["matchLabels"], more["spec"]["template"]["metadata"]["labels"]):
        labels["app.kubernetes.io/name"] = "night"
    objects.append(more)


# How wide.

PEERS = {
    "everywhere": [{"ipBlock": {"cidr": "0.0.0.0/0"}}],
    "everywhere in two halves": [{"ipBlock": {"cidr": "0.0.0.0/1"}}, {"ipBlock": {"cidr": "128.0.0.0/1"}}],
    "everywhere but one": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}],
    "everywhere in IPv6": [{"ipBlock": {"cidr": "::/0"}}],
    "a network of networks": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    "no block": [{"ipBlock": {"cidr": "all"}}],
    "every namespace": [{"namespaceSelector": {}}],
    "a namespace by a label of its own": [{"namespaceSelector": {"matchLabels": {"team": "care"}}}],
    "namespaces by an expression": [
        {"namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "Exists"}]}}
    ],
    "every pod here": [{"podSelector": {}}],
    "pods by what they are not": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}}],
    "pods of every namespace": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "x"}}}],
    "nobody, which is everybody": [],
    "a peer of nothing": [{}],
}
for rule, side, field in (("PLANE_RES_41", "egress", "to"), ("PLANE_RES_42", "ingress", "from")):
    for name, peers in PEERS.items():
        on(rule, f"{side} {field} {name}", lambda s, p=peers, d=side, f=field: s[d].append({f: p, "ports": HTTPS}))
    on(rule, f"{side} without {field}", lambda s, d=side: s[d].append({"ports": HTTPS}))
    on(rule, f"{side} of an empty rule", lambda s, d=side: s[d].append({}))
    on(rule, f"{side} on every port", lambda s, d=side: s[d][0].pop("ports"))
    on(rule, f"{side} on no port, which is every", lambda s, d=side: s[d][0].update(ports=[]))
    on(rule, f"{side} on a range", lambda s, d=side: s[d][0]["ports"][0].update(port=1, endPort=65535))
    on(rule, f"{side} on whatever TCP", lambda s, d=side: s[d][0].update(ports=[{"protocol": "TCP"}]))
    on(rule, f"{side} for one direction", lambda s, d=side: s.update(policyTypes=[d.title()]))
    on(rule, f"{side} to {field} in other letters", lambda s, d=side, f=field: s[d][0].update({f.title(): []}))
on("PLANE_RES_41", "a whole namespace", lambda s: s["egress"][0]["to"][0].pop("podSelector"))
on(
    "PLANE_RES_41",
    "the credentials of the node",
    lambda s: s["egress"].append({"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": HTTPS}),
)
on(
    "PLANE_RES_41",
    "a block around the credentials of the node",
    lambda s: s["egress"].append({"to": [{"ipBlock": {"cidr": "169.254.0.0/16"}}], "ports": HTTPS}),
)
on(
    "PLANE_RES_42",
    "public addresses",
    lambda s: s["ingress"].append({"from": [{"ipBlock": {"cidr": "8.8.8.0/24"}}], "ports": HTTPS}),
    "router",
)
on("PLANE_RES_42", "every pod by an empty selector", lambda s: s.update(podSelector={}))


@mutation("PLANE_RES_42", "one more policy that opens all")
def _(objects):
    more = copy.deepcopy(find(objects, "NetworkPolicy", ENGINE))
    more["metadata"]["name"] = "more"
    more["spec"] = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}
    objects.append(more)


# Engines.

ROUTER = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "router", "app.kubernetes.io/name": "router"}}}
for name, peer in {
    "monitoring": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    "another pod": {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "router-policy"}}},
    "the pod of tests": {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "test"}}},
    "what is called router": {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "router"}}},
    "the load balancer": {"ipBlock": {"cidr": "10.20.0.0/22"}},
}.items():
    on("PLANE_RES_43", f"{name} reaches it", lambda s, p=peer: s["ingress"][0]["from"].append(p))
on("PLANE_RES_43", "who scrapes reaches it too", lambda s: s["ingress"][-1]["ports"][0].update(port=8000))
on("PLANE_RES_43", "who scrapes reaches it by name", lambda s: s["ingress"][-1]["ports"][0].update(port="http"))
on(
    "PLANE_RES_43",
    "addresses scrape it",
    lambda s: s["ingress"][-1].update({"from": [{"ipBlock": {"cidr": "10.0.0.0/24"}}]}),
)


@mutation("PLANE_RES_43", "one more policy for its pods")
def _(objects):
    more = copy.deepcopy(find(objects, "NetworkPolicy", ENGINE))
    more["metadata"]["name"] = "more"
    more["spec"]["podSelector"] = {"matchLabels": {"inference-plane/model": ENGINE}}
    apps = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}
    more["spec"]["ingress"] = [{"from": [apps], "ports": [{"port": 8000}]}]
    objects.append(more)


for name, one in {
    "pods of its own namespace": {"to": [{"podSelector": {"matchLabels": {"app": "logs"}}}], "ports": HTTPS},
    "the router": {"to": [ROUTER], "ports": [{"port": 8080}]},
    "another engine": {
        "to": [{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "engine"}}}],
        "ports": [{"port": 8000}],
    },
    "names at another port": {
        "to": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }
        ],
        "ports": [{"port": 5353}],
    },
    "public addresses by HTTP": {"to": [{"ipBlock": {"cidr": "52.219.0.0/16"}}], "ports": [{"port": 80}]},
    "a collector that it has no use for": {"to": [{"ipBlock": {"cidr": "10.1.0.0/24"}}], "ports": [{"port": 4317}]},
    "the node": {"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "ports": [{"port": 8125}]},
}.items():
    on("PLANE_RES_44", f"it calls {name}", lambda s, one=one: s["egress"].append(one))

# The VPC's endpoints.

PUBLIC = {"ipBlock": {"cidr": "3.64.0.0/16"}}
on(
    "PLANE_RES_45",
    "Bedrock by public addresses",
    lambda s: [one.update(to=[PUBLIC]) for one in s["egress"] if one["ports"] == HTTPS],
    "router",
)
for name in ("router-policy", "router-ratelimit", "router-test"):
    on(
        "PLANE_RES_45",
        f"{name} by public addresses",
        lambda s: s["egress"].append({"to": [PUBLIC], "ports": HTTPS}),
        name,
    )
on(
    "PLANE_RES_45",
    "another port of public addresses",
    lambda s: s["egress"].append({"to": [PUBLIC], "ports": [{"port": 8443}]}),
    "router",
)
on(
    "PLANE_RES_45",
    "STS by public addresses",
    lambda s: [one.update(to=[PUBLIC]) for one in s["egress"] if one["ports"] == HTTPS],
    "router",
    source="router/ci/irsa",
)
on("PLANE_RES_45", "no way to Bedrock's endpoint", lambda s: s.update(egress=s["egress"][:4]), "router")

# Names.

for name in (ENGINE, "router", "router-policy"):
    for field, value in {
        "hostAliases": [{"ip": "198.51.100.7", "hostnames": [f"{ENGINE}.inference.svc.cluster.local"]}],
        "dnsConfig": {"nameservers": ["198.51.100.7"]},
        "dnsPolicy": "None",
    }.items():

        @mutation("PLANE_RES_46", f"{name} with {field}")
        def _(objects, name=name, field=field, value=value):
            find(objects, "Deployment", name)["spec"]["template"]["spec"][field] = value


for address in ("8.8.8.8", "resolver.example.com"):

    @mutation("PLANE_RES_46", f"names by {address}")
    def _(objects, address=address):
        with config(objects, "router-bootstrap", "bootstrap.json") as document:
            resolver = {"socket_address": {"address": address, "port_value": 53}}
            document["typed_dns_resolver_config"]["typed_config"]["resolvers"] = [resolver]
