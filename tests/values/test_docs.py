"""The tables in the charts' READMEs say what the values files say."""

import json
import re

import pytest
import yaml

from inference_plane import docs
from inference_plane.checkout import CHARTS, ROOT

READMES = docs.readmes()


def test_the_charts_with_tables_are_the_ones_meant():
    assert {"inference-plane", "plane-lib", "router"} <= {readme.parent.name for readme in READMES}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_tables_are_up_to_date(readme):
    assert readme.read_text() == docs.generate(readme), "run scripts/docs"


def test_a_value_a_section_and_a_map_of_entries_each_get_their_row():
    text = "# What it is,\n# in two lines.\na:\n  # Seconds | of waiting.\n  b: 600s\n  c: {x: 1}\n"
    text += "  d:\n    [1,\n     2]\nmodels:\n  one: {}\n"
    about = {"c": {"description": "From the schema."}}
    models = {"$ref": "#/definitions/m", "description": "The catalogue."}
    schema = {"properties": {"a": {"properties": about}, "models": models}}
    shapes = {"m": {"additionalProperties": {"type": "object"}}}
    rows = list(docs.values_rows(text, yaml.compose(text), schema, shapes))
    assert rows == [
        ("a", "", "What it is, in two lines."),
        ("a.b", "`600s`", "Seconds | of waiting."),
        ("a.c", "`{x: 1}`", "From the schema."),
        ("a.d", "`[1, 2]`", ""),
        ("models", "`one`", "The catalogue."),
    ]
    assert "Seconds \\| of waiting." in docs.markdown(rows)


def test_the_model_table_has_every_field_of_an_entry():
    readme = (CHARTS / "plane-lib" / "README.md").read_text()
    table = readme.split("<!-- table: model -->")[1].split("<!-- end -->")[0]
    definitions = json.loads((CHARTS / "plane-lib" / "values.schema.json").read_text())["definitions"]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) - {"key"} == set(definitions["model"]["properties"])
    assert "| `residency` | `\"cluster\"` |" in table and "| `source` | required |" in table


#: Where prose names files.
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "UPGRADING.md", "argocd/README.md")]
PAGES += [*(ROOT / "docs").rglob("*.md"), *CHARTS.glob("*/README.md"), *(ROOT / "examples").glob("*/README.md")]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
NAMED = re.compile(r"(?<![\w./-])(?:charts|scripts|src|tests|values|docs)/[\w./-]*[\w-]")


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text()
    missing = {link for link in LINK.findall(text) if not (page.parent / link).exists()}
    # Prose names files from the root, or an example's own from where it stands.
    missing |= {path for path in NAMED.findall(text) if not any((top / path).exists() for top in (ROOT, page.parent))}
    assert missing == set()
