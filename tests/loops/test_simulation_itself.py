"""The simulation of whole jobs itself: what seeds reach, what they say, what its laws see."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import zlib
from hashlib import sha256
from pathlib import Path

import pytest

from tests.simulation.defects import DEFECTS, PLANTED, planted, tomllib
from tests.simulation.kernel import Host, Kernel
from tests.simulation.laws import careless, untrue
from tests.simulation.ledger_laws import MARK_BYTES, Ledger

ROOT = Path(__file__).parents[2]


def played(*words: str, module: str = "play") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"tests.simulation.{module}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


PROGRAM = """
from tests.simulation import play
session = play.Play._session
def altered(self, each):
    self.case.seed == 3 and 1 / 0
    if self.case.seed == 40:
        play.facts = lambda run, *_, exact: {'sessions': len(run.manifest['sessions'])}
    session(self, each)
play.Play._session = altered
play.simplest = lambda case, _: case
play.main()
"""


@pytest.fixture(scope="module")
def told() -> str:
    """What is said of a seed that raises, of one to which nothing is done, and of one whose results
    are not those of a job that nothing disturbs."""
    command = [sys.executable, "-c", PROGRAM, "--wide", "--trace", "3", "45", "40"]
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True).stdout


def test_a_seed_plays_the_same_in_another_folder_and_after_others(told: str) -> None:
    again = played("--wide", "--from", "45", "--trace").stdout
    digests = [re.findall(r"digest (\w+)", text) for text in (told, again)]
    assert len(digests[0]) == 3
    assert digests[0][1:2] == digests[1]


def test_any_exception_fails_its_seed_and_the_others_are_played(told: str) -> None:
    assert re.search(r"seed 3 failed: Traceback[^$]*ZeroDivisionError", told)
    assert "3 seeds, 2 failed [3, 40];" in told


def test_what_faults_change_in_results_is_found(told: str) -> None:
    assert re.search(r"seed 40 failed: sessions: \d where an undisturbed job has \d", told)


def test_a_row_that_does_not_count_any_more_is_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    for folder in ("leases", "parts", "jobs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "networks.1.json").write_text("{}")
    (tmp_path / "jobs/0001.json").write_text('{"facts": {"final": {}}}')
    name = "images-0001-000001.parquet"
    (tmp_path / "parts" / name).write_bytes(b"rows")
    part = {"file": name, "size": 4, "crc": zlib.crc32(b"rows"), "spans": [[0, 2]]}
    ledger, prev = Ledger(tmp_path, told.append, lambda path: path.exists()), ""
    for gen, spans in enumerate(([], [[0, 2]], [[0, 1]])):
        parts = [{**part, "spans": spans}] if spans else []
        raw = json.dumps({"prev": prev, "parts": parts}).encode()
        (tmp_path / f"leases/0.{gen}").write_bytes(raw + b" " * MARK_BYTES * (gen == 0))
        prev = sha256(raw).hexdigest()[:32]
        ledger.made(f"leases/0.{gen}")
    assert told == ["1 rows do not count any more, after leases/0.2"]


@pytest.mark.parametrize(("code", "said"), [(0, 1), (3, 0), (5, 1), (6, 1)])
def test_an_exit_code_says_what_is_so(code: int, said: int) -> None:
    assert len(untrue(code, None, 7, {3})) == said


@pytest.mark.parametrize("ends_itself", [True, False])
def test_a_file_is_left_open_only_by_a_rank_that_ends_itself(ends_itself: bool) -> None:
    kernel = Kernel("files")

    def writes() -> int:
        process.reads[0] = "part"
        kernel.wait(None if not ends_itself else 1)
        return 0

    process = kernel.spawn(Host("h"), "rank 1", writes, {})
    kernel.after(1_000_000, lambda: kernel.end(process, 0, wait=False))
    kernel.run(lambda: not process.alive, 2_000_000)
    kernel.close()
    assert careless(process) == ["rank 1 left open: part"] * ends_itself


def test_the_statements_that_seeds_reach_are_told() -> None:
    told = played("--from", "0", "--coverage").stdout
    assert float(re.search(r"^mpi: ([\d.]+) % of \d+ statements$", told, re.MULTILINE)[1]) > 50
    assert re.search(r"^ *\d+ %  +\d+  job/shared.py +[\d, -]+$", told, re.MULTILINE)


def test_defects_are_found() -> None:
    words = ("used again", "not on the disk when", "an unsure answer")
    found = played("--from", "7", "--seeds", "2", *words, module="defects")
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"used again .*: seed \d: rank \d+ changed a buffer", found.stdout)
    assert re.search(r"an unsure answer counts: seed \d: .*with thresholds", found.stdout)
    assert re.search(r"not on the disk when .*: seed \d: ", found.stdout)


def test_defects_lie_where_they_are_meant_to() -> None:
    for defect in (*DEFECTS, *planted()):
        for module, text in defect.texts().items():
            compile(text, module, "exec")


def test_planted_defects_are_those_that_the_seed_draws() -> None:
    data = tomllib.loads(PLANTED.read_text())
    orders = []
    for name in ("candidates", "ledger_candidates"):
        pairs = [(kind, duty) for kind, duties in data[name].items() for duty in duties]
        orders.append(random.Random(data["seed"]).sample(pairs, len(pairs)))
    numbers = [each["number"] for each in data["planted"]]
    left = {*map(int, data["passed_over"]), *map(int, data["gone"])}
    assert sorted([*numbers, *left]) == list(range(1, max(numbers) + 1))
    drawn = [(each["kind"], each["duty"]) for each in data["planted"]]
    assert drawn == [orders[0][number - 1] for number in numbers]
    assert [(each["kind"], each["duty"]) for each in data["ledger"]] == orders[1][:20]
    assert len(numbers) + len(data["gone"]) == 60
