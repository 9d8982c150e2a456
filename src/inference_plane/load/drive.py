"""Runs locust on a profile, acts on the profile's marks meanwhile, and gives what became of each request."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from inference_plane.checkout import ROOT
from inference_plane.onehost.processes import NotReady, Processes

from . import samples
from .profiles import Event, Profile

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
#: Seconds that locust may take until its users stand ready.
START = 120.0


class Driver(Protocol):
    """Acts where requests go to, at the marks that it knows."""

    marks: Sequence[str]

    def act(self, mark: str) -> None:
        """Returns when it is done. Raises what stops the run."""


class NoDriver:
    """Knows no marks."""

    marks: Sequence[str] = ()

    def act(self, mark: str) -> None:
        raise LookupError(mark)


@dataclasses.dataclass(frozen=True)
class Acted:
    """What a driver did, in seconds after the beginning."""

    mark: str
    at: float
    began: float
    ended: float


@dataclasses.dataclass
class Outcome:
    """A run: every request, how the generator did, what was acted on, and when it began (epoch seconds)."""

    samples: list[samples.Sample]
    generator: samples.Generator
    acted: list[Acted]
    began: float


def unknown(profile: Profile, driver: Driver) -> list[str]:
    """The marks of a profile that a driver does not know."""
    return sorted({event.mark for event in profile.events} - set(driver.marks))


def run(
    processes: Processes,
    folder: Path,
    profile: Profile,
    *,
    source: Path,
    scales: tuple[float, float],
    url: str,
    models: Mapping[str, str],
    tokens: Mapping[str, str],
    ca_file: str | None,
    driver: Driver,
    progress: Callable[[float], None] = lambda elapsed: None,
) -> Outcome:
    """Sends the profile's requests. `profile` is that of the file `source`, scaled by `scales` (time, rate) already.

    `models` are the target's names of the profile's models, `tokens` the bearer tokens by tenant ("" for all others);
    `progress` is told the elapsed seconds. Raises NotReady where locust ends before all is done, or all requests end
    before every mark was acted on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, _, path = url.removeprefix("https://").removeprefix("http://").partition("/")
    scheme = "https" if url.startswith("https://") else "http"
    said: dict[str, Any] = {
        "profile": str(source),
        "seed": profile.seed,
        "users": profile.users,
        "time_scale": scales[0],
        "rate_scale": scales[1],
        "models": dict(models),
        "tokens": dict(tokens),
        "ca_file": ca_file,
        "path": f"/{path.rstrip('/')}/v1/chat/completions".replace("//", "/"),
    }
    file = folder / "run.json"
    file.touch(mode=0o600)  # it has the callers' tokens
    file.write_text(json.dumps(said))
    began = folder / "began"
    began.unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--headless", "--only-summary", "--skip-log-setup"]
    try:
        process = processes.start(
            "locust",
            [*command, "--host", f"{scheme}://{base}", "--load-run", file, "--stop-timeout", "5"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            log_path=folder / "locust.log",
            ready=lambda: began.exists() and bool(began.read_text()),
            timeout=START,
        )
        beginning = float(began.read_text())
        acted = _follow(process, profile.events, driver, beginning, progress)
    finally:
        file.unlink()
    processes.stop(process)  # it has ended, and nobody who looks after the others is to stumble over it
    if process.returncode != 0:
        raise NotReady(f"locust ended with status {process.returncode}; the end of its log:\n{process.log_tail()}")
    if missed := profile.events[len(acted):]:
        marks = ", ".join(f"{event.mark} at {event.at:g} s" for event in missed)
        raise NotReady(
            f"not acted on before the last answer: {marks}. What came before took longer than the profile leaves. "
            "Set a longer curve, or a smaller --time-scale"
        )
    with open(folder / "samples.jsonl") as lines:
        found = samples.read(lines)
    generator = samples.Generator(**json.loads((folder / "generator.json").read_text()))
    return Outcome(found, generator, acted, beginning)


def _follow(
    process: Any, events: Sequence[Event], driver: Driver, beginning: float, progress: Callable[[float], None]
) -> list[Acted]:
    acted = []
    waiting = list(events)
    while process.running:
        elapsed = time.time() - beginning
        if waiting and elapsed >= waiting[0].at:
            event = waiting.pop(0)
            driver.act(event.mark)
            acted.append(Acted(event.mark, event.at, elapsed, time.time() - beginning))
        progress(elapsed)
        time.sleep(0.1)
    return acted
