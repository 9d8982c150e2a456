"""A sound profile, for tests to change."""

from __future__ import annotations

from typing import Any

SOUND: dict[str, Any] = {
    "description": "A test.",
    "seed": 1,
    "users": 5,
    "curve": [{"phase": "flat", "for": "10s", "rate": 2}, {"phase": "up", "for": "20s", "rate": 2, "to": 6}],
    "requests": {"chat": {"model": "m", "prompt": 10, "output": 5}},
    "slo": {"ttft": "500ms"},
}
