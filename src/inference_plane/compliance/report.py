"""A verdict as text, JSON or SARIF."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inference_plane.compliance.rules import Rule

#: What finds a violation, and what to do where the message does not say it.
LAYERS = {
    "objects": "Correct the field: an API server would refuse or drop it.",
    "relations": "Make the two objects agree.",
    "policies": "",
    "checkov": "Correct it, or say in inference_plane/compliance/built_in.py why the rule does not apply.",
    "suppressions": "Correct the file of suppressions.",
}
#: https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
_SECURITY_SEVERITY = {"CRITICAL": "9.5", "HIGH": "8.0", "MEDIUM": "5.5", "LOW": "3.0"}


@dataclass(frozen=True)
class Violation:
    """One thing wrong. `layer` found it; `rule` is its id there; `path` is the field, empty for the whole object."""

    layer: str
    rule: str
    object: str
    path: str
    message: str


@dataclass
class Verdict:
    """All that was found in one source, and what was looked at."""

    source: str
    violations: list[Violation] = field(default_factory=list)
    #: (suppression, violation)
    suppressed: list[tuple[Any, Violation]] = field(default_factory=list)
    objects: int = 0
    #: How many objects each rule of the packs judged.
    judged: Mapping[str, int] = field(default_factory=dict)
    built_in_rules: int = 0
    #: Built-in rules of checkov that are not run, with reasons.
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    seconds: float = 0


def text(verdicts: Sequence[Verdict], rules: Mapping[str, Rule]) -> str:
    """For people: each violation with object, rule, reason and remedy; then a line a source."""
    lines = []
    for verdict in verdicts:
        for violation in verdict.violations:
            rule = rules.get(violation.rule)
            title = f"{rule.id} {rule.name} [{rule.severity}]" if rule else f"{violation.rule} ({violation.layer})"
            lines.append(f"{violation.object}: {violation.path}" if violation.path else violation.object)
            lines.append(f"  violates  {title}")
            lines.append(f"  because   {violation.message}")
            if rule:
                lines.append(f"  why       {rule.why}")
            lines.append(f"  remedy    {_remedy(violation, rule)}")
            lines.append("")
        for suppression, violation in verdict.suppressed:
            lines.append(
                f"suppressed until {suppression.expires} by {suppression.owner}: {violation.rule} {violation.object}"
            )
            lines.append(f"  because   {suppression.reason}")
            lines.append("")
        lines += [f"note: {note}" for note in verdict.notes]
        judged = sum(1 for count in verdict.judged.values() if count)
        pairs = sum(verdict.judged.values())
        lines.append(
            f"{'FAILED' if verdict.violations else 'ok'}  {verdict.source}: {len(verdict.violations)} violations, "
            f"{len(verdict.suppressed)} suppressed; {verdict.objects} objects, {len(verdict.judged)} rules "
            f"({judged} had something to judge: {pairs} verdicts), {verdict.built_in_rules} of checkov's own "
            f"({len(verdict.not_applicable)} do not apply); {verdict.seconds:.1f} s"
        )
    return "\n".join(lines)


def _remedy(violation: Violation, rule: Rule | None) -> str:
    return rule.remedy if rule else LAYERS[violation.layer]


def as_json(verdicts: Sequence[Verdict], rules: Mapping[str, Rule]) -> str:
    """For programs: a list of verdicts, each violation with the reason and remedy of its rule."""
    found = []
    for verdict in verdicts:
        found.append(
            {
                "source": verdict.source,
                "ok": not verdict.violations,
                "objects": verdict.objects,
                "judged": dict(verdict.judged),
                "builtInRules": verdict.built_in_rules,
                "notApplicable": dict(verdict.not_applicable),
                "notes": list(verdict.notes),
                "seconds": round(verdict.seconds, 3),
                "violations": [_entry(v, rules.get(v.rule)) for v in verdict.violations],
                "suppressed": [
                    _entry(v, rules.get(v.rule))
                    | {"suppression": {"reason": s.reason, "owner": s.owner, "expires": s.expires.isoformat()}}
                    for s, v in verdict.suppressed
                ],
            }
        )
    return json.dumps(found, indent=2)


def _entry(violation: Violation, rule: Rule | None) -> dict[str, Any]:
    entry: dict[str, Any] = asdict(violation) | {"remedy": _remedy(violation, rule)}
    if rule:
        entry |= {"name": rule.name, "severity": rule.severity, "why": rule.why, "rulesSource": rule.source}
    return entry


def sarif(verdicts: Sequence[Verdict], rules: Mapping[str, Rule], artifact: Mapping[str, str]) -> str:
    """SARIF 2.1.0, for code scanning. `artifact` is the file, by source, that results point at."""
    results, met = [], {}
    for verdict in verdicts:
        for violation in [*verdict.violations, *(v for _, v in verdict.suppressed)]:
            rule = rules.get(violation.rule)
            met[violation.rule] = {
                "id": violation.rule,
                "shortDescription": {"text": rule.name if rule else violation.rule},
                "fullDescription": {"text": rule.why if rule else violation.layer},
                "help": {"text": _remedy(violation, rule)},
                "properties": {"security-severity": _SECURITY_SEVERITY[rule.severity if rule else "MEDIUM"]},
            } | ({"helpUri": rule.source} if rule and rule.source.startswith("https://") else {})
            where = f"{violation.object}: {violation.path}" if violation.path else violation.object
            result: dict[str, Any] = {
                "ruleId": violation.rule,
                "level": "error",
                "message": {"text": f"{where}: {violation.message}"},
                "locations": [
                    {
                        "physicalLocation": {
                            "artifactLocation": {"uri": artifact[verdict.source]},
                            "region": {"startLine": 1},
                        },
                        "logicalLocations": [{"fullyQualifiedName": where}],
                    }
                ],
            }
            if suppression := next((s for s, v in verdict.suppressed if v is violation), None):
                why = f"{suppression.reason} ({suppression.owner}, until {suppression.expires})"
                result["suppressions"] = [{"kind": "external", "justification": why}]
            results.append(result)
    driver = {"name": "inference-plane check", "informationUri": "https://github.com/inference-plane/inference-plane"}
    run = {"tool": {"driver": driver | {"rules": list(met.values())}}, "results": results}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2)
