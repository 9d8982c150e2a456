"""What others make of the plane's objects: KServe, Argo CD; and conditions of roles on where requests come from."""

import json
import re
from collections.abc import Iterator, Mapping

from inference_plane.compliance.envoy import dig, items, text
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, meta

_KSERVE = "serving.kserve.io"


@rule(
    "PLANE_RES_70",
    "An InferenceService is the plane's own pod and nothing more",
    severity="CRITICAL",
    kinds={f"{_KSERVE}/InferenceService"},
    why="KServe's logger posts requests and answers to any address; a transformer or explainer sees prompts; a "
    "storageUri "
    "or a runtime brings weights and servers that nobody judges.",
    remedy="Leave the InferenceService of charts/kserve: one predictor with containers, visible in the cluster alone.",
    source="https://kserve.github.io/website/docs/model-serving/predictive-inference/logger/basic-logger",
    example="predictor: {logger: {mode: all, url: https://logs.example.com}}",
)
def only_a_pod(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    spec, metadata = obj.get("spec") or {}, meta(obj)
    for field in spec if isinstance(spec, dict) else ():
        if field != "predictor":
            yield f"spec.{field}", "is set: prompts pass it, or are answered by it, beside the predictor"
    predictor = dig(obj, "spec", "predictor") or {}
    engines = "model sklearn xgboost tensorflow pytorch triton onnx huggingface pmml lightgbm paddle workerSpec".split()
    for field in ("logger", "batcher", "canaryTrafficPercent", "storageUri", *engines):
        if field in predictor:
            yield f"spec.predictor.{field}", "is set, which the chart does not"
    if not items(predictor.get("containers")):
        yield "spec.predictor.containers", "is empty: a runtime of the cluster would serve"
    if (metadata.get("labels") or {}).get("networking.kserve.io/visibility") != "cluster-local":
        yield (
            "metadata.labels['networking.kserve.io/visibility']",
            "is not cluster-local: KServe opens it to the outside",
        )
    allowed = {"deploymentMode", "autoscalerClass"}
    for holder, where in ((metadata, "metadata"), (predictor, "spec.predictor")):
        for name in holder.get("annotations") or {}:
            if "kserve.io/" in name and name.split("/")[1] not in allowed:
                yield f"{where}.annotations['{name}']", "tells KServe what the chart does not"
    if (metadata.get("annotations") or {}).get(f"{_KSERVE}/deploymentMode") not in ("Standard", "Knative"):
        yield "metadata.annotations", "say no deploymentMode, so the cluster's default decides how it is reached"


@rule(
    "PLANE_RES_71",
    "Nothing of KServe that routes, stores or runs models by other ways",
    severity="CRITICAL",
    kinds={
        f"{_KSERVE}/{kind}"
        for kind in (
            "InferenceGraph ServingRuntime ClusterServingRuntime TrainedModel LLMInferenceService "
            "LLMInferenceServiceConfig "
            "ClusterStorageContainer LocalModelCache LocalModelNode LocalModelNodeGroup"
        ).split()
    },
    why="An InferenceGraph sends prompts from model to model past the router; runtimes and caches bring servers and "
    "weights that no other rule judges.",
    remedy="Remove it: the router routes, and charts/kserve renders whole pods.",
    source="https://kserve.github.io/website/docs/concepts/resources/inferencegraph",
    example="kind: InferenceGraph",
)
def nothing_else_of_kserve(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    yield "", f"is a {obj.get('kind')}, by which prompts or weights pass what is judged"


@rule(
    "PLANE_RES_72",
    "Argo CD takes charts and values from the project's repositories alone",
    severity="CRITICAL",
    kinds={"argoproj.io/Application"},
    why="What is judged here is what Argo CD renders only where it comes from the same repository; a values file from "
    "elsewhere can set any fallback.",
    remedy="Name a repository of the AppProject's sourceRepos, valueFiles of the same repository, and what differs in "
    "valuesObject.",
    source="https://argo-cd.readthedocs.io/en/stable/user-guide/helm/",
    example="valueFiles: [https://example.com/values.yaml]",
)
def sources_of_the_project(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    spec, path = obj.get("spec") or {}, "spec"
    projects = [p for p in index.kind("AppProject") if meta(p).get("name") == spec.get("project")]
    allowed = [text(repo) for p in projects for repo in dig(p, "spec", "sourceRepos") or ()]
    if not projects:
        yield (
            f"{path}.project",
            f"is {spec.get('project')!r}, which is not in the render: any source may be allowed",
        )
    if "sources" in spec or not isinstance(spec.get("source"), dict):
        yield f"{path}.sources", "are several, or none: what one says the next may change"
    for source, where in [
        (spec.get("source"), f"{path}.source"),
        *((s, f"{path}.sources") for s in items(spec.get("sources"))),
    ]:
        if not isinstance(source, dict):
            continue
        repo = text(source.get("repoURL"))
        if projects and repo not in allowed:
            yield f"{where}.repoURL", f"is {repo}, none of {', '.join(allowed) or 'nothing'}"
        if not repo.startswith("https://"):
            yield f"{where}.repoURL", f"is {repo!r}: it proves no host"
        for field in ("kustomize", "plugin", "chart", "ref"):
            if field in source:
                yield f"{where}.{field}", "makes something else of the charts than Helm does"
        helm = source.get("helm") or {}
        for field in ("parameters", "fileParameters", "values", "passCredentials", "skipSchemaValidation"):
            if helm.get(field):
                yield f"{where}.helm.{field}", "sets values that no file of the repository has, or checks none"
        for i, file in enumerate(helm.get("valueFiles") or ()):
            if not isinstance(file, str) or "://" in file or ".." in file.split("/") or file.startswith("$"):
                yield f"{where}.helm.valueFiles[{i}]", f"is {file!r}, not of the repository"


@rule(
    "PLANE_RES_73",
    "A project of Argo CD names its repositories",
    severity="HIGH",
    kinds={"argoproj.io/AppProject"},
    why="A pattern lets an Application take charts, and so routes and policies, from whoever can open a repository.",
    remedy="Name each repository in sourceRepos, by https:// and without a star.",
    source="https://argo-cd.readthedocs.io/en/stable/user-guide/projects/",
    example='sourceRepos: ["*"]',
)
def repositories_are_named(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    repos = dig(obj, "spec", "sourceRepos")
    if not isinstance(repos, list) or not repos:
        yield "spec.sourceRepos", "names none"
    for i, repo in enumerate(repos if isinstance(repos, list) else ()):
        if not re.fullmatch(r"https://[\w.-]+/[\w./-]+", str(repo)):
            yield f"spec.sourceRepos[{i}]", f"is {repo!r}, which is no one repository"
    for i, one in enumerate(items(dig(obj, "spec", "destinations"))):
        if "*" in (one.get("namespace"), one.get("server"), one.get("name")):
            yield f"spec.destinations[{i}]", f"is {dict(one)}: any namespace or cluster"


@rule(
    "PLANE_RES_74",
    "A condition on the VPC's endpoints names them",
    severity="MEDIUM",
    kinds={"iam.services.k8s.aws/Role", "iam.services.k8s.aws/Policy", "iam.inference-plane/PolicyDocument"},
    why="Where a role says through which endpoint requests come, a star, a network of somebody else or a condition "
    "that "
    "holds where nothing is said lets them come through the internet.",
    remedy="Use StringEquals with aws:SourceVpce and whole ids.",
    source="https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html",
    example='"Condition": {"StringLike": {"aws:SourceVpce": "vpce-*"}}',
)
def endpoints_are_named(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for statement, where in _statements(obj):
        for operator, tests in (statement.get("Condition") or {}).items():
            for key, values in tests.items() if isinstance(tests, dict) else ():
                if key.lower() not in ("aws:sourcevpce", "aws:sourcevpc"):
                    continue
                denied = statement.get("Effect") == "Deny"
                if operator not in ({"StringNotEquals", "StringNotEqualsIfExists"} if denied else {"StringEquals"}):
                    yield where, f"tests {key} by {operator}, which more than the named endpoints pass"
                for value in values if isinstance(values, list) else [values]:
                    if not re.fullmatch(r"vpce?-[0-9a-f]{8,17}", str(value)):
                        yield where, f"tests {key} for {value!r}, which is no id"


def _statements(obj: Mapping) -> Iterator[tuple[Mapping, str]]:
    """(statement, path) of every document that an object has."""
    documents = [(obj.get("document"), "document"), (dig(obj, "spec", "policyDocument"), "spec.policyDocument")]
    inline = dig(obj, "spec", "inlinePolicies")
    documents += [(v, f"spec.inlinePolicies['{k}']") for k, v in (inline if isinstance(inline, dict) else {}).items()]
    for document, where in documents:
        try:
            parsed = json.loads(document) if isinstance(document, str) else document
        except ValueError:
            yield {"Condition": {"(no JSON)": {"aws:SourceVpce": "(no JSON)"}}}, where
            continue
        listed = dig(parsed, "Statement")
        for i, one in enumerate(items(listed if isinstance(listed, list) else [listed])):
            yield one, f"{where}.Statement[{i}]"
