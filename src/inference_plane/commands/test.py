"""Runs every layer of tests that this machine can run, and says which it did not run and why.

--fast needs packages and module downloads only and builds nothing, so it leaves out a layer whose tools are not built
yet. Without it a layer whose tools take long to build still waits for --full, which builds them once, and so does a
test of more than five minutes. After `--`, arguments for pytest: scripts/test router -- -k residency -x
"""

import argparse
import subprocess
import sys
import time

from inference_plane import tools
from inference_plane.checkout import ROOT
from inference_plane.cluster import docker, embedded, keda, node_image
from inference_plane.manifests.crds import CRDError

#: Each layer: the paths under tests/ that pytest runs, and what they catch.
LAYERS = {
    "values": (("values", "charts", "test_commands.py", "test_fit.py"), "typos, types, combinations that do not fit"),
    "render": (("render",), "regressions, drift, dead values; objects and relations of every install"),
    "objects": (("manifests",), "what an API server would refuse or prune: schemas, CRDs with their CEL rules"),
    "delivery": (("delivery",), "Applications that render something else, packages, workflows, one file a model"),
    "parts": (
        ("lua", "middleware", "onehost", "bench", "policy", "test_usage.py"),
        "the body scan, the engine middleware, the policy service, metering, the stand-ins",
    ),
    "policies": (("policies",), "rules that miss what they are for or see what is not there: checkov on real renders"),
    "alerts": (("alerts",), "alerts that stay silent, or fire for nothing: Prometheus' own engine on the rules"),
    "router": (("router", "demo"), "lost requests, leaks, wrong accounting: real Envoy on the rendered files"),
    "budgets": (("budgets",), "budgets that charge wrong or refuse wrong: the real rate-limit service, built once"),
    "load": (("load",), "load that is not its profile's, or is measured wrong: locust at engines and at the whole plane"),
    "lint": (("lint",), "what chart-testing and actionlint refuse, both built once from Go modules"),
    "cluster": (("cluster",), "what only an API server and its controllers would say: a control plane as processes"),
    "kind": (("kind",), "what only real pods show: the local environment served on a cluster of kind, and its network"),
}

#: The tools that layers build once, into .cache.
BUILDS = {
    "alerts": ("promtool",),
    "lint": ("ct", "actionlint"),
    "budgets": ("ratelimit",),
    "cluster": (*embedded.TOOLS, "karpenter", "lbc", "kserve", *keda.TOOLS),
    "kind": ("kind", "ct"),
}

#: Layers that run by themselves only where these tools are built: the first build takes longer than all other layers.
#: A node's own are built only where no registry gives a node image.
LATE = {"cluster": BUILDS["cluster"], "kind": (*BUILDS["kind"], *node_image.TOOLS)}

#: Tests of more than five minutes, by layer: they run with --full, or where their layer is named.
LONG_TESTS = {
    "cluster": (
        "tests/cluster/test_cluster_elastic.py::test_models_of_both_engines_wake_for_who_asks_and_sleep_again",
    )
}

#: Why a layer cannot run on this machine, or an empty text.
CANNOT = {"kind": docker.problem}

#: How long that is, from nothing and on two cores.
LONG = "some 35 minutes"


def main() -> int:
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="scripts/test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--fast", action="store_true", help="only what needs no build")
    amount.add_argument("--full", action="store_true", help="also what takes long to build, once")
    parser.add_argument("layers", nargs="*", metavar="LAYER", help=f"{', '.join(LAYERS)}; default: all")
    arguments = parser.parse_args(words[:split])
    if unknown := sorted(set(arguments.layers) - set(LAYERS)):
        parser.error(f"no layer {', '.join(unknown)}: the layers are {', '.join(LAYERS)}")

    chosen, left_out = [], []
    for name, (_, catches) in LAYERS.items():
        unbuilt = _unbuilt(BUILDS.get(name, ()))
        if arguments.layers and name not in arguments.layers:
            print(f"not run {name}: not asked for")
        elif arguments.fast and unbuilt:
            takes = " and ".join(tools.TOOLS[tool].takes for tool in unbuilt)
            print(f"not run {name}: --fast builds nothing; ./scripts/test {name} builds {', '.join(unbuilt)}, {takes}")
        elif name in LATE and (late := _unbuilt(LATE[name])) and not arguments.full and name not in arguments.layers:
            print(f"not run {name}: {', '.join(late)} not built yet; --full builds them, once: {LONG}")
        elif name in CANNOT and name not in arguments.layers and (why := CANNOT[name]()):
            print(f"not run {name}: {why}")
        else:
            print(f"layer {name}: {catches}")
            chosen.append(name)
            if not arguments.full and name not in arguments.layers:
                for test in LONG_TESTS.get(name, ()):
                    print(f"not run {test}: more than five minutes; --full runs it, or ./scripts/test {name}")
                    left_out.append(test)
    sys.stdout.flush()
    if not chosen:
        parser.error("no layer is left to run")

    started = time.monotonic()
    try:
        for tool in [tool for name in chosen for tool in BUILDS.get(name, ())]:
            tools.build(tool)
    except (tools.ToolError, CRDError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    paths = [f"tests/{folder}" for name in chosen for folder in LAYERS[name][0]]
    # Four processes on two cores: the tests of the router wait more than they work.
    command = [sys.executable, "-m", "pytest", "-q", "-n", "4", "--dist", "loadgroup", *paths, *words[split + 1 :]]
    command += [f"--deselect={test}" for test in left_out]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    print(f"{'green' if status == 0 else 'FAILED'} after {time.monotonic() - started:.0f} s")
    return status


def _unbuilt(names: tuple[str, ...]) -> list[str]:
    return [tool for tool in names if not tools.path(tool).is_file()]


if __name__ == "__main__":
    sys.exit(main())
