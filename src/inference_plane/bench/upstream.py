"""An engine that costs next to nothing: `python -m inference_plane.bench.upstream HOST PORT`.

Every GET (health checks) and every POST is answered with bytes built beforehand; a POST whose body asks for a stream
gets its first event at once, then one a tick. One tick serves all streams, as one step of an engine's batch does.
"""
from __future__ import annotations

import asyncio
import re
import sys

import uvloop

from . import messages

TICK = 0.004  # seconds between two events of a stream

_REPLY = messages.reply()
_STREAM_HEAD = messages.stream_head()
_CHUNKS = messages.stream_chunks()
_HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
# Routers that write bodies anew put the flag anywhere; a prompt's quotes are escaped, so it is not found in one.
_STREAM = re.compile(rb'"stream": ?true')
_OVERLAP = 15  # bytes of a flag that may stand before the border of two reads


class Engine(asyncio.BufferedProtocol):
    """One connection, one request at a time; a body is counted and forgotten, but for its flag."""

    streams: dict[Engine, int] = {}

    def __init__(self) -> None:
        self._buffer = bytearray(256 * 1024)
        self._head = b""
        self._tail = b""
        self._missing = 0
        self._stream = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        if self._missing:
            self._missing -= count
            self._look(self._buffer, count)
        else:
            self._head += self._buffer[:count]
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            if self._head.startswith(b"GET"):
                self._head = b""
                self.transport.write(_HEALTHY)
                return
            start = self._head.find(b"content-length: ") + 16
            length = int(self._head[start:self._head.index(b"\r", start)])
            self._missing = length - (len(self._head) - end - 4)
            self._stream, self._tail = False, b""
            self._look(self._head, len(self._head))
            self._head = b""
        if self._missing == 0:
            if self._stream:
                self.transport.write(_STREAM_HEAD + _CHUNKS[0])
                Engine.streams[self] = 1
            else:
                self.transport.write(_REPLY)

    def _look(self, data: bytes | bytearray, count: int) -> None:
        border = self._tail + data[:min(count, _OVERLAP)]
        self._stream = self._stream or bool(_STREAM.search(data, 0, count) or _STREAM.search(border))
        self._tail = bytes(data[max(0, count - _OVERLAP):count])

    def connection_lost(self, error: Exception | None) -> None:
        Engine.streams.pop(self, None)


async def serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(Engine, host, port, backlog=4096)
    due = loop.time()
    while True:
        due = max(due + TICK, loop.time())
        await asyncio.sleep(due - loop.time())
        for engine, number in list(Engine.streams.items()):
            engine.transport.write(_CHUNKS[number])
            if number + 1 < len(_CHUNKS):
                Engine.streams[engine] = number + 1
            else:
                del Engine.streams[engine]


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
