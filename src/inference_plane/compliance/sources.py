"""What there is to judge: the render of an environment, or manifests that somebody else rendered into a folder."""

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from inference_plane import argocd, helm
from inference_plane.commands import iam
from inference_plane.kube import name_of
from inference_plane.manifests.kserve import deployments

#: A policy document of IAM in a file of its own, as an object: what `aws iam` and Terraform take.
DOCUMENT = {"apiVersion": "iam.inference-plane/v1", "kind": "PolicyDocument"}


class SourceError(Exception):
    """A file or folder that cannot be judged; the message says which and why."""


@dataclass(frozen=True)
class Source:
    """Objects that are installed together.

    `external` names what exists without being among them, as relations spell it. `roles` are those that the charts
    would have ACK make where the environment leaves them to somebody else: judged as if they were rendered. `notes` say
    what is not among the objects and could be; `digests` is whether every image must have one.
    """

    name: str
    objects: list[dict[str, Any]]
    namespace: str
    external: tuple[str, ...] = ()
    roles: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    digests: bool = False

    @functools.cached_property
    def judged(self) -> list[dict[str, Any]]:
        """All that rules judge: the objects, the roles, the Deployments that KServe makes.

        An ApplicationSet, whose templates checkov does not take, is judged as the Applications that it makes.
        """
        sets = [o for o in self.objects if o["kind"] == "ApplicationSet" and _of_argo(o)]
        made = [application for one in sets for application in argocd.expand(one)]
        return [*(o for o in self.objects if o not in sets), *made, *self.roles, *deployments(self.objects)]


def environment(name: str, values: Mapping[str, Any], namespace: str = "inference") -> Source:
    """The render of the umbrella for an environment's values.

    Raises:
        helm.HelmError: Helm refuses the values.
    """
    objects = helm.template("inference-plane", values=values, namespace=namespace).objects
    rendered = {o["metadata"]["name"] for o in objects if _is_role(o)}
    shared = values.get("global") or {}
    roles: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    if not (shared.get("aws") or {}).get("accountId"):
        notes = ("no IAM role is judged: global.aws.accountId is not set, so there are none",)
    elif not rendered and (shared.get("identity") or {}).get("mode") != "none":
        roles = tuple(iam.objects(values, namespace))
    return Source(
        name, objects, namespace, tuple(brought(values, namespace)), roles, notes, bool(shared.get("requireDigest"))
    )


def _is_role(obj: Mapping[str, Any]) -> bool:
    return str(obj["apiVersion"]).startswith("iam.services.k8s.aws/")


def brought(values: Mapping[str, Any], namespace: str) -> list[str]:
    """What an environment says that somebody else brings: trust-manager's bundle of authorities, Secrets of TLS."""
    shared = values.get("global") or {}
    tls, models = shared.get("tls") or {}, {k: v for k, v in (shared.get("models") or {}).items() if v}
    found = []
    for space in sorted({namespace, *(model.get("namespace", namespace) for model in models.values())}):
        if bundle := tls.get("caConfigMap"):
            found.append(f"ConfigMap {space}/{bundle}")
        if tls.get("mode") == "secrets":
            names = {name: f"{name}-tls" for name in ("router", *models)} | (tls.get("secretNames") or {})
            found += [f"Secret {space}/{secret}" for secret in names.values()]
    return found


def folder(root: pathlib.Path, namespace: str = "inference") -> list[Source]:
    """The manifests in a folder and all below it, as one source; what its Argo CD Applications render, as one more each
    cluster.

    Raises:
        SourceError: a file that is not read to its end as Kubernetes objects, or no object at all.
        argocd.ArgoError, helm.HelmError: an Application that cannot be rendered.
    """
    files = sorted(f for f in root.rglob("*") if f.suffix in (".yaml", ".yml", ".json") and f.is_file())
    objects = [obj for file in files for obj in _objects(file, root)]
    if not objects:
        raise SourceError(f"{root}: no object in any *.yaml, *.yml or *.json below it")
    found = [Source(str(root), objects, namespace)]
    applications = [o for o in found[0].judged if o["kind"] == "Application" and _of_argo(o)]
    clusters: dict[str, list[Mapping]] = {}
    for application in applications:
        if "path" in (application["spec"].get("source") or {}) and "helm" not in application["spec"]["source"]:
            continue  # An Application of Applications: those stand in files of their own.
        destination = application["spec"]["destination"]
        clusters.setdefault(destination.get("name") or destination.get("server", ""), []).append(application)
    for cluster, members in clusters.items():
        names = ", ".join(member["metadata"]["name"] for member in members)
        made = [obj for member in members for obj in argocd.render(member, tests=True)]
        unique = list({name_of(obj): obj for obj in made}.values())
        other = {b for m in members for b in brought(argocd.values(m), m["spec"]["destination"]["namespace"])}
        found.append(Source(f"{root}: {names} on {cluster}", unique, namespace, tuple(sorted(other))))
    return found


def _of_argo(obj: Mapping[str, Any]) -> bool:
    return str(obj["apiVersion"]).startswith("argoproj.io/")


class _Strict(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML whose maps have each key once: the last of two would win in silence, in some readers the first."""


def _mapping(loader: yaml.Loader, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    if twice := {str(key) for key in keys if keys.count(key) > 1}:
        raise yaml.constructor.ConstructorError(None, None, f"two keys {', '.join(sorted(twice))}", node.start_mark)
    loader.flatten_mapping(node)
    return yaml.constructor.SafeConstructor.construct_mapping(loader, node, deep=True)


_Strict.add_constructor("tag:yaml.org,2002:map", _mapping)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) != len(pairs):
        raise ValueError(f"two keys of one name among {', '.join(sorted({key for key, _ in pairs}))}")
    return made


def _objects(file: pathlib.Path, root: pathlib.Path) -> Iterator[dict[str, Any]]:
    name = file.relative_to(root).as_posix()
    try:
        text = file.read_text()
        if file.suffix == ".json":
            documents = [json.loads(text, object_pairs_hook=_once)]
        else:
            documents = [d for d in yaml.load_all(text, _Strict) if d is not None]
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SourceError(f"{file}: cannot be read to its end: {' '.join(str(error).split())}") from error
    while documents:
        document = documents.pop(0)
        if isinstance(document, dict) and "Statement" in document and "kind" not in document:
            yield {**DOCUMENT, "metadata": {"name": name}, "document": document}
        elif not isinstance(document, dict) or not all(
            isinstance(document.get(k), str) for k in ("apiVersion", "kind")
        ):
            raise SourceError(f"{file}: holds something that is neither a Kubernetes object nor an IAM policy document")
        elif document["kind"].endswith("List") and isinstance(document.get("items"), list):
            documents = [*document["items"], *documents]
        elif not isinstance(document.get("metadata"), dict) or not document["metadata"].get("name"):
            raise SourceError(f"{file}: a {document['kind']} without metadata.name")
        else:
            yield document
