"""Prints the IAM roles of an environment as JSON: for Terraform, the AWS CLI, or whoever reviews them.

With --diff it says instead what an existing policy grants beyond the role's, and what it lacks.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from inference_plane import helm
from inference_plane.commands import _environment
from inference_plane.compliance import iam, iam_diff

EPILOG = """\
examples:
  scripts/iam prod > roles.json                           every role, a list
  scripts/iam prod router --policy                        what the router may do
  scripts/iam prod inference-inference-router --trust     who may be it
  scripts/iam prod router --diff policy.json              what policy.json grants beyond that, and lacks
  scripts/iam prod router --trust --diff role.json        the same of who may be it

--diff takes a policy document, or what `aws iam get-role-policy` and `get-role` print; it exits 1 on a difference.
ROLE is the name of a role, or of a ServiceAccount where one role alone has it. The policies are those that the charts
render with global.identity.manage: ack, whatever the environment says of it.
"""

AUTH = {"mode": "jwt", "issuer": "-", "audiences": ["-"], "jwks": {"uri": "", "inline": {"keys": [{"kty": "RSA"}]}}}
#: What the environment is told beside its own values: the charts that have roles, all on, and nothing else.
OVERLAY = {
    "global": {"identity": {"manage": "ack"}, "teams": {"nobody": {}}},
    "vllm": {"enabled": True, "select": {"team": "", "models": []}},
    "kserve": {"enabled": True, "select": {"team": "", "models": []}},
    # Roles do not depend on who calls, and an environment without a router says nothing of it.
    "router": {"enabled": True, "auth": AUTH},
    "karpenter-nodepools": {"enabled": False},
    "alb-ingress": {"enabled": False},
}


class UnknownRole(Exception):
    """No such role, or several; the message says which there are."""


def roles(values: Mapping[str, Any], namespace: str = "inference") -> list[dict[str, Any]]:
    """The roles that the umbrella renders for an environment, in the order of their names.

    Each has `name`, `namespace` and `serviceAccount`, `trust` and `permissions` (policy documents), and
    `permissionsBoundary` (an ARN) where the environment has one.

    Raises:
        helm.HelmError: the values do not fit together, or lack what roles need.
    """
    return sorted((_role(o) for o in objects(values, namespace)), key=lambda role: role["name"])


def objects(values: Mapping[str, Any], namespace: str = "inference") -> list[dict[str, Any]]:
    """The same roles as the objects of ACK that the umbrella renders."""
    rendered = helm.template("inference-plane", values=helm.merged(values, OVERLAY), namespace=namespace)
    return [o for o in rendered.of_kind("Role") if o["apiVersion"].startswith("iam.services.k8s.aws/")]


def _role(rendered: Mapping[str, Any]) -> dict[str, Any]:
    spec, metadata = rendered["spec"], rendered["metadata"]
    (policy,) = spec["inlinePolicies"].values()
    role = {
        "name": spec["name"],
        "namespace": metadata["namespace"],
        "serviceAccount": metadata["name"],
        "trust": json.loads(spec["assumeRolePolicyDocument"]),
        "permissions": json.loads(policy),
    }
    if boundary := spec.get("permissionsBoundary"):
        role["permissionsBoundary"] = boundary
    return role


def pick(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one role of that name, or of the ServiceAccount of that name. Raises UnknownRole."""
    picked = [role for role in found if role["name"] == name] or [r for r in found if r["serviceAccount"] == name]
    if len(picked) != 1:
        names = ", ".join(role["name"] for role in picked or found) or "none"
        raise UnknownRole(f"{len(picked)} roles are called {name!r}. There are: {names}.")
    return picked[0]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/iam", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environment", metavar="ENV", help="a name under values/, or a values file")
    parser.add_argument("role", nargs="?", metavar="ROLE", help="one role; all of them by default")
    document = parser.add_mutually_exclusive_group()
    document.add_argument("--policy", action="store_const", dest="part", const="permissions", help="its policy alone")
    document.add_argument("--trust", action="store_const", dest="part", const="trust", help="its trust policy alone")
    parser.add_argument("--diff", type=pathlib.Path, metavar="FILE", help="compare with an existing document of a ROLE")
    parser.add_argument("--namespace", default="inference", help="namespace of the release (%(default)s)")
    arguments = parser.parse_args(argv)
    if (arguments.part or arguments.diff) and not arguments.role:
        parser.error("--policy, --trust and --diff want a ROLE")
    try:
        answer: Any = roles(_environment.load(arguments.environment), arguments.namespace)
        if arguments.role:
            answer = pick(answer, arguments.role)
        if arguments.diff:
            return _diff(_existing(arguments.diff, arguments.part), answer, arguments.part or "permissions")
    except (_environment.UnknownEnvironment, UnknownRole, iam.Malformed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except helm.HelmError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer[arguments.part] if arguments.part else answer, indent=2))
    return 0


#: What the AWS CLI wraps a document in.
_WRAPPERS = {"permissions": ("PolicyDocument",), "trust": ("Role", "AssumeRolePolicyDocument")}


def _existing(file: pathlib.Path, part: str | None) -> iam.Document:
    """The policy document in a file, by itself or as the AWS CLI prints it.

    Raises:
        iam.Malformed: the file cannot be read, or holds no policy document.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise iam.Malformed(f"{file}: {error}") from error
    for wrapper in _WRAPPERS[part or "permissions"]:
        if isinstance(found, Mapping) and wrapper in found:
            found = found[wrapper]
    return iam.parse(found, str(file))


def _diff(existing: iam.Document, role: Mapping[str, Any], part: str) -> int:
    wide, lacking = iam_diff.compare(existing, iam.parse(role[part]))
    for grant in wide:
        print(f"too wide  {grant}")
    for grant in lacking:
        print(f"missing   {grant}")
    print(f"{role['name']} {part}: {len(wide)} too wide, {len(lacking)} missing")
    return int(bool(wide or lacking))


if __name__ == "__main__":
    sys.exit(main())
