"""Breaks of IAM documents, and the same in other spellings."""

import copy

from inference_plane.compliance.mutations import document, find, mutation

REGULATED, IRSA = "inference-plane/ci/regulated", "router/ci/irsa"
ROLE, POLICY, TRUST = "iam.services.k8s.aws/Role", "inference-plane", "assumeRolePolicyDocument"
GET, LIST, KMS = "ReadWeights", "ListWeights", "Decrypt"
REGION = "aws:RequestedRegion"


def _statement(role, sid, source=REGULATED):
    """A decorator's decorator: the change gets the one statement of that Sid, in the permissions or in the trust."""

    def named(rule, name):
        def register(change):
            @mutation(rule, name, source=source)
            def _(objects):
                spec = find(objects, ROLE, role)["spec"]
                holder, key = (spec, TRUST) if sid == "OneServiceAccount" else (spec["inlinePolicies"], POLICY)
                with document(holder, key) as policy:
                    (statement,) = [s for s in policy["Statement"] if s["Sid"] == sid]
                    change(statement)

            return change

        return register

    return named


def _permissions(rule, name, role="clinical-summary", source=REGULATED):
    """The change gets the whole document of permissions."""

    def register(change):
        @mutation(rule, name, source=source)
        def _(objects):
            with document(find(objects, ROLE, role)["spec"]["inlinePolicies"], POLICY) as policy:
                change(policy)

        return change

    return register


def _text(rule, name, old, new, holder="inlinePolicies"):
    """A change of the document's text."""

    @mutation(rule, name, source=REGULATED)
    def _(objects):
        spec = find(objects, ROLE, "clinical-summary")["spec"]
        if holder == TRUST:
            spec[TRUST] = spec[TRUST].replace(old, new, 1)
        else:
            spec["inlinePolicies"][POLICY] = spec["inlinePolicies"][POLICY].replace(old, new, 1)


_text("PLANE_LP_40", "an element in other letters", '"Effect"', '"effect"')
_text("PLANE_LP_40", "an element twice", '"Effect":"Allow"', '"Effect":"Deny","Effect":"Allow"')
_text("PLANE_LP_40", "the older language", "2012-10-17", "2008-10-17")
_text("PLANE_LP_40", "half a document", '"Statement":[', '"Statement":[[')
_text("PLANE_LP_40", "an effect in other letters", '"Allow"', '"allow"', TRUST)
_text("PLANE_LP_40", "a document that is none", "{", "", TRUST)

for name, element in {"actions": "NotAction", "resources": "NotResource"}.items():

    @_statement("clinical-summary", GET)("PLANE_LP_41", f"all {name} but some")
    def _(statement, element=element):
        statement[element] = statement.pop(element.removeprefix("Not"))


@_statement("clinical-summary", "OneServiceAccount")("PLANE_LP_41", "everybody but one")
def _(statement):
    statement["NotPrincipal"] = statement.pop("Principal")


for name, action in {
    "every action of S3": "s3:*",
    "every action, as a scalar": "*",
    "every action of S3 in capitals": "S3:*",
    "writing": "s3:PutObject",
    "older versions of objects": "s3:GetObjectVersion",
    "every action that begins so": "s3:GetObject*",
    "every letter": "s3:Get?bject",
    "models beside weights": "bedrock:InvokeModel",
    "roles of others": "sts:AssumeRole",
}.items():

    @_statement("clinical-summary", GET)("PLANE_LP_42", name)
    def _(statement, action=action):
        statement["Action"] = action

    @_statement("clinical-summary", GET)("PLANE_LP_42", f"{name}, beside the right one")
    def _(statement, action=action):
        statement["Action"].append(action)


@_permissions("PLANE_LP_42", "one statement more")
def _(policy):
    policy["Statement"].append({"Effect": "Allow", "Action": "iam:PassRole", "Resource": "*"})


@_statement("router", "OwnRegion")("PLANE_LP_42", "the router tunes models")
def _(statement):
    statement["Action"].append("bedrock:CreateModelCustomizationJob")


for name, resource in {
    "everything": "*",
    "every bucket": "arn:aws:s3:::*/clinical-summary/v7/*",
    "every bucket of a name": "arn:aws:s3:::payer-*/clinical-summary/v7/*",
    "every version": "arn:aws:s3:::payer-models/clinical-summary/*",
    "every version of a kind": "arn:aws:s3:::payer-models/clinical-summary/v*/*",
    "every model": "arn:aws:s3:::payer-models/*/v7/*",
    "the whole bucket": "arn:aws:s3:::payer-models/*",
    "versions that begin so": "arn:aws:s3:::payer-models/clinical-summary/v7*",
    "a variable": "arn:aws:s3:::payer-models/${aws:PrincipalTag/kubernetes-namespace}/v7/*",
    "every partition": "arn:*:s3:::payer-models/clinical-summary/v7/*",
}.items():

    @_statement("clinical-summary", GET)("PLANE_LP_43", name)
    def _(statement, resource=resource):
        statement["Resource"] = resource

    @_statement("clinical-summary", GET)("PLANE_LP_43", f"{name}, beside the right one")
    def _(statement, resource=resource):
        statement["Resource"].append(resource)


for name, resource in {
    "every model of a maker": "arn:aws:bedrock:eu-central-1::foundation-model/openai.*",
    "every Region": "arn:aws:bedrock:*::foundation-model/openai.gpt-oss-120b-1:0",
    "every Region of a continent": "arn:aws:bedrock:eu-*::foundation-model/openai.gpt-oss-120b-1:0",
    "an application inference profile": "arn:aws:bedrock:eu-central-1:111122223333:application-inference-profile/abc",
    "a prompt router": "arn:aws:bedrock:eu-central-1:111122223333:default-prompt-router/anthropic.claude:1",
    "an imported model": "arn:aws:bedrock:eu-central-1:111122223333:imported-model/abc",
    "every project": "arn:aws:bedrock:eu-central-1:111122223333:project/*",
}.items():

    @_statement("router", "OwnRegion")("PLANE_LP_43", name)
    def _(statement, resource=resource):
        statement["Resource"] = [resource]


@_statement("clinical-summary", GET)("PLANE_LP_43", "no resource")
def _(statement):
    del statement["Resource"]


for name, condition in {
    "no condition": None,
    "every prefix": {"StringLike": {"s3:prefix": ["*"]}},
    "every prefix, as a scalar": {"StringLike": {"s3:prefix": "*"}},
    "every version's prefix": {"StringLike": {"s3:prefix": ["clinical-summary/*"]}},
    "another model's prefix": {"StringLike": {"s3:prefix": ["records/v3/*"]}},
    "one prefix more": {"StringLike": {"s3:prefix": ["clinical-summary/v7/*", ""]}},
    "a condition that holds where there is no prefix": {"StringLikeIfExists": {"s3:prefix": ["clinical-summary/v7/*"]}},
    "every prefix but one": {"StringNotLike": {"s3:prefix": ["records/*"]}},
    "a prefix of keys that begin so": {"StringLike": {"s3:prefix": ["clinical-summary/v7*"]}},
}.items():

    @_statement("clinical-summary", LIST)("PLANE_LP_44", name)
    def _(statement, condition=condition):
        statement.pop("Condition")
        if condition:
            statement["Condition"] = condition


@_statement("clinical-summary", GET)("PLANE_LP_45", "the weights of another model")
def _(statement):
    statement["Resource"] = ["arn:aws:s3:::payer-models/records/v3/*"]


@_statement("clinical-summary", GET)("PLANE_LP_45", "the weights of another model too")
def _(statement):
    statement["Resource"].append("arn:aws:s3:::payer-models/records/v3/*")


@_statement("clinical-summary", GET)("PLANE_LP_45", "another version")
def _(statement):
    statement["Resource"] = ["arn:aws:s3:::payer-models/clinical-summary/v6/*"]


@_statement("clinical-summary-canary", GET)("PLANE_LP_45", "the canary reads what it is to replace")
def _(statement):
    statement["Resource"] = ["arn:aws:s3:::payer-models/clinical-summary/v7/*"]


@_statement("clinical-summary", GET)("PLANE_LP_45", "another bucket")
def _(statement):
    statement["Resource"] = ["arn:aws:s3:::other-models/clinical-summary/v7/*"]


VIA = "kms:ViaService"
for name, change in {
    "no condition": lambda s: s.pop("Condition"),
    "by any service": lambda s: s.update(Condition={"StringLike": {VIA: "*"}}),
    "by a service of another Region": lambda s: s.update(
        Condition={"StringEquals": {VIA: "s3.us-east-1.amazonaws.com"}}
    ),
    "by one service more": lambda s: s["Condition"]["StringEquals"].update(
        {VIA: ["s3.eu-central-1.amazonaws.com", "ec2.eu-central-1.amazonaws.com"]}
    ),
    "where a service is said": lambda s: s.update(Condition={"StringEqualsIfExists": s["Condition"]["StringEquals"]}),
    "every key": lambda s: s.update(Resource="*"),
    "every key of the account": lambda s: s.update(Resource="arn:aws:kms:eu-central-1:111122223333:key/*"),
    "an alias": lambda s: s.update(Resource="arn:aws:kms:eu-central-1:111122223333:alias/models"),
    "two keys": lambda s: s["Resource"].append("arn:aws:kms:eu-central-1:111122223333:key/" + "0" * 8),
}.items():
    _statement("clinical-summary", KMS)("PLANE_LP_46", name)(change)

MODEL = "foundation-model/openai.gpt-oss-120b-1:0"
for name, change in {
    "no Region asked for": lambda s: s["Condition"]["StringEquals"].pop(REGION),
    "another Region asked for": lambda s: s["Condition"]["StringEquals"].update({REGION: "us-east-1"}),
    "a second Region asked for": lambda s: s["Condition"]["StringEquals"].update(
        {REGION: ["eu-central-1", "us-east-1"]}
    ),
    "another Region's model": lambda s: s.update(Resource=[f"arn:aws:bedrock:us-east-1::{MODEL}"]),
    "another Region's model too": lambda s: s["Resource"].append(f"arn:aws:bedrock:us-east-1::{MODEL}"),
    "the Region where it is said": lambda s: s.update(Condition={"StringEqualsIfExists": {REGION: "eu-central-1"}}),
    "any Region but one": lambda s: s.update(Condition={"StringNotEquals": {REGION: "us-east-1"}}),
    "any Region of a continent": lambda s: s.update(Condition={"StringLike": {REGION: "eu-*"}}),
    "the key in other letters, another Region": lambda s: s["Condition"].update(
        StringEquals={"AWS:REQUESTEDREGION": "us-east-1"}
    ),
}.items():
    _statement("router", "OwnRegion")("PLANE_LP_47", name)(change)
for name, change in {
    "models of a profile without it": lambda s: s.pop("Condition"),
    "models of any profile": lambda s: s.update(Condition={"StringLike": {"bedrock:InferenceProfileArn": "*"}}),
    "another model of the profile's Regions": lambda s: s["Resource"].append(f"arn:aws:bedrock:eu-west-1::{MODEL}"),
}.items():
    _statement("router", "Regions0", IRSA)("PLANE_LP_47", name)(change)


@_statement("router", "Global1", IRSA)("PLANE_LP_47", "a model of no Region, asked for anywhere")
def _(statement):
    del statement["Condition"]["StringEquals"][REGION]


@_statement("router", "OwnRegion")("PLANE_LP_48", "a model that no route names")
def _(statement):
    statement["Resource"].append("arn:aws:bedrock:eu-central-1::foundation-model/openai.gpt-oss-20b-1:0")


@_statement("router", "OwnRegion")("PLANE_LP_48", "another model")
def _(statement):
    statement["Resource"] = ["arn:aws:bedrock:eu-central-1::foundation-model/mistral.mistral-large-2407-v1:0"]


@_permissions("PLANE_LP_48", "no model", role="router")
def _(policy):
    policy["Statement"] = [s for s in policy["Statement"] if s["Sid"] != "OwnRegion"]


@_permissions("PLANE_LP_49", "no word of bearer tokens", role="router")
def _(policy):
    policy["Statement"] = [s for s in policy["Statement"] if s["Effect"] != "Deny"]


for name, change in {
    "bearer tokens allowed": lambda s: s.update(Effect="Allow"),
    "denied in one Region": lambda s: s.update(Condition={"StringEquals": {REGION: "eu-central-1"}}),
    "denied for one model": lambda s: s.update(Resource=[f"arn:aws:bedrock:eu-central-1::{MODEL}"]),
    "another action denied": lambda s: s.update(Action=["bedrock:CallWithBearerTokens"]),
    "all but bearer tokens denied": lambda s: s.update(NotAction=s.pop("Action")),
}.items():
    _statement("router", "NoBearerToken")("PLANE_LP_49", name)(change)

for name, change in {
    "everybody": lambda s: s.update(Principal="*"),
    "every account": lambda s: s.update(Principal={"AWS": "*"}),
    "an account": lambda s: s.update(Principal={"AWS": "111122223333"}),
    "an account beside EKS": lambda s: s["Principal"].update(AWS="arn:aws:iam::111122223333:root"),
    "another service": lambda s: s.update(Principal={"Service": "ec2.amazonaws.com"}),
    "one service more": lambda s: s.update(Principal={"Service": ["pods.eks.amazonaws.com", "ec2.amazonaws.com"]}),
    "every way of assuming": lambda s: s.update(Action="sts:*"),
    "a way more": lambda s: s["Action"].append("sts:SetSourceIdentity"),
    "no tags": lambda s: s.update(Action=["sts:AssumeRole"]),
    "nobody": lambda s: s.update(Effect="Deny"),
}.items():
    _statement("clinical-summary", "OneServiceAccount")("PLANE_LP_50", name)(change)


@_statement("router", "OneServiceAccount", IRSA)("PLANE_LP_50", "every provider")
def _(statement):
    statement["Principal"] = {"Federated": "arn:aws:iam::111122223333:oidc-provider/*"}


@_statement("router", "OneServiceAccount", IRSA)("PLANE_LP_50", "a provider of somebody else's")
def _(statement):
    statement["Principal"] = {
        "Federated": "arn:aws:iam::111122223333:oidc-provider/token.actions.githubusercontent.com"
    }


ACCOUNT, NAMESPACE = "aws:RequestTag/kubernetes-service-account", "aws:RequestTag/kubernetes-namespace"
CLUSTER = "aws:RequestTag/eks-cluster-arn"
for name, change in {
    "no condition": lambda s: s.pop("Condition"),
    "any account": lambda s: s["Condition"]["StringEquals"].pop(ACCOUNT),
    "any namespace": lambda s: s["Condition"]["StringEquals"].pop(NAMESPACE),
    "any cluster": lambda s: s["Condition"]["StringEquals"].pop(CLUSTER),
    "any AWS account": lambda s: s["Condition"]["StringEquals"].pop("aws:SourceAccount"),
    "accounts that fit": lambda s: s.update(
        Condition={"StringLike": s["Condition"]["StringEquals"] | {ACCOUNT: "clinical-*"}}
    ),
    "tags where there are some": lambda s: s.update(Condition={"StringEqualsIfExists": s["Condition"]["StringEquals"]}),
    "one account more": lambda s: s["Condition"]["StringEquals"].update({ACCOUNT: ["clinical-summary", "records"]}),
    "another account": lambda s: s["Condition"]["StringEquals"].update({ACCOUNT: "records"}),
    "another namespace": lambda s: s["Condition"]["StringEquals"].update({NAMESPACE: "default"}),
    "a cluster of another AWS account": lambda s: s["Condition"]["StringEquals"].update(
        {CLUSTER: "arn:aws:eks:eu-central-1:999988887777:cluster/inference-prod"}
    ),
    "equal in any letters": lambda s: s.update(Condition={"StringEqualsIgnoreCase": s["Condition"]["StringEquals"]}),
    "every value of a set": lambda s: s.update(Condition={"ForAllValues:StringEquals": s["Condition"]["StringEquals"]}),
}.items():
    _statement("clinical-summary", "OneServiceAccount")("PLANE_LP_51", name)(change)
HOST = "oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF"
for name, change in {
    "any token": lambda s: s["Condition"]["StringEquals"].pop(f"{HOST}:sub"),
    "tokens for anybody": lambda s: s["Condition"]["StringEquals"].pop(f"{HOST}:aud"),
    "any account of the namespace": lambda s: s.update(
        Condition={
            "StringLike": {f"{HOST}:sub": "system:serviceaccount:inference:*", f"{HOST}:aud": "sts.amazonaws.com"}
        }
    ),
    "an account of another namespace": lambda s: s["Condition"]["StringEquals"].update(
        {f"{HOST}:sub": "system:serviceaccount:default:router"}
    ),
}.items():
    _statement("router", "OneServiceAccount", IRSA)("PLANE_LP_51", name)(change)


def _role(rule, what, **fields):
    mutation(rule, what, source=REGULATED)(
        lambda objects: find(objects, ROLE, "clinical-summary")["spec"].update(fields)
    )


_role("PLANE_LP_52", "a managed policy", policies=["arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"])
_role("PLANE_LP_52", "a policy by reference", policyRefs=[{"from": {"name": "more"}}])
_role("PLANE_LP_52", "half a day", maxSessionDuration=43200)
_role("PLANE_LP_52", "a name without its namespace", name="clinical-summary")


@mutation("PLANE_LP_52", "a second policy", source=REGULATED)
def _(objects):
    policies = find(objects, ROLE, "clinical-summary")["spec"]["inlinePolicies"]
    policies["more"] = policies[POLICY]


@mutation("PLANE_LP_52", "a managed policy as an object", source=REGULATED)
def _(objects):
    text = find(objects, ROLE, "router")["spec"]["inlinePolicies"][POLICY]
    metadata = {"name": "more", "namespace": "inference"}
    spec = {"name": "more", "policyDocument": text}
    objects.append(
        {"apiVersion": "iam.services.k8s.aws/v1alpha1", "kind": "Policy", "metadata": metadata, "spec": spec}
    )


def _association(what, **fields):
    mutation("PLANE_LP_53", what, source=REGULATED)(
        lambda objects: find(objects, "PodIdentityAssociation", "clinical-summary")["spec"].update(fields)
    )


_association("the router's role", roleRef={"from": {"name": "router"}})
_association("a role by its ARN", roleARN="arn:aws:iam::111122223333:role/admin")
_association("a role of another account", targetRoleARN="arn:aws:iam::999988887777:role/admin")
_association("no session tags", disableSessionTags=True)
_association("another account of the cluster", serviceAccount="router")
_association("another namespace", namespace="default")
_association("no cluster", clusterName="")
_association("a role of another namespace", roleRef={"from": {"name": "clinical-summary", "namespace": "default"}})

VPCE = "aws:SourceVpce"
for role, sid in (
    ("clinical-summary", GET),
    ("clinical-summary", LIST),
    ("router", "OwnRegion"),
    ("router", "Project"),
):
    for name, change in {
        "without the endpoint": lambda s: s["Condition"]["StringEquals"].pop(VPCE),
        "by another endpoint": lambda s: s["Condition"]["StringEquals"].update({VPCE: ["vpce-0123456789abcdef0"]}),
    }.items():
        _statement(role, sid)("PLANE_LP_54", f"{sid} of {role} {name}")(change)


@_statement("clinical-summary", "OneServiceAccount")("PLANE_LP_55", "another cluster of the same AWS account")
def _(statement):
    statement["Condition"]["StringEquals"][CLUSTER] = "arn:aws:eks:eu-central-1:111122223333:cluster/inference-dev"


def _elsewhere(rule, name, change):
    """A role's document as somebody else holds it: in a file of its own, in a ConfigMap."""

    @mutation(rule, f"{name}, in a file of its own", source=REGULATED)
    def _(objects):
        holder = {"document": find(objects, ROLE, "clinical-summary")["spec"]["inlinePolicies"][POLICY]}
        with document(holder, "document") as policy:
            change(policy)
            parsed = copy.deepcopy(policy)
        metadata = {"name": "policy.json"}
        objects.append(
            {"apiVersion": "iam.inference-plane/v1", "kind": "PolicyDocument", "metadata": metadata}
            | {"document": parsed}
        )

    @mutation(rule, f"{name}, in a ConfigMap", source=REGULATED)
    def _(objects):
        data = dict(find(objects, ROLE, "clinical-summary")["spec"]["inlinePolicies"])
        with document(data, POLICY) as policy:
            change(policy)
        metadata = {"name": "policies", "namespace": "inference"}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


_elsewhere("PLANE_LP_42", "every action", lambda policy: policy["Statement"][0].update(Action="*"))
_elsewhere("PLANE_LP_43", "every object", lambda policy: policy["Statement"][0].update(Resource="*"))
_elsewhere("PLANE_LP_44", "every list", lambda policy: policy["Statement"][1].pop("Condition"))
_elsewhere(
    "PLANE_LP_41",
    "all but something",
    lambda policy: policy["Statement"][0].update(NotAction=policy["Statement"][0].pop("Action")),
)
_elsewhere("PLANE_LP_40", "a statement in other letters", lambda policy: policy["Statement"].append({"action": "*"}))
