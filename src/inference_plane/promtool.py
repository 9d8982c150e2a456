"""Prometheus' own promtool, built once into the checkout's cache from its pinned Go module.

No package that this project can install carries the binary. The module is built where `go mod download` unpacked it, so
its own go.mod and go.sum pin all the rest. It takes about four minutes of CPU, once a machine.
"""

import os
import tempfile
from pathlib import Path

from inference_plane.manifests import crds

#: Prometheus 3.15. 0.316.0 needs modules that not every proxy serves.
MODULE = crds.Module(
    "github.com/prometheus/prometheus", "v0.315.0", "h1:sFGZWmC2Hk9N1NBJGCnXYZb5hyLCq8yuAMoEjLAg6ac=", (), ()
)


def path(cache: Path = crds.CACHE) -> Path:
    """Where the binary is, or will be."""
    return cache / "promtool" / MODULE.version / "promtool"


def build(cache: Path = crds.CACHE) -> Path:
    """The binary, built where it is not there yet. Raises crds.CRDError where the module or Go cannot be had."""
    binary = path(cache)
    if binary.is_file():
        return binary
    source = crds.download(MODULE, cache)
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        new = Path(folder) / "promtool"
        # Rules need no service discovery, which is most of what there would be to compile.
        flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-tags=remove_all_sd", "-ldflags=-s -w"]
        done = crds.run(
            [crds.go(cache), "build", *flags, "-o", str(new), "./cmd/promtool"],
            f"building promtool of {MODULE}",
            cwd=source,
            env=os.environ | {"GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"},
        )
        if done.returncode:
            raise crds.CRDError(f"{MODULE}: `go build ./cmd/promtool` failed: {done.stderr.strip()}")
        os.replace(new, binary)
    return binary
