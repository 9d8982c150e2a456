"""Whom those ask who watch and scale the plane, and what they bring along."""

from collections.abc import Iterator, Mapping
from urllib.parse import SplitResult, urlsplit

from inference_plane.compliance import envoy
from inference_plane.compliance.envoy import dig, items, text
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index


@rule(
    "PLANE_RES_81",
    "Prometheus asks pods for numbers, and brings nothing",
    severity="HIGH",
    kinds={"monitoring.coreos.com/PodMonitor"},
    why="Prometheus reads any Secret of the namespace that a PodMonitor names, keys of TLS too, and sends it along "
    "with its question, by a proxy where one is named.",
    remedy="port, path: /metrics, interval and params alone, as the charts have it.",
    source="https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.PodMetricsEndpoint",
    example="podMetricsEndpoints: [{port: metrics, proxyUrl: http://proxy.example.com:3128}]",
)
def bare_questions(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for i, endpoint in enumerate(items(dig(obj, "spec", "podMetricsEndpoints"))):
        where = f"spec.podMetricsEndpoints[{i}]"
        for field in sorted(set(endpoint) - {"port", "path", "interval", "scrapeTimeout", "params"}):
            yield f"{where}.{field}", "is set, which the charts do not: it can bring a Secret, or ask by a proxy"
        if endpoint.get("path") != "/metrics":
            yield f"{where}.path", f"is {endpoint.get('path')!r}, not /metrics"


def _demand_of_another_release(asked: SplitResult, host: list[str], index: Index) -> bool:
    """Whether it asks the policy service for a model's demand, and the router is no part of what is judged."""
    own = host[:1] + host[2:] == ["router-policy", "svc"] and asked.path.startswith("/demand/")
    return own and not envoy.routers(index)


@rule(
    "PLANE_RES_82",
    "Replicas follow numbers of the cluster",
    severity="HIGH",
    kinds={"keda.sh/ScaledObject", "keda.sh/ScaledJob"},
    why="Who answers KEDA decides how many engines there are; a trigger's authentication goes to the host it names.",
    remedy="Triggers of type metrics-api on the Service of the engines.",
    source="https://keda.sh/docs/latest/scalers/metrics-api/",
    example="url: https://metrics.example.com/load",
)
def numbers_of_the_cluster(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for i, trigger in enumerate(items(dig(obj, "spec", "triggers"))):
        where = f"spec.triggers[{i}]"
        if trigger.get("type") != "metrics-api":
            yield f"{where}.type", f"is {trigger.get('type')}, which may ask anybody"
        if trigger.get("authenticationRef"):
            yield f"{where}.authenticationRef", "brings a credential"
        asked = urlsplit(text(dig(trigger, "metadata", "url")))
        host = (asked.hostname or "").split(".")
        known = len(host) == 3 and host[2] == "svc" and index.get("Service", host[1], host[0]) is not None
        if not known and not _demand_of_another_release(asked, host, index):
            yield f"{where}.metadata.url", f"asks {'.'.join(host) or 'nobody'}, which is no Service of the render"
