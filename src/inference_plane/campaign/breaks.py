"""A router that is broken on purpose, so that a campaign shows that it would notice: changes to rendered files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from inference_plane import helm


def _replaced(text: str, old: str, new: str) -> str:
    if old not in text:
        raise ValueError(f"{old!r} is not in the file that is to be broken: the break has to follow the chart")
    return text.replace(old, new)


def _lists(found: Any) -> Iterator[list[dict[str, Any]]]:
    """Every RouteList of a route configuration."""
    if isinstance(found, dict):
        if str(found.get("@type", "")).endswith("RouteList"):
            yield found["routes"]
        for value in found.values():
            yield from _lists(value)
    elif isinstance(found, list):
        for value in found:
            yield from _lists(value)


def _routes(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[dict[str, str]], None]:
    def apply(files: dict[str, str]) -> None:
        document = json.loads(files["routes.json"])
        before = json.dumps(document)
        for routes in _lists(document):
            change(routes)
        if json.dumps(document) == before:
            raise ValueError("no route was changed: the break has to follow the chart")
        files["routes.json"] = json.dumps(document)

    return apply


def _restricted(route: dict[str, Any]) -> bool:
    return route["name"].endswith("/chat/restricted")


def _without_restricted(routes: list[dict[str, Any]]) -> None:
    routes[:] = [route for route in routes if not _restricted(route)]


def _restricted_last(routes: list[dict[str, Any]]) -> None:
    routes.sort(key=lambda route: (_restricted(route), route["name"].endswith("/not-served")))


def _cluster_is_wide(routes: list[dict[str, Any]]) -> None:
    for route in filter(_restricted, routes):
        matcher = route["match"]["headers"][-1]["string_match"]["safe_regex"]
        matcher["regex"] = _replaced(matcher["regex"], "^(", "^(cluster|")


def _lua(old: str, new: str) -> Callable[[dict[str, str]], None]:
    def apply(files: dict[str, str]) -> None:
        files["route.lua"] = _replaced(files["route.lua"], old, new)

    return apply


#: What each break takes away, and how; the change is made to the files by their names.
BREAKS: dict[str, tuple[str, Callable[[dict[str, str]], None]]] = {
    "no-restricted-route": ("the route that keeps what x-residency binds", _routes(_without_restricted)),
    "restricted-route-last": ("its place before the routes that lead out", _routes(_restricted_last)),
    "cluster-is-wide": ("`cluster` is taken for wide enough", _routes(_cluster_is_wide)),
    "two-models": (
        "the refusal of a path and a body that name two models",
        _lua("if by_path and meant", "if false and meant"),
    ),
    "no-normalisation": (
        "x-residency made one known word",
        _lua('if residency then headers:replace("x-residency", residency) end', ""),
    ),
    "unknown-is-wide": ("an unknown x-residency is tightest", _lua('"cluster"\n', '"anywhere"\n')),
    "first-model": ("a second `model` is refused", _lua("UNIQUE = {model = true,", "UNIQUE = {")),
}


def broken(name: str) -> Callable[[helm.Render], helm.Render]:
    """The change of a render that breaks it so. The change raises ValueError where the chart has moved on."""

    return lambda render: changed(render, BREAKS[name][1])


def changed(render: helm.Render, change: Callable[[dict[str, str]], None]) -> helm.Render:
    """The render with other texts of the router's files. Raises what `change` raises."""
    names = ("router-bootstrap", "router-routes", "router-clusters")
    maps = {name: render.find("ConfigMap", name) for name in names}
    files = {file: text for found in maps.values() for file, text in found["data"].items()}
    change(files)
    others = [found for found in render.objects if found not in maps.values()]
    for found in maps.values():
        others.append({**found, "data": {file: files[file] for file in found["data"]}})
    return helm.Render("\n---\n".join(json.dumps(found) for found in others))
