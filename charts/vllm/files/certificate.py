"""Keeps the engine's certificate where vLLM sees it change: `certificate.py --source DIR --target DIR`.

vLLM's --enable-ssl-refresh watches the two files by name. In a mounted Secret these are links into a folder that the
kubelet replaces, so that vLLM would follow the first renewal and no other (seen with watchfiles 1.3, which it watches
by; https://github.com/vllm-project/vllm/pull/47362 says the same). This process copies them over plain files instead.
Standard library only, because it runs inside the engine's image.
"""

from __future__ import annotations

import argparse
import os
import signal
import ssl
import sys
import time
from pathlib import Path
from types import FrameType

#: In this order: once the last one is there, both are.
FILES = ("tls.crt", "tls.key")
SECONDS = 5.0  # between two looks; the kubelet itself takes a minute or two


def read(source: Path) -> dict[str, bytes]:
    """The certificate and its key, of one and the same version of the Secret.

    Raises:
        OSError: one of them is not there.
        ssl.SSLError: they do not belong together, or are none.
    """
    # The kubelet's link to the version that holds now; a folder of plain files has none.
    folder = source / "..data"
    folder = folder.resolve() if folder.exists() else source
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / FILES[0], folder / FILES[1])
    return {name: (folder / name).read_bytes() for name in FILES}


def write(target: Path, content: bytes) -> None:
    """Over the file's own bytes: one that is replaced is lost to who watches it."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def copy(source: Path, target: Path, last: dict[str, bytes]) -> dict[str, bytes]:
    """Copies what is not `last`; returns what is there now. Raises as `read`."""
    found = read(source)
    if found != last:
        for name in FILES:
            write(target / name, found[name])
        print(f"certificate: copied from {source} to {target}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="the mounted Secret")
    parser.add_argument("--target", type=Path, required=True, help="where vLLM reads it")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="between two looks")
    arguments = parser.parse_args()

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    # As the first process of its container it gets no default handler, and would hold the pod until it is killed.
    signal.signal(signal.SIGTERM, leave)
    last: dict[str, bytes] = {}
    complaint = ""
    while True:
        try:
            last = copy(arguments.source, arguments.target, last)
            complaint = ""
        except (OSError, ssl.SSLError) as error:
            # What was copied before stays. Without any, the container's startup probe fails and no engine starts.
            said = f"certificate: no usable tls.crt and tls.key in {arguments.source}: {error}. Set them in the Secret."
            if said != complaint:
                print(said, file=sys.stderr, flush=True)
            complaint = said
        time.sleep(arguments.seconds)


if __name__ == "__main__":
    main()
