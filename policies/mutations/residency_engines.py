"""Breaks of what an engine runs, reads, writes and tells."""

import copy

from inference_plane.compliance.mutations import container, find, mutation

ENGINE = "appeals-draft"


def engine(objects):
    return container(find(objects, "Deployment", ENGINE))


def set_env(objects, name, value):
    env = engine(objects)["env"]
    env[:] = [one for one in env if one["name"] != name]
    if value is not None:
        env.append({"name": name, "value": value})


for rule, names in {
    "PLANE_RES_60": {
        "VLLM_NO_USAGE_STATS": ("0", "true", "", None),
        "DO_NOT_TRACK": ("0", None),
        "VLLM_DO_NOT_TRACK": ("0",),
        "VLLM_USAGE_STATS_SERVER": ("https://stats.example.com",),
    },
    "PLANE_RES_61": {
        "HF_HUB_OFFLINE": ("0", None),
        "TRANSFORMERS_OFFLINE": ("0", None),
        "HF_TOKEN": ("hf_x",),
        "HUGGING_FACE_HUB_TOKEN": ("hf_x",),
        "HF_ENDPOINT": ("https://hub.example.com",),
        "VLLM_USE_MODELSCOPE": ("True",),
    },
    "PLANE_RES_63": {
        "VLLM_LOGGING_LEVEL": ("DEBUG", "debug"),
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": ("1",),
        "VLLM_LOGGING_CONFIG_PATH": ("/tmp/log.json",),
        "VLLM_TRACE_FUNCTION": ("1",),
    },
    "PLANE_RES_64": {
        "SENTRY_DSN": ("https://key@sentry.example.com/1",),
        "OTEL_EXPORTER_OTLP_ENDPOINT": ("https://otel.example.com",),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ("http://10.0.0.1:4317",),
        "DD_AGENT_HOST": ("10.0.0.1",),
        "LANGCHAIN_TRACING_V2": ("true",),
        "HTTPS_PROXY": ("http://proxy.example.com:3128",),
        "WEBHOOK": ("https://hooks.example.com/x",),
        "BACKEND": ("HTTPS://models.inference.svc.cluster.local.example.com",),
    },
    "PLANE_RES_66": {
        "RUNAI_STREAMER_S3_ENDPOINT": ("https://s3.example.com",),
        "VLLM_API_KEY": ("x",),
        "VLLM_SERVER_DEV_MODE": ("1",),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": ("True",),
        "LD_PRELOAD": ("/tmp/x.so",),
        "VLLM_ENABLE_RESPONSES_API_STORE": ("1",),
        "PYTHONPATH": ("/tmp:/opt/plane",),
        "VLLM_PLUGINS": ("x",),
    },
    "PLANE_RES_68": {
        "AWS_REGION": ("us-east-1", "EU-CENTRAL-1"),
        "AWS_DEFAULT_REGION": ("us-east-1",),
        "AWS_ENDPOINT_URL": ("https://s3.example.com",),
        "AWS_ENDPOINT_URL_S3": ("https://s3.example.com",),
        "AWS_CONFIG_FILE": ("/tmp/config",),
    },
}.items():
    for name, values in names.items():
        for value in values:

            @mutation(rule, f"{name} {'left out' if value is None else f'is {value!r}'}")
            def _(objects, name=name, value=value):
                set_env(objects, name, value)


@mutation("PLANE_RES_60", "a variable of a ConfigMap")
def _(objects):
    env = engine(objects)["env"]
    one = next(v for v in env if v["name"] == "VLLM_NO_USAGE_STATS")
    del one["value"]
    one["valueFrom"] = {"configMapKeyRef": {"name": "x", "key": "y"}}


@mutation("PLANE_RES_60", "an InferenceService that reports", source="kserve/ci/standard")
def _(objects):
    # What KServe makes of it is what is judged.
    for one in objects:
        if one["kind"] == "Deployment":
            env = container(one)["env"]
            env[:] = [v for v in env if v["name"] != "VLLM_NO_USAGE_STATS"]


for rule, lists in {
    "PLANE_RES_61": (
        ["--tokenizer=meta-llama/Llama-3.3-70B-Instruct"],
        ["--tokenizer", "meta-llama/Llama-3.3-70B-Instruct"],
        ["--hf-config-path=https://example.com/config.json"],
        ['--speculative-config={"model": "acme/draft", "num_speculative_tokens": 4}'],
        ["--lora-modules", "night=acme/night"],
        ["--chat-template=http://example.com/template.jinja"],
        ["--hf-token=hf_x"],
        ["--hf_token", "hf_x"],
        ["--trust-remote-code"],
        ["--revision=main"],
    ),
    "PLANE_RES_62": (["--load-format=auto"], ["--load-format", "dummy"], ["--model=/tmp/model"]),
    "PLANE_RES_63": (
        ["--enable-log-requests"],
        ["--enable_log_requests"],
        ["--enable-log-req"],
        ["--enable-log-outputs"],
        ["--max-log-len=100"],
        ["--max-log-len", "100"],
        ["--enable-log-deltas"],
        ["--no-disable-log-requests"],
        ["--uvicorn-log-level=trace"],
        ["--log-config-file=/tmp/x"],
    ),
    "PLANE_RES_64": (
        ["--otlp-traces-endpoint=https://otel.example.com:4317"],
        ["--otlp-traces-endpoint", "otel.example.com:4317"],
        ["--otlp_traces_endpoint=http://10.0.0.1:4317"],
        ["--otlp-traces-endpoint=http://otel.inference.svc.example.com"],
    ),
    "PLANE_RES_65": (["--middleware=other.Middleware"], ["--middleware", "plane_middleware.Other"]),
    "PLANE_RES_66": (
        ['--kv-transfer-config={"kv_connector": "LMCacheConnectorV1"}'],
        ["--kv-transfer-config.kv_connector=x"],
        ["--kv-events-config={}"],
        ["--kv_events_config", "{}"],
        ["--tool-server=tools.example.com:8000"],
        ["--allowed-local-media-path=/"],
        ["--allowed-media-domains=example.com"],
        ["--api-key=x"],
        ["--config=/tmp/more.yaml"],
        ["--data-parallel-address=10.0.0.1"],
        ["--data-parallel-addr=10.0.0.1"],
        ["--nnodes=2"],
        ["--master-addr=10.0.0.1"],
    ),
}.items():
    for args in lists:

        @mutation(rule, f"with {' '.join(args)}")
        def _(objects, args=args):
            engine(objects)["args"] += args


for source in (
    "meta-llama/Llama-3.3-70B-Instruct",
    "s3://payer-models-eu-central-1/appeals-draft/latest/",
    "s3://payer-models-eu-central-1/appeals-draft/Main/",
    "s3://payer-models-eu-central-1/appeals-draft/v3",
    "s3://payer-models-eu-central-1/appeals-draft/v2/",
    "s3://payer-models-eu-central-1/",
    "s3://payer-models-eu-central-1/*/",
    "https://example.com/v3/",
    "hf://acme/model",
    "gs://payer-models/appeals-draft/v3/",
    "/models/../etc/",
    "S3://payer-models-eu-central-1/appeals-draft/v3/",
):

    @mutation("PLANE_RES_62", f"weights from {source}")
    def _(objects, source=source):
        engine(objects)["args"][1] = source


@mutation("PLANE_RES_61", "weights by the id of a hub")
def _(objects):
    engine(objects)["args"][1] = "acme/model"


for source in ("acme/model", "/mnt/models/weights", "s3://payer-models/prior-auth/latest/", "hf://acme/model"):

    @mutation("PLANE_RES_62", f"weights for Neuron from {source}", source="neuron")
    def _(objects, source=source):
        for one in objects:
            if one["kind"] == "Deployment":
                for other in one["spec"]["template"]["spec"].get("initContainers", ()):
                    if other["name"] == "artifacts":
                        other["args"][0] = source


@mutation("PLANE_RES_62", "a compiled artifact that moves", source="neuron")
def _(objects):
    for one in objects:
        if one["kind"] == "Deployment":
            for other in one["spec"]["template"]["spec"].get("initContainers", ()):
                if other["name"] == "artifacts":
                    other["args"][2] = "s3://payer-models/compiled/latest/"


@mutation("PLANE_RES_62", "pods of another version than their weights")
def _(objects):
    find(objects, "Deployment", ENGINE)["spec"]["template"]["metadata"]["labels"]["inference-plane/version"] = "v4"


for name, more in {
    "a container beside it": ("containers", {"name": "logs", "image": "example.com/fluent-bit:1"}),
    "a container before it": ("initContainers", {"name": "fetch", "image": "example.com/fetch:1", "command": ["sh"]}),
    "a second server": ("containers", {"name": "vllm-2", "image": "x", "command": ["vllm"], "args": ["serve", "/m"]}),
    "a volume of the node": ("volumes", {"name": "x", "hostPath": {"path": "/var/log"}}),
    "a volume that stays": ("volumes", {"name": "x", "persistentVolumeClaim": {"claimName": "prompts"}}),
}.items():

    @mutation("PLANE_RES_65", f"an engine with {name}")
    def _(objects, more=more):
        find(objects, "Deployment", ENGINE)["spec"]["template"]["spec"][more[0]].append(copy.deepcopy(more[1]))


for name, change in {
    "a shell": {"command": ["sh", "-c", "vllm serve /model"], "args": []},
    "the entrypoint of the image": {"command": None},
    "another program": {"command": ["python3", "-m", "vllm.entrypoints.openai.api_server"]},
    "variables that are not here": {"envFrom": [{"configMapRef": {"name": "x"}}]},
    "a command at the start": {"lifecycle": {"postStart": {"exec": {"command": ["sh"]}}}},
    "a command at the end": {"lifecycle": {"preStop": {"exec": {"command": ["sh"]}}}},
}.items():

    @mutation("PLANE_RES_65", f"an engine with {name}")
    def _(objects, change=change):
        engine(objects).update(change)


@mutation("PLANE_RES_65", "no middleware")
def _(objects):
    args = engine(objects)["args"]
    args[:] = [one for one in args if not one.startswith("--middleware")]


@mutation("PLANE_RES_65", "metrics by another program")
def _(objects):
    pod = find(objects, "Deployment", ENGINE)["spec"]["template"]["spec"]
    next(c for c in pod["initContainers"] if c["name"] == "metrics")["command"] = ["socat"]


for key, change in {
    "plane_middleware.py": lambda written: written + "\nimport socket\n",
    "metrics_port.py": lambda written: written.replace("/metrics", "/v1", 1),
    "certificate.py": lambda written: "",
}.items():

    @mutation("PLANE_RES_67", f"another {key}")
    def _(objects, key=key, change=change):
        data = find(objects, "ConfigMap", "plane-vllm-files")["data"]
        data[key] = change(data[key])


@mutation("PLANE_RES_67", "a module more")
def _(objects):
    find(objects, "ConfigMap", "plane-vllm-files")["data"]["sitecustomize.py"] = "import socket\n"


@mutation("PLANE_RES_67", "no middleware's file")
def _(objects):
    del find(objects, "ConfigMap", "plane-vllm-files")["data"]["plane_middleware.py"]


@mutation("PLANE_RES_67", "another ConfigMap in its place")
def _(objects):
    more = copy.deepcopy(find(objects, "ConfigMap", "plane-vllm-files"))
    more["metadata"]["name"] = "other"
    more["data"] = {"plane_middleware.py": "import socket\n"}
    objects.append(more)
    volumes = find(objects, "Deployment", ENGINE)["spec"]["template"]["spec"]["volumes"]
    next(v for v in volumes if v["name"] == "files")["configMap"]["name"] = "other"


@mutation("PLANE_RES_68", "a router that is elsewhere")
def _(objects):
    find(objects, "Deployment", "router")["metadata"]["annotations"]["inference-plane/region"] = "us-east-1"
