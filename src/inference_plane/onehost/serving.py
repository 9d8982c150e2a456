"""ASGI applications on loopback sockets, in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
import watchfiles
from uvicorn.protocols.http.h11_impl import H11Protocol

#: JSON as vLLM writes it. One encoder for all, because `json.dumps` would make one for each event.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which also hands its transport to the application, so that it can reset it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class ServerThread:
    """A context manager that serves `app` on `host`:`port` (0: a free one) until it is stopped.

    It may be started and stopped again and again on the same address; a stopped one refuses connections, as a dead pod
    on a live node does. `certfile` and `keyfile` (PEM) switch TLS on; with `refresh` they are read again when they
    change, as vLLM does it with --enable-ssl-refresh. `date_header=False` leaves that header to `app`. Raises OSError
    where the address is taken.
    """

    def __init__(
        self,
        app: App,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        certfile: str | None = None,
        keyfile: str | None = None,
        refresh: bool = False,
        date_header: bool = True,
    ) -> None:
        self.app, self.host, self.port = app, host, port
        self._refresh, self._date_header = refresh, date_header
        self._tls = {"ssl_certfile": certfile, "ssl_keyfile": keyfile}
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls['ssl_certfile'] else 'http'}://{self.host}:{self.port}"

    def start(self) -> None:
        """Listen. Returns once requests are answered."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
        except OSError as error:
            listener.close()
            raise OSError(
                error.errno, f"{error.strerror}: {self.host}:{self.port}; end what listens there or give another port"
            ) from error
        self.port = listener.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                http=Protocol,
                loop="asyncio",
                lifespan="off",
                interface="asgi3",
                proxy_headers=False,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
                timeout_keep_alive=600,
                date_header=self._date_header,
                **self._tls,
            )
        )
        self._server = server

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            watch = asyncio.create_task(self._follow(server)) if self._refresh else None
            await server.serve(sockets=[listener])
            if watch:
                watch.cancel()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), name=f"serve {self.url}", daemon=True)
        self._thread.start()
        while not server.started:
            if not self._thread.is_alive():
                listener.close()
                raise RuntimeError(f"the server at {self.url} ended while it started; its log has the reason")
            time.sleep(0.005)

    async def _follow(self, server: uvicorn.Server) -> None:
        """Read the certificate again whenever one of its files changes; a pair that does not fit is passed over."""
        files = self._tls["ssl_certfile"], self._tls["ssl_keyfile"]
        async for _ in watchfiles.awatch(*files):
            with contextlib.suppress(OSError):  # ssl.SSLError is one
                server.config.ssl.load_cert_chain(*files)

    def stop(self) -> None:
        """Stop listening and cut open connections. Stopping a stopped one is no error."""
        if self._server is None or self._thread is None or self._loop is None:
            return
        server = self._server

        def cut() -> None:
            server.should_exit = True
            for connection in list(server.server_state.connections):
                connection.transport.abort()

        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(cut)
            self._thread.join()
        self._server = self._thread = self._loop = None

    def __enter__(self) -> ServerThread:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def load_middleware(path: str | Path | None, app: App, **options: Any) -> App:
    """`app` wrapped in the class `PlaneMiddleware` of the Python file at `path`, or `app` itself where that is None.

    `options` are the class's own. As Starlette does, which vLLM's server is, each scope names the application, and its
    state the engine. The file is loaded by its path, as `vllm serve --middleware` would by a module's name. Raises
    ValueError where there is no such file or class.
    """
    if path is None:
        return app
    spec = importlib.util.spec_from_file_location("plane_middleware", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"middleware {path}: no such Python file; give charts/vllm/files/plane_middleware.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not hasattr(module, "PlaneMiddleware"):
        raise ValueError(f"middleware {path}: it has no class PlaneMiddleware, which takes the application as `app`")
    middleware = module.PlaneMiddleware(app=app, **options)
    named = SimpleNamespace(state=SimpleNamespace(engine_client=app))

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await middleware({**scope, "app": named}, receive, send)

    return served


def control_app(get: Callable[[], Mapping[str, Any]], update: Callable[[Mapping[str, Any]], None]) -> App:
    """A control interface of its own port, never a part of the surface that it controls.

    GET answers the state as JSON; POST takes a JSON object of changes, applied by `update`, whose ValueError becomes
    a 400.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = await read_body(receive)
        if scope["method"] == "POST":
            try:
                changes = json.loads(body or b"null")
                if not isinstance(changes, dict):
                    raise ValueError("the body must be a JSON object of changes")
                update(changes)
            except ValueError as error:
                await send_json(send, 400, {"error": str(error)})
                return
        await send_json(send, 200, get())

    return app


async def read_body(receive: Receive) -> bytes | None:
    """The whole request body, or None where the client went away first."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone away; call it after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, None], complete: Callable[[], bool] = lambda: False
) -> bool:
    """Run `work` unless the client goes away, which cancels it. Whether it was done; its exceptions pass.

    The server reports a disconnect after the last byte of a response too, so work that is `complete` may still end.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if complete():
            await task
        done = task.done()
    finally:  # also when something around this request cancels it
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    if done:
        task.result()
    return done


async def send_json(
    send: Send,
    status: int,
    value: object,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
) -> None:
    """One whole response. `value` may also be bytes or str, which go out as they are."""
    if not isinstance(value, bytes | str):
        value = _encode(value)
    body = value.encode() if isinstance(value, str) else value
    await send_start(send, status, content_type, {"content-length": str(len(body)), **(headers or {})})
    await send({"type": "http.response.body", "body": body})


async def send_start(send: Send, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
    """The status line and headers alone."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (name.encode("latin-1"), value.encode("latin-1"))
                for name, value in {"content-type": content_type, **(headers or {})}.items()
            ],
        }
    )


async def send_event(send: Send, value: object) -> None:
    """One server-sent event with a JSON value, or with text as it is."""
    text = value if isinstance(value, str) else _encode(value)
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


async def send_end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def reset(scope: Scope) -> None:
    """Cut the request's connection with a TCP RST."""
    transport = scope["state"]["transport"]
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # on, 0 s
    transport.abort()
