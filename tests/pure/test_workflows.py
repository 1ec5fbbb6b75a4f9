"""What outsiders see run: the workflows call this repository's own scripts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(path: Path) -> list[dict]:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_step_runs_a_script_of_the_repository(path: Path) -> None:
    said = [step["run"] for step in steps(path) if "run" in step]
    for words in said:
        script = re.fullmatch(r"(?:bash|python) (\S+)(?: --\w+)*", words)
        assert words.startswith("pip install ") or (script and (ROOT / script[1]).exists()), words
    assert any("tools/release.py" in words for words in said)


def test_the_check_runs_on_the_oldest_python_and_two_more() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())["jobs"]
    pythons = jobs["check"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pythons[0] == project["requires-python"].removeprefix(">=")
    assert len(pythons) == 3
    for python in pythons:
        assert f"Programming Language :: Python :: {python}" in project["classifiers"]


def test_a_placeholder_is_accepted_in_a_rehearsal_alone() -> None:
    told = {path.name: path.read_text() for path in WORKFLOWS}
    assert "tools/release.py --rehearse" in told["check.yml"]
    assert "--rehearse" not in told["release.yml"]
