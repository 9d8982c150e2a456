"""What a scrape shows of token budgets, once one was spent and the service was gone."""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest
from budgets_harness import USED, asker, refused, room, settled, values
from metrics_harness import BUDGETS, exposed
from router_harness import Client, counting_engine, model

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Issuer

#: Those of the other capture.
MODELS = {name: model(name, "cluster") for name in ("summary", "intake")}


@pytest.fixture
def bed(tmp_path) -> Iterator[Bed]:
    issuer = Issuer()
    made = {**values(issuer), "podMonitor": {"enabled": True}}
    made["global"] |= {"models": MODELS, "teams": {"care": {"tokensPerMinute": 2 * USED}}}
    with Bed(tmp_path, values=made, apps=dict.fromkeys(MODELS, counting_engine)) as bed:
        client = Client(bed.url)
        team = asker(client, issuer)
        try:
            room(20)
            for name in MODELS:
                assert team("care", name).status == 200
            settled(bed, "team_care", 2 * USED)
            # A budget that is used to the last token lets one more in.
            assert team("care", "intake").status == 200
            settled(bed, "team_care", 3 * USED)
            for name in MODELS:
                refused(team("care", name), 2 * USED)
            bed.ratelimit.process.kill()
            for name in MODELS:
                assert team("care", name).status == 200
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
        BUDGETS.write_text(text)
    live, kept = ({tuple(sorted(series.items())) for series in exposed(t)} for t in (text, BUDGETS.read_text()))
    assert live == kept
