"""Each alert fires when it should and stays silent when it should not: promtool on the rules as they are rendered."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from metrics_harness import SYNTHETIC, TARGET_LABELS, captured, exposed, rules

from inference_plane import environments, helm, tools

PROMTOOL = tools.path("promtool")
pytestmark = pytest.mark.skipif(
    not PROMTOOL.is_file(), reason="promtool is not built: ./scripts/test alerts builds it once"
)

ON = {"podMonitor": {"enabled": True}, "alerts": {"enabled": True}}
ENTRY = {"weightsGiB": 15.3, "accelerator": "l40s", "maxModelLen": 16384}
FALLBACK = {"residency": "region", "fallback": {"model": "openai.gpt-oss-120b-1:0", "retention": "none"}}
VALUES = {
    "global": {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "secrets"},
        "network": {"policies": False},
        "teams": {"appeals": {"costCenter": "4711", "tokensPerMinute": 1000}},
        "models": {
            "summary": {
                **ENTRY,
                **FALLBACK,
                "source": "s3://models/summary/v1/",
                "team": "appeals",
                "firstTokenBudget": "2s",
                "replicas": {"min": 2, "max": 4},
            },
            "intake": {**ENTRY, "source": "s3://models/intake/v1/", "replicas": {"min": 2}},
            "night": {**ENTRY, "source": "s3://models/night/v1/", "traffic": "batch"},
            "trial": {
                **ENTRY,
                "source": "s3://models/trial/v1/",
                "canary": {"source": "s3://models/trial/v2/", "percent": 10},
            },
            "nap": {**ENTRY, "source": "s3://models/nap/v1/", "replicas": {"min": 0, "max": 2}},
            "siesta": {**ENTRY, **FALLBACK, "source": "s3://models/siesta/v1/", "replicas": {"min": 0}},
        },
    },
}
AUTH = {"issuer": "https://a.example", "audiences": ["a"], "jwks": {"uri": "https://a.example/keys"}}
RENDERED = {"router": {**VALUES, **ON, "auth": AUTH}, "vllm": {**VALUES, **ON}}

DAY = 86400  # seconds; promtool's clock begins at 0
LISTENER = {"envoy_tls_certificate": "certificate", "envoy_listener_address": "plane"}

Series = tuple[str, str]


def router(name: str, values: str, cluster: str = "", pod: str = "router-0", **labels: str) -> Series:
    """A series of a router pod; `values` in promtool's notation, a sample a minute."""
    own = labels | ({"envoy_cluster_name": cluster} if cluster else {})
    return _series(name, values, "router", pod, own)


def engine(name: str, values: str, model: str = "intake", pod: str = "intake-0", **labels: str) -> Series:
    """A series of an engine pod."""
    own = {"model_name": model, "engine": "0"} if name.startswith("vllm:") else {}
    return _series(name, values, model, pod, own | labels)


def _series(name: str, values: str, monitor: str, pod: str, labels: Mapping[str, str]) -> Series:
    target = {"job": f"inference/{monitor}", "namespace": "inference", "pod": pod}
    text = ", ".join(f'{key}="{value}"' for key, value in (target | labels).items())
    return f"{name}{{{text}}}", values


def policies(*up: str) -> list[Series]:
    """Replicas of the policy service, and whether Prometheus reaches each."""
    return [_series("up", values, "router-policy", f"router-policy-{n}", {}) for n, values in enumerate(up)]


def policy(name: str, values: str, pod: str = "router-policy-0", **labels: str) -> Series:
    """A series of a replica of the policy service."""
    return _series(name, values, "router-policy", pod, labels)


def fleet(model: str, per_minute: float, *, engines: int = 2, failed: float = 0, code: str = "503") -> list[Series]:
    """A fleet that gives so many answers a minute, `failed` of them with a code; `engines` beside Envoy's own one."""
    name = f"fleet/{model}"
    return [
        router("envoy_cluster_upstream_rq_total", f"0+{per_minute}x200", name),
        router("envoy_cluster_upstream_rq_completed", f"0+{per_minute}x200", name),
        router("envoy_cluster_upstream_rq_xx", f"0+{failed}x200", name, envoy_response_code_class=code[0]),
        router("envoy_cluster_upstream_rq", f"0+{failed}x200", name, envoy_response_code=code),
        router("envoy_cluster_membership_healthy", f"{engines + 1}x200", name),
    ]


def sleeper(model: str, requests: str, healthy: str, at: str = "fleet") -> list[Series]:
    """A fleet that may have no engine: requests counted there or at Amazon Bedrock; `healthy` with Envoy's own one."""
    return [
        router("envoy_cluster_upstream_rq_total", requests, f"{at}/{model}"),
        router("envoy_cluster_membership_healthy", healthy, f"fleet/{model}"),
    ]


def bedrock(model: str, per_minute: float, *, failed: float = 0, code: str = "429") -> list[Series]:
    name = f"bedrock/{model}"
    return [
        router("envoy_cluster_upstream_rq_completed", f"0+{per_minute}x200", name),
        router("envoy_cluster_upstream_rq", f"0+{failed}x200", name, envoy_response_code=code),
    ]


def retried(model: str, per_minute: float, code: str = "429") -> Series:
    return router("envoy_cluster_retry_upstream_rq", f"0+{per_minute}x200", f"fleet/{model}", envoy_response_code=code)


def budgets(model: str, *, within: str = "", over: str = "", failed: str = "") -> list[Series]:
    """How a fleet's requests fared with their token budgets; a counter appears with the first of its kind."""
    counts = {"ok": within, "over_limit": over, "error": failed}
    return [
        router(f"envoy_cluster_ratelimit_{name}", values, f"fleet/{model}") for name, values in counts.items() if values
    ]


def timeouts(model: str, whole: float, one_try: float) -> list[Series]:
    name = f"fleet/{model}"
    return [
        router("envoy_cluster_upstream_rq_timeout", f"0+{whole}x200", name),
        router("envoy_cluster_upstream_rq_per_try_timeout", f"0+{one_try}x200", name),
    ]


def overflows(name: str, requests: str, retries: str) -> list[Series]:
    return [
        router("envoy_cluster_upstream_rq_pending_overflow", requests, name),
        router("envoy_cluster_upstream_rq_retry_overflow", retries, name),
    ]


def first_tokens(in_a_second: int, in_twenty: int, model: str = "intake") -> list[Series]:
    """A histogram that so many requests a minute join: within a second, and within 20 s altogether."""
    counts = {"1.0": in_a_second, "10.0": in_a_second, "20.0": in_twenty, "+Inf": in_twenty}
    return [
        *(engine("vllm:time_to_first_token_seconds_bucket", f"0+{n}x200", model, le=le) for le, n in counts.items()),
        engine("vllm:time_to_first_token_seconds_count", f"0+{in_twenty}x200", model),
    ]


def files(rejected: str, good: str) -> list[Series]:
    """What Envoy counts of xds/clusters.json: refusals, and the time of the last good file in milliseconds."""
    return [
        router("envoy_cluster_manager_cds_update_rejected", rejected),
        router("envoy_cluster_manager_cds_update_failure", "0x200"),
        router("envoy_cluster_manager_cds_update_time", good),
    ]


@dataclass(frozen=True)
class Case:
    """What fires one alert, with the words a person reads, and what must not."""

    alert: str
    fires: Sequence[Series]
    severity: str
    summary: str
    description: str
    silent: Mapping[str, Sequence[Series]]
    model: str = ""
    at: str = "60m"
    labels: Mapping[str, str] = field(default_factory=dict)


LABELS = {
    "": {},
    "summary": {"model": "summary", "residency": "region", "team": "appeals", "cost_center": "4711"},
    "intake": {"model": "intake", "residency": "cluster"},
    "night": {"model": "night", "residency": "cluster"},
    "trial": {"model": "trial", "residency": "cluster"},
    "nap": {"model": "nap", "residency": "cluster"},
    "siesta": {"model": "siesta", "residency": "region"},
}

CASES = [
    Case(
        "InferenceKVCacheFull",
        model="intake",
        fires=[engine("vllm:kv_cache_usage_perc", "0.97x200"), engine("vllm:num_preemptions_total", "0+3x200")],
        severity="warning",
        labels={"pod": "intake-0"},
        summary="KV cache full: intake",
        description="The KV cache of intake-0 is 97% full, and the engine preempts requests and computes them again. "
        "It holds 11 requests of 16384 tokens at once; maxNumSeqs is 64.",
        silent={
            "full and nothing preempted": [
                engine("vllm:kv_cache_usage_perc", "0.97x200"),
                engine("vllm:num_preemptions_total", "7x200"),
            ],
            "another pod's preemptions": [
                engine("vllm:kv_cache_usage_perc", "0.97x200"),
                engine("vllm:num_preemptions_total", "7x200"),
                engine("vllm:kv_cache_usage_perc", "0.3x200", pod="intake-1"),
                engine("vllm:num_preemptions_total", "0+3x200", pod="intake-1"),
            ],
            "a short peak": [
                engine("vllm:kv_cache_usage_perc", "0.3x52 0.97x8 0.3x100"),
                engine("vllm:num_preemptions_total", "0+3x200"),
            ],
        },
    ),
    Case(
        "InferenceEngineRestarts",
        model="intake",
        fires=[engine("process_start_time_seconds", "100x20 _x4 1500x15 _x4 2700x100")],
        severity="warning",
        labels={"pod": "intake-0"},
        summary="Engine restarts: intake",
        description="The engine in intake-0 started anew 2 times within an hour. Out of memory is the usual cause, on "
        "the accelerator or in the container.",
        silent={
            "one restart": [engine("process_start_time_seconds", "100x20 _x4 1500x100")],
            "a rollout of three pods": [
                engine("process_start_time_seconds", "100x30"),
                engine("process_start_time_seconds", "_x30 1800x100", pod="intake-1"),
                engine("process_start_time_seconds", "_x40 2400x100", pod="intake-2"),
            ],
        },
    ),
    Case(
        "InferenceReplicaNotReady",
        model="intake",
        fires=[engine("up", "1x200"), engine("up", "_x20 0x100", pod="intake-1")],
        severity="warning",
        labels={"pod": "intake-1"},
        summary="Replica does not become ready: intake",
        description="intake-1 has a node, and its engine has served no metrics for 662 s. 15.3 GiB of weights and the "
        "engine's start are expected to take no longer.",
        silent={
            "a start in time": [engine("up", "1x200"), engine("up", "_x45 0x10 1x100", pod="intake-1")],
            "a pod that is gone": [engine("up", "1x200"), engine("up", "0x10", pod="intake-1")],
        },
    ),
    Case(
        "InferenceFirstTokenLate",
        model="intake",
        fires=first_tokens(50, 60),
        severity="critical",
        summary="First token late: intake",
        description="One request of 20 waits 17s or longer for its first token; the objective is 10 s.",
        silent={
            "one in thirty late": first_tokens(58, 60),
            "no traffic": first_tokens(0, 0),
            "hardly any traffic": [
                (series, values.replace("0+60", "0+0.5").replace("0+50", "0+0.4"))
                for series, values in first_tokens(50, 60)
            ],
            "a batch model": first_tokens(50, 60, "night"),
            "a model whose streams have a budget": first_tokens(50, 60, "summary"),
        },
    ),
    Case(
        "InferenceRouterDown",
        fires=[router("up", "1x20 0x200"), router("up", "1x30 0x200", pod="router-1")],
        severity="critical",
        labels={"job": "inference/router"},
        summary="No router answers",
        description="Prometheus reaches no router pod. Nobody is served.",
        silent={"one of two": [router("up", "1x200"), router("up", "1x30 0x200", pod="router-1")]},
    ),
    Case(
        "InferenceRouterDown",
        fires=[("up", "1x200")],
        severity="critical",
        labels={"job": "inference/router"},
        summary="No router answers",
        description="Prometheus reaches no router pod. Nobody is served.",
        silent={"a new pod for an old one": [router("up", "1x58"), router("up", "_x60 1x50", pod="router-1")]},
    ),
    Case(
        "InferencePolicyDown",
        fires=policies("0x200", "0x200"),
        severity="warning",
        labels={"job": "inference/router-policy"},
        summary="No policy service answers",
        description="Prometheus reaches no pod of router-policy. Routers keep the shares that they had last; a full or "
        "empty fleet is met request by request. Models that sleep are woken, one replica each.",
        silent={"one of two answers": policies("0x200", "1x200")},
    ),
    Case(
        "InferencePolicyLeaderless",
        fires=[*policies("1x200", "1x200"), policy("inference_policy_leading", "1x50 0x200")],
        severity="warning",
        labels={"job": "inference/router-policy"},
        summary="Not exactly one policy service decides",
        description="0 of the pods of router-policy lead. With none, the shares stay as they are; with two, routers hear "
        "either.",
        silent={
            "one of two": [
                policy("inference_policy_leading", "1x200"),
                policy("inference_policy_leading", "0x200", pod="router-policy-1"),
            ],
            "another takes over": [
                policy("inference_policy_leading", "1x57 0x200"),
                policy("inference_policy_leading", "0x59 1x200", pod="router-policy-1"),
            ],
            "none answers, which has an alert of its own": policies("0x200"),
        },
    ),
    Case(
        "InferencePolicyReadingsOld",
        fires=[
            policy("inference_policy_signal_age_seconds", "1x50 60+60x200", source="engines"),
            policy("inference_policy_signal_age_seconds", "1x200", source="routers"),
        ],
        severity="warning",
        labels={"source": "engines"},
        summary="The policy service decides by old readings: engines",
        description="engines were last read 10m 0s ago. A share that nothing speaks for any more is lowered to 0, and "
        "demand is unknown.",
        silent={
            "a look that was missed": [policy("inference_policy_signal_age_seconds", "1x58 70 1x50", source="engines")],
            "all is read": [policy("inference_policy_signal_age_seconds", "1x200", source="engines")],
        },
    ),
    Case(
        "InferencePolicyUnheard",
        fires=[
            router("envoy_runtime_update_attempt", "0+120x200"),
            router("envoy_runtime_update_failure", "0x30 0+120x170"),
        ],
        severity="warning",
        labels={"pod": "router-0", "job": "inference/router"},
        summary="A router hears nothing of the policy service",
        description="router-0 got no answer to nine of ten questions or more. It keeps the shares that it had last, raised "
        "ones too.",
        silent={
            "one replica of two": [
                router("envoy_runtime_update_attempt", "0+120x200"),
                router("envoy_runtime_update_failure", "0+60x200"),
            ],
            "all is heard": [
                router("envoy_runtime_update_attempt", "0+120x200"),
                router("envoy_runtime_update_failure", "3x200"),
            ],
            "long ago": [
                router("envoy_runtime_update_attempt", "0+120x200"),
                router("envoy_runtime_update_failure", "0x10 0+120x20 2400x170"),
            ],
        },
    ),
    Case(
        "InferencePolicyCertificateEnds",
        fires=[policy("inference_policy_certificate_end_seconds", f"{9 * DAY}x200")],
        severity="warning",
        labels={"pod": "router-policy-0"},
        summary="The policy service's certificate ends",
        description="The certificate that router-policy-0 serves ends in 8d 23h 0m 0s. From then on routers keep the "
        "shares that they had last.",
        silent={
            "three weeks": [policy("inference_policy_certificate_end_seconds", f"{21 * DAY}x200")],
            "renewed in time": [
                policy("inference_policy_certificate_end_seconds", f"{9 * DAY}x40 {90 * DAY}x160")
            ],
        },
    ),
    Case(
        "InferenceTokenBudgetsUnavailable",
        fires=[*budgets("intake", within="0+60x200", failed="0x30 0+60x100"), *budgets("night", failed="0x30 0+60x100")],
        severity="warning",
        labels={"job": "inference/router"},
        summary="Token budgets cannot be asked for",
        description="Requests of teams with a token budget are served without being counted, 2 a second.",
        silent={
            "budgets are asked": budgets("intake", within="0+60x200", failed="3x200"),
            "a pod of the service left": budgets("intake", within="0+60x200", failed="0x50 5x3 5x100"),
        },
    ),
    Case(
        "InferenceTokenBudgetSpent",
        model="intake",
        fires=budgets("intake", within="0+60x200", over="0+20x200"),
        severity="warning",
        summary="A token budget is spent: intake",
        description="25% of the requests of teams with a token budget are answered 429, because a budget is spent. The "
        "audit lines tell whose.",
        silent={
            "one in sixty": budgets("intake", within="0+60x200", over="0+1x200"),
            "a short peak": budgets("intake", within="0+60x200", over="0x52 0+20x5 100x100"),
            "another model's": budgets("elsewhere", within="0+60x200", over="0+20x200"),
        },
    ),
    Case(
        "InferenceTokenBudgetSpent",
        model="intake",
        fires=budgets("intake", over="0+20x200"),
        severity="warning",
        summary="A token budget is spent: intake",
        description="100% of the requests of teams with a token budget are answered 429, because a budget is spent. The "
        "audit lines tell whose.",
        silent={"hardly any": budgets("intake", over="0+0.5x200")},
    ),
    Case(
        "InferenceRouterOverloaded",
        fires=[router("envoy_overload_envoy_overload_actions_stop_accepting_requests_active", "0x50 1x100")],
        severity="critical",
        labels={"pod": "router-0"},
        summary="Router out of memory",
        description="router-0 uses 70 % of its 1Gi or more and answers new requests 503.",
        silent={
            "room again": [
                router("envoy_overload_envoy_overload_actions_stop_accepting_requests_active", "0x50 1x5 0x100")
            ]
        },
    ),
    Case(
        "InferenceRouterConfigRejected",
        # Of the times on the left a sample a minute; the good file came before all samples.
        fires=files("0x40 1x200", "1000x200"),
        severity="warning",
        labels={"pod": "router-0", "job": "inference/router"},
        summary="Router rejects its routes or clusters",
        description="router-0 refused the files of router-routes or router-clusters, and since then none was good. It goes on with the last "
        "good ones; a change of the catalogue is not in force.",
        silent={
            # Two minutes after it, while `increase` still sees it: 2580 s are 43 minutes.
            "a good file after it": files("0x40 1x200", "1000x42 2580000x200"),
            "nothing refused": files("0x200", "1000x200"),
        },
    ),
    Case(
        "InferenceRouterConfigRejected",
        fires=[
            router(
                "envoy_http_rds_update_rejected",
                "0x200",
                **{"envoy_rds_route_config": "plane", "envoy_http_conn_manager_prefix": "plane"},
            ),
            router(
                "envoy_http_rds_update_failure",
                "0x20 1x200",
                **{"envoy_rds_route_config": "plane", "envoy_http_conn_manager_prefix": "plane"},
            ),
            router(
                "envoy_http_rds_update_time",
                "1000x200",
                **{"envoy_rds_route_config": "plane", "envoy_http_conn_manager_prefix": "plane"},
            ),
        ],
        severity="warning",
        labels={
            "pod": "router-0",
            "job": "inference/router",
            "envoy_rds_route_config": "plane",
            "envoy_http_conn_manager_prefix": "plane",
        },
        at="120m",
        summary="Router rejects its routes or clusters",
        description="router-0 refused the files of router-routes or router-clusters, and since then none was good. It "
        "goes on with the last good ones; a change of the catalogue is not in force.",
        silent={"a pod that started after it": files("_x50 1x200", "_x50 3000000x200")},
    ),
    Case(
        "InferenceRequestsFail",
        model="intake",
        fires=fleet("intake", 60, failed=6),
        severity="critical",
        summary="Requests fail: intake",
        description="10% of the answers are 5xx from the fleet or from the router in its place; no other try helped.",
        silent={
            "two in a hundred": fleet("intake", 100, failed=2),
            "hardly any traffic": fleet("intake", 0.5, failed=0.5),
            "no traffic": fleet("intake", 0),
            "no engine, which has an alert of its own": fleet("intake", 60, engines=0, failed=60),
        },
    ),
    Case(
        "InferenceRequestsFail",
        model="summary",
        fires=[*fleet("summary", 30, engines=0, failed=12), *bedrock("summary", 30)],
        severity="critical",
        summary="Requests fail: summary",
        description="20% of the answers are 5xx from the fleet or from the router in its place; no other try helped.",
        silent={"Bedrock in their place": [*fleet("summary", 1, engines=0, failed=1), *bedrock("summary", 60)]},
    ),
    Case(
        "InferenceNoEngine",
        model="intake",
        fires=fleet("intake", 1, engines=0, failed=1),
        severity="critical",
        summary="No engine is ready: intake",
        description="Requests come in and no engine is ready; replicas.min is 2. Clients get 503.",
        silent={
            "nobody asks": fleet("intake", 0, engines=0),
            "one engine": fleet("intake", 60, engines=1),
            "a router that just started, beside one that knows": [
                *fleet("intake", 60),
                router("envoy_cluster_membership_healthy", "_x55 1x100", "fleet/intake", pod="router-1"),
            ],
        },
    ),
    Case(
        "InferenceNoEngine",
        model="summary",
        fires=fleet("summary", 1, engines=0),
        severity="warning",
        summary="No engine is ready: summary",
        description="Requests come in and no engine is ready; replicas.min is 2. Amazon Bedrock answers what may go "
        "there; the rest gets 503.",
        silent={"engines": fleet("summary", 60)},
    ),
    Case(
        "InferenceStaysAsleep",
        model="nap",
        # One request, and nobody again until they may come back.
        fires=sleeper("nap", "0x50 1x100", "1x200"),
        severity="critical",
        summary="A model at zero replicas does not start: nap",
        description="It was asked for, and for 422 s, which a replica takes to start, no engine has been ready. Clients "
        "get 503.",
        silent={
            "nobody asks": sleeper("nap", "7x200", "1x200"),
            "it starts in time": sleeper("nap", "0x50 1x100", "1x56 2x100"),
            "it is just being started": sleeper("nap", "0x55 1x100", "1x200"),
            "it sleeps again when nobody has asked for long": sleeper("nap", "0x10 5x100", "1x14 2x30 1x100"),
        },
    ),
    Case(
        "InferenceStaysAsleep",
        model="siesta",
        # Of a fleet that is known to be empty nothing is tried.
        fires=sleeper("siesta", "0x50 1x100", "1x200", at="bedrock"),
        severity="warning",
        summary="A model at zero replicas does not start: siesta",
        description="It was asked for, and for 422 s, which a replica takes to start, no engine has been ready. Amazon "
        "Bedrock answers what may go there; the rest gets 503.",
        silent={"nobody asks": sleeper("siesta", "7x200", "1x200", at="bedrock")},
    ),
    Case(
        "InferenceFallbackShare",
        model="siesta",
        fires=[*fleet("siesta", 10, engines=1), *bedrock("siesta", 10)],
        severity="warning",
        summary="Fallback in use: siesta",
        description="Amazon Bedrock (openai.gpt-oss-120b-1:0) gives 50% of the answers, at the price of its tokens.",
        silent={"it has no replica": [*fleet("siesta", 0, engines=0), *bedrock("siesta", 10)]},
    ),
    Case(
        "InferenceRequestsFail",
        model="siesta",
        fires=[*fleet("siesta", 30, engines=1, failed=12), *bedrock("siesta", 30)],
        severity="critical",
        summary="Requests fail: siesta",
        description="20% of the answers are 5xx from the fleet or from the router in its place; no other try helped.",
        silent={"it has no replica": [*fleet("siesta", 30, engines=0, failed=30), *bedrock("siesta", 3)]},
    ),
    Case(
        "InferenceFleetTooSmall",
        model="nap",
        fires=[*fleet("nap", 10, engines=1), retried("nap", 5)],
        severity="warning",
        summary="Fleet smaller than asked: nap",
        description="1 engines are ready; replicas are 0 to 2. That has lasted 30m: fewer than the minimum, or fewer "
        "than the maximum while engines turn requests away.",
        silent={"asleep": sleeper("nap", "7x200", "1x200")},
    ),
    Case(
        "InferenceFleetTooSmall",
        model="summary",
        fires=fleet("summary", 10, engines=1),
        severity="warning",
        summary="Fleet smaller than asked: summary",
        description="1 engines are ready; replicas are 2 to 4. That has lasted 30m: fewer than the minimum, or fewer "
        "than the maximum while engines turn requests away.",
        silent={
            "the minimum, and nobody is turned away": [*fleet("summary", 10), retried("summary", 0)],
            "the maximum, and some are turned away": [*fleet("summary", 10, engines=4), retried("summary", 5)],
            "a node on its way": [
                router("envoy_cluster_membership_healthy", "3x45 2x10 3x100", "fleet/summary"),
            ],
        },
    ),
    Case(
        "InferenceFleetTooSmall",
        model="summary",
        fires=[*fleet("summary", 10, engines=3), retried("summary", 5)],
        severity="warning",
        summary="Fleet smaller than asked: summary",
        description="3 engines are ready; replicas are 2 to 4. That has lasted 30m: fewer than the minimum, or fewer "
        "than the maximum while engines turn requests away.",
        silent={"engines that err": [*fleet("summary", 10, engines=3), retried("summary", 5, code="500")]},
    ),
    Case(
        "InferenceCanaryEmpty",
        model="trial",
        fires=[*fleet("trial", 10), router("envoy_cluster_membership_healthy", "1x200", "fleet/trial-canary")],
        severity="warning",
        summary="Canary without an engine: trial",
        description="No engine of the canary has been ready for 30m, so the 10 % of the requests that are meant for it "
        "go to the stable fleet.",
        silent={
            "an engine": [router("envoy_cluster_membership_healthy", "2x200", "fleet/trial-canary")],
            "a node on its way": [router("envoy_cluster_membership_healthy", "2x45 1x10 2x100", "fleet/trial-canary")],
            "the stable fleet's": fleet("trial", 10, engines=0),
        },
    ),
    Case(
        "InferenceRequestsTurnedAway",
        model="intake",
        fires=fleet("intake", 50, failed=10, code="429"),
        severity="critical",
        summary="Clients are turned away: intake",
        description="20% of the answers are 429: the engines are full. Replicas are 2 to 2.",
        silent={
            "a burst": [
                *fleet("intake", 50)[:2],
                router("envoy_cluster_upstream_rq", "0x54 0+10x3 30x100", "fleet/intake", envoy_response_code="429"),
            ],
            "bad requests": fleet("intake", 50, failed=10, code="400"),
        },
    ),
    Case(
        "InferenceRequestsTurnedAway",
        model="night",
        fires=fleet("night", 50, failed=10, code="429"),
        severity="warning",
        summary="Clients are turned away: night",
        description="20% of the answers are 429: the engines are full. Replicas are 1 to 1.",
        silent={"no traffic": fleet("night", 0)},
    ),
    Case(
        "InferenceRequestsTimeOut",
        model="intake",
        fires=[*fleet("intake", 100), *timeouts("intake", 2, 3)],
        severity="warning",
        summary="Requests time out: intake",
        description="5% of the answers met requestTimeout (600s) or, for one try, hangGuard (120s).",
        silent={
            "one in two hundred": [*fleet("intake", 200), *timeouts("intake", 1, 0)],
            "no traffic": [*fleet("intake", 0), *timeouts("intake", 0, 0)],
        },
    ),
    Case(
        "InferenceLimitReached",
        model="summary",
        fires=overflows("bedrock/summary", "0x50 40x100", "0x200"),
        severity="warning",
        labels={"envoy_cluster_name": "bedrock/summary"},
        at="55m",
        summary="A limit of the router refuses requests: summary",
        description="40 requests or retries to bedrock/summary met a limit within ten minutes. Per router "
        "limits.requests is 4096, limits.pendingRequests 4096, fallback.maxConcurrent 1024.",
        silent={
            "an hour ago": overflows("bedrock/summary", "0x5 40x100", "0x200"),
            "a router that restarted": overflows("fleet/summary", "40x50 0x100", "0x200"),
        },
    ),
    Case(
        "InferenceEnginesTurnAway",
        model="summary",
        fires=[*fleet("summary", 50), retried("summary", 20)],
        severity="warning",
        summary="Engines turn requests away: summary",
        description="40% of the tries in the fleet ended in 429: the engine was full, or the first token would have "
        "missed its budget of 2s. They went on elsewhere.",
        silent={
            "one in fifty": [*fleet("summary", 50), retried("summary", 1)],
            "no traffic": [*fleet("summary", 0), retried("summary", 0)],
        },
    ),
    Case(
        "InferenceFallbackShare",
        model="summary",
        fires=[*fleet("summary", 60), *bedrock("summary", 20)],
        severity="warning",
        summary="Fallback in use: summary",
        description="Amazon Bedrock (openai.gpt-oss-120b-1:0) gives 25% of the answers, at the price of its tokens.",
        silent={
            "one in ten": [*fleet("summary", 90), *bedrock("summary", 10)],
            "no traffic": [*fleet("summary", 0), *bedrock("summary", 0)],
            "hardly any traffic": [*fleet("summary", 0), *bedrock("summary", 0.5)],
        },
    ),
    Case(
        "InferenceBedrockErrors",
        model="summary",
        fires=bedrock("summary", 20, failed=5),
        severity="critical",
        summary="Amazon Bedrock refuses or fails: summary",
        description="25% of the answers of openai.gpt-oss-120b-1:0 are throttles, denials or errors, which clients "
        "see.",
        silent={
            "bad requests of clients": bedrock("summary", 20, failed=5, code="400"),
            "no traffic": bedrock("summary", 0),
        },
    ),
]


CASES += [
    Case(
        "InferenceRouterCertificateEnds",
        [router("envoy_listener_ssl_certificate_expiration_unix_time_seconds", f"{9 * DAY}x200", **LISTENER)],
        severity="warning",
        summary="The router's certificate ends",
        description="The certificate that router-0 serves ends in 8d 23h 0m 0s. A client that verifies it is refused "
        "from then on.",
        labels={"pod": "router-0"},
        silent={
            "three weeks": [
                router("envoy_listener_ssl_certificate_expiration_unix_time_seconds", f"{21 * DAY}x200", **LISTENER)
            ],
            "renewed in time": [
                router(
                    "envoy_listener_ssl_certificate_expiration_unix_time_seconds",
                    f"{9 * DAY}x40 {90 * DAY}x160",
                    **LISTENER,
                )
            ],
        },
    ),
    Case(
        "InferenceEngineUntrusted",
        [
            router("envoy_cluster_ssl_fail_verify_error", "0x200", "fleet/summary"),
            router("envoy_cluster_ssl_fail_verify_san", "0+30x200", "fleet/summary"),
        ],
        severity="warning",
        summary="An engine does not prove its name: summary",
        description="Routers refused the certificate of an engine of fleet/summary 150 times in 5 minutes, and sent "
        "it nothing.",
        labels={"envoy_cluster_name": "fleet/summary"},
        silent={
            "long ago": [
                router("envoy_cluster_ssl_fail_verify_error", "7x200", "fleet/summary"),
                router("envoy_cluster_ssl_fail_verify_san", "9x200", "fleet/summary"),
            ]
        },
        model="summary",
    ),
    Case(
        "InferenceEngineCertificateEnds",
        [engine("plane_engine_certificate_expiry_timestamp_seconds", f"{9 * DAY}x200")],
        severity="warning",
        summary="An engine's certificate ends: intake",
        description="The certificate that intake-0 serves ends in 8d 23h 0m 0s. The router sends it nothing from then "
        "on.",
        labels={"pod": "intake-0"},
        silent={"three weeks": [engine("plane_engine_certificate_expiry_timestamp_seconds", f"{21 * DAY}x200")]},
        model="intake",
    ),
]


@pytest.fixture(scope="module")
def rule_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules of both charts as Prometheus reads them."""
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    groups = [
        group
        for chart, values in RENDERED.items()
        for rule in helm.template(chart, values=values).of_kind("PrometheusRule")
        for group in rule["spec"]["groups"]
    ]
    # In a cluster each PrometheusRule is a file of its own; in one file names of groups must differ.
    path.write_text(yaml.safe_dump({"groups": [{**g, "name": f"{n}-{g['name']}"} for n, g in enumerate(groups)]}))
    return path


def rendered_rules() -> list[dict[str, Any]]:
    return [rule for chart, values in RENDERED.items() for rule in rules(helm.template(chart, values=values).objects)]


def run(rule_file: Path, folder: Path, tests: Sequence[Mapping[str, Any]]) -> str:
    """What promtool says of the tests; empty where all hold."""
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(rule_file)], "evaluation_interval": "1m", "tests": list(tests)}))
    done = subprocess.run([PROMTOOL, "test", "rules", path], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_of(case: Case, series: Sequence[Series], expected: bool) -> dict[str, Any]:
    """A test in promtool's form: at `at` the case's alert, and no other of its name, fires; or none does."""
    (runbook,) = {rule["annotations"]["runbook_url"] for rule in rendered_rules() if rule["alert"] == case.alert}
    alert = {
        "exp_labels": {"severity": case.severity, "namespace": "inference", **LABELS[case.model], **case.labels},
        "exp_annotations": {"summary": case.summary, "description": case.description, "runbook_url": runbook},
    }
    check = {"eval_time": case.at, "alertname": case.alert, "exp_alerts": [alert] if expected else []}
    # A router that answers, which is what most alerts stand on.
    others = [] if case.alert == "InferenceRouterDown" else [router("up", "1x200", pod="router-9")]
    inputs = [{"series": name, "values": values} for name, values in [*others, *series]]
    return {"name": case.alert, "interval": "1m", "input_series": inputs, "alert_rule_test": [check]}


test_of.__test__ = False


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.model}")
def test_an_alert_fires_with_its_words(case: Case, rule_file: Path, tmp_path: Path) -> None:
    assert not run(rule_file, tmp_path, [test_of(case, case.fires, True)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.model}")
def test_an_alert_stays_silent(case: Case, rule_file: Path, tmp_path: Path) -> None:
    """promtool names the reason where one does not hold."""
    tests = [test_of(case, series, False) | {"name": reason} for reason, series in case.silent.items()]
    assert not run(rule_file, tmp_path, tests)


def test_a_plane_without_traffic_is_silent(rule_file: Path, tmp_path: Path) -> None:
    idle = [router("up", "1x200"), *policies("1x200")]
    assert not run(rule_file, tmp_path, [test_of(case, idle, False) for case in CASES])


def test_every_alert_has_its_case() -> None:
    alerts = {(rule["alert"]) for rule in rendered_rules()}
    assert alerts == {case.alert for case in CASES}
    assert all(case.silent for case in CASES)


def test_a_wrong_expectation_is_noticed(rule_file: Path, tmp_path: Path) -> None:
    """promtool is asked, and not only run."""
    case = next(case for case in CASES if case.alert == "InferenceBedrockErrors")
    assert "InferenceBedrockErrors" in run(rule_file, tmp_path, [test_of(case, case.fires, False)])
    assert "InferenceBedrockErrors" in run(rule_file, tmp_path, [test_of(case, (), True)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.model}")
def test_the_series_of_a_case_look_like_captured_ones(case: Case) -> None:
    shapes = {(s["__name__"], frozenset(s) - {"__name__"}) for s in captured()}
    for name, _ in [*case.fires, *(one for series in case.silent.values() for one in series)]:
        (series,) = exposed(f"{name} 0")
        shape = series.pop("__name__"), frozenset(series) - TARGET_LABELS
        assert shape[0] in SYNTHETIC or shape in shapes, shape


@pytest.mark.parametrize("case", environments.cases(), ids=lambda case: case.name)
def test_promtool_takes_the_rules_of_every_install(case: environments.Case, tmp_path: Path) -> None:
    values = case.values
    if case.chart in RENDERED:
        values = {**values, **ON}
    elif case.chart == "inference-plane":
        values = {**values, **{chart: {**values.get(chart, {}), **ON} for chart in RENDERED}}
    groups = [
        {**group, "name": f"{number}-{group['name']}"}
        for number, rule in enumerate(helm.template(case.chart, values=values).of_kind("PrometheusRule"))
        for group in rule["spec"]["groups"]
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups}))
    done = subprocess.run([PROMTOOL, "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
