"""The metrics-only port of an engine pod and the stranger of its helm test, against real sockets on loopback."""

import http.client
import http.server
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from inference_plane.checkout import CHARTS

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
