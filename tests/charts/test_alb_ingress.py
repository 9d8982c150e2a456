"""The chart `alb-ingress`: what it refuses, word by word, and that its three forms make the same load balancer."""

import json

import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS, ROOT
from inference_plane.manifests import check_objects

CI = {
    path.stem.removesuffix("-values"): yaml.safe_load(path.read_text())
    for path in sorted((CHARTS / "alb-ingress" / "ci").glob("*-values.yaml"))
}
SUFFIXES = set((ROOT / "tests/data/lbc/ingress-annotation-suffixes.txt").read_text().split())
PREFIX = "alb.ingress.kubernetes.io/"

#: https://docs.aws.amazon.com/eks/latest/userguide/auto-configure-alb.html, "Ingress annotations"
NOT_IN_AUTO_MODE = set("group.name waf-acl-id web-acl-id shield-advanced-protection auth-type auth-idp-oidc".split())

IN_LONDON = "arn:aws:acm:eu-west-2:111122223333:certificate/0d2f4a1e-6b7c-4d8e-9f10-2a3b4c5d6e7f"
WAF_IN_LONDON = "arn:aws:wafv2:eu-west-2:111122223333:regional/webacl/w/3ab78708-85b0-49d3-b4e1-7a9615a6613b"


def merged(base, overlay):
    """Values as Helm merges them: maps by key, anything else replaced."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: merged(base.get(key), value) for key, value in overlay.items()}


def render(overlay=None, base="ingress", **options):
    return helm.template("alb-ingress", values=merged(CI[base], overlay or {}), **options)


def annotations(overlay=None, base="ingress"):
    """The annotations of the Ingress for the controller, by suffix."""
    found = render(overlay, base).find("Ingress", "router")["metadata"]["annotations"]
    return {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}


def pairs(text):
    """An annotation of the form k=v,k=v, taken apart as the controller does it."""
    return dict(pair.split("=", 1) for pair in text.split(","))


def listed(attributes):
    """A custom resource's list of key and value."""
    return {attribute["key"]: attribute["value"] for attribute in attributes}


REFUSALS = {
    "the Gateway API in EKS Auto Mode": (
        {"controller": "autoMode", "mode": "gateway"},
        "- mode: gateway, with the controller autoMode. EKS Auto Mode makes load balancers of Ingresses and "
        "Services alone, so nobody would act on a Gateway. Set mode: ingress, or controller: "
        "awsLoadBalancerController.",
    ),
    "subnets chosen twice": (
        {"mode": "gateway", "subnets": {"tags": {"a": ["b"]}}},
        "- subnets: both ids and tags. A load balancer's subnets are chosen in one way. Set one of them to nothing.",
    ),
    "subnets by tags in an annotation": (
        {"subnets": {"ids": [], "tags": {"a": ["b"]}}},
        "- subnets.tags: given, for an Ingress of the AWS Load Balancer Controller. Its annotations choose subnets "
        "by id alone. Set subnets.ids, or the tags in the IngressClassParams of the class.",
    ),
    "the internet without a reason": (
        {"scheme": "internet-facing", "publicBecause": " "},
        "- publicBecause: empty, while scheme is internet-facing. The plane is made for private networks, and the "
        "router asks nobody who they are. Set scheme: internal, or who decided that the internet may reach it, and "
        "why.",
    ),
    "a reason without the internet": (
        {"publicBecause": "once it was"},
        "- publicBecause: given, while scheme is internal. A reader would take the load balancer for public. Set "
        "publicBecause to nothing, or scheme: internet-facing.",
    ),
    "nobody named": (
        {"inbound": {"cidrs": [], "prefixLists": []}},
        "- inbound: neither cidrs nor prefixLists. The controller would let everybody in. Set the CIDRs of the "
        "clients, or the prefix lists of the edge in front.",
    ),
    "everybody": (
        {"inbound": {"cidrs": ["10.0.0.0/8", "0.0.0.0/0"]}},
        "- inbound.cidrs: 0.0.0.0/0 is a large part of all addresses. The router asks nobody who they are, so the "
        "network has to. Set the CIDRs of the clients, or the prefix lists of the edge in front.",
    ),
    "everybody by IPv6": ({"inbound": {"cidrs": ["::/0"]}}, "- inbound.cidrs: ::/0 is a large part of all addresses."),
    "everybody in two halves": (
        {"inbound": {"cidrs": ["0.0.0.0/1", "128.0.0.0/1"]}},
        "- inbound.cidrs: 128.0.0.0/1 is a large part of all addresses.",
    ),
    "a policy that keeps the load balancer out": (
        {"global": {"network": {"albSubnetCidrs": []}}},
        "- global.network.albSubnetCidrs: empty, while network.policies is true. The router's NetworkPolicy would let "
        "neither requests nor health checks of the load balancer in. Set the CIDRs of the load balancer's subnets.",
    ),
    "HTTPS without a certificate": (
        {"tls": {"certificateArns": []}},
        "- tls.certificateArns: empty, while tls.enabled is true. A listener for HTTPS needs a certificate. Set the "
        "ARN of one in AWS Certificate Manager; tls.enabled: false sends prompts in clear text.",
    ),
    "a certificate without HTTPS": (
        {"tls": {"enabled": False}},
        "- tls.certificateArns: given, while tls.enabled is false. Prompts would travel in clear text beside a "
        "certificate that nobody uses. Set tls.enabled: true, or no certificate.",
    ),
    "a certificate of another Region": (
        {"tls": {"certificateArns": [IN_LONDON]}},
        f"- tls.certificateArns: {IN_LONDON} is in eu-west-2, while global.aws.region is eu-central-1. A load "
        "balancer takes what is in its own Region alone. Set the ARN of one in the Region, or global.aws.region.",
    ),
    "a firewall of another Region": (
        {"wafAclArn": WAF_IN_LONDON},
        f"- wafAclArn: {WAF_IN_LONDON} is in eu-west-2, while global.aws.region is eu-central-1. A load balancer "
        "takes what is in its own Region alone. Set the ARN of one in the Region, or global.aws.region.",
    ),
    "no Region at all": (
        {"global": {"aws": {"region": ""}}},
        "is in eu-central-1, while global.aws.region is empty. A load balancer takes what is in its own Region alone.",
    ),
    "an idle timeout that AWS does not have": (
        {"idleTimeout": "4001s", "router": {"requestTimeout": "4000s"}},
        "- idleTimeout: 4001s is not from 1s to 4000s. AWS has no other idle timeouts. Set at most 4000s, here and "
        "for the router.",
    ),
    "a request that may take longer than AWS waits": (
        {"router": {"requestTimeout": "2h"}},
        "- router.requestTimeout: 7200s is not from 1s to 4000s. AWS has no other idle timeouts. Set at most 4000s, "
        "here and for the router.",
    ),
    "an idle timeout that cuts answers": (
        {"idleTimeout": "60s"},
        "- idleTimeout: 60s is shorter than router.requestTimeout 600s. A long answer that is not streamed says "
        "nothing until it is done, and would be cut. Set null, or at least 600s.",
    ),
    "an idle timeout that outlasts the router's": (
        {"idleTimeout": "11m"},
        "- idleTimeout: 11m is not shorter than the 660s after which the router closes a connection. The load "
        "balancer would send requests on connections that the router is closing, and answer 502. Set null, or less "
        "than 660s.",
    ),
    "a deregistration that outlasts the router": (
        {"targets": {"deregistrationDelaySeconds": 900}},
        "- targets.deregistrationDelaySeconds: 900 is longer than router.drainSeconds 600. The router would be gone "
        "while requests to it are still running. Set null, or at most 600, or a longer drain here and for the "
        "router.",
    ),
    "a slow start that AWS refuses": (
        {"targets": {"slowStartSeconds": 60}},
        "- targets.slowStartSeconds: 60, with the algorithm least_outstanding_requests. AWS refuses the two "
        "together. Set slowStartSeconds: 0, or algorithm: round_robin.",
    ),
    "a health check that lasts until the next": (
        {"healthCheck": {"timeoutSeconds": 10}},
        "- healthCheck.timeoutSeconds: 10 is not below intervalSeconds 10. AWS refuses a check that lasts until the "
        "next one. Set a shorter timeoutSeconds, or a longer intervalSeconds.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("overlay", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses(overlay, message):
    with pytest.raises(helm.HelmError) as error:
        render(overlay)
    assert "values of alb-ingress do not fit together:\n" in str(error.value)
    assert message in str(error.value)


WRONG_FORMS = {
    "a policy without TLS 1.3": ({"tls": {"policy": "ELBSecurityPolicy-2016-08"}}, "at '/tls/policy'"),
    "a certificate that is not ACM's": ({"tls": {"certificateArns": ["payer-cert"]}}, "at '/tls/certificateArns/0'"),
    "the firewall of CloudFront": ({"wafAclArn": WAF_IN_LONDON.replace("regional", "global")}, "at '/wafAclArn'"),
    "a prefix list by name": ({"inbound": {"prefixLists": ["akamai"]}}, "at '/inbound/prefixLists/0'"),
    "a slow start of a second": ({"targets": {"slowStartSeconds": 1}}, "at '/targets/slowStartSeconds'"),
    "a tag that an annotation would take apart": ({"tags": {"a": "b,c=d"}}, "at '/tags/a'"),
    "an unknown key": ({"groupName": "shared"}, "at '': additional properties 'groupName' not allowed"),
}


@pytest.mark.parametrize(("overlay", "message"), WRONG_FORMS.values(), ids=WRONG_FORMS)
def test_the_schema_refuses(overlay, message):
    with pytest.raises(helm.HelmError, match="values don't meet the specifications of the schema") as error:
        render(overlay)
    assert message in str(error.value)


@pytest.mark.parametrize("base", ["ingress", "auto-mode"])
def test_every_annotation_is_one_that_the_controller_knows(base):
    overlay = {"publicBecause": "approved by security, 2026-11-02", "scheme": "internet-facing"}
    rendered = render(overlay, base).find("Ingress", "router")["metadata"]["annotations"]
    assert rendered.pop("inference-plane/public-because") == "approved by security, 2026-11-02"
    assert all(key.startswith(PREFIX) for key in rendered)
    used = {key.removeprefix(PREFIX) for key in rendered}
    assert used <= SUFFIXES
    assert base != "auto-mode" or not used & NOT_IN_AUTO_MODE


def test_the_ingress_says_all_that_the_load_balancer_is():
    found = annotations()
    assert {key: found[key] for key in ("scheme", "target-type", "ssl-policy", "security-group-prefix-lists")} == {
        "scheme": "internal",
        "target-type": "ip",
        "ssl-policy": "ELBSecurityPolicy-TLS13-1-2-Res-PQ-2025-09",
        "security-group-prefix-lists": "pl-0a1b2c3d4e5f60718",
    }
    assert json.loads(found["listen-ports"]) == [{"HTTPS": 443}]
    assert (found["healthcheck-port"], found["healthcheck-path"], found["success-codes"]) == ("8081", "/ready", "200")
    assert found["wafv2-acl-arn"] == CI["ingress"]["wafAclArn"]
    assert found["certificate-arn"] == CI["ingress"]["tls"]["certificateArns"][0]
    assert found["tags"] == "cost-center=4711"
    assert pairs(found["load-balancer-attributes"]) == {
        "idle_timeout.timeout_seconds": "600",
        "client_keep_alive.seconds": "3600",
        "deletion_protection.enabled": "true",
        "routing.http.drop_invalid_header_fields.enabled": "true",
        "routing.http.desync_mitigation_mode": "strictest",
        "routing.http.xff_header_processing.mode": "append",
        "waf.fail_open.enabled": "false",
        "access_logs.s3.enabled": "true",
        "access_logs.s3.bucket": "payer-alb-logs",
        "access_logs.s3.prefix": "inference",
    }
    assert pairs(found["target-group-attributes"]) == {
        "deregistration_delay.timeout_seconds": "600",
        "load_balancing.algorithm.type": "least_outstanding_requests",
        "slow_start.duration_seconds": "0",
        "stickiness.enabled": "false",
    }


def test_the_three_forms_make_the_same_load_balancer():
    overlay = {
        **{key: value for key, value in CI["ingress"].items() if key not in ("mode", "controller", "ingressClassName")},
        "tags": {"a": "b", "cost-center": None},
        "subnets": {
            "ids": ["subnet-0a", "subnet-0b"],
            "tags": {"kubernetes.io/role/internal-elb": None, "inference-plane/alb": None},
        },
        "router": {"requestTimeout": "15m", "drainSeconds": 120},
        "targets": {"algorithm": "round_robin", "slowStartSeconds": 30},
    }  # fmt: skip
    ingress = annotations(overlay)
    gateway, auto = render(overlay, "gateway"), render(overlay, "auto-mode")
    balancer = gateway.find("LoadBalancerConfiguration", "router")["spec"]
    target = gateway.find("TargetGroupConfiguration", "router")["spec"]["defaultConfiguration"]
    parameters = auto.find("IngressClassParams", "inference")["spec"]
    own = annotations(overlay, "auto-mode")

    attributes = pairs(ingress["load-balancer-attributes"])
    assert attributes["idle_timeout.timeout_seconds"] == "900"
    assert attributes == listed(balancer["loadBalancerAttributes"]) == listed(parameters["loadBalancerAttributes"])
    group = pairs(ingress["target-group-attributes"])
    assert (group["deregistration_delay.timeout_seconds"], group["slow_start.duration_seconds"]) == ("120", "30")
    assert group == listed(target["targetGroupAttributes"]) == pairs(own["target-group-attributes"])
    assert ingress["scheme"] == balancer["scheme"] == parameters["scheme"] == "internal"
    subnets = [entry["identifier"] for entry in balancer["loadBalancerSubnets"]]
    assert ingress["subnets"].split(",") == subnets == parameters["subnets"]["ids"] == ["subnet-0a", "subnet-0b"]
    (listener,) = balancer["listenerConfigurations"]
    assert [ingress["certificate-arn"]] == [listener["defaultCertificate"]] == parameters["certificateARNs"]
    assert ingress["ssl-policy"] == listener["sslPolicy"] == own["ssl-policy"]
    assert ingress["inbound-cidrs"].split(",") == balancer["sourceRanges"] == own["inbound-cidrs"].split(",")
    assert ingress["wafv2-acl-arn"] == balancer["wafV2"]["webACL"] == own["wafv2-acl-arn"]
    check = target["healthCheckConfig"]
    for key, suffix in {
        "healthCheckPort": "healthcheck-port", "healthCheckProtocol": "healthcheck-protocol",
        "healthCheckPath": "healthcheck-path", "healthCheckInterval": "healthcheck-interval-seconds",
        "healthCheckTimeout": "healthcheck-timeout-seconds", "healthyThresholdCount": "healthy-threshold-count",
        "unhealthyThresholdCount": "unhealthy-threshold-count",
    }.items():  # fmt: skip
        assert str(check[key]) == ingress[suffix] == own[suffix]
    assert check["matcher"]["httpCode"] == ingress["success-codes"] == own["success-codes"]
    assert pairs(ingress["tags"]) == balancer["tags"] == target["tags"] == listed(parameters["tags"]) == {"a": "b"}


def test_a_gateway_for_prefix_lists_alone_lets_in_no_address():
    """Without sourceRanges the controller opens 0.0.0.0/0 and ::/0 beside the prefix lists."""
    balancer = render(base="gateway").find("LoadBalancerConfiguration", "router")["spec"]
    assert balancer["sourceRanges"] == [] and balancer["securityGroupPrefixes"] == ["pl-0a1b2c3d4e5f60718"]
    assert "inbound-cidrs" not in annotations({"inbound": {"cidrs": []}})


@pytest.mark.parametrize("base", CI)
def test_only_the_router_is_ever_a_backend(base):
    rendered = render(base=base)
    backends = [
        (path["backend"]["service"]["name"], path["backend"]["service"]["port"])
        for ingress in rendered.of_kind("Ingress")
        for rule in ingress["spec"]["rules"]
        for path in rule["http"]["paths"]
    ]
    backends += [
        (backend["name"], backend["port"])
        for route in rendered.of_kind("HTTPRoute")
        for rule in route["spec"]["rules"]
        for backend in rule["backendRefs"]
    ]
    assert backends in ([("router", {"name": "http"})], [("router", {"name": "https"})], [("router", 443)])
    assert {o["spec"]["targetReference"]["name"] for o in rendered.of_kind("TargetGroupConfiguration")} <= {"router"}


def test_auto_mode_brings_its_class_for_the_routers_namespace_alone():
    rendered = render({"global": {"routerNamespace": "edge"}}, "auto-mode")
    assert rendered.find("IngressClass", "inference")["spec"] == {
        "controller": "eks.amazonaws.com/alb",
        "parameters": {"apiGroup": "eks.amazonaws.com", "kind": "IngressClassParams", "name": "inference"},
    }
    spec = rendered.find("IngressClassParams", "inference")["spec"]
    assert spec["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "edge"}}
    assert spec["subnets"] == {"matchTags": [{"key": "kubernetes.io/role/internal-elb", "values": ["1"]}]}
    ingress = rendered.find("Ingress", "router")
    assert (ingress["metadata"]["namespace"], ingress["spec"]["ingressClassName"]) == ("edge", "inference")
    assert not render().of_kind("IngressClass"), "with the AWS Load Balancer Controller the class exists"


@pytest.mark.parametrize(("spec", "words"), [
    ({"certificateArn": ["arn"]}, "'certificateArn': did you mean 'certificateARNs'?"),
    ({"subnets": {"tags": {"a": ["b"]}}}, "unknown field 'tags'"),
    ({"subnets": {"ids": ["subnet-0a"], "matchTags": [{"key": "a", "values": ["b"]}]}}, "exactly one of ids and matchTags"),
])  # fmt: skip
def test_what_auto_modes_parameters_do_not_have_is_found(spec, words):
    parameters = {"apiVersion": "eks.amazonaws.com/v1", "kind": "IngressClassParams", "metadata": {"name": "alb"}}
    assert check_objects([parameters | {"spec": {"scheme": "internal"}}]) == []
    assert words in " ".join(str(finding) for finding in check_objects([parameters | {"spec": spec}]))


def test_clear_text_is_what_is_written_out_and_nothing_else():
    overlay = {"tls": {"enabled": False, "certificateArns": []}}
    found = annotations(overlay)
    assert json.loads(found["listen-ports"]) == [{"HTTP": 80}]
    assert not {"ssl-policy", "certificate-arn"} & set(found)
    gateway = render(overlay, "gateway")
    (listener,) = gateway.find("Gateway", "router")["spec"]["listeners"]
    assert (listener["name"], listener["protocol"], listener["port"]) == ("http", "HTTP", 80)
    assert "listenerConfigurations" not in gateway.find("LoadBalancerConfiguration", "router")["spec"]


def test_a_web_acl_is_left_alone_taken_off_or_set():
    assert "wafv2-acl-arn" not in annotations({"wafAclArn": ""})
    assert annotations({"wafAclArn": "none"})["wafv2-acl-arn"] == "none"


def test_every_host_has_the_same_rule_and_no_host_means_any():
    rules = render({"hosts": ["a.example.com", "*.b.example.com"]}).find("Ingress", "router")["spec"]["rules"]
    assert [rule["host"] for rule in rules] == ["a.example.com", "*.b.example.com"]
    assert rules[0]["http"] == rules[1]["http"]
    (rule,) = render({"hosts": []}).find("Ingress", "router")["spec"]["rules"]
    assert "host" not in rule


def test_notes_say_what_the_router_must_be_and_what_is_risky(tmp_path):
    def notes(overlay):
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(merged(CI["ingress"], overlay)))
        text = helm.run("install", "x", str(CHARTS / "alb-ingress"), "--dry-run=client", "--values", str(file))
        return text.split("NOTES:")[1]

    safe = notes({})
    assert "requestTimeout  600s; the load balancer waits 600 s" in safe and "Risks" not in safe
    risky = notes({
        "tls": {"enabled": False, "certificateArns": []}, "scheme": "internet-facing", "publicBecause": "a pilot",
        "wafAclArn": "", "accessLogs": {"bucket": ""},
    })  # fmt: skip
    for line in ("TLS is off", "The internet may reach the load balancer: a pilot", "No web ACL", "No access logs"):
        assert f"- {line}" in risky
