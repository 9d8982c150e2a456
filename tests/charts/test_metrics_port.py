"""What runs beside an engine: its metrics port, its certificate's keeper, and the stranger of the helm test."""

import http.client
import http.server
import importlib.util
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from metrics_harness import METRICS_PORT, exposed

from inference_plane.checkout import CHARTS
from inference_plane.onehost.issuer import Authority
from inference_plane.onehost.secrets import mount
from inference_plane.onehost.serving import ServerThread, send_json

FILES = CHARTS / "vllm" / "files"
METRICS = b'vllm:num_requests_waiting{engine="0",model_name="m"} 3.0\n'
HANG = 20  # seconds, a guard only


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FILES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


metrics_port = load("metrics_port")


class Engine(http.server.BaseHTTPRequestHandler):
    """Answers like vLLM: metrics, and an API that nobody may reach from the metrics port."""

    status = 200

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = METRICS if self.path == "/metrics" else b"secret"
        self.send_response(self.status)
        self.send_header("content-type", "text/plain; version=1.0.0; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args) -> None:
        pass


def serving(server: http.server.HTTPServer) -> Iterator[http.server.HTTPServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(HANG)


@pytest.fixture
def engine() -> Iterator[http.server.HTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.asked = []
    yield from serving(server)


@pytest.fixture
def port(engine) -> Iterator[int]:
    for server in serving(metrics_port.server(0, metrics_port.Engine(engine.server_port), "127.0.0.1")):
        yield server.server_port


def ask(port: int, method: str = "GET", path: str = "/metrics") -> tuple[int, bytes, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read(), response.headers["content-type"]
    finally:
        connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_metrics_pass_unchanged(engine, port):
    assert ask(port) == (200, METRICS, "text/plain; version=1.0.0; charset=utf-8")
    assert ask(port, path="/metrics?name[]=x")[0] == 200
    assert engine.asked == ["/metrics", "/metrics"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/models"),
        ("GET", "/metrics/../v1/models"),
        ("GET", "/metrics%2f..%2fv1/models"),
        ("GET", "//127.0.0.1/v1/models"),
        ("GET", "http://127.0.0.1/v1/models"),
        ("POST", "/metrics"),
        ("POST", "/v1/chat/completions"),
        ("DELETE", "/metrics"),
        ("CONNECT", "127.0.0.1:8000"),
    ],
)
def test_nothing_else_reaches_the_engine(engine, port, method, path):
    status, body, _ = ask(port, method, path)
    assert status in (404, 501) and b"secret" not in body
    assert engine.asked == []


def test_an_engine_that_is_not_up_is_a_503():
    absent = free_port()
    for server in serving(metrics_port.server(0, metrics_port.Engine(absent), "127.0.0.1")):
        status, body, _ = ask(server.server_port)
        assert status == 503 and f"the engine on port {absent} gave no metrics".encode() in body


def test_an_engine_that_fails_is_a_503(engine, port, monkeypatch):
    monkeypatch.setattr(Engine, "status", 500)
    assert ask(port)[:2] == (503, f"the engine on port {engine.server_port} gave no metrics: status 500\n".encode())


def test_an_engine_that_hangs_is_an_error_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(OSError, match="timed out"):
        metrics_port.fetch(metrics_port.Engine(silent.getsockname()[1]), timeout=0.05)


def test_a_slow_client_keeps_nobody_waiting(port):
    with socket.create_connection(("127.0.0.1", port)) as idle:
        idle.sendall(b"GET /met")
        assert ask(port)[0] == 200


def test_the_process_serves_and_leaves_on_sigterm(engine):
    own = free_port()
    command = [sys.executable, str(FILES / "metrics_port.py"), f"--port={own}", f"--engine-port={engine.server_port}"]
    process = subprocess.Popen(command)
    try:
        for _ in range(200):
            try:
                assert ask(own)[1] == METRICS
                break
            except ConnectionRefusedError:
                assert process.poll() is None
                threading.Event().wait(0.05)
        else:
            pytest.fail("metrics_port.py did not listen within 10 s")
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def stranger(*targets: str) -> subprocess.CompletedProcess:
    if shutil.which("curl") is None:
        pytest.skip("the stranger's script needs curl on PATH, which its image has")
    script = ["sh", "-c", (FILES / "stranger.sh").read_text(), "stranger"]
    return subprocess.run([*script, *targets], capture_output=True, text=True, timeout=HANG)


def test_the_stranger_passes_where_it_is_refused():
    done = stranger(f"127.0.0.1:{free_port()}")
    assert done.returncode == 0 and done.stdout.startswith("ok   127.0.0.1:")


def test_the_stranger_fails_where_it_gets_in(engine):
    done = stranger(f"127.0.0.1:{free_port()}", f"127.0.0.1:{engine.server_port}")
    assert done.returncode == 1 and "took a connection from a pod that is not the router" in done.stdout


def test_the_stranger_fails_where_a_name_has_no_address():
    done = stranger("no-such-engine.invalid:8000")
    assert done.returncode == 1 and "no ready engine has this name" in done.stdout


def pem(folder: Path, authority: Authority, *names: str, **how: bool) -> dict[str, str]:
    """Files of a certificate, by what ServerThread calls them, and of its authority."""
    secret = authority.secret(*names, **how)
    for name, text in secret.items():
        (folder / name).write_text(text)
    return {"certfile": str(folder / "tls.crt"), "keyfile": str(folder / "tls.key")}


async def metrics_alone(scope, receive, send) -> None:
    await send_json(send, 200, METRICS, content_type="text/plain")


def test_an_engine_has_to_prove_its_name_and_says_when_its_certificate_ends(tmp_path, update_golden):
    authority = Authority()
    with ServerThread(metrics_alone, **pem(tmp_path, authority, "summary.inference.svc.cluster.local")) as engine:
        right = metrics_port.Engine(engine.port, "summary.inference.svc.cluster.local", str(tmp_path / "ca.crt"))
        body, _ = metrics_port.fetch(right)
        expiry = body.removesuffix(METRICS)
        assert expiry != body
        (series,) = exposed(expiry.decode())
        assert series == {"__name__": "plane_engine_certificate_expiry_timestamp_seconds"}
        left = float(expiry.split()[-1]) - time.time()
        assert 23 * 3600 < left <= 24 * 3600
        if update_golden:
            METRICS_PORT.write_bytes(expiry)
        assert exposed(METRICS_PORT.read_text()) == [series]
        other_name = right._replace(name="records.inference.svc.cluster.local")
        (tmp_path / "other.crt").write_text(Authority().pem)
        other_authority = right._replace(ca_file=str(tmp_path / "other.crt"))
        for wrong in (other_name, other_authority):
            with pytest.raises(ssl.SSLCertVerificationError):
                metrics_port.fetch(wrong)
            for server in serving(metrics_port.server(0, wrong, "127.0.0.1")):
                status, body, _ = ask(server.server_port)
                assert status == 503 and b"CERTIFICATE_VERIFY_FAILED" in body and METRICS not in body
        with pytest.raises((OSError, http.client.HTTPException)):
            metrics_port.fetch(metrics_port.Engine(engine.port))


def test_a_certificate_that_is_too_old_gives_no_metrics(tmp_path):
    name = "summary.inference.svc.cluster.local"
    with ServerThread(metrics_alone, **pem(tmp_path, Authority(), name, ended=True)) as engine:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            metrics_port.fetch(metrics_port.Engine(engine.port, name, str(tmp_path / "ca.crt")))


certificate = load("certificate")


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A mounted Secret's folder, and the one that vLLM reads."""
    (tmp_path / "target").mkdir()
    return tmp_path / "source", tmp_path / "target"


def pair(names: str = "summary") -> dict[str, str]:
    return {name: text for name, text in Authority().secret(names).items() if name != "ca.crt"}


def test_each_renewal_is_copied_over_the_same_files(folders):
    source, target = folders
    inodes, last = set(), {}
    for _ in range(3):
        secret = pair()
        mount(source, secret)
        last = certificate.copy(source, target, last)
        assert {file.name: file.read_text() for file in target.iterdir()} == secret
        assert (target / "tls.key").stat().st_mode & 0o077 == 0
        inodes.add((target / "tls.crt").stat().st_ino)
    assert len(inodes) == 1


def test_a_shorter_certificate_leaves_nothing_of_a_longer_one(folders):
    source, target = folders
    secret = pair()
    mount(source, secret | {"tls.crt": secret["tls.crt"] * 2})
    last = certificate.copy(source, target, {})
    mount(source, secret)
    certificate.copy(source, target, last)
    assert (target / "tls.crt").read_text() == secret["tls.crt"]


@pytest.mark.parametrize(
    "broken",
    [{"tls.key": pair()["tls.key"]}, {"tls.crt": "-----BEGIN CERTIFICATE-----"}, {"tls.key": ""}],
    ids=["another key", "half a certificate", "no key"],
)
def test_what_does_not_fit_together_is_not_copied(folders, broken):
    source, target = folders
    good = pair()
    mount(source, good)
    last = certificate.copy(source, target, {})
    mount(source, good | broken)
    with pytest.raises(OSError):
        certificate.copy(source, target, last)
    assert {file.name: file.read_text() for file in target.iterdir()} == good


def test_the_process_says_what_is_missing_goes_on_and_leaves_at_sigterm(folders, tmp_path):
    source, target = folders
    command = [sys.executable, FILES / "certificate.py", f"--source={source}", f"--target={target}", "--seconds=0.05"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + HANG
        while "no usable tls.crt and tls.key in" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        assert not list(target.iterdir())
        mount(source, pair())
        while not (target / "tls.key").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == 0
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "log").read_text().splitlines()
    assert len(said) == 2 and "Set them in the Secret." in said[0] and "copied from" in said[1]
