"""The process that keeps one cluster: `python -m inference_plane.cluster.keeper FOLDER KIND [--values FILE …]`.

It tells how it gets on in lines of JSON: {"step": …}, {"took": seconds}, at last {"ready": true} or {"failed": …}.
Then it waits for SIGTERM. Whoever started it may die: a line that nobody reads any more ends it too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from inference_plane import tools
from inference_plane.cluster import definitions, embedded, kind, node_image, nodes, state
from inference_plane.cluster.client import Client
from inference_plane.onehost.processes import Processes

READY_SECONDS = 180


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=["embedded", "kind"])
    parser.add_argument("--values", action="append", default=[], type=Path)
    arguments = parser.parse_args(argv)
    folder = arguments.folder.resolve()
    told = state.State(arguments.kind, os.getpid(), time.time())
    try:
        with state.held(folder):
            told.write(folder)
            try:
                with Processes() as processes, contextlib.ExitStack() as stack:
                    if arguments.kind == "kind":
                        _kind(stack, folder, processes, told)
                    else:
                        _embedded(folder, processes, told, arguments.values)
                    _wait(processes, told)
            except SystemExit:
                pass  # asked to end
            except Exception as error:
                told.failed = str(error) or type(error).__name__
            if told.ready and told.failed:
                told.write(folder)  # its logs say why
                return 1
            shutil.rmtree(folder, ignore_errors=True)
    except state.ClusterError as error:
        told.failed = str(error)
    if told.failed and not told.ready:
        with contextlib.suppress(BrokenPipeError):
            _tell(failed=told.failed)
        return 1
    return 0


def _embedded(folder: Path, processes: Processes, told: state.State, files: list[Path]) -> None:
    cluster = embedded.Embedded(folder, processes)
    cluster.start(_step)
    client = Client(cluster.kubeconfig)
    with _step("CustomResourceDefinitions of the pinned controllers"):
        told.facts["definitions"] = len(definitions.install(client))
    with _step("nodes"):
        loaded = [yaml.safe_load(file.read_text()) for file in files]
        region = loaded[0]["global"]["aws"]["region"] if loaded else "eu-central-1"
        wanted = nodes.ordinary(region) + [node for values in loaded for node in nodes.for_values(values)]
        for node in {node["metadata"]["name"]: node for node in wanted}.values():
            client.create(node)
        told.facts["nodes"] = sorted({node["metadata"]["name"] for node in wanted})
    told.kubeconfig, told.server = str(cluster.kubeconfig), cluster.server
    told.version = tools.version("kube-apiserver", "k8s.io/kubernetes")
    told.processes = {name: process.pid for name, process in cluster.running.items()}


def _kind(stack: contextlib.ExitStack, folder: Path, processes: Processes, told: state.State) -> None:
    with _step("Docker"):
        cluster = stack.enter_context(kind.cluster(folder))
        told.facts["docker"] = cluster.engine.host
        told.write(folder)
    with _step("node image, built once where no registry gives it"):
        image = node_image.find(cluster.engine)
    with _step(f"nodes, of {image.name}"):
        cluster.create(image)
    # Ends with the container, which nobody else would notice here.
    node = f"{cluster.name}-control-plane"
    processes.start(node, ["docker", "wait", node], cluster.engine.environment, folder / "logs" / f"{node}.log")
    client = Client(cluster.kubeconfig)
    with _step("names of Services"):
        _ready(client, processes, "/apis/apps/v1/namespaces/kube-system/deployments/coredns")
    told.facts |= {"nodes": cluster.nodes(), "network": cluster.network(), "image": image.name, "built": image.built}
    told.kubeconfig, told.server = str(cluster.kubeconfig), client.server
    told.version = client.call("GET", "/version")["gitVersion"]


def _ready(client: Client, processes: Processes, deployment: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not client.call("GET", deployment).get("status", {}).get("readyReplicas"):
        processes.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{deployment}: no replica is ready after {READY_SECONDS} s")
        time.sleep(0.5)


def _wait(processes: Processes, told: state.State) -> None:
    """Until a signal ends this process, or a component ends by itself, which raises NotReady."""
    told.ready = True
    told.write(Path(told.kubeconfig).parent)
    _tell(ready=True)
    # Nobody listens from here on.
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    while True:
        processes.check()
        time.sleep(0.5)


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    _tell(step=what)
    started = time.monotonic()
    yield
    _tell(took=round(time.monotonic() - started, 1))


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
