"""No policy that any render could bring is wider than what its catalogue says; and the check is able to fail."""

import copy
import json
import pathlib
import re

import pytest
import yaml

from inference_plane import helm
from inference_plane.environments import cases

BASES = sorted((pathlib.Path(__file__).parent / "bases").glob("*.yaml"))
RENDERED = ("vllm", "router", "inference-plane")

#: An environment and each chart alone, an example, a base: whatever may have roles, with what roles need.
SOURCES = {case.name: (case.chart, case.values) for case in cases() if case.chart in RENDERED} | {
    f"bases/{path.stem}": ("inference-plane", yaml.safe_load(path.read_text())) for path in BASES
}

#: The ARNs that a policy may name: every part plain, but for the keys below a prefix of at least two folders.
PLAIN = re.compile(r"arn:aws[a-z-]*:[a-z0-9]+:[a-z0-9-]*:([0-9]{12})?:[A-Za-z0-9._/:=-]+")
KEYS = re.compile(r"arn:aws[a-z-]*:s3:::[a-z0-9.-]+(/[A-Za-z0-9._=-]+){2,}/\*")


def with_roles(values):
    """The values as they are, but that these charts make the roles."""
    values = copy.deepcopy(values)
    shared = values["global"]
    needed = {"region": "eu-central-1", "accountId": "111122223333", "clusterName": "prod"}
    shared["aws"] = needed | shared.get("aws", {})
    identity = shared.setdefault("identity", {})
    identity["manage"] = "ack"
    if identity.get("mode") == "none":
        identity["mode"] = "podIdentity"
    return values


def findings(statements, kind):
    """What is too wide in the statements of a policy of a kind, permissions or trust."""
    for statement in statements:
        name = statement["Sid"]
        if statement["Effect"] != "Allow" or {"NotAction", "NotResource", "NotPrincipal"} & set(statement):
            yield f"{name}: allows by what it leaves out"
        for action in statement["Action"]:
            if "*" in action:
                yield f"{name}: the action {action} has a wildcard"
        condition = statement.get("Condition", {})
        for resource in statement.get("Resource", []):
            if not (PLAIN.fullmatch(resource) or KEYS.fullmatch(resource)):
                yield f"{name}: the resource {resource} is more than one thing"
            by_profile = "bedrock:InferenceProfileArn" in condition.get("StringEquals", {})
            if ":::foundation-model/" in resource and not by_profile:
                yield f"{name}: the model {resource} may be called everywhere"
        if "s3:ListBucket" in statement["Action"]:
            prefixes = condition.get("StringLike", {}).get("s3:prefix", [])
            if not prefixes or not all(re.fullmatch(r"([A-Za-z0-9._=-]+/){2,}\*", prefix) for prefix in prefixes):
                yield f"{name}: lists a bucket without a prefix that ends in a version"
        if "kms:Decrypt" in statement["Action"] and "kms:ViaService" not in condition.get("StringEquals", {}):
            yield f"{name}: decrypts what does not come from S3"
        if kind == "trust":
            named = " ".join(condition.get("StringEquals", {}))
            if not re.search(r"RequestTag/kubernetes-service-account|:sub\b", named):
                yield f"{name}: trusts more than one ServiceAccount"
            if not re.search(r"RequestTag/eks-cluster-arn|^oidc", named):
                yield f"{name}: trusts more than one cluster"


def documents(rendered):
    """(name, kind, statements) of every policy in a render."""
    for role in rendered.of_kind("Role"):
        if role["apiVersion"].startswith("iam.services.k8s.aws/"):
            name = role["spec"]["name"]
            for text in role["spec"]["inlinePolicies"].values():
                yield name, "permissions", json.loads(text)["Statement"]
            yield name, "trust", json.loads(role["spec"]["assumeRolePolicyDocument"])["Statement"]


def of(source):
    chart, values = SOURCES[source]
    return list(documents(helm.template(chart, values=with_roles(values))))


@pytest.mark.parametrize("source", SOURCES)
def test_no_policy_is_wider_than_its_catalogue(source):
    assert [(name, found) for name, kind, policy in of(source) for found in findings(policy, kind)] == []


def test_the_sources_have_every_kind_of_statement():
    """So that the test above has something to say of each."""
    sids = {re.sub(r"\d+$", "", s["Sid"]) for source in SOURCES for _, _, policy in of(source) for s in policy}
    assert sids == {
        "ReadWeights", "ListWeights", "ReadCompiled", "ListCompiled", "Decrypt",
        "Project", "OwnRegion", "Profile", "Regions", "Global", "OneServiceAccount",
    }  # fmt: skip


def resource(arn):
    return lambda statement: statement.update(Resource=[arn])


def condition(value):
    return lambda statement: statement.update(Condition=value)


#: What is widened, in which statement, how.
MUTATIONS = {
    "a list of the whole bucket": ("permissions", "ListWeights", condition({})),
    "a list of every prefix": ("permissions", "ListWeights", condition({"StringLike": {"s3:prefix": ["*"]}})),
    "a list above the version": ("permissions", "ListWeights", condition({"StringLike": {"s3:prefix": ["models/*"]}})),
    "every object of the bucket": ("permissions", "ReadWeights", resource("arn:aws:s3:::models/*")),
    "everything": ("permissions", "ReadWeights", resource("*")),
    "every action": ("permissions", "ReadWeights", lambda statement: statement.update(Action=["s3:*"])),
    "a key for everybody": ("permissions", "Decrypt", condition({})),
    "every model": ("permissions", "OwnRegion", resource("arn:aws:bedrock:eu-central-1::foundation-model/*")),
    "a model in every Region": ("permissions", "OwnRegion", resource("arn:aws:bedrock:*::foundation-model/m")),
    "a model anywhere without its profile": ("permissions", "Global", condition({})),
    "all but one action": ("permissions", "OwnRegion", lambda statement: statement.update(NotAction=["iam:*"])),
    "every account of the cluster": ("trust", "OneServiceAccount", condition({})),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_policy_that_is_wider_is_found(mutation):
    wanted, sid, widen = MUTATIONS[mutation]
    sources = ("inference-plane/ci/regulated", "bases/other-choices")
    policies = [policy for source in sources for _, kind, policy in of(source) if kind == wanted]
    statement = next(s for policy in policies for s in policy if re.sub(r"\d+$", "", s["Sid"]) == sid)
    assert list(findings([statement], wanted)) == []
    widened = copy.deepcopy(statement)
    widen(widened)
    assert list(findings([widened], wanted))
