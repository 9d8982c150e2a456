"""The Argo CD objects of the checkout, and what an AppProject permits."""

import fnmatch
import json

import yaml

from inference_plane.argocd import expand
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
