"""Runs a tool that is built from a Go module on first use, with the project's helm and linters on PATH."""

import argparse
import os
import sys

from inference_plane import tools
from inference_plane.manifests.crds import CRDError

EPILOG = """\
examples:
  scripts/tool ct lint --config ct.yaml --all
  scripts/tool actionlint
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/tool", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="TOOL", choices=tools.TOOLS, help=", ".join(tools.TOOLS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="the tool's own arguments")
    arguments = parser.parse_args(argv)
    try:
        binary = tools.build(arguments.name)
    except (tools.ToolError, CRDError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    os.execv(binary, [str(binary), *arguments.arguments])


if __name__ == "__main__":
    sys.exit(main())
