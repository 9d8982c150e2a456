"""Bounded reads: of the time and of the size that one answer may take, with an error that says which way it failed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp


class ReadError(Exception):
    """A read that failed. `kind` is a word for a metric: timeout, connection, status, size or garbage."""

    def __init__(self, kind: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.status = kind, status


@dataclass(frozen=True)
class Answer:
    body: bytes
    headers: Mapping[str, str]


async def read(
    session: aiohttp.ClientSession,
    url: str,
    *,
    seconds: float,
    size: int,
    method: str = "GET",
    **options: Any,
) -> Answer:
    """The whole answer. Raises ReadError, also for a status that is not 2xx, then with the start of its body."""
    try:
        async with asyncio.timeout(seconds), session.request(method, url, allow_redirects=False, **options) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > size:
                    raise ReadError("size", f"more than {size} bytes")
            if not 200 <= response.status < 300:
                text = bytes(body[:200]).decode(errors="replace").strip()
                raise ReadError("status", f"status {response.status}: {text}", response.status)
            return Answer(bytes(body), response.headers)
    except TimeoutError as error:
        raise ReadError("timeout", f"no whole answer within {seconds:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise ReadError("connection", f"{type(error).__name__}: {error}") from error
