"""What is killed in the middle of its work, and started again: the production plane becomes what it was to be.

Karpenter and the AWS Load Balancer Controller are the real ones; `amiss` compares what AWS' stand-in has with what the
cluster says, and with the values.
"""

import os
import signal

import pytest
from balancer_harness import PROD, differences, hostname, values_in
from cluster_harness import Release
from karpenter_harness import pods, running, scale

from inference_plane.cluster import karpenter, loadbalancers
from inference_plane.cluster.aws import Account
from inference_plane.cluster.client import Refused
from inference_plane.cluster.diagnose import condition, ready
from inference_plane.helm import KUBERNETES_VERSION

NODES = PROD["karpenter-nodepools"]
INGRESS = ("networking.k8s.io/v1", "Ingress")


@pytest.fixture(scope="module")
def account():
    with Account(PROD["global"]["aws"]["region"]) as account:
        account.publish_bottlerocket(NODES["ec2"]["amiAlias"].partition("@")[2], KUBERNETES_VERSION.rpartition(".")[0])
        account.make_role(NODES["nodeClass"]["role"])
        yield account


@pytest.fixture(scope="module")
def network(account):
    return account.make_network(NODES["nodeClass"]["subnetTags"], NODES["nodeClass"]["securityGroupTags"])


@pytest.fixture(scope="module")
def values(account, network):
    # So that what a test makes can go again; the tests of the load balancer have it on.
    values = values_in(account, network)
    values["alb-ingress"]["deletionProtection"] = False
    return values


@pytest.fixture(scope="module")
def nodes(cluster, account, network):
    """Karpenter, and with it all that brings nodes."""
    if cluster.embedded is None:
        pytest.skip("controllers run beside an embedded control plane; --kubeconfig names another cluster")
    with running(cluster, account, "inference-prod") as found:
        yield found


@pytest.fixture(scope="module")
def balancers(cluster, account, network, nodes):
    with loadbalancers.running(cluster.embedded, account, "inference-prod", network["vpc"]) as controller:
        cluster.logs.append(controller.process.log_path)
        yield controller


@pytest.fixture(scope="module")
def plane(cluster, account, nodes, balancers, values):
    release = Release(cluster)
    cluster.make_namespaces(["inference"])
    release.upgrade("inference-plane", values)
    converges(cluster, account, values)
    yield release
    release.remove()
    cluster.wait(
        "no load balancer is left", lambda: not account.client("elbv2").describe_load_balancers()["LoadBalancers"]
    )


def amiss(cluster, account, values):
    """What is not as the cluster's objects and the values say, in words."""
    found = [
        f"pod {pod['metadata']['name']} is not ready" for pod in cluster.client.list("v1", "Pod") if not ready(pod)
    ]
    for deployment in cluster.client.list("apps/v1", "Deployment"):
        wanted, status = deployment["spec"]["replicas"], deployment["status"]
        if (
            status.get("readyReplicas", 0) != wanted
            or status.get("observedGeneration") != deployment["metadata"]["generation"]
        ):
            found.append(f"Deployment {deployment['metadata']['name']}: {status.get('readyReplicas', 0)} of {wanted}")
    claims = cluster.client.list("karpenter.sh/v1", "NodeClaim")
    found += [f"{c['metadata']['name']} is no node yet" for c in claims if condition(c, "Initialized") != "True"]
    known = {claim.get("status", {}).get("providerID") for claim in claims}
    found += [f"nobody knows the instance {instance}" for instance in karpenter.instances_of(account).keys() - known]
    found += [f"the instance {instance} is gone" for instance in known - karpenter.instances_of(account).keys()]
    elb = account.client("elbv2")
    names = [hostname(ingress) for ingress in cluster.client.list(*INGRESS)]
    for name in names:
        found += differences(values, account, name)
    made = {balancer["DNSName"] for balancer in elb.describe_load_balancers()["LoadBalancers"]}
    found += [f"the load balancer {name} is no Ingress's" for name in made - set(names)]
    if len(elb.describe_target_groups()["TargetGroups"]) != len(names):
        found.append("there are other target groups than load balancers")
    return found


def converges(cluster, account, values, seconds=240):
    left = []

    def nothing():
        left[:] = amiss(cluster, account, values)
        return not left

    try:
        cluster.wait("all is as it should be", nothing, seconds)
    except AssertionError as error:
        raise AssertionError(f"{left}\n{error}") from None


def kill_at(account, controller, action):
    """Kills a controller when AWS has done what it asked for, and before it hears of that."""

    def done(call):
        if call.action == action and call.status == 200:
            account.done = None
            os.kill(controller.process.pid, signal.SIGKILL)

    account.done = done


#: Each replica takes four accelerators, so two more than there are do not fit on the nodes that there are.
WIDE = "appeals-draft"


def known(cluster):
    """Instances that Karpenter has written down."""
    return {c.get("status", {}).get("providerID") for c in cluster.client.list("karpenter.sh/v1", "NodeClaim")}


def test_an_instance_that_karpenter_never_heard_of_does_not_stay(cluster, account, plane, nodes, values):
    """Killed when EC2 has launched the instance and before it answers."""
    kill_at(account, nodes, "CreateFleet")
    scale(cluster, WIDE, len(pods(cluster, WIDE)) + 2)
    cluster.wait("Karpenter is dead", lambda: not nodes.process.running)
    orphans = karpenter.instances_of(account).keys() - known(cluster)
    assert orphans
    nodes.stop()
    nodes.start()
    converges(cluster, account, values)
    assert not orphans & karpenter.instances_of(account).keys()


def test_a_node_that_boots_while_karpenter_is_away_is_taken_up(cluster, account, plane, nodes, values):
    """Killed when the instance is its own, and has not registered."""
    nodes.kubelets.starting = False
    try:
        claims = lambda: {c["metadata"]["uid"]: c for c in cluster.client.list("karpenter.sh/v1", "NodeClaim")}
        before = claims()
        scale(cluster, WIDE, len(pods(cluster, WIDE)) + 2)
        launched = lambda: [u for u, c in claims().items() if u not in before and condition(c, "Launched") == "True"]
        (booting, *_) = cluster.wait("an instance boots", launched)
        nodes.kill()
    finally:
        nodes.kubelets.starting = True
    nodes.start()
    converges(cluster, account, values)
    assert condition(claims()[booting], "Initialized") == "True"


@pytest.mark.parametrize("action", ["CreateLoadBalancer", "CreateTargetGroup", "CreateListener", "CreateRule"])
def test_a_half_made_load_balancer_is_finished_and_made_once(cluster, account, plane, balancers, values, action):
    """Killed when AWS has made one part, and before the controller hears of it."""
    second = plane.stored({"apiVersion": INGRESS[0], "kind": INGRESS[1], "metadata": {"name": "router"}})
    meta = {"name": "second", "annotations": second["metadata"]["annotations"]}
    kill_at(account, balancers, action)
    cluster.client.create({**second, "metadata": meta, "status": {}}, "inference")
    cluster.wait("the controller is dead", lambda: not balancers.process.running)
    balancers.stop()
    balancers.start()
    try:
        converges(cluster, account, values)
        assert len(account.client("elbv2").describe_load_balancers()["LoadBalancers"]) == 2
    finally:
        cluster.client.delete(*INGRESS, "second", "inference")
    converges(cluster, account, values)


@pytest.mark.parametrize("component", ["kube-apiserver", "etcd"])
def test_the_control_plane_comes_back_to_what_it_was(cluster, account, plane, values, component):
    """Killed with everything running; nothing that it stored is lost, and all who watch it go on."""
    identities = lambda: {pod["metadata"]["uid"] for pod in cluster.client.list("v1", "Pod", "inference")}
    nodes = lambda: {node["metadata"]["uid"] for node in cluster.client.list("v1", "Node")}
    before = identities(), nodes()
    cluster.embedded.restart(component)
    assert (identities(), nodes()) == before
    replicas = len(pods(cluster, "clinical-summary"))
    scale(cluster, "clinical-summary", replicas + 3)
    cluster.wait("new engines come", lambda: len(pods(cluster, "clinical-summary")) == replicas + 3)
    converges(cluster, account, values)
    scale(cluster, "clinical-summary", replicas)
    cluster.wait("they go", lambda: len(pods(cluster, "clinical-summary")) == replicas)


def test_without_its_webhooks_an_ingress_cannot_change_and_pods_can(cluster, account, plane, balancers, values):
    """The load balancer controller is away: what fails then and with which words, and what does not."""
    balancers.kill()
    longer = values | {"alb-ingress": values["alb-ingress"] | {"clientKeepAliveSeconds": 1800}}
    try:
        with pytest.raises(AssertionError, match='failed calling webhook "vingress.elbv2.k8s.aws".*connection refused'):
            plane.upgrade("inference-plane", longer)
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "any"},
            "spec": {"ports": [{"port": 80}]},
        }
        with pytest.raises(Refused, match='failed calling webhook "mservice.elbv2.k8s.aws"'):
            cluster.client.create(service, "inference")
        # A router's pod that starts now is asked about (readiness gates), and let through unasked.
        label = {"metadata": {"labels": {"elbv2.k8s.aws/pod-readiness-gate-inject": "enabled"}}}
        cluster.client.patch("v1", "Namespace", "inference", label)
        (first, *_) = pods(cluster, "router")
        cluster.client.delete("v1", "Pod", first["metadata"]["name"], "inference")
        three = lambda: len(found := pods(cluster, "router")) == PROD["router"]["replicas"] and all(map(ready, found))
        cluster.wait("another router's pod runs", three)
    finally:
        cluster.client.patch(
            "v1", "Namespace", "inference", {"metadata": {"labels": {"elbv2.k8s.aws/pod-readiness-gate-inject": None}}}
        )
        balancers.start()
    plane.upgrade("inference-plane", longer)
    name = hostname(cluster.client.get(*INGRESS, "router", "inference"))
    expected = ["client_keep_alive.seconds: the load balancer has '1800', the values say '3600'"]
    cluster.wait("it is changed", lambda: differences(values, account, name) == expected)
    plane.upgrade("inference-plane", values)
    converges(cluster, account, values)
