"""The helm binary: renders charts, and says in one error what it refused."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from inference_plane.checkout import CHARTS

#: The Kubernetes version that renders assume where no cluster says otherwise.
KUBERNETES_VERSION = "1.36.4"

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class HelmError(Exception):
    """Helm refused; the message is Helm's own, without its information lines."""


@dataclasses.dataclass(frozen=True)
class Render:
    """What `helm template` made of a chart and its values."""

    text: str

    @functools.cached_property
    def objects(self) -> list[dict[str, Any]]:
        """The Kubernetes objects in the order of the render."""
        return [document for document in yaml.load_all(self.text, _LOADER) if document]

    def find(self, kind: str, name: str) -> dict[str, Any]:
        """The one object of that kind and name.

        Raises:
            LookupError: there is none, or more than one.
        """
        found = [o for o in self.objects if o["kind"] == kind and o["metadata"]["name"] == name]
        if len(found) != 1:
            names = sorted(f"{o['kind']}/{o['metadata']['name']}" for o in self.objects)
            raise LookupError(f"{len(found)} objects {kind}/{name} in the render; it has {', '.join(names)}")
        return found[0]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [o for o in self.objects if o["kind"] == kind]


def template(
    chart: str | pathlib.Path,
    *,
    files: Sequence[str | pathlib.Path] = (),
    values: Mapping[str, Any] | None = None,
    release: str = "plane",
    namespace: str = "inference",
    api_versions: Sequence[str] = (),
) -> Render:
    """`helm template` of a chart: a name under charts/ or a folder.

    Later files win over earlier ones, and `values` over all files. Equal calls render once in a process as long as
    neither the charts nor the files change under it.

    Raises:
        HelmError: Helm refused the values or the chart.
    """
    folder = chart if isinstance(chart, pathlib.Path) else CHARTS / chart
    return _template(
        folder, tuple(str(f) for f in files), json.dumps(values or {}), release, namespace, tuple(api_versions)
    )


@functools.lru_cache(maxsize=256)
def _template(
    folder: pathlib.Path, files: tuple[str, ...], values: str, release: str, namespace: str, api_versions: tuple[str]
) -> Render:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as overlay:
        overlay.write(values)
        overlay.flush()
        arguments = ["template", release, str(folder), "--namespace", namespace, "--kube-version", KUBERNETES_VERSION]
        for file in (*files, overlay.name):
            arguments += ["--values", file]
        for api_version in api_versions:
            arguments += ["--api-versions", api_version]
        return Render(run(*arguments))


def run(*arguments: str) -> str:
    """Runs helm; returns what it prints.

    Raises:
        HelmError: helm is missing or exits with an error.
    """
    binary = shutil.which("helm")
    if binary is None:
        raise HelmError("no helm on PATH: run the command by its file in scripts/, which sets it up")
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        # One information line for each symlinked chart; the error itself follows.
        lines = [line for line in done.stderr.splitlines() if not line.startswith("level=INFO")]
        raise HelmError("\n".join(lines).strip())
    return done.stdout


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Helm merges them: maps key by key, anything else replaced, null removed."""
    both = {**base, **over}
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            both[key] = merged(base[key], value)
    return {key: value for key, value in both.items() if value is not None}
