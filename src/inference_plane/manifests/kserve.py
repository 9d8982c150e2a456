"""What KServe makes of an InferenceService whose predictor is a pod spec, in the deployment mode Standard.

Read from the sources of KServe v0.20.0: the Deployment from pkg/controller/v1beta1/inferenceservice/components/
predictor.go and reconcilers/deployment/deployment_reconciler.go.
"""

from collections.abc import Iterable, Mapping
from typing import Any

#: Fields of a predictor that are no fields of its pod (ComponentExtensionSpec, pkg/apis/serving/v1beta1/component.go).
_EXTENSIONS = frozenset(
    "minReplicas maxReplicas scaleTarget scaleMetric scaleMetricType autoScaling containerConcurrency timeout "
    "canaryTrafficPercent logger batcher labels annotations deploymentStrategy".split()
)


def deployments(objects: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The Deployments that KServe makes of the InferenceServices among some objects.

    Labels and annotations of an InferenceService are those of its Deployment and pods too. The number of replicas is
    `minReplicas` under the autoscaler class none, and nobody's under external.
    """
    return [_deployment(o) for o in objects if o.get("kind") == "InferenceService" and _is_custom(o)]


def _is_custom(service: Mapping[str, Any]) -> bool:
    return bool((service.get("spec") or {}).get("predictor", {}).get("containers"))


def _deployment(service: Mapping[str, Any]) -> dict[str, Any]:
    metadata, predictor = service["metadata"], service["spec"]["predictor"]
    name = f"{metadata['name']}-predictor"
    annotations = (metadata.get("annotations") or {}) | (predictor.get("annotations") or {})
    labels = (metadata.get("labels") or {}) | (predictor.get("labels") or {})
    labels |= {"serving.kserve.io/inferenceservice": metadata["name"], "component": "predictor"}
    app = {"app": f"isvc.{name}"}
    spec: dict[str, Any] = {
        "selector": {"matchLabels": app},
        "template": {
            "metadata": {"labels": labels | app, "annotations": annotations},
            "spec": {key: value for key, value in predictor.items() if key not in _EXTENSIONS},
        },
    }
    if "deploymentStrategy" in predictor:
        spec["strategy"] = predictor["deploymentStrategy"]
    if annotations.get("serving.kserve.io/autoscalerClass") == "none" and "minReplicas" in predictor:
        spec["replicas"] = predictor["minReplicas"]
    named = {key: metadata[key] for key in ("namespace",) if key in metadata}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, **named, "labels": labels | app, "annotations": annotations},
        "spec": spec,
    }
