"""The campaigns of this package as subcommands of `scripts/campaign`."""

from __future__ import annotations

import argparse
import logging
import pathlib
import tempfile

import rich.box
import rich.console
import rich.table

from . import fuzz, residency
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
