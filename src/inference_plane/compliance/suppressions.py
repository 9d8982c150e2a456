"""Violations that somebody answers for, for a time."""

import datetime
import fnmatch
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from inference_plane.compliance.report import Violation


class SuppressionError(Exception):
    """A file of suppressions that says less than it must."""


@dataclass(frozen=True)
class Suppression:
    """`object` is a name as reports print it, where `*` stands for anything within it; the last day is `expires`."""

    rule: str
    object: str
    reason: str
    owner: str
    expires: datetime.date


def read(file: pathlib.Path) -> list[Suppression]:
    """The list in a YAML file, each with all five keys.

    Raises:
        SuppressionError: not such a list, or an entry that lacks a key, has one more, or leaves one empty.
    """
    wanted = set(Suppression.__dataclass_fields__)
    try:
        entries = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SuppressionError(f"{file}: {error}") from error
    if not isinstance(entries, list):
        raise SuppressionError(f"{file}: not a list of suppressions")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or set(entry) != wanted:
            raise SuppressionError(f"{file}: entry {number}: must have exactly {', '.join(sorted(wanted))}")
        if not isinstance(entry["expires"], datetime.date) or isinstance(entry["expires"], datetime.datetime):
            raise SuppressionError(f"{file}: entry {number}: expires must be a date such as 2027-01-31")
        if empty := [k for k in wanted - {"expires"} if not isinstance(entry[k], str) or not entry[k].strip()]:
            raise SuppressionError(f"{file}: entry {number}: {', '.join(sorted(empty))} must be said")
    return [Suppression(**entry) for entry in entries]


def apply(
    violations: Sequence[Violation], suppressions: Sequence[Suppression], today: datetime.date
) -> tuple[list[Violation], list[tuple[Suppression, Violation]]]:
    """What is left, and what is suppressed by which. One that has expired, or suppresses nothing, is a violation."""
    left, suppressed, used = [], [], set()
    for violation in violations:
        match = next(
            (s for s in suppressions if s.rule == violation.rule and fnmatch.fnmatchcase(violation.object, s.object)),
            None,
        )
        used |= {match} - {None}
        if match and match.expires >= today:
            suppressed.append((match, violation))
        else:
            left.append(violation)
    for suppression in suppressions:
        why = "suppresses nothing: remove it" if suppression not in used else ""
        if suppression.expires < today:
            why = (
                f"expired on {suppression.expires}: mend what it suppressed, or have {suppression.owner} answer for it"
            )
        if why:
            left.append(Violation("suppressions", "suppression", suppression.object, "", f"{suppression.rule}: {why}"))
    return left, suppressed
