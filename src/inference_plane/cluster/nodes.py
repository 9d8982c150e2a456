"""Nodes that KWOK answers for: ordinary ones, and such as the chart of node pools would have brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from inference_plane import checkout

ZONES = ("a", "b", "c")
FAKE = {"kwok.x-k8s.io/node": "fake"}


@dataclass(frozen=True)
class Size:
    """The largest instance of a family: accelerators by resource, and less CPU (cores) and memory (GiB) than it has.

    Source: what DescribeInstanceTypes of Amazon EC2 answers.
    """

    instance_type: str
    cpu: int
    memory: int
    devices: Mapping[str, int]


NEURON, NEURON_CORE, NVIDIA = "aws.amazon.com/neuron", "aws.amazon.com/neuroncore", "nvidia.com/gpu"

SIZES = {
    size.instance_type.partition(".")[0]: size
    for size in (
        Size("g5.48xlarge", 190, 740, {NVIDIA: 8}),
        Size("g6.48xlarge", 190, 740, {NVIDIA: 8}),
        Size("g6e.48xlarge", 190, 1500, {NVIDIA: 8}),
        Size("p4d.24xlarge", 95, 1120, {NVIDIA: 8}),
        Size("p4de.24xlarge", 95, 1120, {NVIDIA: 8}),
        Size("p5.48xlarge", 190, 2000, {NVIDIA: 8}),
        Size("inf2.48xlarge", 190, 370, {NEURON: 12, NEURON_CORE: 24}),
        Size("trn2.48xlarge", 190, 2000, {NEURON: 16, NEURON_CORE: 64}),
    )
}
ORDINARY = Size("m7i.8xlarge", 31, 120, {})


def ordinary(region: str) -> list[dict[str, Any]]:
    """A node without accelerators in each zone of a Region."""
    return [node(f"ordinary-{zone}", ORDINARY, f"{region}{zone}") for zone in ZONES]


def for_values(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A node in each zone for every accelerator and traffic class that the models of these values use.

    With the labels and taints that their default pool gives, and the capacity that it asks for first.

    Raises:
        LookupError: an accelerator, or the largest instance of its family, is not known.
    """
    defaults = yaml.safe_load((checkout.CHARTS / "plane-lib" / "values.yaml").read_text())["defaults"]
    ours = values.get("global", {})
    region = ours.get("aws", {}).get("region", "eu-central-1")
    found = []
    for accelerator, traffic in sorted(_used(ours)):
        profile = defaults["accelerators"].get(accelerator, {}) | ours.get("accelerators", {}).get(accelerator, {})
        if "resource" not in profile:
            raise LookupError(f"global.accelerators.{accelerator}: no profile, so no node can be made for it")
        if not profile["resource"]:
            continue
        family = profile["instanceFamilies"][0]
        if family not in SIZES:
            raise LookupError(
                f"global.accelerators.{accelerator}: how large a node of the family {family} is, is not known here. "
                f"Add its largest instance to SIZES in {__file__}."
            )
        labels = {
            "karpenter.k8s.aws/instance-family": family,
            "eks.amazonaws.com/instance-family": family,
            "karpenter.sh/capacity-type": "spot" if traffic == "batch" else "on-demand",
            "karpenter.sh/nodepool": f"inference-{accelerator}-{traffic}",
            "inference-plane/accelerator": accelerator,
            "inference-plane/traffic": traffic,
        }
        taint = "nvidia.com/gpu" if profile["resource"] == NVIDIA else NEURON
        for zone in ZONES:
            made = node(f"{accelerator}-{traffic}-{zone}", SIZES[family], f"{region}{zone}", labels)
            made["spec"] = {"taints": [{"key": taint, "effect": "NoSchedule"}]}
            found.append(made)
    return found


def node(name: str, size: Size, zone: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A Node that KWOK makes Ready, with room for what `size` says."""
    room = {"cpu": str(size.cpu), "memory": f"{size.memory}Gi", "pods": "110", "ephemeral-storage": "900Gi"}
    room |= {resource: str(count) for resource, count in size.devices.items()}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": FAKE,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": size.instance_type,
                "topology.kubernetes.io/region": zone[:-1],
                "topology.kubernetes.io/zone": zone,
                **(labels or {}),
            },
        },
        "status": {"allocatable": room, "capacity": room},
    }


def whole(ours: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's entry with its profile and the defaults of `global` merged in, and its traffic class."""
    defaults = ours.get("modelDefaults", {})
    profile = defaults.get("profiles", {}).get(model.get("profile"), {})
    return {"traffic": "interactive"} | defaults | profile | dict(model)


def _used(ours: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(accelerator, traffic) of the enabled models."""
    entries = [whole(ours, model) for model in ours.get("models", {}).values() if model and model.get("enabled", True)]
    return {(entry["accelerator"], entry["traffic"]) for entry in entries if "accelerator" in entry}
