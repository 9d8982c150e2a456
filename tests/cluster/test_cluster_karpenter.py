"""The real Karpenter on the rendered node pools, in a stand-in for AWS: what it makes of them, and what it refuses."""

import collections

import pytest
import yaml
from cluster_harness import Release
from karpenter_harness import (
    FAMILY,
    all_ready,
    claims,
    compiled,
    conditions,
    immovable,
    label,
    model,
    pods,
    running,
    scale,
    unplaced,
)

from inference_plane import checkout, helm, tools
from inference_plane.cluster import karpenter
from inference_plane.cluster.aws import Account
from inference_plane.cluster.diagnose import condition, ready
from inference_plane.helm import KUBERNETES_VERSION

PROD = yaml.safe_load((checkout.VALUES / "prod.yaml").read_text())
NODES = PROD["karpenter-nodepools"]
AMI = NODES["ec2"]["amiAlias"].partition("@")[2]


@pytest.fixture(scope="module")
def account():
    with Account(PROD["global"]["aws"]["region"]) as account:
        # What the cloud team's Terraform makes for the production cluster; written out, so that a chart that selects
        # something else finds nothing.
        account.make_network(
            {"karpenter.sh/discovery": "inference-prod", "kubernetes.io/role/internal-elb": "1"},
            {"karpenter.sh/discovery": "inference-prod"},
        )
        account.make_role("inference-prod-nodes")
        # Frankfurt has none of these, and every accelerator is to be asked for.
        account.offer("p5.48xlarge", "trn2.48xlarge", "p4de.24xlarge")
        account.publish_bottlerocket(AMI, KUBERNETES_VERSION.rpartition(".")[0])
        yield account


@pytest.fixture(scope="module")
def karpenter_runs(cluster, account):
    if cluster.embedded is None:
        pytest.skip("Karpenter runs beside an embedded control plane; --kubeconfig names another cluster")
    with running(cluster, account, "inference-prod"):
        yield


@pytest.fixture(scope="module")
def plane(cluster, karpenter_runs):
    """The production environment, whole, in a cluster whose nodes Karpenter brings."""
    release = Release(cluster)
    cluster.make_namespaces(["inference"])
    release.upgrade("inference-plane", PROD)
    yield release
    release.remove()


def test_it_is_the_version_whose_definitions_the_charts_are_checked_against():
    from inference_plane.manifests import crds

    module = "github.com/aws/karpenter-provider-aws"
    assert tools.version("karpenter", module) in [m.version for m in crds.modules() if m.module == module]


@pytest.fixture(scope="module")
def accelerators(cluster, plane):
    """A release with a model of every accelerator profile, and node pools for them, beside the production plane."""
    nodes, engines = Release(cluster, "every-nodes", "every"), Release(cluster, "every", "every")
    cluster.make_namespaces(["every"])
    nodes.upgrade("karpenter-nodepools", {"global": EVERY, "namePrefix": "every-"} | POOLS)
    engines.upgrade("vllm", {"global": EVERY})
    yield EVERY["models"]
    for release in (engines, nodes):
        release.remove()


#: A profile of an environment's own, whose family nothing else uses.
A10G = {"resource": "nvidia.com/gpu", "memoryGiB": 22.35, "instanceFamilies": ["g5"], "image": "vllm"}

EVERY = {
    "aws": {"region": "eu-central-1"},
    "accelerators": {"a10g": A10G | {"cpu": "3", "memory": "12Gi"}},
    "tls": {"mode": "none"},
    "network": {"s3Cidrs": ["10.0.0.0/24"]},
    "models": {name: model(name) for name in FAMILY if FAMILY[name][1] == "nvidia.com/gpu"}
    | {"inferentia2": compiled("inferentia2", 2), "trainium2": compiled("trainium2", 4)}
    | {"queue": model("a10g", traffic="batch")},
}
POOLS = {"nodeClass": NODES["nodeClass"], "ec2": NODES["ec2"]}


@pytest.mark.parametrize("kind", ["EC2NodeClass", "NodePool"])
def test_every_pool_and_class_becomes_ready(cluster, plane, kind):
    wanted = {o["metadata"]["name"] for o in plane.manifest() if o["kind"] == kind}
    assert wanted and conditions(cluster, kind, wanted) == []


@pytest.mark.parametrize("name", PROD["global"]["models"])
def test_every_engine_of_production_has_a_node_and_may_be_moved_where_it_has_company(cluster, plane, name):
    scale(cluster, name, 2)
    cluster.wait("both run", lambda: all_ready(cluster, name, 2), 120)
    assert unplaced(cluster, name, "inference") == []
    assert cluster.wait("its disruption budget knows them", lambda: immovable(cluster, name, "inference") == [])


def test_every_engine_of_production_runs_on_a_node_that_was_launched_for_it(cluster, account, plane):
    """`helm upgrade --wait` has ended, so the pods are ready; here on what."""
    launched, instances = claims(cluster), karpenter.instances_of(account)
    for name, entry in PROD["global"]["models"].items():
        for pod in pods(cluster, name):
            claim = launched[pod["spec"]["nodeName"]]
            family, resource = FAMILY[entry["accelerator"]]
            pool = label(claim, "karpenter.sh/nodepool")
            assert label(claim, "karpenter.k8s.aws/instance-family") == family, name
            traffic = entry.get("traffic", "interactive")
            assert pool == f"inference-{entry['accelerator']}-{traffic}", name
            capacity = "spot" if traffic == "batch" else "on-demand"
            assert label(claim, "karpenter.sh/capacity-type") == capacity, name
            print(name, label(claim, "node.kubernetes.io/instance-type"), pool)
            assert int(claim["status"]["capacity"][resource]) >= entry.get("tensorParallelSize", 1)
            instance = instances[claim["status"]["providerID"]]
            assert instance["InstanceType"] == label(claim, "node.kubernetes.io/instance-type")
            assert instance["Placement"]["AvailabilityZone"] == label(claim, "topology.kubernetes.io/zone")
            assert instance.get("InstanceLifecycle", "on-demand") == label(claim, "karpenter.sh/capacity-type")
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            assert tags["inference-plane/accelerator"] == entry["accelerator"] and tags["data-class"] == "health"
    # Each by CreateFleet, and none by any other way.
    fleets = [call for call in account.made("CreateFleet") if call.status == 200]
    assert len(fleets) >= len(instances) and not [c for c in account.made("RunInstances") if c.status == 200]


def test_a_node_is_launched_encrypted_and_keeps_pods_from_its_role(account, plane):
    """What EC2 was given, read back from its launch templates."""
    ec2 = account.client("ec2")
    templates = ec2.describe_launch_templates()["LaunchTemplates"]
    assert templates
    for template in templates:
        versions = ec2.describe_launch_template_versions(LaunchTemplateId=template["LaunchTemplateId"])
        data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
        assert data["MetadataOptions"]["HttpTokens"] == "required"
        assert data["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        volumes = {device["DeviceName"]: device["Ebs"] for device in data["BlockDeviceMappings"]}
        assert set(volumes) == {"/dev/xvda", "/dev/xvdb"}
        assert all(volume["Encrypted"] for volume in volumes.values())
        assert volumes["/dev/xvdb"]["KmsKeyId"] == NODES["dataVolume"]["kmsKeyId"]
        assert [interface["AssociatePublicIpAddress"] for interface in data["NetworkInterfaces"]] == [False]


def test_room_is_held_and_yields_to_an_engine(cluster, plane):
    """Headroom runs as a pod of low priority; when engines take its node, Karpenter makes room anew."""
    name = "inference-l40s-interactive-headroom"
    (holder,) = cluster.wait("headroom is held", lambda: all_ready(cluster, name, 1))
    held, uid = holder["spec"]["nodeName"], holder["metadata"]["uid"]
    before = len(pods(cluster, "clinical-summary"))
    scale(cluster, "clinical-summary", before + 4)
    engines = cluster.wait("the engines run", lambda: all_ready(cluster, "clinical-summary", before + 4), 120)
    assert held in {pod["spec"]["nodeName"] for pod in engines}
    (again,) = cluster.wait("headroom is held anew", lambda: all_ready(cluster, name, 1), 120)
    assert again["metadata"]["uid"] != uid and again["spec"]["nodeName"] != held
    scale(cluster, "clinical-summary", before)


@pytest.mark.parametrize("accelerator", FAMILY)
def test_a_pod_of_every_accelerator_gets_a_node_of_its_family(cluster, account, accelerators, accelerator):
    (pod,) = cluster.wait(
        f"the pod of {accelerator} runs",
        lambda: [pod for pod in pods(cluster, accelerator, "every") if ready(pod)],
        120,
    )
    claim = claims(cluster)[pod["spec"]["nodeName"]]
    family, resource = FAMILY[accelerator]
    assert label(claim, "karpenter.k8s.aws/instance-family") == family
    assert label(claim, "karpenter.sh/capacity-type") == "on-demand"
    assert label(claim, "topology.kubernetes.io/zone") in {"eu-central-1a", "eu-central-1b", "eu-central-1c"}
    assert int(claim["status"]["capacity"][resource]) >= accelerators[accelerator].get("tensorParallelSize", 1)
    assert {taint["key"] for taint in claim["spec"]["taints"]} == {
        "nvidia.com/gpu" if resource == "nvidia.com/gpu" else "aws.amazon.com/neuron"
    }


def test_batch_takes_spot_first_and_on_demand_where_spot_is_refused(cluster, account, accelerators):
    capacity = lambda pod: label(claims(cluster)[pod["spec"]["nodeName"]], "karpenter.sh/capacity-type")
    (first,) = cluster.wait("it runs", lambda: all_ready(cluster, "queue", 1, "every"))
    assert capacity(first) == "spot"
    account.refuse_spot, asked = True, len(account.made("CreateFleet"))
    scale(cluster, "queue", 2, "every")
    both = cluster.wait("both run", lambda: all_ready(cluster, "queue", 2, "every"), 120)
    assert sorted(map(capacity, both)) == ["on-demand", "spot"]
    kind = "TargetCapacitySpecification.DefaultTargetCapacityType"
    kinds = [call.parameters[kind] for call in account.made("CreateFleet")[asked:]]
    assert kinds == ["spot"] * (len(kinds) - 1) + ["on-demand"] and len(kinds) > 1


def test_a_pool_brings_no_more_than_its_limit(cluster, account, plane):
    """Whatever a broken autoscaler asks for."""
    limits = {
        pool["metadata"]["name"]: int(pool["spec"]["limits"]["nvidia.com/gpu"])
        for pool in cluster.client.list("karpenter.sh/v1", "NodePool")
        if pool["metadata"]["name"].startswith(("inference-l4-", "every-l4-"))
    }
    wanted = sum(limits.values()) + 5
    scale(cluster, "claims-triage", wanted)

    def stopped():
        """What each pool brought, once Karpenter has said why it brings no more, and nothing is on its way."""
        events = cluster.client.list("v1", "Event", "inference", fieldSelector="reason=FailedScheduling")
        said = [event for event in events if "exceed limits for nodepool" in event.get("message", "")]
        launched = cluster.client.list("karpenter.sh/v1", "NodeClaim")
        if said and all(condition(claim, "Initialized") == "True" for claim in launched):
            brought = collections.Counter()
            for claim in launched:
                gpus = int(claim["status"]["capacity"].get("nvidia.com/gpu", 0))
                brought[label(claim, "karpenter.sh/nodepool")] += gpus
            return brought

    brought = cluster.wait("Karpenter says that limits are reached", stopped, 240)
    print({name: f"{brought[name]} of {limit}" for name, limit in limits.items()})
    assert max(brought[name] for name in limits) > 1
    assert {name: brought[name] <= limit for name, limit in limits.items()} == dict.fromkeys(limits, True)
    assert [pod for pod in pods(cluster, "claims-triage") if not ready(pod)]
    scale(cluster, "claims-triage", 1)


def of_class(spec, **changes):
    spec.update(changes)


def of_pool(spec, key, values):
    spec["template"]["spec"]["requirements"].append({"key": key, "operator": "In", "values": values})


def of_taints(spec, key):
    spec["template"]["spec"]["taints"].append({"key": key, "effect": "NoSchedule"})


#: Fault -> the kind that it is in, what it does to the rendered spec, the check of the ordinary tests that finds it, and
#: what the check says.
FAULTS = {
    "wrong subnet tag": (
        "EC2NodeClass",
        lambda spec: of_class(spec, subnetSelectorTerms=[{"tags": {"karpenter.sh/discovery": "inference-prd"}}]),
        "conditions",
        "SubnetsReady=False SubnetSelector did not match any Subnets",
    ),
    "wrong security group tag": (
        "EC2NodeClass",
        lambda spec: of_class(spec, securityGroupSelectorTerms=[{"tags": {"karpenter.sh/discovery": "inference-prd"}}]),
        "conditions",
        "SecurityGroupsReady=False SecurityGroupSelector did not match any SecurityGroups",
    ),
    "an AMI that nobody published": (
        "EC2NodeClass",
        lambda spec: of_class(spec, amiSelectorTerms=[{"alias": "bottlerocket@1.45.9"}]),
        "conditions",
        "AMIsReady=Unknown",
    ),
    "impossible requirement": (
        "NodePool",
        lambda spec: of_pool(spec, "karpenter.k8s.aws/instance-gpu-count", ["3"]),
        "unplaced",
        "{pool}: NodePool requirements filtered out all compatible available instance types",
    ),
    "taint without toleration": (
        "NodePool",
        lambda spec: of_taints(spec, "team"),
        "unplaced",
        "did not tolerate taint (taint=team:NoSchedule)",
    ),
    "limit below one node": (
        "NodePool",
        lambda spec: of_class(spec, limits={"nvidia.com/gpu": 0}),
        "unplaced",
        "all available instance types exceed limits for nodepool (NodePool={pool})",
    ),
    "a zone where there is no subnet": (
        "NodePool",
        lambda spec: of_pool(spec, "topology.kubernetes.io/zone", ["eu-central-1d"]),
        "unplaced",
        "{pool}: NodePool requirements filtered out all compatible available instance types",
    ),
    "disruption budget that blocks for ever": (
        "PodDisruptionBudget",
        lambda spec: of_class(spec, maxUnavailable=0),
        "immovable",
        "would violate the pod's disruption budget",
    ),
}


@pytest.fixture(scope="module")
def faults(cluster, karpenter_runs):
    """For each fault a pool, a class and an engine that only this pool may take, rendered, and broken in one place."""
    values = EVERY | {"models": {"engine": model("a10g", replicas={"min": 2})}}
    made = []
    cluster.make_namespaces([f"fault-{number}" for number in range(len(FAULTS))])
    for number, (kind, breaks, _, _) in enumerate(FAULTS.values()):
        own = f"fault-{number}"
        pools = POOLS | {"global": values, "namePrefix": f"{own}-", "nodeLabels": {"fault": own}}
        rendered = helm.template("karpenter-nodepools", values=pools).objects
        rendered += helm.template("vllm", values={"global": values}).objects
        for o in rendered:
            if o["kind"] == kind:
                breaks(o["spec"])
            if o["kind"] == "Deployment":
                o["spec"]["template"]["spec"]["nodeSelector"] = {"fault": own}
            if o["kind"] in ("EC2NodeClass", "NodePool", "Deployment", "PodDisruptionBudget", "ServiceAccount"):
                namespaced = o["kind"] not in ("EC2NodeClass", "NodePool")
                o["metadata"].pop("namespace", None)
                made.append((o, own if namespaced else None))
    try:
        for o, namespace in made:
            if namespace is None:
                cluster.client.apply(o)
        sound = {
            f"fault-{n}-a10g-interactive" for n, (*_, check, _) in enumerate(FAULTS.values()) if check != "conditions"
        }
        cluster.wait("what is sound is ready", lambda: conditions(cluster, "NodePool", sound) == [])
        # Only now, since Karpenter says once in five minutes why a pod has no node.
        for o, namespace in made:
            if namespace:
                cluster.client.apply(o, namespace)
        yield {fault: f"fault-{number}" for number, fault in enumerate(FAULTS)}
    finally:
        for o, namespace in reversed(made):
            cluster.client.delete(o["apiVersion"], o["kind"], o["metadata"]["name"], namespace)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_only_a_controller_can_find(cluster, faults, fault):
    """By the check that the tests of production use, with a message that says where and what it is."""
    kind, _, check, words = FAULTS[fault]
    own = faults[fault]
    words = words.format(pool=f"{own}-a10g-interactive")
    checks = {
        "conditions": lambda: conditions(cluster, kind, {f"{own}-a10g"}),
        "unplaced": lambda: unplaced(cluster, "engine", own),
        "immovable": lambda: immovable(cluster, "engine", own),
    }
    cluster.wait(f"the fault is named ({words})", lambda: [line for line in checks[check]() if words in line])


def test_moto_had_an_answer_to_every_call(account, plane, accelerators):
    """The last test: what Karpenter asked for and did not get would have made it act otherwise."""
    assert account.unanswered() == []
    print(sorted({f"{call.service} {call.action}" for call in account.calls}))
