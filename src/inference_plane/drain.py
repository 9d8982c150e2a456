"""How a router's pod leaves: the main container of the pod, beside Envoy as a sidecar.

`python -m inference_plane.drain --limit 600 --staleness 15`, in the folder that has `run/admin.sock`. It does nothing
until SIGTERM, which the kubelet sends when the pod has to go. Then it tells Envoy to leave: `/ready` turns to 503 and
replies carry `connection: close`, while every request is still served. It ends once nobody asks any more, or at the
limit; Envoy, a sidecar, gets its own SIGTERM only after that (Kubernetes' order for native sidecars), and cuts what
still runs. A second SIGTERM ends it at once. Standard library only, as the image holds nothing else.

It writes a JSON line when it waits, when it begins and when it ends. Exit status: 0 where Envoy was asked to leave,
whatever still ran at the limit; 1 where Envoy could not be asked.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Of the listener `plane`, by its stat_prefix in the bootstrap.
STATISTICS = {
    "active": "http.plane.downstream_rq_active",
    "total": "http.plane.downstream_rq_total",
    "connections": "http.plane.downstream_cx_active",
}
#: How long no request may have come or run before nobody is expected to come, while clients hold connections open.
QUIET_SECONDS = 5.0
#: How long nobody may listen on the socket before Envoy counts as gone: it may be starting again.
GONE_SECONDS = 5.0
POLL_SECONDS = 0.5
ANSWER_SECONDS = 5.0
ENDING = (signal.SIGTERM, signal.SIGINT)


class Gone(Exception):
    """Nobody listens on the admin socket."""


class Mute(Exception):
    """Somebody listens, and does not answer properly in time; it may well serve requests."""


@dataclass(frozen=True)
class Load:
    """What Envoy has from its clients: running requests, all requests since its start, open connections."""

    active: int
    total: int
    connections: int


@dataclass(frozen=True)
class Times:
    """Seconds from SIGTERM: `staleness` is how long clients may still be sent here, `limit` how long anything may run;
    `quiet` and `gone` are how long a calm, or a silence of the socket, has to last to be believed."""

    limit: float
    staleness: float
    quiet: float = QUIET_SECONDS
    gone: float = GONE_SECONDS


def outcome(times: Times, elapsed: float, load: Load | None, quiet: float, gone: float) -> str | None:
    """How the drain ends, or None while it goes on: `drained`, `limit` or `envoy gone`.

    `load` is what was last seen, None before Envoy ever said; `quiet` is for how many seconds no request has run or
    come, `gone` for how many nobody has listened on the socket.
    """
    if gone >= times.gone:
        return "envoy gone"
    if elapsed >= times.limit:
        return "limit"
    if load is None or load.active or elapsed < times.staleness:
        return None
    return "drained" if load.connections == 0 or quiet >= times.quiet else None


class Admin:
    """Envoy's admin interface on a Unix socket."""

    def __init__(self, path: Path, timeout: float = ANSWER_SECONDS) -> None:
        self.path, self.timeout = path, timeout

    def leave(self) -> None:
        """Envoy says at /ready and to every client that it leaves. Raises Gone or Mute."""
        self._ask("POST", "/healthcheck/fail")

    def load(self) -> Load:
        """Raises Gone or Mute."""
        text = self._ask("GET", "/stats?filter=^http\\.plane\\.downstream_(rq_active|rq_total|cx_active)$")
        found = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        try:
            return Load(**{field: int(found[name]) for field, name in STATISTICS.items()})
        except (KeyError, ValueError) as error:
            raise Mute(f"its statistics have no {error}") from error

    def _ask(self, method: str, path: str) -> str:
        connection = http.client.HTTPConnection("admin", timeout=self.timeout)
        with contextlib.closing(connection), contextlib.closing(socket.socket(socket.AF_UNIX)) as channel:
            channel.settimeout(self.timeout)
            try:
                channel.connect(os.fspath(self.path))
                connection.sock = channel
                connection.request(method, path)
                reply = connection.getresponse()
                text = reply.read().decode(errors="replace")
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise Gone(error.strerror) from error
            except (OSError, http.client.HTTPException) as error:
                raise Mute(repr(error)) from error
            if reply.status != 200:
                raise Mute(f"it answers {method} {path.partition('?')[0]} with {reply.status}")
            return text


def say(event: str, **fields: object) -> None:
    """One line on stdout."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    print(json.dumps({"time": now, "event": event, **fields}), flush=True)


def drain(admin: Admin, times: Times, pause: Callable[[float], bool]) -> int:
    """Take Envoy out and wait until nobody asks it any more; the exit status.

    `pause` waits some seconds and returns whether to end now.
    """
    started = calm_since = time.monotonic()
    heard, told, load, trouble = started, False, None, ""
    say("drain begins")
    while True:
        try:
            if not told:
                admin.leave()
                told = True
            seen = admin.load()
            heard, trouble = time.monotonic(), ""
            if seen.active or load is None or seen.total != load.total:
                calm_since = heard
            load = seen
        except Gone as error:
            trouble = f"nobody listens on {admin.path}: {error}"
        except Mute as error:
            heard = time.monotonic()  # it is there, and may serve: only the limit ends this
            trouble = f"no proper answer on {admin.path}: {error}"
        now = time.monotonic()
        ended = outcome(times, now - started, load, now - calm_since, now - heard)
        if not ended and pause(POLL_SECONDS):
            ended = "second signal"
        if ended:
            cut: Mapping[str, object] = {"requests_cut": load.active} if load else {"requests_cut": None}
            problem = {"problem": trouble} if trouble else {}
            say("drain ends", outcome=ended, seconds=round(time.monotonic() - started, 1), **cut, **problem)
            return 0 if told else 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m inference_plane.drain", description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=float, required=True, help="seconds after which running requests are cut")
    parser.add_argument("--staleness", type=float, required=True, help="seconds for which clients may still come")
    parser.add_argument("--admin", type=Path, default=Path("run/admin.sock"), help="Envoy's admin socket")
    options = parser.parse_args(arguments)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # PID 1 has no default actions: the signals are waited for
    say("waits for SIGTERM", limit_seconds=options.limit, staleness_seconds=options.staleness)
    signal.sigwait(ENDING)
    return drain(
        Admin(options.admin),
        Times(limit=options.limit, staleness=options.staleness),
        lambda seconds: signal.sigtimedwait(ENDING, seconds) is not None,
    )


if __name__ == "__main__":
    sys.exit(main())
