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
Scan = Callable[[Objects], Said]
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


def by_rules(objects: Objects) -> Said:
    """The rules alone, without checkov: the same functions, a hundred times as fast."""
    return {(rule, f"{obj}: {path}: {message}") for rule, obj, path, message in mutations.judge(objects)}


def by_checkov(scanner: Scanner, which: str) -> Scan:
    """Checkov with the rules of the packs (`packs`), or with its own alone (`own`)."""

    def scan(objects: Objects) -> Said:
        scanner.ask(objects, "inference", which="packs" if which == "packs" else "all")
        answer = scanner.answer()
        if which == "own":
            return {(own["rule"], own["object"]) for own in answer["built_in"]}
        return {(v["rule"], f"{v['object']}: {v['path']}: {v['message']}") for v in answer["violations"]}

    return scan


def by_kube_score(objects: Objects) -> Said:
    """kube-score with every check that it has, the optional ones too. Raises as `tools.build`."""
    optional = [word for check in OPTIONAL for word in ("--enable-optional-test", check)]
    command = [tools.build("kube-score"), "score", "--output-format", "json", *optional, "-"]
    documents = "\n---\n".join(json.dumps(obj) for obj in objects)
    done = subprocess.run(command, input=documents, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("["):
        raise RuntimeError(f"kube-score: {done.stderr.strip()[:500]}")
    return {
        (check["check"]["id"], f"{scored['object_name']}: {comment['path']}: {comment['summary']}")
        for scored in json.loads(done.stdout)
        for check in scored["checks"]
        if check["grade"] < 10
        for comment in check["comments"] or ()
    }


def run(chosen: list[Mutation], scan: Scan, others: dict[str, Scan]) -> Iterator[Outcome]:
    """Breaks the renders one by one; gives what has come of it so far after each."""
    outcome = Outcome(chosen, others={name: Counter() for name in others})
    known: dict[tuple[str, str], Said] = {}

    def more(name: str, by: Scan, source: str, objects: Objects) -> Said:
        if (name, source) not in known:
            known[name, source] = by(mutations.source(source).judged)
        return by(objects) - known[name, source]

    for mutation in chosen:
        objects = mutations.mutate(mutation)
        hit = any(rule == mutation.rule for rule, _ in more("", scan, mutation.source, objects))
        (outcome.found if hit else outcome.lived).append(mutation)
        for name, by in others.items():
            outcome.others[name][mutation.rule] += bool(more(name, by, mutation.source, objects))
        yield outcome
