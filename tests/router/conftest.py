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
def session_client(session_bed: Bed) -> Iterator[Client]:
    client = Client(session_bed.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def module_bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """A module's own bed, where the module says in BED what of."""
    with Bed(tmp_path_factory.mktemp("bed"), **request.module.BED) as bed:
        yield bed


@pytest.fixture(scope="module")
def module_client(module_bed: Bed) -> Iterator[Client]:
    client = Client(module_bed.url)
    yield client
    client.close()


def _scope(request: pytest.FixtureRequest) -> str:
    return "module" if hasattr(request.module, "BED") else "session"


@pytest.fixture
def bed(request: pytest.FixtureRequest) -> Bed:
    """The module's bed, or else the shared one, as new."""
    bed = request.getfixturevalue(f"{_scope(request)}_bed")
    bed.reset()
    return bed


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Client:
    return request.getfixturevalue(f"{_scope(request)}_client")


@pytest.fixture(scope="session")
def audit(session_bed: Bed) -> Audit:
    return Audit(session_bed)
