"""Who may answer by which name: what cert-manager is asked for."""

import re
from collections.abc import Iterator, Mapping

from inference_plane.compliance.envoy import dig, text
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, meta


@rule(
    "PLANE_RES_80",
    "A certificate is for one Service's name, and its key stays where it is",
    severity="CRITICAL",
    kinds={"cert-manager.io/Certificate"},
    why="The router knows an engine by the name in its certificate: who has a certificate of another's name, or an "
    "authority's, gets that model's prompts. Annotations of the Secret let controllers copy the key elsewhere.",
    remedy="Leave the Certificates of the charts: dnsNames of the Service of the same name, and no authority.",
    source="https://cert-manager.io/docs/reference/api-docs/#cert-manager.io/v1.CertificateSpec",
    example='dnsNames: ["*.inference.svc.cluster.local"]',
)
def one_name(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    spec, own = obj.get("spec") or {}, f"{meta(obj).get('name')}.{index.namespace_of(obj)}"
    names = spec.get("dnsNames") or []
    for i, name in enumerate(names if isinstance(names, list) else [names]):
        if name not in (own.split(".")[0], own) and not re.fullmatch(re.escape(own) + r"\.svc(\.[\w-]+)*", text(name)):
            yield f"spec.dnsNames[{i}]", f"is {name!r}, not a name of the Service {own}"
    for field in (
        "isCA commonName subject literalSubject uris ipAddresses emailAddresses otherNames secretTemplate keystores "
        "nameConstraints additionalOutputFormats"
    ).split():
        if spec.get(field):
            yield f"spec.{field}", "is set, which no chart does: other names, an authority, or copies of the key"
    if more := set(spec.get("usages") or ()) - {"digital signature", "key encipherment", "server auth"}:
        yield "spec.usages", f"has {', '.join(sorted(map(str, more)))}, beyond a server's"
    for other in index.kind("Certificate"):
        same = index.namespace_of(other) == index.namespace_of(obj)
        if other is not obj and same and dig(other, "spec", "secretName") == spec.get("secretName"):
            yield "spec.secretName", f"is the Secret of {meta(other).get('name')} too"
