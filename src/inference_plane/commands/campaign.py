"""Long runs on this machine that end with a verdict."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from inference_plane import helm
from inference_plane.campaign import cli
from inference_plane.onehost.processes import NotReady

EPILOG = """\
examples:
  scripts/campaign residency                                 100,000 requests under faults: some minutes
  scripts/campaign residency --requests 2000 --break no-restricted-route
  scripts/campaign fuzz                                      10,000 mutated requests: a minute or two

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
    except (NotReady, TimeoutError, helm.HelmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


#: Name -> what it is, its options, and what runs it; the number that it returns is the exit status.
CAMPAIGNS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "fuzz": ("what no client library would send, and how it is read", cli.add_fuzz, cli.run_fuzz),
    "residency": ("whether a prompt leaves that must not", cli.add_residency, cli.run_residency),
}


if __name__ == "__main__":
    sys.exit(main())
