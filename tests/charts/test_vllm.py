"""The chart `vllm`: what it renders for an entry of the catalogue, and what it refuses."""

import copy
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS, ROOT

CHART = CHARTS / "vllm"
CI = sorted(CHART.glob("ci/*-values.yaml"))
FLAGS = set((ROOT / "tests/data/vllm-0.32/serve-flags.txt").read_text().split())

MODEL = {
    "source": "s3://models/m/v1/",
    "weightsGiB": 15.3,
    "accelerator": "l40s",
    "maxModelLen": 16384,
}
NEURON = {
    "source": "s3://models/n/v1/",
    "weightsGiB": 12,
    "accelerator": "inferentia2",
    "tensorParallelSize": 2,
    "maxModelLen": 4096,
    "maxNumSeqs": 8,
    "compiled": {"source": "s3://models/n-compiled/v1/", "tensorParallelSize": 2, "maxModelLen": 4096, "maxNumSeqs": 8},
}
CPU = {"source": "file:///models/c/v1/", "weightsGiB": 0.5, "accelerator": "cpu", "maxModelLen": 2048}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, as Helm merges values: maps field by field, everything else replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        result[key] = merged(result[key], value) if isinstance(value, Mapping) and key in result else value
    return result


def values(models: Mapping[str, Any], **over: Any) -> dict[str, Any]:
    shared = {"aws": {"region": "eu-central-1"}, "tls": {"mode": "none"}, "network": {"s3Cidrs": ["10.0.0.0/24"]}}
    base = {"global": {**shared, "models": models}}
    return merged(base, over)


def render(model: Mapping[str, Any] = {}, base: Mapping[str, Any] = MODEL, **over: Any) -> helm.Render:
    """The chart with one model `m`, which is `base` with the fields of `model`."""
    return helm.template("vllm", values=values({"m": merged(base, model)}, **over))


def refusal(model: Mapping[str, Any] = {}, base: Mapping[str, Any] = MODEL, **over: Any) -> list[str]:
    """The lines of the refusal of `render` with these arguments."""
    with pytest.raises(helm.HelmError) as refused:
        render(model, base, **over)
    return [line for line in str(refused.value).splitlines() if line.startswith("- ")]


def engine(rendered: helm.Render, name: str = "m") -> dict[str, Any]:
    (container,) = pod(rendered, name)["containers"]
    return container


def pod(rendered: helm.Render, name: str = "m") -> dict[str, Any]:
    return rendered.find("Deployment", name)["spec"]["template"]["spec"]


def init(rendered: helm.Render, container: str, name: str = "m") -> dict[str, Any]:
    return next(c for c in pod(rendered, name)["initContainers"] if c["name"] == container)


def env(container: Mapping[str, Any]) -> dict[str, str]:
    names = [variable["name"] for variable in container.get("env", [])]
    assert len(names) == len(set(names))
    return {variable["name"]: variable["value"] for variable in container.get("env", [])}


def kinds(rendered: helm.Render) -> set[tuple[str, str]]:
    return {(o["kind"], o["metadata"]["name"]) for o in rendered.objects if "helm.sh/hook" not in annotations(o)}


def annotations(obj: Mapping[str, Any]) -> dict[str, str]:
    return obj["metadata"].get("annotations", {})


def image(name: str, version: str) -> dict[str, Any]:
    return {"global": {"images": {name: {"version": version}}}}


# --- every chart's duties --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CI, ids=lambda file: file.stem)
def test_ci_files_render_and_lint_strictly(file):
    rendered = helm.template(CHART, files=[file])
    assert rendered.of_kind("Deployment")
    assert "0 chart(s) failed" in helm.run("lint", "--strict", str(CHART), "--values", str(file))


def test_the_defaults_render_nothing():
    assert helm.template(CHART).objects == []


def test_enabled_is_what_the_umbrella_reads():
    umbrella = yaml.safe_load((CHARTS / "inference-plane" / "Chart.yaml").read_text())
    assert {d["name"]: d.get("condition") for d in umbrella["dependencies"]}["vllm"] == "vllm.enabled"


@pytest.mark.parametrize("file", CI, ids=lambda file: file.stem)
def test_every_pod_meets_the_restricted_standard(file):
    rendered = helm.template(CHART, files=[file])
    specs = [d["spec"]["template"]["spec"] for d in rendered.of_kind("Deployment")]
    specs += [p["spec"] for p in rendered.of_kind("Pod")]
    for spec in specs:
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {next(iter(set(v) - {"name"})) for v in spec.get("volumes", [])} <= {"configMap", "emptyDir", "secret"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["privileged"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert context["readOnlyRootFilesystem"] is not gpu


# --- one model -------------------------------------------------------------------------------------------------------


def test_a_model_is_an_engine_and_all_that_belongs_to_it():
    assert kinds(render()) == {
        ("Deployment", "m"),
        ("Service", "m"),
        ("ServiceAccount", "m"),
        ("NetworkPolicy", "m"),
        ("ConfigMap", "plane-vllm-files"),
    }


def test_the_service_lists_ready_pods_under_the_models_name():
    service = render().find("Service", "m")["spec"]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is False
    assert service["selector"] == {"app.kubernetes.io/name": "m", "app.kubernetes.io/component": "engine"}
    assert {p["name"]: (p["port"], p["targetPort"]) for p in service["ports"]} == {
        "http": (8000, "http"),
        "metrics": (8001, "metrics"),
    }


def test_labels_say_whose_and_what():
    labels = render(
        {"team": "appeals", "residency": "region", "traffic": "batch"},
        **{"global": {"teams": {"appeals": {"costCenter": "4711"}}}},
    ).find("Deployment", "m")["spec"]["template"]["metadata"]["labels"]
    assert {key.removeprefix("inference-plane/"): value for key, value in labels.items() if "plane/" in key} == {
        "model": "m",
        "version": "v1",
        "residency": "region",
        "traffic": "batch",
        "team": "appeals",
        "cost-center": "4711",
    }


def test_a_changed_middleware_rolls_the_pods(tmp_path):
    changed_chart = tmp_path / "vllm"
    changed_chart.mkdir()
    for entry in CHART.iterdir():
        if entry.name != "files":
            (changed_chart / entry.name).symlink_to(entry)
    (changed_chart / "files").mkdir()
    for file in (CHART / "files").glob("*.py"):
        (changed_chart / "files" / file.name).write_text(file.read_text() + "# changed\n")
    one, other = (
        helm.template(chart, values=values({"m": MODEL})).find("Deployment", "m") for chart in (CHART, changed_chart)
    )
    assert one["spec"]["template"]["metadata"] != other["spec"]["template"]["metadata"]


def test_the_engine_runs_the_mounted_files():
    rendered = render()
    data = rendered.find("ConfigMap", "plane-vllm-files")["data"]
    for name in ("plane_middleware.py", "metrics_port.py"):
        assert data[name].strip() == (CHART / "files" / name).read_text().strip()
    mounts = {m["name"]: m["mountPath"] for m in engine(rendered)["volumeMounts"]}
    assert mounts["files"] == env(engine(rendered))["PYTHONPATH"] == "/opt/plane"
    assert init(rendered, "metrics")["command"] == ["python3", "/opt/plane/metrics_port.py"]


def test_two_releases_share_a_namespace():
    one, other = (helm.template("vllm", values=values({"m": MODEL}), release=name) for name in ("one", "other"))
    names = [{o["metadata"]["name"] for o in r.of_kind("ConfigMap") + r.of_kind("Pod")} for r in (one, other)]
    assert names[0].isdisjoint(names[1])


def test_resources_follow_the_accelerator_and_their_number():
    resources = engine(render({"tensorParallelSize": 2}))["resources"]
    assert resources == {
        "requests": {"cpu": "6", "memory": "52Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "52Gi", "nvidia.com/gpu": "2"},
    }


def test_interactive_models_stay_off_spot_and_batch_models_prefer_it():
    def of(traffic: str) -> dict[str, Any]:
        return pod(render({"traffic": traffic}))["affinity"]["nodeAffinity"]

    required = "requiredDuringSchedulingIgnoredDuringExecution"
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    family = {"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["g6e"]}
    on_demand = {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand", "reserved"]}
    spot = {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]}
    other = {"key": "inference-plane/traffic", "operator": "NotIn"}
    assert of("interactive") == {
        required: {"nodeSelectorTerms": [{"matchExpressions": [family, other | {"values": ["batch"]}, on_demand]}]}
    }
    assert of("batch") == {
        required: {"nodeSelectorTerms": [{"matchExpressions": [family, other | {"values": ["interactive"]}]}]},
        preferred: [{"weight": 100, "preference": {"matchExpressions": [spot]}}],
    }


def test_engines_keep_off_the_nodes_of_the_other_traffic_by_the_label_that_pools_set():
    nodes = {"nodeClass": {"role": "n", "subnetTags": {"t": "p"}, "securityGroupTags": {"f": "n"}}}
    catalogue = values({"m": MODEL, "n": MODEL | {"traffic": "batch"}})
    pools = helm.template(
        "karpenter-nodepools", values=merged(catalogue, nodes | {"ec2": {"amiAlias": "bottlerocket@1.46.0"}})
    )
    for traffic, other in (("interactive", "batch"), ("batch", "interactive")):
        affinity = pod(render({"traffic": traffic}))["affinity"]["nodeAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        (wanted,) = [e for e in term["matchExpressions"] if e["operator"] == "NotIn"]
        labels = {
            name: pools.find("NodePool", f"inference-l40s-{name}")["spec"]["template"]["metadata"]["labels"]
            for name in (traffic, other)
        }
        assert labels[traffic][wanted["key"]] not in wanted["values"]
        assert labels[other][wanted["key"]] in wanted["values"]


@pytest.mark.parametrize(("base", "taint"), [(MODEL, "nvidia.com/gpu"), (NEURON, "aws.amazon.com/neuron"), (CPU, None)])
def test_engines_tolerate_the_taint_of_their_accelerator_alone(base, taint):
    spec = pod(render(base=base))
    assert [t["key"] for t in spec.get("tolerations", [])] == ([taint] if taint else [])
    assert ("affinity" in spec) is bool(taint)


@pytest.mark.parametrize(("rollout", "surge", "unavailable"), [("surge", 1, 0), ("inPlace", 0, 1)])
def test_a_rollout_takes_a_spare_accelerator_only_when_told(rollout, surge, unavailable):
    strategy = render({"rollout": rollout}).find("Deployment", "m")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": surge, "maxUnavailable": unavailable}


def test_replicas_share_a_node_unless_told_to_spread_over_nodes():
    constraints = {spread: pod(render({"spread": spread}))["topologySpreadConstraints"] for spread in ("zones", "nodes")}
    for found in constraints.values():
        for constraint in found:
            assert constraint["labelSelector"]["matchLabels"]["app.kubernetes.io/name"] == "m"
            assert constraint["matchLabelKeys"] == ["pod-template-hash"], "the pods of an older version count for nothing"
    assert pod(render())["topologySpreadConstraints"] == constraints["zones"]
    zone, node = constraints["nodes"]
    assert [zone] == constraints["zones"]
    assert (zone["topologyKey"], zone["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", "ScheduleAnyway")
    assert (node["topologyKey"], node["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "DoNotSchedule")
    assert (node["maxSkew"], node["minDomains"], node["nodeTaintsPolicy"]) == (1, 2, "Honor")


@pytest.mark.parametrize("weights", [15.3, 30])
def test_startup_and_progress_follow_from_the_weights(weights):
    deployment = render({"weightsGiB": weights}).find("Deployment", "m")["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    start = math.ceil(weights / 0.25) + 600
    probe = container["startupProbe"]
    assert start <= probe["failureThreshold"] * probe["periodSeconds"] < start + probe["periodSeconds"]
    assert deployment["progressDeadlineSeconds"] == 600 + start + 90


@pytest.mark.parametrize("base", [MODEL, NEURON, CPU])
def test_probes_ask_the_engine_itself_and_a_long_prefill_restarts_nothing(base):
    container = engine(render(base=base))
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: probe["httpGet"] for kind, probe in probes.items()} == dict.fromkeys(
        probes, {"path": "/health", "port": "http"}
    )
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": 8000}
    # No router sends to a pod for long that does not answer; only minutes of it end the requests that it runs.
    patience = {kind: probe["periodSeconds"] * probe["failureThreshold"] for kind, probe in probes.items()}
    assert patience["readiness"] <= 15 and patience["liveness"] >= 120 and probes["liveness"]["timeoutSeconds"] >= 15


# --- command line ----------------------------------------------------------------------------------------------------


def test_arguments_of_a_model_in_s3():
    container = engine(
        render({"servedNames": ["org/m"], "maxNumSeqs": 32, "maxQueuedRequests": 8}, **image("vllm", "0.32.0"))
    )
    assert container["command"] == ["vllm"]
    assert container["args"] == [
        "serve",
        "s3://models/m/v1/",
        "--served-model-name",
        "m",
        "org/m",
        "--host=0.0.0.0",
        "--port=8000",
        "--tensor-parallel-size=1",
        "--max-model-len=16384",
        "--max-num-seqs=32",
        "--gpu-memory-utilization=0.9",
        "--load-format=runai_streamer",
        '--model-loader-extra-config={"concurrency":5,"memory_limit":13958643712}',
        "--max-num-queued-reqs=40",
        "--shutdown-timeout=60",
        "--middleware=plane_middleware.PlaneMiddleware",
        "--enable-force-include-usage",
        "--enable-prompt-tokens-details",
        "--enable-request-id-headers",
        "--disable-fastapi-docs",
        "--disable-access-log-for-endpoints=/health,/metrics",
    ]
    assert flag_names(container["args"]) <= FLAGS


def flag_names(args: list[str]) -> set[str]:
    return {arg.partition("=")[0] for arg in args if arg.startswith("--")}


@pytest.mark.parametrize(
    ("version", "missing"),
    [
        ("0.32.0", set()),
        ("0.29.0", set()),
        ("0.28.0", {"--max-num-queued-reqs"}),
        ("0.18.0", {"--max-num-queued-reqs"}),
        ("0.17.1", {"--max-num-queued-reqs", "--shutdown-timeout"}),
        ("0.16.0", {"--max-num-queued-reqs", "--shutdown-timeout"}),
        ("0.15.1", {"--max-num-queued-reqs", "--shutdown-timeout", "--disable-access-log-for-endpoints"}),
        ("0.10.2", {"--max-num-queued-reqs", "--shutdown-timeout", "--disable-access-log-for-endpoints"}),
        ("0.28.0.post1", {"--max-num-queued-reqs"}),
    ],
)
def test_flags_that_an_older_engine_lacks_are_left_out(version, missing):
    newest = flag_names(engine(render(**image("vllm", "0.32.0")))["args"])
    assert newest - flag_names(engine(render(**image("vllm", version)))["args"]) == missing


def test_an_engine_older_than_the_known_ones_is_refused():
    assert refusal(**image("vllm", "0.9.1")) == [
        "- global.images.vllm.version: 0.9.1 is older than 0.10.2. It runs m, and older engines lack flags that "
        "the plane "
        "relies on. Set an image of vLLM 0.10.2 or newer."
    ]


@pytest.mark.parametrize(
    ("model", "version", "distributed"),
    [
        ({"tensorParallelSize": 2}, "0.32.0", True),
        ({"tensorParallelSize": 1}, "0.32.0", None),
        ({"tensorParallelSize": 2}, "0.15.1", None),
        ({"tensorParallelSize": 2, "args": {"enforce-eager": True}}, "0.32.0", None),
    ],
)
def test_ranks_share_the_download_where_they_can(model, version, distributed):
    args = engine(render(model, **image("vllm", version)))["args"]
    (config,) = (arg.partition("=")[2] for arg in args if arg.startswith("--model-loader-extra-config"))
    assert json.loads(config).get("distributed") is distributed


def test_further_flags_of_an_entry_are_passed_on():
    args = {
        "kv-cache-dtype": "fp8",
        "enforce-eager": True,
        "enable-prefix-caching": False,
        "seed": 10000000,
        "speculative-config": '{"method": "ngram"}',
    }
    assert engine(render({"args": args}))["args"][-5:] == [
        "--no-enable-prefix-caching",
        "--enforce-eager",
        "--kv-cache-dtype=fp8",
        "--seed=10000000",
        '--speculative-config={"method": "ngram"}',
    ]


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("model", "the chart sets it from the entry"),
        ("max-num-seqs", "the chart sets it from the entry"),
        ("no-enable-force-include-usage", "the plane relies on what the chart sets"),
        ("middleware", "the plane relies on what the chart sets"),
        ("config", "the plane relies on what the chart sets"),
        ("model-loader-extra-config.concurrency", "the chart sets it from the entry"),
        ("tensor-parallel", "the chart sets it from the entry"),
        ("tp", "a pod has the accelerators that tensorParallelSize counts and no more"),
        ("data-parallel-size", "a pod has the accelerators that tensorParallelSize counts and no more"),
        ("ssl-keyfile", "it would open a way to the engine that the router and the policies do not know"),
        ("api-key", "it would open a way to the engine that the router and the policies do not know"),
        ("allowed-local-media-path", "it would open a way to the engine that the router and the policies do not know"),
        ("grpc", "it would open a way to the engine that the router and the policies do not know"),
        ("uds", "it would open a way to the engine that the router and the policies do not know"),
        ("enable-log-outputs", "it would write prompts or answers to the log"),
        ("no-enable-log-requests", "it would write prompts or answers to the log"),
    ],
)
def test_flags_that_are_the_charts_are_refused_in_every_spelling(flag, why):
    assert refusal({"args": {flag: True}}) == [
        f"- global.models.m.args.{flag}: not for an entry to set. The flag is the chart's: {why}. "
        "Set the entry's own field where there is one, and take the flag out."
    ]


@pytest.mark.parametrize("flag", ["max_num_seqs", "Max-Num-Seqs", "--model", "enable_log_outputs"])
def test_flags_are_written_as_vllm_documents_them(flag):
    with pytest.raises(helm.HelmError, match=f"(?s)meet the specifications of the schema.*'{flag}'"):
        render({"args": {flag: "1"}})


def test_every_flag_the_chart_sets_is_its_own_and_no_other_is_refused():
    text = (CHARTS / "plane-lib/templates/_engine.tpl").read_text()
    table = re.search(r'define "plane.ownedFlags" -}}\n(.*?){{-', text, re.DOTALL)[1]
    owned = {f"--{flag}" for flags in yaml.safe_load(table).values() for flag in flags}
    for base in (MODEL, NEURON, CPU):
        assert flag_names(engine(render(base=base, **image("vllm", "0.32.0")))["args"]) <= owned
    # A flag of vLLM's that only begins like an owned one is the user's.
    names = {flag.removeprefix("--") for flag in FLAGS - owned if re.fullmatch(r"--[a-z0-9][a-z0-9-]*", flag)}
    assert len(names) > 150
    rendered = render({"args": dict.fromkeys(names, "1")})
    assert {f"--{name}" for name in names} <= flag_names(engine(rendered)["args"])


# --- environment -----------------------------------------------------------------------------------------------------


def test_nothing_phones_home_and_everything_written_goes_to_a_volume():
    variables = env(engine(render()))
    assert {"VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} <= {
        name for name, value in variables.items() if value == "1"
    }
    written = {name: value for name, value in variables.items() if value.startswith("/") and name != "PYTHONPATH"}
    assert len(written) >= 9
    mounts = [m["mountPath"] for m in engine(render())["volumeMounts"] if not m.get("readOnly")]
    assert all(any(path == m or path.startswith(m + "/") for m in mounts) for path in written.values())
    assert variables["AWS_REGION"] == variables["AWS_DEFAULT_REGION"] == "eu-central-1"


@pytest.mark.parametrize(
    ("variable", "why"),
    [
        ("HOME", "the chart sets it"),
        ("AWS_REGION", "the chart sets it"),
        ("AWS_ACCESS_KEY_ID", "it would open the engine or take its weights from elsewhere"),
        ("VLLM_SERVER_DEV_MODE", "it would open the engine or take its weights from elsewhere"),
        ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "it would open the engine or take its weights from elsewhere"),
        ("HF_ENDPOINT", "it would open the engine or take its weights from elsewhere"),
        ("VLLM_USAGE_STATS_SERVER", "it would send usage statistics"),
        ("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "it would write prompts or answers to the log"),
        (
            "VLLM_ENABLE_RESPONSES_API_STORE",
            "it would keep prompts and answers in one engine's memory, where no other request finds them",
        ),
        ("VLLM_USE_RUST_FRONTEND", "the middleware does not run in it"),
    ],
)
def test_variables_that_are_the_charts_are_refused(variable, why):
    assert refusal({"env": {variable: "x"}}) == [
        f"- global.models.m.env.{variable}: not for an entry to set. The variable is the chart's: {why}. "
        "Set another variable, or take this one out."
    ]


def test_further_variables_of_an_entry_are_passed_on():
    assert env(engine(render({"env": {"VLLM_LOGGING_LEVEL": "DEBUG"}})))["VLLM_LOGGING_LEVEL"] == "DEBUG"


# --- leaving ---------------------------------------------------------------------------------------------------------


def test_the_grace_period_is_the_sum_of_the_drain():
    rendered = render(
        drain={"endpointStalenessSeconds": 20, "shutdownTimeoutSeconds": 100, "bufferSeconds": 10},
        **image("vllm", "0.32.0"),
    )
    assert pod(rendered)["terminationGracePeriodSeconds"] == 130
    assert engine(rendered)["lifecycle"] == {"preStop": {"sleep": {"seconds": 20}}}
    assert "--shutdown-timeout=100" in engine(rendered)["args"]


def test_an_engine_without_shutdown_timeout_drains_before_sigterm():
    rendered = render(**image("vllm", "0.16.0"))
    assert engine(rendered)["lifecycle"] == {"preStop": {"sleep": {"seconds": 75}}}
    assert pod(rendered)["terminationGracePeriodSeconds"] == 90


def test_a_longer_grace_period_is_taken():
    assert pod(render(drain={"terminationGracePeriodSeconds": 91}))["terminationGracePeriodSeconds"] == 91


def test_a_drain_that_does_not_add_up_is_refused():
    assert refusal(drain={"terminationGracePeriodSeconds": 89}) == [
        "- drain.terminationGracePeriodSeconds: 89 is less than the drain of 90 (endpointStalenessSeconds 15 + "
        "shutdownTimeoutSeconds 60 + bufferSeconds 15). Kubernetes would kill the engine while it still answers. "
        "Set 90 or more, or null for the sum."
    ]
    assert refusal(drain={"endpointStalenessSeconds": 9}) == [
        "- drain.endpointStalenessSeconds: 9 is less than 10. A pod's DNS record lives for 5 s (30 s under kubeadm and "
        "kind) and caches may hold it as long, so requests still come that long to an engine that refuses them. "
        "Set 10 or more."
    ]
    assert refusal(drain={"bufferSeconds": 4}) == [
        "- drain.bufferSeconds: 4 is less than 5. vLLM ends its workers after its last answer, and the sum alone would "
        "leave no time for it. Set 5 or more."
    ]


@pytest.mark.parametrize(("minimum", "guarded"), [(1, False), (2, True)])
def test_a_budget_or_a_do_not_disrupt_but_never_both(minimum, guarded):
    rendered = render({"replicas": {"min": minimum, "max": 3}})
    template = rendered.find("Deployment", "m")["spec"]["template"]["metadata"]
    assert ("karpenter.sh/do-not-disrupt" in template["annotations"]) is not guarded
    budgets = rendered.of_kind("PodDisruptionBudget")
    assert [b["spec"]["unhealthyPodEvictionPolicy"] for b in budgets] == (["AlwaysAllow"] if guarded else [])
    assert [b["spec"]["maxUnavailable"] for b in budgets] == ([1] if guarded else [])


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_replicas_or_a_scaled_object_but_never_both():
    fixed, scaled = render({"replicas": {"min": 3}}), render({"replicas": {"min": 1, "max": 3}})
    assert fixed.find("Deployment", "m")["spec"]["replicas"] == 3 and not fixed.of_kind("ScaledObject")
    assert "replicas" not in scaled.find("Deployment", "m")["spec"]
    spec = scaled.find("ScaledObject", "m")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 3)
    assert spec["scaleTargetRef"]["name"] == "m"


def test_scaling_counts_the_requests_in_the_engines():
    # 12288 tokens of 128 KiB are 1.5 GiB; the KV cache of 22.93 GiB holds 61 sequences of a quarter of that.
    spec = render({"replicas": {"max": 3}, "maxModelLen": 12288}).find("ScaledObject", "m")["spec"]
    modifiers = spec["advanced"]["scalingModifiers"]
    names = {t["name"]: t["metadata"]["valueLocation"] for t in spec["triggers"]}
    assert names == {
        "running": 'vllm:num_requests_running{model_name="m"}',
        "waiting": 'vllm:num_requests_waiting{model_name="m"}',
    }
    assert modifiers["formula"].split(" + ") == sorted(names)
    assert (modifiers["target"], modifiers["metricType"]) == ("48", "AverageValue") and "fallback" not in spec
    # Of all pods, and their sum: over one pod, or of their mean, a fleet under load would never grow.
    how = ("aggregateFromKubeServiceEndpoints", "aggregationType")
    assert {tuple(t["metadata"][key] for key in how) for t in spec["triggers"]} == {("true", "sum")}
    captured = (ROOT / "tests/data/vllm-0.32/metrics-saturated.txt").read_text()
    assert all(re.search(rf"^{location.partition('{')[0]}{{", captured, re.MULTILINE) for location in names.values())


@pytest.mark.parametrize(("entry", "namespace"), [({}, "inference"), ({"namespace": "care"}, "care")])
def test_the_autoscaler_reads_a_port_that_the_service_lists(entry, namespace):
    rendered = render({"replicas": {"max": 3}} | entry)
    for trigger in rendered.find("ScaledObject", "m")["spec"]["triggers"]:
        assert trigger["metadata"]["url"] == f"http://m.{namespace}.svc:8001/metrics"
    assert 8001 in [p["port"] for p in rendered.find("Service", "m")["spec"]["ports"]]
    assert init(rendered, "metrics")["ports"] == [{"name": "metrics", "containerPort": 8001, "protocol": "TCP"}]


def test_a_pod_monitor_scrapes_the_metrics_port():
    (endpoint,) = render(podMonitor={"enabled": True}).find("PodMonitor", "m")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"


# --- network ---------------------------------------------------------------------------------------------------------


def namespaces(rule: Mapping[str, Any]) -> list[str]:
    return [p["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for p in rule["from"]]


def test_only_the_router_reaches_the_engine():
    spec = render(**{"global": {"routerNamespace": "edge"}}).find("NetworkPolicy", "m")["spec"]
    router, policy, metrics = spec["ingress"]
    for rule, name, component, port in ((router, "router", "router", 8000), (policy, "router-policy", "policy", 8001)):
        assert rule["ports"] == [{"protocol": "TCP", "port": port}]
        assert rule["from"] == [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "edge"}},
                "podSelector": {
                    "matchLabels": {"app.kubernetes.io/name": name, "app.kubernetes.io/component": component}
                },
            }
        ]
    assert metrics["ports"] == [{"protocol": "TCP", "port": 8001}] and namespaces(metrics) == ["monitoring"]


def test_the_autoscaler_reads_metrics_of_scaled_models_only():
    spec = render({"replicas": {"max": 2}}).find("NetworkPolicy", "m")["spec"]
    assert namespaces(spec["ingress"][2]) == ["monitoring", "keda"]


def test_no_reader_of_metrics_is_no_rule():
    spec = render(**{"global": {"network": {"scraperNamespaces": []}}}).find("NetworkPolicy", "m")["spec"]
    assert [rule["ports"][0]["port"] for rule in spec["ingress"] if "podSelector" not in rule["from"][0]] == []


@pytest.mark.parametrize("base", [MODEL, NEURON])
def test_an_engine_calls_for_its_weights_only(base):
    egress = render(base=base).find("NetworkPolicy", "m")["spec"]["egress"]
    assert [sorted({p["port"] for p in rule["ports"]}) for rule in egress] == [[53], [80], [443]]
    assert egress[2]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/24"}}]
    assert all(rule["to"] for rule in egress)


def test_an_engine_with_its_weights_in_the_image_calls_nobody():
    spec = render(base=CPU).find("NetworkPolicy", "m")["spec"]
    assert spec["egress"] == [] and spec["policyTypes"] == ["Ingress", "Egress"]


def test_readers_that_the_policies_keep_out_are_refused():
    assert refusal({"replicas": {"max": 2}}, **{"global": {"network": {"autoscalerNamespaces": []}}}) == [
        "- global.network.autoscalerNamespaces: empty, while m scale by queue. KEDA reads the queue from the pods, and "
        "the NetworkPolicies deny what nobody names. Set the namespace of KEDA, or equal replicas.min and replicas.max."
    ]
    assert refusal(podMonitor={"enabled": True}, **{"global": {"network": {"scraperNamespaces": []}}}) == [
        "- global.network.scraperNamespaces: empty, while podMonitor.enabled is true. Prometheus reads metrics "
        "from the "
        "pods, and the NetworkPolicies deny what nobody names. Set the namespace of Prometheus, or podMonitor.enabled: "
        "false."
    ]


def test_policies_off_renders_none_and_no_test_of_them():
    rendered = render(**{"global": {"network": {"policies": False}}})
    assert not rendered.of_kind("NetworkPolicy") and not rendered.of_kind("Pod")


def test_the_stranger_asks_every_port_of_every_engine():
    rendered = helm.template("vllm", values=values({"m": MODEL, "n": NEURON | {"namespace": "other"}}))
    (stranger,) = rendered.of_kind("Pod")
    assert annotations(stranger)["helm.sh/hook"] == "test"
    (container,) = stranger["spec"]["containers"]
    assert container["args"][1:] == ["stranger"] + [
        f"{host}.svc.cluster.local:{port}" for host in ("m.inference", "n.other") for port in (8000, 8001)
    ]
    assert container["args"][0].strip() == (CHART / "files/stranger.sh").read_text().strip()


# --- Neuron and CPU --------------------------------------------------------------------------------------------------


def test_neuron_copies_weights_and_artifact_and_streams_nothing():
    rendered = render(base=NEURON)
    assert init(rendered, "artifacts")["args"] == [
        "s3://models/n/v1/",
        "/mnt/models/weights",
        "s3://models/n-compiled/v1/",
        "/mnt/models/compiled",
    ]
    container = engine(rendered)
    assert container["args"][1] == "/mnt/models/weights"
    assert not {"--load-format", "--model-loader-extra-config", "--gpu-memory-utilization"} & flag_names(
        container["args"]
    )
    assert not [name for name in env(container) if name.startswith(("AWS_", "RUNAI_"))]
    assert env(init(rendered, "artifacts"))["AWS_REGION"] == "eu-central-1"
    assert container["resources"]["limits"] == {"memory": "12Gi", "aws.amazon.com/neuroncore": "2"}
    assert "neurondevice" not in rendered.text


@pytest.mark.parametrize(
    ("version", "variable"), [("0.16.0", "NEURON_COMPILED_ARTIFACTS"), ("0.29.0", "VLLM_CACHE_ROOT")]
)
def test_the_artifact_is_where_the_engine_of_that_version_looks(version, variable):
    assert env(engine(render(base=NEURON, **image("vllm-neuron-inf2", version))))[variable] == "/mnt/models/compiled"


def test_whole_devices_where_the_generation_needs_them():
    six = {"tensorParallelSize": 6, "accelerator": "trainium2", "compiled": {"tensorParallelSize": 6}}
    assert engine(render(six, base=NEURON))["resources"]["limits"]["aws.amazon.com/neuron"] == "2"


def test_neuron_without_a_fitting_artifact_is_refused():
    path = "global.models.m"
    without = {key: value for key, value in NEURON.items() if key != "compiled"}
    assert refusal(base=without) == [
        f"- {path}.compiled: absent, while inferentia2 is Neuron. Without a compiled artifact each replica "
        "compiles for "
        "minutes to hours at its start. Set compiled.source and the tensorParallelSize, maxModelLen and maxNumSeqs it "
        "was compiled for."
    ]
    assert refusal({"tensorParallelSize": 4, "maxModelLen": 2048, "maxNumSeqs": 16}, base=NEURON) == [
        f"- {path}.{field}: {is_}, but the artifact was compiled for {was}. Neuron runs only the shapes that were "
        f"compiled, and would compile again at each start. Set {field}: {was}, or an artifact compiled for {is_}."
        for field, is_, was in (("tensorParallelSize", 4, 2), ("maxModelLen", 2048, 4096), ("maxNumSeqs", 16, 8))
    ]
    assert refusal({"source": "file:///models/n/v1/"}, base=NEURON) == [
        f"- {path}.source: file:///models/n/v1/ is not in S3. On Neuron an init container copies the weights from S3. "
        "Set an s3:// prefix."
    ]


def test_an_artifact_for_another_accelerator_is_refused():
    assert refusal({"compiled": NEURON["compiled"]}) == [
        "- global.models.m.compiled: given, while l40s is not Neuron. Only Neuron loads compiled artifacts. "
        "Set a Neuron accelerator, or take compiled out."
    ]


def test_a_cpu_engine_takes_its_kv_cache_from_the_pod_and_its_weights_from_the_image():
    container = engine(render(base=CPU))
    assert container["args"][1] == "/models/c/v1"
    assert "--gpu-memory-utilization" not in flag_names(container["args"])
    assert env(container)["VLLM_CPU_KVCACHE_SPACE"] == "2"  # 4 GiB x 0.9 - 0.5 - 2 = 1.1, in whole GiB
    assert set(container["resources"]["limits"]) == {"memory"}


# --- which models ----------------------------------------------------------------------------------------------------

FLEET = {
    "a": MODEL | {"team": "appeals", "namespace": "appeals"},
    "b": MODEL | {"team": "claims"},
    "c": MODEL | {"enabled": False},
}
TEAMS = {"appeals": {}, "claims": {}}


def deployed(**over: Any) -> dict[str, str]:
    rendered = helm.template("vllm", values=values(FLEET, **merged({"global": {"teams": TEAMS}}, over)))
    return {d["metadata"]["name"]: d["metadata"]["namespace"] for d in rendered.of_kind("Deployment")}


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ({}, {"a": "appeals", "b": "inference"}),
        ({"team": "appeals"}, {"a": "appeals"}),
        ({"models": ["b"]}, {"b": "inference"}),
        ({"models": ["b"], "team": "appeals"}, {}),
        ({"models": ["c"]}, {}),
    ],
)
def test_select(select, names):
    assert deployed(select=select) == names


def test_selecting_what_does_not_exist_is_refused():
    with pytest.raises(helm.HelmError) as refused:
        deployed(select={"models": ["a", "zzz"], "team": "nobody"})
    assert [line for line in str(refused.value).splitlines() if line.startswith("- ")] == [
        "- select.models: zzz is not in global.models. There are a, b, c. Set one that exists, or add zzz to "
        "global.models.",
        "- select.team: nobody is not in global.teams. There are appeals, claims. Set one that exists, or add "
        "nobody to "
        "global.teams.",
    ]


def test_a_release_without_models_leaves_no_objects():
    over = {"select": {"models": ["c"]}, "global": {"teams": TEAMS}}
    assert helm.template("vllm", values=values(FLEET, **over)).objects == []


def test_an_unknown_key_is_refused():
    with pytest.raises(helm.HelmError, match="drain.*additional properties 'shutdownTimeout' not allowed"):
        render(drain={"shutdownTimeout": 5})


def test_images_without_a_digest_are_refused_where_one_is_required():
    digest = "sha256:" + "0" * 64
    over = {"global": {"requireDigest": True, "images": {"vllm": {"digest": digest}}}}
    assert [line.partition(":")[0] for line in refusal(**over)] == ["- global.images.curl.digest"]
    unguarded = merged(over, {"global": {"network": {"policies": False}}})
    assert render(**unguarded).find("Deployment", "m")


# --- NOTES -----------------------------------------------------------------------------------------------------------


def notes(folder: pathlib.Path, **over: Any) -> str:
    file = folder / "values.json"
    file.write_text(json.dumps(values({"m": MODEL}, **over)))
    text = helm.run("install", "plane", str(CHART), "--dry-run=client", "--namespace", "inference", "-f", str(file))
    return text.partition("NOTES:\n")[2]


def test_notes_say_what_an_older_engine_lacks(tmp_path):
    said = notes(tmp_path, **image("vllm", "0.28.0"))
    assert (
        "- vLLM 0.28.0 of m has no --max-num-queued-reqs: its queue has no bound, so a full engine answers late "
        "instead "
        "of sending requests elsewhere. Set an image of 0.29.0 or newer."
    ) in said
    assert "--shutdown-timeout" not in said
    assert "kubectl label namespace inference pod-security.kubernetes.io/enforce=restricted" in said
    assert "has no --" not in notes(tmp_path, **image("vllm", "0.32.0"))
