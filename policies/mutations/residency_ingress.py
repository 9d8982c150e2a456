"""Breaks of what can be reached from where."""

from inference_plane.compliance.mutations import find, mutation

ALB = "alb.ingress.kubernetes.io/"
GATEWAY = "alb-ingress/ci/gateway"


def notes(objects):
    return find(objects, "Ingress")["metadata"]["annotations"]


for source, kind in (("auto-mode", "IngressClassParams"), (GATEWAY, "LoadBalancerConfiguration")):
    for scheme in ("internet-facing", "Internal", "", None):

        @mutation("PLANE_RES_01", f"{kind} with the scheme {scheme!r}", source=source)
        def _(objects, kind=kind, scheme=scheme):
            find(objects, kind)["spec"]["scheme"] = scheme

    @mutation("PLANE_RES_01", f"{kind} without a scheme", source=source)
    def _(objects, kind=kind):
        del find(objects, kind)["spec"]["scheme"]


@mutation("PLANE_RES_01", "a class without parameters", source="auto-mode")
def _(objects):
    del find(objects, "IngressClass")["spec"]["parameters"]


@mutation("PLANE_RES_01", "an annotation that says otherwise than the class", source="auto-mode")
def _(objects):
    notes(objects)[f"{ALB}scheme"] = "internet-facing"


@mutation("PLANE_RES_01", "public, with a reason of a blank")
def _(objects):
    notes(objects).update({f"{ALB}scheme": "internet-facing", "inference-plane/public-because": "           "})


@mutation("PLANE_RES_01", "a Gateway without its configuration", source=GATEWAY)
def _(objects):
    del find(objects, "Gateway")["spec"]["infrastructure"]


@mutation("PLANE_RES_01", "the configuration in another namespace", source=GATEWAY)
def _(objects):
    find(objects, "LoadBalancerConfiguration")["metadata"]["namespace"] = "default"


for blocks in ("0.0.0.0/0", "10.0.0.0/8, 0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1,0.0.0.0/1", "everybody", ""):

    @mutation("PLANE_RES_02", f"from {blocks or 'nobody'}")
    def _(objects, blocks=blocks):
        notes(objects)[f"{ALB}inbound-cidrs"] = blocks


@mutation("PLANE_RES_02", "no sources")
def _(objects):
    del notes(objects)[f"{ALB}inbound-cidrs"]


@mutation("PLANE_RES_02", "a prefix list and no ranges", source=GATEWAY)
def _(objects):
    del find(objects, "LoadBalancerConfiguration")["spec"]["sourceRanges"]


@mutation("PLANE_RES_02", "ranges of everybody beside a prefix list", source=GATEWAY)
def _(objects):
    find(objects, "LoadBalancerConfiguration")["spec"]["sourceRanges"] = ["0.0.0.0/0"]


@mutation("PLANE_RES_02", "neither ranges nor prefix lists", source=GATEWAY)
def _(objects):
    find(objects, "LoadBalancerConfiguration")["spec"]["securityGroupPrefixes"] = []


def backend(objects):
    return find(objects, "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]


@mutation("PLANE_RES_03", "an engine behind the load balancer")
def _(objects):
    backend(objects).update(name="clinical-summary", port={"name": "http"})


@mutation("PLANE_RES_03", "a path of its own for an engine")
def _(objects):
    paths = find(objects, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    service = {"name": "clinical-summary", "port": {"number": 8000}}
    paths.append({"path": "/direct", "pathType": "Prefix", "backend": {"service": service}})


@mutation("PLANE_RES_03", "the status port for clients")
def _(objects):
    backend(objects)["port"] = {"name": "status"}


@mutation("PLANE_RES_03", "a backend by default")
def _(objects):
    service = {"name": "clinical-summary", "port": {"number": 8000}}
    find(objects, "Ingress")["spec"]["defaultBackend"] = {"service": service}


@mutation("PLANE_RES_03", "an action that redirects")
def _(objects):
    notes(objects)[f"{ALB}actions.router"] = '{"type":"redirect","redirectConfig":{"host":"example.com"}}'


@mutation("PLANE_RES_03", "a group that others add rules to")
def _(objects):
    notes(objects)[f"{ALB}group.name"] = "shared"


@mutation("PLANE_RES_03", "the router's Service selects engines")
def _(objects):
    find(objects, "Service", "router")["spec"]["selector"] = {"app.kubernetes.io/component": "engine"}


@mutation("PLANE_RES_03", "another Ingress for an engine")
def _(objects):
    service = {"name": "appeals-draft", "port": {"number": 8000}}
    path = {"path": "/", "pathType": "Prefix", "backend": {"service": service}}
    objects.append(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": "other", "namespace": "inference"},
            "spec": {"rules": [{"http": {"paths": [path]}}]},
        }
    )


def route(objects):
    return find(objects, "HTTPRoute")["spec"]["rules"][0]


@mutation("PLANE_RES_03", "a Gateway's route mirrors", source=GATEWAY)
def _(objects):
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "other", "port": 80}}}
    route(objects)["filters"] = [mirror]


@mutation("PLANE_RES_03", "a Gateway's route to another namespace", source=GATEWAY)
def _(objects):
    route(objects)["backendRefs"][0]["namespace"] = "elsewhere"


@mutation("PLANE_RES_03", "a Gateway's route with a second backend", source=GATEWAY)
def _(objects):
    route(objects)["backendRefs"].append({"name": "other", "port": 443})


@mutation("PLANE_RES_03", "routes of every namespace", source=GATEWAY)
def _(objects):
    find(objects, "Gateway")["spec"]["listeners"][0]["allowedRoutes"]["namespaces"]["from"] = "All"


for name, change in {
    "a load balancer of its own": {"type": "LoadBalancer"},
    "a port of each node": {"type": "NodePort"},
    "the name of another host": {"type": "ExternalName", "externalName": "models.example.com"},
    "addresses of its own": {"externalIPs": ["198.51.100.7"]},
    "no selector": {"selector": None},
}.items():

    @mutation("PLANE_RES_04", f"an engine's Service with {name}")
    def _(objects, change=change):
        find(objects, "Service", "appeals-draft")["spec"].update(change)


@mutation("PLANE_RES_04", "endpoints by hand")
def _(objects):
    objects.append(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "x",
                "namespace": "inference",
                "labels": {"kubernetes.io/service-name": "appeals-draft"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["198.51.100.7"]}],
        }
    )


@mutation("PLANE_RES_04", "one Service over routers and engines")
def _(objects):
    find(objects, "Service", "appeals-draft")["spec"]["selector"] = {"app.kubernetes.io/part-of": "inference-plane"}
