"""What Argo CD makes of Applications whose source is this checkout: those of ApplicationSets, and their objects."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from inference_plane import helm
from inference_plane.checkout import ROOT


class ArgoError(Exception):
    """An Application or ApplicationSet that this module cannot render as Argo CD would; the message says what."""


def expand(appset: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The Applications of an ApplicationSet with list or git directory generators, and `{{ .a.b }}` in strings.

    Raises:
        ArgoError: another kind of generator or template, or one without `missingkey=error`.
    """
    spec = appset["spec"]
    if not spec.get("goTemplate") or spec.get("goTemplateOptions") != ["missingkey=error"]:
        raise ArgoError(f"{appset['metadata']['name']}: wants goTemplate with the option missingkey=error")
    for generator in spec["generators"]:
        for parameters in _generated(generator):
            filled = _substitute(spec["template"], parameters)
            metadata = {"namespace": appset["metadata"]["namespace"], **filled["metadata"]}
            yield {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "Application",
                "metadata": metadata,
                "spec": filled["spec"],
            }


def _generated(generator: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """https://argo-cd.readthedocs.io/en/stable/operator-manual/applicationset/Generators/"""
    ((kind, settings),) = generator.items()
    if kind == "list":
        return settings["elements"]
    if kind != "git" or set(settings) != {"repoURL", "revision", "directories"}:
        raise ArgoError(f"generator {generator}: only lists and git directories are known")
    folders = {folder for entry in settings["directories"] for folder in ROOT.glob(entry["path"]) if folder.is_dir()}
    return [
        {"path": {"path": folder.relative_to(ROOT).as_posix(), "basename": folder.name}} for folder in sorted(folders)
    ]


def _substitute(node: Any, parameters: Mapping[str, Any]) -> Any:
    """Strings with `{{ .a.b }}` filled in; any other template is an error here, as a missing key is in Argo CD."""
    if isinstance(node, dict):
        return {key: _substitute(value, parameters) for key, value in node.items()}
    if isinstance(node, list):
        return [_substitute(value, parameters) for value in node]
    if not isinstance(node, str):
        return node

    def value(match: re.Match) -> str:
        found: Any = parameters
        for key in match[1].strip().removeprefix(".").split("."):
            if not isinstance(found, Mapping) or key not in found:
                raise ArgoError(f"{node}: the generator has no {match[1].strip()}")
            found = found[key]
        if not isinstance(found, str):
            raise ArgoError(f"{node}: {match[1].strip()} is not a string")
        return found

    filled = re.sub(r"\{\{((?: *\.\w+(?:\.\w+)* *))\}\}", value, node)
    if "{{" in filled:
        raise ArgoError(f"{node}: only templates like {{{{ .a.b }}}} are known")
    return filled


def value_files(application: Mapping[str, Any]) -> list[pathlib.Path]:
    """The files that an Application's valueFiles name, in Helm's order: globs sorted, each file once, named ones last.

    As `getResolvedValueFiles` of Argo CD 3.5 has it. A leading slash is the root of the repository.

    Raises:
        ArgoError: a name or a glob that finds nothing, which Argo CD refuses too.
    """
    source = application["spec"]["source"]
    base = ROOT / source["path"]
    entries = source["helm"].get("valueFiles", [])
    named = [_resolve(base, entry) for entry in entries if not is_glob(entry)]
    found: list[pathlib.Path] = []
    for entry in entries:
        path = _resolve(base, entry)
        if not path.is_relative_to(ROOT):
            raise ArgoError(f"{entry} is outside the repository")
        matches = [pathlib.Path(p) for p in sorted(str(p) for p in ROOT.glob(str(path.relative_to(ROOT))))]
        if not matches:
            raise ArgoError(f"{entry} finds no file")
        found += [p for p in matches if p not in found and (not is_glob(entry) or p not in named)]
    return found


def is_glob(entry: str) -> bool:
    """Whether an entry of valueFiles is a pattern."""
    return bool(set("*?[") & set(entry))


def _resolve(base: pathlib.Path, entry: str) -> pathlib.Path:
    return ROOT / entry[1:] if entry.startswith("/") else pathlib.Path(base, entry).resolve()


def values(application: Mapping[str, Any]) -> dict[str, Any]:
    """The values that an Application gives to its chart: its files, later over earlier, and its valuesObject over all.

    Raises:
        ArgoError: as `value_files`.
    """
    settings = application["spec"]["source"].get("helm") or {}
    found: dict[str, Any] = {}
    layers = [yaml.safe_load(file.read_text()) for file in value_files(application)]
    for layer in [*layers, settings.get("valuesObject")]:
        found = helm.merged(found, layer or {})
    return found


def render(application: Mapping[str, Any], tests: bool = False) -> list[dict[str, Any]]:
    """The objects that an Application deploys: `helm template` as Argo CD calls it; `tests` are what it leaves out.

    Raises:
        ArgoError: a source that is not a chart of this checkout, or a setting of Helm that this does not know.
        helm.HelmError: Helm refuses the values.
    """
    source, name = application["spec"].get("source") or {}, application["metadata"]["name"]
    settings = source.get("helm") or {}
    if not (ROOT / source.get("path", "") / "Chart.yaml").is_file():
        raise ArgoError(f"{name}: its source is no chart of this checkout: {source or 'sources'}")
    if unknown := set(settings) - {"releaseName", "valueFiles", "valuesObject", "skipTests"}:
        raise ArgoError(f"{name}: it is not known here what helm.{', helm.'.join(sorted(unknown))} does to a render")
    rendered = helm.template(
        ROOT / source["path"],
        files=value_files(application),
        values=settings.get("valuesObject", {}),
        release=settings.get("releaseName", name),
        namespace=application["spec"]["destination"]["namespace"],
    )
    return rendered.objects if tests or not settings.get("skipTests") else without_tests(rendered.objects)


def without_tests(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects that are no hooks of `helm test`."""
    hooks = ((o, (o["metadata"].get("annotations") or {}).get("helm.sh/hook", "")) for o in objects)
    return [o for o, hook in hooks if "test" not in hook.split(",")]
