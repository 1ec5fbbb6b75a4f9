"""Whole runs on real ranks: every row right, whatever breaks; nothing hangs.

The null network's answer is an image's top-left pixel and there are 251 classes, so full
accuracy means that the right image, and the right cell, reached the right rank.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import RANKS_LIMIT_S, THREADS, codes, run_many, run_ranks

from collage_mpi.errors import ExitCode
from collage_mpi.ledger.owner import Owner
from collage_mpi.ledger.reading import runs
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import KINDS, OUTCOMES, SOURCES, read_results, verify_run
from collage_mpi.shards import write_shard

pytestmark = pytest.mark.mpi

CLASSES = 251
NAMES = tuple(f"class {i}" for i in range(CLASSES))
NULL = ("--single", "null", "--collage", "null")
SMALL = ("--singles", "2", "--side", "2")  # a world of 4
# Half of the images are one rank's, and nobody else's: it gets to its fifth on any machine.
BY_TURNS = ("--scheme", "none", "--assign", "turn", "--endgame", "off")
QUICK = THREADS


def labels_of(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count) * 37 % CLASSES  # (count,) int64


def make_shard(path: Path, first: int, count: int, shape=(8, 8, 1), **more) -> Path:
    labels = labels_of(first, count)
    images = np.random.default_rng(first).integers(0, 256, (count, *shape), dtype=np.uint8)
    images[:, 0, 0, 0] = labels
    write_shard(path, images, labels, **{"class_names": NAMES, **more})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two shards of 70 and 53 images (123 is no multiple of 4 or 9), and odd ones."""
    folder = tmp_path_factory.mktemp("data")
    make_shard(folder / "a.h5", 0, 70)
    make_shard(folder / "b.h5", 70, 53)
    make_shard(folder / "one.h5", 7, 1)
    make_shard(folder / "many.h5", 0, 540)
    make_shard(folder / "large.h5", 3, 30, (224, 224, 3))
    return folder


@pytest.fixture
def both(data) -> tuple[str, ...]:
    """Arguments of a run over both shards."""
    return ("run", "--shards", str(data / "a.h5"), str(data / "b.h5"), *NULL)


def check_run(out: Path, images: int = 123, status: str = "complete"):
    """The run is proven and every answer right."""
    report = verify_run(out)
    assert report.ok, report.problems
    assert report.status == status
    found = read_results(out)
    rows = found.images
    assert len(rows) == images
    answered = rows[rows["answered"]]
    assert (answered["predicted"] == answered["label"]).all()
    truth = [labels_of(0, 70), labels_of(70, 53)]
    if len(found.manifest["shards"]) == 2:
        for shard, labels in enumerate(truth):
            mine = answered[answered["shard"] == shard]
            assert (mine["label"] == labels[mine["row"]]).all()
    return found


def counted(rows: np.ndarray, column: str, names: tuple[str, ...]) -> dict[str, int]:
    """How often each name occurs."""
    codes, counts = np.unique(rows[column], return_counts=True)
    return {names[code]: int(count) for code, count in zip(codes, counts, strict=True)}


@contextmanager
def others_hold_the_rest(out: Path) -> Iterator[None]:
    """Within this context another job holds all images that have no row."""
    store = FolderStore(out)
    other = Owner(store, runs(store)[0])
    while not (other.idle and other.holding):
        other.turn(want=1 << 20)
    yield
    other.leave()


def one_message(stderr: str, start: str = "collage-mpi run: ") -> str:
    """The one message of a job; Open MPI ends what it says before with a NUL and no newline."""
    said = [line.lstrip("\0 ") for line in stderr.splitlines()]
    lines = [line for line in said if line.startswith(start)]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


# ---- rows -------------------------------------------------------------------

SLOW_2 = ("--straggler", "pinned:5", "--slow-ranks", "2:9")
HALF = ("--straggler", "pinned:5", "--batch-cost", "0.5")


@pytest.mark.any_mpi
def test_a_cascade_chooses_its_threshold_and_goes_by_it(mpiexec, data, tmp_path):
    words = ["--shards", data / "many.h5", *NULL, "--agree", "0.9", "--cost-ratio", "0.3"]
    words += ["--endgame", "off", "--straggler", "pinned:3"]
    done = mpiexec(4, ["-m", "collage_mpi", "run", *map(str, words), "--out", tmp_path / "out"])
    assert done.returncode == 0, done.stderr
    assert "agree 0.9: an answer of collage counts from a score of" in done.stderr
    run = read_results(tmp_path / "out")
    (held,) = run.manifest["thresholds"]
    assert 0 < held["confidence"] <= 1
    assert 200 < held["proved"] < held["drawn"] < 540
    both = run.images["audited"] == 1
    assert both[run.images["position"] < held["drawn"]].all()
    assert (run.images["other"][both] == run.images["label"][both]).all()
    drawn = run.images["position"] < held["drawn"]
    assert {SOURCES[source] for source in run.images["source"][drawn]} == {"single"}
    assert "collage" in {SOURCES[source] for source in run.images["source"]}
    assert verify_run(tmp_path / "out").ok


@pytest.mark.any_mpi
@pytest.mark.parametrize("teams", [1, 2])
def test_a_dry_run_asks_every_rank_and_writes_nothing(mpiexec, both, tmp_path, teams):
    words = *both, *SMALL, "--dry-run", "--out", "out", "--teams", str(teams)
    done = mpiexec(4 * teams, ["-m", "collage_mpi", *words], env=QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all ranks have loaded their networks") == 1
    assert "1-2 single, 3 collage" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.any_mpi
def test_eleven_ranks_in_all_shapes(mpi, both, tmp_path):
    shapes = {
        "collage": [],
        "none": ["--scheme", "none"],
        "two": ["--singles", "8", "--collage-ranks", "2"],
        "deep": ["--depth", "3"],
        "drain": ["--between", "drain", "--depth", "2"],
        "shuffled": ["--order", "shuffle:5", "--limit", "50"],
        "confident": ["--confidence", "0.9", "--deadline-ms", "5"],
        "fastest": ["--placement", "fastest", "--cost-ratio", "1.5", *SLOW_2],
        "pull": ["--assign", "pull", "--endgame", "on", "--depth", "3", *SLOW_2],
        "pulled": ["--scheme", "none", "--assign", "pull", "--batch", "2", "--depth", "3"],
        "batch": ["--batch", "4"],
        "batches": ["--batch", "3", "--depth", "2", "--scheme", "none", *HALF],
        "only": ["--scheme", "collage-only"],
        "late": ["--scheme", "hedge", "--deadline-ms", "0"],
        "cascade": ["--scheme", "cascade", "--batch", "2"],
        "apart": ["--scheme", "cascade", "--placement", "fixed"],
        "quick": ["--scheme", "cascade", "--first", "null"],
    }
    cases = [[*both, *more, "--out", tmp_path / name] for name, more in shapes.items()]
    found = run_many(mpi, 11, cases, tmp_path)
    for name, case in zip(shapes, found, strict=True):
        assert codes(case) == [0] * 11, (name, case[0]["err"])
        run = check_run(tmp_path / name, 50 if name == "shuffled" else 123)
        assert run.complete
    sources = counted(read_results(tmp_path / "none").images, "source", SOURCES)
    assert set(sources) <= {"single", "endgame"}  # of a rank that the machine keeps waiting
    shuffled = read_results(tmp_path / "shuffled")
    assert set(shuffled.images["shard"]) == {0, 1}  # 50 of the first shard would be file order
    assert counted(read_results(tmp_path / "only").images, "source", SOURCES) == {"collage": 123}
    cascade = read_results(tmp_path / "cascade")
    collages = cascade.tasks[cascade.tasks["kind"] == KINDS.index("collage")]
    assert collages["items"].sum() == 123, "each image is in one collage"
    assert len(np.unique(cascade.tasks["rank"])) > 5
    assert {"stage1"} <= set(counted(read_results(tmp_path / "quick").images, "source", SOURCES))
    rows = read_results(tmp_path / "batch").tasks
    assert np.unique(rows[["rank", "sent_ns"]], return_counts=True)[1].max() == 4
    rows = read_results(tmp_path / "batches").tasks  # a batch is one task
    assert rows["items"].max() == 3
    answered = (rows["outcome"] == OUTCOMES.index("answered")) & (rows["items"] == 3)
    assert rows["compute_ns"][answered].min() >= 10_000_000
    fastest = read_results(tmp_path / "fastest")
    collages = fastest.tasks[fastest.tasks["kind"] == KINDS.index("collage")]
    assert set(fastest.tasks["rank"]) == set(range(1, 11))
    assert (collages["rank"] == 2).mean() < 0.5  # the slow one
    assert [member["kinds"] for member in fastest.manifest["world"]] == [
        [],
        *[["collage", "single"]] * 10,
    ]
    two = read_results(tmp_path / "two")
    assert {9, 10} <= set(two.tasks["rank"])
    world = two.manifest["world"]
    assert [member["rank"] for member in world] == list(range(11))


HEAVY = {"torch", "torchvision", "h5py", "safetensors", "rich", "PIL", "matplotlib"}
HEAVY |= {"pandas", "pyarrow"}


@pytest.mark.any_mpi
@pytest.mark.parametrize(
    ("single", "pixels"), [("null", "rank0"), ("shipped", "rank0"), ("shipped", "auto")]
)
def test_a_rank_imports_what_its_part_needs(mpiexec, programs, data, tmp_path, single, pixels):
    shipped = importlib.resources.files("collage_mpi") / "data"
    words = ["--shards", data / "one.h5", "--single", "null"]
    if single != "null":
        shard = shipped / "fashion_demo.h5"
        words = ["--shards", shard, "--single", shipped / "fashion_single.safetensors"]
    words += ["--collage", "null", *SMALL, "--limit", "8", "--out", tmp_path / "out"]
    words += ["--pixels", pixels]
    reads = set() if pixels == "rank0" else {"h5py"}
    done = mpiexec(4, [programs / "imported.py", tmp_path, "run", *words], env=QUICK)
    assert done.returncode == 0, done.stderr
    found = [HEAVY & set(json.loads((tmp_path / f"{rank}.json").read_text())) for rank in range(4)]
    assert found[0] - {"safetensors"} == {"h5py", "rich", "pyarrow"}  # shards, a summary, rows
    assert found[3] == reads  # the collage rank's network is null in both
    assert found[1] == found[2]
    assert ("torch" in found[1]) == (single != "null")
    assert reads <= found[1] <= {"torch", "safetensors"} | reads


@pytest.mark.any_mpi
def test_one_single_rank_and_one_image(mpi, data, both, tmp_path):
    lone, large = (["run", "--shards", data / f"{name}.h5", *NULL] for name in ("one", "large"))
    one = ["--singles", "1", "--side", "3"]
    cases = [
        [*both, *one, "--out", tmp_path / "n1"],
        [*both, *one, "--scheme", "none", "--out", tmp_path / "n1none"],
        [*lone, *one, "--out", tmp_path / "lone"],
        [*large, *one, "--depth", "3", "--out", tmp_path / "large"],
    ]
    found = run_many(mpi, 3, cases, tmp_path)
    assert [codes(case) for case in found] == [[0] * 3] * 4, found[0][0]["err"]
    check_run(tmp_path / "large", 30)  # collages of 1.3 MB: MPI's way for long messages
    check_run(tmp_path / "n1")
    check_run(tmp_path / "n1none")
    check_run(tmp_path / "lone", 1)


@pytest.mark.any_mpi
def test_bad_rows_are_error_rows_and_the_exit_code_says_so(mpiexec, data, tmp_path):
    import h5py

    shard = make_shard(tmp_path / "bad.h5", 0, 40)
    shard.with_name("bad.h5.sha256").unlink()
    with h5py.File(shard, "r+") as file:
        file["images"][[3, 4, 5, 6, 7, 20]] ^= 1  # one whole group of four among them
    args = ["-m", "collage_mpi", "run", "--shards", shard, *NULL, *SMALL, "--depth", "2"]
    done = mpiexec(4, [*args, "--out", tmp_path / "out"], env=QUICK)
    assert done.returncode == ExitCode.COMPLETE_WITH_ERRORS, done.stderr
    run = check_run(tmp_path / "out", 40, "complete_with_errors")
    bad = run.images[~run.images["answered"]]
    assert sorted(bad["row"]) == [3, 4, 5, 6, 7, 20]
    assert all(b"checksum" in reason for reason in bad["reason"])


@pytest.mark.parametrize("how", ["SIGUSR2"])  # SIGTERM: below, before the job has begun
def test_a_stopped_run_is_gone_on_with_to_the_same_rows(mpiexec, programs, both, tmp_path, how):
    run = [*both, *SMALL, "--out", tmp_path / "out"]
    stopped = mpiexec(4, [programs / "saboteur.py", 0, f"stop:{how}", *run], env=QUICK)
    assert stopped.returncode == ExitCode.INCOMPLETE, stopped.stderr
    assert f"incomplete: stopped by {how}" in stopped.stdout
    report = verify_run(tmp_path / "out")
    assert report.status == "incomplete"
    assert 30 <= report.rows < 123
    with others_hold_the_rest(tmp_path / "out"):
        left = mpiexec(4, ["-m", "collage_mpi", *run, "--leave"], env=QUICK)
    assert left.returncode == ExitCode.INCOMPLETE, left.stderr
    lacking = 123 - report.rows
    said = f"{lacking} images without a row, {lacking} of them held by 1 other job; go on with: "
    assert f"incomplete: {said}" in left.stdout
    again = mpiexec(4, ["-m", "collage_mpi", *run], env=QUICK)
    assert again.returncode == 0, again.stderr
    found = check_run(tmp_path / "out")
    assert set(found.images["session"]) == {1, 3}


def test_ranks_that_are_let_go_sleep_and_the_others_do_what_a_dead_job_held(
    mpiexec, programs, both, tmp_path
):
    run = [*both, *SMALL, "--out", tmp_path / "out"]
    stopped = mpiexec(4, [programs / "saboteur.py", 0, "stop", *run], env=QUICK)
    assert stopped.returncode == ExitCode.INCOMPLETE, stopped.stderr
    with others_hold_the_rest(tmp_path / "out"):  # a job that gives no sign of life
        done = mpiexec(4, [programs / "saboteur.py", 0, "hasty", *run], env=QUICK)
    assert done.returncode == 0, done.stderr
    assert "no image is free: rank 2 released, the others wait" in done.stderr
    rows = check_run(tmp_path / "out").images
    assert set(rows["rank"][rows["session"] == 2]) <= {1, 3}
    ranks = json.loads((tmp_path / "out" / "status" / "0002.json").read_text())["ranks"]
    assert [rank["state"] for rank in ranks] == ["ready", "released", "ready"]


@pytest.mark.any_mpi
def test_other_settings_are_refused_and_a_finished_run_stays(mpi, both, tmp_path):
    run = [*both, *SMALL, "--out", tmp_path / "out"]
    cases = [run, run, [*run, "--depth", "2"], ["run", "--out", tmp_path / "out"]]
    found = run_many(mpi, 4, cases, tmp_path)
    assert codes(found[0]) == codes(found[1]) == codes(found[3]) == [0] * 4, found[1][0]["err"]
    assert codes(found[2]) == [ExitCode.USAGE] * 4
    assert "depth" in found[2][0]["err"]
    check_run(tmp_path / "out")


# ---- idle -------------------------------------------------------------------


def test_idle_ranks_cost_little(mpiexec, programs, data, tmp_path):
    """The network of one rank waits for two seconds; nine ranks wait for it, without an endgame."""
    job = ["--straggler", "pinned:20", "--slow-ranks", "1:100"]
    job += ["--settings", "shipped:paper.json"]
    run = ["run", "--shards", data / "a.h5", *NULL, *job, "--limit", "9", "--scheme", "none"]
    done = mpiexec(11, [programs / "cpu.py", tmp_path, *run, "--out", tmp_path / "o"], env=QUICK)
    assert done.returncode == 0, done.stderr
    spent = {rank: json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(11)}
    share = {rank: cpu_s / wall_s for rank, (cpu_s, wall_s) in spent.items()}
    idle = sum(share[rank] for rank in range(2, 11))
    print(f"idle: nine ranks {idle:.0%} of a core, the slow one {share[1]:.1%}, 0 {share[0]:.1%}")
    assert spent[2][1] > 1.9
    assert idle < 0.6
    assert share[0] < 0.8


# ---- broken ranks -----------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "stage"),
    [
        (2, "load"),
        pytest.param(3, "receive", marks=pytest.mark.any_mpi),
        pytest.param(1, "reply", marks=pytest.mark.any_mpi),
        (2, "garble"),
        (0, "plan"),
        pytest.param(0, "loop", marks=pytest.mark.any_mpi),
        pytest.param(0, "row", marks=pytest.mark.any_mpi),
        (0, "close"),
    ],
)
def test_a_defect_on_any_rank_ends_the_job_with_one_message(
    mpiexec, programs, both, tmp_path, rank, stage
):
    turns = BY_TURNS if stage == "reply" else ()
    run = [*both, *SMALL, *turns, "--out", tmp_path / "out"]
    done = mpiexec(4, [programs / "saboteur.py", rank, stage, *run], env=QUICK)
    assert done.returncode != 0
    teller = 0 if stage == "garble" else rank  # rank 0 finds what another has garbled
    lines = [line.lstrip(" \0") for line in done.stderr.splitlines()]  # behind a banner's end
    words = [line for line in lines if line.startswith("collage-mpi: rank ")]
    assert len(words) == 1, done.stderr
    assert words[0].startswith(f"collage-mpi: rank {teller} on ")
    assert not (tmp_path / "out" / "COMPLETE.1").exists()


@pytest.mark.any_mpi
def test_a_full_disk_is_one_message_and_the_next_goes_on(mpiexec, programs, both, tmp_path):
    run = [*both, *SMALL, "--out", tmp_path / "out"]
    done = mpiexec(4, [programs / "saboteur.py", 0, "disk_full", *run], env=QUICK)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "No space left" in one_message(done.stderr)
    assert verify_run(tmp_path / "out").status == "incomplete"
    assert mpiexec(4, ["-m", "collage_mpi", *run], env=QUICK).returncode == 0
    check_run(tmp_path / "out")


@pytest.mark.any_mpi
def test_names_of_shards_and_folder_may_be_any_bytes(mpiexec, data, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shard, out = folder / os.fsdecode(b"s\xff.h5"), folder / "out"
    shutil.copy(data / "a.h5", shard)
    run = ["-m", "collage_mpi", "run", "--shards", shard, *NULL, *SMALL, "--out", out]
    strict = {**QUICK, "PYTHONIOENCODING": "utf-8:strict"}
    done = mpiexec(4, run, env=strict)
    assert done.returncode == 0, done.stderr
    check_run(out, 70)


@pytest.mark.any_mpi
def test_ranks_with_other_weights_are_refused(mpiexec, programs, both, tmp_path):
    run = [*both, *SMALL, "--out", tmp_path / "out"]
    done = mpiexec(4, [programs / "saboteur.py", 2, "foreign", *run], env=QUICK)
    assert done.returncode == ExitCode.DATA
    assert "rank 2" in one_message(done.stderr)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_ends_the_job_and_the_next_completes(mpiexec, programs, both, tmp_path, rank):
    run = [*both, *SMALL, *BY_TURNS, "--out", tmp_path / "out"]
    done = mpiexec(4, [programs / "saboteur.py", rank, "kill", *run], env=QUICK)
    assert done.returncode != 0
    assert not (tmp_path / "out" / "COMPLETE.1").exists()
    report = verify_run(tmp_path / "out")
    assert report.exit_code is ExitCode.INCOMPLETE, report.problems
    again = mpiexec(4, ["-m", "collage_mpi", *run], env=QUICK)
    assert again.returncode == 0, again.stderr
    check_run(tmp_path / "out")


def test_workers_end_by_themselves_when_rank_0_is_gone(mpi, programs, both, tmp_path):
    """Even where the launcher is told to leave them alone."""
    leave = {"mpich": ["-disable-auto-cleanup"], "openmpi": ["--enable-recovery"]}[mpi.family]
    run = [*both, *SMALL, "--out", tmp_path / "out"]
    words = [sys.executable, programs / "saboteur.py", "0", "kill", *run]
    alone = dataclasses.replace(mpi, mpiexec=wrapped(tmp_path, mpi.mpiexec, leave))
    done = run_ranks(alone, 4, words[1:], RANKS_LIMIT_S, QUICK, tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / "out" / "COMPLETE.1").exists()


def wrapped(folder: Path, mpiexec: Path, flags: list[str]) -> Path:
    """A launcher that adds flags."""
    script = folder / "mpiexec"
    script.write_text(f'#!/bin/sh\nexec {mpiexec} {" ".join(flags)} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.any_mpi
def test_a_rank_that_stops_for_good_cannot_keep_the_job(mpiexec, programs, both, tmp_path):
    """All images have their rows by the collage; the job ends without the frozen rank."""
    run = [*both, "--singles", "3", "--side", "2", "--out", tmp_path / "out"]
    done = mpiexec(5, [programs / "saboteur.py", 2, "freeze", *run], env=QUICK)
    assert "rank 2 did not end when told to" in one_message(done.stderr)
    check_run(tmp_path / "out")


# ---- what a user may get wrong ----------------------------------------------


@pytest.mark.any_mpi
def test_each_mistake_is_one_message_and_a_code(mpi, data, both, tmp_path):
    shipped = importlib.resources.files("collage_mpi") / "data"
    collage28, single28 = (
        str(shipped / name)
        for name in ("fashion_collage_side3.safetensors", "fashion_single.safetensors")
    )
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "trace.npy").write_text("no trace")
    (tmp_path / "bad.toml").write_text("depht = 2\n")
    (tmp_path / "torn.toml").write_text("depth = \n")
    (tmp_path / "file").write_text("in the way")
    header = json.dumps({"__metadata__": {"made by": "somebody else"}}).encode()
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(len(header).to_bytes(8, "little") + header)
    ten = tuple(f"other {i}" for i in range(10))
    from collage_mpi.shards import inspect_shard

    fashion = inspect_shard(Path(str(shipped / "fashion_demo.h5"))).class_names

    def odd(name: str, shape, names) -> str:
        images = np.zeros((4, *shape), np.uint8)
        write_shard(tmp_path / name, images, np.zeros(4, np.int64), class_names=names)
        return str(tmp_path / name)

    grey32, rgb = odd("32.h5", (32, 32, 1), fashion), odd("rgb.h5", (28, 28, 3), fashion)
    others, grey28 = odd("other.h5", (28, 28, 1), ten), odd("28.h5", (28, 28, 1), fashion)
    out = ["--out", tmp_path / "out"]
    plain = [*both, *SMALL]

    def on(shard, single="null", collage="null", *more):
        return ["run", "--shards", shard, "--single", single, "--collage", collage, *more, *out]

    side3 = ["--side", "3", "--singles", "2"]
    gone = tmp_path / "gone"
    usage, environment, wrong = ExitCode.USAGE, ExitCode.ENVIRONMENT, ExitCode.DATA
    cases = [
        ([*both, *out], environment, "launch with -n 11"),
        ([*both, *out, "--dry-run"], environment, "launch with -n 11"),
        ([*both, "--side", "2", "--singles", "3", *out], environment, "launch with -n 5"),
        (on(grey28, gone, "null", *SMALL), environment, "gone"),
        (on(grey28, "null", gone, *SMALL), environment, "gone"),
        (on(grey28, tmp_path / "noise.safetensors", "null", *SMALL), wrong, "noise"),
        (on(grey28, foreign, "null", *SMALL), wrong, "foreign"),
        (on(grey32, single28, "null", *SMALL), wrong, "28"),
        (on(rgb, "null", collage28, *side3), wrong, "channel"),
        (on(grey28, "null", collage28, *SMALL), wrong, "--side 3"),
        (on(grey28, collage28, "null", *SMALL), usage, "single"),
        (on(grey28, "null", single28, *side3), usage, "collage"),
        (on(others, single28, "null", *SMALL), wrong, "other 0"),
        (on(data / "no.h5", "null", "null", *SMALL), environment, "no.h5"),
        (on(tmp_path / "file", "null", "null", *SMALL), wrong, "file"),
        ([*plain, "--out", tmp_path / "file"], environment, "file"),
        ([*plain, "--out", tmp_path / "file" / "below"], environment, "below"),
        ([*plain, "--settings", tmp_path / "bad.toml", *out], usage, "did you mean 'depth'"),
        ([*plain, "--settings", tmp_path / "torn.toml", *out], usage, "TOML"),
        ([*plain, "--settings", gone.with_suffix(".toml"), *out], environment, "gone"),
        (
            [*plain, "--straggler", tmp_path / "trace.npy", *out],
            wrong,
            "trace.npy",
        ),
        ([*plain, "--straggler", gone.with_suffix(".npy"), *out], environment, "gone"),
        ([*plain, "--straggler", "pinned", "--slow-ranks", "9:5", *out], usage, "slow rank 9"),
        ([*plain, "--slow-ranks", "1-5", *out], usage, "RANK:FACTOR"),
        ([*plain, "--depth", "0", *out], usage, "depth"),
        (["run", "--single", "null", *out], usage, "--shards is missing"),
        ([*plain, "--device", "cuda:7", *out], usage, "device"),
        ([*plain], usage, "--out is missing"),
    ]
    found = run_many(mpi, 4, [case for case, *_ in cases], tmp_path)
    for (words, code, says), ranks in zip(cases, found, strict=True):
        said = "".join(rank["err"] for rank in ranks)
        assert codes(ranks) == [code] * 4, (words, said)
        assert says in one_message(said), words
    assert not (tmp_path / "out").exists()


@pytest.mark.any_mpi
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--no-such-flag", "3"], "collage-mpi run: error: unrecognized arguments: --no-such-flag"),
        (["--depth", "0"], "collage-mpi run: depth is 0"),
    ],
)
def test_no_rank_leaves_before_rank_0_has_said_what_is_wrong(mpiexec, programs, both, words, says):
    done = mpiexec(3, [programs / "late.py", *both, *words], env=QUICK)
    assert done.returncode == ExitCode.USAGE
    assert sum(says in line for line in done.stderr.splitlines()) == 1
    assert done.stderr.count("usage: collage-mpi") <= 1
    assert done.stderr.count(" --") < 9  # and not the sixty flags there are
    assert "Traceback" not in done.stderr


def test_a_signal_before_the_job_has_begun_is_incomplete(mpiexec, programs, both, tmp_path):
    run = [*both, *SMALL, "--out", tmp_path / "out"]
    done = mpiexec(4, [programs / "saboteur.py", 0, "early_stop", *run], env=QUICK)
    assert done.returncode == ExitCode.INCOMPLETE, done.stderr
    assert "SIGTERM" in one_message(done.stderr)
    again = mpiexec(4, ["-m", "collage_mpi", *run], env=QUICK)
    assert again.returncode == 0, again.stderr
    check_run(tmp_path / "out")
