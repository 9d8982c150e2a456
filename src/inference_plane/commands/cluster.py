"""A Kubernetes cluster on this machine: up, down, status.

`embedded` is a real control plane, etcd, API server, controllers and scheduler, as processes on loopback, without
Docker and without root. Nodes and pods are simulated by KWOK: what a pod would do, it does not do. It has the CRDs of
every controller that the charts make objects for.

`kind` has real pods, on nodes that are containers, and a network between them that enforces NetworkPolicies. It needs
Docker, or Docker's programs and root; where no registry is reached, it also builds the image of its nodes, once.

Each has its own kubeconfig; yours is neither read nor written.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from inference_plane import tools
from inference_plane.cluster import embedded, kind, state
from inference_plane.commands import _environment
from inference_plane.manifests.crds import CRDError

EPILOG = """\
examples:
  scripts/cluster up                             embedded, ready in seconds; the first time its binaries are built
  scripts/cluster up --environment prod          with nodes for the accelerators of values/prod.yaml
  scripts/cluster up --state /tmp/second         beside the first
  scripts/cluster up kind                        real pods; ready in a minute or two once the node image is there
  eval "$(scripts/cluster status --env)"         KUBECONFIG for kubectl and helm of .venv/bin
  scripts/cluster down

Exits 1 where no cluster comes up, or none is there; docs/clusters.md says what is real in it.
"""

KINDS = ("embedded", "kind")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/cluster", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="up|down|status")
    up = actions.add_parser("up", help="starts a cluster, unless it is up")
    up.add_argument("kind", nargs="?", choices=KINDS, default=KINDS[0], help="default: embedded")
    up.add_argument(
        "--environment", metavar="ENV", action="append", default=[],
        help="embedded: add a node in each zone for every accelerator of this environment; may be given again",
    )  # fmt: skip
    actions.add_parser("down", help="ends it, and removes what it left")
    status = actions.add_parser("status", help="says whether it is up, and where")
    status.add_argument("--env", action="store_true", help="print only `export KUBECONFIG=…`, for a shell's eval")
    for action in actions.choices.values():
        action.add_argument(
            "--state", metavar="DIR", type=Path, default=state.DEFAULT, help=f"its folder; default {state.DEFAULT}"
        )
    arguments = parser.parse_args(argv)
    folder = arguments.state.resolve()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        if arguments.action == "up":
            return _up(folder, arguments.kind, arguments.environment)
        return _down(folder) if arguments.action == "down" else _status(folder, shell=arguments.env)
    except KeyboardInterrupt:
        print("\ninterrupted: everything is ended and removed", file=sys.stderr)
        return 130
    except (state.ClusterError, tools.ToolError, CRDError, _environment.UnknownEnvironment) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _up(folder: Path, wanted: str, environments: list[str]) -> int:
    files = [_environment.path(name).resolve() for name in environments]
    if state.alive(folder):
        return _already(folder)
    if wanted == "kind" and files:
        raise state.ClusterError("--environment adds nodes that stand in for accelerators, of which kind has none")
    for tool in ("kind",) if wanted == "kind" else embedded.TOOLS:
        if not tools.path(tool).is_file():
            print(f"{tool} is built from its Go module, once: about {tools.TOOLS[tool].takes}", flush=True)
            tools.build(tool)
    if wanted == "embedded":
        embedded.build()
    started = time.monotonic()
    arguments = [wanted, *(word for file in files for word in ("--values", str(file)))]
    found = state.start(folder, arguments, _tell)
    print(f"ready after {time.monotonic() - started:.1f} s")
    _print(folder, found)
    return 0


def _already(folder: Path) -> int:
    """Another command has started it, or starts it just now."""
    deadline = time.monotonic() + 4 * embedded.READY_SECONDS
    while state.alive(folder) and time.monotonic() < deadline:
        found = state.read(folder)
        if found and found.ready:
            print("already up")
            _print(folder, found)
            return 0
        time.sleep(0.1)
    raise state.ClusterError(f"{folder}: the cluster that another command started there did not come up")


def _down(folder: Path) -> int:
    found, dead = state.read(folder), not state.alive(folder)
    print(f"{folder}: ended and removed" if state.end(folder) else f"{folder}: nothing there")
    if found and dead and found.kind == "kind":
        kind.sweep(folder, found.facts.get("docker"))
    return 0


def _status(folder: Path, *, shell: bool) -> int:
    found = state.read(folder)
    if found is None or not state.alive(folder):
        why = f" It ended by itself: {found.failed}" if found and found.failed else ""
        print(f"{folder}: no cluster.{why}", file=sys.stderr)
        return 1
    if not found.ready:
        print(f"{folder}: starting", file=sys.stderr)
        return 1
    if shell:
        print(f"export KUBECONFIG={shlex.quote(found.kubeconfig)}")
    else:
        _print(folder, found)
    return 0


def _print(folder: Path, found: state.State) -> None:
    minutes = (time.time() - found.started) / 60
    print(f"{found.kind}, Kubernetes {found.version} at {found.server}, up for {minutes:.0f} min")
    print(f"nodes       {len(found.facts['nodes'])}: {', '.join(found.facts['nodes'])}")
    if definitions := found.facts.get("definitions"):
        print(f"definitions {definitions} CustomResourceDefinitions")
    if image := found.facts.get("image"):
        print(f"image       {image}, {'built here' if found.facts['built'] else 'as published'}")
    if address := found.facts.get("docker"):
        print(f"docker      DOCKER_HOST={address}")
    for name, pid in found.processes.items():
        print(f"process     {pid:<8}{name:<26}{os.path.relpath(folder / 'logs' / f'{name}.log')}")
    print(f"export KUBECONFIG={shlex.quote(found.kubeconfig)}")


def _tell(told: dict[str, Any]) -> None:
    if "step" in told:
        print(f"{told['step']} ...", end=" ", flush=True)
    elif "took" in told:
        print(f"{told['took']:.1f} s", flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
