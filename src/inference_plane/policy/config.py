"""The service's configuration: its shape, its defaults, and errors that name the key."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What the Lease's times must leave for a renewal that is slow.
_RENEWALS_IN_A_LEASE = 2


class ConfigError(ValueError):
    """The configuration is wrong; the message says where, what and what to set."""


@dataclass(frozen=True)
class Listen:
    """Shares and state are served on `port`, what has no say in routing on `statusPort`."""

    address: str = "0.0.0.0"
    port: int = 8090
    statusPort: int = 8091


@dataclass(frozen=True)
class Tls:
    """Paths of PEM files, and the DNS name that each replica proves to the routers and to the other one."""

    certificate: Path
    key: Path
    ca: Path
    name: str


@dataclass(frozen=True)
class Lease:
    """Seconds. A leader that has not renewed for `durationSeconds` is replaced."""

    name: str = "router-policy"
    durationSeconds: float = 15.0
    renewSeconds: float = 5.0


@dataclass(frozen=True)
class Routers:
    """The Service whose endpoints are the routers, and their status port."""

    namespace: str
    service: str = "router"
    port: int = 8081


@dataclass(frozen=True)
class Tuning:
    """How quickly and how far the share moves. docs/policy.md says what each was chosen by."""

    # A fleet is full from this use of what it admits on; from the other one, while an engine pod has been waiting for
    # an accelerator for pendingSeconds.
    fullUse: float = 0.95
    pendingUse: float = 0.8
    pendingSeconds: float = 60.0
    # While it sheds, the share is what leaves this use of what runs at once while others wait.
    targetUse: float = 1.0
    # First tokens are late from this part of the budget on.
    lateUse: float = 0.9
    # Shedding ends below this use of what runs at once while others wait, lateness below this part of where it begins.
    easyUse: float = 0.9
    # KV cache use, mean of the engines, from which on a waiting request says that no more fits; the fleet is full when
    # this part of what runs waits.
    kvCacheUse: float = 0.95
    kvCacheQueue: float = 1.0
    # Errors over tries in the fleet, over windowSeconds and from minErrors on, that make it sick. It is well again at
    # half of it, if there were minProbes.
    errorRatio: float = 0.5
    minErrors: int = 5
    minProbes: int = 3
    # Refused tries over tries, from which on the fleet refuses more than a full one that is shed from would.
    refusedRatio: float = 0.25
    # First tokens, at least, before their p95 is believed.
    minFirstTokens: int = 10
    # Rates are taken over this time, demand is smoothed over that one.
    windowSeconds: float = 15.0
    smoothingSeconds: float = 10.0
    # Points: the share is a multiple of it, and what it rises by while an overload stays for settleSeconds.
    stepPoints: int = 5
    settleSeconds: float = 15.0
    # It is lowered after holdSeconds without need, by lowerPoints each lowerSeconds.
    holdSeconds: float = 30.0
    lowerPoints: int = 10
    lowerSeconds: float = 2.0
    # A fleet that fails again while it recovers has its hold time doubled, at most so often, until it has had no share
    # for forgetSeconds.
    maxDoublings: int = 3
    forgetSeconds: float = 600.0
    # What stays on a fleet that has engines, however sick it looks.
    probePoints: int = 5
    # A signal that was missed is as good as its last value for staleSeconds. Without signals a share is held for
    # lostSeconds, then lowered to 0.
    staleSeconds: float = 10.0
    lostSeconds: float = 60.0
    # A request's time in an engine before any was measured.
    typicalSeconds: float = 10.0
    # How long what was asked for stays the demand: an autoscaler looks each 15 seconds or so.
    rememberSeconds: float = 60.0
    # One read of one pod, router or list: its time and its size.
    readSeconds: float = 2.0
    readBytes: int = 4 * 1024 * 1024


@dataclass(frozen=True)
class Model:
    namespace: str
    fleets: tuple[str, ...]
    fallback: bool
    requestsPerReplica: int
    deployments: tuple[str, ...] = ()
    metricsPort: int = 8001
    minReplicas: int = 1
    maxReplicas: int = 1
    firstTokenBudgetMs: float | None = None


@dataclass(frozen=True)
class Config:
    namespace: str
    routers: Routers
    models: Mapping[str, Model]
    listen: Listen = field(default_factory=Listen)
    tls: Tls | None = None
    lease: Lease = field(default_factory=Lease)
    tickSeconds: float = 1.0
    tuning: Tuning = field(default_factory=Tuning)

    def needs_restart(self, other: Config) -> list[str]:
        """The keys in which they differ that a running process cannot change."""
        return [key for key in ("listen", "tls", "namespace", "lease") if getattr(self, key) != getattr(other, key)]


def load(path: Path) -> Config:
    """Raises ConfigError, also where the file cannot be read."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{error.strerror}; give --config the file that Helm rendered") from error
    return parse(text)


def parse(text: str) -> Config:
    """Raises ConfigError."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"it is no JSON: {error}") from error
    config = _read(Config, value, "")
    _check(config)
    return config


def _check(config: Config) -> None:
    """What types cannot say."""
    lease, tuning = config.lease, config.tuning
    if config.listen.port == config.listen.statusPort:
        raise ConfigError(f"listen.statusPort: {config.listen.port} is the port of the shares; they are served apart")
    if config.tickSeconds <= 0:
        raise ConfigError("tickSeconds: it is not above 0")
    if lease.durationSeconds < _RENEWALS_IN_A_LEASE * lease.renewSeconds or lease.renewSeconds <= 0:
        raise ConfigError(
            f"lease: durationSeconds {lease.durationSeconds:g} is not {_RENEWALS_IN_A_LEASE} x renewSeconds "
            f"{lease.renewSeconds:g} or more, so one slow renewal would lose the lead"
        )
    if not tuning.easyUse < min(1.0, tuning.targetUse):
        raise ConfigError("tuning.easyUse: it is not below targetUse and 1, so the share would swing")
    for name, value in dataclasses.asdict(tuning).items():
        if value < 0 or (value == 0 and name not in ("probePoints", "smoothingSeconds", "maxDoublings")):
            raise ConfigError(f"tuning.{name}: {value:g} is not above 0")
    for name in ("stepPoints", "lowerPoints", "probePoints"):
        if getattr(tuning, name) > 100:
            raise ConfigError(f"tuning.{name}: it is above 100, and a share has 100 points")
    for name, model in config.models.items():
        if not model.fleets:
            raise ConfigError(f"models.{name}.fleets: it is empty, so there is nothing to read")
        if model.requestsPerReplica < 1:
            raise ConfigError(f"models.{name}.requestsPerReplica: it is below 1")


def _read(kind: Any, value: Any, path: str) -> Any:
    """`value` as a `kind`: a dataclass, a mapping, a tuple, an optional or a plain type."""
    where = path or "the configuration"
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: it is no object")
        hints = typing.get_type_hints(kind)
        if unknown := sorted(set(value) - set(hints)):
            raise ConfigError(f"{_join(path, unknown[0])}: nobody knows this key; known are {', '.join(sorted(hints))}")
        needed = [
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if missing := [name for name in needed if name not in value]:
            raise ConfigError(f"{_join(path, missing[0])}: it is missing and has no default")
        return kind(**{key: _read(hints[key], entry, _join(path, key)) for key, entry in value.items()})
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        return None if value is None else _read(typing.get_args(kind)[0], value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: it is no list")
        return tuple(_read(typing.get_args(kind)[0], entry, f"{path}[{i}]") for i, entry in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: it is no object")
        return {key: _read(typing.get_args(kind)[1], entry, _join(path, key)) for key, entry in value.items()}
    return _plain(kind, value, where)


# Helm writes a whole number as 4 or as 4.0, and an integer as either.
def _plain(kind: type, value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if kind is int and number and value == int(value):
        return int(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    names = {float: "number", int: "whole number", str: "string", bool: "true or false", Path: "path"}
    raise ConfigError(f"{where}: {json.dumps(value)} is no {names[kind]}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
