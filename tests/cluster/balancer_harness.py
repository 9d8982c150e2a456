"""The load balancer that the values want, and the one that AWS' stand-in has: both as the same flat facts."""

import contextlib
import copy

import yaml

from inference_plane import checkout

PROD = yaml.safe_load((checkout.VALUES / "prod.yaml").read_text())


def values_in(account, network, environment=PROD):
    """An environment's values with the names that things have in this account."""
    certificate = account.client("acm").request_certificate(DomainName="inference.payer.example")["CertificateArn"]
    visible = {"SampledRequestsEnabled": False, "CloudWatchMetricsEnabled": False, "MetricName": "inference"}
    acl = account.client("wafv2").create_web_acl(
        Name="inference", Scope="REGIONAL", DefaultAction={"Allow": {}}, Rules=[], VisibilityConfig=visible
    )["Summary"]["ARN"]
    values = copy.deepcopy(environment)
    values["alb-ingress"] |= {"subnets": {"ids": network["subnets"]}, "wafAclArn": acl}
    values["alb-ingress"]["tls"] = {"certificateArns": [certificate]}
    return values


def intended(values):
    """What an environment's values say, and the chart's README where they say nothing."""
    ours, router = values["alb-ingress"], values["router"]
    seconds = int(router.get("requestTimeout", "600s").removesuffix("s"))
    logs = ours.get("accessLogs", {})
    return {
        "scheme": "internal",
        "subnets": sorted(ours["subnets"]["ids"]),
        "listeners": ["HTTPS:443"],
        "ssl policy": "ELBSecurityPolicy-TLS13-1-2-Res-PQ-2025-09",
        "certificates": ours["tls"]["certificateArns"],
        "hosts": ours["hosts"],
        "targets": f"ip HTTPS {values['router'].get('port', 8080)}",
        "health check": "HTTP /ready 8081 every 10 s for 5 s, 2 good, 2 bad, 200",
        "who may connect": sorted(f"443 {cidr}" for cidr in ours["inbound"]["cidrs"]),
        "firewall": ours["wafAclArn"],
        "tags": dict(sorted(ours["tags"].items())),
        "idle_timeout.timeout_seconds": str(seconds),
        "client_keep_alive.seconds": "3600",
        "deletion_protection.enabled": "true" if ours.get("deletionProtection", True) else "false",
        "routing.http.drop_invalid_header_fields.enabled": "true",
        "routing.http.desync_mitigation_mode": "strictest",
        "access_logs.s3.enabled": "true" if logs else "false",
        **({"access_logs.s3.bucket": logs["bucket"], "access_logs.s3.prefix": logs["prefix"]} if logs else {}),
        "deregistration_delay.timeout_seconds": str(router.get("drainSeconds", 600)),
        "load_balancing.algorithm.type": "least_outstanding_requests",
        "stickiness.enabled": "false",
    }


def held(account, name):
    """What the account has under a load balancer's DNS name, as `intended` says it; None where there is none."""
    elb, ec2 = account.client("elbv2"), account.client("ec2")
    found = [b for b in elb.describe_load_balancers()["LoadBalancers"] if b["DNSName"] == name]
    if not found:
        return None
    (balancer,) = found
    arn = balancer["LoadBalancerArn"]
    listeners = elb.describe_listeners(LoadBalancerArn=arn)["Listeners"]
    rules = [rule for listener in listeners for rule in _rules(elb, listener)]
    groups = elb.describe_target_groups(LoadBalancerArn=arn)["TargetGroups"]
    attributes = elb.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
    for group in groups:
        attributes += elb.describe_target_group_attributes(TargetGroupArn=group["TargetGroupArn"])["Attributes"]
    permissions = [
        permission
        for group in ec2.describe_security_groups(GroupIds=balancer["SecurityGroups"])["SecurityGroups"]
        for permission in group["IpPermissions"]
    ]
    (tags,) = elb.describe_tags(ResourceArns=[arn])["TagDescriptions"]
    return {
        "scheme": balancer["Scheme"],
        "subnets": sorted(zone["SubnetId"] for zone in balancer["AvailabilityZones"]),
        "listeners": [f"{listener['Protocol']}:{listener['Port']}" for listener in listeners],
        "ssl policy": ", ".join(listener.get("SslPolicy", "") for listener in listeners),
        "certificates": [c["CertificateArn"] for listener in listeners for c in listener.get("Certificates", ())],
        "hosts": [host for rule in rules for host in _hosts(rule)],
        "targets": ", ".join(f"{g['TargetType']} {g['Protocol']} {g['Port']}" for g in groups),
        "health check": ", ".join(map(_health, groups)),
        "who may connect": sorted(f"{p['FromPort']} {r['CidrIp']}" for p in permissions for r in p["IpRanges"]),
        "firewall": _firewall(account, arn),
        "tags": {t["Key"]: t["Value"] for t in tags["Tags"] if "k8s.aws" not in t["Key"]},
        **{attribute["Key"]: attribute["Value"] for attribute in attributes},
    }


def _rules(elb, listener):
    return [r for r in elb.describe_rules(ListenerArn=listener["ListenerArn"])["Rules"] if not r["IsDefault"]]


def _hosts(rule):
    return [v for c in rule["Conditions"] if c["Field"] == "host-header" for v in c["HostHeaderConfig"]["Values"]]


def _health(group):
    where = f"{group['HealthCheckProtocol']} {group['HealthCheckPath']} {group['HealthCheckPort']}"
    when = f"every {group['HealthCheckIntervalSeconds']} s for {group['HealthCheckTimeoutSeconds']} s"
    counts = f"{group['HealthyThresholdCount']} good, {group['UnhealthyThresholdCount']} bad"
    return f"{where} {when}, {counts}, {group['Matcher']['HttpCode']}"


def _firewall(account, arn):
    with contextlib.suppress(account.client("wafv2").exceptions.WAFNonexistentItemException):
        return account.client("wafv2").get_web_acl_for_resource(ResourceArn=arn).get("WebACL", {}).get("ARN", "")
    return ""


def differences(values, account, name):
    """Where the load balancer of this name is another than the values say; in words, and none where it is theirs."""
    found = held(account, name)
    if found is None:
        return [f"there is no load balancer {name}"]
    return [
        f"{what}: the load balancer has {found.get(what)!r}, the values say {said!r}"
        for what, said in intended(values).items()
        if found.get(what) != said
    ]


def agree(cluster, account, values, name, apart=frozenset()):
    """Waits until the load balancer of a name differs from the values in these points alone; else fails with all."""
    last = []

    def settled():
        last[:] = differences(values, account, name)
        return {line.partition(":")[0] for line in last} == apart

    try:
        cluster.wait(f"{name} differs in {sorted(apart) or 'nothing'}", settled)
    except AssertionError as error:
        raise AssertionError("\n".join([*last, str(error)])) from None


def hostname(o):
    """The name of the load balancer of an Ingress or a Gateway; empty where it has none."""
    status = o.get("status", {})
    entries = [*status.get("loadBalancer", {}).get("ingress", ()), *status.get("addresses", ())]
    return next((entry.get("hostname") or entry.get("value") for entry in entries), "")


def balancer_of(cluster, kind, name, seconds=90):
    """The name of the load balancer of an Ingress or a Gateway; fails with what the controller says of it."""
    version = {"Ingress": "networking.k8s.io/v1", "Gateway": "gateway.networking.k8s.io/v1"}[kind]
    try:
        return cluster.wait(
            f"{kind} {name} has a load balancer",
            lambda: hostname(cluster.client.get(version, kind, name, "inference")),
            seconds,
        )
    except AssertionError as error:
        raise AssertionError(f"{refusals(cluster, kind, name)}\n{error}") from None


def refusals(cluster, kind, name):
    """What the controller warns of an object."""
    selector = f"involvedObject.kind={kind},involvedObject.name={name},type=Warning"
    return [event["message"] for event in cluster.client.list("v1", "Event", "inference", fieldSelector=selector)]
