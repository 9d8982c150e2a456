"""Long runs on this machine that end with a verdict."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable

import rich.box
import rich.console
import rich.table

from inference_plane import accounting, helm, tools
from inference_plane.campaign import cli
from inference_plane.onehost.processes import NotReady

EPILOG = """\
examples:
  scripts/campaign accounting                    every token of 3,000 requests, about a quarter of whose clients leave
  scripts/campaign accounting --requests 20000
  scripts/campaign accounting --break one-team   must fail
  scripts/campaign residency                     100,000 requests under faults: some minutes
  scripts/campaign residency --requests 2000 --break no-restricted-route
  scripts/campaign fuzz                          10,000 mutated requests: a minute or two
  scripts/campaign mutations                     every break of the policies' own suite: some minutes
  scripts/campaign mutations --compare           beside what other scanners find of the same

Exits 1 where the verdict is bad, 2 where something does not start.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/campaign",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    campaigns = parser.add_subparsers(dest="campaign", required=True, metavar="CAMPAIGN")
    for name, (summary, add, _) in CAMPAIGNS.items():
        add(campaigns.add_parser(name, help=summary, description=summary))
    arguments = parser.parse_args(argv)
    try:
        return CAMPAIGNS[arguments.campaign][2](arguments)
    except (NotReady, TimeoutError, helm.HelmError, tools.ToolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def add_accounting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=3000, help="how many (default 3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mix; each request's kind follows from it")
    parser.add_argument(
        "--break",
        dest="break_",
        choices=accounting.BREAKS,
        metavar="FAULT",
        default="",
        help="take something out of the router, so that the run must fail: " + ", ".join(accounting.BREAKS),
    )


def run_accounting(arguments: argparse.Namespace) -> int:
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # an engine that cuts a stream writes to it once more
    with rich.console.Console(stderr=True).status("starting") as status:
        found = accounting.run(arguments.requests, arguments.seed, status.update, break_=arguments.break_)
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=120)
    table = rich.table.Table(box=rich.box.SIMPLE)
    for heading in ("tokens of the fleet", "prompt", "prompt x sequences", "completion"):
        table.add_column(heading, justify="left" if heading.startswith("tokens") else "right")
    for name, sums in (
        ("router: end lines", found.router),
        ("engines: lines", found.engine_lines),
        ("engines: counters", found.counters),
    ):
        counts = (sums.prompt, sums.prefilled, sums.completion)
        table.add_row(name, *(f"{count:,}" if count else "-" for count in counts))
    console.print(table)
    total = found.report.total()
    print(f"{found.requests} requests, of which {found.left} clients left; by status {_counts(found.statuses)}")
    print(f"tries at engines by outcome: {_counts(found.outcomes)}")
    print(f"all tokens by source: {_counts(found.report.sources)}; estimated: {total.estimated_tokens}")
    for team, charge in found.charges.items():
        open_ = f" to {charge.owed + charge.open:,}" if charge.open else ""
        print(f"team {team}: engines counted {charge.engines:,}, owed {charge.owed:,}{open_}, charged {charge.charged:,}")
    if found.charges:
        foreign = sum(charge.foreign for charge in found.charges.values())
        print(f"tokens charged to another team than their token's: {foreign:,}")
    for difference in found.differences:
        print(f"DIFFERENCE {difference}")
    print(f"{len(found.differences)} differences")
    return 1 if found.differences else 0


def _counts(counted: dict[object, int]) -> str:
    return ", ".join(f"{key} {count}" for key, count in sorted(counted.items()) if count)


#: Name -> what it is, its options, and what runs it; the number that it returns is the exit status.
CAMPAIGNS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "accounting": ("whether every token is accounted for", add_accounting, run_accounting),
    "fuzz": ("what no client library would send, and how it is read", cli.add_fuzz, cli.run_fuzz),
    "mutations": ("whether the policies find each break of a real render", cli.add_mutations, cli.run_mutations),
    "residency": ("whether a prompt leaves that must not", cli.add_residency, cli.run_residency),
}


if __name__ == "__main__":
    sys.exit(main())
