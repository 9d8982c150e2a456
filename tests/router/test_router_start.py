"""Envoy takes what the chart renders, for every example of the charts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from router_harness import wait_until

from inference_plane import helm
from inference_plane.checkout import CHARTS, ROOT
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.processes import Processes
from inference_plane.onehost.router import Router, local_values, write_files, xds_files

#: What Envoy itself calls work in progress, and the plane uses knowingly: the usage of streams.
WORK_IN_PROGRESS = re.compile(r"(sse_to_metadata|content_parsers\.json)\.v3\..*marked as work-in-progress")
EXAMPLES = sorted(file for chart in ("router", "inference-plane") for file in CHARTS.glob(f"{chart}/ci/*-values.yaml"))


def _render(file: Path, values: dict[str, object]) -> helm.Render:
    chart = file.parents[1].name
    return helm.template(chart, files=[file], values=values if chart == "router" else {"router": values})


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_envoy_accepts_the_render_of(file: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    write_files(_render(file, {}), bare)
    command = [shutil.which("envoy") or "envoy", "--mode", "validate", "--config-path", "bootstrap/bootstrap.json"]
    done = subprocess.run(command, cwd=bare, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    noted = [line for line in done.stderr.splitlines() if "[warning]" in line or "deprecated" in line.lower()]
    assert not [line for line in noted if not WORK_IN_PROGRESS.search(line)]

    with DnsServer() as dns, Processes() as processes:
        values = local_values(dns_port=dns.port, bedrock_port=443)
        del values["bedrock"]  # the Region's own name, with TLS; nobody has it here
        render = _render(file, values)
        router = Router(processes, render, tmp_path / "router", {})
        files = xds_files(render)
        clusters = {resource["name"] for resource in json.loads(files["clusters.json"])["resources"]}
        wait_until(
            lambda: {name.split("::")[0] for name in router.admin("/clusters").split()} >= clusters, "every cluster"
        )
        for update in ("cluster_manager.cds", "http.plane.rds.plane"):
            wanted = {f"{update}.update_rejected": 0, f"{update}.update_failure": 0, f"{update}.update_success": 1}
            assert router.stats(wanted) == wanted


def test_there_are_examples() -> None:
    assert {file.parents[1].name for file in EXAMPLES} >= {"router"}
