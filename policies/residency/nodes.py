"""Where the nodes of engines are, and what they keep."""

from collections.abc import Iterator, Mapping

from inference_plane.compliance.envoy import dig, items, text
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, meta

_CLASSES = {"karpenter.k8s.aws/EC2NodeClass", "eks.amazonaws.com/NodeClass"}


@rule(
    "PLANE_RES_50",
    "Nodes stand in subnets and security groups that tags name",
    severity="HIGH",
    kinds=_CLASSES,
    why="A tag says what a subnet is for, and who owns the network sets it; an id, a name or an empty term says "
    "nothing, "
    "and a term without tags takes any subnet, public ones too.",
    remedy="Set nodeClass.subnetTags to tags of private subnets, such as kubernetes.io/role/internal-elb, and "
    "securityGroupTags.",
    source="https://karpenter.sh/docs/concepts/nodeclasses/#specsubnetselectorterms",
    example='subnetSelectorTerms: [{tags: {"kubernetes.io/role/elb": "1"}}]',
)
def private_by_tags(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for field in ("subnetSelectorTerms", "securityGroupSelectorTerms"):
        terms = dig(obj, "spec", field)
        if not items(terms):
            yield f"spec.{field}", "names nothing"
        for i, term in enumerate(terms if isinstance(terms, list) else []):
            where, tags = f"spec.{field}[{i}]", dig(term, "tags")
            if not isinstance(term, dict) or set(term) != {"tags"} or not isinstance(tags, dict) or not tags:
                yield where, f"is {term!r}, not tags and nothing else"
                continue
            for key, value in tags.items():
                if not value or "*" in str(value) or "*" in str(key):
                    yield f"{where}.tags['{key}']", f"is {value!r}, which more than one network can have"
                if key == "kubernetes.io/role/elb":
                    yield f"{where}.tags['{key}']", "is the tag of public subnets"


@rule(
    "PLANE_RES_51",
    "Nodes have no public address",
    severity="CRITICAL",
    kinds=_CLASSES,
    why="A node with a public address reaches the internet, and is reached, without a NAT gateway or an endpoint.",
    remedy="Leave associatePublicIPAddress at false; a NodeClass of Auto Mode has it in advancedNetworking.",
    source="https://karpenter.sh/docs/concepts/nodeclasses/#specassociatepublicipaddress",
    example="associatePublicIPAddress: true",
)
def no_public_address(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    if obj.get("kind") == "EC2NodeClass":
        value = dig(obj, "spec", "associatePublicIPAddress")
        if value is not False:
            yield "spec.associatePublicIPAddress", f"is {value!r}: without false the subnet decides"
        return
    for field in ("associatePublicIPAddress", "advancedNetworking"):
        value = dig(obj, "spec", field)
        value = dig(value, "associatePublicIPAddress") if field == "advancedNetworking" else value
        if value not in (None, False):
            yield f"spec.{field}", f"gives nodes a public address: {value!r}"
    # What the class does not say the subnet does: those of internal load balancers are private.
    if dig(obj, "spec", "advancedNetworking", "associatePublicIPAddress") is not False:
        for i, term in enumerate(items(dig(obj, "spec", "subnetSelectorTerms"))):
            if str((dig(term, "tags") or {}).get("kubernetes.io/role/internal-elb")) != "1":
                yield f"spec.subnetSelectorTerms[{i}]", "names no tag of private subnets, and the class no address"


@rule(
    "PLANE_RES_52",
    "What a node keeps is encrypted",
    severity="HIGH",
    kinds=_CLASSES,
    why="Logs, core dumps and caches on a node's volumes hold what prompts left behind, and snapshots travel.",
    remedy="Leave ebs.encrypted at true, with dataVolume.kmsKeyId for a key of your own.",
    source="https://docs.aws.amazon.com/ebs/latest/userguide/ebs-encryption.html",
    example="ebs: {volumeType: gp3, encrypted: false}",
)
def encrypted(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    if obj.get("kind") != "EC2NodeClass":
        return  # Volumes of Auto Mode are always encrypted.
    volumes = items(dig(obj, "spec", "blockDeviceMappings"))
    if not volumes:
        yield "spec.blockDeviceMappings", "names no volume: those of the image need not be encrypted"
    for i, volume in enumerate(volumes):
        ebs = volume.get("ebs") or {}
        if ebs.get("encrypted") is not True:
            yield f"spec.blockDeviceMappings[{i}].ebs.encrypted", f"is {ebs.get('encrypted')!r}, not true"
        if ebs.get("snapshotID"):
            yield f"spec.blockDeviceMappings[{i}].ebs.snapshotID", "brings what somebody else wrote"


@rule(
    "PLANE_RES_53",
    "Nodes are of a class that is judged",
    severity="HIGH",
    kinds={"karpenter.sh/NodePool"},
    why="Subnets, addresses and volumes are the class's; a class that is not in the render can have any.",
    remedy="Render the NodePool with its class, as charts/karpenter-nodepools does.",
    source="https://karpenter.sh/docs/concepts/nodepools/#spectemplatespecnodeclassref",
    example="nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: default}",
)
def class_is_judged(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    ref = dig(obj, "spec", "template", "spec", "nodeClassRef") or {}
    for one in index.kind("EC2NodeClass", "NodeClass"):
        group = text(one.get("apiVersion")).split("/")[0]
        if (group, one.get("kind"), meta(one).get("name")) == (ref.get("group"), ref.get("kind"), ref.get("name")):
            return
    yield "spec.template.spec.nodeClassRef", f"names {ref.get('kind')} {ref.get('name')}, which is not in the render"


@rule(
    "PLANE_RES_84",
    "A node's names are the cluster's",
    severity="HIGH",
    kinds={"karpenter.k8s.aws/EC2NodeClass"},
    why="The kubelet gives every pod of its node the server that answers for names: another one reads each name that "
    "is asked, and says where it leads.",
    remedy="Leave kubelet.clusterDNS, and settings of Kubernetes in userData, to Karpenter.",
    source="https://karpenter.sh/docs/concepts/nodeclasses/#speckubelet",
    example="kubelet: {clusterDNS: [198.51.100.53]}",
)
def names_of_the_cluster(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    if dig(obj, "spec", "kubelet", "clusterDNS"):
        yield "spec.kubelet.clusterDNS", f"is {dig(obj, 'spec', 'kubelet', 'clusterDNS')!r}"
    for setting in ("cluster-dns-ip", "name-servers", "settings.dns", "https-proxy", "settings.network"):
        if setting in text(dig(obj, "spec", "userData")):
            yield "spec.userData", f"has {setting}: it says who answers for names, or by whom requests go"
