"""An InferenceService is checked with the Deployment that KServe makes of it."""

import copy

import pytest

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.manifests import check

FILE = CHARTS / "kserve" / "ci" / "standard-values.yaml"


@pytest.fixture
def objects():
    return copy.deepcopy(helm.template("kserve", files=[FILE]).objects)


def find(objects, kind, name="appeal-letters"):
    return next(o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))


def findings(objects):
    return [str(finding) for finding in check(objects)]


def test_a_render_of_the_chart_is_sound(objects):
    assert findings(objects) == []


def test_a_scaler_of_another_deployment_is_found(objects):
    find(objects, "ScaledObject")["spec"]["scaleTargetRef"]["name"] = "appeal-letters"
    found = findings(objects)
    assert any("Deployment inference/appeal-letters is not in the render" in text for text in found)
    assert any("appeal-letters-predictor" in text and "no scaler targets it" in text for text in found)


def test_two_owners_of_the_replicas_are_found(objects):
    service = find(objects, "InferenceService")
    service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] = "none"
    service["spec"]["predictor"]["minReplicas"] = 2
    assert any("appeal-letters-predictor" in text and "owns replicas" in text for text in findings(objects))


@pytest.mark.parametrize("owner", ["hpa", "keda", None])
def test_kserve_and_the_chart_as_owners_are_found(objects, owner):
    """Under the default, hpa, KServe makes an autoscaler of its own."""
    annotations = find(objects, "InferenceService")["metadata"]["annotations"]
    annotations.pop("serving.kserve.io/autoscalerClass")
    annotations.update({"serving.kserve.io/autoscalerClass": owner} if owner else {})
    assert any("appeal-letters-predictor" in text and "2 scalers own it" in text for text in findings(objects))


def test_a_pod_that_kubernetes_would_refuse_is_found(objects):
    pod = find(objects, "InferenceService")["spec"]["predictor"]
    pod["containers"][0]["volumeMounts"][0]["name"] = "other"
    pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    found = findings(objects)
    assert any("no volume is named 'other'" in text for text in found)
    assert any("allowPrivilegeEscalation" in text for text in found)


def test_a_field_that_no_inference_service_has_is_found(objects):
    find(objects, "InferenceService")["spec"]["predictor"]["replicas"] = 2
    assert any("InferenceService" in text and "replicas" in text for text in findings(objects))
