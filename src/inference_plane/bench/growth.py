"""How a render and a release grow with the catalogue."""
from __future__ import annotations

import base64
import copy
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rich.box
import rich.table
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS

#: Sizes of the catalogue that are compared.
SIZES = (10, 50, 100)


@dataclass(frozen=True)
class Growth:
    """One catalogue: seconds of `helm template` (median), objects, bytes of all manifests, of the release as Helm keeps
    it in its Secret, and of the router's larger ConfigMap."""

    models: int
    seconds: float
    objects: int
    manifest_bytes: int
    release_bytes: int
    router_bytes: int


def grown(environment: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The environment with so many models: its own entries in turn, each with a name and a source of its own.

    What a team may use of an entry, it may use of the first model that is made of it.
    """
    values = copy.deepcopy(dict(environment))
    entries = list(values["global"]["models"].items())
    models, first = {}, {}
    for number in range(size):
        name, entry = entries[number % len(entries)]
        made = f"model-{number:03}"
        models[made] = json.loads(json.dumps(entry).replace(f"/{name}/", f"/{name}-{number}/"))
        first.setdefault(name, made)
    values["global"]["models"] = models
    for team in values["global"].get("teams", {}).values():
        if "models" in team:
            team["models"] = {first[name]: budget for name, budget in team["models"].items() if name in first}
    return values


def measure(
    environment: Mapping[str, Any], *, sizes: Sequence[int] = SIZES, rounds: int = 3,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Growth]:
    """One row a size. Raises HelmError where a catalogue does not render."""
    found = []
    for size in sizes:
        values = grown(environment, size)
        seconds = []
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(values, file)
            file.flush()
            arguments = ("plane", str(CHARTS / "inference-plane"), "--namespace", "inference", "--values", file.name)
            for number in range(rounds):
                progress(f"{size} models, render {number + 1} of {rounds}")
                started = time.monotonic()
                text = helm.run("template", "--kube-version", helm.KUBERNETES_VERSION, *arguments)
                seconds.append(time.monotonic() - started)
            release = json.loads(helm.run("install", "--dry-run=client", "--output", "json", *arguments))
        objects = [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]
        names = ("router-routes", "router-clusters")
        maps = [o["data"] for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] in names]
        largest_map = max(sum(map(len, data.values())) for data in maps)
        found.append(Growth(
            models=size, seconds=statistics.median(seconds), objects=len(objects), manifest_bytes=len(text),
            release_bytes=release_bytes(release), router_bytes=largest_map))
    return found


def largest(environment: Mapping[str, Any], progress: Callable[[str], None] = lambda line: None) -> int:
    """How many models the charts take of this environment, before they refuse to render the router's files.

    Raises HelmError where one model is refused, or the refusal is of something else.
    """
    def fits(size: int) -> bool:
        progress(f"do {size} models fit?")
        try:
            helm.template("inference-plane", values=grown(environment, size), namespace="inference")
        except helm.HelmError as error:
            if size == 1 or "KiB" not in str(error):
                raise
            return False
        return True

    taken = 1
    while fits(2 * taken):
        taken *= 2
    step = taken
    while step := step // 2:
        taken += step if fits(taken + step) else 0
    return taken


def release_bytes(release: Mapping[str, Any]) -> int:
    """Bytes of a release in its Secret: gzipped JSON in base64, as helm/pkg/storage/driver encodes it."""
    return len(base64.b64encode(gzip.compress(json.dumps(release, separators=(",", ":")).encode(), 9)))


def table(found: Sequence[Growth], caption: str) -> rich.table.Table:
    """For people; the last line is the growth from the first row to the last.

    A release is held by a Secret (MaxSecretSize of Kubernetes' validation: 1 MiB), the router's clusters and routes by
    a ConfigMap each, of which the chart refuses to fill more than 900 KiB; the larger is shown.
    """
    drawn = rich.table.Table(box=rich.box.SIMPLE, caption=caption, caption_justify="left")
    for heading in ("models", "helm template", "objects", "manifests", "release, of 1024 KiB", "router, of 900 KiB"):
        drawn.add_column(heading, justify="right")
    for row in found:
        drawn.add_row(
            str(row.models), f"{row.seconds:.2f} s", str(row.objects), f"{row.manifest_bytes / 1024:,.0f} KiB",
            f"{row.release_bytes / 1024:,.0f} KiB", f"{row.router_bytes / 1024:,.0f} KiB")
    first, last = found[0], found[-1]
    drawn.add_section()
    drawn.add_row(
        f"x {last.models / first.models:g}", *(
            f"x {getattr(last, figure) / getattr(first, figure):.1f}"
            for figure in ("seconds", "objects", "manifest_bytes", "release_bytes", "router_bytes")))
    return drawn
