"""Makes each chart's `values.schema.json` from its `values.schema.yaml` and the shapes that charts share.

The sources are JSON Schema (draft 2020-12) in YAML with one addition: an object may name a definition in `$merge`,
whose properties it takes over. JSON Schema itself has no way to extend an object that is closed by
`additionalProperties: false`, and every object here is closed.
"""

import json
import pathlib
from typing import Any

import yaml

from inference_plane.checkout import CHARTS

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SHARED = CHARTS / "plane-lib" / "definitions.schema.yaml"
_REF = "#/definitions/"


def sources() -> list[pathlib.Path]:
    """Every chart's schema source."""
    return sorted(CHARTS.glob("*/values.schema.yaml"))


def generate(source: pathlib.Path) -> str:
    """The text of the `values.schema.json` that belongs to a source.

    Raises:
        KeyError: the source refers to a definition that does not exist.
    """
    shared = yaml.safe_load(SHARED.read_text())["definitions"]
    schema = yaml.safe_load(source.read_text())
    # The umbrella refers to a subchart's whole schema by the subchart's name.
    charts = {chart.parent.name: yaml.safe_load(chart.read_text()) for chart in sources()}
    used: dict[str, Any] = {}
    body = _resolve(schema, shared | charts, used)
    document = {"$schema": DRAFT, **body, "definitions": dict(sorted(used.items()))}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _resolve(node: Any, definitions: dict[str, Any], used: dict[str, Any]) -> Any:
    """The node with `$merge` carried out; collects the definitions it refers to, resolved, in `used`."""
    if isinstance(node, list):
        return [_resolve(item, definitions, used) for item in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    if merged := node.pop("$merge", None):
        properties = definitions[merged.removeprefix(_REF)]["properties"]
        node["properties"] = properties | node.get("properties", {})
    reference = node.get("$ref", "")
    if reference.startswith(_REF) and (name := reference.removeprefix(_REF)) not in used:
        used[name] = None  # Before its own walk, so that a definition may refer to itself.
        used[name] = _resolve(definitions[name], definitions, used)
    return {key: _resolve(value, definitions, used) for key, value in node.items()}
