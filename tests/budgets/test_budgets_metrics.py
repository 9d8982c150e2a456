"""What a scrape shows of token budgets, once one was spent and the service was gone."""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest
from budgets_harness import APPS, USED, asker, refused, room, settled, values
from metrics_harness import DATA, exposed
from router_harness import Client

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Issuer

CAPTURE = DATA / "envoy-1.40" / "metrics-budgets.txt"


@pytest.fixture
def bed(tmp_path) -> Iterator[Bed]:
    issuer = Issuer()
    with Bed(tmp_path, values={**values(issuer), "podMonitor": {"enabled": True}}, apps=APPS) as bed:
        client = Client(bed.url)
        team = asker(client, issuer)
        try:
            room(20)
            for number in range(1, 6):
                assert team("care", "drafts").status == 200
                settled(bed, "team_care", USED * number)
            refused(team("care", "drafts"), 200)
            bed.ratelimit.process.kill()
            assert team("care", "drafts").status == 200
        finally:
            client.close()
        yield bed


def test_the_capture_is_what_an_envoy_with_budgets_shows(bed, update_golden):
    (endpoint,) = bed.render.find("PodMonitor", "router")["spec"]["podMetricsEndpoints"]
    query = urllib.parse.urlencode(endpoint["params"], doseq=True)
    with urllib.request.urlopen(f"{bed.router.status_url}{endpoint['path']}?{query}", timeout=10) as reply:
        lines = [line for line in reply.read().decode().splitlines() if "ratelimit" in line]
    text = "\n".join(lines) + "\n"
    if update_golden:
        CAPTURE.write_text(text)
    live, kept = ({tuple(sorted(series.items())) for series in exposed(t)} for t in (text, CAPTURE.read_text()))
    assert live == kept
