"""Runs every layer of tests that this machine can run, and says which it did not run and why.

--fast needs packages and module downloads only and builds nothing; today every layer is of that kind.
"""

import argparse
import dataclasses
import re
import subprocess
import sys
import time

from inference_plane.checkout import ROOT


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: `paths` under tests/ that pytest runs, and what they catch."""

    name: str
    paths: tuple[str, ...]
    catches: str


LAYERS = (
    Layer("values", ("values", "charts", "test_commands.py", "test_fit.py"), "typos, types, combinations that do not fit"),
    Layer("render", ("render",), "regressions, drift, dead values, objects and relations of every install"),
    Layer("objects", ("manifests",), "what an API server would refuse or prune: schemas, CRDs with their CEL rules"),
    Layer("parts", ("lua", "middleware", "onehost", "bench"), "the body scan, the engine middleware, the stand-ins"),
    Layer("router", ("router", "demo"), "lost requests, leaks, wrong accounting: real Envoy on the rendered files"),
)

#: Layers of the design that are not here, and why; printed, so that nobody takes green for more than it is.
LEFT_OUT = {
    "policies": "the checkov rules do not exist yet",
    "cluster": "no test against a Kubernetes API server exists yet",
    "load": "load profiles do not exist yet; scripts/bench measures the router's cost",
}

_COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="only what needs no build")
    parser.add_argument("layers", nargs="*", metavar="LAYER", help=f"{', '.join(layer.name for layer in LAYERS)}; default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.layers) - {layer.name for layer in LAYERS}:
        parser.error(f"no layer {', '.join(sorted(unknown))}")
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    lines = []
    for layer in LAYERS:
        if arguments.layers and layer.name not in arguments.layers:
            continue
        print(f"\n=== {layer.name}: {layer.catches}", flush=True)
        started = time.monotonic()
        code, counts = run(layer)
        lines.append(f"{'ok    ' if code == 0 else 'FAILED'} {layer.name:8} {counts} in {time.monotonic() - started:.0f} s")
        for word in totals:
            totals[word] += counts.get(word, 0)
    print()
    print("\n".join(lines))
    for name, reason in LEFT_OUT.items():
        print(f"not run {name}: {reason}")
    # The last line is for machines: continuous integration counts by it.
    print(f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")
    return 1 if totals["failed"] or any(line.startswith("FAILED") for line in lines) else 0


def run(layer: Layer) -> tuple[int, dict[str, int]]:
    """Runs a layer's tests; returns pytest's exit status and its counts. Errors count as failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    paths = [str(ROOT / "tests" / path) for path in layer.paths]
    child = subprocess.Popen([*command, *paths], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    last = ""
    for line in child.stdout:
        print(line, end="", flush=True)
        last = line if _COUNTS.search(line) else last
    counts: dict[str, int] = {}
    for number, word in _COUNTS.findall(last):
        word = "failed" if word.startswith("error") else word
        counts[word] = counts.get(word, 0) + int(number)
    return child.wait(), counts


if __name__ == "__main__":
    sys.exit(main())
