"""The campaigns of this package as subcommands of `scripts/campaign`."""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import pathlib
import tempfile

import rich.box
import rich.console
import rich.table

from inference_plane.compliance import mutations as compliance
from inference_plane.compliance import rules
from inference_plane.compliance.scanner import Scanner

from . import fuzz, mutations, residency
from .breaks import BREAKS


def add_residency(parser: argparse.ArgumentParser) -> None:
    _add_run(parser, 100_000)


def run_residency(arguments: argparse.Namespace) -> int:
    _begin(arguments)
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        campaign = residency.Campaign(arguments.requests, arguments.seed, _say, arguments.break_)
        found = campaign.run(pathlib.Path(folder))
    table = rich.table.Table(box=rich.box.SIMPLE)
    for heading in ("prompt", "backend", "status", "requests"):
        table.add_column(heading, justify="right" if heading == "requests" else "left")
    for (kind, backend, status), count in sorted(found.outcomes.items()):
        table.add_row(kind, backend, str(status), f"{count:,}")
    _console().print(table)
    for problem in found.problems:
        print(f"FAILED {problem}")
    answered = sum(found.outcomes.values())
    print(f"{found.requests:,} requests in {found.seconds:.0f} s, {answered:,} answered, seed {arguments.seed}")
    print(f"at Amazon Bedrock: {found.at_bedrock:,} tries, {found.left:,} of prompts that may be there")
    failed = {kind: count for kind, count in sorted(found.failed.items()) if kind != "leak"}
    print("other failures: " + (", ".join(f"{kind} {count:,}" for kind, count in failed.items()) or "none"))
    print(f"leaks {len(found.leaked)}")
    return 1 if found.failed else 0


def add_fuzz(parser: argparse.ArgumentParser) -> None:
    _add_run(parser, 10_000)


def run_fuzz(arguments: argparse.Namespace) -> int:
    _begin(arguments)
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        found = fuzz.Fuzz(arguments.requests, arguments.seed, _say, arguments.break_).run(pathlib.Path(folder))
    table = rich.table.Table(box=rich.box.SIMPLE)
    for heading in ("changed", "answer", "requests"):
        table.add_column(heading, justify="right" if heading == "requests" else "left")
    for (kind, answer), count in sorted(found.outcomes.items()):
        table.add_row(kind, answer, f"{count:,}")
    _console().print(table)
    for problem in found.problems:
        print(f"FAILED {problem}")
    print(
        f"{found.requests:,} mutations in {found.seconds:.0f} s, seed {arguments.seed}: {found.replies:,} answers, "
        f"{found.lines:,} audit lines, {found.at_bedrock:,} at Amazon Bedrock"
    )
    print("failures: " + (", ".join(f"{kind} {count:,}" for kind, count in sorted(found.failed.items())) or "none"))
    return 1 if found.failed else 0


def add_mutations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rule", default="", metavar="PREFIX", help="only those of rules whose id begins so")
    parser.add_argument("--each", type=int, default=0, metavar="N", help="at most N of each rule, evenly picked")
    parser.add_argument("--checkov", action="store_true", help="by checkov itself, about a second each")
    parser.add_argument(
        "--compare", action="store_true", help="also by checkov's own rules alone, and by kube-score: seconds each"
    )


def run_mutations(arguments: argparse.Namespace) -> int:
    chosen = mutations.pick([m for m in compliance.load() if m.rule.startswith(arguments.rule)], arguments.each)
    with contextlib.ExitStack() as stack:
        scan, others = mutations.by_rules, {}
        if arguments.checkov:
            scan = mutations.by_checkov(stack.enter_context(Scanner()), "packs")
        if arguments.compare:
            others["checkov's own"] = mutations.by_checkov(stack.enter_context(Scanner()), "own")
            others["kube-score"] = mutations.by_kube_score
        outcome = mutations.Outcome(chosen)
        for number, outcome in enumerate(mutations.run(chosen, scan, others), 1):
            if number % 25 == 0:
                _say(f"{number} of {len(chosen)}: {len(outcome.lived)} lived")
    table = rich.table.Table(box=rich.box.SIMPLE)
    for heading in ("rule", "name", "breaks", "found", *others):
        table.add_column(heading, justify="left" if heading in ("rule", "name") else "right")
    found = collections.Counter(m.rule for m in outcome.found)
    for rule, count in sorted(collections.Counter(m.rule for m in chosen).items()):
        also = [str(by[rule]) for by in outcome.others.values()]
        table.add_row(rule, rules.RULES[rule].name, str(count), str(found[rule]), *also)
    _console().print(table)
    for mutation in outcome.lived:
        print(f"LIVES {mutation.rule} {mutation.source} {mutation.name}: {mutation.lives or 'nobody knows why'}")
    for name, by in outcome.others.items():
        print(f"{name}: finds {sum(by.values())} of {len(chosen)}, {sum(by.values()) / len(chosen):.1%}")
    print(f"mutation score {len(outcome.found) / len(chosen):.1%}: {len(outcome.found)} of {len(chosen)} found")
    return int(any(not mutation.lives for mutation in outcome.lived))


def _add_run(parser: argparse.ArgumentParser, requests: int) -> None:
    parser.add_argument("--requests", type=int, default=requests, help=f"how many (default {requests:,})")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default 0)")
    parser.add_argument(
        "--break",
        dest="break_",
        choices=BREAKS,
        metavar="ROUTE_FAULT",
        default="",
        help="take something out of the router, so that the run must fail: " + ", ".join(BREAKS),
    )


def _say(what: str) -> None:
    print(what, flush=True)


def _begin(arguments: argparse.Namespace) -> None:
    if arguments.break_:
        _say(f"the router lacks, on purpose: {BREAKS[arguments.break_][0]}")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a connection that was reset is written to once more


def _console() -> rich.console.Console:
    console = rich.console.Console()
    return console if console.is_terminal else rich.console.Console(width=120)
