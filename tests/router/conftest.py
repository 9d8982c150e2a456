"""One bed a worker for what a request meets; the tests at scale bring their own."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

import pytest
from router_harness import (
    CHAT,
    LONG_SECONDS,
    MODELS,
    QUICK,
    Audit,
    Client,
    Reply,
    catalogue,
    chat_body,
    counting_engine,
)

from inference_plane.onehost.bed import Bed

_LONG = pytest.StashKey[bool]()
LONG_ANSWER = "test_an_answer_that_takes_a_minute_comes_from_the_fleet"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What was started at the beginning is collected at the end."""
    items.sort(key=lambda item: item.name == LONG_ANSWER)
    config.stash[_LONG] = any(item.name == LONG_ANSWER for item in items)


@pytest.fixture(scope="session")
def session_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    folder = tmp_path_factory.mktemp("bed")
    apps = {"embedder": counting_engine, "cached": counting_engine}
    with Bed(folder, values=catalogue(MODELS, **QUICK), apps=apps) as bed:
        yield bed


@pytest.fixture(scope="session")
def client(session_bed: Bed) -> Iterator[Client]:
    client = Client(session_bed.url)
    yield client
    client.close()


@pytest.fixture(scope="session")
def audit(session_bed: Bed) -> Audit:
    return Audit(session_bed)


@pytest.fixture(scope="session", autouse=True)
def long_answer(request: pytest.FixtureRequest) -> concurrent.futures.Future[Reply] | None:
    """A non-streamed answer of a minute, under way since the session began; None where no test wants it."""
    if not request.config.stash[_LONG]:
        return None
    client: Client = request.getfixturevalue("client")
    body = chat_body("night", x_test={"answer_delay": LONG_SECONDS})
    return client.start(CHAT, body, timeout=2 * LONG_SECONDS)


@pytest.fixture
def bed(session_bed: Bed) -> Bed:
    """The shared bed, as new."""
    session_bed.reset()
    return session_bed
