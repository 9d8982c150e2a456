"""What one pod, router or list said at one moment, as it is read and before anything is made of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

#: Statistics that are asked of a router. Envoy matches its own names, before they become Prometheus'.
ROUTER_FILTER = (
    r"^cluster\.(fleet|bedrock)/[^.]+\."
    r"(membership_healthy|upstream_rq_active|upstream_rq_completed|(retry\.)?upstream_rq_[0-9]{3})$"
)

#: The samples of an engine that are parsed: vLLM shows some 600 lines, of which these are a few dozen. Lines of help
#: have no brace; the patterns begin with letters, not with ^, because those are found six times as fast.
_ENGINE_LINES = re.compile(
    rb"vllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc"
    rb"|e2e_request_latency_seconds_(?:sum|count)|request_queue_time_seconds_sum"
    rb"|time_to_first_token_seconds_bucket)\{.*"
)
_ROUTER_LINES = re.compile(
    rb"envoy_cluster_(?:membership_healthy|upstream_rq_active|upstream_rq_completed|(?:retry_)?upstream_rq)\{.*"
)


class GarbageError(ValueError):
    """An answer that is no exposition of what it should be; the message says why."""


@dataclass(frozen=True)
class EngineReading:
    """One pod. Data-parallel engines of a pod are added up, their KV caches averaged."""

    running: float = 0.0
    waiting: float = 0.0
    kv_cache: float = 0.0
    # Counters: seconds that ended requests took, those of it in the queue, their number; first tokens by upper bound in
    # seconds (cumulative).
    seconds: float = 0.0
    queue_seconds: float = 0.0
    requests: float = 0.0
    first_tokens: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterReading:
    """One cluster of one router. Counters are by status: final answers, and tries that were followed by another."""

    healthy: float = 0.0
    active: float = 0.0
    completed: float = 0.0
    final: Mapping[str, float] = field(default_factory=dict)
    retried: Mapping[str, float] = field(default_factory=dict)


#: One router: its clusters by name, such as `fleet/summary` and `bedrock/summary`.
RouterReading = Mapping[str, ClusterReading]


@dataclass(frozen=True)
class WaitingPods:
    """Pods of a fleet that have no node: how many, and seconds since the oldest was made."""

    count: int = 0
    oldest_seconds: float = 0.0


#: A fleet: its namespace and its name.
Fleet = tuple[str, str]


def parse_engine(text: bytes) -> EngineReading:
    """Raises GarbageError where it is no exposition, or none of vLLM."""
    values: dict[str, list[float]] = {}
    buckets: dict[float, float] = {}
    for name, labels, value in _samples(_ENGINE_LINES, text):
        if name == "vllm:time_to_first_token_seconds_bucket":
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
        else:
            values.setdefault(name, []).append(value)
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
        if name not in values:
            raise GarbageError(f"it has no {name}; is it an engine's metrics port?")
    caches = values.get("vllm:kv_cache_usage_perc", [0.0])
    return EngineReading(
        running=sum(values["vllm:num_requests_running"]),
        waiting=sum(values["vllm:num_requests_waiting"]),
        kv_cache=sum(caches) / len(caches),
        seconds=sum(values.get("vllm:e2e_request_latency_seconds_sum", ())),
        queue_seconds=sum(values.get("vllm:request_queue_time_seconds_sum", ())),
        requests=sum(values.get("vllm:e2e_request_latency_seconds_count", ())),
        first_tokens=buckets,
    )


def parse_router(text: bytes) -> dict[str, ClusterReading]:
    """A router without traffic shows no codes, one without clusters nothing at all. Raises GarbageError."""
    gauges: dict[str, dict[str, float]] = {}
    codes: dict[str, dict[str, dict[str, float]]] = {}
    for name, labels, value in _samples(_ROUTER_LINES, text):
        cluster = labels["envoy_cluster_name"]
        if code := labels.get("envoy_response_code"):
            codes.setdefault(cluster, {}).setdefault(name, {})[code] = value
        else:
            gauges.setdefault(cluster, {})[name] = value
    return {
        cluster: ClusterReading(
            healthy=own.get("envoy_cluster_membership_healthy", 0.0),
            active=own.get("envoy_cluster_upstream_rq_active", 0.0),
            completed=own.get("envoy_cluster_upstream_rq_completed", 0.0),
            final=codes.get(cluster, {}).get("envoy_cluster_upstream_rq", {}),
            retried=codes.get(cluster, {}).get("envoy_cluster_retry_upstream_rq", {}),
        )
        for cluster, own in gauges.items()
    }


def _samples(lines: re.Pattern[bytes], text: bytes) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """The samples of the wanted lines alone: parsing all 600 of an engine would cost some 10 ms of CPU."""
    try:
        for line in lines.findall(text):
            series, _, number = line.decode().rpartition(" ")
            value = float(number)
            if not value >= 0:
                raise GarbageError(f"{series} is {value}")
            yield *_series(series), value
    except GarbageError:
        raise
    except (ValueError, KeyError, IndexError) as error:
        raise GarbageError(f"it is no Prometheus exposition: {error!r}") from error


@functools.lru_cache(maxsize=65536)
def _series(text: str) -> tuple[str, Mapping[str, str]]:
    """Name and labels of a series: the same at each tick, and what reading costs most for. Raises ValueError."""
    (family,) = text_string_to_metric_families(f"{text} 0\n")
    (sample,) = family.samples
    if sample.timestamp is not None:
        raise ValueError(f"a timestamp in {text!r}")
    return sample.name, sample.labels


def quantile(share: float, buckets: Mapping[float, float]) -> float:
    """The value below which `share` of the observations are, by cumulative buckets, linear within one.

    Raises ValueError where there are none.
    """
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        raise ValueError("no observations")
    rank, below, lower = share * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * ((rank - below) / (count - below) if count > below else 1.0)
        below, lower = count, bound
    return lower


def increase(now: float, before: float) -> float:
    """What a counter rose by; one that fell began anew at 0."""
    return now - before if now >= before else now

