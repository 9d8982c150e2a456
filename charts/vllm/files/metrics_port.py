"""Serves the metrics of the vLLM engine beside it on a port of their own: `metrics_port.py --port 8001`.

vLLM answers /metrics on the port of its API, and a NetworkPolicy can open ports but no paths. So that scrapers and
autoscalers read metrics while only the router reaches the API, this process passes GET /metrics on from loopback and
answers nothing else. Standard library only, because it runs inside the engine's image.

An engine with TLS has to prove its name here as it has to before the router. When its certificate ends is added to its
metrics: it is the certificate that it serves, whatever the Secret holds.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import signal
import socket
import ssl
import sys
from types import FrameType
from typing import NamedTuple
from urllib.parse import urlsplit

ENGINE_TIMEOUT = 5.0  # seconds
CLIENT_TIMEOUT = 10.0  # seconds

#: A gauge of ours among the engine's.
EXPIRY = "plane_engine_certificate_expiry_timestamp_seconds"


class Engine(NamedTuple):
    """Where the engine answers on loopback; `name` is what its certificate must prove to an authority of `ca_file`."""

    port: int
    name: str = ""
    ca_file: str = ""

    def connect(self, timeout: float) -> socket.socket:
        """A connection. Raises OSError (ssl.SSLError is one): nobody listens, or whoever does proves no such name."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout)
        if not self.name:
            return plain
        try:
            # Made anew each time, as the authorities may have changed.
            context = ssl.create_default_context(cafile=self.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            return context.wrap_socket(plain, server_hostname=self.name)
        except BaseException:
            plain.close()
            raise


def fetch(engine: Engine, timeout: float = ENGINE_TIMEOUT) -> tuple[bytes, str]:
    """The engine's metrics and their media type.

    Raises:
        OSError: nothing answers on that port of loopback, or not in time, or without the certificate that it must have.
        http.client.HTTPException: the answer is not HTTP, or its status is not 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=timeout)
    connection.sock = engine.connect(timeout)
    expiry = b""
    try:
        if isinstance(connection.sock, ssl.SSLSocket):
            seconds = ssl.cert_time_to_seconds(connection.sock.getpeercert()["notAfter"])
            expiry = f"# TYPE {EXPIRY} gauge\n{EXPIRY} {seconds}\n".encode()
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"status {response.status}")
        return expiry + body, response.headers.get("content-type", "text/plain; version=0.0.4")
    finally:
        connection.close()


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /metrics, and 404 for everything else; `engine` is set by `server`."""

    engine: Engine
    timeout = CLIENT_TIMEOUT
    server_version = "metrics-port"
    sys_version = ""

    def do_GET(self) -> None:
        if urlsplit(self.path).path != "/metrics":
            return self._answer(404, b"only /metrics is served on this port\n")
        try:
            body, content_type = fetch(self.engine)
        except (OSError, http.client.HTTPException) as error:
            # Not ready yet, or draining: a scrape that fails says so, an empty one would look like an idle engine.
            return self._answer(503, f"the engine on port {self.engine.port} gave no metrics: {error}\n".encode())
        self._answer(200, body, content_type)

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass  # A line for each scrape tells nobody anything.


def server(port: int, engine: Engine, host: str = "0.0.0.0") -> http.server.ThreadingHTTPServer:
    """A server bound to `port` (0 is a free one) that passes on the metrics of an engine."""
    handler = type("EngineHandler", (Handler,), {"engine": engine})
    return http.server.ThreadingHTTPServer((host, port), handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=8001, help="where metrics are served")
    parser.add_argument("--engine-port", type=int, default=8000, help="where the engine answers on loopback")
    parser.add_argument("--engine-name", default="", help="the name that the engine's certificate proves; none: no TLS")
    parser.add_argument("--ca-file", default="", help="who vouches for it")
    arguments = parser.parse_args()
    engine = Engine(arguments.engine_port, arguments.engine_name, arguments.ca_file)

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    # As the first process of its container it gets no default handler, and would hold the pod until it is killed.
    signal.signal(signal.SIGTERM, leave)
    with server(arguments.port, engine) as metrics:
        metrics.serve_forever()


if __name__ == "__main__":
    main()
