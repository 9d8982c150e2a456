"""Says whether models fit their accelerators, and how many requests run at once."""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import rich.box
import rich.console
import rich.table
import yaml

from inference_plane import fit
from inference_plane.checkout import CHARTS
from inference_plane.commands import _environment

EPILOG = """\
examples:
  scripts/fit prod                        every model of values/prod.yaml
  scripts/fit my-values.yaml summary      one model of a file
  scripts/fit --config config.json        kvBytesPerToken of a model, from its config.json on Hugging Face

Exits 1 when a model does not fit, 2 when the question cannot be answered.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fit", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environment", nargs="?", metavar="ENV|FILE", help="a name under values/, or a values file")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="one model; all of them by default")
    parser.add_argument("--config", type=pathlib.Path, help="compute kvBytesPerToken from this config.json instead")
    parser.add_argument(
        "--kv-cache-dtype", choices=["auto", "fp8"], default="auto", help="with --config: vLLM's flag of that name"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    if bool(arguments.environment) == bool(arguments.config):
        parser.error("give either ENV|FILE or --config config.json")
    try:
        if arguments.config:
            return _config(arguments.config, arguments.kv_cache_dtype, arguments.json)
        return _catalogue(arguments.environment, arguments.model, arguments.json)
    except (_environment.UnknownEnvironment, fit.CatalogueError, fit.NotModelled) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _config(file: pathlib.Path, kv_cache_dtype: str, as_json: bool) -> int:
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        print(f"error: {file}: {error}. --config wants the model's config.json.", file=sys.stderr)
        return 2
    number, notes = fit.kv_bytes_per_token(config, kv_cache_dtype)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps({"kvBytesPerToken": number}) if as_json else f"kvBytesPerToken: {number}")
    return 0


def _catalogue(environment: str, only: str | None, as_json: bool) -> int:
    defaults = yaml.safe_load((CHARTS / "plane-lib" / "values.yaml").read_text())["defaults"]
    models = fit.resolve(_environment.load(environment), defaults)
    if only is not None:
        if only not in models:
            raise fit.CatalogueError(f"no model {only!r} in {environment}. It has {', '.join(models) or 'none'}.")
        models = {only: models[only]}
    found = {name: fit.fit(model) for name, model in models.items()}
    if as_json:
        report = {name: f.spelled() | {"devices": models[name]["devices"]} for name, f in found.items()}
        print(json.dumps(report, indent=2))
    elif found:
        _console().print(_table(models, found))
    else:
        print(f"{environment} has no models.", file=sys.stderr)
    for model in models.values():
        if text := fit.refusal(model):
            print(f"{model['path']}: {text}", file=sys.stderr)
    return 0 if all(f.fits for f in found.values()) else 1


def _console() -> rich.console.Console:
    console = rich.console.Console()
    # Into a pipe or file nothing is cut: only a terminal has a width.
    return console if console.is_terminal else rich.console.Console(width=200)


def _table(models: Mapping[str, Mapping[str, Any]], found: Mapping[str, fit.Fit]) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE, caption="GiB of one replica; sequences at once, maxNumSeqs at most")
    table.add_column("model")
    table.add_column("accelerators")
    for heading in ("devices", "need", "have", "KV cache", "worst case", "typical"):
        table.add_column(heading, justify="right")
    table.add_column("fits")
    for name, model in models.items():
        f, length = found[name], model["maxModelLen"]
        table.add_row(
            name,
            f"{model['tensorParallelSize']} x {model['accelerator']}",
            str(model["devices"]),
            f"{f.need_gib:.1f}",
            f"{f.have_gib:.1f}",
            f"{f.kv_gib:.1f}",
            f"{f.worst_case_concurrency} of {length}",
            f"{f.typical_concurrency} of {length // 4}",
            "yes" if f.fits else "no",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
