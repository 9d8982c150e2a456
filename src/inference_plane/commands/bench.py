"""Measures what a part of the plane costs on this machine."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import rich.console

from inference_plane import helm
from inference_plane.bench import messages, report, router
from inference_plane.bench.costs import WITHOUT
from inference_plane.bench.load import LoadError
from inference_plane.onehost.processes import NotReady

EPILOG = """\
examples:
  scripts/bench router                  the router beside bare Envoy: about three minutes
  scripts/bench router --seconds 0.5    a quick look
  scripts/bench router --costs          what each thing in it costs: a quarter of an hour

Exits 2 when something answered anything but 200, or did not start. docs/bench.md says what the figures mean.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["router"])
    parser.add_argument("--seconds", type=_within(0.1, 60), default=2.0, help="of each measurement (default 2)")
    parser.add_argument("--rounds", type=_within(1, 50), default=5, help="through all of them (default 5)")
    parser.add_argument("--costs", action="store_true", help="with 10 models, also routers that lack one thing each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    rounds = int(arguments.rounds)
    errors = rich.console.Console(stderr=True)
    try:
        with errors.status("starting") as status:
            readings = router.measure(
                seconds=arguments.seconds, rounds=rounds, without=tuple(WITHOUT) if arguments.costs else (),
                sizes=router.MODELS[:1] if arguments.costs else router.MODELS,
                progress=status.update)
    except (LoadError, NotReady, TimeoutError, helm.HelmError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found, machine = report.rows(readings, router.BASELINE), router.machine()
    if arguments.json:
        settings = {"seconds": arguments.seconds, "rounds": rounds, "connections": {
            case.name: case.connections for case in messages.CASES}}
        print(json.dumps(report.document(found, machine, settings), indent=2))
        return 0
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=150)
    console.print(report.table(found, caption(machine, arguments.seconds, rounds)))
    return 0


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
