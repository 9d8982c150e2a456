"""Packages every chart from a clean export of HEAD; prints each package's name, size in bytes and SHA-256."""

import argparse
import pathlib
import sys

from inference_plane import checkout, helm, packages

EPILOG = """\
example:
  scripts/package --output dist
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/package", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", metavar="DIR", type=pathlib.Path, default=pathlib.Path("dist"), help="where to (%(default)s)"
    )
    parser.add_argument("--allow-dirty", action="store_true", help="package charts/ as they are, for trying out")
    arguments = parser.parse_args(argv)
    try:
        made = packages.make(checkout.ROOT, arguments.output, dirty=arguments.allow_dirty)
    except (packages.PackageError, helm.HelmError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for package in made:
        print(f"{package.path}  {package.size}  {package.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
