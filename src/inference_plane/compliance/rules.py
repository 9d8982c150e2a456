"""What a rule is, and the register of those under `policies/`.

Importable with and without checkov: checkov's own environment turns each rule into a check as it loads the file, the
project's environment reads the same rules for docs and tests.
"""

import ast
import importlib.util
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from inference_plane.checkout import ROOT
from inference_plane.kube import Index, group_version

POLICIES = ROOT / "policies"
PACKS = ("residency", "least_privilege")
SEVERITIES = ("CRITICAL", "HIGH", "MEDIUM", "LOW")

#: (path of the field, what is wrong with it) for each place where an object breaks a rule.
Judge = Callable[[Mapping, Index], Iterable[tuple[str, str]]]


class RuleError(Exception):
    """The rules on disk are not what was loaded, or one is not well formed; nothing may be judged with them."""


@dataclass(frozen=True)
class Rule:
    """One rule. `kinds` are `group/Kind`, with `core` for the core group; every such object is judged by it.

    `why` is the reason, `remedy` what to set, `source` where the rule comes from, `example` what breaks it.
    """

    id: str
    name: str
    pack: str
    severity: str
    kinds: frozenset[str]
    why: str
    remedy: str
    source: str
    example: str
    judge: Judge

    def claims(self, obj: Mapping) -> bool:
        """Whether the object is of a kind that the rule judges."""
        return kind_of(obj) in self.kinds


#: Kinds that no rule judges, and why none needs to. Any other kind that no rule claims cannot be judged.
UNJUDGED: dict[str, str] = {
    "policy/PodDisruptionBudget": "bounds evictions, and gives nobody anything",
    "coordination.k8s.io/Lease": "holds the name of a leader",
    "scheduling.k8s.io/PriorityClass": "orders pods; Pod Security and accounts do not depend on it",
    "monitoring.coreos.com/PrometheusRule": "is evaluated by Prometheus over metrics, which hold no prompt",
}

#: Every rule that was loaded, by id.
RULES: dict[str, Rule] = {}


def kind_of(obj: Mapping) -> str:
    """`apps/Deployment`, `core/ConfigMap`: the group tells ACK's Role from Kubernetes' own."""
    return f"{group_version(obj)[0] or 'core'}/{obj.get('kind')}"


def rule(
    id: str,
    name: str,
    *,
    severity: str,
    kinds: Collection[str],
    why: str,
    remedy: str,
    source: str,
    example: str,
) -> Callable[[Judge], Judge]:
    """Registers the function below as a rule; see `Rule` for the arguments.

    Raises:
        RuleError: the id is taken or not of the pack, or a word of the description is missing.
    """

    def register(judge: Judge) -> Judge:
        pack = {"RES": "residency", "LP": "least_privilege"}.get(id.split("_")[1] if "_" in id else "")
        made = Rule(id, name, pack or "", severity, frozenset(kinds), why, remedy, source, example, judge)
        if not re.fullmatch(r"PLANE_(RES|LP)_\d\d", id) or id in RULES:
            raise RuleError(f"rule {id!r} in {judge.__module__}: the id is taken, or not PLANE_RES_nn or PLANE_LP_nn")
        if severity not in SEVERITIES or not all((name, kinds, why, remedy, source, example)):
            raise RuleError(f"rule {id}: say name, kinds, why, remedy, source, example and one of {SEVERITIES}")
        RULES[id] = made
        if importlib.util.find_spec("checkov"):
            from inference_plane.compliance import checkov_check

            checkov_check.register(made)
        return judge

    return register


def files(policies: pathlib.Path = POLICIES) -> list[pathlib.Path]:
    """The files of rules, in both packs."""
    return sorted(f for pack in PACKS for f in (policies / pack).glob("*.py") if f.name != "__init__.py")


def on_disk(policies: pathlib.Path = POLICIES) -> set[str]:
    """The ids that the files state, read without running them.

    Raises:
        RuleError: two have one id; a pack has no rule, or lacks the `__init__.py` without which checkov passes it over.
    """
    found: list[str] = []
    for pack in PACKS:
        folder, ids = policies / pack, []
        if not (folder / "__init__.py").is_file():
            raise RuleError(f"{folder}/__init__.py is missing: checkov would load no rule of that folder, in silence")
        for file in (f for f in files(policies) if f.parent == folder):
            try:
                parsed = ast.parse(file.read_text(), str(file))
            except SyntaxError as error:
                raise RuleError(f"{file} is not Python: {error}") from error
            for node in ast.walk(parsed):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "rule":
                    ids.append(ast.literal_eval(node.args[0]))
        if not ids:
            raise RuleError(f"{folder} has no rule")
        found += ids
    if twice := sorted({id for id in found if found.count(id) > 1}):
        raise RuleError(f"two rules on disk are called {', '.join(twice)}")
    return set(found)


def load(policies: pathlib.Path = POLICIES) -> dict[str, Rule]:
    """Imports every file of rules, once, without checkov's loader; returns RULES.

    Raises:
        RuleError: what was loaded is not what is on disk.
    """
    if not RULES:
        for file in files(policies):
            spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    verify(policies)
    return RULES


def verify(policies: pathlib.Path = POLICIES) -> None:
    """Raises RuleError where the rules in memory are not exactly those on disk."""
    if missing := on_disk(policies) ^ set(RULES):
        raise RuleError(f"rules on disk and rules loaded differ by {', '.join(sorted(missing))}")


def refuse_unknown(objects: Iterable[Mapping]) -> None:
    """Raises RuleError for kinds that no rule claims and UNJUDGED does not name."""
    known = set(UNJUDGED).union(*(rule.kinds for rule in load().values()))
    if unknown := sorted({kind_of(obj) for obj in objects} - known):
        raise RuleError(
            f"no rule knows {', '.join(unknown)}: claim the kind in a rule, or say in UNJUDGED of "
            "inference_plane/compliance/rules.py why nothing about it needs judging"
        )
