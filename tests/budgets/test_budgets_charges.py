"""Each team is charged its own tokens and nobody else's, over a mixed run; and a router that does otherwise is noticed."""

from __future__ import annotations

from inference_plane import accounting
from inference_plane.commands import campaign


def test_each_team_is_charged_its_own_tokens():
    found = accounting.run(250, seed=1)
    assert found.differences == []
    assert set(found.charges) == set(accounting.TEAMS)
    for charge in found.charges.values():
        assert (charge.foreign, charge.missing) == (0, 0)
        # An estimate is a lower bound of a charge, and few clients leave while the budget is asked about.
        assert 1000 < charge.engines <= charge.charged and charge.open < charge.owed / 5, charge


def test_a_router_that_charges_one_team_for_all_is_noticed(capsys):
    assert campaign.main(["accounting", "--requests", "120", "--break", "one-team"]) == 1
    out = capsys.readouterr().out
    assert "DIFFERENCE tokens charged to care that are not its own" in out
    assert "DIFFERENCE tokens of appeals that it was not charged" in out
    (line,) = [line for line in out.splitlines() if line.startswith("tokens charged to another team")]
    assert int(line.rpartition(" ")[2].replace(",", "")) > 500
