"""Whether the rules find each small break of the real renders, and what other scanners find of the same."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from inference_plane import tools
from inference_plane.compliance import mutations
from inference_plane.compliance.mutations import Mutation, Objects
from inference_plane.compliance.scanner import Scanner

#: What a scanner says of objects: (its rule, the object). A break is found where it says more than of the whole render.
Said = set[tuple[str, str]]
Scan = Callable[[Objects, str], Said]
#: `kube-score list`, those that are not on by default.
OPTIONAL = (
    "container-resource-requests-equal-limits", "container-cpu-requests-equal-limits",
    "container-memory-requests-equal-limits", "container-ephemeral-storage-request-equals-limit",
    "container-ports-check", "container-seccomp-profile",
)  # fmt: skip


@dataclass
class Outcome:
    """What came of the mutations: those found by their rules, and by each of the other scanners by name."""

    mutations: list[Mutation]
    found: list[Mutation] = field(default_factory=list)
    lived: list[Mutation] = field(default_factory=list)
    others: dict[str, Counter] = field(default_factory=dict)


def by_rules(objects: Objects, rule: str) -> Said:
    """The one rule, without checkov: the same function, hundreds of times as fast."""
    found = mutations.judge(objects, only=rule)
    return {(rule, f"{obj}: {path}: {message}") for rule, obj, path, message in found}


def by_checkov(scanner: Scanner, which: str) -> Scan:
    """Checkov with the rules of the packs (`packs`), or with its own alone (`own`)."""

    def scan(objects: Objects, rule: str) -> Said:
        scanner.ask(objects, "inference", which="packs" if which == "packs" else "all")
        answer = scanner.answer()
        if which == "own":
            return {(own["rule"], own["object"]) for own in answer["built_in"]}
        return {(v["rule"], f"{v['object']}: {v['path']}: {v['message']}") for v in answer["violations"]}

    return scan


def by_kube_score(objects: Objects, rule: str) -> Said:
    """kube-score with every check that it has, the optional ones too. Raises as `tools.build`."""
    optional = [word for check in OPTIONAL for word in ("--enable-optional-test", check)]
    command = [tools.build("kube-score"), "score", "--output-format", "json", *optional, "-"]
    documents = "\n---\n".join(json.dumps(obj) for obj in objects)
    done = subprocess.run(command, input=documents, capture_output=True, text=True, check=False)
    if not done.stdout.startswith(("[", "null")):  # null: it knows none of the kinds.
        raise RuntimeError(f"kube-score: {done.stderr.strip()[:500]}")
    return {
        (check["check"]["id"], f"{scored['object_name']}: {comment['path']}: {comment['summary']}")
        for scored in json.loads(done.stdout) or ()
        for check in scored["checks"]
        if check["grade"] < 10
        for comment in check["comments"] or ()
    }


def pick(found: list[Mutation], each: int) -> list[Mutation]:
    """At most so many of each rule, from all over its list; all of them where `each` is 0."""
    by_rule: dict[str, list[Mutation]] = {}
    for mutation in found:
        by_rule.setdefault(mutation.rule, []).append(mutation)
    return [m for ms in by_rule.values() for m in (ms[:: -(-len(ms) // each)] if each else ms)]


def run(chosen: list[Mutation], scan: Scan, others: dict[str, Scan]) -> Iterator[Outcome]:
    """Breaks the renders one by one; gives what has come of it so far after each."""
    outcome = Outcome(chosen, others={name: Counter() for name in others})
    known: dict[tuple[str, str], Said] = {}

    def more(name: str, by: Scan, mutation: Mutation, objects: Objects) -> Said:
        key = (name, mutation.source) if name else (mutation.rule, mutation.source)
        if key not in known:
            known[key] = by(mutations.source(mutation.source).judged, mutation.rule)
        return by(objects, mutation.rule) - known[key]

    for mutation in chosen:
        objects = mutations.mutate(mutation)
        hit = any(rule == mutation.rule for rule, _ in more("", scan, mutation, objects))
        (outcome.found if hit else outcome.lived).append(mutation)
        for name, by in others.items():
            outcome.others[name][mutation.rule] += bool(more(name, by, mutation, objects))
        yield outcome
