"""The engines of a render, and what the charts know of vLLM's flags and variables."""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from inference_plane.checkout import CHARTS
from inference_plane.compliance.envoy import items, text
from inference_plane.kube import Index, Workload

COMPONENT = "app.kubernetes.io/component"
_TEMPLATES = CHARTS / "plane-lib" / "templates"


def engines(index: Index) -> list[Workload]:
    """The workloads that serve models: by their label, or because they start vLLM."""
    return [
        w for w in index.workloads if w.labels.get(COMPONENT) == "engine" or any(serves(c) for c, _ in w.containers)
    ]


def serves(container: Mapping) -> bool:
    """Whether a container starts vLLM's server."""
    words = [str(word) for key in ("command", "args") for word in _list(container.get(key))]
    return "serve" in words or any("vllm serve" in word or "vllm.entrypoints" in word for word in words)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def environment(container: Mapping) -> dict[str, Any]:
    """Variables by name; None for one whose value stands elsewhere."""
    return {text(v.get("name")): v.get("value") for v in items(container.get("env"))}


def flags(container: Mapping) -> list[tuple[str, str]]:
    """(flag without dashes, as vLLM spells it, and its value) of each argument; the value is empty where there is none.

    vLLM takes `_` for `-`, and its parser completes any beginning of a flag: see `means`.
    """
    found, words = [], [str(word) for word in _list(container.get("args"))]
    for number, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, given, value = word[2:].partition("=")
        following = words[number + 1 : number + 2]
        if not given and following and not following[0].startswith("--"):
            value = following[0]
        found.append((name.lower().replace("_", "-"), value))
    return found


def means(flag: str, name: str) -> bool:
    """Whether a flag is, or is completed to, the one of this name, or a field of it; `no-` forms switch it off."""
    return name.startswith(flag.split(".")[0])


@functools.cache
def owned(table: str) -> Mapping[str, tuple[str, ...]]:
    """A table of plane-lib, `plane.ownedFlags` or `plane.ownedEnv`: reason -> names.

    Raises:
        ValueError: the templates do not have it in the form that is read here.
    """
    template = (_TEMPLATES / "_engine.tpl").read_text()
    found = re.search(r'\{\{- define "' + re.escape(table) + r'" -\}\}\n(.*?)\n\{\{- end -\}\}', template, re.S)
    parsed = yaml.safe_load(found[1]) if found else None
    if not isinstance(parsed, dict) or not all(isinstance(names, list) for names in parsed.values()):
        raise ValueError(f"{_TEMPLATES}/_engine.tpl: {table} is not a map of reasons to lists")
    return {reason: tuple(map(str, names)) for reason, names in parsed.items()}


def of_reason(table: str, *words: str) -> list[str]:
    """The names of a table whose reason has one of some words.

    Raises:
        ValueError: a word that no reason has, so that its names would be missing in silence.
    """
    found = []
    for word in words:
        some = [name for reason, names in owned(table).items() if word in reason for name in names]
        if not some:
            raise ValueError(f"no reason of {table} has the word {word!r}")
        found += some
    return found


def strings(value: str) -> Iterator[str]:
    """A value, and each string inside it where it is JSON."""
    yield value
    try:
        parsed = json.loads(value)
    except ValueError:
        return
    queue = [parsed]
    while queue:
        one = queue.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            queue += one.values()
        elif isinstance(one, list):
            queue += one


@functools.cache
def shipped() -> Mapping[str, str]:
    """The Python files that the charts put beside an engine, by name."""
    template = (_TEMPLATES / "_engine_objects.tpl").read_text()
    names = re.findall(r"^(\w+\.py): \|$", template, re.M)
    if not names:
        raise ValueError(f"{_TEMPLATES}/_engine_objects.tpl: the engines' files are not read from it")
    return {name: (CHARTS / "vllm" / "files" / name).read_text() for name in names}
