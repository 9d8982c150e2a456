"""Docker: the engine that runs on this machine or, where none does and we are root, one of our own.

Our own engine is a process of its own (`python -m inference_plane.cluster.docker FOLDER`), because several clusters may
use it: each holds a shared lock, and once nobody does, the engine ends. So it ends too where the last cluster's keeper
was killed. It keeps its images in FOLDER, and has a socket and a network of its own: `docker` without `DOCKER_HOST`
never sees it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from inference_plane.cluster.state import ClusterError
from inference_plane.manifests import crds
from inference_plane.onehost.processes import NotReady, Processes

#: Beside the tools, and like them shared by all clusters of a checkout.
FOLDER = Path(os.path.realpath(crds.CACHE)) / "docker"
READY_SECONDS = 90
SYS_RESOURCE = 24  # capabilities(7): the number of CAP_SYS_RESOURCE

#: Docker before 23 asks for every capability that the kernel knows when it runs a privileged container, and the kernel
#: refuses one that this machine's bounding set lacks. This runtime asks for the others.
RUNTIME = """\
#!/bin/sh
file= before=
for word; do
  case $before in
    --bundle | -b) file=$word/config.json ;;
    --process | -p) file=$word ;;
  esac
  before=$word
done
if [ -n "$file" ] && [ -f "$file" ]; then
  sed -i -e 's/"CAP_SYS_RESOURCE",//g' -e 's/,"CAP_SYS_RESOURCE"//g' "$file"
fi
exec runc "$@"
"""


class Engine:
    """A Docker engine, spoken to by the `docker` command. `host` is its address; None: what the user's settings say."""

    def __init__(self, host: str | None) -> None:
        self.host = host

    @property
    def environment(self) -> dict[str, str]:
        """For `docker` and `kind`. Images are built without BuildKit, a plug-in that Debian does not have."""
        chosen = {"DOCKER_HOST": self.host} if self.host else {}
        return os.environ | chosen | {"DOCKER_BUILDKIT": "0", "DOCKER_CLI_HINTS": "false"}

    def run(self, *words: str | os.PathLike[str], what: str = "", input: bytes | None = None) -> str:
        """The output of `docker WORDS`; `what` it does is told where it takes a while.

        Raises:
            ClusterError: it fails; the message is Docker's own.
        """
        command = ["docker", *map(os.fspath, words)]
        with telling(what):
            done = subprocess.run(command, env=self.environment, input=input, capture_output=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise ClusterError(f"`{' '.join(command[:6])}` failed: {said[-2000:]}")
        return done.stdout.decode().strip()

    def has(self, image: str) -> bool:
        with contextlib.suppress(ClusterError):
            return bool(self.run("image", "inspect", "--format={{.Id}}", image))
        return False

    @functools.cached_property
    def info(self) -> dict:
        return json.loads(self.run("info", "--format={{json .}}"))


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """An engine to use meanwhile.

    Raises:
        ClusterError: there is none, and none can be started; it says what is missing.
    """
    if why := problem():
        raise ClusterError(why)
    if _answers(Engine(None)):
        yield Engine(None)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "users", "wb") as users:
        # Waits where one just ends, which holds it alone.
        fcntl.flock(users, fcntl.LOCK_SH)
        own = Engine(f"unix://{_run(FOLDER) / 'docker.sock'}")
        with telling("starting Docker's engine"):
            _start(own)
        yield own


def problem() -> str:
    """Why there is no engine, and none can be started; empty where there is one, or could be."""
    if shutil.which("docker") is None:
        return (
            "kind runs nodes as containers, and there is no `docker` on PATH. Install Docker, on Debian "
            "`apt-get install docker.io`; `scripts/cluster up embedded` needs none."
        )
    if _answers(Engine(None)):
        return ""
    missing = []
    if os.geteuid():
        missing.append("this user is not root, who may start one")
    if programs := [name for name in ("dockerd", "runc", "iptables") if shutil.which(name) is None]:
        missing.append(f"{', '.join(programs)} not on PATH (on Debian `apt-get install docker.io iptables`)")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        missing.append("the kernel has no overlayfs (CONFIG_OVERLAY_FS; `modprobe overlay` where it is a module)")
    if not missing:
        return ""
    return (
        f"kind runs nodes as containers, and no Docker engine answers to `docker version`. None can be started here: "
        f"{'; '.join(missing)}. Start Docker, or give what is missing and run this as root."
    )


def _answers(engine: Engine) -> bool:
    with contextlib.suppress(ClusterError):
        return bool(engine.run("version", "--format={{.Server.Version}}"))
    return False


def _start(own: Engine) -> None:
    log = FOLDER / "keeper.log"
    with open(log, "wb") as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "inference_plane.cluster.docker", str(FOLDER)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(own):
        # One that ends at once leaves the engine to another, which was quicker.
        if keeper.poll() or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:] if log.is_file() else ""
            raise ClusterError(f"Docker's engine does not start; {FOLDER / 'log'} has what it said. {tail}")
        time.sleep(0.2)


def main(argv: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Runs the engine as long as somebody holds the lock `users`; none where another does so already."""
    folder = Path(argv[0])
    with open(folder / "lock", "wb") as lock, open(folder / "users", "wb") as users, contextlib.suppress(SystemExit):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        forwarding = _policy("filter", "FORWARD")
        try:
            with Processes(grace=30) as processes:
                _serve(folder, processes)
                while True:
                    time.sleep(0.5)
                    processes.check()
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        Engine(f"unix://{_run(folder) / 'docker.sock'}").run("network", "prune", "--force")
                        break
        except (NotReady, ClusterError) as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            _tidy(forwarding)
            _remove(_run(folder))
    return 0


def _serve(folder: Path, processes: Processes) -> None:
    run = _run(folder)
    _remove(run)
    run.mkdir(parents=True, mode=0o700)
    runtime = folder / "runc-capped"
    runtime.write_text(RUNTIME)
    runtime.chmod(0o755)
    configuration = {
        "data-root": str(folder / "data"),
        "exec-root": str(run / "exec"),
        "pidfile": str(run / "pid"),
        "hosts": [f"unix://{run / 'docker.sock'}"],
        # Nobody's containers but a cluster's, which has a network of its own; images are built with the host's.
        "bridge": "none",
        "runtimes": {"runc-capped": {"path": str(runtime)}},
        "default-runtime": "runc" if has_sys_resource() else "runc-capped",
    }
    (folder / "daemon.json").write_text(json.dumps(configuration, indent=2))
    processes.start("dockerd", ["dockerd", "--config-file", folder / "daemon.json"], log_path=folder / "log")
    own = Engine(f"unix://{run / 'docker.sock'}")
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        processes.check()
        with contextlib.suppress(ClusterError):
            # Of a cluster whose keeper was killed; nobody else can have left any.
            if left := own.run("ps", "--all", "--quiet").split():
                own.run("rm", "--force", "--volumes", *left)
            return
        time.sleep(0.2)


def has_sys_resource() -> bool:
    """Whether this process may have CAP_SYS_RESOURCE, which lowers a process's oom_score_adj among other things."""
    words = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return bool(int(words["CapBnd"], 16) >> SYS_RESOURCE & 1)


def _run(folder: Path) -> Path:
    """For sockets, whose paths are limited to 107 bytes."""
    return Path("/run/inference-plane") / hashlib.sha256(str(folder).encode()).hexdigest()[:12]


def _remove(run: Path) -> None:
    """With the network namespaces that dockerd leaves mounted in it."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if (place := line.split()[1]).startswith(f"{run}/"):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
    shutil.rmtree(run, ignore_errors=True)


def _iptables(*words: str) -> str:
    return subprocess.run(["iptables", "--wait", *words], capture_output=True, text=True, check=False).stdout


def _policy(table: str, chain: str) -> str:
    """ACCEPT or DROP."""
    head = _iptables("--table", table, "--list-rules", chain).partition("\n")[0].split()
    return head[-1] if head[:1] == ["-P"] else "ACCEPT"


def _tidy(forwarding: str) -> None:
    """Takes Docker's chains out of this machine's filter again, which dockerd leaves, and its policy of forwarding."""
    for table in ("filter", "nat"):
        rules = [line.split() for line in _iptables("--table", table, "--list-rules").splitlines()]
        for rule in rules:
            if rule[0] == "-A" and any(word.startswith("DOCKER") for word in rule):
                _iptables("--table", table, "--delete", *rule[1:])
        for rule in rules:
            if rule[0] == "-N" and rule[1].startswith("DOCKER"):
                _iptables("--table", table, "--flush", rule[1])
        for rule in rules:
            if rule[0] == "-N" and rule[1].startswith("DOCKER"):
                _iptables("--table", table, "--delete-chain", rule[1])
    _iptables("--policy", "FORWARD", forwarding)


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Says on standard error how long something took, where that was more than a moment."""
    started = time.monotonic()
    yield
    if what and (took := time.monotonic() - started) > 1:
        print(f"{what}: {took:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main())
