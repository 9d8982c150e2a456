"""Log lines as JSON on stdout: one for each change of a decision and each source that fails or is back."""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any, TextIO


class Log:
    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def __call__(self, event: str, level: str = "info", **fields: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": now, "level": level, "event": event, **fields}, default=str)
        print(line, file=self._stream, flush=True)
