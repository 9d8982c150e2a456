"""Custom resources as an API server judges them on create: structural schema, defaults, then the CEL rules.

The order is the API server's (apiextensions-apiserver, `validation.ValidateCustomResource` and `cel.Validator`):
defaults are filled in, the schema is checked, and the rules run only where the schema found nothing. Unknown fields,
which a server would silently drop, are findings.
"""

import copy
import ipaddress
import itertools
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import cel

from inference_plane.kube import name_of, path_of

from .findings import Finding
from .schema import Validator, parse_quantity, schema_findings

Path = tuple[str | int, ...]

# Identifiers that CEL or its grammar reserves; a property of that name is written `__name__` in a rule
# (https://kubernetes.io/docs/reference/using-api/cel/#escaping).
_RESERVED = frozenset(
    "true false null in as break const continue else for function if import let loop package namespace return var void "
    "while".split()
)
_ESCAPES = (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__"))

# What the CEL language itself brings; every other function that a rule calls must stand in FUNCTIONS.
_STANDARD = frozenset(
    "size contains startsWith endsWith matches int uint double string bytes dyn type duration timestamp "
    "getFullYear getMonth getDate getDayOfMonth getDayOfWeek getDayOfYear getHours getMinutes getSeconds "
    "getMilliseconds hasValue value orValue optional none of ofNonZeroValue".split()
)


def _is(parse: Callable[[str], Any]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return check


def _absolute_url(text: str) -> None:
    parts = urllib.parse.urlsplit(text)
    if not (parts.scheme or text.startswith("/")) or " " in text:
        raise ValueError(text)


def _cidr(text: str) -> None:
    ipaddress.ip_interface(text)
    if "/" not in text:
        raise ValueError(text)


def _find(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match.group(0) if match else ""


def _split(text: str, separator: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    return text.split(separator, limit - 1 if limit > 0 else -1) if separator else list(text)


# The Kubernetes CEL libraries (https://kubernetes.io/docs/reference/using-api/cel/#cel-options-language-features-and-
# libraries), as far as they fit the engine: member functions receive their target first.
FUNCTIONS: dict[str, Callable] = {
    "charAt": lambda text, index: text[index],
    "compareTo": lambda a, b: (_quantity(a) > _quantity(b)) - (_quantity(a) < _quantity(b)),
    "find": _find,
    "findAll": lambda text, pattern, limit=None: [m[0] for m in re.finditer(pattern, text)][:limit],
    "indexOf": lambda s, x: s.find(x) if isinstance(s, str) else s.index(x) if x in s else -1,
    "isCIDR": _is(_cidr),
    "isGreaterThan": lambda a, b: _quantity(a) > _quantity(b),
    "isIP": _is(ipaddress.ip_address),
    "isLessThan": lambda a, b: _quantity(a) < _quantity(b),
    "isQuantity": _is(parse_quantity),
    "isSorted": lambda items: all(a <= b for a, b in itertools.pairwise(items)),
    "isURL": _is(_absolute_url),
    "join": lambda items, separator="": separator.join(items),
    "lowerAscii": str.lower,
    "max": max,
    "min": min,
    "quantity": lambda text: {"quantity": str(parse_quantity(text))},
    "replace": lambda text, old, new, limit=-1: text.replace(old, new, limit),
    "split": _split,
    "substring": lambda text, start, end=None: text[start:end],
    "sum": sum,
    "trim": str.strip,
    "upperAscii": str.upper,
}


def _quantity(value: Mapping[str, str]) -> Decimal:
    return Decimal(value["quantity"])


@dataclass(frozen=True)
class Rule:
    """One entry of `x-kubernetes-validations`. `refusal` says why the rule cannot be judged, if it cannot."""

    source: str
    message: str
    field_path: str
    program: "cel.Program | None"
    message_program: "cel.Program | None"
    on_create: bool
    refusal: str | None


@dataclass
class Node:
    """One place of a schema, with its rules, its defaults and what tells how values reach an expression."""

    schema: Mapping
    rules: list[Rule] = field(default_factory=list)
    properties: dict[str, "Node"] = field(default_factory=dict)
    items: "Node | None" = None
    values: "Node | None" = None
    has_rules: bool = False
    has_defaults: bool = False

    def children(self) -> Iterator["Node"]:
        yield from self.properties.values()
        yield from (n for n in (self.items, self.values) if n)

    def all_rules(self) -> Iterator[Rule]:
        yield from self.rules
        for child in self.children():
            yield from child.all_rules()


def compile_rule(entry: Mapping[str, Any]) -> Rule:
    """A rule of a CRD; never raises: what does not compile or calls an unknown function carries its refusal."""
    source = entry["rule"]
    program, refusal = None, None
    try:
        program = cel.compile(source)
    except Exception as error:  # The engine raises several types for what it cannot parse.
        refusal = " ".join(str(error).split())
    else:
        # The engine looks a function up when it gets there, so a branch that is not taken would hide its absence.
        unknown = [f for f in program.functions() if f.isidentifier() and not f.startswith("_")]
        unknown = sorted(set(unknown) - _STANDARD - FUNCTIONS.keys())
        if unknown:
            refusal = f"no such function here: {', '.join(unknown)}"
    message_program = None
    if expression := entry.get("messageExpression"):
        try:
            message_program = cel.compile(expression)
        except Exception:
            # As the API server does at run time, the plain message stands in.
            message_program = None
    # A transition rule (one that reads oldSelf) does not run on create unless optionalOldSelf makes it optional.
    transition = bool(re.search(r"\boldSelf\b", source)) and not entry.get("optionalOldSelf")
    return Rule(
        source=source,
        message=(entry.get("message") or f"failed rule: {source}").strip(),
        field_path=entry.get("fieldPath", ""),
        program=program,
        message_program=message_program,
        on_create=not transition,
        refusal=refusal,
    )


def _node(schema: Mapping) -> Node:
    node = Node(schema, [compile_rule(r) for r in schema.get("x-kubernetes-validations") or ()])
    node.properties = {k: _node(v) for k, v in (schema.get("properties") or {}).items()}
    node.items = _node(schema["items"]) if isinstance(schema.get("items"), Mapping) else None
    more = schema.get("additionalProperties")
    node.values = _node(more) if isinstance(more, Mapping) else None
    node.has_rules = bool(node.rules) or any(c.has_rules for c in node.children())
    node.has_defaults = "default" in schema or any(c.has_defaults for c in node.children())
    return node


def structural(schema: Mapping, *, root: bool = False) -> dict:
    """A CRD's openAPIV3Schema as JSON Schema 2020-12, closed wherever an API server would prune.

    Kubernetes' own keywords become JSON Schema: int-or-string and nullable widen `type`, an object without
    additionalProperties or preserve-unknown-fields is closed, an embedded resource has apiVersion, kind and metadata.
    """
    out = {
        k: v for k, v in schema.items() if k not in ("description", "x-kubernetes-validations", "default", "nullable")
    }
    for name in ("allOf", "anyOf", "oneOf"):
        if name in out:
            out[name] = [_value_schema(s) for s in out[name]]
    if "not" in out:
        out["not"] = _value_schema(out["not"])
    if schema.get("x-kubernetes-int-or-string"):
        # The one anyOf that Kubernetes allows here says the same again.
        out.pop("anyOf", None)
        out["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in out:
        kinds = out["type"] if isinstance(out["type"], list) else [out["type"]]
        out["type"] = [*kinds, "null"]
    if isinstance(out.get("items"), Mapping):
        out["items"] = structural(out["items"])
    properties = {k: structural(v) for k, v in (schema.get("properties") or {}).items()}
    if root or schema.get("x-kubernetes-embedded-resource"):
        for name, kind in (("apiVersion", "string"), ("kind", "string"), ("metadata", "object")):
            properties[name] = {"type": kind}
        out["required"] = sorted({*out.get("required", ()), "apiVersion", "kind"})
    if properties:
        out["properties"] = properties
    more = schema.get("additionalProperties")
    if isinstance(more, Mapping):
        out["additionalProperties"] = structural(more)
    elif schema.get("type") == "object" and more is None and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out["additionalProperties"] = False
    elif schema.get("x-kubernetes-preserve-unknown-fields"):
        out.pop("additionalProperties", None)
    return out


def _value_schema(schema: Mapping) -> dict:
    # Inside allOf, anyOf, oneOf and not a structural schema only constrains values; it never closes an object.
    return {k: v for k, v in schema.items() if k != "description"}


def with_defaults(node: Node, value: Any) -> Any:
    """A copy of `value` with the schema's defaults filled in; a null where there is a default counts as absent."""
    if not node.has_defaults:
        return value
    if isinstance(value, Mapping):
        out = dict(value)
        for name, child in node.properties.items():
            default = child.schema.get("default")
            absent = name not in out or (out[name] is None and not child.schema.get("nullable"))
            if absent and "default" in child.schema:
                out[name] = copy.deepcopy(default)
            if name in out:
                out[name] = with_defaults(child, out[name])
        if node.values:
            out |= {k: with_defaults(node.values, v) for k, v in out.items() if k not in node.properties}
        return out
    if isinstance(value, list) and node.items:
        return [with_defaults(node.items, v) for v in value]
    return value


def _escape(name: str) -> str:
    if name in _RESERVED:
        return f"__{name}__"
    for old, new in _ESCAPES:
        name = name.replace(old, new)
    return name


_DURATION_UNITS = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def _duration(text: str) -> timedelta:
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    sign = -1 if text.startswith("-") else 1
    return timedelta(seconds=sign * sum(float(n) * _DURATION_UNITS[unit] for n, unit in parts))


def to_cel(node: Node | None, value: Any) -> Any:
    """The value as an expression sees it: property names escaped, `number` as double, date-time and duration typed."""
    if node is None:
        return value
    schema = node.schema
    if isinstance(value, Mapping):
        return {
            (_escape(k) if k in node.properties else k): to_cel(node.properties.get(k, node.values), v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [to_cel(node.items, v) for v in value]
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and schema.get("format") == "date-time":
        return datetime.fromisoformat(value)
    if isinstance(value, str) and schema.get("format") == "duration":
        return _duration(value)
    return value


class CustomResource:
    """One served version of a CRD, ready to judge objects.

    `rules` counts all CEL rules and `transition_rules` those that no check on create runs (they compare with an old
    object).
    """

    def __init__(self, schema: Mapping) -> None:
        self._validator = Validator(structural(schema, root=True))
        self._root = _node(schema)
        rules = list(self._root.all_rules())
        self.rules = len(rules)
        self.transition_rules = sum(not r.on_create for r in rules)
        self.refusals = [f"{r.source}: {r.refusal}" for r in rules if r.refusal]

    def check(self, obj: Mapping) -> list[Finding]:
        """What an API server would refuse or drop of this object; a rule that cannot be judged is a finding too."""
        complete = with_defaults(self._root, obj)
        found = schema_findings(self._validator, complete, name_of(obj))
        if found or not self._root.has_rules:
            return found
        return list(self._rules(self._root, complete, (), name_of(obj)))

    def _rules(self, node: Node, value: Any, path: Path, name: str) -> Iterator[Finding]:
        if not node.has_rules or value is None:
            return
        if node.rules:
            variables = {"self": to_cel(node, value), "oldSelf": cel.OptionalValue.none()}
            context = cel.Context(variables, FUNCTIONS)
            for rule in node.rules:
                if rule.on_create and (problem := _judge(rule, context)):
                    yield Finding(name, path_of(path) + rule.field_path, "cel", problem)
        if isinstance(value, Mapping):
            for key, child in value.items():
                if below := node.properties.get(key, node.values):
                    yield from self._rules(below, child, (*path, key), name)
        elif isinstance(value, list) and node.items:
            for index, child in enumerate(value):
                yield from self._rules(node.items, child, (*path, index), name)


def _judge(rule: Rule, context: "cel.Context") -> str | None:
    """None where the rule holds, else what to say."""
    if rule.refusal or rule.program is None:
        return f"cannot judge the rule {rule.source!r}: {rule.refusal}"
    try:
        result = rule.program.execute(context)
    except Exception as error:  # An evaluation error is a refusal for an API server as well.
        return f"cannot judge the rule {rule.source!r}: {type(error).__name__}: {error}"
    if result is True:
        return None
    if result is not False:
        return f"cannot judge the rule {rule.source!r}: it gave {result!r}, not true or false"
    if rule.message_program:
        try:
            text = rule.message_program.execute(context)
        except Exception:
            # As in the API server, a messageExpression that fails gives way to the plain message.
            text = None
        if isinstance(text, str) and text.strip() and "\n" not in text:
            return text.strip()
    return rule.message
