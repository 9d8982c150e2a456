"""Token budgets that cannot be asked for, and budgets that are only counted: real processes, killed and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from budgets_harness import APPS, USED, Ask, asker, estimate, room, settled, values
from router_harness import Audit, Client, Reply, chat_body, openai_error, wait_until

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Issuer


@dataclass
class Plane:
    bed: Bed
    team: Ask
    audit: Audit

    def outcome(self, reply: Reply) -> str | None:
        return self.audit.of(reply)["budget"]


@contextlib.contextmanager
def plane(folder: Path, **budgets: object) -> Iterator[Plane]:
    issuer = Issuer()
    with Bed(folder, values=values(issuer, **budgets), apps=APPS) as bed:
        client = Client(bed.url)
        try:
            yield Plane(bed, asker(client, issuer), Audit(bed))
        finally:
            client.close()


@pytest.fixture(scope="module", params=["serve", "refuse"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def fragile(mode: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with plane(tmp_path_factory.mktemp(mode), whenUnavailable=mode, timeout="300ms") as made:
        yield made


def kill_service(bed: Bed) -> Callable[[], object]:
    bed.ratelimit.process.kill()
    return bed.ratelimit.start


def hang_service(bed: Bed) -> Callable[[], object]:
    os.kill(bed.ratelimit.process.pid, signal.SIGSTOP)
    return lambda: os.kill(bed.ratelimit.process.pid, signal.SIGCONT)


def kill_store(bed: Bed) -> Callable[[], object]:
    bed.store.process.kill()
    return bed.store.start


def hang_store(bed: Bed) -> Callable[[], object]:
    os.kill(bed.store.process.pid, signal.SIGSTOP)
    return lambda: os.kill(bed.store.process.pid, signal.SIGCONT)


FAULTS = [kill_service, hang_service, kill_store, hang_store]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_while_budgets_cannot_be_asked_the_choice_holds_and_then_they_count_again(fragile, mode, fault):
    bed, team = fragile.bed, fragile.team
    room(30)
    counts = "budgets count"
    wait_until(lambda: fragile.outcome(team("appeals", "drafts")) == "within", counts)
    undo = fault(bed)
    try:
        for _ in range(3):
            reply = team("appeals", "drafts")
            assert fragile.outcome(reply) == "unavailable"
            if mode == "serve":
                assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
            else:
                assert (reply.status, reply.headers["x-plane-reason"]) == (503, "budget-unavailable"), str(reply)
                assert openai_error(reply)["type"] == "server_error" and reply.headers["retry-after"] == "15"
                assert reply.attempts == 0 and not bed.bedrock.calls
        # Who has no budget is never asked about, so nobody notices.
        assert (team("search", "drafts").status, team("claims", "drafts").status) == (200, 200)
    finally:
        undo()
    wait_until(lambda: fragile.outcome(team("appeals", "drafts")) == "within", f"{counts} again")
    names = [f"cluster.fleet/drafts.ratelimit.{name}" for name in ("error", "failure_mode_allowed")]
    errors, allowed = map(bed.router.stats(names).get, names)
    assert errors >= 3 and allowed == (errors if mode == "serve" else 0)


def test_a_dry_run_counts_and_says_what_it_would_refuse(tmp_path):
    with plane(tmp_path, mode="dryRun") as made:
        room(30)
        for number in range(1, 6):
            assert made.outcome(made.team("care", "drafts")) == "within"
            settled(made.bed, "team_care", USED * number)
        for _ in range(3):
            reply = made.team("care", "drafts")
            assert reply.status == 200, str(reply)
            assert made.outcome(reply) == "over"
            assert reply.headers["x-ratelimit-remaining-tokens"] == "0"
        assert made.outcome(made.team("appeals", "drafts")) == "within"
        # What is over is still charged, but for the estimate, which a refused request would not be charged either.
        settled(made.bed, "team_care", 5 * USED + 3 * (USED - estimate(chat_body("drafts"))))


def test_budgets_that_are_off_bring_nothing(tmp_path):
    with plane(tmp_path, mode="off") as made:
        assert not hasattr(made.bed, "ratelimit")
        for _ in range(6):
            reply = made.team("care", "drafts")
            assert reply.status == 200
        assert "budget" not in made.audit.of(reply)
