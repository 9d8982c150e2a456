"""Measures what a part of the plane costs on this machine."""
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable

import rich.console
import rich.table

from inference_plane import helm
from inference_plane.bench import affinity, growth, messages, report, router
from inference_plane.bench.costs import WITHOUT
from inference_plane.bench.load import LoadError
from inference_plane.commands import _environment
from inference_plane.onehost.processes import NotReady

EPILOG = """\
examples:
  scripts/bench router                  the router beside bare Envoy: about three minutes
  scripts/bench router --seconds 0.5    a quick look
  scripts/bench router --costs          what each thing in it costs: a quarter of an hour
  scripts/bench growth                  an environment with 10, 50 and 100 models: half a minute
  scripts/bench affinity                what a model's affinity saves, with a real prefix cache: a minute or two

Exits 2 when something answered anything but 200, did not start, or did not render. docs/bench.md says what the figures
mean.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    costs = subjects.add_parser("router", help="the router beside bare Envoy")
    costs.add_argument("--seconds", type=_within(0.1, 60), default=2.0, help="of each measurement (default 2)")
    costs.add_argument("--rounds", type=_within(1, 50), default=5, help="through all of them (default 5)")
    costs.add_argument("--costs", action="store_true", help="with 10 models, also routers that lack one thing each")
    costs.set_defaults(measure=measure_router)
    size = subjects.add_parser("growth", help="seconds and bytes of a render by the size of the catalogue")
    size.add_argument("environment", metavar="ENV", nargs="?", default="prod", help="a name under values/, or a file")
    size.add_argument("--rounds", type=_within(1, 50), default=3, help="renders of each catalogue (default 3)")
    size.set_defaults(measure=measure_growth)
    kept = subjects.add_parser("affinity", help="cached tokens and first tokens by a model's affinity")
    kept.set_defaults(measure=measure_affinity)
    for subject in (costs, size, kept):
        subject.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    try:
        with rich.console.Console(stderr=True).status("starting") as status:
            document, table = arguments.measure(arguments, status.update)
    except (LoadError, NotReady, TimeoutError, helm.HelmError, RuntimeError, _environment.UnknownEnvironment) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(document, indent=2))
        return 0
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=150)
    console.print(table)
    return 0


Shown = tuple[object, rich.table.Table]  # for programs, for people


def measure_router(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    rounds = int(arguments.rounds)
    readings = router.measure(
        seconds=arguments.seconds, rounds=rounds, without=tuple(WITHOUT) if arguments.costs else (),
        sizes=router.MODELS[:1] if arguments.costs else router.MODELS, progress=progress)
    found, machine = report.rows(readings, router.BASELINE), router.machine()
    settings = {"seconds": arguments.seconds, "rounds": rounds, "connections": {
        case.name: case.connections for case in messages.CASES}}
    return (
        report.document(found, machine, settings),
        report.table(found, caption(machine, arguments.seconds, rounds)),
    )


def measure_growth(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    rounds = int(arguments.rounds)
    found = growth.measure(_environment.load(arguments.environment), rounds=rounds, progress=progress)
    note = (
        f"{_environment.path(arguments.environment).name}: its entries in turn under names of their own, the whole "
        f"umbrella. Seconds are medians of {rounds}.")
    return [dataclasses.asdict(row) for row in found], growth.table(found, note)


def measure_affinity(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    found, machine = affinity.measure(progress=progress), router.machine()
    note = (
        f"{affinity.CONVERSATIONS} conversations on a document each, {affinity.TURNS} questions; {affinity.ENGINES} "
        f"engines of {affinity.SLOTS} slots, llama.cpp with SmolLM2-135M. {machine['cpus']} x {machine['cpu']}, load "
        f"{machine['load_average']:.1f}.")
    return [dataclasses.asdict(row) for row in found], affinity.table(found, note)


def caption(machine: dict[str, object], seconds: float, rounds: int) -> str:
    return (
        f"Envoy {machine['envoy']} with one worker thread, {machine['cpus']} x {machine['cpu']}, "
        f"Linux {machine['kernel']}, load {machine['load_average']:.1f}. Medians of {rounds} rounds of {seconds:g} s. "
        "* Envoy had CPU to spare: requests/s say nothing there."
    )


def _within(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not least <= (value := float(text)) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value
    return number


if __name__ == "__main__":
    sys.exit(main())
