"""A plugin of pytest: which lines of the package each test runs.

To $LINES_OUT goes a line of JSON for each file of tests. What a fixture of a whole file runs is of
every test of that file ("*"). Seconds are of CPU, those of processes that it waited for among them:
the machine may be busy with something else.
"""

from __future__ import annotations

import json
import os
import resource

import coverage
import pytest

meter = coverage.Coverage(data_file=None, source=[os.path.abspath("collage_mpi")])
meter.start()
out = os.fdopen(int(os.environ["LINES_OUT"]), "w")
seconds: dict[str, float] = {}
bad: set[str] = set()


def cpu_s() -> float:
    """Seconds of CPU that this process has used, and those that it started and waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item, nextitem):
    meter.switch_context(item.nodeid)
    before_s = cpu_s()
    yield
    seconds[item.nodeid] = cpu_s() - before_s
    meter.switch_context("")
    file = item.nodeid.partition("::")[0]
    if nextitem is None or nextitem.nodeid.partition("::")[0] != file:
        tell(file)


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef):
    if fixturedef.scope == "function":
        yield
        return
    meter.switch_context("*")
    yield
    meter.switch_context(os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0])


def pytest_runtest_logreport(report):
    if not report.passed:
        bad.add(report.nodeid)


def tell(file: str) -> None:
    """What is known of a file of tests, and begin the next."""
    meter.stop()
    data, lines = meter.get_data(), {}
    for source in data.measured_files():
        name = os.path.relpath(source)
        for line, tests in data.contexts_by_lineno(source).items():
            for test in filter(None, tests):
                lines.setdefault(test, {}).setdefault(name, []).append(line)
    found = {"seconds": seconds, "bad": sorted(bad), "lines": lines}
    print(json.dumps([file, found]), file=out, flush=True)
    seconds.clear()
    bad.clear()
    meter.erase()
    meter.start()
