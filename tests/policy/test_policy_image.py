"""The image `plane` can be built from what is here: its packages are the lock's, and they suffice."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from policy_bed import World, get

from inference_plane import helm
from inference_plane.checkout import ROOT
from inference_plane.onehost.processes import Processes, free_port

IMAGE = ROOT / "images" / "plane"


def packages(path: Path) -> dict[str, str]:
    """Each requirement with its version and hashes, by name; without markers, as the lock needs fewer of them."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    lines = [re.sub(r"\s*\\?\s+", " ", block) for block in re.split(r"\n(?=\S)", text.strip())]
    return {re.split("[= ]", line, maxsplit=1)[0]: re.sub(r" ; .*?(?= --hash)", "", line) for line in lines}


def test_its_packages_are_those_of_the_lock() -> None:
    image, lock = packages(IMAGE / "requirements.txt"), packages(ROOT / "requirements.lock")
    assert image.items() <= lock.items()
    wanted = {line for line in (IMAGE / "requirements.in").read_text().splitlines() if not line.startswith("#")}
    assert wanted <= set(image)
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf'"{name}==', project) for name in wanted), "each is one that pyproject.toml names"


def test_its_packages_suffice(tmp_path: Path) -> None:
    """A bare environment from that file and the files that the Dockerfile copies: the service starts and ends."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=120)
    uv = shutil.which("uv") or str(ROOT / ".venv/bin/uv")
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", python]
        + ["--requirement", IMAGE / "requirements.txt"],
        check=True, timeout=300,
    )
    copied = re.findall(r"^COPY (src/\S+) /opt/plane/(\S+)$", (IMAGE / "Dockerfile").read_text(), re.MULTILINE)
    for source, target in copied:
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, tmp_path / target)
    port = free_port()
    with World() as world, Processes() as processes:
        (tmp_path / "policy.json").write_text(json.dumps(world.config(free_port(), port)))
        process = processes.start(
            "policy",
            [python, "-m", "inference_plane.policy", "--config", tmp_path / "policy.json"]
            + ["--kubernetes", world.kube.url],
            env={"PYTHONPATH": str(tmp_path / "src")},
            log_path=tmp_path / "log",
            ready=f"http://127.0.0.1:{port}/ready",
        )
        assert get(port, "/metrics")[0] == 200
        process.popen.terminate()
        assert process.popen.wait(10) == 0
    drain = [python, "-m", "inference_plane.drain", "--help"]
    subprocess.run(drain, env={"PYTHONPATH": str(tmp_path / "src")}, check=True, capture_output=True, timeout=60)


def test_it_has_what_the_charts_call() -> None:
    """By `python`, which has to be the one that the packages are in."""
    dockerfile = (IMAGE / "Dockerfile").read_text()
    rendered = helm.template("router", files=[ROOT / "charts" / "router" / "ci" / "fallback-values.yaml"])
    pods = [deployment["spec"]["template"]["spec"] for deployment in rendered.of_kind("Deployment")]
    containers = [c for pod in pods for c in [*pod["containers"], *pod.get("initContainers", [])]]
    commands = [c["command"] for c in containers if c["image"].startswith("ghcr.io/inference-plane/plane:")]
    assert {command[2] for command in commands} == {"inference_plane.drain", "inference_plane.policy"}
    for python, option, module in commands:
        assert (python, option) == ("python", "-m")
        path = module.replace(".", "/")
        assert re.search(rf"^COPY src/{path}(\.py)? /opt/plane/src/{path}(\.py)?$", dockerfile, re.MULTILINE), module
    assert re.search(r"^ENV PATH=/opt/plane/bin:\$PATH ", dockerfile, re.MULTILINE)
    assert "RUN python -m venv --without-pip /opt/plane" in dockerfile


def test_the_dockerfile_runs_as_nobody_on_a_pinned_base() -> None:
    lines = (IMAGE / "Dockerfile").read_text().splitlines()
    assert "USER 65532:65532" in lines
    (base,) = [line for line in lines if line.startswith("ARG")]
    assert re.fullmatch(r"ARG PYTHON=python:3\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ${PYTHON} AS packages", "FROM ${PYTHON}"]
    ignored = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert ignored[0] == "*"
    for source in sources:
        assert any(source in pattern for pattern in ignored[1:]), f"{source} never reaches the builder"
