"""Reads an answer of the OpenAI API as it comes: what is a token, what is an error, what the server counted. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .samples import Sample


class Refused(Exception):
    """The answer is none: `kind` goes into the sample."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Stream:
    """Takes the events of one stream. `text` is what was said; the first token is the first event with content.

    vLLM's first event has a role and no content, and a proxy may send comments before it: neither is a token. Events
    without text that the server counts as tokens (half a character, say) are.
    """

    def __init__(self, sample: Sample) -> None:
        self.sample, self.text, self.done = sample, "", False
        self._last: float | None = None
        self._counted = 0

    def line(self, line: bytes, elapsed: float) -> None:
        """One line, `elapsed` seconds after sending. Raises Refused for an error in the stream."""
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            code = (event["error"] or {}).get("code")
            raise Refused(f"error {code} in the stream")
        if usage := event.get("usage"):
            take_usage(self.sample, usage)
        text, reason = _said(event)
        counted = (usage or {}).get("completion_tokens") or 0
        if text or (reason is not None and counted > self._counted):
            if self.sample.first is None:
                self.sample.first = elapsed
            elif self._last is not None:
                self.sample.gaps.append(elapsed - self._last)
            self._last = elapsed
            self._counted = max(counted, self._counted)
            self.text += text

    def end(self) -> None:
        """The stream has ended. Raises Refused where it did so too early."""
        if not self.done:
            raise Refused("cut stream")
        if self.sample.first is None and not self.sample.completion_tokens:
            raise Refused("no token")


def _said(event: Mapping[str, Any]) -> tuple[str, str | None]:
    """The text of an event's choices, and "" where there is a choice without a role; None where it is no token's."""
    text, token = "", None
    for choice in event.get("choices") or []:
        delta = choice.get("delta") or {}
        text += (
            delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or choice.get("text") or ""
        )
        if "role" not in delta:
            token = ""
    return text, token


def whole(sample: Sample, body: bytes) -> str:
    """The text of an answer in one piece. Raises Refused where it has none."""
    try:
        document = json.loads(body)
        choice = document["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise Refused("not an answer") from None
    take_usage(sample, document.get("usage") or {})
    return text or ""


def take_usage(sample: Sample, usage: Mapping[str, Any]) -> None:
    """What the server counted so far."""
    sample.prompt_tokens = usage.get("prompt_tokens", sample.prompt_tokens)
    sample.completion_tokens = usage.get("completion_tokens", sample.completion_tokens)
    sample.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", sample.cached_tokens)


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After; None where there is none, or a date."""
    return float(value) if value and value.strip().isdigit() else None
