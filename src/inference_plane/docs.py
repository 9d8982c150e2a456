"""Makes the tables in the charts' READMEs from what Helm reads: values.yaml with its comments, and the schema.

A README asks for a table by a line `<!-- table: values -->`, or `<!-- table: NAME -->` for a definition of
charts/plane-lib/definitions.schema.yaml; everything from there to the next `<!-- end -->` is the generator's.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from inference_plane import checkout

Row = tuple[str, str, str]
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def readmes() -> list[pathlib.Path]:
    """Every README that asks for a table."""
    return [path for path in sorted(checkout.CHARTS.glob("*/README.md")) if _TABLE.search(path.read_text())]


def generate(readme: pathlib.Path) -> str:
    """The README's text with its tables as they should be.

    Raises:
        KeyError: it asks for a definition that the chart's schema does not have.
    """
    chart = readme.parent
    schema = json.loads((chart / "values.schema.json").read_text())
    text = (chart / "values.yaml").read_text()

    def table(match: re.Match[str]) -> str:
        if match[2] == "values":
            rows = values_rows(text, yaml.compose(text), schema, schema["definitions"])
        else:
            defaults = yaml.safe_load(text)["defaults"]["modelDefaults"]
            rows = definition_rows(schema["definitions"][match[2]], defaults, schema["definitions"])
        return match[1] + markdown(rows) + match[3]

    return _TABLE.sub(table, readme.read_text())


def values_rows(text: str, node: yaml.MappingNode, schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str = "") -> Iterator[Row]:
    """A row for each value, in the file's order: path, default, the comment above it or the schema's description.

    A map whose keys a user names (models, images) is one row with the names that it has.
    """
    lines = text.splitlines()
    for key, value in node.value:
        name = f"{path}.{key.value}".lstrip(".")
        own = _follow(schema.get("properties", {}).get(key.value, {}), definitions)
        about = _comment(lines, key.start_mark.line) or own.get("description", "")
        open_map = isinstance(own.get("additionalProperties"), dict)
        if isinstance(value, yaml.MappingNode) and value.value and open_map:
            yield name, ", ".join(f"`{entry.value}`" for entry, _ in value.value), about
        elif isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            if about:
                yield name, "", about
            yield from values_rows(text, value, own, definitions, name)
        else:
            yield name, f"`{text[value.start_mark.index : value.end_mark.index].strip()}`", about


def definition_rows(definition: Mapping[str, Any], defaults: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each field of a definition: name, default or `required`, description and the words that it takes."""
    for name, field in definition["properties"].items():
        field = {**_follow(field, definitions), **field}
        words = field.get("enum") or field.get("items", {}).get("enum") or []
        about = " ".join([field.get("description", ""), ", ".join(f"`{word}`" for word in words)]).strip()
        default = f"`{json.dumps(defaults[name])}`" if name in defaults else ""
        yield name, "required" if name in definition.get("required", ()) else default, about


def markdown(rows: Iterator[Row]) -> str:
    cells = [(f"`{key}`", default, about.replace("|", "\\|")) for key, default, about in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [("key", "default", "meaning"), ("---",) * 3, *cells])


def _follow(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def _comment(lines: list[str], line: int) -> str:
    """The comment right above a line."""
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(text.strip().lstrip("# ") for text in lines[first:line])
