"""The chart `karpenter-nodepools`: which pools a catalogue gets, what is in them, and what is refused."""

import copy
import tomllib
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.manifests import check

CHART = CHARTS / "karpenter-nodepools"
CI = sorted(CHART.glob("ci/*-values.yaml"))

MODEL = {"source": "s3://models/m/v1/", "weightsGiB": 15.3, "accelerator": "l40s", "maxModelLen": 8192}
BATCH = MODEL | {"traffic": "batch"}
NEURON = {
    "source": "s3://models/n/v1/",
    "weightsGiB": 140,
    "accelerator": "trainium2",
    "tensorParallelSize": 16,
    "maxModelLen": 4096,
    "compiled": {"source": "s3://models/c/v1/", "tensorParallelSize": 16, "maxModelLen": 4096, "maxNumSeqs": 64},
}
BASE = {
    "global": {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "none"},
        "network": {"s3Cidrs": ["10.0.0.0/24"]},
    },
    "nodeClass": {"role": "nodes", "subnetTags": {"tier": "private"}, "securityGroupTags": {"for": "nodes"}},
    "ec2": {"amiAlias": "bottlerocket@1.46.0"},
}
AUTO = {"mode": "autoMode", "ec2": {"amiAlias": ""}}
GPU = {
    "resource": "nvidia.com/gpu", "memoryGiB": 48, "instanceFamilies": ["g6e"],
    "image": "vllm", "cpu": "3", "memory": "26Gi",
}  # fmt: skip


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, as Helm merges values: maps field by field, everything else replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        result[key] = merged(result[key], value) if isinstance(value, Mapping) and key in result else value
    return result


def values(*overs: Mapping[str, Any], **models: Mapping[str, Any]) -> dict[str, Any]:
    result = merged(BASE, {"global": {"models": models}})
    for over in overs:
        result = merged(result, over)
    return result


def render(*overs: Mapping[str, Any], **models: Mapping[str, Any]) -> helm.Render:
    return helm.template("karpenter-nodepools", values=values(*overs, **(models or {"m": MODEL})))


def refusals(*overs: Mapping[str, Any], **models: Mapping[str, Any]) -> list[str]:
    """The lines of the refusal of `render` with these arguments."""
    with pytest.raises(helm.HelmError) as refused:
        render(*overs, **models)
    text = str(refused.value)
    assert "values of the node pools do not fit together:" in text
    return [line for line in text.splitlines() if line.startswith("- ")]


def pool(rendered: helm.Render, name: str = "inference-l40s-interactive") -> dict[str, Any]:
    return rendered.find("NodePool", name)["spec"]


def node(rendered: helm.Render, name: str = "inference-l40s-interactive") -> dict[str, Any]:
    return pool(rendered, name)["template"]["spec"]


def requirements(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    assert {requirement["operator"] for requirement in spec["requirements"]} == {"In"}
    return {requirement["key"]: requirement["values"] for requirement in spec["requirements"]}


def names(rendered: helm.Render, kind: str) -> list[str]:
    return sorted(o["metadata"]["name"] for o in rendered.of_kind(kind))


# --- which objects ---------------------------------------------------------------------------------------------------


def test_the_defaults_render_nothing():
    assert helm.template(CHART).objects == []


@pytest.mark.parametrize("file", CI, ids=lambda file: file.stem)
def test_ci_files_render_lint_strictly_and_are_what_the_api_server_takes(file):
    rendered = helm.template(CHART, files=[file])
    assert rendered.of_kind("NodePool") and rendered.of_kind("Deployment")
    assert [str(finding) for finding in check(rendered.objects)] == []
    assert "0 chart(s) failed" in helm.run("lint", "--strict", str(CHART), "--values", str(file))


def test_a_pool_for_each_accelerator_and_traffic_in_use_and_a_class_for_each_accelerator():
    off = MODEL | {"enabled": False, "accelerator": "h100"}
    cpu = {"source": "file:///models/c/v1/", "weightsGiB": 0.3, "accelerator": "cpu", "maxModelLen": 512}
    rendered = render(a=MODEL, b=MODEL, c=BATCH, d=MODEL | {"accelerator": "l4", "maxModelLen": 2048}, off=off, cpu=cpu)
    assert names(rendered, "NodePool") == [
        "inference-l4-interactive", "inference-l40s-batch", "inference-l40s-interactive",
    ]  # fmt: skip
    assert names(rendered, "EC2NodeClass") == ["inference-l4", "inference-l40s"]
    assert not rendered.of_kind("Deployment") and not rendered.of_kind("PriorityClass")


def test_pools_adds_changes_and_null_is_as_absent():
    changed = {"h100": {"batch": {"limit": 16}}, "l4": {"batch": None}, "l40s": {"interactive": {"name": "gpu"}}}
    rendered = render({"pools": changed})
    assert names(rendered, "NodePool") == ["gpu", "inference-h100-batch"]
    assert pool(rendered, "inference-h100-batch")["limits"] == {"nvidia.com/gpu": 16}


def test_cluster_wide_objects_survive_the_release_and_argo_cd():
    for kind, over in (("EC2NodeClass", {}), ("NodeClass", AUTO)):
        for document in [o for o in render(over).objects if o["kind"] in ("NodePool", kind)]:
            assert "namespace" not in document["metadata"]
            assert document["metadata"]["annotations"] == {
                "helm.sh/resource-policy": "keep",
                "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
            }


# --- pools -----------------------------------------------------------------------------------------------------------


def test_interactive_runs_on_demand_and_keeps_still_in_peak_hours():
    spec = pool(render())
    assert requirements(node(render())) == {
        "karpenter.k8s.aws/instance-family": ["g6e"],
        "karpenter.sh/capacity-type": ["on-demand", "reserved"],
        "kubernetes.io/arch": ["amd64"],
        "kubernetes.io/os": ["linux"],
    }
    disturbing = ["Underutilized", "Drifted"]
    assert spec["disruption"] == {
        "consolidationPolicy": "WhenEmpty",
        "consolidateAfter": "10m",
        "budgets": [
            {"nodes": "100%", "reasons": ["Empty"]},
            {"nodes": "1", "reasons": disturbing},
            {"nodes": "0", "reasons": disturbing, "schedule": "0 6 * * mon-fri", "duration": "14h"},
        ],
    }


def test_batch_takes_spot_too_and_is_moved_together():
    rendered = render(m=MODEL, b=BATCH)
    batch = pool(rendered, "inference-l40s-batch")
    assert requirements(batch["template"]["spec"])["karpenter.sh/capacity-type"] == ["spot", "on-demand"]
    assert batch["disruption"]["consolidationPolicy"] == "WhenEmptyOrUnderutilized"
    assert not any("schedule" in budget for budget in batch["disruption"]["budgets"])
    assert batch["weight"] < pool(rendered)["weight"]


@pytest.mark.parametrize(
    ("model", "key"), [(MODEL, "nvidia.com/gpu"), (NEURON, "aws.amazon.com/neuron"),
                       (NEURON | {"accelerator": "inferentia2"}, "aws.amazon.com/neuron")],
)  # fmt: skip
def test_the_taint_is_one_that_the_engine_tolerates(model, key):
    (spec,) = render({"dataVolume": {"sizeGiB": 900}}, m=model).of_kind("NodePool")
    assert spec["spec"]["template"]["spec"]["taints"] == [{"key": key, "effect": "NoSchedule"}]
    engine = {"global": values(m=model)["global"]}
    (deployment,) = helm.template("vllm", values=engine).of_kind("Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["tolerations"] == [{"key": key, "operator": "Exists", "effect": "NoSchedule"}]
    # What the engine demands of a node is what the pool brings.
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    template = spec["spec"]["template"]
    labels = {key: [value] for key, value in template["metadata"]["labels"].items()}
    brought = requirements(template["spec"]) | labels
    for demand in term["matchExpressions"]:
        inside = set(brought[demand["key"]]) <= set(demand["values"])
        assert inside is (demand["operator"] == "In"), demand


def test_a_limit_holds_what_the_catalogue_may_ask_for_and_one_large_node():
    wide = MODEL | {"tensorParallelSize": 4, "replicas": {"min": 1, "max": 3}}
    still = MODEL | {"replicas": {"min": 2}, "rollout": "inPlace"}
    over = {"pools": {"l40s": {"interactive": {"headroom": 2}}}}
    # 4 x (3 + 1 in a rollout) + 2 + 2 x 4 of headroom + 8 of a node
    assert pool(render(over, wide=wide, still=still))["limits"] == {"nvidia.com/gpu": 34}
    assert pool(render({"pools": {"l40s": {"interactive": {"limit": 5}}}}))["limits"] == {"nvidia.com/gpu": 5}


def test_the_resource_of_a_limit_is_the_one_that_pods_ask_for():
    over = {"dataVolume": {"sizeGiB": 900}}
    (trainium,) = render(over, m=NEURON).of_kind("NodePool")
    # 16 cores are 4 devices of 4; twice that in a rollout, and 16 of a node.
    assert trainium["spec"]["limits"] == {"aws.amazon.com/neuron": 24}


def test_nodes_are_labelled_for_cost_reports_and_never_with_the_pool():
    labels = pool(render({"nodeLabels": {"example.com/unit": "7"}}))["template"]["metadata"]["labels"]
    assert labels == {
        "inference-plane/accelerator": "l40s",
        "inference-plane/traffic": "interactive",
        "example.com/unit": "7",
    }


def test_the_reference_to_a_class_is_whole_and_the_class_is_there():
    for over, group, kind in (({}, "karpenter.k8s.aws", "EC2NodeClass"), (AUTO, "eks.amazonaws.com", "NodeClass")):
        rendered = render(over)
        reference = node(rendered)["nodeClassRef"]
        assert reference == {"group": group, "kind": kind, "name": "inference-l40s"}
        assert rendered.find(kind, "inference-l40s")["apiVersion"] == f"{group}/v1"


# --- node classes ----------------------------------------------------------------------------------------------------


def test_an_ec2_node_class_is_private_pinned_and_encrypted():
    spec = render({"dataVolume": {"kmsKeyId": "alias/k"}}).find("EC2NodeClass", "inference-l40s")["spec"]
    assert spec["amiSelectorTerms"] == [{"alias": "bottlerocket@1.46.0"}]
    assert spec["role"] == "nodes" and "instanceProfile" not in spec
    assert spec["subnetSelectorTerms"] == [{"tags": {"tier": "private"}}]
    assert spec["securityGroupSelectorTerms"] == [{"tags": {"for": "nodes"}}]
    assert spec["associatePublicIPAddress"] is False
    assert spec["metadataOptions"]["httpTokens"] == "required"
    assert spec["metadataOptions"]["httpPutResponseHopLimit"] == 1
    assert spec["instanceStorePolicy"] == "RAID0"
    assert {m["deviceName"]: m["ebs"]["volumeSize"] for m in spec["blockDeviceMappings"]} == {
        "/dev/xvda": "20Gi", "/dev/xvdb": "300Gi",
    }  # fmt: skip
    assert all(m["ebs"]["encrypted"] and m["ebs"]["kmsKeyID"] == "alias/k" for m in spec["blockDeviceMappings"])
    assert spec["tags"] == {"inference-plane/accelerator": "l40s"}


def test_user_data_is_toml_that_pulls_in_parallel_and_takes_further_settings():
    more = '[settings.kernel.sysctl]\n"vm.max_map_count" = "262144"\n'
    spec = render({"ec2": {"userData": more}}).find("EC2NodeClass", "inference-l40s")["spec"]
    settings = tomllib.loads(spec["userData"])["settings"]
    assert settings["container-runtime"] == {"snapshotter": "soci"}
    assert settings["container-runtime-plugins"]["soci-snapshotter"]["pull-mode"] == "parallel-pull-unpack"
    assert settings["kernel"]["sysctl"] == {"vm.max_map_count": "262144"}
    off = render({"ec2": {"soci": False, "instanceStorePolicy": ""}}).find("EC2NodeClass", "inference-l40s")["spec"]
    assert "userData" not in off and "instanceStorePolicy" not in off


def test_auto_mode_has_its_own_labels_and_only_its_own_fields():
    rendered = render(AUTO, {"nodeClass": {"tags": {"a": "b"}, "capacityReservationTags": {"c": "d"}}})
    assert requirements(node(rendered)) == {
        "eks.amazonaws.com/instance-family": ["g6e"],
        "karpenter.sh/capacity-type": ["on-demand", "reserved"],
        "kubernetes.io/arch": ["amd64"],
    }
    assert rendered.find("NodeClass", "inference-l40s")["spec"] == {
        "role": "nodes",
        "subnetSelectorTerms": [{"tags": {"tier": "private"}}],
        "securityGroupSelectorTerms": [{"tags": {"for": "nodes"}}],
        "capacityReservationSelectorTerms": [{"tags": {"c": "d"}}],
        "ephemeralStorage": {"size": "300Gi", "iops": 16000, "throughput": 1000},
        "tags": {"inference-plane/accelerator": "l40s", "a": "b"},
    }
    assert not rendered.of_kind("EC2NodeClass")


# --- headroom --------------------------------------------------------------------------------------------------------

HEADROOM = {"pools": {"l40s": {"interactive": {"headroom": 2}}}}


def test_headroom_is_as_large_as_a_replica_of_the_biggest_model_and_gives_way():
    wide = MODEL | {"tensorParallelSize": 2}
    rendered = render(HEADROOM, small=MODEL, wide=wide)
    deployment = rendered.find("Deployment", "inference-l40s-interactive-headroom")
    pod = deployment["spec"]["template"]["spec"]
    engines = helm.template("vllm", values={"global": values(small=MODEL, wide=wide)["global"]})
    (container,) = engines.find("Deployment", "wide")["spec"]["template"]["spec"]["containers"]
    assert deployment["spec"]["replicas"] == 2
    assert pod["containers"][0]["resources"] == container["resources"]
    assert pod["nodeSelector"] == {"karpenter.sh/nodepool": "inference-l40s-interactive"}
    priority = rendered.find("PriorityClass", pod["priorityClassName"])
    assert priority["value"] < 0 and priority["preemptionPolicy"] == "Never" and "globalDefault" not in priority
    assert {c["image"] for c in pod["containers"]} == {"registry.k8s.io/pause:3.10.2"}


def test_headroom_is_nobodys_model_and_talks_to_nobody():
    rendered = render(HEADROOM)
    headroom = rendered.find("Deployment", "inference-l40s-interactive-headroom")
    labels = headroom["spec"]["template"]["metadata"]["labels"]
    assert not [label for label in labels if label.startswith("inference-plane/")]
    policy = rendered.find("NetworkPolicy", "headroom")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert (policy["ingress"], policy["egress"], policy["policyTypes"]) == ([], [], ["Ingress", "Egress"])
    assert not render(HEADROOM, {"global": {"network": {"policies": False}}}).of_kind("NetworkPolicy")


def test_headroom_needs_a_digest_where_images_do():
    with pytest.raises(helm.HelmError, match=r"- global\.images\.pause\.digest: null, while global\.requireDigest is"):
        digest = {"images": {"vllm": {"digest": "sha256:" + "a" * 64}}, "requireDigest": True}
        render(HEADROOM, {"global": digest})


# --- refusals --------------------------------------------------------------------------------------------------------

#: The values laid over BASE with models `m` and `b` (batch), and the whole refusal.
REFUSED = {
    "auto mode has no AMI": (
        {"mode": "autoMode"},
        "- ec2.amiAlias: given, while mode is autoMode. Auto Mode chooses the AMI, and rolls nodes when it has a new "
        'one. Set ec2.amiAlias: "", or mode: ec2NodeClass.',
    ),
    "auto mode has no instance profile": (
        AUTO | {"ec2": {"amiAlias": "", "instanceProfile": "p"}},
        "- ec2.instanceProfile: given, while mode is autoMode. Auto Mode makes the instance profile from nodeClass.role. "
        'Set ec2.instanceProfile: "", or mode: ec2NodeClass.',
    ),
    "auto mode has no user data": (
        AUTO | {"ec2": {"amiAlias": "", "userData": "[settings]"}},
        "- ec2.userData: given, while mode is autoMode. Auto Mode runs no user data. "
        'Set ec2.userData: "", or mode: ec2NodeClass.',
    ),
    "auto mode needs a role": (
        AUTO | {"nodeClass": {"role": ""}},
        "- nodeClass.role: empty. A node without a role cannot join the cluster. Set the name of the nodes' IAM role.",
    ),
    "auto mode ends nodes": (
        AUTO | {"expireAfter": "500h"},
        "- expireAfter: 500h and terminationGracePeriod 24h are more than 21 days. EKS Auto Mode ends a node of that "
        "age, whatever still drains. Set both so that their sum is at most 504h.",
    ),
    "auto mode ends nodes whatever is said": (
        AUTO | {"expireAfter": "Never"},
        "- expireAfter: Never and terminationGracePeriod 24h are more than 21 days. EKS Auto Mode ends a node of that "
        "age, whatever still drains. Set both so that their sum is at most 504h.",
    ),
    "spot gives two minutes": (
        {"longestDrainSeconds": 101},
        "- longestDrainSeconds: 101 is above 100, while inference-l40s-batch may run on Spot. EC2 takes a Spot "
        "instance back two minutes after it says so, and some of them pass before the drain begins. Set 100 or less "
        "here and shorter times in the engines' drain, or traffic.batch.capacityTypes: [on-demand].",
    ),
    "a node goes before its engines": (
        {"terminationGracePeriod": "1m"},
        "- terminationGracePeriod: 1m is less than longestDrainSeconds 90. Karpenter would kill engines that still "
        "answer. Set 90s or more.",
    ),
    "no AMI": (
        {"ec2": {"amiAlias": ""}},
        "- ec2.amiAlias: empty. A version of the AMI that nobody chose was tested by nobody. Set bottlerocket@VERSION.",
    ),
    "a moving AMI": (
        {"ec2": {"amiAlias": "bottlerocket@latest"}},
        "- ec2.amiAlias: bottlerocket@latest moves. Each release of Bottlerocket would replace the nodes, and bring "
        "drivers that nobody tested with the engines. Set bottlerocket@VERSION.",
    ),
    "no version": (
        {"ec2": {"amiAlias": "bottlerocket@1.46"}},
        "- ec2.amiAlias: bottlerocket@1.46 is no version of Bottlerocket. Karpenter would find no AMI. "
        "Set bottlerocket@VERSION, such as bottlerocket@1.46.0.",
    ),
    "an AMI without SOCI": (
        {"ec2": {"amiAlias": "bottlerocket@v1.43.9"}},
        "- ec2.soci: true, while the AMI is bottlerocket@v1.43.9. Bottlerocket before 1.44.0 passes over the settings "
        "of the parallel pull and says nothing. Set ec2.amiAlias to 1.44.0 or newer, or ec2.soci: false.",
    ),
    "no role": (
        {"nodeClass": {"role": ""}},
        "- nodeClass.role: empty. A node without a role cannot join the cluster. "
        "Set the name of the nodes' IAM role, or ec2.instanceProfile.",
    ),
    "role and profile": (
        {"ec2": {"instanceProfile": "p"}},
        "- ec2.instanceProfile: p beside nodeClass.role nodes. An EC2NodeClass has one of them. "
        'Set one of the two to "".',
    ),
    "no subnets": (
        {"nodeClass": {"subnetTags": {"tier": None}}},
        "- nodeClass.subnetTags: empty. Nothing guesses where nodes with prompts in memory stand. Set tags that the "
        "private subnets have and no others, such as karpenter.sh/discovery: CLUSTER.",
    ),
    "no security groups": (
        {"nodeClass": {"securityGroupTags": {"for": None}}},
        "- nodeClass.securityGroupTags: empty. Nothing guesses where nodes with prompts in memory stand. Set tags that "
        "the nodes' security groups have and no others, such as karpenter.sh/discovery: CLUSTER.",
    ),
    "a long name": (
        {
            "namePrefix": "a-very-long-name-of-one-team-and-place-",
            "global": {
                "accelerators": {"gpu-with-a-long-name": GPU},
                "models": {"m": {"accelerator": "gpu-with-a-long-name"}, "b": None},
            },
        },
        "- pools.gpu-with-a-long-name.interactive.name: a-very-long-name-of-one-team-and-place-gpu-with-a-long-name-"
        "interactive has 71 characters. Karpenter writes the name into a label, and a label's value has at most 63. "
        "Set a shorter name or namePrefix.",
    ),
    "one name twice": (
        {"pools": {"l40s": {"batch": {"name": "gpu"}, "interactive": {"name": "gpu"}}}},
        "- pools.l40s.interactive.name: gpu is the name of pools.l40s.batch already. One object would overwrite the "
        "other, and its nodes would end. Set another name.",
    ),
    "an accelerator without families": (
        {"global": {"accelerators": {"l40s": {"instanceFamilies": None}}}},
        "- global.accelerators.l40s.instanceFamilies: absent. Karpenter would bring any instance, and the pods would "
        "fit on none of them. Set the families that have it, such as [g6e].",
    ),
    "neuron on GPU nodes": (
        {
            "pools": {"inferentia2": {"batch": {}}},
            "global": {"accelerators": {"inferentia2": {"instanceFamilies": ["g6e"]}}},
        },
        "- global.accelerators.inferentia2.instanceFamilies: g6e, while the resource is aws.amazon.com/neuroncore. No "
        "instance of that family has such a device, so every node would come and stay empty. Set families with Neuron "
        "devices, such as inf2 or trn2.",
    ),
    "GPUs on neuron nodes": (
        {"global": {"accelerators": {"l40s": {"instanceFamilies": ["g6e", "trn2"]}}}},
        "- global.accelerators.l40s.instanceFamilies: trn2, while the resource is nvidia.com/gpu. No instance of that "
        "family has such a device, so every node would come and stay empty. Set families with NVIDIA GPUs, such as g6e "
        "or p5.",
    ),
    "GPUs of AMD": (
        {"global": {"accelerators": {"l40s": {"instanceFamilies": ["g4ad"]}}}},
        "- global.accelerators.l40s.instanceFamilies: g4ad, while the resource is nvidia.com/gpu. No instance of that "
        "family has such a device, so every node would come and stay empty. Set families with NVIDIA GPUs, such as g6e "
        "or p5.",
    ),
    "arm": (
        {"global": {"accelerators": {"l40s": {"instanceFamilies": ["g5g"]}}}},
        "- global.accelerators.l40s.instanceFamilies: g5g is arm64. The engines' images are for amd64. Set families "
        "with x86-64 processors.",
    ),
    "no accelerator": (
        {"pools": {"cpu": {"batch": {}}}},
        "- pools.cpu: cpu has no resource. A pool's taint and limit are those of an accelerator; what needs none runs "
        "on the cluster's ordinary nodes. Set another accelerator, or take pools.cpu out.",
    ),
    "an accelerator that nobody knows": (
        {"pools": {"l40x": {"batch": {}}}},
        "- pools.l40x: l40x is not in global.accelerators. There are a100-40, a100-80, cpu, h100, inferentia2, l4, "
        "l40s, trainium2. Set one that exists, or add l40x to global.accelerators.",
    ),
    "a small limit": (
        {"pools": {"l40s": {"interactive": {"limit": 1}}}, "global": {"models": {"m": {"replicas": {"min": 2}}}}},
        "- pools.l40s.interactive.limit: 1, while m need 2 at their fewest replicas. Karpenter brings no node beyond "
        "it, so replicas would stay Pending. Set 2 or more, or null.",
    ),
    "headroom for nobody": (
        {"pools": {"h100": {"interactive": {"headroom": 1}}}},
        "- pools.h100.interactive.headroom: 1, while no model uses the pool. Headroom is as large as a replica of the "
        "pool's biggest model. Set headroom: 0, or add a model.",
    ),
    "a small disk": (
        {"dataVolume": {"sizeGiB": 99}},
        "- dataVolume.sizeGiB: 99 is less than 100 (images, logs and caches). A full disk evicts the pods of its node. "
        "Set 100 or more, and more where replicas share a node.",
    ),
    "a disk too small for the weights": (
        {"global": {"models": {"n": NEURON}}},
        "- dataVolume.sizeGiB: 300 is less than 400 (100 for images, logs and caches, 300 for weights and artifacts of "
        "n). A full disk evicts the pods of its node. Set 400 or more, and more where replicas share a node.",
    ),
    "a volume that EC2 refuses": (
        {"dataVolume": {"iops": 3000}},
        "- dataVolume.throughput: 1000 is above a quarter of iops 3000. EC2 refuses such a gp3 volume, and no node "
        "comes. Set iops: 4000 or more, or a lower throughput.",
    ),
    "Karpenter's label": (
        {"nodeLabels": {"karpenter.sh/nodepool": "gpu"}},
        "- nodeLabels.karpenter.sh/nodepool: not for a NodePool to set. Karpenter sets it on each node, and refuses a "
        "NodePool that does. Set a label of your own domain, or take it out.",
    ),
    "the chart's label": (
        {"nodeLabels": {"inference-plane/traffic": "batch"}},
        "- nodeLabels.inference-plane/traffic: set by the chart. It says what the pool is for. Set another label, or "
        "take it out.",
    ),
    "Karpenter's tag": (
        {"nodeClass": {"tags": {"karpenter.sh/nodepool": "gpu"}}},
        "- nodeClass.tags.karpenter.sh/nodepool: not for these values to set. Karpenter, EKS or this chart tags "
        "instances with it. Set another tag, or take it out.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("over", "text"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_its_remedy(over, text):
    assert refusals(over, m=MODEL, b=BATCH) == [text]


def test_auto_mode_keeps_the_name_default_to_itself():
    over = AUTO | {"namePrefix": "", "global": {"accelerators": {"default": GPU}}}
    assert refusals(over, m=MODEL | {"accelerator": "default"}) == [
        "- namePrefix: empty, which names a node class default. default is the NodeClass that EKS Auto Mode makes "
        "itself. Set namePrefix."
    ]


def test_a_long_drain_is_fine_where_nothing_runs_on_spot():
    over = {"longestDrainSeconds": 600, "traffic": {"batch": {"capacityTypes": ["on-demand"]}}}
    assert len(render(over, m=MODEL, b=BATCH).of_kind("NodePool")) == 2
    assert len(render({"longestDrainSeconds": 600}, m=MODEL).of_kind("NodePool")) == 1


@pytest.mark.parametrize(
    ("over", "path"),
    [
        ({"traffic": {"interactive": {"capacityTypes": ["spot"]}}}, "/traffic/interactive/capacityTypes/0"),
        ({"ec2": {"amiAlias": "al2023@v20260101"}}, "/ec2/amiAlias"),
        ({"ec2": {"kubelet": {}}}, "/ec2"),
        ({"terminationGracePeriod": "Never"}, "/terminationGracePeriod"),
        ({"peak": {"duration": "90s"}}, "/peak/duration"),
        ({"pools": {"l40s": {"online": {}}}}, "/pools/l40s"),
    ],
)
def test_the_schema_refuses_what_karpenter_would(over, path):
    with pytest.raises(helm.HelmError, match=f"at '{path}'"):
        render(over)


# --- with the engines ------------------------------------------------------------------------------------------------

UMBRELLA = {"karpenter-nodepools": {"enabled": True, **{k: v for k, v in BASE.items() if k != "global"}}}


def whole(**over: Any) -> helm.Render:
    base = {"global": values(m=MODEL)["global"], "router": {"clientNamespaces": ["c"], "auth": {"mode": "none"}}}
    return helm.template("inference-plane", values=merged(merged(base, UMBRELLA), over))


def test_the_umbrella_has_no_pools_until_it_is_asked():
    assert whole().of_kind("NodePool")
    assert not whole(**{"karpenter-nodepools": {"enabled": False}}).of_kind("NodePool")


def test_the_umbrella_holds_the_drains_together():
    with pytest.raises(helm.HelmError) as refused:
        whole(vllm={"drain": {"shutdownTimeoutSeconds": 65}})
    assert (
        "- karpenter-nodepools.longestDrainSeconds: 90 is less than the engines' grace period of 95 (vllm.drain). The "
        "node pools would be checked against a drain that is not theirs. Set 95."
    ) in str(refused.value)


def test_the_umbrella_holds_the_labels_together():
    with pytest.raises(helm.HelmError) as refused:
        whole(**{"karpenter-nodepools": {"mode": "autoMode", "ec2": {"amiAlias": ""}}})
    assert (
        "- vllm.instanceFamilyLabel: karpenter.k8s.aws/instance-family, while karpenter-nodepools.mode is autoMode. No "
        "node of these pools has that label, so every engine would stay Pending. Set eks.amazonaws.com/instance-family."
    ) in str(refused.value)


def test_the_default_drain_is_that_of_the_engines():
    engines = yaml.safe_load((CHARTS / "plane-lib" / "values.yaml").read_text())["engine"]["drain"]
    own = yaml.safe_load((CHART / "values.yaml").read_text())["longestDrainSeconds"]
    assert own == sum(engines[part] for part in ("endpointStalenessSeconds", "shutdownTimeoutSeconds", "bufferSeconds"))


def test_notes_name_the_pools_and_what_else_must_be_there(tmp_path):
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values(HEADROOM, m=MODEL, b=BATCH)))
    printed = helm.run("install", "nodes", str(CHART), "--dry-run=client", "--values", str(path))
    notes = printed.partition("\nNOTES:\n")[2]
    assert "brings    g6e, on-demand, reserved; at most 12 of nvidia.com/gpu\n  for       m\n" in notes
    assert "headroom  2 of m's replicas" in notes
    assert "interruption queue" in notes and "Auto Mode" not in notes
