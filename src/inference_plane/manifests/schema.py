"""JSON Schema as Kubernetes means it, shared by the checks of built-in kinds and of custom resources."""

import base64
import binascii
import difflib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker, ValidationError, validators

from inference_plane.kube import path_of

from .findings import Finding

_QUANTITY = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))(?P<suffix>[eE][+-]?\d+|[KMGTPE]i|[numkMGTPE]|)\Z")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def parse_quantity(value: str | int | float) -> Decimal:
    """A Kubernetes resource quantity (`1500m`, `44.7Gi`, `1e3`) as a number. Raises ValueError.

    Syntax: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    match = _QUANTITY.match(str(value))
    if not match:
        raise ValueError(f"{value!r} is not a resource quantity such as 500m, 2 or 16Gi")
    number, suffix = Decimal(match["number"]), match["suffix"]
    if suffix in _BINARY:
        return number * 2 ** _BINARY[suffix]
    if suffix in _DECIMAL:
        return number.scaleb(_DECIMAL[suffix])
    return number.scaleb(int(suffix[1:]))


_TOKEN = re.compile(r"\\.|\(\?[ims]+\)|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)


@cache
def go_pattern(pattern: str) -> re.Pattern:
    """A Go (RE2) pattern for Python. Raises re.error for what cannot be said there, such as `[[:alpha:]]` or `\\p{L}`.

    In Go `$` and `\\z` are the end of the text, never the place before a last line break, and flags such as `(?i)` hold
    from where they stand to the end of their group.
    """
    out: list[str] = []
    # Per open group: the flag groups that end with it, and whether a `|` after one would now be misread.
    groups = [[0, False]]
    for token in _TOKEN.findall(pattern):
        group = groups[-1]
        if token.startswith("[") and "[:" in token:
            raise re.error(f"Python has no classes such as {token}")
        if token.startswith("(?"):
            group[:] = [group[0] + 1, group[1] or (bool(out) and out[-1] != "(")]
            token = token[:-1] + ":"
        elif token == "|" and group[1]:
            raise re.error("flags begin within one alternative and reach into the next")
        elif token == "(":
            groups.append([0, False])
        elif token == ")" and len(groups) > 1:
            out.append(")" * groups.pop()[0])
        out.append({"$": r"\Z", r"\z": r"\Z"}.get(token, token))
    return re.compile("".join(out) + ")" * groups[0][0])


def _pattern(validator: Any, pattern: str, instance: Any, schema: Mapping) -> Iterator[ValidationError]:
    if not isinstance(instance, str):
        return
    try:
        matches = go_pattern(pattern).search(instance)
    except re.error as error:
        yield ValidationError(f"cannot judge {instance!r}: the schema's pattern {pattern!r} does not compile: {error}")
        return
    if not matches:
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


# The API server's default for a key of a map list, without which two entries may look different that are one.
_KEY_DEFAULTS = {"protocol": "TCP"}


def _list_type(validator: Any, kind: str, instance: Any, schema: Mapping) -> Iterator[ValidationError]:
    """Sets and map lists hold no duplicates; server-side apply (Helm 4, Argo CD) refuses them for every kind."""
    if not isinstance(instance, list) or kind not in ("set", "map"):
        return
    keys = schema.get("x-kubernetes-list-map-keys", ())
    seen = []
    for index, item in enumerate(instance):
        if kind == "map":
            if not isinstance(item, Mapping):
                continue
            identity = {k: item.get(k, _KEY_DEFAULTS.get(k)) for k in keys}
        else:
            identity = item
        if identity in seen:
            what = ", ".join(f"{k} {v!r}" for k, v in identity.items()) if kind == "map" else repr(identity)
            yield ValidationError(f"duplicate entry: {what} is there already", path=[index])
        seen.append(identity)


FORMATS = FormatChecker(formats=())


@FORMATS.checks("int32")
def _int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


@FORMATS.checks("int64")
def _int64(value: object) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


@FORMATS.checks("byte", raises=(ValueError, binascii.Error))
def _byte(value: object) -> bool:
    if isinstance(value, str):
        base64.b64decode("".join(value.split()), validate=True)
    return True


@FORMATS.checks("date-time", raises=ValueError)
def _date_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@FORMATS.checks("quantity", raises=ValueError)
def _quantity(value: object) -> bool:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        parse_quantity(value)
    return True


_Extended = validators.extend(Draft202012Validator, {"pattern": _pattern, "x-kubernetes-list-type": _list_type})


def Validator(schema: Mapping) -> Draft202012Validator:
    """A validator with Kubernetes' list types, formats and Go patterns."""
    return _Extended(schema, format_checker=FORMATS)


def schema_findings(validator: Draft202012Validator, obj: Mapping, name: str) -> list[Finding]:
    """Every violation of the schema as a finding of rule `schema`, ordered by path."""
    found = [Finding(name, path_of(e.absolute_path), "schema", _say(e)) for e in validator.iter_errors(obj)]
    return sorted(set(found), key=lambda f: (f.path, f.message))


def _say(error: ValidationError) -> str:
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = list(error.schema.get("properties", ()))
        return "; ".join(_unknown(k, known) for k in error.instance if k not in known)
    if why := error.schema.get("x-why") if isinstance(error.schema, Mapping) else None:
        return f"{_short(error.instance)} must be {why}"
    if error.validator == "format":
        return f"{_short(error.instance)} is not a valid {error.validator_value}"
    if error.validator == "type":
        wanted = error.validator_value
        wanted = [w for w in ([wanted] if isinstance(wanted, str) else wanted) if w != "null"]
        return f"{_short(error.instance)} is not of type {' or '.join(wanted)}"
    return error.message if len(error.message) < 400 else f"{_short(error.instance)} fails {error.validator}"


def _unknown(key: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "an API server drops or refuses it"
    return f"unknown field {key!r}: {hint}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
