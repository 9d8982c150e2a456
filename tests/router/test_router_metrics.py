"""The router's metrics: what a scrape by the PodMonitor gets from a real Envoy that has met everything."""

from __future__ import annotations

import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from metrics_harness import ROUTER, exposed
from router_harness import CHAT, QUICK, REGION_TARGET, Client, catalogue, chat_body, model, wait_until

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Authority

MODELS = {
    "summary": model("summary", "region", REGION_TARGET, firstTokenBudget="500ms", api=["chat"]),
    "intake": model("intake", "cluster", api=["chat"]),
}
VALUES = catalogue(
    MODELS,
    **QUICK,
    requestTimeout="2s",
    hangGuard="1s",
    limits={"requests": 2, "pendingRequests": 1},
    podMonitor={"enabled": True},
)


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bed, list[tuple[int, str | None]]]]:
    """A bed on which everything has happened, and what clients saw of it."""
    authority = Authority()
    with Bed(tmp_path_factory.mktemp("bed"), values=VALUES, tls=authority) as bed:
        client = Client(bed.url, ca=authority.pem, name=bed.host("router"))
        try:
            seen = everything_happens(bed, client)
        finally:
            client.close()
        yield bed, seen


@pytest.fixture
def bed(met: tuple[Bed, list[tuple[int, str | None]]]) -> Bed:
    return met[0]


def scrape(bed: Bed) -> str:
    """What Prometheus would read by the rendered PodMonitor."""
    (endpoint,) = bed.render.find("PodMonitor", "router")["spec"]["podMetricsEndpoints"]
    query = urllib.parse.urlencode(endpoint["params"], doseq=True)
    with urllib.request.urlopen(f"{bed.router.status_url}{endpoint['path']}?{query}", timeout=10) as reply:
        return reply.read().decode()


def everything_happens(bed: Bed, client: Client) -> list[tuple[int, str | None]]:
    """Status and backend of one request in each situation; afterwards both fleets are empty and a file was refused."""
    seen = []

    def ask(name: str, headers: dict[str, str] | None = None, **body: Any) -> None:
        reply = client.chat(name, headers=headers or {}, **body)
        seen.append((reply.status, reply.backend))

    def all_engines(name: str, **behaviour: Any) -> None:
        for engine in bed.engines[name]:
            engine.reset()
            engine.behaviour.update(behaviour)

    stay = {"x-residency": "cluster"}
    ask("summary")
    ask("intake")
    all_engines("intake", fault="draining")
    ask("intake")
    all_engines("intake", fault="overloaded")
    ask("intake")
    all_engines("summary", fault="overloaded")
    ask("summary", stay)
    all_engines("summary", first_token_delay=3)
    ask("summary", stream=True)
    bed.bedrock.behaviour.update({"fault": "throttled"})
    ask("summary", stream=True)
    bed.bedrock.behaviour.update({"fault": "none"})
    all_engines("intake", answer_delay=5)
    ask("intake")
    all_engines("intake", answer_delay=1)
    replies = client.all([(CHAT, chat_body("intake")) for _ in range(8)])
    seen.append((max(reply.status for reply in replies), "limit"))
    for name in MODELS:
        bed.scale(name, 0)
    bed.wait_for_engines({name: 0 for name in MODELS})
    ask("summary")
    ask("summary", stay)
    ask("intake")
    break_file(bed, "routes.json", '"virtual_hosts"', '"virtual_hostz"', "rejected")
    break_file(bed, "clusters.json", "config.cluster.v3.Cluster", "config.cluster.v3.Cloister", "failure")
    return seen


#: Where Envoy counts, for each file that it reads again, why it did not take it.
COUNTERS = {"routes.json": "http.plane.rds.plane", "clusters.json": "cluster_manager.cds"}


def refusals(bed: Bed) -> dict[str, int]:
    return bed.router.stats(f"{at}.update_{why}" for at in COUNTERS.values() for why in ("rejected", "failure"))


def break_file(bed: Bed, name: str, old: str, new: str, why: str) -> None:
    """Puts a changed file in place that Envoy refuses, and waits until it has."""
    path = bed.folder / "xds" / name
    text = path.read_text()
    assert old in text
    before = refusals(bed)
    path.with_name(".new").write_text(text.replace(old, new))
    path.with_name(".new").rename(path)
    counter = f"{COUNTERS[name]}.update_{why}"
    wait_until(lambda: refusals(bed)[counter] > before[counter], f"Envoy counts {counter}")


def test_the_capture_is_what_an_envoy_that_met_everything_shows(
    met: tuple[Bed, list[tuple[int, str | None]]], update_golden: bool
) -> None:
    bed, seen = met
    assert seen == [
        (200, "fleet"),
        (200, "fleet"),
        (500, "fleet"),
        (429, "fleet"),
        (429, "fleet"),
        (200, "bedrock"),
        (429, "bedrock"),
        (504, "fleet"),
        (503, "limit"),
        (200, "bedrock"),
        (503, "none"),
        (503, "none"),
    ]
    text = scrape(bed)
    if update_golden:
        ROUTER.write_text(text)
    live, kept = ({tuple(sorted(series.items())) for series in exposed(t)} for t in (text, ROUTER.read_text()))
    assert live == kept, f"new {sorted(live - kept)[:5]}, gone {sorted(kept - live)[:5]}"


def test_the_scrape_is_a_part_of_the_statistics(bed: Bed) -> None:
    """The PodMonitor's filter is meant to keep a large catalogue small."""
    with urllib.request.urlopen(f"{bed.router.status_url}/metrics", timeout=10) as reply:
        everything = exposed(reply.read().decode())
    asked = exposed(scrape(bed))
    of_a_fleet = [[s for s in part if s.get("envoy_cluster_name") == "fleet/intake"] for part in (everything, asked)]
    assert 5 * len(of_a_fleet[1]) < len(of_a_fleet[0]), [len(part) for part in of_a_fleet]


def test_the_time_of_the_last_good_file_is_not_that_of_a_refused_one(bed: Bed) -> None:
    """InferenceRouterConfigRejected compares the two."""

    def good() -> list[str]:
        return [line for line in scrape(bed).splitlines() if line.startswith("envoy_http_rds_update_time")]

    bed.router.reload(bed.render)
    wait_until(lambda: (refusals(bed), time.sleep(0.2), refusals(bed))[0] == refusals(bed), "Envoy has read both files")
    before = good()
    break_file(bed, "routes.json", '"virtual_hosts"', '"virtual_hostz"', "rejected")
    assert good() == before
    bed.router.reload(bed.render)
    wait_until(lambda: good() != before, "the time of a good file")
