"""Prints the part of an environment's values file that one chart takes when it is installed alone."""

import argparse
import sys

import yaml

from inference_plane.checkout import INSTALLABLE
from inference_plane.commands import _environment

EPILOG = """\
example:
  helm install engines charts/vllm -f <(scripts/values dev vllm)

The chart's own section stands at the root and `global` beside it, because a closed schema refuses its siblings' keys.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/values", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environment", metavar="ENV", help="a name under values/, or a values file")
    parser.add_argument("chart", metavar="CHART", help=", ".join(INSTALLABLE))
    arguments = parser.parse_args(argv)
    try:
        values = _environment.for_chart(_environment.load(arguments.environment), arguments.chart)
    except _environment.UnknownEnvironment as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    yaml.safe_dump(values, sys.stdout, sort_keys=False, allow_unicode=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
