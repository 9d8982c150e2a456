"""Tools that come as Go modules: built once from the pins of the folder with their name, and kept in the cache.

The modules' checksums stand in go.sum, so that Go itself refuses a proxy that serves something else. Each tool has
pins of its own, because together they do not build.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from inference_plane.manifests import crds

PINS = Path(__file__).parent


class ToolError(RuntimeError):
    """A tool cannot be built; the message is Go's own, with what to do."""


@dataclass(frozen=True)
class Tool:
    """One tool: its package, and how long the first build takes on two cores."""

    package: str
    takes: str
    tags: str = ""


TOOLS = {
    "actionlint": Tool("github.com/rhysd/actionlint/cmd/actionlint", "some seconds"),
    "ct": Tool("github.com/helm/chart-testing/v3/ct", "a minute"),
    # Stands beside the policies in `scripts/campaign mutations --compare`.
    "kube-score": Tool("github.com/zegl/kube-score/cmd/kube-score", "a minute"),
    # Rules need no service discovery, which is most of what there would be to compile.
    "promtool": Tool("github.com/prometheus/prometheus/cmd/promtool", "four minutes", tags="remove_all_sd"),
    # Counts token budgets; no registry of packages carries it.
    "ratelimit": Tool("github.com/envoyproxy/ratelimit/src/service_cmd", "a minute"),
}


def path(name: str, cache: Path = crds.CACHE) -> Path:
    """Where the tool's binary is, or will be, for its pins as they are."""
    pins = hashlib.sha256(b"".join((PINS / name / file).read_bytes() for file in ("go.mod", "go.sum"))).hexdigest()
    return cache / "tools" / f"{name}-{pins[:12]}" / name


def build(name: str, cache: Path = crds.CACHE) -> Path:
    """The tool's binary, built on first use and again when its pins change; says so where that takes a while.

    Raises:
        KeyError: no such tool.
        ToolError: the build failed.
        crds.CRDError: there is no Go, and none can be had.
    """
    tool, binary = TOOLS[name], path(name, cache)
    if binary.is_file():
        return binary
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", f"-tags={tool.tags}", "-ldflags=-s -w"]
        done = crds.run(
            [crds.go(cache), "build", *flags, "-o", str(Path(folder) / name), tool.package],
            f"building {name} from its Go module, about {tool.takes}, once",
            cwd=PINS / name,
            env=os.environ | {"GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"},
        )
        if done.returncode:
            raise ToolError(
                f"{name}: `go build {tool.package}` failed: {done.stderr.strip()}. Set GOPROXY to a module proxy that "
                f"this machine reaches, or use Go 1.26 or newer."
            )
        # Renamed whole, so that two tests at once never run half a binary.
        os.replace(Path(folder) / name, binary)
    return binary
