"""The figures of affinity are llama.cpp's own, and add up."""
import json

import pytest

from inference_plane.bench import affinity
from inference_plane.bench.affinity import Answer
from inference_plane.commands import bench


def test_a_row_is_made_of_its_answers():
    answers = [Answer(0, 0, 100, 0.4), Answer(1, 90, 30, 0.1), Answer(1, 60, 20, 0.2)]
    found = affinity.row("session", answers)
    assert (found.requests, found.prompt_tokens, found.cached_share) == (3, 300, 0.5)
    assert found.later_cached_share == 0.75
    assert (found.first_token_ms, found.later_first_token_ms) == pytest.approx((200, 150))


def test_documents_differ_and_stay_the_same():
    assert affinity.document("a") == affinity.document("a") != affinity.document("b")


def test_with_affinity_later_turns_are_cached_for_the_most_part():
    """Real engines. What `none` does depends on chance with so few conversations, so nothing is said of it."""
    session, prefix = affinity.measure(kinds=("session", "prefix"), conversations=2, turns=2)
    for found in (session, prefix):
        assert (found.requests, found.affinity) == (4, "session" if found is session else "prefix")
        assert found.later_cached_share > 0.7, found
        assert found.cached_share < found.later_cached_share


def test_the_command_prints_json(monkeypatch, capsys):
    one = affinity.row("prefix", [Answer(0, 0, 100, 0.4), Answer(1, 90, 30, 0.1)])
    monkeypatch.setattr(affinity, "measure", lambda **_: [one])
    assert bench.main(["affinity", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["affinity"] == "prefix"
