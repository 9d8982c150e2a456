"""What nodes give to the pods on them."""

from collections.abc import Iterator, Mapping

from inference_plane.compliance.rules import rule
from inference_plane.kube import Index


@rule(
    "PLANE_LP_35",
    "Pods cannot take the node's role",
    severity="CRITICAL",
    kinds={"karpenter.k8s.aws/EC2NodeClass"},
    why="With more than one hop, or without session tokens, a pod asks the node's metadata for the node's credentials.",
    remedy="metadataOptions: {httpTokens: required, httpPutResponseHopLimit: 1, httpProtocolIPv6: disabled}",
    source="https://docs.aws.amazon.com/eks/latest/best-practices/identity-and-access-management.html",
    example="httpPutResponseHopLimit: 2",
)
def metadata(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    options = (obj.get("spec") or {}).get("metadataOptions") or {}
    for field, wanted in (("httpTokens", "required"), ("httpPutResponseHopLimit", 1), ("httpProtocolIPv6", "disabled")):
        if options.get(field) != wanted:
            yield f"spec.metadataOptions.{field}", f"is {options.get(field)!r}, not {wanted!r}"


@rule(
    "PLANE_LP_36",
    "Disks of nodes are encrypted, and end with them",
    severity="HIGH",
    kinds={"karpenter.k8s.aws/EC2NodeClass"},
    why="Weights, caches and whatever a process writes of a prompt lie on them.",
    remedy="encrypted: true and deleteOnTermination: true on every device.",
    source="https://docs.aws.amazon.com/ebs/latest/userguide/ebs-encryption.html",
    example="encrypted: false",
)
def disks(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    devices = (obj.get("spec") or {}).get("blockDeviceMappings") or ()
    if not devices:
        yield "spec.blockDeviceMappings", "is empty: the AMI decides"
    for number, device in enumerate(devices):
        for field in ("encrypted", "deleteOnTermination"):
            if (device.get("ebs") or {}).get(field) is not True:
                yield f"spec.blockDeviceMappings[{number}].ebs.{field}", "is not true"


@rule(
    "PLANE_LP_37",
    "Nodes run a pinned image, and no key opens them",
    severity="MEDIUM",
    kinds={"karpenter.k8s.aws/EC2NodeClass"},
    why="An AMI that moves rolls every node when somebody else decides; a script at boot runs as root.",
    remedy="amiSelectorTerms with an alias of an exact version. userData is Bottlerocket's settings, never a script.",
    source="https://karpenter.sh/docs/concepts/nodeclasses/#specamiselectorterms",
    example="alias: bottlerocket@latest",
)
def pinned(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    spec = obj.get("spec") or {}
    for number, term in enumerate(spec.get("amiSelectorTerms") or ()):
        alias = str(term.get("alias") or "")
        if alias and (not alias.partition("@")[2] or alias.endswith("@latest")):
            yield f"spec.amiSelectorTerms[{number}].alias", f"is {alias!r}, which moves"
        if not alias and not term.get("id"):
            yield f"spec.amiSelectorTerms[{number}]", "selects by tags or name, which move"
    data = str(spec.get("userData") or "")
    if data.startswith("#!") or "MIME-Version" in data or "ssh" in data or "host-containers" in data:
        yield "spec.userData", "runs something, or lets somebody in"
