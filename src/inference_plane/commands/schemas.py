"""Writes every chart's values.schema.json from its YAML source; with --check only says which would change."""

import argparse
import sys

from inference_plane import schemas
from inference_plane.checkout import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/schemas", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is out of date")
    arguments = parser.parse_args()
    stale = []
    for source in schemas.sources():
        target = source.with_suffix(".json")
        text = schemas.generate(source)
        if not target.exists() or target.read_text() != text:
            stale.append(target.relative_to(ROOT))
            if not arguments.check:
                target.write_text(text)
    for path in stale:
        print(f"{path}: {'out of date, run scripts/schemas' if arguments.check else 'written'}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
