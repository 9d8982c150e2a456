"""HTTP/1.1 as bytes: what arrives is cut into messages, and nothing that is sent is put right on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field


class WireError(ValueError):
    """What arrived is not HTTP/1.1; the message has its beginning."""


@dataclass
class Message:
    """A request or a response. `start` is its first line, header names are lower-case, `body` is without chunks.

    `complete` is False where the connection ended before the message did.
    """

    start: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = True

    @property
    def status(self) -> int:
        """Of a response."""
        return int(self.start[9:12])

    def get(self, name: bytes) -> bytes | None:
        """The first value of a header; None without one."""
        return next((value for key, value in self.headers if key == name), None)

    def text(self, name: str) -> str:
        """The same as text; empty without one."""
        return (self.get(name.encode()) or b"").decode("latin-1")


class Messages:
    """Cuts a stream of bytes into messages. `responses`: one without a length lasts until the connection ends.

    `head`: they answer HEAD, so that no body follows.
    """

    def __init__(self, *, responses: bool, head: bool = False) -> None:
        self._responses, self._bodiless = responses, head
        self._data = b""
        self._message: Message | None = None  # whose head is read
        self._parts: list[bytes] = []
        self._missing = 0  # bytes of its body, or of its chunk; -1: until the end
        self._chunked = False

    @property
    def idle(self) -> bool:
        """Whether nothing of a next message has arrived."""
        return not self._data and self._message is None

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Interim responses (1xx) are left out. Raises WireError."""
        self._data += data
        found = []
        while (message := self._next()) is not None:
            if not (self._responses and message.start[9:10] == b"1"):
                found.append(message)
        return found

    def end(self) -> list[Message]:
        """What is left when the connection ends: a message that lasted until then, or one that was cut."""
        message, self._message = self._message, None
        if message is None:
            return []
        message.body = b"".join(self._parts) + (self._data if self._missing < 0 else b"")
        message.complete = self._missing < 0
        self._parts, self._data = [], b""
        return [message]

    def _next(self) -> Message | None:
        if self._message is None and not self._head():
            return None
        if self._missing < 0:
            self._parts.append(self._data)
            self._data = b""
            return None
        return self._in_chunks() if self._chunked and not self._bodiless else self._at_once()

    def _head(self) -> bool:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return False
        start, *lines = self._data[:end].split(b"\r\n")
        self._data = self._data[end + 4 :]
        message = Message(start)
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon:
                raise WireError(f"a header line without a colon: {line[:80]!r}")
            message.headers.append((name.lower(), value.strip(b" \t")))
        length = message.get(b"content-length")
        self._chunked = (message.get(b"transfer-encoding") or b"").lower() == b"chunked"
        bodiless = self._bodiless or (self._responses and (start[9:10] == b"1" or start[9:12] in (b"204", b"304")))
        if self._chunked and not bodiless:
            self._missing = 0
        elif length is not None and not bodiless:
            self._missing = int(length)
        else:
            self._missing = -1 if self._responses and not bodiless else 0
        self._message, self._parts = message, []
        return True

    def _at_once(self) -> Message | None:
        if len(self._data) < self._missing:
            if self._data:
                self._parts.append(self._data)
                self._missing -= len(self._data)
                self._data = b""
            return None
        self._parts.append(self._data[: self._missing])
        self._data = self._data[self._missing :]
        return self._done()

    def _in_chunks(self) -> Message | None:
        while True:
            end = self._data.find(b"\r\n")
            if end < 0:
                return None
            size = int(self._data[:end].partition(b";")[0], 16)
            if size == 0:
                last = self._data.find(b"\r\n\r\n", end)  # trailers are dropped
                if last < 0:
                    return None
                self._data = self._data[last + 4 :]
                return self._done()
            if len(self._data) < end + 2 + size + 2:
                return None
            self._parts.append(self._data[end + 2 : end + 2 + size])
            self._data = self._data[end + 2 + size + 2 :]

    def _done(self) -> Message:
        assert self._message is not None
        message, self._message = self._message, None
        message.body, self._parts, self._missing = b"".join(self._parts), [], 0
        return message


def request(
    path: str | bytes, headers: Iterable[tuple[str, str]] = (), body: bytes = b"", method: str = "POST"
) -> bytes:
    """A well-formed request, with a content-length where there is a body or the method is POST."""
    lines = [f"{method} ".encode() + (path.encode() if isinstance(path, str) else path) + b" HTTP/1.1", b"host: plane"]
    lines += [f"{name}: {value}".encode("latin-1") for name, value in headers]
    if body or method == "POST":
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Connection(asyncio.Protocol):
    """A client's connection. `replies` are all that came; `ask` waits for one more of them, `finish` for the end."""

    def __init__(self, head: bool = False) -> None:
        self.replies: list[Message] = []
        self.closed = self._ends = False
        self.problem = ""
        self._messages = Messages(responses=True, head=head)
        self._news: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, port: int, head: bool = False) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(lambda: cls(head), "127.0.0.1", port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            if found := self._messages.feed(data):
                self.replies += found
                self._ends = self._ends or found[-1].text("connection").lower() == "close"
                self._wake()
        except ValueError as error:
            self.problem = f"{error}: {data[:200]!r}"
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.replies += self._messages.end()
        self._wake()

    async def ask(self, data: bytes, timeout: float) -> Message | None:
        """The next reply after these bytes are sent; None where the connection ends without one, or none came."""
        count = len(self.replies)
        self.transport.write(data)
        deadline = asyncio.get_running_loop().time() + timeout
        while len(self.replies) == count and not self.closed:
            if not await self._wait(deadline):
                return None
        return self.replies[count] if len(self.replies) > count else None

    @property
    def ending(self) -> bool:
        """Whether the other side has said, or shown, that it ends the connection."""
        return self.closed or self._ends

    async def finish(self, timeout: float) -> bool:
        """Whether the other side ended the connection within so many seconds; it is closed in any case."""
        deadline = asyncio.get_running_loop().time() + timeout
        while not self.closed and await self._wait(deadline):
            pass
        ended = self.closed
        self.transport.close()
        return ended

    def close(self) -> None:
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    async def _wait(self, deadline: float) -> bool:
        self._news = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(self._news, deadline - asyncio.get_running_loop().time())
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
