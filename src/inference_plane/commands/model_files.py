"""Checks a folder with one file a model: each TEAM/MODEL.yaml holds that model of that team, and nothing else."""

import argparse
import pathlib
import sys

from inference_plane import model_files

EPILOG = """\
example:
  scripts/model-files examples/one-file-a-model/values/prod/models
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/model-files",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path, help="the folder that holds the teams' folders")
    found = model_files.problems(parser.parse_args(argv).folder)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
