"""Serves the metrics of the vLLM engine beside it on a port of their own: `metrics_port.py --port 8001`.

vLLM answers /metrics on the port of its API, and a NetworkPolicy can open ports but no paths. So that scrapers and
autoscalers read metrics while only the router reaches the API, this process passes GET /metrics on from loopback and
answers nothing else. Standard library only, because it runs inside the engine's image.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import signal
import sys
from types import FrameType
from urllib.parse import urlsplit

ENGINE_TIMEOUT = 5.0  # seconds
CLIENT_TIMEOUT = 10.0  # seconds


def fetch(port: int, timeout: float = ENGINE_TIMEOUT) -> tuple[bytes, str]:
    """The engine's metrics and their media type.

    Raises:
        OSError: nothing answers on that port of loopback, or not in time.
        http.client.HTTPException: the answer is not HTTP, or its status is not 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"status {response.status}")
        return body, response.headers.get("content-type", "text/plain; version=0.0.4")
    finally:
        connection.close()


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /metrics, and 404 for everything else; `engine_port` is set by `server`."""

    engine_port: int
    timeout = CLIENT_TIMEOUT
    server_version = "metrics-port"
    sys_version = ""

    def do_GET(self) -> None:
        if urlsplit(self.path).path != "/metrics":
            return self._answer(404, b"only /metrics is served on this port\n")
        try:
            body, content_type = fetch(self.engine_port)
        except (OSError, http.client.HTTPException) as error:
            # Not ready yet, or draining: a scrape that fails says so, an empty one would look like an idle engine.
            return self._answer(503, f"the engine on port {self.engine_port} gave no metrics: {error}\n".encode())
        self._answer(200, body, content_type)

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass  # A line for each scrape tells nobody anything.


def server(port: int, engine_port: int, host: str = "0.0.0.0") -> http.server.ThreadingHTTPServer:
    """A server bound to `port` (0 is a free one) that passes on the metrics of the engine on `engine_port`."""
    handler = type("EngineHandler", (Handler,), {"engine_port": engine_port})
    return http.server.ThreadingHTTPServer((host, port), handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=8001, help="where metrics are served")
    parser.add_argument("--engine-port", type=int, default=8000, help="where the engine answers on loopback")
    arguments = parser.parse_args()

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    # As the first process of its container it gets no default handler, and would hold the pod until it is killed.
    signal.signal(signal.SIGTERM, leave)
    with server(arguments.port, arguments.engine_port) as metrics:
        metrics.serve_forever()


if __name__ == "__main__":
    main()
