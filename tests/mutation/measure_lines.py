"""A plugin of pytest: which lines of the package each test runs, into the file $LINES_OF_TESTS.

What a fixture of a whole file runs is of every test of that file ("*").
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import coverage
import pytest

meter = coverage.Coverage(data_file=None, source=[os.path.abspath("collage_mpi")])
meter.start()
seconds: dict[str, float] = {}
bad: set[str] = set()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    meter.switch_context(item.nodeid)
    yield
    meter.switch_context("")


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef):
    if fixturedef.scope == "function":
        yield
        return
    meter.switch_context("*")
    yield
    meter.switch_context(os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0])


def pytest_runtest_logreport(report):
    seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
    if not report.passed:
        bad.add(report.nodeid)


def pytest_sessionfinish():
    meter.stop()
    data, lines = meter.get_data(), {}
    for file in data.measured_files():
        name = os.path.relpath(file)
        for line, tests in data.contexts_by_lineno(file).items():
            for test in filter(None, tests):
                lines.setdefault(test, {}).setdefault(name, []).append(line)
    found = {"seconds": seconds, "bad": sorted(bad), "lines": lines}
    Path(os.environ["LINES_OF_TESTS"]).write_text(json.dumps(found))
