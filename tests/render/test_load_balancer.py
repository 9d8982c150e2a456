"""The load balancer and the router in one render: what each waits for, checks and drains fits the other."""

import json
import pathlib

import pytest
import yaml

from inference_plane import helm
from inference_plane.manifests import check
from inference_plane.onehost.router import containers

BASE = yaml.safe_load((pathlib.Path(__file__).parent / "bases" / "everything.yaml").read_text())


def render(router, balancer=None):
    values = BASE | {"router": BASE["router"] | router, "alb-ingress": BASE["alb-ingress"] | {"router": balancer or {}}}
    return helm.template("inference-plane", values=values)


def seconds(text):
    return float(text.removesuffix("s"))


@pytest.mark.parametrize(("timeout", "drain", "port"), [("600s", 60, 8081), ("4000s", 4000, 9901)])
def test_the_load_balancer_fits_the_router_that_is_rendered_beside_it(timeout, drain, port):
    router = {"requestTimeout": timeout, "drainSeconds": drain, "status": {"port": port}}
    rendered = render(router, {"requestTimeout": timeout, "drainSeconds": drain, "statusPort": port})
    assert [str(finding) for finding in check(rendered.objects)] == []

    annotations = rendered.find("Ingress", "router")["metadata"]["annotations"]
    attributes = dict(
        pair.split("=", 1)
        for kind in ("load-balancer", "target-group")
        for pair in annotations[f"alb.ingress.kubernetes.io/{kind}-attributes"].split(",")
    )
    idle = int(attributes["idle_timeout.timeout_seconds"])

    pod = rendered.find("Deployment", "router")["spec"]["template"]["spec"]
    bootstrap = json.loads(rendered.find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])
    listeners = {listener["name"]: listener for listener in bootstrap["static_resources"]["listeners"]}
    (http,) = listeners["plane"]["filter_chains"][0]["filters"]
    manager = http["typed_config"]

    assert idle >= seconds(manager["stream_idle_timeout"]) == seconds(timeout)
    assert seconds(manager["common_http_protocol_options"]["idle_timeout"]) > idle
    delay = int(attributes["deregistration_delay.timeout_seconds"])
    arguments = containers(rendered)["drain"]["args"]
    assert delay <= int(arguments[arguments.index("--limit") + 1])
    assert pod["terminationGracePeriodSeconds"] > delay

    checked = int(annotations["alb.ingress.kubernetes.io/healthcheck-port"])
    assert checked == listeners["status"]["address"]["socket_address"]["port_value"]
    routes = listeners["status"]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]
    paths = [route["match"]["path"] for route in routes["routes"]]
    assert annotations["alb.ingress.kubernetes.io/healthcheck-path"] in paths
    (ingress,) = rendered.of_kind("Ingress")
    route = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"]["name"]
    policy = rendered.find("NetworkPolicy", "router")["spec"]["ingress"]
    (subnets,) = [rule for rule in policy if any("ipBlock" in peer for peer in rule["from"])]
    service = {p["name"]: p["targetPort"] for p in rendered.find("Service", "router")["spec"]["ports"]}
    assert {port["port"] for port in subnets["ports"]} == {service[route], checked}


DIFFERENT = {
    "requestTimeout": (
        {"requestTimeout": "900s"},
        "- alb-ingress.router.requestTimeout: 600s, while router.requestTimeout is 900s. The load balancer is made "
        "for a router that is not there. It would cut answers, or hold what the router has given up. Set 900s in "
        "both places.",
    ),
    "drainSeconds": (
        {"drainSeconds": 30},
        "- alb-ingress.router.drainSeconds: 600, while router.drainSeconds is 30. The load balancer is made for a "
        "router that is not there. Requests on a leaving router would be cut, or held for nothing. Set 30 in both "
        "places.",
    ),
    "statusPort": (
        {"status": {"port": 9901}},
        "- alb-ingress.router.statusPort: 8081, while router.status.port is 9901. The load balancer is made for a "
        "router that is not there. It would check a port where nobody answers, and send nothing. Set 9901 in both "
        "places.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("router", "message"), DIFFERENT.values(), ids=DIFFERENT)
def test_the_umbrella_refuses_a_load_balancer_for_another_router(router, message):
    with pytest.raises(helm.HelmError) as error:
        render(router)
    assert "values of alb-ingress and the router do not fit together:\n" in str(error.value)
    assert message in str(error.value)


def test_nothing_is_compared_with_a_router_of_another_release():
    assert render({"requestTimeout": "900s", "enabled": False}).find("Ingress", "router")
