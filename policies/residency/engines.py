"""What an engine runs, reads, writes and tells."""

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from inference_plane.compliance import envoy
from inference_plane.compliance.engines import engines as of
from inference_plane.compliance.engines import environment, flags, means, of_reason, serves, shipped, strings
from inference_plane.compliance.envoy import dig, items, text
from inference_plane.compliance.pods import KINDS as PODS
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, Workload, containers, meta

_USAGE = "https://docs.vllm.ai/en/latest/usage/usage_stats/"
_VERSION = "inference-plane/version"
#: Names of versions that move.
_MOVING = frozenset("latest main master current stable prod production newest head".split())


def _of(obj: Mapping, index: Index) -> Iterator[tuple[Workload, Mapping, str]]:
    """(engine, the container that serves, its path) of the engines that an object makes."""
    for engine in of(index):
        if engine.obj is obj:
            for container, path in engine.containers:
                if serves(container):
                    yield engine, container, path


def _wanted(found: Mapping, wanted: Mapping[str, str], path: str) -> Iterator[tuple[str, str]]:
    for name, value in wanted.items():
        if found.get(name) != value:
            yield f"{path}.env", f"{name} is {found.get(name)!r}, not {value!r}"


@rule(
    "PLANE_RES_60",
    "No usage statistics",
    severity="HIGH",
    kinds=PODS,
    why="vLLM reports the model, the hardware and its settings to its authors unless it is told not to.",
    remedy="Leave VLLM_NO_USAGE_STATS and DO_NOT_TRACK at 1.",
    source=_USAGE,
    example='env: [{name: VLLM_NO_USAGE_STATS, value: "0"}]',
)
def no_usage_statistics(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for _, container, path in _of(obj, index):
        found = environment(container)
        yield from _wanted(found, {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}, path)
        yield from _forbidden(found, of_reason("plane.ownedEnv", "usage statistics"), path, "is about usage statistics")


def _forbidden(found: Mapping, names: list[str], path: str, why: str) -> Iterator[tuple[str, str]]:
    for name in found:
        if any(name.startswith(one.removesuffix("*")) if one.endswith("*") else name == one for one in names):
            yield f"{path}.env", f"{name} is set to {found[name]!r}: it {why}"


@rule(
    "PLANE_RES_61",
    "No download from a model hub",
    severity="HIGH",
    kinds=PODS,
    why="An id of a hub is fetched from a third party, which learns what runs here and decides what does.",
    remedy="Leave HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE at 1, and name files by s3:// or a path in every argument.",
    source="https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables#hfhuboffline",
    example="args: [serve, meta-llama/Llama-3.3-70B-Instruct]",
)
def no_hub(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for _, container, path in _of(obj, index):
        found = environment(container)
        yield from _wanted(found, {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}, path)
        names = ["HF_*", "HUGGING_FACE_*", "HUGGINGFACE_*", "VLLM_USE_MODELSCOPE", "MODELSCOPE_*"]
        others = {k: v for k, v in found.items() if k not in ("HF_HOME", "HF_HUB_OFFLINE")}
        yield from _forbidden(others, names, path, "is for a model hub")
        words = [str(word) for word in container.get("args") or ()]
        if "serve" in words[:-1] and not words[words.index("serve") + 1].startswith(("s3://", "/")):
            yield f"{path}.args", f"serves {words[words.index('serve') + 1]!r}, which a hub is asked for"
        served = {value for flag, value in flags(container) if flag == "served-model-name"}
        for flag, value in flags(container):
            if value in served:
                continue
            for one in strings(value):
                fetched = (
                    re.match(r"(?i)(hf|https?|gs|az|abfss?|oci|pvc|ftp)://", one) and flag != "otlp-traces-endpoint"
                )
                if fetched or re.fullmatch(r"(\w[\w.-]*=)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?", one):
                    yield f"{path}.args", f"--{flag} names {one!r}, which is fetched from elsewhere"
        for flag, _ in flags(container):
            if flag in ("hf-token", "revision", "code-revision", "tokenizer-revision", "trust-remote-code"):
                yield f"{path}.args", f"has --{flag}, which is for what a hub keeps"


@rule(
    "PLANE_RES_62",
    "Weights come from one version's prefix in S3, or from the image",
    severity="HIGH",
    kinds=PODS,
    why="What answers prompts is the version that was approved: a prefix that moves, or a place that others write, "
    "puts "
    "another in its place.",
    remedy="Set global.models.MODEL.source to s3://BUCKET/…/VERSION/ or to a folder of the image.",
    source="docs/roll-a-version.md",
    example="args: [serve, s3://payer-models/records/latest/]",
)
def weights_of_one_version(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for engine, container, path in _of(obj, index):
        words = [str(word) for word in container.get("args") or ()]
        model = words[words.index("serve") + 1] if "serve" in words[:-1] else ""
        yield from _source(model, engine, f"{path}.args")
        for flag, value in flags(container):
            if means(flag, "model") and flag == "model":
                yield f"{path}.args", f"has --model={value} beside the model that it serves"
            elif flag == "load-format" and value != "runai_streamer":
                yield f"{path}.args", f"has --load-format={value}, not runai_streamer"
        for other, where in engine.containers:
            if "storage-initializer" in text(other.get("image")) or text(other.get("name")) == "artifacts":
                pairs = [str(word) for word in other.get("args") or ()]
                for i, one in enumerate(pairs[0::2]):
                    if not one.startswith("s3://"):
                        yield f"{where}.args", f"copies {one!r}, which is not in S3"
                    # A compiled artifact has a version of its own.
                    yield from _source(one, engine if i == 0 else None, f"{where}.args")


def _source(source: str, engine: Workload | None, where: str) -> Iterator[tuple[str, str]]:
    if source.startswith("/") and ".." not in source:
        return
    found = re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+/(?:[\w.=-]+/)*([\w.=-]+)/", source)
    if not found:
        yield where, f"takes weights from {source!r}, which is neither s3://BUCKET/…/VERSION/ nor a path"
    elif found[1].lower() in _MOVING or not re.search(r"\d", found[1]):
        yield where, f"takes weights from {source}, whose last part {found[1]!r} is no version: it can move"
    elif engine is not None and engine.labels.get(_VERSION) != found[1]:
        yield where, f"takes weights from {source}, while its pods say version {engine.labels.get(_VERSION)}"


@rule(
    "PLANE_RES_63",
    "An engine writes no prompt to its log",
    severity="CRITICAL",
    kinds=PODS,
    why="Logs go to wherever the cluster's logs go, which no residency covers.",
    remedy="Remove the flag or the variable. Metering is the router's audit line, which has no word of a prompt.",
    source="https://docs.vllm.ai/en/latest/cli/serve/",
    example="args: [serve, s3://payer-models/records/v3/, --enable-log-requests]",
)
def no_prompt_in_logs(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    names = of_reason("plane.ownedFlags", "write prompts")
    for _, container, path in _of(obj, index):
        for flag, value in flags(container):
            if any(means(flag, name) and len(flag) > len("enable-") for name in names):
                yield f"{path}.args", f"has --{flag}, which writes prompts or answers to the log"
            elif flag in ("no-disable-log-requests", "log-config-file", "uvicorn-log-level", "profiler-config"):
                if not (flag == "uvicorn-log-level" and value in ("info", "warning", "error", "critical")):
                    yield f"{path}.args", f"has --{flag} {value}, with which the log can have anything"
        found = environment(container)
        wanted = [*of_reason("plane.ownedEnv", "write prompts"), "VLLM_LOGGING_CONFIG_PATH", "VLLM_TRACE_FUNCTION"]
        yield from _forbidden(found, [*wanted, "VLLM_TORCH_PROFILER_DIR"], path, "writes what is computed")
        level = str(found.get("VLLM_LOGGING_LEVEL", "INFO"))
        if level not in ("INFO", "WARNING", "ERROR", "CRITICAL"):
            yield f"{path}.env", f"VLLM_LOGGING_LEVEL is {level}: vLLM then writes requests"


@rule(
    "PLANE_RES_64",
    "No telemetry to anybody outside the cluster",
    severity="HIGH",
    kinds=PODS | {"core/ConfigMap"},
    why="Spans, errors and crash reports carry what was computed when they were made; a third party keeps them.",
    remedy="Send spans to a collector in the cluster (global.tracing.endpoint), and decide there what leaves.",
    source="docs/observability.md#traces",
    example="env: [{name: SENTRY_DSN, value: https://key@sentry.example.com/1}]",
)
def no_telemetry(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    vendors = re.compile(
        r"SENTRY|^DD_|DATADOG|NEW_?RELIC|HONEYCOMB|WANDB|COMET_|MLFLOW|LANGSMITH|LANGCHAIN|POSTHOG|SEGMENT_|ROLLBAR|BUGSNAG"
    )
    domains = {router.home.get(envoy.DOMAIN, "") for router in envoy.routers(index)} | {"cluster.local"}
    for workload in (w for w in index.workloads if w.obj is obj):
        for container, path in containers(workload.pod, workload.path):
            for name, value in environment(container).items():
                if vendors.search(name.upper()):
                    yield f"{path}.env", f"{name} is for a third party that takes telemetry"
                elif re.search(r"OTEL_\w*ENDPOINT|STATSD_HOST|_PROXY$", name.upper()):
                    yield f"{path}.env", f"{name} is {value!r}: it sends what the pod says elsewhere"
                elif outside := _outside(text(value), domains):
                    if name != "AWS_CONTAINER_CREDENTIALS_FULL_URI":
                        yield f"{path}.env", f"{name} names {outside}, which is not of the cluster"
            for flag, value in flags(container):
                if "otlp" in flag and not any(_inside(_host(value), domain) for domain in domains if domain):
                    yield f"{path}.args", f"--{flag} names {_host(value) or value!r}, which is not of the cluster"
    for router in envoy.routers(index):
        cluster = router.cluster("traces")
        if cluster and cluster.file.owner is obj:
            for host, _ in cluster.hosts:
                if not _inside(host, router.home.get(envoy.DOMAIN, "")):
                    yield cluster.at(), f"sends spans to {host}, which is not of the cluster"


def _host(value: str) -> str:
    return urlsplit(value if "//" in value else f"//{value}").hostname or ""


def _inside(host: str, domain: str) -> bool:
    return bool(domain) and (host.endswith(f".svc.{domain}") or host.endswith(".svc"))


def _outside(value: str, domains: set[str]) -> str:
    """The host of a URL that is not of the cluster; empty for anything else."""
    if not re.match(r"(?i)[a-z][a-z0-9+.-]*://", value) or value.startswith(("s3://", "file://")):
        return ""
    host = _host(value)
    return (
        "" if any(_inside(host, domain) for domain in domains) or host in ("127.0.0.1", "localhost") else host or value
    )


@rule(
    "PLANE_RES_65",
    "An engine's pod runs what the chart starts",
    severity="CRITICAL",
    kinds=PODS,
    why="Whatever runs in the pod can read prompts where they are in clear; only the middleware keeps the first-token "
    "budget and what the router is told.",
    remedy="Leave the pod of charts/vllm or charts/kserve as it is rendered.",
    source="docs/router.md#headers-inside-the-plane",
    example="containers: [{name: logs, image: example.com/fluent-bit:1}]",
)
def engines_run_the_charts(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    known = {
        "vllm": [["vllm"]],
        "kserve-container": [["env", "PYTHONPATH=/opt/plane", "vllm"]],
        "certificate": [["python3", "/opt/plane/certificate.py"]],
        "metrics": [["python3", "/opt/plane/metrics_port.py"]],
        "artifacts": [None],
    }
    for engine in of(index):
        if engine.obj is not obj:
            continue
        for container, path in engine.containers:
            name = text(container.get("name"))
            if container.get("command") not in known.get(name, []):
                yield (
                    f"{path}.command",
                    f"{name or '(no name)'} runs {container.get('command')}, which the chart does not",
                )
            if dig(container, "lifecycle", "postStart") or "exec" in (dig(container, "lifecycle", "preStop") or {}):
                yield f"{path}.lifecycle", "runs a command, which the chart does not"
            if container.get("envFrom"):
                yield f"{path}.envFrom", "takes variables that are not in the render"
            if name in ("vllm", "kserve-container"):
                words = [str(word) for word in container.get("args") or ()]
                if words[:1] != ["serve"]:
                    yield f"{path}.args", f"begins with {words[:1]}, not serve"
                loaded = [value for flag, value in flags(container) if flag == "middleware"]
                if loaded != ["plane_middleware.PlaneMiddleware"]:
                    yield f"{path}.args", f"loads {loaded or 'no middleware'}, not the plane's alone"
        for i, volume in enumerate(items(engine.pod.get("volumes"))):
            kinds = set(volume) - {"name", "emptyDir", "configMap", "secret", "projected"}
            if kinds:
                yield f"{engine.path}.volumes[{i}]", f"is of {', '.join(sorted(kinds))}: what it holds outlives the pod"


@rule(
    "PLANE_RES_66",
    "An engine opens no way that the router does not know",
    severity="CRITICAL",
    kinds=PODS,
    why="Keys and values of prompts, events of them, tools and other servers are all ways for a prompt to leave an "
    "engine.",
    remedy="Remove the flag or the variable.",
    source="https://docs.vllm.ai/en/latest/cli/serve/",
    example='args: [serve, s3://payer-models/records/v3/, --kv-transfer-config={"kv_connector": "LMCacheConnectorV1"}]',
)
def no_other_way(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    ways = [name for name in of_reason("plane.ownedFlags", "open a way", "accelerators that") if "ssl" not in name]
    ways = [name for name in ways if len(name) > 3]
    own = [
        "kv-transfer-config",
        "kv-events-config",
        "ec-transfer-config",
        "tool-server",
        "allowed-media-domains",
        "config",
    ]
    for _, container, path in _of(obj, index):
        for flag, value in flags(container):
            if flag in ("tensor-parallel-size", "port", "host"):
                continue
            if any(flag.split(".")[0] == name or (len(flag) > 5 and means(flag, name)) for name in (*ways, *own)):
                yield f"{path}.args", f"has --{flag} {value}".rstrip() + ", a way that nobody judges"
        found = environment(container)
        names = of_reason("plane.ownedEnv", "open the engine", "keep prompts")
        names = [name for name in names if name not in ("AWS_*", "NVIDIA_VISIBLE_DEVICES")]
        yield from _forbidden(found, [*names, "PYTHONSTARTUP", "VLLM_PLUGINS"], path, "opens a way that nobody judges")
        if "PYTHONPATH" in found and found["PYTHONPATH"] != "/opt/plane":
            yield f"{path}.env", f"PYTHONPATH is {found['PYTHONPATH']!r}, not /opt/plane"


@rule(
    "PLANE_RES_67",
    "The code beside an engine is the chart's own",
    severity="CRITICAL",
    kinds={"core/ConfigMap"},
    why="The middleware sees every prompt and answer in clear.",
    remedy="Render the ConfigMap with charts/vllm or charts/kserve of the same version as this check.",
    source="docs/router.md#headers-inside-the-plane",
    example="plane_middleware.py: |\n  import requests",
)
def code_is_the_charts(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    mounted = {
        (engine.namespace, text(dig(volume, "configMap", "name")))
        for engine in of(index)
        for volume in items(engine.pod.get("volumes"))
        if any(
            m.get("name") == volume.get("name") and text(m.get("mountPath")).startswith("/opt/plane")
            for c, _ in engine.containers
            for m in items(c.get("volumeMounts"))
        )
    }
    data = obj.get("data") if isinstance(obj.get("data"), dict) else {}
    ours = (index.namespace_of(obj), text(meta(obj).get("name"))) in mounted
    if not ours and not set(shipped()) & set(data):
        return
    for key, written in data.items():
        if key not in shipped():
            yield f"data['{key}']", "is a file that the chart does not put beside an engine"
        elif text(written).rstrip() != shipped()[key].rstrip():
            yield f"data['{key}']", f"differs from the {key} of charts/vllm"
    if ours and "plane_middleware.py" not in data:
        yield "data", "lacks plane_middleware.py"
    if obj.get("binaryData"):
        yield "binaryData", "is what nobody here can read"


@rule(
    "PLANE_RES_68",
    "The plane is at home in one Region",
    severity="HIGH",
    kinds=PODS,
    why="An SDK that is told another Region, or another endpoint, reads weights from there, and asks there for keys.",
    remedy="Set global.aws.region for all charts of a plane alike; leave AWS_ENDPOINT_URL out.",
    source="https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html",
    example="env: [{name: AWS_REGION, value: us-east-1}]",
)
def one_region(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    home = {router.home.get(envoy.REGION) for router in envoy.routers(index)} - {None, ""}
    said = [
        environment(c).get(name)
        for w in index.workloads
        for c, _ in w.containers
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION")
    ]
    said = [region for region in said if region]
    home = home or {max(said, key=said.count)} if said else home
    for workload in (w for w in index.workloads if w.obj is obj):
        for container, path in workload.containers:
            for name, value in environment(container).items():
                if name in ("AWS_REGION", "AWS_DEFAULT_REGION") and {value} != home:
                    yield f"{path}.env", f"{name} is {value}, while the plane is in {', '.join(sorted(map(str, home)))}"
                elif name.startswith("AWS_ENDPOINT_URL") or name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
                    yield f"{path}.env", f"{name} is {value!r}: the SDK then asks whom nobody judges"
        if len(home) > 1:
            yield "metadata.annotations", f"routers are at home in {', '.join(sorted(map(str, home)))}"
