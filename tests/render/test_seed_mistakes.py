"""Mistakes that manifests for models on EKS are known for, in every environment and every ci/ file."""

import pytest
import yaml

from inference_plane import helm
from inference_plane.environments import cases

CASES = cases()
every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def objects(case):
    return helm.template(case.chart, values=case.values).objects


def maps(node):
    """Every map in an object."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from maps(child)


def own_labels(document):
    """Labels that an object gives itself or what comes of it: pods of a workload, nodes of a NodePool."""
    for found in maps(document):
        # Only `labels`: a selector may ask for what nobody here may claim.
        yield from (found.get("labels") or {}).items()


@every_case
def test_nothing_claims_the_label_that_karpenter_sets(case):
    """A NodePool with it in its template is refused, and on anything else it says what may not be so."""
    for document in objects(case):
        assert "karpenter.sh/nodepool" not in dict(own_labels(document)), document["metadata"]["name"]


@every_case
def test_every_node_pool_names_its_class_in_full(case):
    """Karpenter 1 refuses a reference without group and kind, which v1beta1 did not ask for."""
    for pool in (document for document in objects(case) if document["kind"] == "NodePool"):
        reference = pool["spec"]["template"]["spec"]["nodeClassRef"]
        assert set(reference) == {"group", "kind", "name"} and all(reference.values())
        classes = [o for o in objects(case) if o["kind"] == reference["kind"]]
        assert reference["name"] in {o["metadata"]["name"] for o in classes}
        assert {o["apiVersion"].partition("/")[0] for o in classes} == {reference["group"]}


@every_case
def test_no_weights_come_from_a_place_that_moves(case):
    for document in objects(case):
        text = yaml.safe_dump(document)
        for source in [word for word in text.split() if "s3://" in word or "file://" in word]:
            assert "latest" not in source.lower().split("/"), (document["metadata"]["name"], source)


def test_the_cases_show_what_is_looked_for():
    kinds = {document["kind"] for case in CASES for document in objects(case)}
    assert "NodePool" in kinds
    assert any("s3://" in yaml.safe_dump(document) for case in CASES for document in objects(case))


def test_the_label_is_found_where_a_template_sets_it():
    claims = {"spec": {"template": {"metadata": {"labels": {"karpenter.sh/nodepool": "l40s"}}}}}
    asks = {
        "spec": {
            "selector": {"matchLabels": {"karpenter.sh/nodepool": "l40s"}},
            "nodeSelector": {"karpenter.sh/nodepool": "a"},
        }
    }
    assert "karpenter.sh/nodepool" in dict(own_labels(claims)) and "karpenter.sh/nodepool" not in dict(own_labels(asks))
