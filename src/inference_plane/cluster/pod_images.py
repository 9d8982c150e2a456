"""The images of the local environment's pods, given to the nodes of kind.

The plane's own image and the engine's stand-in are built always: no registry has them. The others are the charts'
public images, which kubelets pull by themselves; where no registry is reached, they too are built here, of Debian's
packages, wheels and Go modules, under names of their own, and `values` says which.
"""

from __future__ import annotations

import importlib.util
import shutil
import ssl
from pathlib import Path
from typing import Any

import yaml

from inference_plane import tools
from inference_plane.checkout import CHARTS, ROOT
from inference_plane.cluster import node_image
from inference_plane.cluster.docker import Engine

#: The folder under images/kind -> the entry of global.images that it stands in for.
STANDING_IN = {"envoy": "envoy", "ratelimit": "ratelimit", "store": "valkey", "curl": "curl"}
ENGINE = "localhost.local/vllm-cpu-smollm2:v0.32.0"

#: Debian's, and what `ssl` names elsewhere.
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def build(engine: Engine, *, registry: bool) -> tuple[str, ...]:
    """Builds what the local environment needs beside what a registry gives, and names it.

    Raises:
        ClusterError: Docker says no.
        tools.ToolError, crds.CRDError: a program cannot be built.
    """
    arguments = {} if registry else {"PYTHON": _python(engine)}
    plane = default("plane")
    _own(engine, plane, "images/plane/Dockerfile", **arguments)
    _own(engine, ENGINE, "images/kind/engine/Dockerfile", **arguments)
    built = [plane, ENGINE]
    if not registry:
        built += [_built(engine, folder) for folder in STANDING_IN]
    return tuple(built)


def values(*, registry: bool) -> dict[str, Any]:
    """What an environment's values must say of them."""
    if registry:
        return {}
    images = {}
    for folder, entry in STANDING_IN.items():
        repository, _, tag = _name(folder).rpartition(":")
        images[entry] = {"repository": repository, "tag": tag}
    return {"global": {"images": images}}


def default(entry: str) -> str:
    """The image that the charts take for an entry of global.images."""
    found = yaml.safe_load((CHARTS / "plane-lib" / "values.yaml").read_text())["defaults"]["images"][entry]
    return f"{found['repository']}:{found['tag']}"


def _name(folder: str) -> str:
    return f"localhost.local/{folder}:{node_image.SUITE}"


def _own(engine: Engine, image: str, file: str, **arguments: str) -> None:
    """An image of this repository's files: those that the Dockerfile's own .dockerignore, for BuildKit, lets pass."""
    passed = [line[1:] for line in (ROOT / f"{file}.dockerignore").read_text().splitlines() if line.startswith("!")]
    with node_image.context() as context:
        for found in (found for pattern in passed for found in ROOT.glob(pattern)):
            for each in found.rglob("*") if found.is_dir() else [found]:
                if each.is_file():
                    place = context / each.relative_to(ROOT)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(each, place)
        node_image.build(engine, image, context, ROOT / file, **arguments)


def _python(engine: Engine) -> str:
    image = f"inference-plane/python:{node_image.SUITE}"
    base = node_image.debian(engine)
    with node_image.context() as context:
        shutil.copytree(node_image.FILES / "python", context, dirs_exist_ok=True)
        shutil.copy(ssl.get_default_verify_paths().cafile or AUTHORITIES, context / "authorities.crt")
        node_image.build(engine, image, context, DEBIAN=base)
    return image


def _built(engine: Engine, folder: str) -> str:
    image, base = _name(folder), node_image.debian(engine)
    with node_image.context() as context:
        shutil.copytree(node_image.FILES / folder, context, dirs_exist_ok=True)
        if folder == "envoy":
            wheel = Path(importlib.util.find_spec("envoy").submodule_search_locations[0])
            shutil.copy(wheel / "_bin" / "envoy", context / "envoy")
        if folder == "ratelimit":
            shutil.copy(tools.build("ratelimit"), context / "ratelimit")
        arguments = {} if folder == "ratelimit" else {"DEBIAN": base}
        node_image.build(engine, image, context, **arguments)
    return image
