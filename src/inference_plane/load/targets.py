"""What load can be sent to: the plane on this machine, or any endpoint of the OpenAI API."""

from __future__ import annotations

import contextlib
import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inference_plane import helm
from inference_plane.demo.plane import (
    CALLERS,
    CHART,
    ENVIRONMENT,
    METRICS_PORT,
    MIDDLEWARE,
    NAMESPACE,
    TUNING,
    Engine,
    Step,
    engines,
    environment,
    middleware,
)
from inference_plane.onehost.bedrock import Bedrock, Call, CredentialEndpoint
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.kubernetes import KubeStandIn
from inference_plane.onehost.policy import NAME as POLICY
from inference_plane.onehost.policy import Policy
from inference_plane.onehost.processes import Process, Processes, free_addresses, free_port
from inference_plane.onehost.router import Router, fallback_models, local_values
from inference_plane.onehost.serving import ServerThread
from inference_plane.onehost.timed import Speed, Timed

from .plan import RESTRICTED

#: Amazon Bedrock's stand-in: always room, a first token after some 0.3 s, 50 tokens a second. Made up, not measured.
BEDROCK_SPEED = Speed(step_seconds=0.02, sequence_seconds=0.0)
BEDROCK_FIRST_TOKEN = 0.3
#: Seconds until nobody calls an engine that has left DNS: its TTL, Envoy's refresh, and a little.
STALE = 7.0
#: Seconds that an engine may take for what it still has, before it is ended.
DRAIN = 60.0


class TargetError(Exception):
    """A target cannot be used; the message says which, why, and what to set."""


class Restricted(deque[Call]):
    """The last calls that Amazon Bedrock's stand-in saw; `count` of all had a restricted prompt."""

    def __init__(self) -> None:
        super().__init__(maxlen=100)
        self.count = 0

    def append(self, call: Call) -> None:
        self.count += RESTRICTED.encode() in call.raw
        super().append(call)


def timed_bedrock(values: Mapping[str, Any], restricted: Restricted) -> Bedrock:
    """Amazon Bedrock's stand-in for the fallbacks of a catalogue, at its made-up pace; `restricted` sees its calls."""
    bedrock = Bedrock(
        fallback_models(values),
        values["global"]["aws"]["region"],
        generate=Timed(BEDROCK_SPEED),
        calls=restricted,  # type: ignore[arg-type]
    )
    bedrock.behaviour.update({"first_token_delay": BEDROCK_FIRST_TOKEN})
    return bedrock


class Plane(contextlib.ExitStack):
    """A context manager: the rendered plane on this machine, as `scripts/demo` has it, with engines that keep vLLM's
    time.

    Real: Helm's render of values/local.yaml, Envoy, the policy service, the engines' middleware, admission and queues.
    Stand in: the time that a step takes (onehost/timed.py), Amazon Bedrock, Kubernetes, the issuer of tokens. `step` is
    told what begins. While it runs, `url` is where clients call. Raises as `inference_plane.demo.plane.Plane`.
    """

    def __init__(self, folder: Path, step: Step, speed: Speed = Speed()) -> None:
        super().__init__()
        self.folder, self.step, self.speed = folder, step, speed
        self.pods: dict[str, dict[str, Process]] = {}
        self.issuer = Issuer()
        self._started = 0

    def __enter__(self) -> Plane:
        super().__enter__()
        with contextlib.ExitStack() as started:
            self._start(started)
            self.push(started.pop_all())
        return self

    def token(self, tenant: str) -> str:
        return self.issuer.token(tenant, seconds=24 * 3600)

    def _start(self, stack: contextlib.ExitStack) -> None:
        # First in, last out: from here on every signal becomes an exception, and every child ends.
        self.processes = stack.enter_context(Processes())
        self.dns = stack.enter_context(DnsServer())
        values = environment()
        self.restricted = Restricted()
        bedrock = timed_bedrock(values, self.restricted)
        server = stack.enter_context(ServerThread(bedrock, port=free_port()))
        credentials = stack.enter_context(CredentialEndpoint(self.folder / "token"))
        kubernetes = stack.enter_context(KubeStandIn())
        router = local_values(dns_port=self.dns.port, bedrock_port=server.port)
        router |= {"auth": self.issuer.values(), "policy": {"tuning": TUNING}}
        with self.step(f"Helm renders charts/{CHART} with values/{ENVIRONMENT.name}"):
            overlay = {"router": router, "global": CALLERS}
            self.render = helm.template(CHART, files=[ENVIRONMENT], values=overlay, namespace=NAMESPACE)
        (self.folder / MIDDLEWARE).write_text(middleware(self.render))
        self.engines = {engine.model: engine for engine in engines(self.render)}
        with self.step(f"{sum(engine.replicas for engine in self.engines.values())} engines start"):
            for engine in self.engines.values():
                self.pods[engine.model] = dict(self.start_engine(engine) for _ in range(engine.replicas))
        with self.step("the policy service starts"):
            self.policy = Policy(self.processes, self.render, self.folder, kubernetes, POLICY)
            self.dns.set(f"{POLICY}.{NAMESPACE}.svc.cluster.local", [self.policy.host])
        self.list_pods()
        with self.step("Envoy starts on the rendered files and finds the engines"):
            self.router = Router(self.processes, self.render, self.folder, credentials.env)
            self.url = self.router.url
            self.router.wait_for_engines({name: len(pods) for name, pods in self.pods.items()}, timeout=30.0)

    def fleet(self, began: float) -> Sequence[Mapping[str, Any]]:
        """Nothing scales here."""
        return ()

    def steps(self, began: float, lines: Sequence[Mapping[str, Any]]) -> None:
        """Nor sleeps."""

    def start_engine(self, engine: Engine, load_seconds: float = 0.0) -> tuple[str, Process]:
        """One more engine, and its address; not listed yet."""
        self._started += 1
        (address,) = free_addresses(1, int(engine.flags["--port"]))
        options = {
            **engine.flags,
            "--host": address,
            "--metrics-port": METRICS_PORT,
            "--served-model-name": engine.model,
            "--middleware": self.folder / MIDDLEWARE,
            "--load-seconds": load_seconds,
            **{f"--{name.replace('_', '-')}": value for name, value in vars(self.speed).items()},
        }
        words = [str(word) for pair in options.items() for word in pair]
        name = f"{engine.model}-{self._started}"
        process = self.processes.start(
            name,
            [sys.executable, "-m", "inference_plane.onehost.timed", *words],
            log_path=self.folder / f"{name}.log",
            ready=f"http://{address}:{engine.flags['--port']}/health",
            timeout=60 + load_seconds,
        )
        return address, process

    def list_pods(self) -> None:
        """DNS and the policy service know the engines that there are."""
        for name, pods in self.pods.items():
            self.dns.set(f"{name}.{NAMESPACE}.svc.cluster.local", list(pods))
        self.policy.lists({name: list(pods) for name, pods in self.pods.items()})

    def drain(self, pods: Mapping[str, Process]) -> None:
        """Ends engines as the chart's pods end: nobody is sent there any more, then what they have is finished."""
        time.sleep(STALE)
        deadline = time.monotonic() + DRAIN
        for address, process in pods.items():
            while process.running and time.monotonic() < deadline and busy(address, METRICS_PORT):
                time.sleep(0.2)
            self.processes.stop(process)


def busy(address: str, port: int) -> bool:
    """Whether an engine runs or queues anything, by its own metrics; one that does not answer has nothing."""
    try:
        with _open(f"http://{address}:{port}/metrics") as reply:
            lines = reply.read().decode().splitlines()
    except OSError:
        return False
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return any(line.startswith(names) and not line.endswith(" 0.0") for line in lines)


def _open(url: str, headers: Mapping[str, str] | None = None, timeout: float = 10, ca_file: str | None = None) -> Any:
    """A GET without the proxy settings of this machine for loopback, and with them for anything else."""
    local = url.split("//")[1].startswith(("127.", "localhost"))
    trusted = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
    opener = urllib.request.build_opener(trusted, *([urllib.request.ProxyHandler({})] if local else []))
    return opener.open(urllib.request.Request(url, headers=dict(headers or {})), timeout=timeout)


def check(url: str, models: Iterable[str], token: str | None, ca_file: str | None = None) -> str | None:
    """Whether an endpoint can be asked for these models. What it could not be asked, or None.

    Raises:
        TargetError: it does not answer, refuses the token, or has not all of the models.
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with _open(f"{url}/v1/models", headers, ca_file=ca_file) as reply:
            known = {each["id"] for each in json.loads(reply.read())["data"]}
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            what = "the token" if token else "a request without a token"
            raise TargetError(
                f"{url}: refuses {what} ({error.code}). Nothing would be measured but that. Set --token-file FILE, or "
                "TENANT=FILE for each tenant of the profile"
            ) from None
        return f"{url}/v1/models answers {error.code}: whether it has the profile's models is not known"
    except (urllib.error.URLError, OSError) as error:
        raise TargetError(
            f"{url}: does not answer ({getattr(error, 'reason', error)}). Set --target to an endpoint that this "
            "machine "
            "reaches, without /v1"
        ) from None
    except (ValueError, KeyError, TypeError):
        return f"{url}/v1/models is no list of models: whether it has the profile's is not known"
    if missing := sorted(set(models) - known):
        raise TargetError(
            f"{url}: has no model {', '.join(missing)}, only {', '.join(sorted(known)) or 'none'}. Every request "
            "for it "
            f"would be a 404. Set --model {missing[0]}=NAME"
        )
    return None
