"""Keys and tokens that stand in the manifests as they are."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from inference_plane.compliance.pods import KINDS, containers
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index

#: What keys look like, and whose they are.
KEYS = {
    "an AWS access key": re.compile(r"\b((AKIA|ASIA)[A-Z0-9]{12,}|ABSK[A-Za-z0-9+/=]{12,})"),
    "a private key": re.compile(r"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "an OpenAI key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    "a JSON Web Token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."),
    "a password in an address": re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s:@\"']+:[^/\s:@\"']{3,}@"),
}
#: Names that say that their value is a secret, but for those that say where one is.
_NAMED = re.compile(
    r"(SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|BEARER|(^|_)TOKEN$|(^|_)AUTH$)(?!.*(_FILE|_PATH|_URI|_URL)$)",
    re.IGNORECASE,
)
_FLAG = re.compile(r"^--[a-z-]*(api-key|password|secret|token)([=\s]|$)", re.IGNORECASE)


def _texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _texts(value, f"{path}[{number}]")
    elif isinstance(node, str):
        yield path, node


#: Every kind that carries text of people's own.
_CARRIERS = KINDS | {
    "core/ConfigMap", "core/ServiceAccount", "networking.k8s.io/Ingress", "serving.kserve.io/InferenceService",
    "karpenter.k8s.aws/EC2NodeClass", "keda.sh/ScaledObject", "argoproj.io/Application",
}  # fmt: skip


@rule(
    "PLANE_LP_30",
    "No key or token stands in the manifests",
    severity="CRITICAL",
    kinds=_CARRIERS,
    why="Manifests are in Git, in Helm's history, in etcd in clear, and on the screen of whoever describes the object.",
    remedy="Take the key out and revoke it. AWS is reached by roles; anything else comes as a mounted Secret.",
    source="https://kubernetes.io/docs/concepts/security/secrets-good-practices/",
    example="data: {config: 'aws_access_key_id = AKIA...'}",
)
def no_key(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for path, text in _texts(obj, ""):
        for what, pattern in KEYS.items():
            if pattern.search(text):
                yield path, f"holds {what}"


@rule(
    "PLANE_LP_31",
    "No variable or flag is named for a secret and holds its value",
    severity="HIGH",
    kinds=KINDS,
    why="A value that its own name calls secret is one, whatever it looks like.",
    remedy="Mount the Secret as a file, and give the path.",
    source="https://kubernetes.io/docs/concepts/security/secrets-good-practices/",
    example="env: [{name: HF_TOKEN, value: abc}]",
)
def no_named_secret(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for container, path in containers(obj, index):
        for number, variable in enumerate(container.get("env") or ()):
            if _NAMED.search(str(variable.get("name"))) and variable.get("value"):
                yield f"{path}.env[{number}]", f"{variable['name']} has a value"
        for field in ("command", "args"):
            for number, word in enumerate(container.get(field) or ()):
                if _FLAG.search(str(word)):
                    yield f"{path}.{field}[{number}]", f"has the flag {str(word).split('=')[0]}"
