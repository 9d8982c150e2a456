"""Whole renders under version control, so that a change of a chart shows in the diff what it changes for whom.

`pytest tests/render/test_golden.py --update-golden` writes them anew.
"""

import json
import pathlib
import re

import pytest
import yaml

from inference_plane import helm
from inference_plane.environments import cases

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
EXAMPLES = ("vllm/ci/", "kserve/ci/", "karpenter-nodepools/ci/")
CASES = [case for case in cases() if case.chart == "inference-plane" or case.name.startswith(EXAMPLES)]


def readable(render):
    """The render as YAML: the router's JSON files unfolded, program text and versions left out."""
    documents = []
    for document in render.objects:
        for file, text in document.get("data", {}).items() if document["kind"] == "ConfigMap" else ():
            document["data"][file] = json.loads(text) if file.endswith(".json") else "(see the chart's files)"
        documents.append(document)
    text = yaml.safe_dump_all(documents, sort_keys=True, width=160)
    text = re.sub(r"(helm.sh/chart: [a-z-]+)-\d[^\n]*", r"\1", text)
    return re.sub(r"(checksum/[a-z]+: )[0-9a-f]{64}", r"\1(sum)", text)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_render_is_the_golden_one(case, update_golden):
    # A name of its own, because readable() changes the objects that other tests share.
    rendered = readable(helm.Render(helm.template(case.chart, values=case.values).text))
    path = GOLDEN / f"{case.name.replace('/', '-')}.yaml"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(rendered)
    assert path.exists(), "no golden file yet: run with --update-golden and review the diff"
    assert rendered == path.read_text(), "run with --update-golden and review the diff"


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == {case.name.replace("/", "-") for case in CASES}
