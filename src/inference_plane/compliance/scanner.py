"""The process that runs checkov, in an environment of its own, as seen from the project's."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

from inference_plane.checkout import ROOT
from inference_plane.compliance.rules import POLICIES

#: Checkov pins packages that the rest does not go with.
ENVIRONMENT = ROOT / ".venv-policies"
LOCK = POLICIES / "requirements.lock"


class NotJudged(Exception):
    """Checkov could not be set up, or did not judge everything; the message says what is missing."""


def set_up() -> pathlib.Path:
    """Checkov's Python; its environment is made from `policies/requirements.lock` where it is missing or old.

    Raises:
        NotJudged: a package cannot be fetched.
    """
    want = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    ready, python = ENVIRONMENT / ".ready", ENVIRONMENT / "bin" / "python"
    with open(ROOT / ".setup.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready.is_file() and ready.read_text() == want:
            return python
        print(f"Setting up {ENVIRONMENT} for checkov: about 220 MB, once.", file=sys.stderr)
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        venv.create(ENVIRONMENT)
        command = ["uv", "pip", "sync", "--quiet", "--require-hashes", "--python", str(python), str(LOCK)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotJudged(f"checkov's environment cannot be made: {' '.join(command)}: {done.stderr.strip()}")
        ready.write_text(want)
    return python


class Scanner:
    """Checkov with both packs loaded. It loads for seconds: make it before what can be done meanwhile."""

    def __init__(self) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("CHECKOV_", "BC_", "PRISMA"))}
        self._process = subprocess.Popen(
            [set_up(), "-m", "inference_plane.compliance.scan"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def ask(
        self, objects: Sequence[Mapping], namespace: str, *, which: str = "packs", skip: Collection[str] = ()
    ) -> None:
        """Begins to judge a render; `answer` waits for what comes of it. For the arguments see `scan.scan`."""
        question = {"objects": objects, "namespace": namespace, "which": which, "skip": sorted(skip)}
        with contextlib.suppress(BrokenPipeError):  # It has said why in the answer.
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What `scan.scan` made of the render.

        Raises:
            NotJudged: anything short of a verdict of every rule on every object of its kinds.
        """
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"errors": [f"checkov ended with status {self._process.wait()}"]}
        if answer["errors"]:
            raise NotJudged("\n".join(answer["errors"]))
        return answer

    def __enter__(self) -> "Scanner":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
