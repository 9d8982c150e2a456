"""Answers at the address of every simulated pod, inside a network of pods: engines' metrics, the policy's demand."""

import http.server
import json
import re
import threading
import time

from inference_plane import checkout

#: What a real vLLM said.
CAPTURED = (checkout.ROOT / "tests" / "data" / "vllm-0.32" / "metrics-idle.txt").read_text()


class PodServer:
    """A context manager that listens on some ports of every pod.

    `requests` is what the engines of a fleet have in all, and `demand` what the policy service tells of a model; a
    fleet in `silent` answers 503, and a model without a demand has none that is known.
    """

    def __init__(self, client, ports):
        self.requests, self.demand, self.silent, self.asked = {}, {}, set(), []
        self._client, self._pods, self._read = client, {}, 0.0
        self._lock = threading.Lock()
        self._servers = [_Server(("0.0.0.0", port), self) for port in ports]

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def answer(self, address, path):
        """Status and body of the pod at an address."""
        labels = self._labels(address)
        self.asked.append((address, path))
        if "inference-plane/model" not in labels:
            return self._of_policy(path) if labels else (404, "no pod has this address")
        fleet = labels["app.kubernetes.io/name"]
        if path != "/metrics" or fleet in self.silent:
            return 503, "not now"
        together = [other for other in self._pods.values() if other.get("app.kubernetes.io/name") == fleet]
        share = self.requests.get(fleet, 0) / len(together)
        running = min(share, 4)  # as many as were at once in the engine that was captured
        return 200, engine_metrics(labels["inference-plane/model"], running, share - running)

    def _of_policy(self, path):
        known = self.demand.get(path.removeprefix("/demand/"))
        return (503, "not known") if known is None else (200, json.dumps({"demand": known}))

    def _labels(self, address):
        with self._lock:
            if address not in self._pods or time.monotonic() - self._read > 0.5:
                running = self._client.list("v1", "Pod", fieldSelector="status.phase=Running")
                self._pods = {pod["status"]["podIP"]: pod["metadata"]["labels"] for pod in running}
                self._read = time.monotonic()
            return self._pods.get(address, {})


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, where, pods):
        self.pods = pods
        super().__init__(where, _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, body = self.server.pods.answer(self.connection.getsockname()[0], self.path)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def engine_metrics(model, running, waiting):
    """What vLLM says of itself, with another model's name and other requests."""
    text = re.sub(r'model_name="[^"]*"', f'model_name="{model}"', CAPTURED)
    for name, value in (("running", running), ("waiting", waiting)):
        text, count = re.subn(
            rf"^(vllm:num_requests_{name}{{[^}}]*}}) .*$", rf"\g<1> {value}", text, flags=re.MULTILINE
        )
        assert count == 1
    return text
