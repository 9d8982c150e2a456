"""The rules by themselves and checkov with them say the same, of whole renders and of broken ones."""

import pytest

from inference_plane.compliance import mutations, rules, scanner
from inference_plane.environments import environments

ENVIRONMENTS = [path.stem for path in environments()]


@pytest.fixture(scope="module")
def checkov():
    with scanner.Scanner() as running:
        yield running


def answer(checkov, *objects):
    checkov.ask(objects, "inference")
    return checkov.answer()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_checkov_and_the_rules_by_themselves_say_the_same(checkov, name):
    objects = mutations.source(name).judged
    found = answer(checkov, *objects)
    assert found["objects"] == len(objects) and found["rules"] == len(rules.load())
    assert [tuple(v.values()) for v in found["violations"]] == mutations.judge(objects)
    claimed = {rule.id: sum(map(rule.claims, objects)) for rule in rules.load().values()}
    assert found["judged"] == claimed


def test_one_break_of_each_rule_is_found_by_checkov_too(checkov):
    by_rule = {m.rule: m for m in mutations.load() if not m.lives}
    for mutation in by_rule.values():
        objects = mutations.mutate(mutation)
        found = answer(checkov, *objects)
        assert mutation.rule in {v["rule"] for v in found["violations"]}, mutation
        assert sorted(tuple(v.values()) for v in found["violations"]) == sorted(mutations.judge(objects))
