"""The local environment on a cluster of kind, and a client in a pod of its own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inference_plane import helm
from inference_plane.checkout import CHARTS, VALUES
from inference_plane.cluster import diagnose, pod_images
from inference_plane.cluster.client import Client
from inference_plane.cluster.kind import Kind
from inference_plane.onehost.issuer import Issuer

HERE = Path(__file__).parent
KUBECTL = Path(sys.executable).parent / "kubectl"
NAMESPACE, CLIENTS = "inference", "default"
#: Of a wait that is no assertion: three nodes on two busy cores are slow.
HELM_SECONDS = 900
AGENT = "169.254.170.23"

#: As restricted Pod Security wants it.
POD = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


class Cluster:
    """A cluster of kind that is up, with its client, kubectl and Docker."""

    def __init__(self, kind: Kind, *, built: bool) -> None:
        self.kind, self.client = kind, Client(kind.kubeconfig)
        #: Whether no registry gives the public images.
        self.built = built

    def kubectl(self, *words: str, input: str | None = None, check: bool = True) -> subprocess.CompletedProcess:
        command = [str(KUBECTL), "--kubeconfig", str(self.kind.kubeconfig), *words]
        done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"kubectl {words[:4]}: {done.stderr or done.stdout}\n{self.report()}"
        return done

    def python(self, pod: str, script: str, *arguments: str, namespace: str = NAMESPACE, container: str = "") -> str:
        """What a script prints that runs in a pod's container."""
        chosen = ["--container", container] if container else []
        words = ["exec", "-i", "--namespace", namespace, pod, *chosen, "--", "python3", "-", *arguments]
        return self.kubectl(*words, input=script).stdout

    def pods(self, name: str, namespace: str = NAMESPACE) -> list[dict]:
        """The pods of a workload that are not on their way out."""
        found = self.client.list("v1", "Pod", namespace, labelSelector=f"app.kubernetes.io/name={name}")
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def wait(self, what, check, seconds=HELM_SECONDS):
        """The first true answer of `check`; fails with its last one, and what is amiss on the cluster."""
        deadline = time.monotonic() + seconds
        while not (answer := check()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what} (last: {answer!r})\n{self.report()}"
            time.sleep(0.5)
        return answer

    def report(self) -> str:
        return diagnose.report(self.client)


class Plane:
    """The release `plane`: values/local.yaml, values.yaml beside this file, and what only the tests know."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.issuer = cluster, Issuer()

    def values(self, **changes) -> list[str]:
        """Arguments of Helm; `changes` are merged in last."""
        words = ["--values", str(VALUES / "local.yaml"), "--values", str(HERE / "values.yaml")]
        known = {
            "global": {"network": {"apiServerCidrs": [self.cluster.kind.network()]}},
            "router": {"auth": self.issuer.values()},
        }
        for number, each in enumerate((pod_images.values(registry=not self.cluster.built), known, changes)):
            file = self.cluster.kind.folder / f"values-{number}.json"
            # JSON, because Helm's YAML reads the `n` of a key as false.
            file.write_text(json.dumps(each))
            words += ["--values", str(file)]
        return words

    def helm(self, *words: str) -> str:
        where = ["--kubeconfig", str(self.cluster.kind.kubeconfig), "--namespace", NAMESPACE]
        try:
            return helm.run(*words, *where)
        except helm.HelmError as error:
            raise AssertionError(f"{error}\n{self.cluster.report()}") from None

    def install(self) -> str:
        said = self.helm("install", "plane", str(CHARTS / "inference-plane"), *self.values(), *_waiting())
        self.settle()
        return said

    def settle(self) -> None:
        """Waits until the fleet serves by itself.

        While no engine was ready the policy service sent what may fall back to Amazon Bedrock, where nobody answers
        here, and it takes that back by steps.
        """

        selector = "app.kubernetes.io/name=router-policy"

        def share():
            said = self.cluster.kubectl("logs", "--namespace", NAMESPACE, "--selector", selector, "--tail=200").stdout
            lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
            told = [line for line in lines if line["event"] == "decision" and line["model"] == "assistant"]
            return max(told, key=lambda line: line["time"])["share"] if told else None

        self.cluster.wait("the model's fleet serves by itself", lambda: share() == 0)

    def upgrade(self, **changes) -> str:
        return self.helm("upgrade", "plane", str(CHARTS / "inference-plane"), *self.values(**changes), *_waiting())

    def rollback(self, revision: int) -> str:
        return self.helm("rollback", "plane", str(revision), *_waiting())

    def token(self, team: str) -> str:
        return self.issuer.token([team], seconds=7200)

    def ask(self, body: dict, team: str = "appeals", token: str | None = None) -> tuple[int, dict, str]:
        """Status, headers and body of the router's answer to a pod of another namespace."""
        sent = {"body": body, "token": self.token(team) if token is None else token}
        return tuple(json.loads(self.cluster.python("client", ASK, json.dumps(sent), namespace=CLIENTS)))

    @contextlib.contextmanager
    def traffic(self, model: str):
        """Sends chat completions all the while, half of them streams; yields a list that has what became of each."""
        command = [
            str(KUBECTL),
            "--kubeconfig",
            str(self.cluster.kind.kubeconfig),
            "exec",
            "-i",
            "--namespace",
            CLIENTS,
        ]
        outcomes: list[dict] = []
        with tempfile.NamedTemporaryFile("w+") as out:
            sender = subprocess.Popen(
                [*command, "client", "--", "python3", "-c", TRAFFIC, model, self.token("appeals")],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                self.cluster.wait("the first answers", lambda: sender.poll() is not None or len(_lines(out)) > 4)
                yield outcomes
                before = len(_lines(out))
                self.cluster.wait(
                    "some more answers", lambda: sender.poll() is not None or len(_lines(out)) > before + 4
                )
            finally:
                sender.stdin.close()
                try:
                    status = sender.wait(120)
                except subprocess.TimeoutExpired:
                    sender.kill()
                    raise
            assert status == 0, Path(out.name).read_text()[-2000:]
            outcomes += [json.loads(line) for line in _lines(out)]


def _lines(file) -> list[str]:
    return Path(file.name).read_text().splitlines()


def suites(said: str) -> list[tuple[str, str]]:
    """(name, phase) of each suite that `helm test` tells of."""
    return re.findall(r"^TEST SUITE: +(\S+)$(?:\n.+)*?\nPhase: +(\S+)$", said, re.MULTILINE)


def _waiting() -> list[str]:
    return ["--wait", "--timeout", f"{HELM_SECONDS}s"]


def client_pod(name: str = "client", **labels: str) -> dict:
    """A pod that does nothing by itself, with Python and an HTTP client in it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": POD,
            "containers": [
                {
                    "name": "python",
                    "image": pod_images.default("plane"),
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-c", "import time; time.sleep(1e6)"],
                    "securityContext": CONTAINER,
                }
            ],
        },
    }


def agent() -> dict:
    """A listener in the place of the EKS Pod Identity agent, on each node and at its address, without credentials."""
    script = (
        "import http.server, sys\n"
        "class Agent(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(b'stands in for the agent')\n"
        f"http.server.ThreadingHTTPServer(('{AGENT}', 80), Agent).serve_forever()\n"
    )
    labels = {"app": "pod-identity-agent-stand-in"}
    container = {
        "name": "agent",
        "image": pod_images.default("plane"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", script],
        "securityContext": {"runAsUser": 0},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "pod-identity-agent-stand-in", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"hostNetwork": True, "terminationGracePeriodSeconds": 0, "containers": [container]},
            },
        },
    }


ASK = """
import json, sys, urllib.error, urllib.request
sent = json.loads(sys.argv[1])
headers = {"content-type": "application/json", "authorization": "Bearer " + sent["token"]}
request = urllib.request.Request(
    "http://router.inference.svc.cluster.local/v1/chat/completions", json.dumps(sent["body"]).encode(), headers
)
try:
    reply = urllib.request.urlopen(request, timeout=120)
except urllib.error.HTTPError as error:
    reply = error
print(json.dumps([reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read().decode()]))
"""

#: Whether a TCP connection to each HOST:PORT can be made, and where it cannot, why.
CONNECT = """
import json, socket, sys
said = {}
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 5).close()
        said[target] = "connected"
    except OSError as error:
        said[target] = type(error).__name__
print(json.dumps(said))
"""

#: Two senders, one of streams, until standard input ends. A line for each request, when it is over.
TRAFFIC = """
import asyncio, json, sys, aiohttp
model, token = sys.argv[1:]
URL = "http://router.inference.svc.cluster.local/v1/chat/completions"

async def send(session, stream):
    body = {"model": model, "stream": stream, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
    said = {"stream": stream}
    try:
        async with session.post(URL, json=body) as reply:
            said |= {"status": reply.status, "backend": reply.headers.get("x-inference-backend")}
            text = await reply.text()
            said["whole"] = text.rstrip().endswith("data: [DONE]") if stream else "usage" in json.loads(text)
            if reply.status != 200:
                said["text"] = text[:300]
    except Exception as error:
        said["error"] = repr(error)
    return said

async def main():
    over = asyncio.Event()
    async def sender(stream):
        headers = {"authorization": "Bearer " + token}
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=120)) as session:
            while not over.is_set():
                print(json.dumps(await send(session, stream)), flush=True)
                await asyncio.sleep(0.2)
    tasks = [asyncio.create_task(sender(stream)) for stream in (False, True)]
    await asyncio.to_thread(sys.stdin.read)
    over.set()
    await asyncio.gather(*tasks)

asyncio.run(main())
"""
