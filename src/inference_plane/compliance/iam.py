"""IAM policy documents: where manifests hold them, and what they say, read as IAM reads them.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
"""

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inference_plane.compliance.rules import kind_of

TRUST, PERMISSIONS = "trust", "permissions"
ROLE = "iam.services.k8s.aws/Role"
POLICY = "iam.services.k8s.aws/Policy"
DOCUMENT = "iam.inference-plane/PolicyDocument"
CONFIG_MAP = "core/ConfigMap"
#: The kinds that can hold a document.
HOLDERS = frozenset({ROLE, POLICY, DOCUMENT, CONFIG_MAP})

_TOP = {"Version", "Id", "Statement"}
_ELEMENTS = {
    "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition",
}  # fmt: skip


class Malformed(Exception):
    """Not a policy document that IAM would take; the message says what is wrong with it."""


@dataclass(frozen=True)
class Statement:
    """One statement, with every scalar as a list. Names of actions are in lower case, as IAM compares them.

    `conditions` are (operator, key, values) in lower case but for the values; IAM compares neither by case.
    """

    path: str
    sid: str
    effect: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    principals: tuple[tuple[str, str], ...]
    negated: frozenset[str]
    conditions: tuple[tuple[str, str, tuple[str, ...]], ...]

    def values(self, operator: str, key: str) -> tuple[str, ...]:
        """The values of a condition: `values("StringEquals", "aws:SourceAccount")`; empty where there is none."""
        wanted = (operator.lower(), key.lower())
        return tuple(value for op, k, values in self.conditions if (op, k) == wanted for value in values)

    def equal(self, key: str, value: str) -> bool:
        """Whether it holds only where the key has that one value, compared as it is written."""
        return self.values("StringEquals", key) == (value,) or self.values("ArnEquals", key) == (value,)

    def does(self, pattern: str) -> bool:
        """Whether an action of it is one of the pattern, or the pattern one of it: `s3:*` and `s3:GetObject`."""
        pattern = pattern.lower()
        return any(fnmatch.fnmatchcase(pattern, a) or fnmatch.fnmatchcase(a, pattern) for a in self.actions)


@dataclass(frozen=True)
class Document:
    """A policy document: `path` is where the object holds it, `kind` is TRUST or PERMISSIONS."""

    path: str
    kind: str
    statements: tuple[Statement, ...]

    def allows(self) -> Iterator[Statement]:
        """The statements that allow."""
        return (statement for statement in self.statements if statement.effect == "Allow")


def held(obj: Mapping) -> Iterator[tuple[str, str, Any]]:
    """(path, kind, document) of every document that an object holds; the document is text, or what was parsed of it.

    The kind is empty where the object does not say it: then a document with principals is one of trust.
    """
    spec = obj.get("spec") or {}
    if kind_of(obj) == ROLE:
        yield "spec.assumeRolePolicyDocument", TRUST, spec.get("assumeRolePolicyDocument")
        for name, text in (spec.get("inlinePolicies") or {}).items():
            yield f"spec.inlinePolicies.{name}", PERMISSIONS, text
    elif kind_of(obj) == POLICY:
        yield "spec.policyDocument", PERMISSIONS, spec.get("policyDocument")
    elif kind_of(obj) == DOCUMENT:
        yield "", "", obj["document"]
    elif kind_of(obj) == CONFIG_MAP:
        for name, text in (obj.get("data") or {}).items():
            if isinstance(text, str) and '"Statement"' in text:
                yield f"data['{name}']", "", text


def documents(obj: Mapping, kind: str = "") -> Iterator[Document]:
    """The documents of a kind, or of both, that an object holds and IAM would take; for the others see `held`."""
    for path, said, text in held(obj):
        try:
            document = parse(text, path, said)
        except Malformed:
            continue
        if kind in ("", document.kind):
            yield document


def parse(document: Any, path: str = "", kind: str = "") -> Document:
    """A document from its JSON text, or from what was parsed of it.

    Raises:
        Malformed: not a policy document, or one with an element that IAM does not have.
    """
    if isinstance(document, str):
        try:
            document = json.loads(document, object_pairs_hook=_once)
        except ValueError as error:
            raise Malformed(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, Mapping) or set(document) - _TOP or "Statement" not in document:
        raise Malformed(f"{path}: is no policy document: it wants Version and Statement, and nothing more but Id")
    if document.get("Version") != "2012-10-17":
        raise Malformed(f"{path}: Version is {document.get('Version')!r}: without 2012-10-17 variables are plain text")
    statements = tuple(_statement(s, f"{path}.Statement[{i}]") for i, s in enumerate(_list(document["Statement"])))
    kind = kind or (TRUST if any(s.principals for s in statements) else PERMISSIONS)
    return Document(path, kind, statements)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) != len(pairs):
        raise ValueError("one name stands twice in a map")
    return made


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _texts(value: Any, path: str) -> tuple[str, ...]:
    found = _list(value)
    if any(not isinstance(item, (str, int, bool)) for item in found):
        raise Malformed(f"{path}: wants a text, or a list of texts")
    return tuple(str(item).lower() if isinstance(item, bool) else str(item) for item in found)


def _statement(raw: Any, path: str) -> Statement:
    if not isinstance(raw, Mapping) or set(raw) - _ELEMENTS:
        unknown = ", ".join(sorted(set(raw) - _ELEMENTS)) if isinstance(raw, Mapping) else "no map"
        raise Malformed(f"{path}: unknown to IAM: {unknown}")
    if raw.get("Effect") not in ("Allow", "Deny"):
        raise Malformed(f"{path}.Effect: is {raw.get('Effect')!r}, neither Allow nor Deny")
    if "Action" not in raw and "NotAction" not in raw:
        raise Malformed(f"{path}: has no Action")
    principals = []
    for element in ("Principal", "NotPrincipal"):
        who = raw.get(element)
        pairs = who.items() if isinstance(who, Mapping) else [("*", who)] if who is not None else []
        principals += [(str(kind), name) for kind, names in pairs for name in _texts(names, f"{path}.{element}")]
    conditions = []
    for operator, keys in (raw.get("Condition") or {}).items():
        if not isinstance(keys, Mapping):
            raise Malformed(f"{path}.Condition.{operator}: wants a map of keys")
        for key, values in keys.items():
            found = _texts(values, f"{path}.Condition.{operator}.{key}")
            conditions.append((operator.lower(), key.lower(), found))
    return Statement(
        path,
        str(raw.get("Sid", "")),
        raw["Effect"],
        tuple(action.lower() for e in ("Action", "NotAction") for action in _texts(raw.get(e), f"{path}.{e}")),
        tuple(name for e in ("Resource", "NotResource") for name in _texts(raw.get(e), f"{path}.{e}")),
        tuple(principals),
        frozenset({"NotAction", "NotResource", "NotPrincipal"} & set(raw)),
        tuple(conditions),
    )


def wild(text: str) -> bool:
    """Whether IAM would take it for more than one thing: wildcards and policy variables."""
    return bool(re.search(r"[*?]|\$\{", text))
