"""Options of the whole test suite, and how it is spread over processes."""

import pathlib
from collections import Counter

import pytest

HERE = pathlib.Path(__file__).parent

#: Folders whose tests share nothing, so that any process can run any of them. Elsewhere a file stays in one process,
#: because its tests share what they start.
INDEPENDENT = {"charts", "delivery", "render", "values", "manifests"}

#: Files whose tests share one control plane, or wait for it: two cores are not enough for several.
SHARING = ("disruption", "elastic", "failures", "install", "karpenter", "keda", "kserve", "load_balancer", "rights", "upgrade")
ONE_CLUSTER = tuple(f"cluster/test_cluster_{name}.py" for name in SHARING)

#: What waits longest comes first, so that the rest fills the time.
FIRST = (
    *("router/test_router_long.py", "load/test_load_run.py", "demo/test_demo_run.py", "router/test_router_scale.py"),
    "router/",
)


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew; review its diff")
    parser.addoption("--kind", help="the state folder of a cluster of kind for tests/kind, instead of one of their own")
    parser.addoption("--kubeconfig", help="a cluster for tests/cluster, which they change, instead of one of their own")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")


def place(item):
    """A test's file under tests/."""
    return item.path.relative_to(HERE).as_posix()


def turn(item):
    return next((number for number, start in enumerate(FIRST) if place(item).startswith(start)), len(FIRST))


def pytest_collection_modifyitems(items):
    items.sort(key=turn)


def group(nodeid):
    """Tests of one group run in one process: by the path of a test's file, and its id where it shares nothing."""
    file = nodeid.partition("::")[0].removeprefix("tests/")
    if file.split("/")[0] in INDEPENDENT:
        return nodeid
    if file.startswith("kind/"):
        return "kind"
    return ONE_CLUSTER if file in ONE_CLUSTER else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Instead of marks, which pytest-xdist 3.8 writes where pytest 9.2 does not look: all tests would be scattered."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid)

    return Groups(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_terminal_summary(terminalreporter):
    """Counts by folder, since one run covers every layer."""
    counts = Counter()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if getattr(report, "when", "call") == "call" or outcome != "passed":
                counts[report.nodeid.removeprefix("tests/").split("/")[0].split("::")[0], outcome] += 1
    terminalreporter.section("by folder", sep="-")
    for (folder, outcome), number in sorted(counts.items()):
        terminalreporter.write_line(f"{folder:20} {number:5} {outcome}")
