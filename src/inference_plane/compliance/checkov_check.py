"""A rule as a checkov check. Only checkov's own environment can import this.

checkov hands a check one object, and changes it first (annotations become a list, lines are added). So a check looks
up the object as it was rendered, by the file that it stands alone in, and sees the whole render beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from checkov.common.models.enums import CheckCategories, CheckResult
from checkov.kubernetes.checks.resource.base_spec_check import BaseK8Check

from inference_plane.compliance.rules import Rule
from inference_plane.kube import Index


@dataclass
class Scan:
    """The render being judged: objects by the name of their file, and what the rules said so far."""

    objects: Mapping[str, Mapping]
    index: Index
    #: (file, rule id) -> violations as (path, message); present for every pair that was judged.
    said: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)


#: Set by `scan`. Without it no rule can see the render, and every check fails.
current: Scan | None = None


class PlaneCheck(BaseK8Check):
    """Runs one rule on one object."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        kinds = sorted({kind.split("/")[1] for kind in rule.kinds})
        super().__init__(rule.name, rule.id, [CheckCategories.GENERAL_SECURITY], kinds, guideline=rule.source)

    def scan_spec_conf(self, conf: dict[str, Any]) -> CheckResult:
        if current is None:
            self.details.append("the whole render is not known: run scripts/check, not checkov alone")
            return CheckResult.FAILED
        file = self.entity_path.split(":")[0].rsplit("/", 1)[-1]
        obj = current.objects[file]
        if not self.rule.claims(obj):
            return CheckResult.UNKNOWN
        said = [(str(path), str(message)) for path, message in self.rule.judge(obj, current.index)]
        current.said[file, self.rule.id] = said
        self.details.extend(f"{path}: {message}" if path else message for path, message in said)
        return CheckResult.FAILED if said else CheckResult.PASSED


def register(rule: Rule) -> None:
    """Makes the rule one of checkov's checks."""
    PlaneCheck(rule)
