"""What a profile and its seed make: the curve, Poisson arrivals, lengths, conversations. All exact, nothing is sent."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
from load_cases import SOUND

from inference_plane.load import curve, measures, plan, profiles

CURVE = (
    profiles.Phase("flat", 10, 2, 2),
    profiles.Phase("up", 20, 2, 6),
    profiles.Phase("off", 5, 0, 0),
    profiles.Phase("end", 10, 1, 1),
)


def profile(**more: Any) -> profiles.Profile:
    return profiles.parse(SOUND | more, "test", "test.yaml")


def chat(**more: Any) -> dict[str, Any]:
    return {"requests": {"chat": {"model": "m", "prompt": 10, "output": 5, **more}}}


def test_the_curve_is_what_the_phases_say() -> None:
    assert [plan.rate_at(CURVE, at) for at in (0, 9.9, 10, 20, 29.999, 32, 36, 45)] == pytest.approx(
        [2, 2, 2, 4, 6, 0, 1, 0], abs=1e-3
    )
    assert plan.expected(CURVE) == 20 + 80 + 0 + 10
    assert [plan.expected(CURVE, at) for at in (0, 5, 20, 30, 33, 40)] == [0, 10, 20 + 30, 100, 100, 105]


@pytest.mark.parametrize("at", [0.25, 3, 9.99, 10.5, 17, 29.5, 35.5, 44])
def test_moments_are_the_inverse_of_the_integral(at: float) -> None:
    assert plan.moment(CURVE, plan.expected(CURVE, at)) == pytest.approx(at)


def test_nothing_comes_where_the_rate_is_zero_nor_after_the_end() -> None:
    found = list(plan.arrivals(CURVE, "poisson", random.Random(7)))
    assert found == sorted(found) and not [at for at in found if 30 <= at < 35 or at >= 45]
    assert plan.moment(CURVE, 110) is None


def test_even_pacing_sends_exactly_the_curve() -> None:
    found = list(plan.arrivals((profiles.Phase("flat", 10, 2, 2),), "even", random.Random(1)))
    assert found == pytest.approx([0.5 * number for number in range(1, 20)])


def test_arrivals_are_a_poisson_process() -> None:
    """Counts of many seeds have the curve's integral as their mean and as their variance; and, mapped through it, the
    gaps are exponential (Kolmogorov and Smirnov's distance, whose 0.1 % bound is 1.95 / sqrt(n))."""
    counts, gaps = [], []
    for seed in range(400):
        found = [plan.expected(CURVE, at) for at in plan.arrivals(CURVE, "poisson", random.Random(seed))]
        counts.append(len(found))
        gaps += [later - earlier for earlier, later in zip([0.0, *found], found, strict=False)]
    assert statistics.mean(counts) == pytest.approx(110, abs=4 * math.sqrt(110 / 400))
    assert statistics.variance(counts) == pytest.approx(110, rel=0.25)
    gaps.sort()
    distance = max(abs((rank + 1) / len(gaps) - (1 - math.exp(-gap))) for rank, gap in enumerate(gaps))
    # The last gap before the end is missing in each run, and long gaps rather than short ones are.
    assert distance < 1.95 / math.sqrt(len(gaps)) + 1 / 110


def test_the_same_seed_plans_the_same_and_another_one_something_else() -> None:
    one, again, other = (plan.planned(profile(seed=seed)) for seed in (1, 1, 2))
    assert one == again and one != other
    assert plan.prompt(one[0], 1) == plan.prompt(again[0], 1) != plan.prompt(one[1], 1)


def test_what_changes_of_a_request_leaves_the_arrivals_alone() -> None:
    one = plan.planned(profile())
    other = plan.planned(profile(**chat(prompt=500, cancel={"share": 1, "after": "1s"})))
    assert [each.due for each in one] == [each.due for each in other]
    assert all(each.cancel_after == 1 for each in other) and not any(each.cancel_after for each in one)


def test_lengths_have_the_median_and_the_percentile_that_are_asked_for() -> None:
    spread, chance = profiles.Spread(200, 800, 1, 10**6), random.Random(1)
    found = [plan.draw(spread, chance) for _ in range(20000)]
    assert measures.percentile(found, 50) == pytest.approx(200, rel=0.03)
    assert measures.percentile(found, 95) == pytest.approx(800, rel=0.05)


def test_cut_off_lengths_stay_within_their_ends_and_do_not_heap_up_there() -> None:
    spread, chance = profiles.Spread(200, 800, 100, 300), random.Random(1)
    found = [plan.draw(spread, chance) for _ in range(5000)]
    assert 100 <= min(found) and max(found) <= 300
    assert sum(value > 299 for value in found) < 100 and sum(value < 101 for value in found) < 100


def test_a_length_without_spread_is_that_length() -> None:
    assert plan.draw(profiles.Spread(7, 7, 7, 7), random.Random(1)) == 7


def test_shares_are_kept() -> None:
    found = plan.planned(
        profile(
            curve=[{"phase": "long", "for": "1000s", "rate": 10}],
            requests={
                "a": {
                    "model": "m",
                    "weight": 3,
                    "prompt": 1,
                    "output": 1,
                    "stream": 0.25,
                    "cancel": {"share": 0.1, "after": "1s"},
                },
                "b": {
                    "model": "n",
                    "prompt": 1,
                    "output": 1,
                    "tenants": {"x": 4, "y": 1},
                    "residency": {"own": 1, "cluster": 1},
                },
            },
        )
    )
    a, b = ([each for each in found if each.kind == kind] for kind in "ab")
    assert len(a) / len(found) == pytest.approx(0.75, abs=0.02)
    assert sum(each.stream for each in a) / len(a) == pytest.approx(0.25, abs=0.02)
    assert sum(each.cancel_after is not None for each in a) / len(a) == pytest.approx(0.1, abs=0.02)
    assert sum(each.tenant == "x" for each in b) / len(b) == pytest.approx(0.8, abs=0.03)
    # What may not leave is restricted, whether by its kind or by its header.
    assert all(each.restricted == (each.residency == "cluster") for each in b)
    assert sum(each.restricted for each in b) / len(b) == pytest.approx(0.5, abs=0.04)


def test_conversations_take_turns_of_the_same_curve() -> None:
    turns = {"most": 4, "think": "5s"}
    found = plan.planned(
        profile(curve=[{"phase": "long", "for": "300s", "rate": 2}], **chat(turns=turns, tenants={"x": 1, "y": 1}))
    )
    by: dict[int, list[plan.Planned]] = {}
    for each in found:
        by.setdefault(each.conversation, []).append(each)
    several = [turns for turns in by.values() if len(turns) > 1]
    assert several and max(len(turns) for turns in by.values()) <= 4
    for turns in by.values():
        assert [each.turn for each in turns] == list(range(1, len(turns) + 1))
        assert len({each.tenant for each in turns}) == 1
        assert all(later.due - earlier.due >= 5 for earlier, later in zip(turns, turns[1:], strict=False))
    assert [each.due for each in found] == [
        each.due for each in plan.planned(profile(curve=[{"phase": "long", "for": "300s", "rate": 2}]))
    ]


def test_prompts_begin_with_what_they_share() -> None:
    found = plan.planned(profile(**chat(prompt=100, sharedPrefix={"share": 0.6, "texts": 2})))
    texts = {each.number: plan.prompt(each, 1).split() for each in found}
    assert all(len(words) == 100 for words in texts.values())
    beginnings = {text: {tuple(texts[each.number][:60]) for each in found if each.text == text} for text in (0, 1)}
    assert all(len(each) == 1 for each in beginnings.values()) and beginnings[0] != beginnings[1]
    assert len({tuple(words[60:]) for words in texts.values()}) == len(found)


def test_a_restricted_prompt_says_so_wherever_it_arrives() -> None:
    (restricted, *_), (open_, *_) = (plan.planned(profile(**chat(restricted=value))) for value in (True, False))
    assert plan.RESTRICTED in plan.prompt(restricted, 1) and plan.RESTRICTED not in plan.prompt(open_, 1)


def test_the_dry_run_prints_the_curve_exactly() -> None:
    shown = curve.text(
        profile(
            curve=[{"phase": "flat", "for": "20s", "rate": 1}, {"phase": "up", "for": "20s", "rate": 1, "to": 5}],
            events=[{"at": "30s", "mark": "rollout"}],
            pacing="even",
        )
    ).splitlines()
    assert shown[0] == "A test." and len(shown) == 3 + 40 + 5
    assert shown[3] == f"     0.0s        1.00       1.0        0  {'#' * 10:50} flat"
    # Even arrivals are due when the integral is whole: the first at 1 s, and in this row where it passes 45.
    assert shown[3 + 30] == f"    30.0s        3.10       3.1        4  {'#' * 31:50} <rollout>"
    assert shown[3 + 39] == f"    39.0s        4.90       4.9        4  {'#' * 49}"
    assert "79 requests in 40 s (80.0 expected, even, seed 1), by at most 5 users at once" in shown
    assert shown[-1] == "at 30 s: rollout"
