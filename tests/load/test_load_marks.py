"""What the driver of the plane does at each mark, in which order: on a plane that only writes it down."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from inference_plane.load import drive, profiles
from inference_plane.load.marks import PlaneDriver


class Process:
    def __init__(self, plane: Plane, address: str) -> None:
        self._plane, self.address = plane, address

    def kill(self) -> None:
        self._plane.did.append(f"kill {self.address}")


class Plane:
    """Addresses of two models instead of processes; `did` is everything, in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.engines = {name: SimpleNamespace(model=name, replicas=count) for name, count in (("a", 4), ("b", 1))}
        self.pods: dict[str, dict[str, Process]] = {
            "a": {f"a{n}": Process(self, f"a{n}") for n in (1, 2, 3, 4)},
            "b": {"b1": Process(self, "b1")},
        }
        self._number = 10

    def start_engine(self, engine: SimpleNamespace, load_seconds: float = 0.0) -> tuple[str, Process]:
        self._number += 1
        address = f"{engine.model}{self._number}"
        self.did.append(f"start {address}")
        return address, Process(self, address)

    def list_pods(self) -> None:
        self.did.append("list " + " ".join(address for pods in self.pods.values() for address in pods))

    def drain(self, pods: dict[str, Process]) -> None:
        self.did.append(f"drain {' '.join(pods)}")


@pytest.fixture
def plane() -> Plane:
    return Plane()


@pytest.fixture
def act(plane: Plane) -> Callable[[str], list[str]]:
    driver = PlaneDriver(plane, wait=lambda seconds: plane.did.append("wait"))  # type: ignore[arg-type]

    def acts(mark: str) -> list[str]:
        driver.act(mark)
        return plane.did

    return acts


def test_a_rollout_lists_the_new_engine_before_the_old_one_leaves(
    act: Callable[[str], list[str]], plane: Plane
) -> None:
    did = act("rollout")
    assert did[:4] == ["start a11", "list a1 a2 a3 a4 a11 b1", "list a2 a3 a4 a11 b1", "drain a1"]
    assert [each for each in did if each.startswith("drain")] == [
        "drain a1",
        "drain a2",
        "drain a3",
        "drain a4",
        "drain b1",
    ]
    assert [len(pods) for pods in plane.pods.values()] == [4, 1]


def test_a_reclaimed_engine_drains_and_is_replaced_later(act: Callable[[str], list[str]], plane: Plane) -> None:
    assert act("spot-reclaim") == [
        "list a2 a3 a4 b1",
        "drain a1",
        "wait",
        "start a11",
        "list a2 a3 a4 a11 b1",
    ]


def test_a_lost_zone_is_listed_until_somebody_notices(act: Callable[[str], list[str]], plane: Plane) -> None:
    """Half of a fleet, rounded down: a fleet of one stands in the other zone."""
    did = act("zone-loss")
    assert did[:4] == ["kill a1", "kill a2", "wait", "list a3 a4 b1"]
    assert did[4:] == ["wait", "start a11", "list a3 a4 a11 b1", "start a12", "list a3 a4 a11 a12 b1"]


def test_an_empty_fleet_comes_back(act: Callable[[str], list[str]], plane: Plane) -> None:
    assert act("empty") == ["list ", "drain a1 a2 a3 a4 b1"] and not any(plane.pods.values())
    act("back")
    assert [len(pods) for pods in plane.pods.values()] == [4, 1]


@pytest.mark.parametrize("name", [name for name in profiles.names() if name != "losses"])  # for the elastic plane alone
def test_every_event_of_a_profile_is_a_mark_that_it_knows(name: str, plane: Any) -> None:
    assert drive.unknown(profiles.load(name), PlaneDriver(plane)) == []
    marked = {event.mark for event in profiles.load(name).events}
    assert set(drive.unknown(profiles.load(name), drive.NoDriver())) == marked
