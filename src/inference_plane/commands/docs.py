"""Writes the tables in the charts' READMEs and the rules in docs/policies.md anew; --check says which would change."""

import argparse
import sys

from inference_plane import docs
from inference_plane.checkout import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a README is out of date")
    arguments = parser.parse_args()
    stale = False
    for readme in docs.readmes():
        text = docs.generate(readme)
        if readme.read_text() != text:
            stale = True
            if not arguments.check:
                readme.write_text(text)
            print(f"{readme.relative_to(ROOT)}: {'out of date, run scripts/docs' if arguments.check else 'written'}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
