"""Runs a module's tests in a process inside a network of pods, and makes its reports those of this process.

Such a module says so by `POD_NETWORK`, a function that builds and fetches what the tests need: inside, nothing can be
fetched. Its tests are ordinary ones, with the fixtures of this folder: in there is a cluster of their own.
"""

import contextlib
import json
import os
import pathlib
import sys
import tempfile
import time

import pytest

from inference_plane.cluster import network
from inference_plane.onehost.processes import Processes

#: Where the process inside writes its reports.
REPORTS = "INFERENCE_PLANE_TEST_REPORTS"


class Elsewhere:
    """The process with these tests, which must be all of their module; end it with `close`."""

    def __init__(self, items):
        self._config, self._stack = items[0].config, contextlib.ExitStack()
        self._lines, self._process, self._problem = None, None, None
        try:
            items[0].module.POD_NETWORK()
            self._start([item.nodeid for item in items])
        except network.Unavailable as error:
            self._problem = ("skipped", (str(items[0].path), 0, f"Skipped: {error}"))
        except Exception as error:  # noqa: BLE001 - whatever it is, each test says it
            self._problem = ("failed", f"{type(error).__name__}: {error}")

    def _start(self, nodeids):
        folder = pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        reports = folder / "reports"
        reports.touch()
        self._lines = self._stack.enter_context(open(reports))
        style = f"--tb={self._config.option.tbstyle}"
        command = [sys.executable, "-m", "pytest", "-p", "no:xdist", style, f"--basetemp={folder / 'tmp'}", *nodeids]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self._process = self._stack.enter_context(Processes()).start(
            "tests-in-pod-network",
            network.inside(command),
            environment | {REPORTS: str(reports)},
            folder / "log",
            cwd=self._config.rootpath,
            output_path=folder / "output",
        )

    def reports(self, item):
        """The reports of one test, as they come; the tests are asked for in their order."""
        when = "setup"
        while self._problem is None and when != "teardown":
            report = self._next()
            if report is None:
                tail = (self._process.log_path.parent / "output").read_text()[-3000:]
                self._problem = ("failed", f"the process in the pod network ended:\n{tail}{self._process.log_tail()}")
            else:
                assert report.nodeid == item.nodeid
                when = report.when
                yield report
        if self._problem is not None:
            yield pytest.TestReport(item.nodeid, item.location, {}, *self._problem, "setup")

    def _next(self):
        text = ""
        while not text.endswith("\n"):
            ended = not self._process.running  # asked before reading: what it wrote last is still read
            text += self._lines.readline()
            if not text.endswith("\n"):
                if ended:
                    return None
                time.sleep(0.1)
        return self._config.hook.pytest_report_from_serializable(config=self._config, data=json.loads(text))

    def close(self):
        self._stack.close()


class Reporter:
    """A plugin of the process inside: one line of JSON a report."""

    def __init__(self, config):
        self._config = config

    def pytest_runtest_logreport(self, report):
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(os.environ[REPORTS], "a") as file:
            file.write(json.dumps(data) + "\n")
