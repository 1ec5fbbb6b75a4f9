"""What a job that joins a run may change, and what it may not: content counts, not names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collage_mpi.commands.launch import LaunchArguments
from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.job.handshake import refuse_other_networks
from collage_mpi.job.joining import fitted, joined_settings
from collage_mpi.job.plan import make_plan
from collage_mpi.job.provenance import command_line, fixed_facts, job_facts
from collage_mpi.ledger.jobs import register
from collage_mpi.models.architecture import default_architecture
from collage_mpi.models.weights import save_weights
from collage_mpi.results.sole import SoleWriter
from collage_mpi.results.writer import (
    check_place,
    differences,
    leave_no_trace,
    open_folder,
    refuse_differences,
)
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
    """What a job with these settings fixes."""

    def fixed(**settings: Any) -> Json:
        values = {"single": "null", "collage": "null", "side": 2, **settings}
        given = RunSettings(shards=(str(shard),), out=str(tmp_path / "run"), **values)
        plan = make_plan(given, given.world_size)
        plan.shards.close()
        return fixed_facts(plan)

    return fixed


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
    "straggler": (times, {"cost_ratio": 1.0}),
    "arrival_file": (moments, {}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_other_content_is_refused_and_one_that_moved_is_not(
    tmp_path: Path, ask: Callable[..., Json], name: str
) -> None:
    make, more = FILES[name]
    file = make(tmp_path / "one.npy", 1.0)
    before = ask(**{**more, name: str(file)})
    moved = tmp_path / "moved.npy"
    moved.write_bytes(file.read_bytes())
    after = ask(**{**more, name: str(moved)})
    refuse_differences(tmp_path, before, after)
    make(file, 2.0)
    now = ask(**{**more, name: str(file)})
    with pytest.raises(
        UsageError, match=rf"{name} .*moved.*SHA-256 \w{{12}}\.\.\. before.*one"
    ) as e:
        refuse_differences(tmp_path, after, now)
    assert f"{now['inputs'][name][:12]}... now" in str(e.value)


def test_other_settings_are_refused_and_shown(ask: Callable[..., Json], tmp_path: Path) -> None:
    before = ask(class_names_file=None)
    now = {**before, "class_names": ["a"], "settings": {**before["settings"], "out": "moved"}}
    now["settings"] |= {"side": 4, "single": "w"}
    with pytest.raises(UsageError) as caught:
        refuse_differences(tmp_path / "run", before, now)
    told = str(caught.value)
    assert "class_names: ['0', '1', '2'] before, ['a'] now" in told or "class_names: None" in told
    assert "settings.side: 2 before, 4 now" in told
    assert "settings.single: 'null' before, 'w' now" in told
    assert "moved" not in told.replace("have moved", "")


@pytest.mark.parametrize(("count", "more"), [(5, []), (6, ["... and 1 more shards"])])
def test_of_many_shards_that_differ_five_are_named(count: int, more: list[str]) -> None:
    before, now = (
        {"shards": [{"path": f"{n}.h5", "fingerprint": of, "count": 3} for n in range(count)]}
        for of in ("a" * 64, "b" * 64)
    )
    lines = differences(before, now)
    assert [line.partition(":")[0] for line in lines[:5]] == [f"shard {n}.h5" for n in range(5)]
    assert lines[5:] == more


def test_a_network_of_ones_own_is_held_against_what_other_ranks_told() -> None:
    own = {"single": "b" * 64, "collage": "c" * 64}
    plan: Any = SimpleNamespace(
        networks={"single": "mine:net", "collage": "null"}, settings=SimpleNamespace(out="runs/a")
    )
    refuse_other_networks(plan, own, {})
    refuse_other_networks(plan, own, {**own, "backup": "d" * 64})
    with pytest.raises(UsageError, match=r"mine:net has fingerprint b{12}.* had a{12}"):
        refuse_other_networks(plan, own, {"single": "a" * 64})


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


def test_a_job_takes_what_the_run_knows_and_what_is_given(
    tmp_path: Path, ask: Callable[..., Json], shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    SoleWriter(out, ask(depth=3)).close("incomplete", job={"folder": "elsewhere"})
    found = joined_settings({"out": str(out), "deadline_ms": 5.0}, "flags", 6)
    assert (found.depth, found.deadline_ms, found.shards) == (3, 5.0, (str(shard),))
    assert joined_settings({"out": str(out), "singles": 2}, "flags", 6).singles == 2
    # Relative paths are those of the folder that it was begun in, where they are not here.
    run, entry = (json.loads((out / name).read_text()) for name in ("run.1.json", "jobs/0001.json"))
    run["settings"]["settings"] |= {"shards": ["s.h5"], "single": "w", "collage": "null"}
    entry["facts"]["job"] = {"folder": str(tmp_path)}
    (out / "run.1.json").write_text(json.dumps(run))
    (out / "jobs/0001.json").write_text(json.dumps(entry))
    (tmp_path / "w").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = joined_settings({"out": str(out)}, "flags", 6)
    assert (found.shards, found.single) == ((str(shard),), str(tmp_path / "w"))
    assert found.collage == "null"
    (tmp_path / "here" / "s.h5").touch()
    assert joined_settings({"out": str(out)}, "flags", 6).shards == ("s.h5",)
    run["settings"]["settings"]["no_more"] = None
    (out / "run.1.json").write_text(json.dumps(run))
    with pytest.raises(EnvironmentFault, match="other settings began this run: no_more"):
        joined_settings({"out": str(out)}, "flags", 6)


def test_launch_knows_what_a_run_does_about_lost_ranks(
    tmp_path: Path, ask: Callable[..., Json]
) -> None:
    out = tmp_path / "run"
    SoleWriter(out, ask(on_rank_loss="continue")).close("incomplete")

    def on_loss(*more: str, out: str = str(out)) -> str | None:
        return LaunchArguments(words=("run", "--out", out, *more)).on_loss

    assert on_loss() == "continue"
    assert on_loss("--retry-errors") == "continue"
    assert on_loss("--on-rank-loss", "abort") == "abort"
    file = tmp_path / "s.json"
    file.write_text('{"on_rank_loss": "abort"}')
    assert on_loss("--settings", str(file)) == "abort"
    assert on_loss(out=str(tmp_path / "none")) is None
    (out / "run.1.json").write_text("{}")
    assert on_loss() is None  # the ranks say what is wrong


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collage_mpi.results.writer.LATE_S", 0.0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentFault, match="is a file"):
        check_place(tmp_path / "file", shared=False)
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        check_place(tmp_path / "file" / "run", shared=False)
    (tmp_path / "rows" / "parts").mkdir(parents=True)
    (tmp_path / "rows" / "parts" / "images-0001-000001.parquet").touch()
    with pytest.raises(EnvironmentFault, match=r"rows of a run whose run\.1\.json is gone"):
        check_place(tmp_path / "rows", shared=False)


def test_a_run_that_recorded_the_setting_decoder_is_joined(
    tmp_path: Path, ask: Callable[..., Json]
) -> None:
    recorded = ask()
    recorded["settings"]["decoder"] = "pillow"
    SoleWriter(tmp_path / "run", recorded).close("incomplete")
    joined_settings({"out": str(tmp_path / "run")}, "flags", None)
    assert differences(recorded, ask()) == []


def test_what_does_not_change_rows_may_change(ask: Callable[..., Json]) -> None:
    before = ask()
    free = {"singles": 2, "collage_ranks": 2, "device": "cpu"}
    free |= {"reply_timeout_s": 3.0, "status_every_s": 1.0}
    assert differences(before, ask(**free, on_rank_loss="abort")) == []
    for name, value in {"audit": 0.5, "depth": 2, "precision": "float32"}.items():
        (line,) = differences(before, ask(**{name: value}))
        assert line.startswith(f"settings.{name}: ")


def test_the_command_is_told_as_typed() -> None:
    assert command_line(["/v/bin/collage-mpi", "run"]) == ["collage-mpi", "run"]
    assert command_line(["/p/collage_mpi/__main__.py", "run"]) == ["collage-mpi", "run"]
    assert command_line(["mine.py", "-x"]) == ["mine.py", "-x"]
    facts = job_facts("MPI 1")
    assert facts["versions"]["numpy"] == np.__version__
    assert json.loads(json.dumps(facts)) == facts


def test_a_job_that_could_not_begin_leaves_the_folders_of_one_that_begins(tmp_path):
    out = tmp_path / "run"
    store = open_folder(out, shared=False)
    first, second = (register(store, name * 32, {}) for name in "ab")
    (out / "index" / "of_a_folder_of_pictures.npz").touch()
    (out / "alone").touch()
    leave_no_trace(out, first)
    assert (out / "leases").is_dir()
    leave_no_trace(out, second)
    assert not out.exists()


def test_a_job_stays_known_while_nobody_can_tell_whether_there_is_a_run(tmp_path, monkeypatch):
    store = open_folder(tmp_path, shared=False)
    job = register(store, "a" * 32, {})

    def failing(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "lstat", failing)
    leave_no_trace(tmp_path, job)
    monkeypatch.undo()
    assert (tmp_path / "jobs/0001.json").exists()
