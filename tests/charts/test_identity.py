"""IAM as code: what each role may do and who may be it, what pods carry, what is refused, and `scripts/iam`."""

import json
import pathlib
from typing import Any

import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.commands import iam
from inference_plane.manifests import check
from inference_plane.onehost.router import xds_files

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/7c5d9a10-3f1e-4c58-9b07-2a4f6d8e1b30"
HOST = "oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF"
GPU = {"weightsGiB": 15.3, "accelerator": "l40s", "maxModelLen": 16384}
INVOKE = ["bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream"]
HERE = {"StringEquals": {"aws:RequestedRegion": "eu-central-1"}}
OWN = f"arn:aws:bedrock:eu-central-1:{ACCOUNT}"

BASE: dict[str, Any] = {
    "global": {
        "aws": {"region": "eu-central-1", "accountId": ACCOUNT, "clusterName": "prod"},
        "tls": {"mode": "none"},
        "residency": {"geography": "eu"},
        "identity": {"manage": "ack"},
        "network": {
            "s3Cidrs": ["10.0.1.0/24"],
            "bedrockCidrs": ["10.0.2.0/24"],
            "apiServerCidrs": ["10.0.5.0/28"],
            "albSubnetCidrs": ["10.0.3.0/24"],
            "stsCidrs": ["10.0.4.0/24"],
        },
        "models": {
            "summary": {
                **GPU,
                "source": "s3://payer-models/summary/v7/",
                "kmsKeyArn": KEY,
                "residency": "region",
                "fallback": {"model": "openai.gpt-oss-120b-1:0", "retention": "none"},
            },
            "records": {**GPU, "source": "s3://payer-models/records/v3/", "namespace": "care"},
            "tiny": {"source": "file:///models/tiny/v1/", "weightsGiB": 0.3, "accelerator": "cpu", "maxModelLen": 512},
        },
    },
    "router": {"auth": {"mode": "none"}},
}
NONE = {"identity": {"mode": "none", "manage": "external"}}
NO_FALLBACK = {"models": {"summary": {"fallback": None}}}
IRSA = {"identity": {"mode": "irsa", "oidcProvider": HOST}}


def merged(base: Any, overlay: Any) -> Any:
    """Values as Helm merges them: maps by key, anything else replaced."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: merged(base.get(key), value) for key, value in overlay.items()}


def values(overlay: dict[str, Any] | None = None, **charts: Any) -> dict[str, Any]:
    whole = merged(BASE, {"global": overlay or {}, **charts})
    if whole["global"]["identity"].get("mode") == "irsa":
        whole = merged(whole, {"router": {"bedrock": {"unverifiedSts": True}}})
    return whole


def render(overlay: dict[str, Any] | None = None, **charts: Any) -> helm.Render:
    return helm.template("inference-plane", values=values(overlay, **charts))


def falls_back(*targets: str) -> dict[str, Any]:
    """Models that fall back to these."""
    entry = {**BASE["global"]["models"]["tiny"], "residency": "anywhere"}
    fallbacks = [{"model": target, "retention": "none"} for target in targets]
    return {"models": {f"m{n}": {**entry, "fallback": fallback} for n, fallback in enumerate(fallbacks)}}


def policy(rendered: helm.Render, name: str) -> list[dict[str, Any]]:
    (document,) = rendered.find("Role", name)["spec"]["inlinePolicies"].values()
    return json.loads(document)["Statement"]


def trust(rendered: helm.Render, name: str) -> dict[str, Any]:
    (statement,) = json.loads(rendered.find("Role", name)["spec"]["assumeRolePolicyDocument"])["Statement"]
    return statement


def iam_roles(rendered: helm.Render) -> list[dict[str, Any]]:
    """The roles of AWS, and not those of Kubernetes."""
    return [role for role in rendered.of_kind("Role") if role["apiVersion"].startswith("iam.services.k8s.aws/")]


def pod(rendered: helm.Render, name: str) -> dict[str, Any]:
    return rendered.find("Deployment", name)["spec"]["template"]["spec"]


class TestPolicies:
    def test_an_engine_reads_its_version_and_nothing_else(self) -> None:
        assert policy(render(), "summary") == [
            {
                "Sid": "ReadWeights",
                "Effect": "Allow",
                "Action": ["s3:GetObject"],
                "Resource": ["arn:aws:s3:::payer-models/summary/v7/*"],
            },
            {
                "Sid": "ListWeights",
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": ["arn:aws:s3:::payer-models"],
                "Condition": {"StringLike": {"s3:prefix": ["summary/v7/*"]}},
            },
            {
                "Sid": "Decrypt",
                "Effect": "Allow",
                "Action": ["kms:Decrypt"],
                "Resource": [KEY],
                "Condition": {"StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}},
            },
        ]

    def test_a_model_without_a_key_decrypts_nothing(self) -> None:
        assert [statement["Sid"] for statement in policy(render(), "records")] == ["ReadWeights", "ListWeights"]

    def test_on_neuron_the_compiled_artifact_is_read_too(self) -> None:
        compiled = {"source": "s3://neuron/summary/v7/", "tensorParallelSize": 2, "maxModelLen": 4096, "maxNumSeqs": 64}
        entry = {"accelerator": "inferentia2", "tensorParallelSize": 2, "maxModelLen": 4096, "compiled": compiled}
        found = {statement["Sid"]: statement for statement in policy(render({"models": {"records": entry}}), "records")}
        assert set(found) == {"ReadWeights", "ListWeights", "ReadCompiled", "ListCompiled"}
        assert found["ReadCompiled"]["Resource"] == ["arn:aws:s3:::neuron/summary/v7/*"]
        assert found["ListCompiled"]["Resource"] == ["arn:aws:s3:::neuron"]
        assert found["ListCompiled"]["Condition"] == {"StringLike": {"s3:prefix": ["summary/v7/*"]}}

    def test_weights_in_the_image_need_no_role(self) -> None:
        rendered = render()
        assert {role["metadata"]["name"] for role in iam_roles(rendered)} == {"summary", "records", "router"}
        associations = rendered.of_kind("PodIdentityAssociation")
        assert {a["metadata"]["name"] for a in associations} == {"summary", "records", "router"}

    def test_a_router_without_a_fallback_has_no_role(self) -> None:
        rendered = render(NO_FALLBACK)
        assert {role["metadata"]["name"] for role in rendered.of_kind("Role")} == {"summary", "records"}
        assert "env" not in pod(rendered, "router")["containers"][0]

    def test_the_router_invokes_a_foundation_model_in_its_own_region(self) -> None:
        deny, project, own = policy(render(), "router")
        assert deny == {
            "Sid": "NoBearerToken",
            "Effect": "Deny",
            "Action": ["bedrock:CallWithBearerToken"],
            "Resource": ["*"],
        }
        assert project["Resource"] == [f"{OWN}:project/default"] and project["Condition"] == HERE
        assert own == {
            "Sid": "OwnRegion",
            "Effect": "Allow",
            "Action": INVOKE,
            "Condition": HERE,
            "Resource": ["arn:aws:bedrock:eu-central-1::foundation-model/openai.gpt-oss-120b-1:0"],
        }

    def test_a_geography_s_profile_is_invoked_in_its_regions_by_way_of_the_profile_alone(self) -> None:
        regions = {"bedrock": {"profileRegions": {"eu": ["eu-west-1", "eu-central-1"]}}}
        target = "eu.mistral.pixtral-large-2502-v1:0"
        rendered = render(merged(NO_FALLBACK, falls_back(target, target)) | regions)
        _, _, profile, models = policy(rendered, "router")
        arn = f"{OWN}:inference-profile/{target}"
        assert profile == {
            "Sid": "Profile0",
            "Effect": "Allow",
            "Action": INVOKE,
            "Resource": [arn],
            "Condition": HERE,
        }
        assert models == {
            "Sid": "Regions0",
            "Effect": "Allow",
            "Action": INVOKE,
            "Resource": [
                "arn:aws:bedrock:eu-central-1::foundation-model/mistral.pixtral-large-2502-v1:0",
                "arn:aws:bedrock:eu-west-1::foundation-model/mistral.pixtral-large-2502-v1:0",
            ],
            "Condition": {"StringEquals": {"bedrock:InferenceProfileArn": arn}},
        }

    def test_the_global_profile_has_the_region_less_model_and_no_other_region(self) -> None:
        target = "global.openai.gpt-oss-20b-1:0"
        rendered = render(merged(NO_FALLBACK, falls_back(target)))
        _, _, profile, own, anywhere = policy(rendered, "router")
        arn = f"{OWN}:inference-profile/{target}"
        assert profile["Resource"] == [arn]
        assert own["Resource"] == ["arn:aws:bedrock:eu-central-1::foundation-model/openai.gpt-oss-20b-1:0"]
        assert own["Condition"] == {"StringEquals": {"bedrock:InferenceProfileArn": arn}}
        assert anywhere["Resource"] == ["arn:aws:bedrock:::foundation-model/openai.gpt-oss-20b-1:0"]
        assert anywhere["Condition"] == {
            "StringEquals": {"aws:RequestedRegion": "unspecified", "bedrock:InferenceProfileArn": arn}
        }

    def test_a_foundation_model_alone_reaches_no_other_region(self) -> None:
        """The second lock on residency: nothing in the policy lets a region-bound fleet's prompts leave."""
        (document,) = render().find("Role", "router")["spec"]["inlinePolicies"].values()
        assert "inference-profile" not in document and document.count("arn:aws:bedrock:eu-central-1:") == 2

    def test_a_named_endpoint_binds_every_statement_but_those_behind_a_profile(self) -> None:
        ids = {"s3EndpointIds": ["vpce-0a1b2c3d"], "bedrockEndpointIds": ["vpce-1a2b3c4d"]}
        rendered = render({"network": ids})
        by = {s["Sid"]: s.get("Condition", {}).get("StringEquals", {}) for s in policy(rendered, "summary")}
        assert by["ReadWeights"] == by["ListWeights"] == {"aws:SourceVpce": ["vpce-0a1b2c3d"]}
        router = {s["Sid"]: s.get("Condition", {}).get("StringEquals", {}) for s in policy(rendered, "router")}
        assert router["OwnRegion"]["aws:SourceVpce"] == router["Project"]["aws:SourceVpce"] == ["vpce-1a2b3c4d"]
        assert router["NoBearerToken"] == {}

    def test_other_partitions_have_their_own_names(self) -> None:
        key = KEY.replace("aws:kms:eu-central-1", "aws-cn:kms:cn-north-1")
        models = {"summary": {"fallback": None, "kmsKeyArn": key}}
        rendered = render({"aws": {"partition": "aws-cn", "region": "cn-north-1"}, "models": models})
        read, _, decrypt = policy(rendered, "summary")
        assert read["Resource"] == ["arn:aws-cn:s3:::payer-models/summary/v7/*"]
        assert decrypt["Condition"] == {"StringEquals": {"kms:ViaService": "s3.cn-north-1.amazonaws.com.cn"}}


class TestTrust:
    def test_pod_identity_trusts_one_service_account_of_one_cluster(self) -> None:
        assert trust(render(), "records") == {
            "Sid": "OneServiceAccount",
            "Effect": "Allow",
            "Principal": {"Service": "pods.eks.amazonaws.com"},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
            "Condition": {
                "StringEquals": {
                    "aws:SourceAccount": ACCOUNT,
                    "aws:RequestTag/eks-cluster-arn": f"arn:aws:eks:eu-central-1:{ACCOUNT}:cluster/prod",
                    "aws:RequestTag/kubernetes-namespace": "care",
                    "aws:RequestTag/kubernetes-service-account": "records",
                }
            },
        }

    def test_irsa_trusts_one_subject_of_one_provider(self) -> None:
        assert trust(render(IRSA), "records") == {
            "Sid": "OneServiceAccount",
            "Effect": "Allow",
            "Principal": {"Federated": f"arn:aws:iam::{ACCOUNT}:oidc-provider/{HOST}"},
            "Action": ["sts:AssumeRoleWithWebIdentity"],
            "Condition": {
                "StringEquals": {
                    f"{HOST}:sub": "system:serviceaccount:care:records",
                    f"{HOST}:aud": "sts.amazonaws.com",
                }
            },
        }


#: A second version of a model, which has to be read by a role of its own.
CANARY = {"models": {"summary": {"canary": {"source": "s3://payer-models/summary/v8/", "percent": 10}}}}


class TestCanary:
    """Each fleet's pods have a role that reads their version and not the other fleet's."""

    def test_with_ack_it_has_a_role_and_an_association_of_its_own(self) -> None:
        rendered = render(CANARY)
        for account, version in (("summary", "v7"), ("summary-canary", "v8")):
            read = policy(rendered, account)[0]
            assert read["Resource"] == [f"arn:aws:s3:::payer-models/summary/{version}/*"]
            trusted = trust(rendered, account)["Condition"]["StringEquals"]
            assert trusted["aws:RequestTag/kubernetes-service-account"] == account
            association = rendered.find("PodIdentityAssociation", account)["spec"]
            assert (association["serviceAccount"], association["roleRef"]) == (account, {"from": {"name": account}})
            assert pod(rendered, account)["serviceAccountName"] == account

    def test_with_irsa_its_account_names_its_own_role(self) -> None:
        rendered = render(merged(IRSA, CANARY))
        for account in ("summary", "summary-canary"):
            role = rendered.find("Role", account)["spec"]["name"]
            named = rendered.find("ServiceAccount", account)["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
            assert named == f"arn:aws:iam::{ACCOUNT}:role/{role}" and role.endswith(f"-{account}")
            subject = trust(rendered, account)["Condition"]["StringEquals"][f"{HOST}:sub"]
            assert subject == f"system:serviceaccount:inference:{account}"


class TestObjects:
    @pytest.mark.parametrize("overlay", [{}, IRSA], ids=["podIdentity", "irsa"])
    def test_they_are_what_their_controllers_take(self, overlay: dict[str, Any]) -> None:
        rendered = render(overlay)
        assert [str(finding) for finding in check(rendered.objects)] == []

    def test_an_association_waits_for_its_role_and_names_the_account_of_the_pod(self) -> None:
        rendered = render()
        for role in iam_roles(rendered):
            name, namespace = role["metadata"]["name"], role["metadata"]["namespace"]
            assert role["spec"]["name"] == f"inference-{namespace}-{name}"
            association = rendered.find("PodIdentityAssociation", name)
            assert association["metadata"]["namespace"] == namespace
            assert association["metadata"]["annotations"] == {"services.k8s.aws/region": "eu-central-1"}
            assert association["spec"] == {
                "clusterName": "prod",
                "namespace": namespace,
                "serviceAccount": name,
                "roleRef": {"from": {"name": name}},
            }
            assert rendered.find("ServiceAccount", name)["metadata"]["namespace"] == namespace
            assert pod(rendered, name)["serviceAccountName"] == name

    def test_a_boundary_bounds_every_role(self) -> None:
        boundary = f"arn:aws:iam::{ACCOUNT}:policy/workloads"
        roles = iam_roles(render({"identity": {"permissionsBoundaryArn": boundary}}))
        assert {role["spec"]["permissionsBoundary"] for role in roles} == {boundary}
        assert not [role for role in iam_roles(render()) if "permissionsBoundary" in role["spec"]]

    @pytest.mark.parametrize("mode", ["podIdentity", "irsa", "none"])
    def test_nothing_of_them_is_rendered_where_somebody_else_makes_them(self, mode: str) -> None:
        rendered = render({"identity": {"mode": mode, "manage": "external"}})
        assert "services.k8s.aws" not in rendered.text


#: The token that EKS's own webhook would mount, by the names it looks for.
TOKEN = {
    "name": "eks-pod-identity-token",
    "mountPath": "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount",
    "readOnly": True,
}
VARIABLES = {
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": f"{TOKEN['mountPath']}/eks-pod-identity-token",
}


def carried(container: dict[str, Any]) -> bool:
    """Whether a container has the variables and the token; never one without the other."""
    environment = {v["name"]: v["value"] for v in container.get("env", ())}
    has = {name: environment.get(name) for name in VARIABLES} == VARIABLES
    assert has == (TOKEN in container["volumeMounts"]), container["name"]
    assert has or not set(VARIABLES) & set(environment)
    return has


class TestPods:
    def test_with_ack_the_callers_carry_their_credentials_and_nobody_else_does(self) -> None:
        rendered = render()
        for name, container in {"router": "envoy", "summary": "vllm", "records": "vllm", "tiny": None}.items():
            spec = pod(rendered, name)
            containers = [*spec["containers"], *spec.get("initContainers", [])]
            assert [c["name"] for c in containers if carried(c)] == ([container] if container else [])
            volumes = [volume for volume in spec["volumes"] if volume["name"] == TOKEN["name"]]
            source = {"audience": "pods.eks.amazonaws.com", "expirationSeconds": 86400, "path": TOKEN["name"]}
            wanted = [{"name": TOKEN["name"], "projected": {"sources": [{"serviceAccountToken": source}]}}]
            assert volumes == (wanted if container else [])

    def test_on_neuron_the_init_container_carries_them_in_the_engine_s_stead(self) -> None:
        compiled = {"source": "s3://neuron/summary/v7/", "tensorParallelSize": 2, "maxModelLen": 4096, "maxNumSeqs": 64}
        entry = {"accelerator": "inferentia2", "tensorParallelSize": 2, "maxModelLen": 4096, "compiled": compiled}
        spec = pod(render({"models": {"records": entry}}), "records")
        assert [c["name"] for c in [*spec["containers"], *spec["initContainers"]] if carried(c)] == ["artifacts"]

    @pytest.mark.parametrize("overlay", [IRSA, {"identity": {"manage": "external"}}], ids=["irsa", "external"])
    def test_elsewhere_eks_brings_them(self, overlay: dict[str, Any]) -> None:
        rendered = render(overlay)
        assert "AWS_CONTAINER_" not in rendered.text and TOKEN["name"] not in rendered.text

    @pytest.mark.parametrize("manage", ["ack", "external"])
    def test_with_irsa_the_accounts_of_callers_name_their_roles(self, manage: str) -> None:
        rendered = render(merged(IRSA, {"identity": {"manage": manage}}))
        found = {a["metadata"]["name"]: a["metadata"].get("annotations") for a in rendered.of_kind("ServiceAccount")}
        roles = {"router": "inference-router", "summary": "inference-summary", "records": "care-records"}
        for name, role in roles.items():
            assert found[name] == {
                "eks.amazonaws.com/role-arn": f"arn:aws:iam::{ACCOUNT}:role/inference-{role}",
                "eks.amazonaws.com/sts-regional-endpoints": "true",
            }
        assert found["tiny"] is None

    def test_with_irsa_envoy_signs_as_the_web_identity_of_its_account_alone(self) -> None:
        files = xds_files(render(IRSA))
        (bedrock,) = [c for c in json.loads(files["clusters.json"])["resources"] if c["name"] == "bedrock/summary"]
        options = bedrock["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
        folder = "/var/run/secrets/eks.amazonaws.com/serviceaccount"
        assert options["http_filters"][2]["typed_config"]["credential_provider"] == {
            "custom_credential_provider_chain": True,
            "assume_role_with_web_identity_provider": {
                "role_arn": f"arn:aws:iam::{ACCOUNT}:role/inference-inference-router",
                "role_session_name": "router",
                "web_identity_token_data_source": {
                    "filename": f"{folder}/token",
                    "watched_directory": {"path": folder},
                },
            },
        }

    @pytest.mark.parametrize(
        ("overlay", "reached", "port"),
        [({}, "169.254.170.23/32", 80), (IRSA, "10.0.4.0/24", 443), (NONE, None, 0)],
        ids=["podIdentity", "irsa", "none"],
    )
    def test_callers_reach_whoever_gives_credentials_and_no_other_such(
        self, overlay: dict[str, Any], reached: str | None, port: int
    ) -> None:
        givers = {"169.254.170.23/32", "10.0.4.0/24"}
        for policy in render(overlay).of_kind("NetworkPolicy"):
            rules = [
                (peer["ipBlock"]["cidr"], rule["ports"][0]["port"])
                for rule in policy["spec"].get("egress") or ()
                for peer in rule.get("to", ())
                if peer.get("ipBlock", {}).get("cidr") in givers
            ]
            caller = policy["metadata"]["name"] in {"router", "summary", "records"}
            assert rules == ([(reached, port)] if caller and reached else []), policy["metadata"]["name"]


LONG = "a-namespace-of-a-team-with-a-long-name"
REFUSALS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "pod identity by ack without the account and the cluster": (
        {"aws": {"accountId": "", "clusterName": ""}},
        [
            "global.aws.accountId: empty, while identity is podIdentity, managed by ack. ARNs of roles name the "
            "account. Set the account's 12 digits, in quotes.",
            "global.aws.clusterName: empty, while identity is podIdentity, managed by ack. A role trusts one cluster, "
            "and an association names it. Set the name of the EKS cluster.",
        ],
    ),
    "irsa by ack without the account and the provider": (
        {"aws": {"accountId": ""}, "identity": {"mode": "irsa"}},
        [
            "global.aws.accountId: empty, while identity is irsa, managed by ack. ARNs of roles name the account. "
            "Set the account's 12 digits, in quotes.",
            "global.identity.oidcProvider: empty, while identity is irsa, managed by ack. A role trusts the OIDC "
            "provider of one cluster. Set its host and path, without https://.",
        ],
    ),
    "irsa of somebody else without the account": (
        {"aws": {"accountId": "", "clusterName": ""}, "identity": {"mode": "irsa", "manage": "external"}},
        [
            "global.aws.accountId: empty, while identity is irsa, managed by external. ARNs of roles name the account. "
            "Set the account's 12 digits, in quotes."
        ],
    ),
    "ack without an identity": (
        {"identity": {"mode": "none"}},
        [
            "global.identity.manage: ack, while mode is none. Without an identity of their own the pods have no roles "
            "to manage. Set mode: podIdentity or irsa, or manage: external."
        ],
    ),
    "a name that IAM does not take": (
        {"models": {"records": {"namespace": LONG}}, "identity": {"roleNamePrefix": "inference-plane-prod-"}},
        [
            f"global.identity.roleNamePrefix: the role inference-plane-prod-{LONG}-records of the ServiceAccount "
            f"{LONG}/records has 67 characters. IAM takes 64 at most. Set a shorter prefix, namespace or model name."
        ],
    ),
    "two accounts, one role": (
        {
            "models": {
                "a": {**GPU, "source": "s3://models/a/v1/", "namespace": "care-b"},
                "b-a": {**GPU, "source": "s3://models/b/v1/", "namespace": "care"},
            }
        },
        [
            "global.identity.roleNamePrefix: the role inference-care-b-a would be that of the ServiceAccounts care-b/a "
            "and care/b-a. Each would get what the other may do. Set another name or namespace for one of them."
        ],
    ),
    "a Region of another partition": (
        {"aws": {"region": "us-gov-west-1"}, "models": {"summary": {"kmsKeyArn": ""}}},
        [
            "global.aws.partition: aws, while the Region us-gov-west-1 is in aws-us-gov. Every ARN names its "
            "partition, and one of another partition grants nothing. Set partition: aws-us-gov, or a Region of aws."
        ],
    ),
    "a partition of another Region": (
        {"aws": {"partition": "aws-cn"}, "models": {"summary": {"kmsKeyArn": ""}}},
        [
            "global.aws.partition: aws-cn, while the Region eu-central-1 is in aws. Every ARN names its partition, and "
            "one of another partition grants nothing. Set partition: aws, or a Region of aws-cn."
        ],
    ),
    "a key of another Region": (
        {"models": {"summary": {"kmsKeyArn": KEY.replace("eu-central-1", "eu-west-1")}}},
        [
            f"global.models.summary.kmsKeyArn: {KEY.replace('eu-central-1', 'eu-west-1')} is not in eu-central-1 of "
            "aws. S3 decrypts with keys of the bucket's own Region, and weights are read in global.aws.region. Set the "
            "ARN of the bucket's key in that Region, or the Region of the bucket in global.aws."
        ],
    ),
    "a key of another partition": (
        {"models": {"summary": {"kmsKeyArn": KEY.replace("aws", "aws-us-gov")}}},
        [
            f"global.models.summary.kmsKeyArn: {KEY.replace('aws', 'aws-us-gov')} is not in eu-central-1 of aws. S3 "
            "decrypts with keys of the bucket's own Region, and weights are read in global.aws.region. Set the ARN of "
            "the bucket's key in that Region, or the Region of the bucket in global.aws."
        ],
    ),
    "irsa behind policies that keep STS out": (
        {**IRSA, "network": {"stsCidrs": []}},
        [
            "global.network.stsCidrs: empty, while records has its credentials from STS. The NetworkPolicies deny what "
            "nobody names. Set the CIDRs of the endpoint, or global.network.policies: false."
        ],
    ),
    "STS everywhere": (
        {"network": {"stsCidrs": ["0.0.0.0/0"]}},
        [
            "global.network.stsCidrs: 0.0.0.0/0 is a large part of all addresses. It would let prompts and weights go "
            "anywhere and leave the residency unprovable. Set the CIDRs of the endpoint or the subnets alone."
        ],
    ),
    "a geography without Regions": (
        {"bedrock": {"profileRegions": {"jp": []}}},
        [
            "global.bedrock.profileRegions.jp: names no Region. The router may call a profile's model in the Regions "
            "that the profile processes in, and nowhere else. Set the Regions of the profiles jp., or null where there "
            "are none."
        ],
    ),
}  # fmt: skip


def refused(overlay: dict[str, Any], **charts: Any) -> list[str]:
    with pytest.raises(helm.HelmError) as error:
        render(overlay, **charts)
    assert str(error.value).count("values of the ") == 1
    return [line.removeprefix("- ") for line in str(error.value).splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    overlay, wanted = REFUSALS[case]
    assert refused(overlay) == wanted


def test_refuses_a_policy_that_iam_would_not_take() -> None:
    (line,) = refused(falls_back(*(f"eu.mistral.pixtral-large-25{n:02}-v1:0" for n in range(12))))
    assert line.startswith("global.models: the router's policy has 1")
    assert line.endswith(
        " characters. IAM takes 10240 at most for a role. Set fewer different fallback models, foundation models "
        "before inference profiles, or two planes."
    )


def test_refuses_an_unverified_sts_unless_it_is_written_out() -> None:
    whole = merged(values(IRSA), {"router": {"bedrock": {"unverifiedSts": False}}})
    with pytest.raises(helm.HelmError) as error:
        helm.template("inference-plane", values=whole)
    assert (
        "- bedrock.unverifiedSts: false, while a model falls back and global.identity.mode is irsa. Envoy asks STS for "
        "the role's credentials without checking who answers, and credentials of somebody else's account would take "
        "prompts there. Set global.identity.mode: podIdentity, or bedrock.unverifiedSts: true where "
        "global.network.stsCidrs and an endpoint policy leave nobody else to answer."
    ) in str(error.value)
    other = merged(values(), {"router": {"bedrock": {"unverifiedSts": True}}})
    with pytest.raises(helm.HelmError) as error:
        helm.template("inference-plane", values=other)
    assert (
        "- bedrock.unverifiedSts: true, while global.identity.mode is podIdentity. Envoy asks no STS then, and a "
        "reader would take the credentials for less safe than they are. Set false."
    ) in str(error.value)
    # Engines check certificates, so where nothing falls back there is nothing to accept.
    helm.template("inference-plane", values=merged(whole, {"global": NO_FALLBACK}))


@pytest.mark.parametrize(("overlay", "told"), [(IRSA, 1), ({}, 0), (merged(IRSA, NO_FALLBACK), 0)])
def test_notes_name_an_unverified_sts(overlay: dict[str, Any], told: int, tmp_path: pathlib.Path) -> None:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values(overlay)))
    chart = str(CHARTS / "inference-plane")
    printed = helm.run("install", "plane", chart, "--dry-run=client", "--values", str(tmp_path / "values.yaml"))
    assert printed.count("- Envoy has its credentials from an STS whose certificate it does not check") == told


@pytest.mark.parametrize(
    "overlay",
    [
        # A key that a default names matters to the weights in S3 alone.
        {"modelDefaults": {"kmsKeyArn": KEY.replace("eu-central-1", "eu-west-1")}, "models": {"records": None}},
        # Nobody calls AWS: nothing has to be said of an account.
        {"aws": {"accountId": "", "clusterName": ""}, "models": {"summary": None, "records": None}},
        # Whoever makes the roles elsewhere tells the account there.
        {"aws": {"accountId": "", "clusterName": ""}, "identity": {"manage": "external"}},
        {**IRSA, "aws": {"clusterName": ""}},
        {"bedrock": {"profileRegions": {"jp": None}}},
    ],
)
def test_accepts(overlay: dict[str, Any]) -> None:
    assert render(overlay).objects


class TestCommand:
    @pytest.fixture
    def file(self, tmp_path: pathlib.Path) -> str:
        """An environment whose roles somebody else makes, and which runs no charts."""
        whole = values({"identity": {"manage": "external"}}, vllm={"enabled": False}, router={"enabled": False})
        (tmp_path / "prod.yaml").write_text(yaml.safe_dump(whole))
        return str(tmp_path / "prod.yaml")

    def test_it_prints_what_ack_would_make(self, file: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert iam.main([file]) == 0
        printed = json.loads(capsys.readouterr().out)
        rendered = render()
        assert [role["name"].removeprefix("inference-") for role in printed] == [
            "care-records", "inference-router", "inference-summary",
        ]  # fmt: skip
        for role in printed:
            spec = rendered.find("Role", role["serviceAccount"])["spec"]
            assert set(role) == {"name", "namespace", "serviceAccount", "trust", "permissions"}
            assert role["trust"] == json.loads(spec["assumeRolePolicyDocument"])
            assert role["permissions"] == json.loads(spec["inlinePolicies"]["inference-plane"])

    def test_one_document_of_one_role(self, file: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert iam.main([file, "router", "--policy"]) == 0
        assert json.loads(capsys.readouterr().out)["Statement"] == policy(render(), "router")
        assert iam.main([file, "inference-care-records", "--trust"]) == 0
        assert json.loads(capsys.readouterr().out)["Statement"] == [trust(render(), "records")]
        assert iam.main([file, "records"]) == 0
        assert json.loads(capsys.readouterr().out)["name"] == "inference-care-records"

    def test_the_release_s_namespace_is_whom_the_roles_trust(
        self, file: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert iam.main([file, "--namespace", "edge"]) == 0
        found = {role["serviceAccount"]: role for role in json.loads(capsys.readouterr().out)}
        assert {account: role["namespace"] for account, role in found.items()} == {
            "records": "care", "router": "edge", "summary": "edge",
        }  # fmt: skip
        for role in found.values():
            (statement,) = role["trust"]["Statement"]
            trusted = statement["Condition"]["StringEquals"]["aws:RequestTag/kubernetes-namespace"]
            assert trusted == role["namespace"]

    def test_every_role_is_printed_whatever_the_environment_selects(self) -> None:
        """Terraform would delete the roles of the engines of other releases."""
        teams = {"teams": {"care": {}}, "models": {"records": {"team": "care", "engine": "kserve"}}}
        selects = {"vllm": {"select": {"models": ["tiny"]}}, "kserve": {"enabled": False, "select": {"team": "care"}}}
        whole = values(merged(teams, {"identity": {"manage": "external"}}), **selects)
        assert {role["serviceAccount"] for role in iam.roles(whole)} == {"records", "router", "summary"}

    def test_irsa_and_a_boundary(self, tmp_path: pathlib.Path) -> None:
        boundary = f"arn:aws:iam::{ACCOUNT}:policy/workloads"
        whole = values(merged(IRSA, {"identity": {"manage": "external", "permissionsBoundaryArn": boundary}}))
        for role in iam.roles(whole):
            assert role["permissionsBoundary"] == boundary
            assert "Federated" in role["trust"]["Statement"][0]["Principal"]

    def test_an_unknown_role_lists_the_known_ones(self, file: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert iam.main([file, "reader"]) == 2
        assert capsys.readouterr().err == (
            "error: 0 roles are called 'reader'. There are: inference-care-records, inference-inference-router, "
            "inference-inference-summary.\n"
        )

    def test_what_is_missing_is_said(self, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
        whole = values({"aws": {"accountId": ""}, "identity": {"manage": "external"}})
        (tmp_path / "dev.yaml").write_text(yaml.safe_dump(whole))
        assert iam.main([str(tmp_path / "dev.yaml")]) == 1
        out, err = capsys.readouterr()
        assert out == "" and "- global.aws.accountId: empty" in err

    def test_a_document_wants_a_role(self, file: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            iam.main([file, "--policy"])
        assert "--policy, --trust and --diff want a ROLE" in capsys.readouterr().err
