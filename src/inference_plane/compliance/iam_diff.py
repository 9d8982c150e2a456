"""What one IAM policy grants beyond another, and what it lacks.

By names and patterns, as a reviewer compares: each statement is taken apart into one action on one resource under its
conditions. Two conditions are the same only where operator, key and values are; whatever else may come to the same is
reported, never passed over.
"""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

from inference_plane.compliance.iam import Document


@dataclass(frozen=True)
class Grant:
    """One action on one resource, or for one principal, under conditions. A `negated` one equals no other."""

    effect: str
    action: str
    on: str
    conditions: frozenset[tuple[str, str, frozenset[str]]]
    negated: bool = False

    def __str__(self) -> str:
        held = "; ".join(
            f"{op} {key} = {', '.join(sorted(values))}" for op, key, values in sorted(self.conditions, key=str)
        )
        return f"{self.effect} {'all but ' if self.negated else ''}{self.action} on {self.on}" + (
            f", if {held}" if held else ""
        )

    def covers(self, other: "Grant") -> bool:
        """Whether everything that the other grants is granted by this one too."""
        return (
            self.effect == other.effect
            and not self.negated
            and not other.negated
            and fnmatch.fnmatchcase(other.action, self.action)
            and fnmatch.fnmatchcase(other.on, self.on)
            and self.conditions <= other.conditions
        )


def grants(document: Document) -> Iterator[Grant]:
    """The document, taken apart."""
    for statement in document.statements:
        conditions = frozenset((op, key, frozenset(values)) for op, key, values in statement.conditions)
        targets = list(statement.resources) + [f"{kind} {name}" for kind, name in statement.principals]
        for action in statement.actions:
            for target in targets or ["nothing"]:
                yield Grant(statement.effect, action, target, conditions, bool(statement.negated))


def compare(existing: Document, wanted: Document) -> tuple[list[Grant], list[Grant]]:
    """(what `existing` allows beyond `wanted`, what it lacks of it). Both are empty where they grant the same.

    A statement that denies is lacking where `wanted` has it; one that denies more than `wanted` is lacking nothing,
    unless it denies something that `wanted` allows: then that is lacking.
    """
    have, want = list(grants(existing)), list(grants(wanted))
    wide = [g for g in have if g.effect == "Allow" and not any(w.covers(g) for w in want)]
    lacking = [w for w in want if not any(g.covers(w) for g in have)]
    denied = [
        w
        for w in want
        if w.effect == "Allow" and w not in lacking and any(g.effect == "Deny" and _touches(g, w) for g in have)
    ]
    return wide, lacking + denied


def _touches(denial: Grant, wanted: Grant) -> bool:
    if denial.negated:
        return True
    return fnmatch.fnmatchcase(wanted.action, denial.action) and fnmatch.fnmatchcase(wanted.on, denial.on)
