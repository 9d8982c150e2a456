"""Every outcome of docs/router.md leaves exactly one line of type `end`, with a status, as the table there says."""

from __future__ import annotations

import concurrent.futures
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from router_harness import CHAT, QUICK, REGION_TARGET, Client, catalogue, chat_body, model, raw_request, wait_until

from inference_plane.checkout import ROOT
from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.processes import free_port

MODELS = {
    "summary": model("summary", "region", REGION_TARGET, replicas=2, firstTokenBudget="300ms", api=["chat"]),
    "intake": model("intake", "cluster", api=["chat"]),
    "letters": model("letters", "cluster", api=["chat"], canary={"source": "s3://models/letters/v8/", "percent": 99}),
    "records": model("records", "cluster", access={"teams": ["care"]}),
}
TEAMS = {"care": {"costCenter": "4710"}, "appeals": {"costCenter": "4711"}}

Line = dict[str, Any]


class World:
    """A bed whose callers have tokens, and what was sent to it."""

    def __init__(self, bed: Bed, client: Client, issuer: Issuer) -> None:
        self.bed, self.client, self.issuer = bed, client, issuer

    def headers(self, team: Any = "care", **more: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.issuer.token(team)}", **more}

    def ask(self, name: str | None, **body: Any) -> tuple[int, str | None, int]:
        """Status, backend and tries, as the client sees them."""
        try:
            reply = self.client.chat(name, headers=self.headers(), **body)
        except aiohttp.ClientError:
            return 0, None, 0
        return reply.status, reply.backend, reply.attempts

    def all_engines(self, name: str, **behaviour: Any) -> None:
        for engine in self.bed.engines[name]:
            engine.behaviour.update(behaviour)

    def empty(self, name: str) -> None:
        self.bed.scale(name, 0)
        self.bed.wait_for_engines({name: 0})


def leaves(world: World, stream: bool) -> None:
    """A client that goes away while the engine works for it."""
    knobs = {"token_delay": 0.05, "tokens": 2000} if stream else {"answer_delay": 30}
    seen = world.bed.engines["intake"][0].requests
    future = world.client.start(CHAT, chat_body("intake", stream=stream, x_test=knobs), world.headers())
    wait_until(lambda: seen, "the request at the engine")
    time.sleep(0.3)  # into the stream
    future.cancel()
    wait_until(lambda: seen[0].finished, "the engine's end of the request")
    seen.clear()


def until_second_try(world: World, name: str, tries: int = 60) -> int:
    """Asks until a request needed two tries; how often it was asked."""
    for number in range(1, tries):
        if world.ask(name) == (200, "fleet", 2):
            return number
    raise AssertionError(f"no request of {tries} needed a second try")


def one_engine_full(world: World) -> tuple[int, Line]:
    world.bed.engines["summary"][0].behaviour.update({"fault": "overloaded"})
    return until_second_try(world, "summary"), {"attempts": 2, "status": 200, "backend": "fleet"}


def canary_sick(world: World) -> tuple[int, Line]:
    world.all_engines("letters-canary", fault="draining")
    return until_second_try(world, "letters"), {"attempts": 2, "status": 200, "model_version": "v7"}


def served(world: World) -> tuple[int, Line]:
    assert world.ask("intake") == (200, "fleet", 1)
    return 1, {"status": 200, "backend": "fleet", "prompt_tokens": 16, "completion_tokens": 8, "attempts": 1}


def full_with_fallback(world: World) -> tuple[int, Line]:
    world.all_engines("summary", fault="overloaded")
    assert world.ask("summary") == (200, "bedrock", 3)
    return 1, {"status": 200, "backend": "bedrock", "attempts": 3}


def full_without(world: World) -> tuple[int, Line]:
    world.all_engines("intake", fault="overloaded")
    assert world.ask("intake")[:2] == (429, "fleet")
    return 1, {"status": 429, "reason": "engine-busy"}


def late_with_fallback(world: World) -> tuple[int, Line]:
    world.all_engines("summary", first_token_delay=2)
    assert world.ask("summary", stream=True) == (200, "bedrock", 3)
    return 1, {"status": 200, "backend": "bedrock", "attempts": 3}


def late_without(world: World) -> tuple[int, Line]:
    world.all_engines("intake", first_token_delay=0.5)
    assert world.ask("intake", stream=True) == (200, "fleet", 1)
    return 1, {"status": 200, "backend": "fleet"}


def empty_with_fallback(world: World) -> tuple[int, Line]:
    world.empty("summary")
    assert world.ask("summary") == (200, "bedrock", 3)
    return 1, {"status": 200, "backend": "bedrock"}


def empty_without(world: World) -> tuple[int, Line]:
    world.empty("intake")
    assert world.ask("intake")[:2] == (503, "none")
    return 1, {"status": 503, "reason": "no-capacity"}


def engine_errs(world: World) -> tuple[int, Line]:
    world.all_engines("intake", fault="draining")
    assert world.ask("intake") == (500, "fleet", 2)
    return 1, {"status": 500, "backend": "fleet", "attempts": 2}


def connection_reset(world: World) -> tuple[int, Line]:
    assert world.ask("intake", x_test={"fault": "reset"})[0] == 503
    return 1, {"status": 503, "details": re.compile("upstream_reset_before_response_started")}


def bedrock_throttles(world: World) -> tuple[int, Line]:
    world.empty("summary")
    world.bed.bedrock.behaviour.update({"fault": "throttled"})
    assert world.ask("summary") == (429, "bedrock", 3)
    return 1, {"status": 429, "backend": "bedrock", "prompt_tokens": None}


def too_long(world: World) -> tuple[int, Line]:
    world.all_engines("intake", answer_delay=20)
    assert world.ask("intake")[0] == 504
    return 1, {"status": 504, "details": "response_timeout"}


def bedrock_silent(world: World) -> tuple[int, Line]:
    world.empty("summary")
    world.bed.bedrock.behaviour.update({"fault": "silent"})
    assert world.ask("summary", stream=True)[0] == 504
    return 1, {"status": 504, "details": "upstream_per_try_timeout"}


def cut(world: World) -> tuple[int, Line]:
    reply = world.client.chat("intake", headers=world.headers(), stream=True, x_test={"fault": "cut"})
    assert reply.status == 200 and b"[DONE]" not in reply.body
    return 1, {"status": 200, "details": re.compile("upstream_reset_after"), "completion_tokens": 2}


def client_leaves(world: World) -> tuple[int, Line]:
    leaves(world, stream=True)
    leaves(world, stream=False)
    return 2, {"status": 0, "flags": re.compile("DownstreamConnectionTermination")}


def no_token(world: World) -> tuple[int, Line]:
    assert world.client.chat("intake").status == 401
    return 1, {"status": 401, "reason": "authentication", "details": re.compile("jwt_authn_access_denied")}


def no_team(world: World) -> tuple[int, Line]:
    assert world.client.chat("intake", headers=world.headers("strangers")).status == 403
    return 1, {"status": 403, "reason": "access", "team": None, "details": re.compile("rbac_access_denied")}


def not_for_the_team(world: World) -> tuple[int, Line]:
    assert world.client.chat("records", headers=world.headers("appeals")).status == 403
    return 1, {"status": 403, "reason": "access", "team": "appeals", "route": "records/access"}


def no_single_model(world: World) -> tuple[int, Line]:
    assert world.ask(None)[0] == 400
    return 1, {"status": 400, "route": "refused"}


def unknown(world: World) -> tuple[int, Line]:
    assert world.client.ask("/intake/v1/embeddings", chat_body("intake"), world.headers()).status == 404
    assert world.ask("nobody")[0] == 404
    return 2, {"status": 404, "route": "unknown-model"}


def too_large(world: World) -> tuple[int, Line]:
    assert world.ask("intake", prompt="x" * 1_200_000)[0] == 413
    return 1, {"status": 413}


def no_proper_http(world: World) -> tuple[int, Line]:
    status, _, _ = raw_request(world.bed.url, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx_y: 1\r\n\r\n")
    assert status == 400
    return 1, {"status": 400, "path": None, "request_id": None}


SITUATIONS: dict[str, Callable[[World], tuple[int, Line]]] = {
    "served": served,
    "one engine full or gone, another not": one_engine_full,
    "the canary full, sick or empty": canary_sick,
    "fleet full, with a fallback": full_with_fallback,
    "fleet full, without": full_without,
    "first token late, with a fallback": late_with_fallback,
    "first token late, without or not streamed": late_without,
    "no engine ready, with a fallback": empty_with_fallback,
    "no engine ready, without": empty_without,
    "engine errs or drains, without a fallback": engine_errs,
    "connection refused or reset, without": connection_reset,
    "Bedrock throttles, errs or refuses": bedrock_throttles,
    "longer than `requestTimeout`": too_long,
    "Bedrock silent for `hangGuard`, stream": bedrock_silent,
    "cut in mid-stream": cut,
    "client leaves": client_leaves,
    "no token, or one that is not good": no_token,
    "the token has no team, or several": no_team,
    "the model is not for the team": not_for_the_team,
    "body names no single model or another than the path, or needs a stored response": no_single_model,
    "unknown model; path it does not serve": unknown,
    "too large": too_large,
    "no proper HTTP, header names with `_`": no_proper_http,
}
#: Those that need a router of their own: below, and in the files of what they are about (tls, policy, budgets).
APART = {
    "an engine does not prove its name",
    "shifted: more than the fleet takes, with a fallback",
    "shifted, and Bedrock throttles or errs",
    "a token budget is used up",
    "budgets cannot be asked, `whenUnavailable: serve`",
    "the same, `refuse`",
    "a limit below is reached",
    "a canary's fleet that Envoy does not know yet",
    "the router leaves while a request runs longer than `drainSeconds`",
    "the issuer's keys were never fetched",
    "nothing can be written to stderr",
    "the same, `replicas.min` 0",
}


def values(issuer: Issuer, **more: Any) -> dict[str, Any]:
    made = catalogue(MODELS, **QUICK)
    made["global"]["teams"] = TEAMS
    return {**made, "auth": issuer.values(), "requestTimeout": "3s", "hangGuard": "1s", "maxBodyMiB": 1, **more}


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def own_bed(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Bed]:
    with Bed(tmp_path_factory.mktemp("outcomes"), values=values(issuer)) as bed:
        yield bed


@pytest.fixture(scope="module")
def own_client(own_bed: Bed) -> Iterator[Client]:
    client = Client(own_bed.url)
    yield client
    client.close()


@pytest.fixture
def world(own_bed: Bed, own_client: Client, issuer: Issuer) -> World:
    own_bed.reset()
    return World(own_bed, own_client, issuer)


def matches(line: Line, wanted: Line) -> bool:
    return all(
        value.search(line[name] or "") is not None if isinstance(value, re.Pattern) else line[name] == value
        for name, value in wanted.items()
    )


def ends(bed: Bed, before: int, count: int) -> list[Line]:
    """So many new lines of ends, and no more after another flush of Envoy's log."""
    wait_until(lambda: len(bed.router.audit()) >= before + count, f"{count} lines")
    time.sleep(0.4)
    found = bed.router.audit()[before:]
    assert len(found) == count, found
    return found


def test_each_row_of_the_table_is_met_here() -> None:
    section = (ROOT / "docs" / "router.md").read_text().split("## Outcomes")[1].split("\n## ")[0]
    rows = [row.split(" | ")[0].removeprefix("| ") for row in section.splitlines() if row.startswith("| ")]
    assert set(rows) - {"situation"} == set(SITUATIONS) | APART


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_request_has_one_end(world: World, situation: str) -> None:
    time.sleep(0.3)  # the lines of what came before are written
    before = len(world.bed.router.audit())
    count, wanted = SITUATIONS[situation](world)
    found = ends(world.bed, before, count)
    assert matches(found[-1], wanted), json.dumps(found[-1])
    identified = [line["request_id"] for line in found if line["request_id"]]
    assert len(set(identified)) == len(identified)
    assert all(isinstance(line["status"], int) and line["type"] == "end" for line in found)
    started = [line["request_id"] for line in world.bed.router.audit("start")]
    assert len(set(started)) == len(started)


def test_a_limit_that_is_reached(tmp_path: Path, issuer: Issuer) -> None:
    with Bed(tmp_path, values=values(issuer, limits={"requests": 1, "pendingRequests": 1})) as bed:
        client = Client(bed.url)
        world = World(bed, client, issuer)
        world.all_engines("intake", answer_delay=0.5)
        futures = [client.start(CHAT, chat_body("intake"), world.headers()) for _ in range(8)]
        concurrent.futures.wait(futures, 30)
        client.close()
        found = ends(bed, 0, 8)
        limited = [line for line in found if "UpstreamOverflow" in line["flags"]]
        assert limited and {line["status"] for line in limited} == {503}
        assert len(bed.engines["intake"][0].requests) == len(found) - len(limited)


def test_a_canary_that_envoy_does_not_know(world: World, tmp_path: Path) -> None:
    with world.bed.another_router(tmp_path / "router") as router:
        path = tmp_path / "router" / "xds" / "clusters.json"
        document = json.loads(path.read_text())
        document["resources"] = [cluster for cluster in document["resources"] if cluster["name"] != "fleet/letters-canary"]
        path.with_name(".new").write_text(json.dumps(document))
        path.with_name(".new").rename(path)
        gone = "cluster.fleet/letters-canary.membership_total"
        wait_until(lambda: gone not in router.admin(f"/stats?filter={gone}"), "Envoy has forgotten the canary")
        client = Client(router.url)
        statuses = [client.chat("letters", headers=world.headers()).status for _ in range(12)]
        client.close()
        wait_until(lambda: len(router.audit()) >= 12, "12 lines")
        world.bed.processes.stop(router.process)
        assert [line["status"] for line in router.audit()] == statuses
        assert {line["details"] for line in router.audit() if line["status"] == 503} == {"cluster_not_found"}


def test_a_router_that_ends_under_a_stream(world: World, tmp_path: Path) -> None:
    with world.bed.another_router(tmp_path / "router") as router:
        router.wait_for_engines({"intake": 1})
        client = Client(router.url)
        body = chat_body("intake", stream=True, x_test={"token_delay": 0.05, "tokens": 2000})
        future = client.start(CHAT, body, world.headers())
        wait_until(lambda: world.bed.engines["intake"][0].requests, "the request at the engine")
        time.sleep(0.3)
        world.bed.processes.stop(router.process)  # SIGTERM, as after `drainSeconds`
        concurrent.futures.wait([future], 30)
        client.close()
        (line,) = router.audit()
        assert (line["status"], line["details"].split("(")[0]) == (200, "downstream_local_disconnect")
        assert line["completion_tokens"] > 0


def test_keys_that_were_never_fetched(tmp_path: Path, issuer: Issuer) -> None:
    auth = issuer.values(uri=f"https://127.0.0.1:{free_port()}/keys")
    with Bed(tmp_path, values={**values(issuer), "auth": auth}) as bed:
        client = Client(bed.url)
        assert World(bed, client, issuer).ask("intake")[0] == 503
        client.close()
        (line,) = ends(bed, 0, 1)
        assert line["status"] == 503 and "Jwks_remote_fetch_is_failed" in line["details"]


def test_a_log_that_takes_no_more(world: World, tmp_path: Path) -> None:
    with world.bed.another_router(tmp_path / "router", Path("/dev/full")) as router:
        client = Client(router.url)
        assert client.chat("intake", headers=world.headers()).status == 503
        client.close()
        wait_until(router.audit, "the line")
        world.bed.processes.stop(router.process)
        (line,) = router.audit()
        assert (line["status"], line["details"]) == (503, "lua_response")
