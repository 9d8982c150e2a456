"""Small breaks of real renders, one by one, and whether the rule that each is for finds it.

The breaks stand in `policies/mutations/`. Each names its rule, the render that it starts from and what it changes; the
unchanged render must be free of violations, and each rule must have at least one break that it finds.
"""

import contextlib
import copy
import functools
import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from inference_plane import checkout, environments, helm
from inference_plane.compliance import rules
from inference_plane.compliance.sources import Source, environment, folder
from inference_plane.kube import Index, name_of

FOLDER = rules.POLICIES / "mutations"
Objects = list[dict[str, Any]]


@dataclass(frozen=True)
class Mutation:
    """`change` breaks the objects of the render named `source` in place, in a way that `rule` must find.

    `lives` says why a mutation that no rule finds is left alive; empty for all others.
    """

    rule: str
    name: str
    source: str
    change: Callable[[Objects], Any]
    lives: str = ""


#: Every mutation that was loaded.
MUTATIONS: list[Mutation] = []


def mutation(rule: str, name: str, *, source: str = "prod", lives: str = "") -> Callable[[Callable], Callable]:
    """Registers the function below, which changes a list of objects in place, as a break that `rule` must find."""

    def register(change: Callable[[Objects], Any]) -> Callable[[Objects], Any]:
        MUTATIONS.append(Mutation(rule, name, source, change, lives))
        return change

    return register


def load(folder: pathlib.Path = FOLDER) -> list[Mutation]:
    """Imports every file of mutations, once; returns MUTATIONS.

    Raises:
        rules.RuleError: a mutation for no rule, or two of one rule and name.
    """
    if not MUTATIONS:
        for file in sorted(folder.glob("*.py")):
            spec = importlib.util.spec_from_file_location(f"mutations_{file.stem}", file)
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    seen = [(m.rule, m.name, m.source) for m in MUTATIONS]
    if twice := {key for key in seen if seen.count(key) > 1}:
        raise rules.RuleError(f"two mutations of one name: {sorted(twice)}")
    if unknown := {m.rule for m in MUTATIONS} - set(rules.load()):
        raise rules.RuleError(f"mutations of no rule: {sorted(unknown)}")
    return MUTATIONS


@functools.cache
def source(name: str) -> Source:
    """A render by name: an environment (`prod`), a case of `environments.cases` (`router/ci/fallback`), or a folder of
    the checkout (`argocd/`), whose own objects it is.
    """
    if name.endswith("/"):
        return folder(checkout.ROOT / name)[0]
    for case in environments.cases():
        if case.name == name:
            return Source(name, helm.template(case.chart, values=case.values).objects, "inference")
    return environment(name, yaml.safe_load((checkout.VALUES / f"{name}.yaml").read_text()))


def mutate(change: Mutation) -> Objects:
    """The objects of the mutation's render, changed.

    Raises:
        rules.RuleError: nothing changed, so that no rule could find anything.
    """
    before = source(change.source).judged
    after = copy.deepcopy(before)
    change.change(after)
    if after == before:
        raise rules.RuleError(f"mutation {change.rule} {change.name!r} of {change.source} changes nothing")
    return after


def judge(objects: Objects, namespace: str = "inference", only: str = "") -> list[tuple[str, str, str, str]]:
    """(rule, object, path, message) of every violation, by the rules' own functions without checkov, or by one rule."""
    index = Index(objects, namespace, ())
    return [
        (rule.id, name_of(obj), path, message)
        for rule in ([rules.RULES[only]] if only else rules.load().values())
        for obj in objects
        if rule.claims(obj)
        for path, message in rule.judge(obj, index)
    ]


# What mutations are written with.


def find(objects: Objects, kind: str, name: str = "") -> dict[str, Any]:
    """The one object of a kind (`Role`, or with its group `iam.services.k8s.aws/Role`), of a name where one is given.

    Raises:
        LookupError: there is none, or more than one without a name.
    """
    found = [o for o in objects if kind in (o["kind"], rules.kind_of(o)) and name in ("", o["metadata"]["name"])]
    if len(found) != 1:
        raise LookupError(f"{len(found)} objects {kind} {name}: {', '.join(o['metadata']['name'] for o in found)}")
    return found[0]


@contextlib.contextmanager
def document(holder: dict[str, Any], key: str) -> Iterator[Any]:
    """The JSON document in a field that is a string, to be changed: a file of a ConfigMap, a policy of a role."""
    parsed = json.loads(holder[key])
    yield parsed
    holder[key] = json.dumps(parsed)


@contextlib.contextmanager
def config(objects: Objects, name: str, key: str) -> Iterator[Any]:
    """The JSON document in a ConfigMap: `with config(objects, "router-routes", "routes.json") as routes:`."""
    with document(find(objects, "ConfigMap", name)["data"], key) as parsed:
        yield parsed


def container(obj: Mapping[str, Any], number: int = 0) -> dict[str, Any]:
    """A container of a Deployment."""
    return obj["spec"]["template"]["spec"]["containers"][number]
