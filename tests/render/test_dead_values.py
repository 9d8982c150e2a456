"""No dead values: changing any default changes some render (or its NOTES)."""

import copy
import functools
import itertools
import json
import pathlib
import re
import tempfile

import jsonschema
import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.environments import chart_values, installs

#: A catalogue that touches everything: every accelerator, every traffic class, a fallback, a profile, a team.
BASES = [yaml.safe_load(path.read_text()) for path in sorted((pathlib.Path(__file__).parent / "bases").glob("*.yaml"))]

SCHEMA = json.loads((CHARTS / "inference-plane" / "values.schema.json").read_text())

#: Charts that have the library's settings of engines at their root.
ENGINES = ("vllm", "kserve")

#: Read by Helm itself, or checked by a test of its own that says so.
ELSEWHERE = {
    ("vllm", "enabled"): "the umbrella's condition",
    ("kserve", "enabled"): "the umbrella's condition",
    ("router", "enabled"): "the umbrella's condition",
    ("karpenter-nodepools", "enabled"): "the umbrella's condition",
    ("alb-ingress", "enabled"): "the umbrella's condition",
}


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def defaults():
    shared = yaml.safe_load((CHARTS / "plane-lib" / "values.yaml").read_text())
    yield from leaves(shared["defaults"], ("global",))
    for chart in ("vllm", "kserve", "router", "karpenter-nodepools", "alb-ingress"):
        own = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
        yield from leaves(own | (shared["engine"] if chart in ENGINES else {}), (chart,))


def schema_of(path):
    """The schema that stands at a path of values."""
    node = SCHEMA
    for key in ("", *path):
        if key:
            node = node.get("properties", {}).get(key) or node.get("additionalProperties") or {}
        while isinstance(node, dict) and "$ref" in node:
            node = SCHEMA["definitions"][node["$ref"].rsplit("/", 1)[1]]
    return node if isinstance(node, dict) else {}


def others(path, value):
    """Values that the schema takes instead, the likeliest first; last the default, where a base has another."""
    validator = jsonschema.Draft202012Validator({**schema_of(path), "definitions": SCHEMA["definitions"]})
    guessed = [other for other in guesses(schema_of(path), value) if other != value and validator.is_valid(other)]
    return [*guessed, value]


def guesses(schema, value):
    if choices := schema.get("enum"):
        return [choice for choice in choices if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, value * 2, value + 30]
    if isinstance(value, float):
        return [round(value * 0.9, 3), round(value * 1.1, 3)]
    if value is None:
        return ["sha256:" + "a" * 64, 600, 300, "630s"]
    if isinstance(value, list):
        choices = schema.get("items", {}).get("enum", [])
        more = [[choice] for choice in choices if [choice] != value]
        forms = ["other", "10.9.0.1:53", "subnet-0a", "pl-0a", "vpce-0a1b2c3d", "a.example", "eu-west-9", {"kty": "RSA"}]
        return [*more, [*value, "10.9.0.0/16"], *([form] for form in forms), []]
    if isinstance(value, dict):
        names = schema.get("propertyNames", {}).get("enum", [])
        return [*({name: 1} for name in names), {}, {"extra": "1"}, {"extra": {}}, {"models": ["l4-model"]}]
    bumped = re.sub(r"\d+(?=\D*$)", lambda number: str(int(number[0]) + 1), value, count=1)
    arns = ["arn:aws:kms:eu-central-1:111122223333:key/0d2f4a1e", "arn:aws:iam::111122223333:policy/boundary"]
    urls = ["https://other.example/keys", "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----"]
    forms = ["0.1.0", "eu-west-1", "10.9.0.1/32", "127.0.0.1", "other.example", "none", "444455556666"]
    return [bumped, f"{value}x", "vllm", "vllm-cpu", *forms, *arns, *urls]


@functools.lru_cache(maxsize=None)
def base_render(number, chart):
    return rendered(BASES[number], chart)


def rendered(values, chart):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(chart_values(values, chart), file)
        file.flush()
        # An install that is not carried out prints hooks, manifests and NOTES.
        text = helm.run("install", "plane", str(CHARTS / chart), "--dry-run=client", "--values", file.name)
    return text[text.index("HOOKS:"):]


def changed(values, path, value):
    values = copy.deepcopy(values)
    node = values
    for key in path[:-1]:
        node = node.setdefault(key, {})
    node[path[-1]] = value
    return values


@functools.lru_cache(maxsize=None)
def places(section):
    """Where a section of the values is read, as numbers of bases and charts: what renders quickly first."""
    # Its own section is read by one chart alone; `global` by each, of which two read the most.
    readers = [["router", "vllm"], ["inference-plane"]] if section == "global" else [[section]]
    return [
        (number, chart)
        for charts in readers for number, base in enumerate(BASES) for chart in charts if installs(base, chart)
    ]


LEAVES = dict(defaults())


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_changing_a_default_changes_a_render(path):
    value = LEAVES[path]
    if len(schema_of(path).get("enum", [])) == 1:
        return  # There is no other choice yet.
    if path in ELSEWHERE:
        text = (CHARTS / "inference-plane" / "Chart.yaml").read_text()
        assert f"condition: {'.'.join(path)}" in text
        return
    refused = []
    # Each value meets every base before the next one, because a base either reads the path or does not.
    for other, (number, chart) in itertools.product(others(path, value), places(path[0])):
        before = base_render(number, chart)
        try:
            if rendered(changed(BASES[number], path, other), chart) != before:
                return
        except helm.HelmError as error:
            if "do not fit together" in str(error):
                return  # A template read it, and says what it does not go with.
            refused.append(f"{other!r}: {str(error)[:200]}")
    pytest.fail(f"{'.'.join(path)} is {value!r}; no other value changes any render. Refused: {refused[:4]}")
