"""`scripts/check` by checkov itself: what it prints, and that it never takes silence for a green answer."""

import copy
import datetime
import json
import pathlib
import subprocess

import pytest
import yaml

from inference_plane.commands import check
from inference_plane.compliance import mutations, report, rules, scanner, sources, suppressions

#: One object that nothing is wrong with.
SERVICE_ACCOUNT = {
    "apiVersion": "v1",
    "kind": "ServiceAccount",
    "metadata": {"name": "a", "namespace": "inference"},
    "automountServiceAccountToken": False,
}


@pytest.fixture(scope="module")
def checkov():
    with scanner.Scanner() as running:
        yield running


def answer(checkov, *objects):
    checkov.ask(objects, "inference")
    return checkov.answer()


def account(**fields):
    return copy.deepcopy(SERVICE_ACCOUNT) | fields


@pytest.mark.parametrize(
    ("name", "obj"),
    {
        "a name that is a number": account(secrets=[{"name": 80}]),
        "a name with a placeholder": account(secrets=[{"name": "#{a}"}]),
        "a comment that skips a rule": account(
            metadata={"name": "a", "annotations": {"checkov.io/skip1": "PLANE_LP_10=because"}}
        ),
        "a pod without a spec": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}},
    }.items(),
)
def test_what_checkov_passes_over_or_trips_over_is_no_green_answer(checkov, name, obj):
    with pytest.raises(scanner.NotJudged):
        answer(checkov, account(metadata={"name": "b"}), obj)
    assert answer(checkov, account())["violations"] == [], "and the next render is judged as if nothing had been"


def test_a_text_that_looks_like_a_template_hides_no_object(checkov):
    """Checkov passes over a YAML file that has one; it is given JSON."""
    annotations = {"note": "{{ .Values.a }}", "other": "}{"}
    found = answer(
        checkov, account(metadata={"name": "a", "annotations": annotations}, automountServiceAccountToken=True)
    )
    assert [v["rule"] for v in found["violations"]] == ["PLANE_LP_10"]


def test_a_role_of_ack_is_not_taken_for_one_of_kubernetes(checkov):
    role = next(
        o
        for o in mutations.source("inference-plane/ci/regulated").judged
        if rules.kind_of(o) == "iam.services.k8s.aws/Role"
    )
    found = answer(checkov, role)
    assert found["judged"]["PLANE_LP_01"] == 0 and found["judged"]["PLANE_LP_42"] == 1


def load(policies: pathlib.Path) -> str:
    """What checkov's own environment says when it loads the rules of a folder."""
    code = f"import pathlib; from inference_plane.compliance import scan; scan.load(pathlib.Path({str(policies)!r}))"
    done = subprocess.run([scanner.set_up(), "-c", code], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.splitlines()[-1]


RULE = """
from inference_plane.compliance.rules import rule

@rule("{id}", "a", severity="LOW", kinds={{"core/Pod"}}, why="a", remedy="a", source="a", example="a")
def judge(obj, index):
    return ()
"""


@pytest.fixture
def packs(tmp_path):
    for pack, name in (("residency", "PLANE_RES_01"), ("least_privilege", "PLANE_LP_01")):
        (tmp_path / pack).mkdir()
        (tmp_path / pack / "__init__.py").write_text("")
        (tmp_path / pack / "some.py").write_text(RULE.format(id=name))
    return tmp_path


def test_rules_that_are_whole_load(packs):
    assert load(packs) == ""


def test_a_folder_that_checkov_would_pass_over_is_an_error(packs):
    (packs / "residency" / "__init__.py").unlink()
    assert "__init__.py is missing" in load(packs)


def test_a_rule_that_does_not_import_is_an_error(packs):
    (packs / "residency" / "more.py").write_text("import nothing_of_this_name\n" + RULE.format(id="PLANE_RES_02"))
    assert "differ by PLANE_RES_02" in load(packs)


def test_an_empty_pack_is_an_error(packs):
    (packs / "residency" / "some.py").unlink()
    assert "has no rule" in load(packs)


def test_two_rules_of_one_id_are_an_error(packs):
    (packs / "residency" / "more.py").write_text(RULE.format(id="PLANE_LP_01"))
    assert "two rules on disk are called PLANE_LP_01" in load(packs)


def test_every_kind_is_claimed_or_said_to_need_no_judging_not_both():
    claimed = frozenset().union(*(rule.kinds for rule in rules.load().values()))
    assert not claimed & set(rules.UNJUDGED)
    with pytest.raises(rules.RuleError, match="no rule knows example.com/Thing"):
        rules.refuse_unknown([{"apiVersion": "example.com/v1", "kind": "Thing"}])


# The command.


def run(capsys, *arguments):
    status = check.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def rendered(folder, objects):
    (folder / "all.yaml").write_text(yaml.safe_dump_all(objects))
    return folder


EXTERNAL = ("--external", "ConfigMap inference/payer-authorities")


def test_an_environment_is_green_and_says_what_was_looked_at(capsys):
    status, out, err = run(capsys, "prod", "local", "--format", "json")
    assert (status, [v["violations"] for v in json.loads(out)]) == (0, [[], []]), out
    prod, local = json.loads(out)
    assert prod["objects"] > 90 and prod["builtInRules"] > 90 and not prod["suppressed"]
    assert prod["judged"]["PLANE_LP_42"] and not prod["notes"]
    assert local["notes"] == ["no IAM role is judged: global.aws.accountId is not set, so there are none"]


def test_a_folder_is_judged_as_the_environment_that_it_came_of(capsys, tmp_path):
    objects = copy.deepcopy(mutations.source("prod").objects)
    objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": "inference"}})
    excuses = tmp_path.with_suffix(".suppressions")
    entry = {"rule": "PLANE_LP_16", "object": "v1 Secret inference/*", "reason": "a", "owner": "b"}
    for expires, wanted in (("2000-01-01", 1), ("2999-12-31", 0)):
        excuses.write_text(yaml.safe_dump([entry | {"expires": datetime.date.fromisoformat(expires)}]))
        sarif = tmp_path.with_suffix(".sarif")
        arguments = (rendered(tmp_path, objects), *EXTERNAL, "--suppressions", excuses, "--sarif", sarif)
        status, out, err = run(capsys, *arguments)
        assert status == wanted, out + err
        (result,) = [r for r in json.loads(sarif.read_text())["runs"][0]["results"] if r["ruleId"] == "PLANE_LP_16"]
        assert bool(result.get("suppressions")) == (wanted == 0)
        if wanted:
            assert (
                "violates  PLANE_LP_16 No Secret in the manifests [CRITICAL]" in out and "expired on 2000-01-01" in out
            )
            assert "remedy    Let cert-manager" in out
        else:
            assert "suppressed until 2999-12-31 by b: PLANE_LP_16" in out


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "no object in any"),
        ({"a.yaml": "a: [b"}, "cannot be read to its end"),
        ({"a.yaml": "apiVersion: v1\nkind: Pod\nkind: Secret\nmetadata: {name: a}"}, "two keys kind"),
        ({"a.json": '{"apiVersion": "v1", "kind": "A", "kind": "B"}'}, "two keys of one name"),
        ({"a.yaml": "just: a map"}, "neither a Kubernetes object nor an IAM policy document"),
        ({"a.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {}"}, "without metadata.name"),
        ({"a.yaml": "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}"}, "no rule knows example.com/Thing"),
    ],
)
def test_what_cannot_be_judged_exits_2(capsys, tmp_path, files, why):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    status, out, err = run(capsys, tmp_path)
    assert (status, out) == (2, "") and why in err


def test_every_way_to_put_objects_into_files_is_read(tmp_path):
    one, two = account(metadata={"name": "a"}), account(metadata={"name": "b"})
    (tmp_path / "deep").mkdir()
    (tmp_path / "list.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [one, two]}))
    (tmp_path / "deep" / "many.yml").write_text(yaml.safe_dump_all([one, None, two]))
    (tmp_path / "anchors.yaml").write_text(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: &m {name: c}\nautomountServiceAccountToken: false\n---\n"
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  <<: {name: d}\n  labels: &l {x: y}\n  annotations: *l\n"
    )
    (tmp_path / "policy.json").write_text(json.dumps({"Version": "2012-10-17", "Statement": []}))
    (source,) = sources.folder(tmp_path)
    names = sorted(obj["metadata"]["name"] for obj in source.objects)
    assert names == ["a", "a", "b", "b", "c", "d", "policy.json"]
    assert {rules.kind_of(o) for o in source.objects} == {"core/ServiceAccount", "iam.inference-plane/PolicyDocument"}


# Suppressions.


def test_a_suppression_says_all_that_it_must(tmp_path):
    whole = {"rule": "A", "object": "b", "reason": "c", "owner": "d", "expires": datetime.date(2999, 1, 1)}
    file = tmp_path / "suppressions.yaml"
    for entries, why in (
        ([whole | {"expires": "soon"}], "must be a date"),
        ([whole | {"owner": " "}], "owner must be said"),
        ([{k: v for k, v in whole.items() if k != "reason"}], "must have exactly"),
        ([whole | {"more": 1}], "must have exactly"),
        ({}, "not a list"),
    ):
        file.write_text(yaml.safe_dump(entries))
        with pytest.raises(suppressions.SuppressionError, match=why):
            suppressions.read(file)


def test_a_suppression_holds_to_its_last_day_and_not_for_nothing():
    violation = report.Violation("policies", "A", "v1 Pod inference/a", "", "m")
    today = datetime.date(2026, 11, 27)

    def left(**fields):
        entry = {"rule": "A", "object": "v1 Pod inference/*", "reason": "c", "owner": "d", "expires": today} | fields
        return [v.rule for v in suppressions.apply([violation], [suppressions.Suppression(**entry)], today)[0]]

    assert left() == []
    assert left(expires=today - datetime.timedelta(days=1)) == ["A", "suppression"]
    assert left(object="v1 Pod inference/b") == ["A", "suppression"]
    assert left(rule="B") == ["A", "suppression"]
