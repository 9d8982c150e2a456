"""IAM: what roles may do, and who may have them."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from inference_plane.compliance import iam
from inference_plane.compliance.rules import kind_of, rule
from inference_plane.kube import Index, meta

_IAM = "https://docs.aws.amazon.com/IAM/latest/UserGuide/"
_POD_IDENTITY = "https://docs.aws.amazon.com/eks/latest/userguide/pod-id-abac.html"
_BEDROCK = "https://docs.aws.amazon.com/bedrock/latest/userguide/"
ASSOCIATION = "eks.services.k8s.aws/PodIdentityAssociation"

#: What the plane's workloads call, by the component of the role's labels. A document by itself may have both.
ACTIONS = {
    "engine": {"s3:getobject", "s3:listbucket", "kms:decrypt"},
    "router": {"bedrock:invokemodel", "bedrock:invokemodelwithresponsestream"},
}
#: How a role is assumed: by EKS Pod Identity, or with a token of the cluster's OIDC provider.
ASSUMING = ({"sts:assumerole", "sts:tagsession"}, {"sts:assumerolewithwebidentity"})
_ARN = r"arn:aws[a-z-]*"
_PREFIX = re.compile(rf"{_ARN}:s3:::(?P<bucket>[a-z0-9.-]+)/(?P<prefix>([A-Za-z0-9._=-]+/){{2,}})\*")
_BUCKET = re.compile(rf"{_ARN}:s3:::(?P<bucket>[a-z0-9.-]+)")
_KEY = re.compile(
    rf"{_ARN}:kms:(?P<region>[a-z0-9-]+):[0-9]{{12}}:key/[0-9a-f-]+|{_ARN}:kms:[a-z0-9-]+:[0-9]{{12}}:key/mrk-[0-9a-f]+"
)
_MODEL = re.compile(rf"{_ARN}:bedrock:(?P<region>[a-z0-9-]*)::foundation-model/(?P<id>[A-Za-z0-9.:_-]+)")
_PROFILE = re.compile(rf"{_ARN}:bedrock:(?P<region>[a-z0-9-]+):[0-9]{{12}}:inference-profile/(?P<id>[A-Za-z0-9.:_-]+)")
_PROJECT = re.compile(rf"{_ARN}:bedrock:(?P<region>[a-z0-9-]+):[0-9]{{12}}:project/default")


def _component(obj: Mapping) -> str:
    return str((meta(obj).get("labels") or {}).get("app.kubernetes.io/component", ""))


def _allowed(obj: Mapping, action: str = "*") -> Iterator[iam.Statement]:
    """The statements of the object's permissions that allow an action."""
    for document in iam.documents(obj, iam.PERMISSIONS):
        yield from (statement for statement in document.allows() if action == "*" or statement.does(action))


@rule(
    "PLANE_LP_40",
    "IAM documents are what IAM takes",
    severity="HIGH",
    kinds=iam.HOLDERS,
    why="A document that cannot be read cannot be judged, and IAM may read it otherwise than a reviewer.",
    remedy="One JSON object with Version 2012-10-17 and Statement; each element of a statement once and by its name.",
    source=_IAM + "reference_policies_grammar.html",
    example='{"Statement": [{"effect": "Allow", ...}]}',
)
def well_formed(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for path, kind, text in iam.held(obj):
        try:
            iam.parse(text, path, kind)
        except iam.Malformed as error:
            yield path, str(error).removeprefix(f"{path}: ")


@rule(
    "PLANE_LP_41",
    "What is allowed is said, not left out",
    severity="CRITICAL",
    kinds=iam.HOLDERS,
    why="NotAction, NotResource and NotPrincipal with Allow grant everything else, and what AWS adds next year.",
    remedy="Action, Resource and Principal with exact names.",
    source=_IAM + "reference_policies_elements_notaction.html",
    example='{"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}',
)
def nothing_by_omission(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for document in iam.documents(obj):
        for statement in document.allows():
            if statement.negated:
                yield statement.path, f"allows by {', '.join(sorted(statement.negated))}"


@rule(
    "PLANE_LP_42",
    "Roles do what their workload calls, and no more",
    severity="CRITICAL",
    kinds=iam.HOLDERS,
    why="An engine reads its weights; the router invokes models. Any other action is one for whoever takes them over.",
    remedy="Exact names: " + "; ".join(f"{who}: {', '.join(sorted(what))}" for who, what in ACTIONS.items()) + ".",
    source="docs/identity.md",
    example='"Action": "s3:*"',
)
def exact_actions(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    mine = ACTIONS.get(_component(obj), set().union(*ACTIONS.values()))
    for document in iam.documents(obj, iam.PERMISSIONS):
        for statement in document.allows():
            for action in sorted(set(statement.actions) - mine):
                yield f"{statement.path}.Action", f"allows {action}"


@rule(
    "PLANE_LP_43",
    "Resources are exact",
    severity="CRITICAL",
    kinds=iam.HOLDERS,
    why="A wildcard inside an ARN is every bucket, key, model or Region that fits, now and later.",
    remedy="Exact ARNs; the one wildcard is at the end of a version prefix: arn:aws:s3:::bucket/model/version/*.",
    source=_IAM + "reference_policies_elements_resource.html",
    example='"Resource": "arn:aws:s3:::models-*/clinical/v7/*"',
)
def exact_resources(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for statement in _allowed(obj):
        if not statement.resources:
            yield f"{statement.path}.Resource", "is missing"
        for resource in statement.resources:
            exact = any(p.fullmatch(resource) for p in (_PREFIX, _BUCKET, _KEY, _MODEL, _PROFILE, _PROJECT))
            if not exact:
                yield (
                    f"{statement.path}.Resource",
                    f"{resource} is not one version prefix, bucket, key, model or profile",
                )


def _reads(obj: Mapping) -> set[tuple[str, str]]:
    """(bucket, prefix) of everything that the permissions let read."""
    found = [_PREFIX.fullmatch(r) for s in _allowed(obj, "s3:GetObject") for r in s.resources]
    return {(m["bucket"], m["prefix"]) for m in found if m}


@rule(
    "PLANE_LP_44",
    "Buckets are listed below a version prefix alone",
    severity="HIGH",
    kinds=iam.HOLDERS,
    why="Without the condition a role lists every team's models: names of products, of customers, of what comes next.",
    remedy='"Condition": {"StringLike": {"s3:prefix": ["model/version/*"]}} with a prefix that the role may read.',
    source="https://docs.aws.amazon.com/AmazonS3/latest/userguide/amazon-s3-policy-keys.html#condition-key-bucket-ops-2",
    example="s3:ListBucket without s3:prefix",
)
def listed_by_prefix(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    reads = _reads(obj)
    for statement in _allowed(obj, "s3:ListBucket"):
        prefixes = statement.values("StringLike", "s3:prefix")
        buckets = {m["bucket"] for m in map(_BUCKET.fullmatch, statement.resources) if m}
        if not prefixes:
            yield f"{statement.path}.Condition", "has no StringLike on s3:prefix"
        for prefix in prefixes:
            if not any((bucket, prefix.removesuffix("*")) in reads and prefix.endswith("/*") for bucket in buckets):
                yield f"{statement.path}.Condition.StringLike.s3:prefix", f"{prefix} is no prefix that the role reads"


_S3 = re.compile(r"s3://([a-z0-9.-]+)/([A-Za-z0-9._=/-]+)")


def _sources(node: Any) -> set[tuple[str, str]]:
    """(bucket, prefix) of every s3:// address in an object, each prefix with a slash at its end."""
    return {(bucket, prefix.rstrip("/") + "/") for bucket, prefix in _S3.findall(json.dumps(node))}


@rule(
    "PLANE_LP_45",
    "A role reads what its pods load, and nothing else",
    severity="CRITICAL",
    kinds={iam.ROLE},
    why="A prefix more is another model's weights; a prefix less is an engine that does not start.",
    remedy="The prefix of the entry's source (and of compiled.source): scripts/iam ENV prints it.",
    source="docs/identity.md",
    example="a role that reads clinical-summary/* beside an engine that loads clinical-summary/v7/",
)
def reads_what_is_loaded(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    account = (index.namespace_of(obj), meta(obj).get("name"))
    pods = [w for w in index.workloads if (w.namespace, w.pod.get("serviceAccountName")) == account]
    if not pods:
        return  # Another release has them.
    loaded, read = set().union(*(_sources(w.pod) for w in pods)), _reads(obj)
    for bucket, prefix in sorted(read - loaded):
        yield "spec.inlinePolicies", f"reads s3://{bucket}/{prefix}, which no pod of {account[1]} loads"
    for bucket, prefix in sorted(loaded - read):
        yield "spec.inlinePolicies", f"does not read s3://{bucket}/{prefix}, which pods of {account[1]} load"


@rule(
    "PLANE_LP_46",
    "One key, by way of S3",
    severity="HIGH",
    kinds=iam.HOLDERS,
    why="Decrypt on an alias, on every key, or by any service opens what has nothing to do with weights.",
    remedy='One key ARN, and "StringEquals": {"kms:ViaService": "s3.<region>.amazonaws.com"} of the key\'s Region.',
    source="https://docs.aws.amazon.com/kms/latest/developerguide/conditions-kms.html#conditions-kms-via-service",
    example="kms:Decrypt without kms:ViaService",
)
def one_key(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for statement in _allowed(obj, "kms:Decrypt"):
        if len(statement.resources) != 1 or not _KEY.fullmatch(statement.resources[0]):
            yield f"{statement.path}.Resource", f"is {', '.join(statement.resources) or 'nothing'}, not one key's ARN"
            continue
        region = statement.resources[0].split(":")[3]
        if not any(
            statement.equal("kms:ViaService", f"s3.{region}.{suffix}")
            for suffix in ("amazonaws.com", "amazonaws.com.cn")
        ):
            yield (
                f"{statement.path}.Condition",
                f"lacks StringEquals of kms:ViaService with s3.{region}.amazonaws.com alone",
            )


@rule(
    "PLANE_LP_47",
    "Models are invoked in one Region, or by one inference profile",
    severity="CRITICAL",
    kinds=iam.HOLDERS,
    why="The Region in the request decides where a prompt is processed; IAM is the lock that the router cannot open.",
    remedy="aws:RequestedRegion of the ARN's Region; models of other Regions only with bedrock:InferenceProfileArn.",
    source=_BEDROCK + "geographic-cross-region-inference.html",
    example="bedrock:InvokeModel on foundation-model/* of another Region",
)
def one_region(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for statement in _allowed(obj, "bedrock:*"):
        profile = statement.values("StringEquals", "bedrock:InferenceProfileArn")
        regions = {r.split(":")[3] for r in statement.resources if r.count(":") >= 5}
        if len(profile) == 1 and _PROFILE.fullmatch(profile[0]):
            other = [r for r in statement.resources if not _MODEL.fullmatch(r)]
            wanted = _PROFILE.fullmatch(profile[0])["id"].partition(".")[2]
            other += [r for r in statement.resources if (m := _MODEL.fullmatch(r)) and m["id"] != wanted]
            for resource in other:
                yield f"{statement.path}.Resource", f"{resource} is not a model of the profile {profile[0]}"
            if "" in regions and not (len(regions) == 1 and statement.equal("aws:RequestedRegion", "unspecified")):
                yield f"{statement.path}.Condition", "an ARN without a Region wants aws:RequestedRegion unspecified"
            if "" in regions and not _PROFILE.fullmatch(profile[0])["id"].startswith("global."):
                yield f"{statement.path}.Resource", f"a model of no Region is not one of {profile[0]}"
        elif len(regions) != 1 or not statement.equal("aws:RequestedRegion", *regions):
            asked = ", ".join(statement.values("StringEquals", "aws:RequestedRegion")) or "no Region"
            yield (
                f"{statement.path}.Condition",
                f"asks for {asked}, with resources of {', '.join(sorted(regions)) or 'none'}",
            )


@rule(
    "PLANE_LP_48",
    "The router invokes the models that its configuration names",
    severity="CRITICAL",
    kinds={iam.ROLE},
    why="A model that no route names is a way around the routes; one that the role lacks is a fallback that fails.",
    remedy="The fallback models of the catalogue: scripts/iam ENV prints them.",
    source="docs/identity.md",
    example="a role with one model more than clusters.json",
)
def invokes_what_is_routed(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    configuration = index.get("ConfigMap", index.namespace_of(obj), "router-clusters")
    if _component(obj) != "router" or configuration is None:
        return
    routed = set()
    for cluster in json.loads(configuration["data"]["clusters.json"])["resources"]:
        stated = ((cluster.get("metadata") or {}).get("filter_metadata") or {}).get("inference-plane") or {}
        if stated.get("backend") == "bedrock":
            routed.add(stated.get("model_version"))
    invoked = set()
    for statement in _allowed(obj, "bedrock:InvokeModel"):
        if not statement.values("StringEquals", "bedrock:InferenceProfileArn"):
            invoked |= {m["id"] for r in statement.resources for p in (_MODEL, _PROFILE) if (m := p.fullmatch(r))}
    for model in sorted(invoked - routed):
        yield "spec.inlinePolicies", f"invokes {model}, to which no cluster of the router leads"
    for model in sorted(routed - invoked):
        yield "spec.inlinePolicies", f"does not invoke {model}, to which the router sends"


@rule(
    "PLANE_LP_49",
    "Nobody calls Amazon Bedrock by a bearer token",
    severity="HIGH",
    kinds=iam.HOLDERS,
    why="A Bedrock API key works from anywhere and for as long as it lives; a signature is of one request.",
    remedy='{"Effect": "Deny", "Action": "bedrock:CallWithBearerToken", "Resource": "*"} without a condition.',
    source=_BEDROCK + "api-keys-permissions.html",
    example="a role that invokes models and lacks the deny",
)
def no_bearer_token(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    if not any(_allowed(obj, "bedrock:*")):
        return
    for document in iam.documents(obj, iam.PERMISSIONS):
        for statement in document.statements:
            whole = statement.resources == ("*",) and not statement.conditions and not statement.negated
            if statement.effect == "Deny" and whole and "bedrock:callwithbearertoken" in statement.actions:
                return
    yield "spec.inlinePolicies", "does not deny bedrock:CallWithBearerToken on everything"


@rule(
    "PLANE_LP_50",
    "A role is assumed by EKS for its pods, and by nobody else",
    severity="CRITICAL",
    kinds=iam.HOLDERS,
    why="An account, a user or a wildcard as principal has the role without being the pod.",
    remedy="Service pods.eks.amazonaws.com with AssumeRole and TagSession, or one OIDC provider with "
    "AssumeRoleWithWebIdentity.",
    source="https://docs.aws.amazon.com/eks/latest/userguide/pod-id-role.html",
    example='"Principal": {"AWS": "*"}',
)
def trusts_eks(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for document in iam.documents(obj, iam.TRUST):
        if not list(document.allows()):
            yield document.path, "lets nobody assume the role"
        for statement in document.allows():
            service, provider = (
                ("Service", "pods.eks.amazonaws.com"),
                re.compile(
                    rf"{_ARN}:iam::[0-9]{{12}}:oidc-provider/oidc\.eks\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/id/[0-9A-Z]+"
                ),
            )
            by_service = statement.principals == (service,) and set(statement.actions) == ASSUMING[0]
            by_token = (
                len(statement.principals) == 1
                and statement.principals[0][0] == "Federated"
                and provider.fullmatch(statement.principals[0][1])
                and set(statement.actions) == ASSUMING[1]
            )
            if not (by_service or by_token):
                who = ", ".join(f"{kind} {name}" for kind, name in statement.principals) or "nobody named"
                yield statement.path, f"lets {who} do {', '.join(statement.actions)}"


def _tags(statement: iam.Statement) -> dict[str, str]:
    """The exact values that the statement holds its caller to."""
    found = {}
    for operator, key, values in statement.conditions:
        if operator in ("stringequals", "arnequals") and len(values) == 1 and not iam.wild(values[0]):
            found[key] = values[0]
    return found


@rule(
    "PLANE_LP_51",
    "Trust is bound to one ServiceAccount of one cluster",
    severity="CRITICAL",
    kinds=iam.HOLDERS,
    why="Without the tags every pod of every cluster of the account may have the role, once somebody associates it.",
    remedy="StringEquals of eks-cluster-arn, kubernetes-namespace, kubernetes-service-account, aws:SourceAccount; or "
    "of sub and aud of the OIDC provider.",
    source=_POD_IDENTITY,
    example='"StringLike": {"aws:RequestTag/kubernetes-namespace": "*"}',
)
def trusts_one_account(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for document in iam.documents(obj, iam.TRUST):
        for statement in document.allows():
            tags = _tags(statement)
            account = None
            if any(kind == "Federated" for kind, _ in statement.principals):
                host = statement.principals[0][1].partition("oidc-provider/")[2].lower()
                sub = tags.get(f"{host}:sub", "")
                if match := re.fullmatch(r"system:serviceaccount:([^:]+):([^:]+)", sub):
                    account = match.groups()
                else:
                    yield f"{statement.path}.Condition", f"binds sub to {sub or 'nothing'}"
                if tags.get(f"{host}:aud") != "sts.amazonaws.com":
                    yield f"{statement.path}.Condition", f"binds aud to {tags.get(f'{host}:aud', 'nothing')}"
            else:
                wanted = ("eks-cluster-arn", "kubernetes-namespace", "kubernetes-service-account")
                for tag in wanted:
                    if f"aws:requesttag/{tag}" not in tags:
                        yield f"{statement.path}.Condition", f"does not hold aws:RequestTag/{tag} to one value"
                if not re.fullmatch("[0-9]{12}", tags.get("aws:sourceaccount", "")):
                    yield f"{statement.path}.Condition", "does not hold aws:SourceAccount to one account"
                cluster = tags.get("aws:requesttag/eks-cluster-arn", "")
                if cluster and cluster.split(":")[4:5] != [tags.get("aws:sourceaccount")]:
                    yield (
                        f"{statement.path}.Condition",
                        f"the cluster {cluster} is not of the account {tags.get('aws:sourceaccount')}",
                    )
                account = tuple(tags.get(f"aws:requesttag/{tag}") for tag in wanted[1:])
            mine = (index.namespace_of(obj), meta(obj).get("name"))
            if kind_of(obj) == iam.ROLE and account and None not in account and account != mine:
                yield (
                    f"{statement.path}.Condition",
                    f"trusts {'/'.join(account)}, and the role is of {'/'.join(map(str, mine))}",
                )


@rule(
    "PLANE_LP_52",
    "A role has its own policy and no other",
    severity="HIGH",
    kinds={iam.ROLE, iam.POLICY},
    why="A managed policy is somebody else's text, and changes when they change it.",
    remedy="One inline policy, as the charts render it; bounds go into permissionsBoundary.",
    source=_IAM + "access_policies_managed-vs-inline.html",
    example="policies: [arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess]",
)
def one_policy(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    spec = obj.get("spec") or {}
    if kind_of(obj) == iam.POLICY:
        yield "kind", "a managed policy can be attached to anything"
        return
    for field in ("policies", "policyRefs"):
        if spec.get(field):
            yield f"spec.{field}", f"attaches {json.dumps(spec[field])}"
    if list(spec.get("inlinePolicies") or {}) != ["inference-plane"]:
        yield (
            "spec.inlinePolicies",
            f"has {', '.join(spec.get('inlinePolicies') or {}) or 'none'}, not inference-plane alone",
        )
    if int(spec.get("maxSessionDuration") or 3600) > 3600:
        yield "spec.maxSessionDuration", f"is {spec['maxSessionDuration']} s: an hour is enough for what renews itself"
    namespace, name = index.namespace_of(obj), meta(obj).get("name")
    if not str(spec.get("name")).endswith(f"{namespace}-{name}"):
        yield "spec.name", f"{spec.get('name')} does not end in {namespace}-{name}: the account's names are one space"


@rule(
    "PLANE_LP_53",
    "Associations give an account the role that is its own",
    severity="CRITICAL",
    kinds={ASSOCIATION},
    why="The association decides which role a pod has; session tags are what the trust is bound to.",
    remedy="One ServiceAccount and one Role, of one name; disableSessionTags not set; no targetRoleARN.",
    source="https://docs.aws.amazon.com/eks/latest/userguide/pod-id-association.html",
    example="roleARN: arn:aws:iam::111122223333:role/admin",
)
def association(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    spec = obj.get("spec") or {}
    account = (spec.get("namespace"), spec.get("serviceAccount"))
    role = ((spec.get("roleRef") or {}).get("from") or {}).get("name")
    if index.get("ServiceAccount", *map(str, account)) is None:
        yield "spec.serviceAccount", f"{'/'.join(map(str, account))} is not in the render"
    if role != account[1] or index.namespace_of(obj) != account[0]:
        yield "spec.roleRef", f"gives {'/'.join(map(str, account))} the role object {role!r}, which is not its own"
    if (
        "name" in (spec.get("roleRef") or {}).get("from", {})
        and (spec["roleRef"]["from"].get("namespace") or account[0]) != account[0]
    ):
        yield "spec.roleRef.from.namespace", f"is {spec['roleRef']['from']['namespace']}"
    for field in ("roleARN", "targetRoleARN", "disableSessionTags"):
        if spec.get(field):
            yield f"spec.{field}", f"is {spec[field]!r}"
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,99}", str(spec.get("clusterName") or "")):
        yield "spec.clusterName", f"is {spec.get('clusterName')!r}"


@rule(
    "PLANE_LP_54",
    "Where one role works through a VPC endpoint alone, all of them do",
    severity="HIGH",
    kinds=iam.HOLDERS,
    why="One statement without aws:SourceVpce is one whose credentials work from outside the network.",
    remedy="global.network.s3EndpointIds and bedrockEndpointIds put the condition into every statement of the service.",
    source=_IAM + "reference_policies_condition-keys.html#condition-keys-sourcevpce",
    example="aws:SourceVpce in the roles of three engines, and not in the fourth's",
)
def through_the_endpoint(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for service in ("s3", "bedrock"):
        named = {
            e
            for o in index.objects
            for s in _of_service(o, service)
            for e in s.values("StringEquals", "aws:SourceVpce")
        }
        for statement in _of_service(obj, service) if named else ():
            mine = set(statement.values("StringEquals", "aws:SourceVpce"))
            if mine != named:
                yield (
                    f"{statement.path}.Condition",
                    f"holds aws:SourceVpce to {_list(mine)}, others to {_list(named)}",
                )


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _of_service(obj: Mapping, service: str) -> Iterator[iam.Statement]:
    """Statements that reach a service from inside the network; models behind a profile are reached by AWS itself."""
    if kind_of(obj) in iam.HOLDERS:
        for statement in _allowed(obj, f"{service}:*"):
            if not statement.values("StringEquals", "bedrock:InferenceProfileArn"):
                yield statement


@rule(
    "PLANE_LP_55",
    "All roles trust the same cluster",
    severity="HIGH",
    kinds=iam.HOLDERS,
    why="A role of this environment that trusts another cluster's pods is that cluster's way in.",
    remedy="global.aws.clusterName and accountId of this environment.",
    source=_POD_IDENTITY,
    example="eks-cluster-arn of staging in production's manifests",
)
def one_cluster(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    def clusters(one: Mapping) -> set[str]:
        statements = [s for d in iam.documents(one, iam.TRUST) for s in d.allows()]
        found = {v for s in statements for v in s.values("StringEquals", "aws:RequestTag/eks-cluster-arn")}
        return found | {name for s in statements for kind, name in s.principals if kind == "Federated"}

    everybody: dict[str, int] = {}
    for other in index.objects:
        if kind_of(other) in iam.HOLDERS:
            for cluster in clusters(other):
                everybody[cluster] = everybody.get(cluster, 0) + 1
    usual = max(everybody, key=lambda cluster: everybody[cluster], default="")
    for cluster in sorted(clusters(obj) - {usual}):
        yield "spec.assumeRolePolicyDocument", f"trusts {cluster}, {everybody[usual]} others trust {usual}"
