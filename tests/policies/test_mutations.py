"""Each rule finds what it is for, and nothing in what the charts render."""

import pytest

from inference_plane.compliance import mutations, rules
from inference_plane.environments import cases

MUTATIONS = mutations.load()
SOURCES = sorted({case.name for case in cases()} | {m.source for m in MUTATIONS})


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.rule}-{m.source}-{m.name}")
def test_a_break_is_found_by_the_rule_that_it_is_for(mutation):
    found = mutations.judge(mutations.mutate(mutation), only=mutation.rule)
    assert bool(found) != bool(mutation.lives), f"found: {found}; expected to live: {mutation.lives or 'no'}"


@pytest.mark.parametrize("source", SOURCES)
def test_what_the_charts_render_breaks_no_rule(source):
    assert mutations.judge(mutations.source(source).judged) == []


@pytest.mark.parametrize("rule", sorted(rules.load()))
def test_every_rule_has_a_break_that_it_finds(rule):
    assert any(m.rule == rule and not m.lives for m in MUTATIONS)
