"""What a resumed session may change, and what it may not: content counts, not names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from job_messages import HELLO
from results_harness import fill, locate
from results_harness import manifest as rows_manifest
from rows_by_name import add_image

from collage_mpi.commands.launch import LaunchArguments
from collage_mpi.errors import UsageError
from collage_mpi.job.handshake import refuse_other_networks
from collage_mpi.job.plan import make_plan
from collage_mpi.job.provenance import command_line, job_facts, make_manifest
from collage_mpi.job.resume import fitted, resumed_settings
from collage_mpi.models.architecture import default_architecture
from collage_mpi.models.weights import save_weights
from collage_mpi.results import MARKER, RunWriter, export_run, read_results, summarise, verify_run
from collage_mpi.results.manifest import read_manifest
from collage_mpi.results.reader import rows_that_count
from collage_mpi.results.writer import differences
from collage_mpi.rows import IMAGES, SOURCE_CODE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import write_shard

Json = dict[str, Any]


def weights(path: Path, bias: float, kind: str = "single", **more: Any) -> Path:
    """Weights for images of 6 px that nobody loads, only compares."""
    record = {
        "kind": kind,
        "architecture": asdict(default_architecture("single", 8)),
        "height": 6,
        "width": 6,
        "channels": 1,
        "class_names": ["0", "1", "2"],
        "normalisation": {"mean": [0.3], "std": [0.4]},
        "temperature": 1.5,
        **more,
    }
    return Path(save_weights(path, {"bias": np.full(2, bias, np.float32)}, record).path or path)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "s.h5"
    write_shard(path, np.zeros((8, 6, 6, 1), np.uint8), np.arange(8) % 3)
    return path


@pytest.fixture
def ask(tmp_path: Path, shard: Path) -> Callable[..., Json]:
    """The manifest of a session with these settings."""

    def manifest(**settings: Any) -> Json:
        values = {"single": "null", "collage": "null", "side": 2, **settings}
        given = RunSettings(shards=(str(shard),), out=str(tmp_path / "run"), **values)
        plan = make_plan(given, given.world_size)
        plan.shards.close()
        return make_manifest(plan)

    return manifest


def reopened(out: Path, manifest: Json) -> None:
    run, _ = RunWriter.reopen(out, manifest)
    run.close("incomplete")


def begun(out: Path, manifest: Json) -> Path:
    RunWriter.create(out, manifest).close("incomplete")
    return out


def finished(out: Path, manifest: Json) -> Path:
    run = RunWriter.create(out, manifest)
    for row in range(manifest["rows"]):
        add_image(
            run,
            shard=0,
            row=row,
            group=0,
            cell=0,
            source="single",
            answered=True,
            t0_ns=0,
            latency_ns=1,
        )
    run.close("complete")
    return out


def times(path: Path, value: float) -> Path:
    with path.open("wb") as file:  # under any name: np.save would add one
        np.save(file, np.arange(1, 40).reshape(1, -1) * value)
    return path


def moments(path: Path, value: float) -> Path:
    with path.open("wb") as file:
        np.save(file, np.arange(8) * value)
    return path


FILES: dict[str, tuple[Callable[[Path, float], Path], Json]] = {
    "single": (weights, {}),
    "trace_file": (times, {"straggler": "trace", "cost_ratio": 1.0}),
    "arrival_file": (moments, {}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_other_content_is_refused_and_one_that_moved_is_not(
    tmp_path: Path, ask: Callable[..., Json], name: str
) -> None:
    make, more = FILES[name]
    file = make(tmp_path / "one.npy", 1.0)
    out = begun(tmp_path / "run", ask(**{**more, name: str(file)}))
    moved = tmp_path / "moved.npy"
    moved.write_bytes(file.read_bytes())
    reopened(out, ask(**{**more, name: str(moved)}))
    make(file, 2.0)
    asked = ask(**{**more, name: str(file)})
    with pytest.raises(
        UsageError, match=rf"{name} .*moved.*SHA-256 \w{{12}}\.\.\. before.*one"
    ) as e:
        RunWriter.reopen(out, asked)
    assert f"{asked['inputs'][name][:12]}... now" in str(e.value)
    (out / MARKER).touch()
    assert RunWriter.finished(out, asked) is None  # not "every image had its row already"


def test_a_network_and_a_null_network_are_told_apart(
    tmp_path: Path, ask: Callable[..., Json]
) -> None:
    out = begun(tmp_path / "run", ask())
    with pytest.raises(UsageError, match=r"settings\.single: 'null' before"):
        RunWriter.reopen(out, ask(single=str(weights(tmp_path / "w", 1.0))))


@pytest.mark.parametrize(("count", "more"), [(5, []), (6, ["... and 1 more shards"])])
def test_of_many_shards_that_differ_five_are_named(count: int, more: list[str]) -> None:
    before, now = (
        {"shards": [{"path": f"{n}.h5", "fingerprint": of, "count": 3} for n in range(count)]}
        for of in ("a" * 64, "b" * 64)
    )
    lines = differences(before, now)
    assert [line.partition(":")[0] for line in lines[:5]] == [f"shard {n}.h5" for n in range(5)]
    assert lines[5:] == more


def test_a_network_of_ones_own_is_held_against_what_its_ranks_told() -> None:
    hellos = {1: HELLO, 2: dataclasses.replace(HELLO, fingerprints={"collage": "c" * 64})}
    plan: Any = SimpleNamespace(
        networks={"single": "mine:net", "collage": "null"}, settings=SimpleNamespace(out="runs/a")
    )
    refuse_other_networks(plan, hellos, {})
    refuse_other_networks(plan, hellos, {"single": "b" * 64, "collage": "another version's"})
    with pytest.raises(UsageError, match="mine:net had fingerprint aaaaaaaaaaaa"):
        refuse_other_networks(plan, hellos, {"single": "a" * 64})


def test_what_the_ranks_told_outlives_a_kill(tmp_path: Path, ask: Callable[..., Json]) -> None:
    run = RunWriter.create(tmp_path / "run", ask())
    run.note(networks={"single": "b" * 64}, cost_ratio=1.5, batch_costs={})
    found = read_manifest(tmp_path / "run")  # nothing closed it
    assert found["networks"] == {"single": "b" * 64}
    assert found["cost_ratio"] == 1.5
    run.close("incomplete")


# ---- error rows done again --------------------------------------------------


def session(out: Path, indices: list[int], errors: Iterable[int] = (), **more: Any) -> str:
    """The next session of a run of 18 images; its status in the manifest."""
    full = rows_manifest(18)
    if (out / "manifest.json").exists():
        run, done = RunWriter.reopen(out, full, **more)
        assert not {locate(full, i) for i in indices} & set(done.tolist())
    else:
        run = RunWriter.create(out, full)
    fill(run, full, indices, errors=frozenset(errors), seed=run.session)
    run.close("complete_with_errors" if errors else "complete")
    return run.manifest["status"]


def error_rows(out: Path) -> list[tuple[int, int]]:
    """(row, session) of the error rows that stand."""
    images = read_results(out).images
    assert len(images) == 18
    return [(int(r["row"]), int(r["session"])) for r in images[~images["answered"]]]


def test_a_retrys_row_stands_for_the_error_row(tmp_path: Path) -> None:
    out, full = tmp_path / "run", rows_manifest(18)
    assert session(out, list(range(18)), {3, 5, 7}) == "complete_with_errors"
    assert RunWriter.finished(out, full) == "complete_with_errors"
    assert RunWriter.finished(out, full, retry_errors=True) is None
    assert session(out, [3, 5, 7], {5}, retry_errors=True) == "complete_with_errors"
    assert error_rows(out) == [(5, 2)]  # it failed again: the new row stands
    report = verify_run(out)
    assert report.headline == "complete with errors: 18 of 18 rows, no doubles, 1 error row"
    assert report.ok, report.problems
    assert session(out, [5], retry_errors=True) == "complete"
    assert error_rows(out) == []
    assert verify_run(out).headline == "complete: 18 of 18 rows, no doubles"
    assert RunWriter.finished(out, full, retry_errors=True) == "complete"
    assert summarise(read_results(out))["rows"]["errors"] == 0
    (out / MARKER).unlink()  # as if it had not closed
    assert session(out, []) == "complete"  # the errors are mended for good
    (images, *_) = export_run(read_results(out), "csv", tmp_path)
    assert len(images.read_text().splitlines()) == 19


def test_a_retry_that_was_cut_off_loses_nothing(tmp_path: Path) -> None:
    out, full = tmp_path / "run", rows_manifest(18)
    session(out, list(range(18)), {3, 5})
    run, done = RunWriter.reopen(out, full, retry_errors=True)
    assert len(done) == 16
    assert not (out / MARKER).exists()  # it has not closed
    fill(run, full, [3])
    run.close("incomplete")
    assert error_rows(out) == [(5, 1)]
    assert verify_run(out).status == "incomplete"
    assert session(out, []) == "complete_with_errors"
    assert verify_run(out).ok


def test_a_complete_run_whose_retry_lost_its_part_is_done_again(tmp_path: Path) -> None:
    out, full = tmp_path / "run", rows_manifest(18)
    session(out, list(range(18)), {3, 5})
    retry, _ = RunWriter.reopen(out, full, retry_errors=True)
    fill(retry, full, [3, 5])
    retry.flush()
    retry._thread.end()  # killed: no session vouches for these rows
    assert session(out, []) == "complete"
    (out / "parts" / "images-0002-000001.npy").unlink()
    assert RunWriter.finished(out, full) is None
    assert session(out, []) == "complete_with_errors"  # the error rows stand again
    assert verify_run(out).ok, verify_run(out).problems
    assert session(out, [3, 5], retry_errors=True) == "complete"
    assert verify_run(out).ok


def test_a_retry_whose_part_vanishes_before_it_ends_keeps_the_errors(tmp_path: Path) -> None:
    out, full = tmp_path / "run", rows_manifest(18)
    session(out, list(range(18)), {3, 5})
    retry, _ = RunWriter.reopen(out, full, retry_errors=True)
    fill(retry, full, [3, 5])
    retry.drain()
    (out / "parts" / "images-0002-000001.npy").unlink()
    retry._drain = lambda: None
    retry.close("complete")
    assert retry.manifest["status"] == "complete_with_errors"
    assert verify_run(out).ok, verify_run(out).problems


def test_nothing_hides_an_answer(tmp_path: Path) -> None:
    """Whatever rows a key has, an answer of it stands; two of them, or a later error, are told."""
    error, answer = SOURCE_CODE["error"], SOURCE_CODE["single"]
    cases = {
        ((1, error), (2, answer)): [2],
        ((2, answer), (1, error)): [2],  # written order does not count
        ((1, error), (2, error)): [2],
        ((1, error), (2, error), (4, answer)): [4],
        ((1, answer), (2, error)): [1, 2],
        ((1, answer), (2, answer)): [1, 2],
        ((1, error), (1, error)): [1, 1],
        ((1, error), (1, answer)): [1, 1],
        ((1, error), (2, answer), (3, error)): [2, 3],
    }
    for rows, stands in cases.items():
        images = np.zeros(len(rows) + 2, IMAGES.dtype)
        images["row"], images["session"], images["source"] = 6, 9, answer
        images["row"][0], images["row"][-1] = 5, 7  # others around it
        images["session"][1:-1], images["source"][1:-1] = zip(*rows, strict=True)
        found = images[rows_that_count(images)]
        assert found["session"].tolist() == [9, *stands, 9], rows


# ---- other numbers of ranks -------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "world", "singles"),
    [
        ({}, 11, None),
        ({}, 5, 3),
        ({"side": 2, "singles": 2}, 9, 7),
        ({"scheme": "none"}, 11, None),  # the collage rank stays idle
        ({"scheme": "none"}, 4, 3),
        ({"scheme": "replicate"}, 4, 3),
        ({"scheme": "replicate"}, 2, None),
        ({"scheme": "collage-only"}, 3, None),
    ],
)
def test_single_ranks_follow_the_world(settings: Json, world: int, singles: int | None) -> None:
    before = RunSettings(**settings)
    found = fitted(before, world)
    expected = before if singles is None else dataclasses.replace(before, singles=singles)
    assert found == expected


def test_resume_takes_what_the_manifest_knows_and_what_is_given(
    tmp_path: Path, ask: Callable[..., Json], shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(begun(tmp_path / "run", {**ask(depth=3), "job": {"folder": str(tmp_path)}}))
    found = resumed_settings({"out": out, "linger_ms": 5.0}, "flags", 6)
    assert (found.depth, found.linger_ms, found.shards) == (3, 5.0, (str(shard),))
    assert resumed_settings({"out": out, "singles": 2}, "flags", 6).singles == 2
    # Relative paths are those of the folder that it was begun in, where they are not here.
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["settings"] |= {"shards": ["s.h5"], "single": "w", "collage": "null"}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "w").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = resumed_settings({"out": out}, "flags", 6)
    assert (found.shards, found.single) == ((str(shard),), str(tmp_path / "w"))
    assert found.collage == "null"
    (tmp_path / "here" / "s.h5").touch()
    assert resumed_settings({"out": out}, "flags", 6).shards == ("s.h5",)


def test_launch_knows_what_a_resumed_run_does_about_lost_ranks(
    tmp_path: Path, ask: Callable[..., Json]
) -> None:
    out = begun(tmp_path / "run", ask(on_rank_loss="continue"))

    def on_loss(*more: str, out: str = str(out)) -> str | None:
        return LaunchArguments(words=("run", "--out", out, *more)).on_loss

    assert on_loss() is None  # refused: it holds a run
    assert on_loss("--resume") == "continue"
    assert on_loss("--retry-errors") == "continue"
    assert on_loss("--resume", "--on-rank-loss", "abort") == "abort"
    file = tmp_path / "s.json"
    file.write_text('{"on_rank_loss": "abort"}')
    assert on_loss("--resume", "--settings", str(file)) == "abort"
    assert on_loss("--resume", out=str(tmp_path / "none")) is None
    (out / "manifest.json").write_text("{}")
    assert on_loss("--resume") is None  # the ranks say what is wrong


def test_what_does_not_change_rows_may_change(ask: Callable[..., Json]) -> None:
    before = ask()
    free = {"singles": 2, "collage_ranks": 2, "device": "cpu"}
    free |= {"reply_timeout_s": 3.0, "status_every_s": 1.0}
    assert differences(before, ask(**free, on_rank_loss="abort")) == []
    for name, value in {"credit": 3, "depth": 2, "precision": "float32", "cost_ratio": 2.0}.items():
        (line,) = differences(before, ask(**{name: value}))
        assert line.startswith(f"settings.{name}: ")


def test_the_command_is_told_as_typed() -> None:
    assert command_line(["/v/bin/collage-mpi", "run"]) == ["collage-mpi", "run"]
    assert command_line(["/p/collage_mpi/__main__.py", "run"]) == ["collage-mpi", "run"]
    assert command_line(["mine.py", "-x"]) == ["mine.py", "-x"]
    facts = job_facts("MPI 1")
    assert facts["versions"]["numpy"] == np.__version__
    assert json.loads(json.dumps(facts)) == facts
