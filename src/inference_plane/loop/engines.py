"""What an engine says of itself."""

from __future__ import annotations

import urllib.error
import urllib.request

_WORK = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")


def busy(address: str, port: int) -> bool:
    """Whether it runs or queues anything, by its own metrics; an engine that does not answer has nothing."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://{address}:{port}/metrics", timeout=5
        ) as reply:
            lines = reply.read().decode().splitlines()
    except (urllib.error.URLError, OSError):
        return False
    return any(line.startswith(_WORK) and float(line.rpartition(" ")[2]) > 0 for line in lines)
