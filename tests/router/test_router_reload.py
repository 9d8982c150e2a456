"""A changed catalogue acts without a restart; a broken one does not act at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from router_harness import MODELS, QUICK, Audit, Client, Traffic, catalogue, chat_body, openai_error, wait_until

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.router import xds_files

FRESH = {**MODELS["cached"], "source": "s3://models/fresh/v9/"}


@pytest.fixture
def catalogue_of(bed: Bed) -> Iterator[Bed]:
    """The bed, whose catalogue a test may change: it has its own again afterwards."""
    yield bed
    bed.router.reload(bed.render)
    wait_until(lambda: _routes(bed) == _routes_of(bed.render), "the catalogue as it was")


def _routes(bed: Bed) -> str:
    return (bed.router.folder / "xds" / "routes.json").read_text()


def _routes_of(render: object) -> str:
    return xds_files(render)["routes.json"]  # type: ignore[attr-defined]


def _replace(bed: Bed, file: str, text: str) -> None:
    target = bed.router.folder / "xds" / file
    Path(f"{target}.new").write_text(text)
    Path(f"{target}.new").rename(target)


def test_a_model_is_added_and_one_removed_under_traffic(catalogue_of: Bed, client: Client, audit: Audit) -> None:
    bed = catalogue_of
    bed.dns.set("fresh.inference.svc.cluster.local", [bed.engines["cached"][0].host])
    models = {**{name: entry for name, entry in MODELS.items() if name != "triage"}, "fresh": FRESH}
    assert client.chat("fresh").status == 404 and client.chat("triage").status == 200
    under_way = client.start(
        "/v1/chat/completions", chat_body("triage", stream=True, x_test={"token_delay": 0.1, "tokens": 25})
    )
    wait_until(lambda: len(bed.engines["triage"][0].requests) == 2, "the stream at its engine")
    pid = bed.router.process.pid
    with Traffic(client, [chat_body("summary"), chat_body("summary", stream=True), chat_body("intake")]) as traffic:
        bed.router.reload(bed.rendered(catalogue(models, **QUICK)))
        reply = wait_until(lambda: (reply := client.chat("fresh")).status == 200 and reply, "the new model")
        wait_until(lambda: client.chat("triage").status == 404, "the removed model's end")
        listed = {entry["id"] for entry in client.ask("/v1/models").json["data"]}
        broken = under_way.result(30)
    assert (reply.backend, reply.version) == ("fleet", "v9")
    assert "fresh" in listed and "triage" not in listed
    assert len(traffic.replies) > 20 and not traffic.lost
    assert (broken.status, broken.error, broken.events[-1]) == (200, "", "[DONE]"), "a stream under way was cut"
    assert bed.router.process.running and bed.router.process.pid == pid
    assert openai_error(client.chat("triage"))["type"] == "not_found_error"


def test_a_changed_fallback_acts(catalogue_of: Bed, client: Client) -> None:
    bed = catalogue_of
    bed.scale("summary", 0)
    bed.wait_for_engines({"summary": 0})
    assert client.chat("summary").status == 200
    entry = {key: value for key, value in MODELS["summary"].items() if key not in ("fallback", "firstTokenBudget")}
    bed.router.reload(bed.rendered(catalogue({**MODELS, "summary": {**entry, "residency": "cluster"}}, **QUICK)))
    wait_until(lambda: client.chat("summary").status == 503, "the end of the fallback")
    calls = len(bed.bedrock.calls)
    assert [client.chat("summary", stream=stream).status for stream in (True, False)] == [503, 503]
    assert len(bed.bedrock.calls) == calls


#: Envoy counts a file that it cannot read as a failure, and one that makes no sense as rejected.
BROKEN = {
    "half a file": ("routes", "update_failure", lambda text: text[: len(text) // 2]),
    "no JSON": ("routes", "update_failure", lambda text: "{]"),
    "an absent field": ("routes", "update_rejected", lambda text: text.replace('"domains"', '"domain"', 1)),
    # Left out with a warning, it would turn the rule of who may leave the cluster around.
    "a misspelt matcher": (
        "routes",
        "update_rejected",
        lambda text: text.replace('"invert_match"', '"invert_matches"', 1),
    ),
    "a bad pattern": ("routes", "update_rejected", lambda text: text.replace('"regex":"^(', '"regex":"^((', 1)),
    "a value that nobody knows": (
        "clusters",
        "update_rejected",
        lambda text: text.replace('"LEAST_REQUEST"', '"LEAST_REQUESTS"', 1),
    ),
    "half of the clusters": ("clusters", "update_failure", lambda text: text[: len(text) // 2]),
    "a bad cluster": (
        "clusters",
        "update_rejected",
        lambda text: text.replace('"connect_timeout":"1s"', '"connect_timeout":"-1s"', 1),
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_rejected_and_the_last_good_one_stays(catalogue_of: Bed, client: Client, kind: str) -> None:
    bed = catalogue_of
    file, counter, change = BROKEN[kind]
    update = {"routes": "http.plane.rds.plane", "clusters": "cluster_manager.cds"}[file]
    names = [f"{update}.{name}" for name in ("update_rejected", "update_failure", "update_success")]
    good = xds_files(bed.render)[f"{file}.json"]
    assert change(good) != good
    before = bed.router.stats(names)
    with Traffic(client, [chat_body("summary"), chat_body("intake")]) as traffic:
        _replace(bed, f"{file}.json", change(good))
        after = wait_until(
            lambda: (stats := bed.router.stats(names)) != before and stats, "Envoy's word on the broken file"
        )
        assert [client.chat(model).status for model in ("summary", "letters", "triage")] == [200] * 3
    assert after == {**before, f"{update}.{counter}": before[f"{update}.{counter}"] + 1}
    assert len(traffic.replies) > 3 and not traffic.lost
    _replace(bed, f"{file}.json", good)
    wait_until(
        lambda: bed.router.stats(names)[f"{update}.update_success"] > after[f"{update}.update_success"],
        "Envoy takes the next good one",
    )
