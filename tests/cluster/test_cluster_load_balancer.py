"""The real AWS Load Balancer Controller on the rendered Ingress: the load balancer that AWS' stand-in then has."""

import re

import pytest
from balancer_harness import PROD, agree, balancer_of, differences, refusals, values_in
from cluster_harness import Release

from inference_plane import tools
from inference_plane.cluster import loadbalancers
from inference_plane.cluster.aws import Account
from inference_plane.cluster.client import Refused
from inference_plane.cluster.diagnose import condition
from inference_plane.environments import chart_values
from inference_plane.helm import HelmError
from inference_plane.manifests import crds

REGION = PROD["global"]["aws"]["region"]


@pytest.fixture(scope="module")
def account():
    with Account(REGION) as account:
        yield account


@pytest.fixture(scope="module")
def controller(cluster, account):
    if cluster.embedded is None:
        pytest.skip("the controller runs beside an embedded control plane; --kubeconfig names another cluster")
    network = account.make_network({"kubernetes.io/role/internal-elb": "1"}, {"for": "nodes"})
    with loadbalancers.running(
        cluster.embedded, account, "inference-prod", network["vpc"], loadbalancers.GATEWAY
    ) as running:
        cluster.logs.append(running.process.log_path)
        yield network


@pytest.fixture(scope="module")
def values(account, controller):
    return values_in(account, controller)


@pytest.fixture(scope="module")
def plane(cluster, values):
    release = Release(cluster)
    cluster.make_namespaces(["inference"])
    cluster.make_nodes(values)
    release.upgrade("inference-plane", values)
    yield release
    if release.there:
        unprotect(release, values)
    release.remove()


def unprotect(release, values):
    """What NOTES say to do before one uninstalls."""
    balancer = values["alb-ingress"] | {"deletionProtection": False}
    # An Ingress that is to be deleted goes now, so that there is nothing to wait for.
    release.upgrade("inference-plane", values | {"alb-ingress": balancer}, wait=False)


@pytest.fixture(scope="module")
def balancer(cluster, account, plane):
    """The one load balancer that the production environment has, once its Ingress names it."""
    name = balancer_of(cluster, "Ingress", "router")
    (balancer,) = account.client("elbv2").describe_load_balancers()["LoadBalancers"]
    assert balancer["DNSName"] == name
    return balancer


def attributes(found):
    return {entry["Key"]: entry["Value"] for entry in found["Attributes"]}


def test_it_is_the_version_whose_definitions_the_charts_are_checked_against():
    pinned = [module.version for module in crds.modules() if module.module == loadbalancers.MODULE]
    assert pinned == [tools.version("lbc", loadbalancers.MODULE)]


def test_it_is_what_the_values_say_in_every_point(account, balancer, values):
    """All at once, by what the tests of faults ask too; the tests below say the main points with their figures."""
    assert differences(values, account, balancer["DNSName"]) == []


def test_it_is_internal_and_stands_where_the_values_say(balancer, values):
    assert (balancer["Scheme"], balancer["Type"]) == ("internal", "application")
    subnets = {zone["SubnetId"] for zone in balancer["AvailabilityZones"]}
    assert subnets == set(values["alb-ingress"]["subnets"]["ids"])


def test_it_waits_as_long_as_the_router_does_and_is_not_deleted_by_mistake(account, balancer):
    found = attributes(
        account.client("elbv2").describe_load_balancer_attributes(LoadBalancerArn=balancer["LoadBalancerArn"])
    )
    logs = PROD["alb-ingress"]["accessLogs"]
    expected = {
        "idle_timeout.timeout_seconds": "600",
        "client_keep_alive.seconds": "3600",
        "deletion_protection.enabled": "true",
        "access_logs.s3.enabled": "true",
        "access_logs.s3.bucket": logs["bucket"],
        "access_logs.s3.prefix": logs["prefix"],
        "routing.http.drop_invalid_header_fields.enabled": "true",
    }
    assert {key: found.get(key) for key in expected} == expected


def test_it_takes_https_alone_and_sends_all_to_the_router(account, balancer, values):
    elb = account.client("elbv2")
    (listener,) = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    assert (listener["Protocol"], listener["Port"]) == ("HTTPS", 443)
    assert listener["SslPolicy"] == "ELBSecurityPolicy-TLS13-1-2-Res-PQ-2025-09"
    assert [c["CertificateArn"] for c in listener["Certificates"]] == values["alb-ingress"]["tls"]["certificateArns"]
    # Whoever names another host gets 404 of the load balancer.
    (default,) = listener["DefaultActions"]
    assert default["FixedResponseConfig"]["StatusCode"] == "404"
    rules = elb.describe_rules(ListenerArn=listener["ListenerArn"])["Rules"]
    (rule,) = [rule for rule in rules if not rule["IsDefault"]]
    conditions = {c["Field"]: c for c in rule["Conditions"]}
    assert conditions["host-header"]["HostHeaderConfig"]["Values"] == PROD["alb-ingress"]["hosts"]
    (group,) = elb.describe_target_groups()["TargetGroups"]
    (action,) = rule["Actions"]
    assert [g["TargetGroupArn"] for g in action["ForwardConfig"]["TargetGroups"]] == [group["TargetGroupArn"]]


def test_its_targets_are_the_router_s_pods_and_are_asked_for_readiness(cluster, account, balancer):
    elb = account.client("elbv2")
    (group,) = elb.describe_target_groups()["TargetGroups"]
    assert (group["TargetType"], group["Protocol"]) == ("ip", "HTTPS")
    check = {key: value for key, value in group.items() if key.startswith(("HealthCheck", "Healthy", "Unhealthy"))}
    assert check | {"Matcher": group["Matcher"]["HttpCode"]} == {
        "HealthCheckEnabled": True, "HealthCheckPort": "8081", "HealthCheckProtocol": "HTTP",
        "HealthCheckPath": "/ready", "HealthCheckIntervalSeconds": 10, "HealthCheckTimeoutSeconds": 5,
        "HealthyThresholdCount": 2, "UnhealthyThresholdCount": 2, "Matcher": "200",
    }  # fmt: skip
    found = attributes(elb.describe_target_group_attributes(TargetGroupArn=group["TargetGroupArn"]))
    assert found["deregistration_delay.timeout_seconds"] == "600"
    assert found["load_balancing.algorithm.type"] == "least_outstanding_requests"

    def targets():
        health = elb.describe_target_health(TargetGroupArn=group["TargetGroupArn"])["TargetHealthDescriptions"]
        return {(entry["Target"]["Id"], entry["Target"]["Port"]) for entry in health}

    def pods():
        found = cluster.client.list("v1", "Pod", "inference", labelSelector="app.kubernetes.io/name=router")
        return {(pod["status"]["podIP"], 8080) for pod in found}

    cluster.wait("the targets are the router's pods", lambda: targets() == pods() or print(targets(), pods()))
    assert len(pods()) == PROD["router"]["replicas"]


def test_only_the_networks_of_the_values_may_connect(account, balancer):
    ec2 = account.client("ec2")
    groups = ec2.describe_security_groups(GroupIds=balancer["SecurityGroups"])["SecurityGroups"]
    inbound = {
        (permission["FromPort"], permission["ToPort"], network["CidrIp"])
        for group in groups
        for permission in group["IpPermissions"]
        for network in permission["IpRanges"]
    }
    assert inbound == {(443, 443, cidr) for cidr in PROD["alb-ingress"]["inbound"]["cidrs"]}


def test_the_firewall_is_in_front_of_it(account, balancer, values):
    found = account.client("wafv2").get_web_acl_for_resource(ResourceArn=balancer["LoadBalancerArn"])
    assert found["WebACL"]["ARN"] == values["alb-ingress"]["wafAclArn"]


def test_its_tags_say_whose_it_is(account, balancer):
    (described,) = account.client("elbv2").describe_tags(ResourceArns=[balancer["LoadBalancerArn"]])["TagDescriptions"]
    tags = {tag["Key"]: tag["Value"] for tag in described["Tags"]}
    assert tags["elbv2.k8s.aws/cluster"] == "inference-prod"
    assert PROD["alb-ingress"]["tags"].items() <= tags.items()


def test_the_controller_s_webhook_is_asked(cluster, balancer):
    """So that a rendered Ingress that it refuses would not have been installed."""
    ingress = cluster.client.get("networking.k8s.io/v1", "Ingress", "router", "inference")
    ingress["metadata"] = {"name": "second"}
    ingress["spec"]["ingressClassName"] = "of-nobody"
    with pytest.raises(Refused, match="vingress.elbv2.k8s.aws.*of-nobody"):
        cluster.client.create(ingress, "inference", dryRun="All")


def test_by_the_gateway_api_it_is_the_same(cluster, account, plane, values):
    """A release of this chart alone beside the plane: Gateway, route and configurations become the same in AWS."""
    ours = values["alb-ingress"] | {"mode": "gateway", "deletionProtection": False}
    values = values | {"alb-ingress": ours}
    edge = Release(cluster, "edge")
    edge.upgrade("alb-ingress", chart_values(values, "alb-ingress"), wait=False)
    try:
        assert {o["kind"] for o in edge.manifest()} == {
            "Gateway", "HTTPRoute", "LoadBalancerConfiguration", "TargetGroupConfiguration"
        }  # fmt: skip
        name = balancer_of(cluster, "Gateway", "router")
        agree(cluster, account, values, name)
        gateway = cluster.client.get("gateway.networking.k8s.io/v1", "Gateway", "router", "inference")
        assert condition(gateway, "Accepted") == "True"  # Programmed comes with a look at AWS two minutes later
    finally:
        edge.remove()
    gone = lambda: (
        name not in {b["DNSName"] for b in account.client("elbv2").describe_load_balancers()["LoadBalancers"]}
    )
    cluster.wait("it is gone", gone)


#: Annotation -> the points in which the load balancer is another one without it. Where the controller's own default is
#: what the chart writes (scheme, thresholds, success codes), or it finds the same by itself (subnets by their tags,
#: certificates by their names), nothing is lost with it.
MISSPELT = {
    "backend-protocol": {"targets"},
    "healthcheck-interval-seconds": {"health check"},
    "healthcheck-path": {"health check"},
    "healthcheck-port": {"health check"},
    "healthcheck-protocol": {"health check"},
    "inbound-cidrs": {"who may connect"},
    "load-balancer-attributes": {
        "client_keep_alive.seconds",
        "idle_timeout.timeout_seconds",
        "routing.http.drop_invalid_header_fields.enabled",
        "routing.http.desync_mitigation_mode",
        "access_logs.s3.enabled",
        "access_logs.s3.bucket",
        "access_logs.s3.prefix",
    },
    "ssl-policy": {"ssl policy"},
    "tags": {"tags"},
    "target-group-attributes": {"deregistration_delay.timeout_seconds", "load_balancing.algorithm.type"},
    "wafv2-acl-arn": {"firewall"},
}

PREFIX = "alb.ingress.kubernetes.io/"

#: Fault -> the annotation, what is wrong in it, and the controller's words; None is an annotation that is not there.
FAULTS = {
    "missing target-type": ("target-type", None, "When using Instance targets, your service be must of type"),
    "target-type of another kind": ("target-type", "pods", "unknown targetType: pods"),
    "a subnet that is not there": ("subnets", "subnet-00000000000000000", "subnet-00000000000000000"),
    "an attribute that AWS has not": ("load-balancer-attributes", "idle_time=600", "Key idle_time not valid"),
    "a listener of no protocol": (
        "listen-ports",
        '[{"TLS": 443}]',
        "listen protocol must be within [HTTP, HTTPS]: TLS",
    ),
}


@pytest.fixture(scope="module")
def copies(cluster, values, balancer):
    """The rendered Ingress again and again, each with one annotation changed; they are made all at once."""
    rendered = cluster.client.get("networking.k8s.io/v1", "Ingress", "router", "inference")
    right = {k: v for k, v in rendered["metadata"]["annotations"].items() if k.startswith(PREFIX)}
    attributes = f"{PREFIX}load-balancer-attributes"
    right[attributes] = right[attributes].replace("protection.enabled=true", "protection.enabled=false")
    made = {}
    for name in MISSPELT:
        wrong = {k: v for k, v in right.items() if k != PREFIX + name}
        made[name] = wrong | {f"{PREFIX}{name[:-1]}": right[PREFIX + name]}
    for fault, (name, value, _) in FAULTS.items():
        wrong = {k: v for k, v in right.items() if k != PREFIX + name}
        made[fault] = wrong | ({} if value is None else {PREFIX + name: value})
    names = {what: f"copy-{number}" for number, what in enumerate(made)}
    for what, annotations in made.items():
        meta = {"name": names[what], "annotations": annotations}
        o = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta, "spec": rendered["spec"]}
        cluster.client.create(o, "inference")
    yield names
    for name in names.values():
        # What could not be made cannot be unmade either, with annotations that nobody understands.
        meta = {"metadata": {"annotations": right}}
        cluster.client.patch("networking.k8s.io/v1", "Ingress", name, meta, "inference")
        cluster.client.delete("networking.k8s.io/v1", "Ingress", name, "inference")
    left = lambda: [
        o for o in cluster.client.list("networking.k8s.io/v1", "Ingress") if "copy-" in o["metadata"]["name"]
    ]
    cluster.wait("the copies are gone", lambda: not left(), 120)


@pytest.mark.parametrize("annotation", MISSPELT)
def test_an_annotation_that_is_misspelt_is_found(cluster, account, values, copies, annotation):
    """The controller ignores what it does not know, and so does its webhook; the comparison with the values does not."""
    name = balancer_of(cluster, "Ingress", copies[annotation])
    wanted = values | {"alb-ingress": values["alb-ingress"] | {"deletionProtection": False}}
    agree(cluster, account, wanted, name, MISSPELT[annotation])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_only_the_controller_can_find(cluster, copies, fault):
    """It never has a load balancer, and the check of the ordinary tests says why in the controller's words."""
    *_, words = FAULTS[fault]
    cluster.wait("the controller says why", lambda: refusals(cluster, "Ingress", copies[fault]), 120)
    with pytest.raises(AssertionError, match=re.escape(words)):
        balancer_of(cluster, "Ingress", copies[fault], seconds=1)


def names(account):
    return {b["DNSName"] for b in account.client("elbv2").describe_load_balancers()["LoadBalancers"]}


def target_groups(account, balancer):
    found = account.client("elbv2").describe_target_groups()["TargetGroups"]
    return [group for group in found if balancer["LoadBalancerArn"] in group["LoadBalancerArns"]]


def test_it_outlives_a_mistake_and_goes_as_the_notes_say(cluster, account, plane, balancer, values):
    (group,) = target_groups(account, balancer)
    cluster.client.delete("networking.k8s.io/v1", "Ingress", "router", "inference")

    log = next(file for file in cluster.logs if file.name == "lbc.log")
    refusal = "deletion_protection is enabled, cannot delete the ingress: router"
    cluster.wait("the controller refuses to delete it", lambda: refusal in log.read_text())
    assert balancer["DNSName"] in names(account)
    unprotect(plane, values)
    plane.remove()
    cluster.wait("it is gone", lambda: balancer["DNSName"] not in names(account))
    left = account.client("elbv2").describe_target_groups()["TargetGroups"]
    assert group["TargetGroupArn"] not in {g["TargetGroupArn"] for g in left}


def test_uninstalled_too_early_it_stays_until_somebody_says_that_it_may_go(cluster, account, plane, balancer, values):
    """As UPGRADING.md says it, after the test before: with a new release and a new load balancer."""
    plane.upgrade("inference-plane", values, wait=False)
    name = balancer_of(cluster, "Ingress", "router")
    with pytest.raises(HelmError, match="router"):
        plane.helm("uninstall", plane.name, "--wait", "--timeout", "10s")
    ingress = cluster.client.get("networking.k8s.io/v1", "Ingress", "router", "inference")
    assert "deletionTimestamp" in ingress["metadata"] and name in names(account)
    attributes = f"{PREFIX}load-balancer-attributes"
    said = ingress["metadata"]["annotations"][attributes].replace("protection.enabled=true", "protection.enabled=false")
    patch = {"metadata": {"annotations": {attributes: said}}}
    cluster.client.patch("networking.k8s.io/v1", "Ingress", "router", patch, "inference")
    cluster.wait("it is gone", lambda: name not in names(account))


def test_moto_had_an_answer_to_every_call(account, balancer):
    assert account.unanswered() == []
    print(sorted({f"{call.service} {call.action}" for call in account.calls}))
