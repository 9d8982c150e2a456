"""IAM documents as they are read, compared and printed."""

import copy
import json

import pytest
import yaml

from inference_plane.commands import _environment, iam
from inference_plane.compliance import iam as documents
from inference_plane.compliance import iam_diff


def document(*statements, version="2012-10-17"):
    return {"Version": version, "Statement": list(statements)}


READ = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::b/m/v1/*"]}


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("{", "is not JSON"),
        ('{"Version": "2012-10-17", "Version": "2008-10-17", "Statement": []}', "twice"),
        ({"Statement": []}, "Version is None"),
        (document({**READ, "resource": "*"}), "unknown to IAM: resource"),
        (document({**READ, "Effect": "allow"}), "neither Allow nor Deny"),
        (document({"Effect": "Allow", "Resource": "*"}), "has no Action"),
        (document({**READ, "Condition": {"StringLike": "a"}}), "wants a map of keys"),
        (document({**READ, "Action": [{"a": 1}]}), "wants a text"),
        (document("all"), "no map"),
    ],
)
def test_what_iam_would_refuse_is_refused(broken, why):
    with pytest.raises(documents.Malformed, match=why):
        documents.parse(broken)


def test_scalars_lists_and_letters_are_one():
    one = documents.parse(document({**READ, "Action": "S3:getobject", "Resource": READ["Resource"][0]}))
    assert one == documents.parse(document(READ))
    (statement,) = one.statements
    assert statement.does("s3:GetObject") and statement.does("s3:*") and not statement.does("s3:PutObject")


def differ(existing, wanted):
    wide, lacking = iam_diff.compare(documents.parse(existing), documents.parse(wanted))
    return [grant.action for grant in wide], [grant.action for grant in lacking]


HELD = {**READ, "Condition": {"StringEquals": {"aws:SourceVpce": "vpce-1"}}}
DENY = {"Effect": "Deny", "Action": "bedrock:CallWithBearerToken", "Resource": "*"}


@pytest.mark.parametrize(
    ("existing", "wanted", "found"),
    {
        "the same": (document(READ), document(READ), ([], [])),
        "the same in another spelling": (document({**READ, "Action": "s3:getobject"}), document(READ), ([], [])),
        "a wider action": (document({**READ, "Action": "s3:*"}), document(READ), (["s3:*"], [])),
        "a wider resource": (document({**READ, "Resource": "*"}), document(READ), (["s3:getobject"], [])),
        "a narrower resource": (
            document({**READ, "Resource": "arn:aws:s3:::b/m/v1/a"}), document(READ), ([], ["s3:getobject"]),
        ),
        "a condition dropped": (document(READ), document(HELD), (["s3:getobject"], [])),
        "a condition added": (document(HELD), document(READ), ([], ["s3:getobject"])),
        "another action": (
            document({**READ, "Action": "s3:PutObject"}), document(READ), (["s3:putobject"], ["s3:getobject"]),
        ),
        "all but an action": (
            document({"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}), document(READ), (["iam:*"], ["s3:getobject"]),
        ),
        "a deny dropped": (document(READ), document(READ, DENY), ([], ["bedrock:callwithbearertoken"])),
        "a deny of what is wanted": (
            document(READ, {"Effect": "Deny", "Action": "s3:*", "Resource": "*"}), document(READ), ([], ["s3:getobject"]),
        ),
    }.values(),
)  # fmt: skip
def test_what_is_too_wide_and_what_is_missing(existing, wanted, found):
    assert differ(existing, wanted) == found


@pytest.mark.parametrize("wrapped", [lambda d: d, lambda d: {"RoleName": "r", "PolicyDocument": d}])
def test_the_command_compares_what_the_cli_of_aws_prints(capsys, tmp_path, wrapped):
    policy = iam.pick(iam.roles(_environment.load("prod")), "router")["permissions"]
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(wrapped(policy)))
    assert iam.main(["prod", "router", "--diff", str(file)]) == 0
    wider = copy.deepcopy(policy)
    wider["Statement"][1]["Resource"] = "*"
    file.write_text(json.dumps(wrapped(wider)))
    assert iam.main(["prod", "router", "--diff", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "too wide  Allow bedrock:invokemodel on *" in printed and "2 too wide" in printed
    file.write_text("[]")
    assert iam.main(["prod", "router", "--diff", str(file)]) == 2


def test_the_roles_of_every_environment_are_those_that_are_judged():
    from inference_plane.compliance import sources

    values = _environment.load("prod")
    judged = sources.environment("prod", values).roles
    printed = {role["name"]: role["permissions"] for role in iam.roles(values)}
    policies = {o["spec"]["name"]: json.loads(o["spec"]["inlinePolicies"]["inference-plane"]) for o in judged}
    assert policies == printed and yaml.safe_dump(printed)
