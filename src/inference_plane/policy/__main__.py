"""Starts the policy service; the docstring of the package says what it reads and serves."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from aiohttp import web

from .config import Config, ConfigError, load
from .kubernetes import Kubernetes
from .lease import own_identity
from .log import Log
from .server import application, status
from .service import Service
from .tls import CertificateError, Certificates


async def serve(
    path: Path, config: Config, kubernetes: Kubernetes, identity: str, certificates: Certificates | None
) -> None:
    """Runs until SIGTERM or SIGINT, and gives the Lease back."""
    log = Log()
    service = Service(path, config, kubernetes, identity, log, certificates)
    async with contextlib.AsyncExitStack() as stack:
        for app, port, tls in (
            (application(service), config.listen.port, certificates and certificates.server),
            (status(service), config.listen.statusPort, None),
        ):
            # Connections of routers are kept; at the end nobody waits for them.
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, config.listen.address, port, ssl_context=tls).start()
        log("started", identity=identity, models=len(config.models))
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        async with kubernetes:
            running, waiting = asyncio.create_task(service.run()), asyncio.create_task(ended.wait())
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            running.cancel()
            try:
                await running
            except asyncio.CancelledError:
                log("ended")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m inference_plane.policy", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the JSON file that Helm rendered")
    parser.add_argument("--kubernetes", metavar="URL", help="an API server that asks for no token, as kubectl proxy")
    options = parser.parse_args()
    try:
        config = load(options.config)
    except ConfigError as error:
        print(f"error: {options.config}: {error}", file=sys.stderr)
        return 1
    bounds = {"seconds": config.tuning.readSeconds, "size": config.tuning.readBytes}
    if options.kubernetes:
        kubernetes = Kubernetes(options.kubernetes, None, **bounds)
    else:
        try:
            kubernetes = Kubernetes.of_pod(**bounds)
        except KeyError as error:
            print(
                f"error: {error} is not set, so this is no pod and there is no API server to ask. "
                "Give --kubernetes http://127.0.0.1:8001 beside kubectl proxy",
                file=sys.stderr,
            )
            return 1
    name, address = os.environ.get("POD_NAME") or socket.gethostname(), os.environ.get("POD_IP") or "127.0.0.1"
    identity = own_identity(name, address, config.listen.port, tls=config.tls is not None)
    try:
        certificates = Certificates(config.tls) if config.tls else None
        asyncio.run(serve(options.config, config, kubernetes, identity, certificates))
    except (OSError, CertificateError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
