"""What Prometheus and Grafana are given: real metrics, runbooks that exist, numbers of the catalogue, refusals."""

from __future__ import annotations

import copy
import json
import functools
import itertools
import re
from typing import Any

import pytest
from metrics_harness import Series, captured, complaints, dashboards, queries, rules

from inference_plane import helm
from inference_plane.checkout import ROOT
from inference_plane.environments import chart_values
from inference_plane.manifests.kserve import deployments

RUNBOOKS = ROOT / "docs" / "runbooks"
ON = {"podMonitor": {"enabled": True}, "alerts": {"enabled": True}}
ENTRY = {"weightsGiB": 15.3, "accelerator": "l40s", "maxModelLen": 16384}

#: The models of the capture from Envoy. `summary` has all that one can have; the rules of `intake` are a part of its.
VALUES: dict[str, Any] = {
    "global": {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "certManager", "certManager": {"issuerRef": {"name": "internal"}}},
        "network": {
            "albSubnetCidrs": ["10.0.0.0/20"],
            "s3Cidrs": ["10.0.64.0/20"],
            "bedrockCidrs": ["10.0.64.0/20"],
            "jwksCidrs": ["10.0.80.0/24"],
            "apiServerCidrs": ["10.0.96.0/28"],
        },
        "teams": {"appeals": {"costCenter": "4711", "tokensPerMinute": 1000}},
        "models": {
            "summary": {
                **ENTRY,
                "source": "s3://models/summary/v1/",
                "team": "appeals",
                "residency": "region",
                "replicas": {"min": 2, "max": 4},
                "firstTokenBudget": "2s",
                "fallback": {"model": "openai.gpt-oss-120b-1:0", "retention": "none"},
            },
            "intake": {**ENTRY, "source": "s3://models/intake/v1/"},
        },
    },
    "router": {
        **ON,
        "auth": {"issuer": "https://a.example", "audiences": ["a"], "jwks": {"uri": "https://a.example/keys"}},
        "dashboards": {"enabled": True},
    },
    "vllm": ON,
}
CHARTS_ON = ("router", "vllm")


def values_with(**paths: Any) -> dict[str, Any]:
    """VALUES with other values at paths such as `vllm__alerts__firstTokenSeconds`."""
    values = copy.deepcopy(VALUES)
    for path, value in paths.items():
        node = values
        *keys, last = path.split("__")
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = value
    return values


def render(chart: str, values: dict[str, Any] = VALUES) -> helm.Render:
    return helm.template(chart, values=chart_values(values, chart))


def alert(render: helm.Render, name: str, model: str = "") -> dict[str, Any]:
    (found,) = [r for r in rules(render.objects) if r["alert"] == name and r["labels"].get("model", "") == model]
    return found


@functools.cache
def target_labels() -> frozenset[str]:
    """The labels of targets that the PodMonitors ask for, as the Prometheus Operator writes them."""
    monitors = [m for chart in CHARTS_ON for m in render(chart).of_kind("PodMonitor")]
    return frozenset(re.sub(r"\W", "_", label) for m in monitors for label in m["spec"].get("podTargetLabels", ()))


def expressions() -> list[tuple[str, str]]:
    """Where each expression is, and it."""
    found = []
    for chart in CHARTS_ON:
        objects = render(chart).objects
        found += [(f"{rule['alert']} {rule['labels'].get('model', '')}", rule["expr"]) for rule in rules(objects)]
        for board in dashboards(objects):
            found += [(f"{board['title']}: {query}", query) for query in queries(board)]
    return found


# --- real metrics ----------------------------------------------------------------------------------------------------


def real() -> list[Series]:
    """What was captured, the engines' model renamed to one of the catalogue."""
    return [
        {key: "summary" if key == "model_name" else value for key, value in series.items()} for series in captured()
    ]


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=lambda part: part[:60])
def test_every_metric_and_label_was_seen(where: str, expression: str) -> None:
    assert not list(complaints(expression, real(), target_labels())), where


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("rate(vllm:num_preemption_total[5m])", "nothing exposes vllm:num_preemption_total"),
        (
            'envoy_cluster_upstream_rq_xx{response_code_class="5"}',
            "no series of envoy_cluster_upstream_rq_xx has response",
        ),
        ('vllm:num_requests_waiting_by_reason{reason="full"}', "no series of vllm:num_requests_waiting_by_reason has"),
        ("sum by (cluster_name) (envoy_cluster_upstream_rq_total)", "no series has the label cluster_name"),
        ("1 + max_over_time((vllm:nothing > 1)[1d:1m]) or up", "nothing exposes vllm:nothing"),
    ],
)
def test_an_invented_metric_or_label_is_noticed(expression: str, complaint: str) -> None:
    (found,) = complaints(expression, captured(), ())
    assert found.startswith(complaint)


# --- alerts ----------------------------------------------------------------------------------------------------------


def test_thresholds_follow_from_the_entry() -> None:
    router, engines = render("router"), render("vllm")
    # 15.3 GiB at 0.25 GiB/s, and 600 s for the engine.
    assert alert(engines, "InferenceReplicaNotReady", "summary")["for"] == "662s"
    slow = render(
        "vllm", values_with(global__models__summary__weightsGiB=16.0, global__models__summary__maxModelLen=8192)
    )
    assert alert(slow, "InferenceReplicaNotReady", "summary")["for"] == "664s"
    assert "its budget of 2s" in alert(router, "InferenceEnginesTurnAway", "summary")["annotations"]["description"]
    small = alert(router, "InferenceFleetTooSmall", "summary")["expr"]
    assert "< 2" in small and "< 4" in small
    assert alert(router, "InferenceFleetTooSmall", "intake")["expr"].endswith("< 1")


def test_an_alert_says_whose_it_is() -> None:
    owned = {
        "model": "summary",
        "team": "appeals",
        "cost_center": "4711",
        "residency": "region",
        "namespace": "inference",
    }
    for chart in CHARTS_ON:
        for rule in rules(render(chart).objects):
            if rule["labels"].get("model") == "summary":
                assert {key: rule["labels"].get(key) for key in owned} == owned
            assert rule["labels"]["severity"] in ("critical", "warning")
    assert "team" not in alert(render("router"), "InferenceRequestsFail", "intake")["labels"]


def test_only_what_people_feel_pages() -> None:
    critical = {
        r["alert"] for c in CHARTS_ON for r in rules(render(c).objects) if r["labels"]["severity"] == "critical"
    }
    assert critical == {
        "InferenceBedrockErrors",
        "InferenceFirstTokenLate",
        "InferenceNoEngine",
        "InferenceRequestsFail",
        "InferenceRequestsTurnedAway",
        "InferenceRouterDown",
        "InferenceRouterOverloaded",
    }
    values = values_with(global__models__intake__replicas={"min": 0})
    assert alert(render("router", values), "InferenceStaysAsleep", "intake")["labels"]["severity"] == "critical"


def test_budgets_that_nobody_can_ask_page_where_that_refuses_requests() -> None:
    for mode, severity in (("serve", "warning"), ("refuse", "critical")):
        values = values_with(router__budgets={"whenUnavailable": mode})
        assert alert(render("router", values), "InferenceTokenBudgetsUnavailable")["labels"]["severity"] == severity


def test_without_budgets_nothing_alerts_about_them() -> None:
    values = values_with(global__teams__appeals={"costCenter": "4711"})
    assert not [r for r in rules(render("router", values).objects) if "TokenBudget" in r["alert"]]


def test_a_batch_model_pages_nobody() -> None:
    values = values_with(global__models__intake__traffic="batch")
    for chart in CHARTS_ON:
        of_model = [r for r in rules(render(chart, values).objects) if r["labels"].get("model") == "intake"]
        assert of_model and {rule["labels"]["severity"] for rule in of_model} == {"warning"}


def test_a_model_without_a_fallback_has_no_alert_about_one() -> None:
    about = {"InferenceFallbackShare", "InferenceBedrockErrors", "InferenceEnginesTurnAway"}
    seen = {(r["alert"], r["labels"]["model"]) for r in rules(render("router").objects) if r["alert"] in about}
    assert seen == {(name, "summary") for name in about}


def test_names_of_two_charts_in_one_namespace_differ() -> None:
    """No model can be called `router.summary`."""
    values = values_with(**{"global__models__router-summary": VALUES["global"]["models"]["intake"]})
    named = [
        (o["kind"], o["metadata"]["name"])
        for o in render("inference-plane", values).objects
        if o["kind"] in ("PodMonitor", "PrometheusRule", "ConfigMap")
    ]
    assert len(named) == len(set(named))


def test_labels_for_a_prometheus_stand_on_what_it_reads() -> None:
    values = values_with(global__monitoringLabels={"release": "stack"})
    for chart in CHARTS_ON:
        for o in render(chart, values).objects:
            found = o["metadata"]["labels"].get("release")
            assert found == ("stack" if o["kind"] in ("PodMonitor", "PrometheusRule") else None), o["metadata"]["name"]


#: With a canary too, whose clusters the capture does not have.
CANARY = {"global__models__summary__canary": {"source": "s3://models/summary/v2/", "percent": 10}}
TRIED = values_with(**CANARY, global__models__nap={**ENTRY, "source": "s3://models/nap/v1/", "replicas": {"min": 0}})


# --- runbooks --------------------------------------------------------------------------------------------------------


def anchors() -> dict[str, str]:
    """The headings of the runbooks that name alerts, by file#anchor as a browser has it."""
    return {
        f"{path.name}#{heading.lower()}": heading
        for path in sorted(RUNBOOKS.glob("*.md"))
        for heading in re.findall(r"^## (Inference\w+)$", path.read_text(), re.MULTILINE)
    }


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    base = "https://github.com/inference-plane/inference-plane/blob/main/docs/runbooks/"
    links = {r["annotations"]["runbook_url"]: r["alert"] for c in CHARTS_ON for r in rules(render(c, TRIED).objects)}
    assert all(link.startswith(base) for link in links)
    assert {link.removeprefix(base): name for link, name in links.items()} == anchors()


def test_a_runbook_says_what_to_do() -> None:
    wanted = ["Means", "Felt", "First", "Causes", "Silence"]
    for path in sorted(RUNBOOKS.glob("*.md")):
        for section in re.split(r"^## ", path.read_text(), flags=re.MULTILINE)[1:]:
            name, text = section.split("\n", 1)
            if name.startswith("Inference"):
                assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == wanted, name
                assert len(re.findall(r"^(?:kubectl|aws) ", text, re.MULTILINE)) >= 3, name


def test_the_commands_of_runbooks_fit_either_engine() -> None:
    """KServe calls a model's Deployment and container otherwise; the labels and the first container are the same."""
    commands = [c for path in RUNBOOKS.glob("*.md") for c in re.findall(r"^kubectl .*", path.read_text(), re.MULTILINE)]
    assert not [command for command in commands if re.search(r"deployment/MODEL|--container", command)]
    selectors = {found for command in commands for found in re.findall(r"--selector (\S+)", command)}
    for engine in ("vllm", "kserve"):
        objects = render("inference-plane", values_with(**CANARY, global__modelDefaults={"engine": engine})).objects
        pods = [o["spec"]["template"] for o in [*objects, *deployments(objects)] if o["kind"] == "Deployment"]
        labels = {f"{key}={value}" for pod in pods for key, value in pod["metadata"]["labels"].items()}
        assert {selector.replace("MODEL", "summary") for selector in selectors} <= labels


def test_runbooks_may_be_elsewhere() -> None:
    values = values_with(global__runbookUrl="https://wiki.example/inference/")
    link = alert(render("router", values), "InferenceRouterDown")["annotations"]["runbook_url"]
    assert link == "https://wiki.example/inference/router.md#inferencerouterdown"


def test_the_guide_lists_the_alerts() -> None:
    listed = re.findall(
        r"^\| `(Inference\w+)` \| (\w+)", (ROOT / "docs" / "observability.md").read_text(), re.MULTILINE
    )
    severities: dict[str, set[str]] = {}
    for chart, values in itertools.product(CHARTS_ON, (TRIED, values_with(global__models__intake__traffic="batch"))):
        for rule in rules(render(chart, values).objects):
            severities.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    assert dict(listed) == {
        name: "critical" if "critical" in found else "warning" for name, found in severities.items()
    }


# --- dashboards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["router", "engines"])
def test_a_dashboard_is_found_and_whole(file: str) -> None:
    holder = render("router").find("ConfigMap", "router-dashboards")
    assert holder["metadata"]["labels"]["grafana_dashboard"] == "1"
    board = json.loads(holder["data"][f"inference-plane-{file}.json"])
    assert board["uid"] == f"inference-plane-{file}"
    assert board["schemaVersion"] >= 39 and board["uid"] and not board.get("id")
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places) == len({p["id"] for p in board["panels"]})
    variables = {variable["name"] for variable in board["templating"]["list"]}
    for panel in board["panels"]:
        assert panel["title"] and panel["targets"] and panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables
            # A legend names labels that the expression keeps.
            kept = re.findall(r"by \(([^)]*)\)", target["expr"])
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert legend <= {name.strip() for names in kept for name in names.split(",")}, target


@pytest.mark.parametrize(
    ("file", "title", "label", "canary"),
    [
        ("engines", "Replicas on a node, and those that serve", "job", "inference/summary-canary"),
        ("router", "Share of Amazon Bedrock", "envoy_cluster_name", "fleet/summary-canary"),
    ],
)
def test_a_picked_model_counts_with_its_canary(file: str, title: str, label: str, canary: str) -> None:
    """Without it a canary that does not start is not seen, and Amazon Bedrock's share looks larger than it is."""
    board = json.loads(render("router").find("ConfigMap", "router-dashboards")["data"][f"inference-plane-{file}.json"])
    (panel,) = [panel for panel in board["panels"] if panel["title"] == title]
    for target in panel["targets"]:
        picked = target["expr"].replace("$namespace", "inference").replace("$model", "summary")
        patterns = re.findall(rf'{label}=~"([^"]*)"', picked)
        assert any(re.fullmatch(pattern, canary) for pattern in patterns), target["expr"]


def test_the_sidecar_may_look_for_another_label() -> None:
    values = values_with(router__dashboards__labels={"grafana_dashboard": None, "dashboards": "inference"})
    labels = render("router", values).find("ConfigMap", "router-dashboards")["metadata"]["labels"]
    assert labels["dashboards"] == "inference" and "grafana_dashboard" not in labels


# --- off, and refused ------------------------------------------------------------------------------------------------


def test_nothing_of_it_is_there_by_default() -> None:
    values = {"global": VALUES["global"], "router": {"auth": VALUES["router"]["auth"]}}
    kinds = {o["kind"] for o in render("inference-plane", values).objects}
    assert not kinds & {"PodMonitor", "PrometheusRule"}
    assert not dashboards(render("inference-plane", values).objects)


OF = {"router": "the router", "vllm": "the catalogue"}


@pytest.mark.parametrize("chart", CHARTS_ON)
@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (
            {"podMonitor__enabled": False},
            "- alerts.enabled: true, while podMonitor.enabled is false. They read what the PodMonitor collects, and "
            "would stay silent without it. Set podMonitor.enabled: true, or alerts.enabled: false.",
        ),
        (
            {"podMonitor__interval": "2m"},
            "- podMonitor.interval: 2m is longer than 1m, while alerts.enabled is true. Alerts look at rates over five "
            "minutes, which need some samples. Set at most 1m, or alerts.enabled: false.",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(chart: str, paths: dict[str, Any], text: str) -> None:
    values = values_with(**{f"{chart}__{path}": value for path, value in paths.items()})
    with pytest.raises(helm.HelmError, match=re.escape(f"values of {OF[chart]} do not fit together:\n{text}")):
        render(chart, values)


def test_dashboards_of_what_nobody_collects_are_refused() -> None:
    text = (
        "- dashboards.enabled: true, while podMonitor.enabled is false. They show what the PodMonitor collects, and "
        "would stay empty without it. Set podMonitor.enabled: true, or dashboards.enabled: false."
    )
    values = values_with(router__podMonitor__enabled=False, router__alerts__enabled=False)
    with pytest.raises(helm.HelmError, match=re.escape(text)):
        render("router", values)


def test_a_canary_has_alerts_of_its_own_and_counts_with_its_model() -> None:
    engines = render("vllm", TRIED).find("PrometheusRule", "summary-canary")["spec"]["groups"][0]["rules"]
    assert all('job="inference/summary-canary"' in rule["expr"] for rule in engines)
    assert {rule["labels"]["model"] for rule in engines} == {"summary"}
    behind = render("router", TRIED).find("PrometheusRule", "router.summary")["spec"]["groups"][0]["rules"]
    fails = next(rule["expr"] for rule in behind if rule["alert"] == "InferenceRequestsFail")
    assert 'envoy_cluster_name=~"(fleet|bedrock)/summary(-canary)?"' in fails
    # Another model may be called so where there is no canary.
    other = render("router", TRIED).find("PrometheusRule", "router.intake")["spec"]["groups"][0]["rules"]
    assert not [rule for rule in other if "canary" in rule["expr"]]


def test_a_rule_asks_for_the_job_of_a_monitor_in_whatever_namespace() -> None:
    """Another job has no series, so that nothing fires and nobody hears of it."""
    intake = {"namespace": "care", "canary": {"source": "s3://models/intake/v2/", "percent": 10}}
    values = values_with(global__models__intake={**VALUES["global"]["models"]["intake"], **intake})
    objects = helm.template("inference-plane", values=values, namespace="edge").objects
    monitors = [o for o in objects if o["kind"] == "PodMonitor"]
    # Without `jobLabel` the Prometheus Operator calls the job NAMESPACE/NAME.
    assert not [o["metadata"]["name"] for o in monitors if "jobLabel" in o["spec"]]
    jobs = {f"{o['metadata']['namespace']}/{o['metadata']['name']}" for o in monitors}
    assert jobs == {"edge/router", "edge/router-policy", "edge/summary", "care/intake", "care/intake-canary"}
    assert {job for rule in rules(objects) for job in re.findall(r'job="([^"]*)"', rule["expr"])} == jobs


@pytest.mark.parametrize("engine", ["vllm", "kserve"])
def test_each_engine_chart_has_the_same_alerts(engine: str) -> None:
    values = values_with(kserve=ON, global__modelDefaults={"engine": engine})
    rules = render(engine, values).find("PrometheusRule", "summary")["spec"]["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == {
        "InferenceKVCacheFull", "InferenceEngineRestarts", "InferenceReplicaNotReady", "InferenceEngineCertificateEnds"}


@pytest.mark.parametrize("chart", CHARTS_ON)
def test_a_policy_that_keeps_prometheus_out_is_refused(chart: str) -> None:
    text = (
        "- global.network.scraperNamespaces: empty, while podMonitor.enabled is true. Prometheus reads metrics from "
        "the pods, and the NetworkPolicies deny what nobody names. Set the namespace of Prometheus, or "
        "podMonitor.enabled: false."
    )
    values = values_with(global__network__scraperNamespaces=[])
    with pytest.raises(helm.HelmError, match=re.escape(text)):
        render(chart, values)


@pytest.mark.parametrize("key", ["app.kubernetes.io/name", "inference-plane/model", "helm.sh/chart"])
def test_a_label_of_the_plane_is_not_for_a_prometheus(key: str) -> None:
    with pytest.raises(helm.HelmError, match="monitoringLabels"):
        render("router", values_with(global__monitoringLabels={key: "x"}))
