"""Measures what a part of the plane costs on this machine."""
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import rich.console
import rich.table

from inference_plane import helm
from inference_plane.bench import (
    affinity,
    generator,
    growth,
    memory,
    messages,
    peers,
    reaction,
    report,
    router,
    soak,
    tuning,
)
from inference_plane.bench.costs import WITHOUT
from inference_plane.bench.load import LoadError
from inference_plane.commands import _environment
from inference_plane.onehost.processes import NotReady

EPILOG = """\
examples:
  scripts/bench router                  the router beside bare Envoy: about three minutes
  scripts/bench router --seconds 0.5    a quick look
  scripts/bench router --costs          what each thing in it costs: a quarter of an hour
  scripts/bench router --peers          also vllm-router and LiteLLM, and first-token times: six minutes
  scripts/bench router --budgets        also with a token budget, which asks the rate-limit service: four minutes
  scripts/bench router --peers --full   more sizes and connections, JSON and streams: an hour
  scripts/bench growth                  an environment with 10, 50 and 100 models: half a minute
  scripts/bench affinity                what a model's affinity saves, with a real prefix cache: a minute or two
  scripts/bench generator               what scripts/load itself adds to what it measures: half a minute
  scripts/bench tuning --png t.png      what the values of an elastic fleet do to a surge, simulated: two minutes
  scripts/bench suite                   growth, reaction, memory, and a soak of half an hour: three quarters of an hour
  scripts/bench suite memory reaction   two of its parts: ten minutes

Exits 1 when the soak found something that grows or was lost, 2 when something answered anything but 200, did not start,
or did not render. docs/bench.md says what the figures mean.
"""


#: What keeps something from being measured.
FAILURES = (LoadError, NotReady, OSError, helm.HelmError, RuntimeError, _environment.UnknownEnvironment)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    costs = subjects.add_parser("router", help="the router beside bare Envoy")
    costs.add_argument("--seconds", type=_within(0.1, 60), default=2.0, help="of each measurement (default 2)")
    costs.add_argument("--rounds", type=_within(1, 50), default=5, help="through all of them (default 5)")
    costs.add_argument("--costs", action="store_true", help="with 10 models, also routers that lack one thing each")
    costs.add_argument(
        "--peers", action="store_true", help="also vllm-router and LiteLLM, installed from PyPI on first use")
    costs.add_argument(
        "--budgets", action="store_true", help="also with a token budget: the rate-limit service, built on first use")
    costs.add_argument("--full", action="store_true", help="1 and 120 KB, JSON and streams, 1, 64 and 256 connections")
    costs.set_defaults(measure=measure_router)
    size = subjects.add_parser("growth", help="seconds and bytes of a render by the size of the catalogue")
    size.add_argument("environment", metavar="ENV", nargs="?", default="prod", help="a name under values/, or a file")
    size.add_argument("--rounds", type=_within(1, 50), default=3, help="renders of each catalogue (default 3)")
    size.set_defaults(measure=measure_growth)
    kept = subjects.add_parser("affinity", help="cached tokens and first tokens by a model's affinity")
    kept.set_defaults(measure=measure_affinity)
    own = subjects.add_parser("generator", help="how exact the load generator's own times are")
    own.add_argument("--seconds", type=_within(1, 600), default=30.0, help="of requests (default 30)")
    own.add_argument("--rate", type=_within(0.1, 1000), default=20.0, help="requests a second (default 20)")
    own.set_defaults(measure=measure_generator)
    values = subjects.add_parser("tuning", help="what the values of an elastic fleet do to a surge, simulated")
    values.add_argument("--png", type=Path, metavar="FILE", help="draw it")
    values.set_defaults(measure=measure_tuning)
    whole = subjects.add_parser("suite", help="growth, reaction, memory and a soak in one run")
    whole.add_argument("parts", metavar="PART", nargs="*", help=f"{', '.join(PARTS)}; default: all, in this order")
    whole.add_argument("--minutes", type=_within(0.5, 1440), default=30.0, help="of the soak (default 30)")
    whole.add_argument("--rate", type=_within(0.1, 200), default=10.0, help="clients a second of the soak (default 10)")
    whole.add_argument("--rounds", type=_within(1, 50), default=3, help="of growth and reaction (default 3)")
    whole.set_defaults(measure=measure_suite)
    for subject in (costs, size, kept, own, values, whole):
        subject.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    if unknown := sorted(set(vars(arguments).get("parts", ())) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    try:
        console = rich.console.Console(stderr=True)
        with console.status("starting") as status:
            shown = arguments.measure(arguments, status.update if console.is_terminal else _say)
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(shown.document, indent=2))
        return shown.status
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=150)
    console.print(shown.table)
    return shown.status


class Shown(NamedTuple):
    """What was measured: for programs, for people, and the exit status."""

    document: object
    table: rich.console.RenderableType
    status: int = 0


def measure_router(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    rounds = int(arguments.rounds)
    cases = messages.ALL_CASES if arguments.full else messages.PEER_CASES if arguments.peers else messages.CASES
    if arguments.peers or arguments.full:
        cases = (*cases, messages.FIRST_TOKEN)
    readings = router.measure(
        seconds=arguments.seconds, rounds=rounds, without=tuple(WITHOUT) if arguments.costs else (), cases=cases,
        sizes=router.MODELS[:1] if arguments.costs else router.MODELS,
        peers=_peers(progress) if arguments.peers else (), budgets=arguments.budgets, progress=progress)
    by_first, by_cpu = {}, {}
    for (case, subject), loads in readings.items():
        if case == messages.FIRST_TOKEN.name:
            by_first[subject] = loads
        else:
            by_cpu[case, subject] = loads
    found, machine = report.rows(by_cpu, router.BASELINE), router.machine()
    first = report.first_tokens(by_first, router.STRAIGHT)
    settings = {"seconds": arguments.seconds, "rounds": rounds, "connections": {
        case.name: case.connections for case in cases}}
    tables = [report.table(found, caption(machine, arguments.seconds, rounds))]
    if first:
        load = f"{messages.FIRST_TOKEN.connections} connections with pauses"
        tables.insert(0, report.first_token_table(first, load))
    return Shown(report.document(found, machine, settings, first), rich.console.Group(*tables))


def _peers(progress: Callable[[str], None]) -> list[tuple[peers.Peer, Path]]:
    """The peers that can be had; of any other the reason is printed."""
    found = []
    for peer in peers.PEERS:
        try:
            found.append((peer, peers.installed(peer, progress)))
        except peers.PeerError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def measure_growth(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    rounds = int(arguments.rounds)
    found = growth.measure(_environment.load(arguments.environment), rounds=rounds, progress=progress)
    note = (
        f"{_environment.path(arguments.environment).name}: its entries in turn under names of their own, the whole "
        f"umbrella. Seconds are medians of {rounds}.")
    return Shown([dataclasses.asdict(row) for row in found], growth.table(found, note))


def measure_affinity(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    found, machine = affinity.measure(progress=progress), router.machine()
    note = (
        f"{affinity.CONVERSATIONS} conversations on a document each, {affinity.TURNS} questions; {affinity.ENGINES} "
        f"engines of {affinity.SLOTS} slots, llama.cpp with SmolLM2-135M. {machine['cpus']} x {machine['cpu']}, load "
        f"{machine['load_average']:.1f}.")
    return Shown([dataclasses.asdict(row) for row in found], affinity.table(found, note))


def _growth(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    environment = _environment.load("prod")
    sizes = (1, 10, 100, growth.largest(environment, progress))
    found = growth.measure(environment, sizes=sizes, rounds=int(arguments.rounds), progress=progress)
    note = "prod's entries in turn; the last row but one is the most that the charts take."
    return Shown([dataclasses.asdict(row) for row in found], growth.table(found, note))


def _reaction(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    found = reaction.measure(rounds=int(arguments.rounds), progress=progress)
    return Shown([dataclasses.asdict(row) for row in found], reaction.table(found))


def _memory(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    found = memory.measure(progress=progress)
    return Shown([dataclasses.asdict(row) for row in found], memory.table(found))


def _soak(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    found = soak.run(seconds=arguments.minutes * 60, rate=arguments.rate, progress=progress)
    return Shown(dataclasses.asdict(found), soak.table(found), 1 if found.faults else 0)


#: The parts of the suite, in their order.
PARTS = {"growth": _growth, "reaction": _reaction, "memory": _memory, "soak": _soak}


def measure_suite(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    """A part that fails ends the suite; what was measured before it is shown all the same."""
    began, found, status = router.machine(), {}, 0
    for name in arguments.parts or PARTS:
        try:
            found[name] = PARTS[name](arguments, progress)
        except FAILURES as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            status = 2
            break
    machine = f"{began['cpus']} x {began['cpu']}, load {began['load_average']:.1f} at first"
    return Shown(
        {"machine": began, **{name: shown.document for name, shown in found.items()}},
        rich.console.Group(*(shown.table for shown in found.values()), machine),
        max([status, *(shown.status for shown in found.values())]))


def measure_tuning(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    rows, drawn = tuning.measure(progress=progress)
    if arguments.png:
        tuning.picture(rows, drawn, arguments.png)
    return Shown([dataclasses.asdict(row) for row in rows], tuning.table(rows))


def measure_generator(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Shown:
    rows, facts = generator.measure(seconds=arguments.seconds, rate=arguments.rate, progress=progress)
    machine = router.machine()
    note = (
        f"{facts['requests']} streams of {generator.TOKENS} tokens, {facts['rate']:g} a second. The generator sent at "
        f"most {facts['late_max_ms']:.1f} ms late; its loop was late by {facts['lag_p50_ms']:.1f} ms (p50), "
        f"{facts['lag_p99_ms']:.1f} ms (p99). {machine['cpus']} x {machine['cpu']}, load "
        f"{machine['load_average']:.1f}.")
    document = {"machine": machine, **facts, "rows": [dataclasses.asdict(row) for row in rows]}
    return Shown(document, generator.table(rows, facts, note))


def caption(machine: dict[str, object], seconds: float, rounds: int) -> str:
    return (
        f"Envoy {machine['envoy']} with one worker thread, {machine['cpus']} x {machine['cpu']}, "
        f"Linux {machine['kernel']}, load {machine['load_average']:.1f}. Medians of {rounds} rounds of {seconds:g} s. "
        "* Envoy had CPU to spare: requests/s say nothing there."
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _within(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not least <= (value := float(text)) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value
    return number


if __name__ == "__main__":
    sys.exit(main())
