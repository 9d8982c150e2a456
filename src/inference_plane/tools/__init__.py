"""Tools that come as Go modules: built once from the pins in go.mod beside this file, and kept in the cache.

The modules' checksums stand in go.sum, so that a proxy that serves something else is refused by Go itself.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from inference_plane.manifests import crds

MODULE = Path(__file__).parent

#: Each tool's package. Both build in about a minute on two cores, and in no time from Go's cache.
PACKAGES = {
    "actionlint": "github.com/rhysd/actionlint/cmd/actionlint",
    "ct": "github.com/helm/chart-testing/v3/ct",
}


class ToolError(RuntimeError):
    """A tool cannot be built; the message is Go's own, with what to do."""


def build(name: str, cache: Path = crds.CACHE) -> Path:
    """The tool's binary, built on first use and again when the pins change.

    Raises:
        KeyError: no such tool.
        ToolError: the build failed.
        crds.CRDError: there is no Go, and none can be had.
    """
    package = PACKAGES[name]
    pins = hashlib.sha256(b"".join((MODULE / file).read_bytes() for file in ("go.mod", "go.sum"))).hexdigest()
    binary = cache / "tools" / pins[:12] / name
    if binary.is_file():
        return binary
    print(f"building {name} from its Go module: about a minute, once", file=sys.stderr, flush=True)
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        command = [crds.go(cache), "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", folder, package]
        environment = os.environ | {"GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"}
        done = subprocess.run(command, cwd=MODULE, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolError(
                f"{name}: `go build {package}` failed: {done.stderr.strip()}. Set GOPROXY to a module proxy that this "
                f"machine reaches, or use Go 1.25 or newer."
            )
        # Renamed whole, so that two tests at once never run half a binary.
        os.replace(Path(folder) / name, binary)
    return binary
