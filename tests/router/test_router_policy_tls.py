"""The hop from the router to the policy service in TLS: shares of whoever proves the name, and of nobody else."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from router_harness import QUICK, REGION_TARGET, Client, catalogue, model, wait_until

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Authority

AUTHORITY = Authority()
MODELS = {"summary": model("summary", "region", REGION_TARGET)}
#: As of tests/router/test_router_policy.py: fractions of what suits a real fleet.
TUNING = {"smoothingSeconds": 0, "holdSeconds": 1, "lowerSeconds": 0.2, "lowerPoints": 50, "settleSeconds": 1}
BED = {
    "values": catalogue(MODELS, **QUICK, policy={"tuning": TUNING, "refreshRate": "200ms"}),
    "tls": AUTHORITY,
    "policies": 1,
    "metrics_port": 8001,
}
HOST = "router-policy.inference.svc.cluster.local"
UNTRUSTED = {
    "another authority's": lambda: Authority("somebody else").secret(HOST),
    "of another name": lambda: AUTHORITY.secret("router.inference.svc.cluster.local"),
    "too old": lambda: AUTHORITY.secret(HOST, ended=True),
}


class Sayer:
    """A context manager that says "everything goes to the fallback" at the service's address, by a certificate or none."""

    def __init__(self, bed: Bed, folder: Path, secret: dict[str, str] | None) -> None:
        kind = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
        resource = {"@type": kind, "name": "policy", "layer": {"fallback.summary": 100}}
        body = json.dumps({"version_info": "1", "type_url": kind, "resources": [resource]}).encode()
        outer, self.asked, self.refused = self, 0, 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked += 1
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                outer.refused += 1

        (policy,) = bed.policies
        self._server = Server((policy.host, policy.port), Handler)
        if secret:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            for name in ("tls.crt", "tls.key"):
                (folder / name).write_text(secret[name])
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
            # The handshake in the thread of its request.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    def __enter__(self) -> Sayer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def silent(bed: Bed) -> Iterator[Bed]:
    """The bed with no policy service, which comes back after it."""
    (policy,) = bed.policies
    wait_until(lambda: share(bed) == "0", "its share")
    policy.process.kill()
    yield bed
    bed.processes.stop(policy.process)
    policy.mount(AUTHORITY.secret(HOST))
    policy.start()
    wait_until(lambda: share(bed) == "0", "nothing is shifted any more")


@pytest.fixture(scope="module")
def module_client(module_bed: Bed) -> Iterator[Client]:
    client = Client(module_bed.url, ca=AUTHORITY.pem, name=module_bed.host("router"))
    yield client
    client.close()


def share(bed: Bed) -> str | None:
    return bed.router.runtime("fallback.").get("fallback.summary")


def counted(bed: Bed, what: str) -> int:
    return bed.router.stats([f"cluster.policy.ssl.{what}"])[f"cluster.policy.ssl.{what}"]


def test_shares_come_in_tls(bed: Bed, client: Client) -> None:
    wait_until(lambda: share(bed) == "0", "its share")
    assert counted(bed, "versions.TLSv1.3") > 0 and counted(bed, "session_reused") == 0
    (policy,) = bed.policies
    for engine in bed.engines["summary"]:
        engine.stop()
    wait_until(lambda: share(bed) == "100", "the service sees that no engine is left")
    assert client.chat("summary").backend == "bedrock"
    for engine in bed.engines["summary"]:
        engine.start()
    bed.wait_for_engines()
    wait_until(lambda: share(bed) == "0", "it is back")


@pytest.mark.parametrize("what", UNTRUSTED)
def test_whoever_does_not_prove_the_name_moves_nothing(silent: Bed, client: Client, tmp_path: Path, what: str) -> None:
    why = "fail_verify_san" if what == "of another name" else "fail_verify_error"
    before = counted(silent, why)
    with Sayer(silent, tmp_path, UNTRUSTED[what]()) as sayer:
        wait_until(lambda: counted(silent, why) >= before + 3, "the router refuses again and again")
        assert sayer.asked == 0 and share(silent) == "0", "the last share stays"
        assert client.chat("summary").backend == "fleet"
    assert "REST update for /v3/discovery:runtime failed" in silent.router.log_path.read_text()


def test_clear_text_moves_nothing(silent: Bed, tmp_path: Path) -> None:
    before = counted(silent, "connection_error")
    with Sayer(silent, tmp_path, None) as sayer:
        wait_until(lambda: counted(silent, "connection_error") >= before + 3, "the router refuses again and again")
        assert sayer.asked == 0 and share(silent) == "0"


def test_who_proves_it_is_believed(silent: Bed, client: Client, tmp_path: Path) -> None:
    """The same answer, so that the refusals above are for the certificates' sake."""
    with Sayer(silent, tmp_path, AUTHORITY.secret(HOST)) as sayer:
        wait_until(lambda: share(silent) == "100", "the router has heard")
        assert sayer.asked > 0 and client.chat("summary").backend == "bedrock"


def test_a_renewal_loses_nothing(bed: Bed) -> None:
    (policy,) = bed.policies
    wait_until(lambda: share(bed) == "0", "its share")
    for _ in range(2):
        policy.mount(AUTHORITY.secret(HOST))
        before = policy.process.log_path.read_text().count("certificate-read")
        wait_until(lambda b=before: policy.process.log_path.read_text().count("certificate-read") > b, "it is read")
        name = "runtime.update_attempt"
        asked = bed.router.stats([name])[name]
        failed = bed.router.stats(["runtime.update_failure"])["runtime.update_failure"]
        wait_until(lambda a=asked: bed.router.stats([name])[name] > a + 5, "the router asks on")
        assert bed.router.stats(["runtime.update_failure"])["runtime.update_failure"] == failed
