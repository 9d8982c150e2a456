"""Breaks by somebody who had not read the rules: other fields, spellings and objects with the same effect."""

import base64
import copy
import json

from inference_plane.compliance.mutations import config, document, find, mutation

OUTSIDE = "198.51.100.7"
TYPES = "type.googleapis.com/envoy."


def pod(objects, name="clinical-summary"):
    """The pod that a Deployment makes."""
    return find(objects, "Deployment", name)["spec"]["template"]["spec"]


def vllm(objects, name="clinical-summary"):
    return next(c for c in pod(objects, name)["containers"] if c["name"] == "vllm")


def envoy(objects):
    return pod(objects, "router")["initContainers"][0]


def policy(objects, name="clinical-summary"):
    return find(objects, "NetworkPolicy", name)["spec"]


def another(objects, kind, name, new, **spec):
    """A copy of an object under a new name, its spec changed."""
    made = copy.deepcopy(find(objects, kind, name))
    made["metadata"]["name"] = new
    made.setdefault("spec", {}).update(spec)
    objects.append(made)
    return made


def cluster(clusters, name):
    return next(c for c in clusters["resources"] if c["name"] == name)


def routes(file, model="clinical-summary"):
    tree = file["resources"][0]["virtual_hosts"][0]["matcher"]["matcher_tree"]
    return tree["exact_match_map"]["map"][model]["action"]["typed_config"]["routes"]


def listener(bootstrap, port):
    return next(
        one
        for one in bootstrap["static_resources"]["listeners"]
        if one["address"]["socket_address"]["port_value"] == port
    )


def manager(bootstrap, port=8080):
    return listener(bootstrap, port)["filter_chains"][0]["filters"][0]["typed_config"]


def filters(bootstrap):
    return {one["name"]: one for one in manager(bootstrap)["http_filters"]}


def grant(objects, name):
    return document(find(objects, "iam.services.k8s.aws/Role", name)["spec"]["inlinePolicies"], "inference-plane")


# Networks.


@mutation("PLANE_RES_41", "the Internet in two halves")
def _(objects):
    policy(objects)["egress"].append(
        {"to": [{"ipBlock": {"cidr": "0.0.0.0/1"}}, {"ipBlock": {"cidr": "128.0.0.0/1"}}], "ports": [{"port": 443}]}
    )


@mutation("PLANE_RES_41", "the Internet by IPv6")
def _(objects):
    policy(objects)["egress"].append({"to": [{"ipBlock": {"cidr": "::/0"}}], "ports": [{"port": 443}]})


@mutation("PLANE_RES_41", "another policy that selects engines by an expression")
def _(objects):
    another(
        objects,
        "NetworkPolicy",
        "headroom",
        "updates",
        podSelector={"matchExpressions": [{"key": "inference-plane/model", "operator": "Exists"}]},
        policyTypes=["Egress"],
        egress=[{"to": [{"ipBlock": {"cidr": OUTSIDE + "/32"}}], "ports": [{"port": 443}]}],
    )


@mutation("PLANE_RES_41", "another policy that selects every pod, with exceptions that leave the Internet")
def _(objects):
    block = {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}
    another(
        objects,
        "NetworkPolicy",
        "headroom",
        "default",
        podSelector={},
        policyTypes=["Egress"],
        egress=[{"to": [{"ipBlock": block}], "ports": [{"port": 443}]}],
    )


@mutation("PLANE_RES_42", "callers from every namespace without a label that none has")
def _(objects):
    peer = {"namespaceSelector": {"matchExpressions": [{"key": "restricted", "operator": "DoesNotExist"}]}}
    policy(objects)["ingress"].append({"from": [peer], "ports": [{"port": 8000}]})


@mutation("PLANE_RES_41", "a range of ports to the identity provider's addresses")
def _(objects):
    policy(objects, "router")["egress"][-1]["ports"] = [{"protocol": "TCP", "port": 443, "endPort": 65535}]


@mutation("PLANE_RES_40", "a policy that no longer governs what the engine sends")
def _(objects):
    spec = policy(objects)
    del spec["egress"]
    spec["policyTypes"] = ["Ingress"]


@mutation("PLANE_RES_40", "a policy that selects every version but the one that runs")
def _(objects):
    policy(objects)["podSelector"]["matchExpressions"] = [
        {"key": "inference-plane/version", "operator": "NotIn", "values": ["v7"]}
    ]


@mutation("PLANE_RES_40", "the engine's policy in another namespace")
def _(objects):
    find(objects, "NetworkPolicy", "clinical-summary")["metadata"]["namespace"] = "inference-batch"


@mutation("PLANE_RES_41", "an empty list of peers")
def _(objects):
    policy(objects)["egress"].append({"to": [], "ports": [{"protocol": "TCP", "port": 443}]})


@mutation("PLANE_RES_41", "the instance's own credentials")
def _(objects):
    policy(objects)["egress"].append({"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"port": 80}]})


@mutation("PLANE_RES_41", "names asked of anybody")
def _(objects):
    policy(objects)["egress"][0]["to"].append({"ipBlock": {"cidr": "0.0.0.0/0"}})


@mutation("PLANE_RES_41", "names asked of any pod")
def _(objects):
    policy(objects)["egress"][0]["to"] = [{"namespaceSelector": {}}]


@mutation("PLANE_LP_13", "a pod that takes the router's labels and account")
def _(objects):
    made = copy.deepcopy(find(objects, "Pod", "router-test"))
    made["metadata"]["name"] = "report"
    made["metadata"].pop("annotations", None)
    made["metadata"]["labels"] = {"app.kubernetes.io/name": "router", "app.kubernetes.io/component": "router"}
    made["spec"]["serviceAccountName"] = "router"
    objects.append(made)


# Services.


@mutation("PLANE_RES_04", "outside addresses on a Service")
def _(objects):
    find(objects, "Service", "router")["spec"]["externalIPs"] = [OUTSIDE]


@mutation("PLANE_RES_04", "an engine's Service is a name elsewhere")
def _(objects):
    spec = find(objects, "Service", "clinical-summary")["spec"]
    del spec["selector"], spec["clusterIP"]
    spec |= {"type": "ExternalName", "externalName": "vllm.partner.example"}


@mutation("PLANE_RES_04", "an engine's Service without a selector")
def _(objects):
    del find(objects, "Service", "clinical-summary")["spec"]["selector"]


@mutation("PLANE_RES_04", "an engine's Service selects the engines of every model")
def _(objects):
    del find(objects, "Service", "clinical-summary")["spec"]["selector"]["app.kubernetes.io/name"]


@mutation("PLANE_RES_04", "the router's Service on every node")
def _(objects):
    find(objects, "Service", "router")["spec"]["type"] = "NodePort"


@mutation("PLANE_RES_04", "a second Service, by a load balancer, straight to the engine")
def _(objects):
    made = another(objects, "Service", "clinical-summary", "clinical-summary-direct", type="LoadBalancer")
    del made["spec"]["clusterIP"]


# Ingress and Gateway.


@mutation("PLANE_RES_03", "a load balancer shared with another team")
def _(objects):
    find(objects, "Ingress", "router")["metadata"]["annotations"]["alb.ingress.kubernetes.io/group.name"] = "public"


@mutation("PLANE_RES_83", "a plain listener beside the one with TLS")
def _(objects):
    find(objects, "Ingress", "router")["metadata"]["annotations"]["alb.ingress.kubernetes.io/listen-ports"] = (
        '[{"HTTP": 80}, {"HTTPS": 443}]'
    )


@mutation("PLANE_RES_03", "an action that forwards to somebody's target group")
def _(objects):
    ingress = find(objects, "Ingress", "router")
    group = "arn:aws:elasticloadbalancing:eu-central-1:999999999999:targetgroup/partner/0123456789abcdef"
    ingress["metadata"]["annotations"]["alb.ingress.kubernetes.io/actions.partner"] = json.dumps(
        {"type": "forward", "targetGroupARN": group}
    )
    path = {"path": "/v1/chat", "pathType": "Prefix"}
    path["backend"] = {"service": {"name": "partner", "port": {"name": "use-annotation"}}}
    ingress["spec"]["rules"][0]["http"]["paths"].insert(0, path)


@mutation("PLANE_RES_03", "the action of the router's own name forwards elsewhere")
def _(objects):
    ingress = find(objects, "Ingress", "router")
    ingress["metadata"]["annotations"]["alb.ingress.kubernetes.io/actions.router"] = json.dumps(
        {"type": "redirect", "redirectConfig": {"host": "partner.example", "statusCode": "HTTP_302"}}
    )
    ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"] = {"name": "use-annotation"}


@mutation("PLANE_RES_03", "a path straight to an engine")
def _(objects):
    paths = find(objects, "Ingress", "router")["spec"]["rules"][0]["http"]["paths"]
    backend = {"service": {"name": "clinical-summary", "port": {"number": 8000}}}
    paths.append({"path": "/direct", "pathType": "Prefix", "backend": backend})


@mutation("PLANE_RES_03", "requests of no rule go to an engine")
def _(objects):
    find(objects, "Ingress", "router")["spec"]["defaultBackend"] = {
        "service": {"name": "clinical-summary", "port": {"number": 8000}}
    }


@mutation("PLANE_RES_02", "callers from the Internet in two halves")
def _(objects):
    find(objects, "Ingress", "router")["metadata"]["annotations"]["alb.ingress.kubernetes.io/inbound-cidrs"] = (
        "0.0.0.0/1,128.0.0.0/1"
    )


@mutation("PLANE_RES_83", "an Ingress of another class beside it")
def _(objects):
    made = another(objects, "Ingress", "router", "router-public", ingressClassName="nginx")
    made["metadata"]["annotations"] = {"nginx.ingress.kubernetes.io/backend-protocol": "HTTPS"}


@mutation("PLANE_RES_03", "a route that mirrors", source="alb-ingress/ci/gateway")
def _(objects):
    find(objects, "HTTPRoute", "router")["spec"]["rules"][0]["filters"] = [
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "audit", "namespace": "audit", "port": 443}}}
    ]


@mutation("PLANE_RES_03", "a route that sends callers elsewhere", source="alb-ingress/ci/gateway")
def _(objects):
    find(objects, "HTTPRoute", "router")["spec"]["rules"][0]["filters"] = [
        {"type": "RequestRedirect", "requestRedirect": {"hostname": "partner.example", "statusCode": 302}}
    ]


@mutation("PLANE_RES_03", "a listener open to routes of all namespaces", source="alb-ingress/ci/gateway")
def _(objects):
    find(objects, "Gateway", "router")["spec"]["listeners"][0]["allowedRoutes"]["namespaces"] = {"from": "All"}


@mutation("PLANE_RES_83", "callers from everywhere by the class's parameters", source="auto-mode")
def _(objects):
    find(objects, "IngressClassParams")["spec"]["inboundCIDRs"] = ["0.0.0.0/0"]


@mutation("PLANE_RES_83", "a class that every namespace may use", source="auto-mode")
def _(objects):
    find(objects, "IngressClassParams")["spec"]["namespaceSelector"] = {}


# Certificates, metrics, scaling.


@mutation("PLANE_RES_80", "an engine's certificate is an authority")
def _(objects):
    spec = find(objects, "Certificate", "clinical-summary")["spec"]
    spec |= {"isCA": True, "usages": [*spec["usages"], "cert sign"]}


@mutation("PLANE_RES_80", "a certificate for another service's name")
def _(objects):
    find(objects, "Certificate", "case-search")["spec"]["dnsNames"].append(
        "clinical-summary.inference.svc.cluster.local"
    )


@mutation("PLANE_RES_80", "a certificate for every service's name")
def _(objects):
    find(objects, "Certificate", "case-search")["spec"]["dnsNames"].append("*.inference.svc.cluster.local")


@mutation("PLANE_RES_80", "another Certificate of an engine's name")
def _(objects):
    made = another(objects, "Certificate", "clinical-summary", "report", secretName="report-tls")
    made["metadata"]["namespace"] = "reports"


@mutation("PLANE_RES_80", "a private key that a controller copies to other namespaces")
def _(objects):
    notes = {"reflector.v1.k8s.emberstack.com/reflection-auto-enabled": "true"}
    notes["reflector.v1.k8s.emberstack.com/reflection-allowed"] = "true"
    find(objects, "Certificate", "router")["spec"]["secretTemplate"] = {"annotations": notes}


@mutation("PLANE_RES_81", "Prometheus sends a private key as a bearer token by somebody's proxy")
def _(objects):
    find(objects, "PodMonitor", "router")["spec"]["podMetricsEndpoints"][0] |= {
        "proxyUrl": f"http://{OUTSIDE}:3128",
        "authorization": {"credentials": {"name": "router-tls", "key": "tls.key"}},
    }


@mutation("PLANE_RES_82", "replicas by a number from outside")
def _(objects):
    find(objects, "ScaledObject", "clinical-summary")["spec"]["triggers"][0]["metadata"]["url"] = (
        "https://metrics.partner.example/load"
    )


# Engines.


@mutation("PLANE_RES_64", "weights from another endpoint")
def _(objects):
    vllm(objects)["env"].append({"name": "AWS_ENDPOINT_URL_S3", "value": "https://s3.partner.example"})


@mutation("PLANE_RES_64", "a proxy")
def _(objects):
    vllm(objects)["env"].append({"name": "https_proxy", "value": f"http://{OUTSIDE}:3128"})


@mutation("PLANE_RES_66", "a library loaded first")
def _(objects):
    vllm(objects)["env"].append({"name": "LD_PRELOAD", "value": "/cache/audit.so"})


@mutation("PLANE_RES_66", "Python from a folder that can be written")
def _(objects):
    next(e for e in vllm(objects)["env"] if e["name"] == "PYTHONPATH")["value"] = "/cache/lib:/opt/plane"


@mutation("PLANE_RES_63", "answers in the engine's log")
def _(objects):
    vllm(objects)["env"].append({"name": "VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "value": "1"})


@mutation("PLANE_RES_66", "an engine's routes for developers")
def _(objects):
    vllm(objects)["env"].append({"name": "VLLM_SERVER_DEV_MODE", "value": "1"})


@mutation("PLANE_RES_65", "variables from a ConfigMap that nobody renders")
def _(objects):
    vllm(objects)["envFrom"] = [{"configMapRef": {"name": "engine-tuning", "optional": True}}]


@mutation("PLANE_RES_65", "variables by the command")
def _(objects):
    vllm(objects)["command"] = ["env", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE=1", "vllm"]


@mutation("PLANE_RES_63", "requests in the engine's log, spelt with underscores")
def _(objects):
    vllm(objects)["args"].append("--enable_log_requests")


@mutation("PLANE_RES_66", "flags from a file")
def _(objects):
    vllm(objects)["args"].append("--config=/cache/vllm.yaml")


@mutation("PLANE_RES_66", "events of the cache, which hold the prompt's tokens")
def _(objects):
    vllm(objects)["args"].append(
        '--kv-events-config={"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557"}'
    )


@mutation("PLANE_RES_66", "a cache handed to another engine")
def _(objects):
    vllm(objects)["args"] += ["--kv-transfer-config", '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}']


@mutation("PLANE_RES_66", "tools by a server elsewhere")
def _(objects):
    vllm(objects)["args"].append("--tool-server=mcp.partner.example:443")


@mutation("PLANE_RES_66", "files of the engine as media")
def _(objects):
    vllm(objects)["args"] += ["--allowed-local-media-path", "/"]


@mutation("PLANE_RES_61", "code that comes with the weights")
def _(objects):
    vllm(objects)["args"].append("--trust_remote_code")


@mutation("PLANE_RES_64", "traces of requests")
def _(objects):
    vllm(objects)["args"].append(f"--otlp-traces-endpoint=http://{OUTSIDE}:4317")


@mutation("PLANE_RES_65", "one more middleware")
def _(objects):
    vllm(objects)["args"].append("--middleware=audit.Middleware")


@mutation("PLANE_RES_67", "a middleware that prints the body")
def _(objects):
    files = find(objects, "ConfigMap", "plane-vllm-files")["data"]
    files["plane_middleware.py"] += "\nimport audit\n"


@mutation("PLANE_RES_70", "KServe's own log of payloads", source="kserve/ci/standard")
def _(objects):
    find(objects, "InferenceService", "appeal-letters")["spec"]["predictor"]["logger"] = {
        "mode": "all",
        "url": "http://collector.audit.svc:80",
    }


@mutation("PLANE_RES_70", "a transformer before the engine", source="kserve/ci/standard")
def _(objects):
    find(objects, "InferenceService", "appeal-letters")["spec"]["transformer"] = {
        "containers": [{"name": "kserve-container", "image": "docker.io/vllm/vllm-openai:v0.32.0"}]
    }


@mutation("PLANE_RES_70", "KServe exposes the engine", source="kserve/ci/standard")
def _(objects):
    del find(objects, "InferenceService", "appeal-letters")["metadata"]["labels"]["networking.kserve.io/visibility"]


# Pods.


@mutation("PLANE_RES_65", "a command when the engine starts")
def _(objects):
    vllm(objects)["lifecycle"]["postStart"] = {"exec": {"command": ["sh", "-c", "python3 /cache/audit.py &"]}}


@mutation("PLANE_RES_65", "a second container of the engine's image with its certificate")
def _(objects):
    made = copy.deepcopy(pod(objects)["initContainers"][1])
    made |= {"name": "report", "command": ["python3", "-c", "import http.server"], "args": []}
    made.pop("ports")
    made["volumeMounts"] += [{"name": "tls", "mountPath": "/etc/inference-plane/tls"}]
    made.pop("restartPolicy")
    pod(objects)["containers"].append(made)


@mutation("PLANE_LP_24", "one space of processes")
def _(objects):
    pod(objects)["shareProcessNamespace"] = True


@mutation("PLANE_LP_24", "another address for the identity provider")
def _(objects):
    pod(objects, "router")["hostAliases"] = [{"ip": OUTSIDE, "hostnames": ["payer.okta.example"]}]


@mutation("PLANE_RES_46", "names from a server elsewhere")
def _(objects):
    pod(objects).update(dnsPolicy="None", dnsConfig={"nameservers": ["198.51.100.53"]})


@mutation("PLANE_LP_13", "the router's account by the field's old name")
def _(objects):
    spec = pod(objects)
    del spec["serviceAccountName"]
    spec["serviceAccount"] = "router"


@mutation(
    "PLANE_LP_12",
    "a token for AWS by a volume",
    lives="the token says who the pod's own account is, no more; a role says itself which accounts it trusts",
)
def _(objects):
    token = {"serviceAccountToken": {"audience": "sts.amazonaws.com", "path": "token"}}
    pod(objects)["volumes"].append({"name": "token", "projected": {"sources": [token]}})
    vllm(objects)["volumeMounts"].append({"name": "token", "mountPath": "/var/run/aws"})


@mutation("PLANE_LP_24", "the engine on a port of its node")
def _(objects):
    vllm(objects)["ports"][0]["hostPort"] = 8000


@mutation("PLANE_LP_25", "a cache on somebody's file server")
def _(objects):
    volumes = pod(objects)["volumes"]
    cache = next(v for v in volumes if v["name"] == "cache")
    del cache["emptyDir"]
    cache["nfs"] = {"server": OUTSIDE, "path": "/"}


@mutation("PLANE_LP_25", "Python from an image that is mounted")
def _(objects):
    pod(objects)["volumes"].append({"name": "lib", "image": {"reference": "docker.io/partner/lib:1"}})
    vllm(objects)["volumeMounts"].append({"name": "lib", "mountPath": "/opt/plane/audit", "readOnly": True})


@mutation("PLANE_RES_65", "a secret of a driver")
def _(objects):
    driver = {"driver": "secrets-store.csi.k8s.io", "readOnly": True}
    driver["volumeAttributes"] = {"secretProviderClass": "payer-root"}
    pod(objects)["volumes"].append({"name": "lib", "csi": driver})


@mutation("PLANE_LP_23", "the label that Bottlerocket gives its own agents")
def _(objects):
    vllm(objects)["securityContext"]["seLinuxOptions"] = {"type": "super_t"}


@mutation("PLANE_LP_23", "AppArmor lets everything be")
def _(objects):
    vllm(objects)["securityContext"]["appArmorProfile"] = {"type": "Unconfined"}


@mutation("PLANE_LP_60", "before the node's own pods")
def _(objects):
    pod(objects)["priorityClassName"] = "system-node-critical"


@mutation(
    "PLANE_LP_28",
    "an image of another registry by its digest",
    lives="which registries are trusted stands in no manifest; admission, or a reader of the diff, must know",
)
def _(objects):
    vllm(objects)["image"] = "docker.io/partner/vllm@sha256:" + "0" * 64


@mutation("PLANE_RES_12", "the router's credentials from another address")
def _(objects):
    envoy(objects).setdefault("env", []).append(
        {"name": "AWS_CONTAINER_CREDENTIALS_FULL_URI", "value": f"http://{OUTSIDE}/credentials"}
    )


@mutation("PLANE_RES_12", "the router logs headers and bodies")
def _(objects):
    envoy(objects)["args"] += ["--component-log-level", "http:trace,lua:debug"]


@mutation("PLANE_RES_12", "more configuration by a flag")
def _(objects):
    envoy(objects)["args"] += ["--config-yaml", '{"admin":{"address":{"socket_address":{"address":"0.0.0.0"}}}}']


@mutation("PLANE_RES_17", "files of the router under each other's names")
def _(objects):
    volume = next(v for v in pod(objects, "router")["volumes"] if v["name"] == "bootstrap")["configMap"]
    keys = find(objects, "ConfigMap", "router-bootstrap")["data"]
    swapped = {"identity.lua": "restore.lua"}
    volume["items"] = [{"key": swapped.get(key, key), "path": key} for key in keys]


@mutation("PLANE_RES_10", "a file of the router from another ConfigMap, by subPath")
def _(objects):
    pod(objects, "router")["volumes"].append({"name": "tuning", "configMap": {"name": "router-tuning"}})
    envoy(objects)["volumeMounts"].append(
        {
            "name": "tuning",
            "mountPath": "/etc/inference-plane/bootstrap/identity.lua",
            "subPath": "identity.lua",
            "readOnly": True,
        }
    )


@mutation("PLANE_RES_10", "routes overlaid by one more source of the volume")
def _(objects):
    volume = next(v for v in pod(objects, "router")["volumes"] if v["name"] == "xds")["projected"]
    volume["sources"].append({"configMap": {"name": "router-tuning", "optional": True}})


@mutation("PLANE_RES_10", "routes as binary data that mirror")
def _(objects):
    held = find(objects, "ConfigMap", "router-routes")
    with config(objects, "router-routes", "routes.json") as file:
        one = next(r for r in routes(file) if "route" in r)
        one["route"]["request_mirror_policies"] = [{"cluster": "bedrock/appeals-draft"}]
    held["binaryData"] = {"routes.json": base64.b64encode(held["data"].pop("routes.json").encode()).decode()}


# Envoy.


@mutation("PLANE_RES_13", "a route by a header that the caller writes")
def _(objects):
    with config(objects, "router-routes", "routes.json") as file:
        one = next(r for r in routes(file) if "route" in r)
        del one["route"]["cluster_specifier_plugin"]
        one["route"]["cluster_header"] = "x-cluster"


@mutation("PLANE_RES_13", "a record's route to another model's Bedrock")
def _(objects):
    with config(objects, "router-routes", "routes.json") as file:
        one = next(r for r in routes(file) if "route" in r)
        del one["route"]["cluster_specifier_plugin"]
        one["route"]["weighted_clusters"] = {"clusters": [{"name": "bedrock/appeals-draft", "weight": 1}]}


@mutation("PLANE_RES_13", "a route without its RBAC")
def _(objects):
    with config(objects, "router-routes", "routes.json") as file:
        file["resources"][0]["virtual_hosts"][0]["typed_per_filter_config"] = {
            "envoy.filters.http.rbac": {"@type": TYPES + "extensions.filters.http.rbac.v3.RBACPerRoute"}
        }


@mutation("PLANE_RES_13", "a filter switched off by the routes")
def _(objects):
    with config(objects, "router-routes", "routes.json") as file:
        file["resources"][0]["typed_per_filter_config"]["envoy.filters.http.jwt_authn"] = {
            "@type": TYPES + "config.route.v3.FilterConfig",
            "disabled": True,
        }


@mutation("PLANE_RES_13", "a filter switched off where it stands")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        filters(file)["envoy.filters.http.rbac"]["disabled"] = True


@mutation("PLANE_RES_13", "callers without a token")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        for rule in filters(file)["envoy.filters.http.jwt_authn"]["typed_config"]["rules"]:
            rule["requires"] = {"allow_missing_or_failed": {}}


@mutation("PLANE_RES_10", "routes from a server elsewhere")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        manager(file)["rds"]["config_source"] = {
            "api_config_source": {
                "api_type": "REST",
                "cluster_names": ["jwks"],
                "refresh_delay": "5s",
                "transport_api_version": "V3",
            },
            "resource_api_version": "V3",
        }


@mutation("PLANE_RES_13", "Envoy's administration on the network")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        file["admin"]["address"] = {"socket_address": {"address": "0.0.0.0", "port_value": 9901}}


@mutation("PLANE_RES_14", "Envoy's administration on the port of its status")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        manager(file, 8081)["route_config"]["virtual_hosts"][0]["routes"].append(
            {"match": {"prefix": "/"}, "route": {"cluster": "admin"}}
        )


@mutation("PLANE_RES_13", "one more listener straight to an engine")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        proxy = {"@type": TYPES + "extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "direct"}
        file["static_resources"]["listeners"].append(
            {
                "name": "direct",
                "address": {"socket_address": {"address": "0.0.0.0", "port_value": 8083}},
                "filter_chains": [
                    {
                        "filters": [
                            {
                                "name": "envoy.filters.network.tcp_proxy",
                                "typed_config": {**proxy, "cluster": "fleet/clinical-summary"},
                            }
                        ]
                    }
                ],
            }
        )


@mutation("PLANE_RES_46", "names resolved by a server elsewhere")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        file["typed_dns_resolver_config"]["typed_config"]["resolvers"] = [
            {"socket_address": {"address": "9.9.9.9", "port_value": 53}}
        ]


@mutation("PLANE_RES_13", "names of one cluster resolved by a server elsewhere")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        cluster(file, "fleet/clinical-summary")["cluster_type"]["typed_config"]["typed_dns_resolver_config"] = {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {
                "@type": TYPES + "extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [{"socket_address": {"address": "9.9.9.9", "port_value": 53}}],
            },
        }


@mutation("PLANE_RES_13", "statistics to an address elsewhere")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        file["stats_sinks"] = [
            {
                "name": "envoy.stat_sinks.statsd",
                "typed_config": {
                    "@type": TYPES + "config.metrics.v3.StatsdSink",
                    "address": {"socket_address": {"address": OUTSIDE, "port_value": 8125}},
                },
            }
        ]


@mutation("PLANE_RES_13", "an access log by a service elsewhere")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        kind = "extensions.access_loggers.grpc.v3."
        manager(file)["access_log"].append(
            {
                "name": "envoy.access_loggers.http_grpc",
                "typed_config": {
                    "@type": TYPES + kind + "HttpGrpcAccessLogConfig",
                    "common_config": {
                        "log_name": "x",
                        "transport_api_version": "V3",
                        "grpc_service": {"envoy_grpc": {"cluster_name": "jwks"}},
                    },
                },
            }
        )


@mutation("PLANE_RES_13", "keys of TLS in a file")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        tls = cluster(file, "fleet/clinical-summary")["transport_socket"]["typed_config"]
        tls["common_tls_context"]["key_log"] = {"path": "run/keys"}


@mutation("PLANE_RES_13", "what the callers' sockets read and write in a file")
def _(objects):
    with config(objects, "router-bootstrap", "bootstrap.json") as file:
        chain = listener(file, 8080)["filter_chains"][0]
        sink = {"format": "JSON_BODY_AS_STRING", "file_per_tap": {"path_prefix": "run/tap"}}
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tap",
            "typed_config": {
                "@type": TYPES + "extensions.transport_sockets.tap.v3.Tap",
                "common_config": {"static_config": {"match": {"any_match": True}, "output_config": {"sinks": [sink]}}},
                "transport_socket": chain["transport_socket"],
            },
        }


@mutation("PLANE_RES_36", "every engine by the loopback's plain socket")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        cluster(file, "fleet/clinical-summary")["transport_socket_matches"][0]["match"] = {}


@mutation("PLANE_RES_13", "any certificate of an engine")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        tls = cluster(file, "fleet/clinical-summary")["transport_socket"]["typed_config"]["common_tls_context"]
        tls["combined_validation_context"]["default_validation_context"]["trust_chain_verification"] = (
            "ACCEPT_UNTRUSTED"
        )


@mutation("PLANE_RES_36", "any name that ends like an engine's")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        tls = cluster(file, "fleet/clinical-summary")["transport_socket"]["typed_config"]["common_tls_context"]
        names = tls["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"]
        names[0]["matcher"] = {"suffix": ".cluster.local"}


@mutation("PLANE_RES_13", "one more address of an engine")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        one = cluster(file, "fleet/clinical-summary")["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        one["additional_addresses"] = [{"address": {"socket_address": {"address": OUTSIDE, "port_value": 8000}}}]


@mutation("PLANE_RES_30", "the address that a header names")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        one = cluster(file, "fleet/clinical-summary")
        del one["cluster_type"], one["load_assignment"]
        one |= {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}
        one["original_dst_lb_config"] = {"use_http_header": True}


@mutation("PLANE_RES_13", "a script of the cluster's own, written in place")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        options = cluster(file, "fleet/appeals-draft")["typed_extension_protocol_options"]
        lua = next(iter(options.values()))["http_filters"][0]["typed_config"]
        lua["default_source_code"] = {
            "inline_string": "function envoy_on_request(h) h:logErr(h:body():getBytes(0, 1000)) end"
        }


@mutation("PLANE_RES_17", "a script of the ConfigMap that logs bodies")
def _(objects):
    find(objects, "ConfigMap", "router-bootstrap")["data"]["restore.lua"] += (
        "\nfunction envoy_on_request(h) h:logErr(h:body():getBytes(0, 1000)) end\n"
    )


@mutation("PLANE_RES_35", "Bedrock in somebody's account")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        options = cluster(file, "bedrock/appeals-draft")["typed_extension_protocol_options"]
        signing = next(f for f in next(iter(options.values()))["http_filters"] if "signing" in f["name"])
        signing["typed_config"]["credential_provider"]["assume_role_credential_provider"] = {
            "role_arn": "arn:aws:iam::999999999999:role/partner"
        }


@mutation("PLANE_RES_32", "a model that may answer from anywhere")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        options = cluster(file, "bedrock/appeals-draft")["typed_extension_protocol_options"]
        header = next(iter(options.values()))["http_filters"][0]["typed_config"]["mutations"]["request_mutations"][0]
        header["append"]["header"]["value"] = "global.anthropic.claude-sonnet-4-5-20250929-v1:0"


@mutation("PLANE_RES_33", "Bedrock by a proxy")
def _(objects):
    with config(objects, "router-clusters", "clusters.json") as file:
        one = cluster(file, "bedrock/appeals-draft")
        one["transport_socket"] = {
            "name": "envoy.transport_sockets.http_11_proxy",
            "typed_config": {
                "@type": TYPES + "extensions.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport",
                "default_proxy_address": {"socket_address": {"address": OUTSIDE, "port_value": 3128}},
                "transport_socket": one["transport_socket"],
            },
        }


# IAM and accounts.


@mutation("PLANE_LP_47", "an endpoint that is asked for only where there is one")
def _(objects):
    with grant(objects, "router") as file:
        wanted = file["Statement"][-1]["Condition"]["StringEquals"]
        file["Statement"][-1]["Condition"] = {"StringEqualsIfExists": wanted}


@mutation("PLANE_LP_54", "an endpoint that holds for no value too")
def _(objects):
    with grant(objects, "clinical-summary") as file:
        wanted = file["Statement"][0]["Condition"]["StringEquals"]
        file["Statement"][0]["Condition"] = {"ForAllValues:StringEquals": wanted}


@mutation("PLANE_LP_54", "one more statement that asks for nothing")
def _(objects):
    with grant(objects, "clinical-summary") as file:
        again = copy.deepcopy(file["Statement"][0]) | {"Sid": "ReadWeightsAgain"}
        del again["Condition"]
        file["Statement"].append(again)


@mutation("PLANE_LP_42", "an engine may write beside its weights")
def _(objects):
    with grant(objects, "clinical-summary") as file:
        file["Statement"][0]["Action"].append("s3:PutObject")


@mutation("PLANE_LP_43", "a resource with one letter open")
def _(objects):
    with grant(objects, "clinical-summary") as file:
        file["Statement"][0]["Resource"] = ["arn:aws:s3:::payer-models-eu-central-1/c?*"]


@mutation("PLANE_LP_52", "managed policies beside the one that is judged")
def _(objects):
    find(objects, "iam.services.k8s.aws/Role", "router")["spec"]["policies"] = [
        "arn:aws:iam::aws:policy/AmazonBedrockFullAccess"
    ]


@mutation("PLANE_LP_41", "a second policy in line")
def _(objects):
    find(objects, "iam.services.k8s.aws/Role", "clinical-summary")["spec"]["inlinePolicies"]["more"] = json.dumps(
        {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}}
    )


@mutation("PLANE_LP_50", "one more service may take the role")
def _(objects):
    with document(find(objects, "iam.services.k8s.aws/Role", "router")["spec"], "assumeRolePolicyDocument") as file:
        file["Statement"][0]["Principal"]["Service"] = ["pods.eks.amazonaws.com", "ec2.amazonaws.com"]


@mutation("PLANE_LP_50", "an account may take the role")
def _(objects):
    with document(find(objects, "iam.services.k8s.aws/Role", "router")["spec"], "assumeRolePolicyDocument") as file:
        file["Statement"].append(
            {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": ["999999999999"]}}
        )


@mutation("PLANE_LP_53", "a role of another account by its association", source="inference-plane/ci/regulated")
def _(objects):
    find(objects, "PodIdentityAssociation", "clinical-summary")["spec"]["targetRoleARN"] = (
        "arn:aws:iam::999999999999:role/partner"
    )


@mutation("PLANE_LP_53", "an engine's association with the router's role", source="inference-plane/ci/regulated")
def _(objects):
    find(objects, "PodIdentityAssociation", "records")["spec"]["roleRef"]["from"]["name"] = "router"


@mutation("PLANE_LP_53", "a session without the tags that conditions ask for", source="inference-plane/ci/regulated")
def _(objects):
    find(objects, "PodIdentityAssociation", "records")["spec"]["disableSessionTags"] = True


@mutation("PLANE_LP_15", "an account with a role of another account", source="router/ci/irsa")
def _(objects):
    find(objects, "ServiceAccount", "router")["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] = (
        "arn:aws:iam::999999999999:role/partner"
    )


@mutation("PLANE_LP_15", "another account with the router's role", source="router/ci/irsa")
def _(objects):
    role = find(objects, "ServiceAccount", "router")["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
    find(objects, "ServiceAccount", "router-policy")["metadata"]["annotations"] = {"eks.amazonaws.com/role-arn": role}


@mutation("PLANE_LP_07", "every account may do what the policy service may")
def _(objects):
    find(objects, "RoleBinding", "router-policy")["subjects"].append(
        {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts"}
    )


@mutation("PLANE_LP_08", "a binding to a role of the cluster")
def _(objects):
    find(objects, "RoleBinding", "router-policy")["roleRef"] |= {"kind": "ClusterRole", "name": "edit"}


@mutation("PLANE_LP_02", "containers added to running pods")
def _(objects):
    find(objects, "rbac.authorization.k8s.io/Role", "router-policy")["rules"].append(
        {"apiGroups": [""], "resources": ["pods/ephemeralcontainers"], "verbs": ["patch"]}
    )


# Nodes.


@mutation("PLANE_LP_37", "Bottlerocket's container for administrators")
def _(objects):
    find(objects, "EC2NodeClass", "inference-l40s")["spec"]["userData"] = (
        find(objects, "EC2NodeClass", "inference-l40s")["spec"].get("userData") or ""
    ) + "\n[settings.host-containers.admin]\nenabled = true\n"


@mutation("PLANE_RES_84", "every pod's names from a server elsewhere")
def _(objects):
    find(objects, "EC2NodeClass", "inference-l40s")["spec"]["kubelet"] = {"clusterDNS": ["198.51.100.53"]}


@mutation(
    "PLANE_LP_35",
    "a profile instead of a role",
    lives="ec2.instanceProfile is a value; what the profile may do stands in IAM alone, and pods cannot take it",
)
def _(objects):
    spec = find(objects, "EC2NodeClass", "inference-l40s")["spec"]
    del spec["role"]
    spec["instanceProfile"] = "administrators"


@mutation(
    "PLANE_LP_37",
    "an image of a machine by its id",
    lives="an id is exact, as the rule asks; who made the image stands in EC2 alone",
)
def _(objects):
    find(objects, "EC2NodeClass", "inference-l40s")["spec"].update(
        amiFamily="Bottlerocket", amiSelectorTerms=[{"id": "ami-0123456789abcdef0"}]
    )


@mutation("PLANE_RES_50", "one more term of subnets")
def _(objects):
    find(objects, "EC2NodeClass", "inference-l40s")["spec"]["subnetSelectorTerms"].append(
        {"tags": {"kubernetes.io/role/elb": "1"}}
    )


@mutation("PLANE_RES_53", "a pool of a class that nobody renders")
def _(objects):
    find(objects, "NodePool", "inference-l40s-interactive")["spec"]["template"]["spec"]["nodeClassRef"]["name"] = (
        "default"
    )


@mutation("PLANE_RES_52", "a disk made from somebody's snapshot")
def _(objects):
    find(objects, "EC2NodeClass", "inference-l40s")["spec"]["blockDeviceMappings"][-1]["ebs"] |= {
        "snapshotID": "snap-0123456789abcdef0"
    }
