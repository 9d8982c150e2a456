"""What a check has to say about one rendered object."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a rendered object.

    `object` names it as `apps/v1 Deployment models/clinical-summary`, `path` is the field as `kubectl explain`
    spells it with list indices (empty for the whole object), `rule` is the short name of the check that found it,
    and `message` says what is wrong and what to set.
    """

    object: str
    path: str
    rule: str
    message: str

    def __str__(self) -> str:
        where = f"{self.object}: {self.path}" if self.path else self.object
        return f"{where}: {self.message} [{self.rule}]"


def name_of(obj: Mapping) -> str:
    """`apps/v1 Deployment models/clinical-summary`; the namespace only where the object states one."""
    metadata = obj.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    name = metadata.get("name") or metadata.get("generateName") or "(no name)"
    namespace = metadata.get("namespace")
    return f"{obj.get('apiVersion')} {obj.get('kind')} {f'{namespace}/{name}' if namespace else name}"


def path_of(parts: Iterable[str | int]) -> str:
    """`["spec", "containers", 0, "image"]` as `spec.containers[0].image`; keys with dots are quoted in brackets."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif "." in part or "/" in part:
            path += f"['{part}']"
        else:
            path += f".{part}" if path else part
    return path
