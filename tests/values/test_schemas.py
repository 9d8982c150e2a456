"""The charts' schemas: generated, closed everywhere, and true of the defaults."""

import json

import jsonschema
import pytest
import yaml

from inference_plane import schemas
from inference_plane.checkout import CHARTS

SOURCES = schemas.sources()
IDS = [source.parent.name for source in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_the_generated_schema_is_up_to_date(source):
    assert source.with_suffix(".json").read_text() == schemas.generate(source), "run scripts/schemas"


def objects_of(schema, path="$"):
    """Every place in a schema that speaks of an object's properties, with its path."""
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            yield from objects_of(item, f"{path}[{number}]")
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) or schema.get("type") in ("object", ["object", "null"]):
            yield path, schema
        for key, value in schema.items():
            yield from objects_of(value, f"{path}.{key}")


#: Objects whose content another schema judges: what Helm itself puts beside a chart's values.
OPEN = {"$.properties.plane-lib", "$.properties.global"}


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_every_object_is_closed(source):
    schema = json.loads(schemas.generate(source))
    places = dict(objects_of(schema))
    assert len(places) > 3
    loose = [
        path for path, place in places.items()
        if place.get("additionalProperties", True) in (True, {})
        and not any(path.endswith(end.removeprefix("$")) for end in OPEN)
    ]
    assert loose == []


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_the_defaults_satisfy_the_schema_and_nothing_is_missing_from_it(source):
    schema = json.loads(schemas.generate(source))
    jsonschema.Draft202012Validator.check_schema(schema)
    defaults = yaml.safe_load((source.parent / "values.yaml").read_text()) or {}
    jsonschema.validate(defaults, schema)


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_every_field_has_a_default_or_is_meant_to_have_none(source):
    """A chart's own fields all stand in its values.yaml, so that a reader finds them there."""
    schema = yaml.safe_load(source.read_text())
    defaults = yaml.safe_load((source.parent / "values.yaml").read_text()) or {}
    given_by_others = {"global", "plane-lib", *(path.parent.name for path in CHARTS.glob("*/Chart.yaml"))}
    assert set(schema["properties"]) - given_by_others <= set(defaults)
