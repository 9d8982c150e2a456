"""What Argo CD makes of the files under argocd/: Applications of ApplicationSets, and objects of Applications."""

import fnmatch
import json
import pathlib
import re

import yaml

from inference_plane import helm
from inference_plane.checkout import ROOT

#: Where Argo CD objects stand.
FILES = sorted([*(ROOT / "argocd").rglob("*.yaml"), *(ROOT / "examples").glob("*/argocd/*.yaml")])


def documents():
    """(file under the checkout, object) of every Argo CD object."""
    return [
        (file.relative_to(ROOT).as_posix(), document)
        for file in FILES
        for document in yaml.safe_load_all(file.read_text())
    ]


def of_kind(kind):
    return [(file, document) for file, document in documents() if document["kind"] == kind]


def applications():
    """(file, Application) of every Application, those of ApplicationSets too."""
    found = of_kind("Application")
    return found + [(file, app) for file, appset in of_kind("ApplicationSet") for app in expand(appset)]


def expand(appset):
    """The Applications of an ApplicationSet with list or git directory generators, and `{{ .a.b }}` in strings."""
    assert appset["spec"]["goTemplate"] and appset["spec"]["goTemplateOptions"] == ["missingkey=error"]
    for generator in appset["spec"]["generators"]:
        for parameters in generated(generator):
            filled = substitute(appset["spec"]["template"], parameters)
            metadata = {"namespace": appset["metadata"]["namespace"], **filled["metadata"]}
            yield {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "Application",
                "metadata": metadata,
                "spec": filled["spec"],
            }


def generated(generator):
    """https://argo-cd.readthedocs.io/en/stable/operator-manual/applicationset/Generators/"""
    ((kind, settings),) = generator.items()
    if kind == "list":
        return settings["elements"]
    assert kind == "git" and set(settings) == {"repoURL", "revision", "directories"}, generator
    folders = {folder for entry in settings["directories"] for folder in ROOT.glob(entry["path"]) if folder.is_dir()}
    return [
        {"path": {"path": folder.relative_to(ROOT).as_posix(), "basename": folder.name}} for folder in sorted(folders)
    ]


def substitute(node, parameters):
    """Strings with `{{ .a.b }}` filled in; any other template is an error here, as a missing key is in Argo CD."""
    if isinstance(node, dict):
        return {key: substitute(value, parameters) for key, value in node.items()}
    if isinstance(node, list):
        return [substitute(value, parameters) for value in node]
    if not isinstance(node, str):
        return node

    def value(match):
        found = parameters
        for key in match[1].strip().removeprefix(".").split("."):
            found = found[key]
        assert isinstance(found, str), match[0]
        return found

    filled = re.sub(r"\{\{((?: *\.\w+(?:\.\w+)* *))\}\}", value, node)
    assert "{{" not in filled, node
    return filled


def value_files(application):
    """The files that an Application's valueFiles name, in Helm's order: globs sorted, each file once, named ones last.

    As `getResolvedValueFiles` of Argo CD 3.5 has it. A leading slash is the root of the repository.

    Raises:
        LookupError: a name or a glob that finds nothing, which Argo CD refuses too.
    """
    source = application["spec"]["source"]
    base = ROOT / source["path"]
    entries = source["helm"].get("valueFiles", [])
    named = [resolve(base, entry) for entry in entries if not is_glob(entry)]
    found = []
    for entry in entries:
        path = resolve(base, entry)
        matches = [pathlib.Path(p) for p in sorted(str(p) for p in ROOT.glob(str(path.relative_to(ROOT))))]
        if not matches:
            raise LookupError(f"{entry} finds no file")
        found += [p for p in matches if p not in found and (not is_glob(entry) or p not in named)]
    return found


def is_glob(entry):
    return bool(set("*?[") & set(entry))


def resolve(base, entry):
    return ROOT / entry[1:] if entry.startswith("/") else pathlib.Path(base, entry).resolve()


def render(application, tests=False):
    """The objects that an Application deploys: `helm template` as Argo CD calls it; `tests` are what it leaves out."""
    source = application["spec"]["source"]
    settings = source["helm"]
    unknown = set(settings) - {"releaseName", "valueFiles", "valuesObject", "skipTests"}
    assert not unknown, f"this does not know what {unknown} does to a render"
    rendered = helm.template(
        ROOT / source["path"],
        files=value_files(application),
        values=settings.get("valuesObject", {}),
        release=settings["releaseName"],
        namespace=application["spec"]["destination"]["namespace"],
    )
    return rendered.objects if tests or not settings.get("skipTests") else without_tests(rendered.objects)


def without_tests(objects):
    hooks = ((o, (o["metadata"].get("annotations") or {}).get("helm.sh/hook", "")) for o in objects)
    return [o for o, hook in hooks if "test" not in hook.split(",")]


def is_cluster_scoped(document):
    """Every chart states the namespace of what has one."""
    return "namespace" not in document["metadata"]


def permits(restrictions, group, kind, name=""):
    """Whether a project's list of kinds has one, as `glob` compares group, kind and name."""
    return any(
        fnmatch.fnmatchcase(group, entry["group"])
        and fnmatch.fnmatchcase(kind, entry["kind"])
        and fnmatch.fnmatchcase(name, entry.get("name", "*"))
        for entry in restrictions
    )


def reaches(project, destination, namespace):
    """Whether a project lets an Application put something into a namespace of its destination."""
    return any(
        fnmatch.fnmatchcase(destination.get("name", ""), entry.get("name", ""))
        and fnmatch.fnmatchcase(destination.get("server", ""), entry.get("server", ""))
        and fnmatch.fnmatchcase(namespace, entry["namespace"])
        for entry in project["spec"]["destinations"]
    )


def canonical(objects):
    return sorted(json.dumps(o, sort_keys=True) for o in objects)
