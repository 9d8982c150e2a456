"""One bed a worker for what a request meets; the tests at scale bring their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from router_harness import MODELS, QUICK, Audit, Client, catalogue, counting_engine

from inference_plane.onehost.bed import Bed


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


@pytest.fixture
def bed(session_bed: Bed) -> Bed:
    """The shared bed, as new."""
    session_bed.reset()
    return session_bed
