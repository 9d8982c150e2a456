"""Shows the plane on this machine: a real model behind the rendered router, from a plain request to an empty fleet."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import rich.box
import rich.console
import rich.table

from inference_plane import helm, tools
from inference_plane.commands import _runs
from inference_plane.demo import client, report
from inference_plane.demo.plane import BUDGET, CHART, ENVIRONMENT, Missing, Plane, environment
from inference_plane.demo.scenes import OPEN, ROUTER, SECRET, STAND_IN, Conditions, Scene, scenes
from inference_plane.manifests.crds import CRDError

EPILOG = """\
examples:
  scripts/demo                      the scenes, then a table of what happened
  scripts/demo --serve              the same, then leave the plane up for your own requests
  scripts/demo --json | jq .ok      for machines

Exits 1 when a row of the table is not as expected, 2 when the plane does not come up. Whatever ends it, it leaves no
process behind.
"""

REAL = {
    "router": f"Envoy, on exactly what Helm renders of charts/{CHART} with values/{ENVIRONMENT.name} and a loopback "
    "overlay (ports, the DNS server, Bedrock's address)",
    "model": "SmolLM2-135M-Instruct in llama.cpp: every token and every token count",
    "engine middleware": "the file of the rendered ConfigMap; engines take the limits of the rendered Deployments",
    "token budgets": "the rate-limit service of the rendered Deployment, from its own source",
    "policy service": "the process of the rendered Deployment, with holds of seconds, in the scenes about shares",
    "signature": "SigV4 by Envoy, recomputed by botocore for every call",
}
STANDS_IN = {
    "vLLM": "its HTTP surface, one process a pod; the pods of the fleet share one llama.cpp process",
    "Kubernetes": "a DNS server that answers as headless Services do, and lists of endpoints for the policy service; a pod "
    "is an address in 127.18.0.0/16",
    "Amazon Bedrock": "a server on loopback that checks signature, model id and body; the same model answers",
    "issuer of tokens": "keys made for this run, inline in the router's values, which otherwise have auth.mode none; "
    "the teams care, appeals and trial; records is for care",
    "Valkey": "Redis 6.2, in which the rate-limit service counts",
    "EKS Pod Identity": "a credential endpoint on loopback with documentation keys",
    "slowness": "where a scene says `slowed`, the engine waits before its tokens",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", action="store_true", help="leave the plane up afterwards, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="the table as JSON on stdout; progress goes to stderr")
    parser.add_argument("--fast", action="store_true", help="build nothing: no token budgets, unless they are built")
    parser.add_argument("--keep-logs", metavar="DIR", type=pathlib.Path, help="keep logs and rendered files there")
    arguments = parser.parse_args(argv)
    console = _console(arguments.json)
    try:
        with _runs.folder(arguments.keep_logs) as folder:
            return _run(folder, console, as_json=arguments.json, serve=arguments.serve, build=not arguments.fast)
    except KeyboardInterrupt:
        console.print("\ninterrupted: everything is ended")
        return 130
    except (Missing, helm.HelmError, OSError, RuntimeError, LookupError) as error:
        print(f"error: {error}", file=sys.stderr)
        if arguments.keep_logs is None:
            print("--keep-logs DIR keeps the logs and the rendered files of the next try.", file=sys.stderr)
        return 2


def _run(folder: pathlib.Path, console: rich.console.Console, *, as_json: bool, serve: bool, build: bool) -> int:
    console.print(_facts(), "", sep="\n")
    budgets = _can_count(console, build)
    with Plane(folder, lambda what: _runs.step(console, what), budgets=budgets) as plane:
        values = environment()
        region = values["global"]["aws"]["region"]
        addresses = {ROUTER: plane.url, STAND_IN: plane.bedrock_url}
        rows, answers = [], []
        assistant = values["global"]["models"]["assistant"]
        script = scenes(
            budget=_seconds(assistant["firstTokenBudget"]),
            fallback=assistant["fallback"]["model"],
            tokens=BUDGET["trial"]["tokensPerMinute"] if budgets else 0,
        )
        for scene in script:
            plane.establish(scene.conditions)
            console.print(f"{len(rows) + 1:2}. {scene.title} ({scene.sent}) ...", end=" ", markup=False, soft_wrap=True)
            found = client.send(scene.calls, addresses, region, plane.issuer)
            rows.append(report.row(scene, found))
            answers += [answer for answer, call in zip(found, scene.calls, strict=True) if call.to == ROUTER]
            _tell(console, rows[-1], found)
        lines = _audit(plane, len(answers))
        rows.append(report.audited(answers, lines))
        rows.append(report.leaks(_secrets(script), plane.bedrock.seen(SECRET), plane.bedrock.seen(OPEN)))
        console.print("\n", report.audit_table(lines), "\n", report.table(rows), "", sep="\n")
        if as_json:
            facts = {"real": REAL, "stands_in": STANDS_IN}
            print(json.dumps(report.document(rows, lines, facts), indent=2), flush=True)
        failed = [row for row in rows if not row.ok]
        for row in failed:
            print(f"not as expected: {row.scene}: {'; '.join(row.problems)}", file=sys.stderr)
        if not failed:
            console.print(f"all {len(rows)} rows are as expected")
        if serve:
            plane.establish(Conditions())
            _serve(plane, console)
        return 1 if failed else 0


def _can_count(console: rich.console.Console, build: bool) -> bool:
    """Whether the rate-limit service is built, now or before; says what is not shown where it is not."""
    why = "--fast builds nothing"
    if build or tools.path("ratelimit").is_file():
        try:
            if not tools.path("ratelimit").is_file():
                takes = tools.TOOLS["ratelimit"].takes
                console.print(f"the rate-limit service is built from its Go module, for token budgets, once: {takes}")
            tools.build("ratelimit")
            return True
        except (tools.ToolError, CRDError) as error:
            why = str(error)
    console.print(f"not shown: token budgets. {why}", markup=False, soft_wrap=True)
    return False


def _console(as_json: bool) -> rich.console.Console:
    console = rich.console.Console(stderr=as_json, highlight=False)
    # Into a pipe or file nothing is cut: only a terminal has a width.
    return console if console.is_terminal else rich.console.Console(stderr=as_json, highlight=False, width=140)


def _facts() -> rich.table.Table:
    made = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, title="what you see", title_justify="left", show_edge=False, show_header=False
    )
    for kind, facts in (("real", REAL), ("stands in", STANDS_IN)):
        for name, what in facts.items():
            made.add_row(f"{kind}: {name}", what)
    return made


def _tell(console: rich.console.Console, row: report.Row, answers: list[client.Answer]) -> None:
    mark = "[green]as expected[/]" if row.ok else "[bold red]NOT AS EXPECTED[/]"
    who, status = report.counts(row.answered_by), report.counts(row.status)
    console.print(f"{status} by {who} in {row.total_ms} ms,", mark, soft_wrap=True)
    if len(answers) == 1:
        console.print("    " + report.short(answers[0].text, 90), markup=False, style="dim", soft_wrap=True)


def _audit(plane: Plane, wanted: int) -> list[dict[str, Any]]:
    """The audit lines, once there is one for each request; after ten seconds whatever there is."""
    deadline = time.monotonic() + 10
    while len(lines := plane.router.audit()) < wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return lines


def _secrets(script: list[Scene]) -> int:
    return sum(SECRET.encode() in (call.body or b"") for scene in script for call in scene.calls)


def _seconds(duration: str) -> float:
    number = duration.rstrip("mshour")
    return float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[duration.removeprefix(number)]


def _serve(plane: Plane, console: rich.console.Console) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    body = json.dumps({"model": "assistant", "messages": messages, "max_tokens": 64, "stream": True})
    console.print("\nthe plane is up; Ctrl-C ends it. Try, in another terminal:")
    token = plane.issuer.token("care", seconds=12 * 3600)
    headers = f"-H 'content-type: application/json' -H 'authorization: Bearer {token}'"
    line = f"curl -N {plane.url}/v1/chat/completions {headers} -d '{body}'"
    console.print(f"  {line}", markup=False, soft_wrap=True)
    try:
        while True:
            plane.processes.check()
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("\nending")


if __name__ == "__main__":
    sys.exit(main())
