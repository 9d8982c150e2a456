"""Other routers to compare with: installed on first use, each in an environment of its own, and started on loopback.

What each may be installed from is pinned with hashes beside this file. Made by, for example:
  echo 'vllm-router==0.1.17' | uv pip compile - --generate-hashes --no-annotate --python-version 3.11
LiteLLM's needs `--override` with litellm-proxy-extras==0.4.110, because PyPI lacks the version that it asks for; the
package has the migrations of a database, and none is used here.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_plane.manifests import crds
from inference_plane.onehost.processes import Process, Processes, free_port

PINS = Path(__file__).parent


class PeerError(RuntimeError):
    """A peer cannot be installed; the message has who, why and what to do."""


@dataclass(frozen=True)
class Peer:
    """One peer. `start` starts it before the engine at a URL for some models, in a folder: its process and port."""

    name: str
    pins: str
    start: Callable[[Processes, Path, Path, str, Sequence[str]], tuple[Process, int]]
    sizes: bool  # whether the number of models means anything to it


def installed(peer: Peer, progress: Callable[[str], None], cache: Path = crds.CACHE) -> Path:
    """The `bin` folder of the peer's environment, made on first use and anew when its pins change. Raises PeerError."""
    pins = PINS / peer.pins
    folder = cache / "peers" / f"{pins.stem}-{hashlib.sha256(pins.read_bytes()).hexdigest()[:12]}"
    if (folder / ".ready").is_file():
        return folder / "bin"
    progress(f"installing {peer.name} from {pins.name}: a minute, once")
    shutil.rmtree(folder, ignore_errors=True)  # one that was cut off
    uv = str(Path(sys.executable).with_name("uv"))
    for command in (
        [uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--require-hashes", "--python", str(folder / "bin" / "python"), "-r", pins],
    ):
        try:
            # Not from the checkout: what its pyproject.toml tells uv to leave out, a peer may need.
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tempfile.gettempdir())
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(f"{peer.name} cannot be installed: {error}. Check that PyPI can be reached.") from error
        if done.returncode:
            raise PeerError(
                f"{peer.name} cannot be installed: {done.stderr.strip()[-600:]}. Check that PyPI can be reached, and "
                f"that {pins.name} has wheels for this machine.")
    (folder / ".ready").touch()
    return folder / "bin"


def _vllm_router(
    processes: Processes, bin_: Path, folder: Path, engine: str, models: Sequence[str]
) -> tuple[Process, int]:
    port = free_port()
    command = [
        bin_ / "vllm-router", "--host", "127.0.0.1", "--port", str(port), "--worker-urls", engine,
        "--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port()),
        # Its own limit is lower than what the other routers are asked to take at once.
        "--max-concurrent-requests", "4096",
    ]
    return _started("vllm-router", processes, command, folder, port, "/health", {"TOKIO_WORKER_THREADS": "1"})


def _litellm(
    processes: Processes, bin_: Path, folder: Path, engine: str, models: Sequence[str]
) -> tuple[Process, int]:
    port = free_port()
    config: dict[str, Any] = {
        "model_list": [
            {"model_name": model,
             "litellm_params": {"model": f"hosted_vllm/{model}", "api_base": f"{engine}/v1", "api_key": "none"}}
            for model in models],
        # What its guide to production asks for where there is no database and no cache.
        "general_settings": {"disable_spend_logs": True, "disable_error_logs": True},
        "litellm_settings": {"telemetry": False, "set_verbose": False, "json_logs": True, "request_timeout": 600},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "litellm.json").write_text(json.dumps(config))
    command = [bin_ / "litellm", "--config", "litellm.json", "--host", "127.0.0.1", "--port", str(port),
               "--num_workers", "1", "--telemetry", "False"]
    environment = {
        "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "NO_DOCS": "True",
    }
    return _started("litellm", processes, command, folder, port, "/health/liveliness", environment)


def _started(
    name: str, processes: Processes, command: Sequence[Any], folder: Path, port: int, path: str,
    environment: dict[str, str],
) -> tuple[Process, int]:
    home = tempfile.mkdtemp(prefix=f"{name}-", dir=folder.parent)
    process = processes.start(
        name, command, cwd=folder, log_path=folder / f"{name}.log", timeout=120,
        ready=f"http://127.0.0.1:{port}{path}",
        env={"PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}", "HOME": home, **environment})
    return process, port


PEERS = (
    Peer("vllm-router 0.1.17", "vllm-router.txt", _vllm_router, sizes=False),
    Peer("LiteLLM 1.109.1", "litellm.txt", _litellm, sizes=True),
)
