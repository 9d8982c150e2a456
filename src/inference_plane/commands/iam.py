"""Prints the IAM roles of an environment as JSON: for Terraform, the AWS CLI, or whoever reviews them."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from inference_plane import helm
from inference_plane.commands import _environment

EPILOG = """\
examples:
  scripts/iam prod > roles.json                           every role, a list
  scripts/iam prod router --policy                        what the router may do
  scripts/iam prod inference-inference-router --trust     who may be it

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
    rendered = helm.template("inference-plane", values=_merged(values, OVERLAY), namespace=namespace)
    return [o for o in rendered.of_kind("Role") if o["apiVersion"].startswith("iam.services.k8s.aws/")]


def _merged(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base.get(key) or {}, over) for key, over in overlay.items() if isinstance(over, dict)}
    return {**base, **overlay, **both}


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
    parser.add_argument("--namespace", default="inference", help="namespace of the release (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.part and not arguments.role:
        parser.error("--policy and --trust want a ROLE")
    try:
        answer: Any = roles(_environment.load(arguments.environment), arguments.namespace)
        if arguments.role:
            answer = pick(answer, arguments.role)
    except (_environment.UnknownEnvironment, UnknownRole) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except helm.HelmError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer[arguments.part] if arguments.part else answer, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
