"""Prints the changelog's section of a version: the notes of its release."""

import argparse
import re
import sys

from inference_plane import checkout

EPILOG = """\
example:
  scripts/release-notes 0.1.0
"""


def section(changelog: str, version: str) -> str | None:
    """The text below the heading `## [VERSION]`, up to the next one or the links; None where it is not there."""
    found = re.search(rf"^## \[{re.escape(version)}\].*\n((?s:.*?))(?=^## |^\[|\Z)", changelog, re.M)
    return found[1].strip() if found else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/release-notes",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("version", metavar="VERSION", help="such as 0.1.0, or Unreleased")
    version = parser.parse_args(argv).version
    text = section((checkout.ROOT / "CHANGELOG.md").read_text(), version)
    if not text:
        print(f"error: CHANGELOG.md says nothing of {version}. Add a section `## [{version}]`.", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
