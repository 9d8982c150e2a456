"""Makes the tables in the charts' READMEs from what Helm reads: values.yaml with its comments, and the schema.

And the list of rules in docs/policies.md from the rules.

A README asks for a table by a line `<!-- table: values -->`, or `<!-- table: NAME -->` for a definition of the chart's
schema; everything from there to the next `<!-- end -->` is the generator's.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from inference_plane import checkout
from inference_plane.compliance import rules
from inference_plane.compliance.built_in import NOT_APPLICABLE

Row = tuple[str, str, str]
_TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def readmes() -> list[pathlib.Path]:
    """Every README that asks for a table, and the guide to the policies."""
    charts = [path for path in sorted(checkout.CHARTS.glob("*/README.md")) if _TABLE.search(path.read_text())]
    return [*charts, POLICIES]


POLICIES = checkout.ROOT / "docs" / "policies.md"


def generate(readme: pathlib.Path) -> str:
    """The text with its tables as they should be. Raises KeyError for a definition that does not exist."""
    if readme == POLICIES:
        made = {"rules": policies(rules.load().values()), "built-in": not_applicable()}
        return _TABLE.sub(lambda match: match[1] + made[match[2]] + match[3], readme.read_text())
    schema = json.loads((readme.parent / "values.schema.json").read_text())
    text = (readme.parent / "values.yaml").read_text()
    # The library's defaults reach every chart as `global`, and that is where a user sets them.
    text = re.sub(r"^defaults:", "global:", text, flags=re.MULTILINE)
    schema["properties"]["global"] = schema["definitions"]["global"]

    def table(match: re.Match[str]) -> str:
        if match[2] == "values":
            rows = values_rows(text, yaml.compose(text), schema, schema["definitions"])
        else:
            defaults = yaml.safe_load(text)["global"]["modelDefaults"]
            rows = definition_rows(schema["definitions"][match[2]], defaults, schema["definitions"])
        return match[1] + markdown(rows) + match[3]

    return _TABLE.sub(table, readme.read_text())


def values_rows(
    text: str, node: yaml.MappingNode, schema: Mapping[str, Any], shapes: Mapping[str, Any], path: str = ""
) -> Iterator[Row]:
    """A row for each value, in the file's order: path, default, the comment above it or the schema's description.

    A map whose keys a user names (models, images) is one row with the names that it has.
    """
    for key, value in node.value:
        name, field = f"{path}.{key.value}".lstrip("."), schema.get("properties", {}).get(key.value, {})
        shape = _follow(field, shapes)
        about = _comment(text.splitlines()[: key.start_mark.line]) or field.get("description", "")
        block = isinstance(value, yaml.MappingNode) and bool(value.value)
        if block and isinstance(shape.get("additionalProperties"), dict):
            yield name, ", ".join(f"`{entry.value}`" for entry, _ in value.value), about
        elif block and not value.flow_style:
            yield from [(name, "", about)] if about else []
            yield from values_rows(text, value, shape, shapes, name)
        else:
            # On one line, as a row of a table is.
            default = " ".join(text[value.start_mark.index : value.end_mark.index].split())
            yield name, f"`{default}`", about


def definition_rows(shape: Mapping[str, Any], defaults: Mapping[str, Any], shapes: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each field of a definition: name, default or `required`, description and the words that it takes."""
    for name, field in shape["properties"].items():
        field = {**_follow(field, shapes), **field}
        words = field.get("enum") or field.get("items", {}).get("enum") or []
        about = " ".join([field.get("description", ""), ", ".join(f"`{word}`" for word in words)]).strip()
        default = f"`{json.dumps(defaults[name])}`" if name in defaults else ""
        yield name, "required" if name in shape.get("required", ()) else default, about


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table."""
    cells = [(f"`{key}`", default, about.replace("|", "\\|")) for key, default, about in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [("key", "default", "meaning"), ("---",) * 3, *cells])


def policies(found: Iterable[rules.Rule]) -> str:
    """A section for each rule, in the order of the ids."""
    sections = []
    for rule in sorted(found, key=lambda r: r.id):
        where = f"<{rule.source}>" if rule.source.startswith("https://") else f"[{rule.source}](../{rule.source})"
        kinds = ", ".join(f"`{kind}`" for kind in sorted(rule.kinds))
        sections.append(
            f"### {rule.id}: {rule.name}\n\n{rule.why}\n\n"
            f"| | |\n|---|---|\n| severity | {rule.severity} |\n| judges | {kinds} |\n"
            f"| remedy | {_cell(rule.remedy)} |\n| breaks it | `{_cell(rule.example)}` |\n| source | {where} |\n"
        )
    return "\n".join(sections)


def not_applicable() -> str:
    """The rules of checkov's own that do not apply, as a table."""
    rows = [("rule", "why"), ("---", "---"), *((f"`{name}`", _cell(why)) for name, why in NOT_APPLICABLE.items())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _follow(schema: Mapping[str, Any], shapes: Mapping[str, Any]) -> Mapping[str, Any]:
    return shapes[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def _comment(before: list[str]) -> str:
    """The comment at the end of the lines before a key."""
    first = len(before)
    while first and before[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip().lstrip("# ") for line in before[first:])
