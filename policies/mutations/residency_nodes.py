"""Breaks of where nodes are, and of what others make of the plane's objects."""

import copy

import yaml

from inference_plane import argocd, checkout
from inference_plane.compliance.mutations import document, find, mutation

AUTO = "auto-mode"
#: Tags that say less than they seem to.
TERMS = {
    "an id": [{"id": "subnet-0a1b2c3d4e5f60718"}],
    "an id beside tags": [{"tags": {"karpenter.sh/discovery": "x"}, "id": "subnet-0a1b2c3d4e5f60718"}],
    "a name": [{"name": "default"}],
    "nothing": [],
    "a term of nothing": [{}],
    "no tag": [{"tags": {}}],
    "any value": [{"tags": {"karpenter.sh/discovery": "*"}}],
    "an empty value": [{"tags": {"karpenter.sh/discovery": ""}}],
    "public subnets": [{"tags": {"kubernetes.io/role/elb": "1"}}],
    "no list": {"tags": {"karpenter.sh/discovery": "x"}},
}
for source, kind, name in (("prod", "EC2NodeClass", "inference-l4"), (AUTO, "NodeClass", "")):
    for field in ("subnetSelectorTerms", "securityGroupSelectorTerms"):
        for what, terms in TERMS.items():

            @mutation("PLANE_RES_50", f"{field} of {what}", source=source)
            def _(objects, kind=kind, name=name, field=field, terms=terms):
                first(objects, kind, name)["spec"][field] = copy.deepcopy(terms)

    @mutation("PLANE_RES_53", f"nodes of a class that is not here ({kind})", source=source)
    def _(objects, kind=kind):
        pool = next(o for o in objects if o["kind"] == "NodePool")
        pool["spec"]["template"]["spec"]["nodeClassRef"]["name"] = "default"

    @mutation("PLANE_RES_53", f"no class of nodes ({kind})", source=source)
    def _(objects, kind=kind):
        objects[:] = [o for o in objects if o["kind"] != kind]


def first(objects, kind, name=""):
    return next(o for o in objects if o["kind"] == kind and name in ("", o["metadata"]["name"]))


for value in (True, "false", None, "no"):

    @mutation("PLANE_RES_51", f"associatePublicIPAddress: {value!r}")
    def _(objects, value=value):
        first(objects, "EC2NodeClass")["spec"]["associatePublicIPAddress"] = value


@mutation("PLANE_RES_51", "no associatePublicIPAddress")
def _(objects):
    del first(objects, "EC2NodeClass")["spec"]["associatePublicIPAddress"]


@mutation("PLANE_RES_51", "addresses by Auto Mode", source=AUTO)
def _(objects):
    first(objects, "NodeClass")["spec"]["advancedNetworking"] = {"associatePublicIPAddress": True}


@mutation("PLANE_RES_51", "subnets of Auto Mode by a tag that says nothing of them", source=AUTO)
def _(objects):
    first(objects, "NodeClass")["spec"]["subnetSelectorTerms"] = [{"tags": {"team": "platform"}}]


for value in (False, "true", None):

    @mutation("PLANE_RES_52", f"encrypted: {value!r}")
    def _(objects, value=value):
        first(objects, "EC2NodeClass")["spec"]["blockDeviceMappings"][1]["ebs"]["encrypted"] = value


@mutation("PLANE_RES_52", "encrypted left out")
def _(objects):
    del first(objects, "EC2NodeClass")["spec"]["blockDeviceMappings"][0]["ebs"]["encrypted"]


@mutation("PLANE_RES_52", "volumes of the image")
def _(objects):
    del first(objects, "EC2NodeClass")["spec"]["blockDeviceMappings"]


@mutation("PLANE_RES_52", "a volume from a snapshot")
def _(objects):
    first(objects, "EC2NodeClass")["spec"]["blockDeviceMappings"][1]["ebs"]["snapshotID"] = "snap-0a1b"


# KServe.

KSERVE = "kserve/ci/standard"


def service(objects):
    return find(objects, "InferenceService", "appeal-letters")


for name, change in {
    "a logger": {"logger": {"mode": "all", "url": "https://logs.example.com"}},
    "a batcher": {"batcher": {"maxBatchSize": 8}},
    "a model of a runtime": {"model": {"modelFormat": {"name": "huggingface"}, "storageUri": "hf://acme/model"}},
    "an old model": {"huggingface": {"storageUri": "https://example.com/model"}},
    "a source beside its containers": {"storageUri": "gs://acme/model"},
    "a canary of its own": {"canaryTrafficPercent": 10},
    "no containers": {"containers": []},
    "workers elsewhere": {"workerSpec": {"pipelineParallelSize": 2}},
    "another annotation": {"annotations": {"serving.kserve.io/storage-initializer-uid": "0"}},
}.items():

    @mutation("PLANE_RES_70", f"a predictor with {name}", source=KSERVE)
    def _(objects, change=change):
        service(objects)["spec"]["predictor"].update(change)


for field in ("transformer", "explainer"):

    @mutation("PLANE_RES_70", f"a {field}", source=KSERVE)
    def _(objects, field=field):
        service(objects)["spec"][field] = {"containers": [{"name": "x", "image": "example.com/x:1"}]}


@mutation("PLANE_RES_70", "seen from outside", source=KSERVE)
def _(objects):
    del service(objects)["metadata"]["labels"]["networking.kserve.io/visibility"]


@mutation("PLANE_RES_70", "a mode that the cluster decides", source=KSERVE)
def _(objects):
    del service(objects)["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]


for kind in ("InferenceGraph", "ClusterServingRuntime", "LLMInferenceService", "TrainedModel"):

    @mutation("PLANE_RES_71", f"a {kind}", source=KSERVE)
    def _(objects, kind=kind):
        metadata = {"name": "x", "namespace": "inference"}
        objects.append({"apiVersion": "serving.kserve.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": {}})


# Argo CD: broken Applications beside a render, with the project that they are of.


def argo(name):
    return [o for o in yaml.safe_load_all((checkout.ROOT / "argocd" / name).read_text()) if o]


def application(objects):
    found = argo("prod/plane.yaml")[0]
    objects += [*argo("projects.yaml"), found]
    return found["spec"]


for name, change in {
    "another repository": {"repoURL": "https://github.com/acme/inference-plane.git"},
    "the repository without its end": {"repoURL": "https://github.com/inference-plane/inference-plane"},
    "a repository by SSH": {"repoURL": "git@github.com:inference-plane/inference-plane.git"},
    "a repository in clear text": {"repoURL": "http://github.com/inference-plane/inference-plane.git"},
    "Kustomize": {"kustomize": {"patches": []}},
    "a plugin": {"plugin": {"name": "x"}},
    "a chart of a registry": {"chart": "inference-plane"},
}.items():

    @mutation("PLANE_RES_72", f"an Application of {name}")
    def _(objects, change=change):
        application(objects)["source"].update(change)


for name, change in {
    "values of a URL": {"valueFiles": ["https://example.com/values.yaml"]},
    "values of S3": {"valueFiles": ["/values/prod.yaml", "s3://acme/values.yaml"]},
    "values of another source": {"valueFiles": ["$values/prod.yaml"]},
    "values from above": {"valueFiles": ["../../../values.yaml"]},
    "parameters": {"parameters": [{"name": "global.residency.geography", "value": "us"}]},
    "values as text": {"values": "global: {residency: {geography: us}}"},
    "values of a file": {"fileParameters": [{"name": "x", "path": "y"}]},
    "no schema": {"skipSchemaValidation": True},
    "credentials passed on": {"passCredentials": True},
}.items():

    @mutation("PLANE_RES_72", f"an Application with {name}")
    def _(objects, change=change):
        application(objects)["source"]["helm"].update(change)


@mutation("PLANE_RES_72", "an Application of several sources")
def _(objects):
    spec = application(objects)
    spec["sources"] = [spec.pop("source"), {"repoURL": "https://example.com/x.git", "ref": "values"}]


@mutation("PLANE_RES_72", "an Application of the project for everything")
def _(objects):
    application(objects)["project"] = "default"


@mutation("PLANE_RES_72", "an ApplicationSet of another repository")
def _(objects):
    found = argo("environments.yaml")[0]
    found["spec"]["template"]["spec"]["source"]["repoURL"] = "https://example.com/x.git"
    objects += [*argo("projects.yaml"), *argocd.expand(found)]


for name, change in {
    "any repository": {"sourceRepos": ["*"]},
    "any repository of an owner": {"sourceRepos": ["https://github.com/inference-plane/*"]},
    "no repository": {"sourceRepos": []},
    "any destination": {"destinations": [{"server": "*", "namespace": "*"}]},
}.items():

    @mutation("PLANE_RES_73", f"a project of {name}")
    def _(objects, change=change):
        found = argo("projects.yaml")
        found[0]["spec"].update(change)
        objects += found


# Where requests of roles come from.

for name, condition in {
    "any endpoint": {"StringLike": {"aws:SourceVpce": "vpce-*"}},
    "any endpoint, in a list": {"StringEquals": {"aws:SourceVpce": ["vpce-0a1b2c3d4e5f60718", "*"]}},
    "none said": {"StringEqualsIfExists": {"aws:SourceVpce": "vpce-0a1b2c3d4e5f60718"}},
    "other letters": {"StringLike": {"AWS:sourceVPCE": "*"}},
    "all but one": {"StringNotEquals": {"aws:SourceVpce": "vpce-0a1b2c3d4e5f60718"}},
    "any network": {"StringLike": {"aws:SourceVpc": "vpc-*"}},
}.items():

    @mutation("PLANE_RES_74", f"a role whose requests come by {name}")
    def _(objects, condition=condition):
        role = find(objects, "iam.services.k8s.aws/Role", "router")
        with document(role["spec"]["inlinePolicies"], "inference-plane") as policy:
            next(one for one in policy["Statement"] if one["Effect"] == "Allow")["Condition"] = condition
