"""An engine with real tokens: vLLM's OpenAI surface (`surface`) in front of the small model (`model`).

    python -m inference_plane.onehost.engine --host 127.18.0.11 --port 8000 --model-url http://127.0.0.1:N
        --served-model-name NAME --max-num-seqs 4 --max-num-queued-reqs 8 --middleware FILE --control-port N

Real: the model, its tokens, its token counts and its speed; the sockets; the plane's middleware, the same file that
vLLM loads; admission, queueing and aborts (a client that goes away ends the generation in llama.cpp's server). Stands
in: vLLM itself. No continuous batching beyond llama.cpp's slots, no paged KV cache (`vllm:kv_cache_usage_perc` is the
share of the engine's context that running requests hold), only the endpoints and metrics of `surface`. Slowness set
through the control port is simulated and named so.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack
from typing import Any

import aiohttp

from .serving import ServerThread, control_app, load_middleware
from .surface import Behaviour, GenerationError, Piece, Surface

# llama.cpp is asked for streams only, so that leaving always aborts; these fields are ours to set.
_OURS = ("model", "stream", "stream_options", "x_test")


class LlamaServer:
    """Generates with llama.cpp's server at `url`, for `Surface` and `Bedrock`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    async def __call__(self, body: Mapping[str, Any], chat: bool, behaviour: Behaviour) -> AsyncGenerator[Piece, None]:
        request = {key: value for key, value in body.items() if key not in _OURS}
        request |= {"stream": True, "stream_options": {"include_usage": True}, "timings_per_token": True}
        if "max_completion_tokens" in request:
            request["max_tokens"] = request.pop("max_completion_tokens")
        path = "/v1/chat/completions" if chat else "/v1/completions"
        try:
            # A session a request: the server closes its connection after a stream without saying so.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self.url + path, json=request) as response,
            ):
                if response.status != 200:
                    raise _refusal(response.status, await response.text())
                async for piece in _pieces(response.content):
                    yield piece
        except aiohttp.ClientError as error:
            raise _refusal(
                500, f"the model at {self.url} failed: {error!r}; is inference_plane.onehost.model running?"
            ) from error


async def _pieces(lines: aiohttp.StreamReader) -> AsyncGenerator[Piece, None]:
    """A piece for each text, and one without text at the end, when llama.cpp has told the final counts."""
    prompt = completion = 0
    finish_reason = None
    async for line in lines:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise _refusal(500, json.dumps(event))
        if timings := event.get("timings"):
            prompt, completion = timings["cache_n"] + timings["prompt_n"], timings["predicted_n"]
        for choice in event["choices"]:
            finish_reason = choice["finish_reason"] or finish_reason
            if text := choice.get("text") or choice.get("delta", {}).get("content"):
                yield Piece(text, prompt, completion)
    if finish_reason is None:
        raise _refusal(500, "the model's stream ended before the reply did")
    yield Piece("", prompt, completion, finish_reason)


def _refusal(status: int, text: str) -> GenerationError:
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    kind = "BadRequestError" if status < 500 else "InternalServerError"
    return GenerationError(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})


def serve_until_terminated(*servers: Any) -> None:
    """Enter each context manager, wait for SIGTERM or SIGINT, leave them in reverse order."""
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        signal.sigwait(ending)


def main(arguments: list[str] | None = None) -> None:
    """Serve one engine until SIGTERM, which aborts what runs, as vLLM's `--shutdown-timeout 0` does."""
    parser = argparse.ArgumentParser(
        prog="python -m inference_plane.onehost.engine", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, help="a port that serves only /metrics")
    parser.add_argument("--model-url", required=True, help="llama.cpp's server (inference_plane.onehost.model)")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-num-seqs", type=int, default=4, help="at most the model's slots")
    parser.add_argument("--max-num-queued-reqs", type=int, default=0, help="running plus waiting; 0: no limit")
    parser.add_argument("--max-model-len", type=int, default=2048, help="the model's context of one slot")
    parser.add_argument("--middleware", help="a Python file with the class PlaneMiddleware")
    parser.add_argument(
        "--first-token-delay", type=float, default=0.0, help="simulated: seconds before the first token"
    )
    parser.add_argument("--control-port", type=int, help="GET the state, POST changes of behaviour")
    options = parser.parse_args(arguments)
    behaviour = Behaviour(first_token_delay=options.first_token_delay)
    surface = Surface(
        LlamaServer(options.model_url),
        served_model_name=options.served_model_name,
        max_num_seqs=options.max_num_seqs,
        max_num_queued_reqs=options.max_num_queued_reqs,
        max_model_len=options.max_model_len,
        behaviour=behaviour,
    )
    servers = []
    if options.metrics_port is not None:
        servers.append(ServerThread(surface.metrics_only, options.host, options.metrics_port))
    if options.control_port is not None:
        servers.append(ServerThread(control_app(surface.state, behaviour.update), "127.0.0.1", options.control_port))
    # Last, because its /health says that the process is ready.
    servers.append(ServerThread(load_middleware(options.middleware, surface), options.host, options.port))
    serve_until_terminated(*servers)


if __name__ == "__main__":
    main()
