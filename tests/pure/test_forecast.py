"""`run --dry-run` in one process: what it checks, what it foretells, that it leaves nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import write_folder
from rows_by_name import add_image

from collage_mpi.cli import main
from collage_mpi.commands import forecast
from collage_mpi.commands.forecast import (
    Reads,
    Timings,
    _limit,
    _lines,
    _measured_here,
    _reads,
    _seconds,
    _service,
    _simulated_s,
    _time,
)
from collage_mpi.commands.launch import LaunchArguments
from collage_mpi.errors import EnvironmentFault
from collage_mpi.job.handshake import ServiceCosts
from collage_mpi.job.messages import Measured
from collage_mpi.job.networks import Networks
from collage_mpi.job.plan import make_plan
from collage_mpi.job.provenance import fixed_facts
from collage_mpi.job.session import build_encoder
from collage_mpi.models.info import NO_TUNING
from collage_mpi.results.sole import SoleWriter
from collage_mpi.results.writer import open_folder
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import ReadAhead, reader, write_shard
from collage_mpi.shards.order import Order, Shuffle
from collage_mpi.system.environment import available_bytes

NO_READS = Reads()
NULL = ("--single", "null", "--collage", "null", "--side", "2")


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "a.h5", np.zeros((40, 6, 6, 1), np.uint8), np.arange(40) % 3)
    return tmp_path / "a.h5"


def timings(single_ns: int, shared: float = 1.0, **tunings: str) -> Timings:
    costs = ServiceCosts({"single": single_ns}, {}, {}, {}, 1, None)
    return Timings(costs, tunings, False, 1.0, shared, "here")


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    found = folder.rglob("*")
    return {str(p): p.read_bytes() if p.is_file() else None for p in found}


def dry_run(*words: str | Path) -> int:
    return main(["run", "--dry-run", *map(str, words)])


def test_it_tells_what_would_be_done_and_writes_nothing(shard, tmp_path, capsys):
    before = content(tmp_path)
    code = dry_run("--shards", shard, *NULL, "--out", tmp_path / "deep" / "out", "--limit", "30")
    told = capsys.readouterr().out
    assert code == 0
    assert content(tmp_path) == before
    for line in (
        "images    30 images, 8 groups of 4",
        "6 x 6 x 1 uint8, 10 classes, labelled",
        "ranks     6: 0 coordinator, 1-4 single, 5 collage",
        "deep/out is new",
        "measured in this process, on cpu",
        "launch -n 6 -- run",
    ):
        assert line in told
    assert "about" in told.partition("\ntime ")[2]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--singles", "0"), 2, "singles"),
        (("--single", "gone.safetensors"), 3, "gone.safetensors"),
        (("--single", "no_such_module:network"), 2, "no_such_module"),
        (("--out", "a.h5"), 3, "--out needs a folder"),
        (("--out", "a.h5/below"), 3, "--out needs a folder"),
        (("--out", "x" * 300), 3, "--out needs a folder"),
        (("--out", "dangling"), 3, "a symbolic link, to nowhere"),
        (("--out", "dangling/below"), 3, "it is no folder; --out needs a folder"),
        (("--out", "headless"), 3, "has rows of a run whose run.1.json is gone"),
        (("--shards", "torn.h5"), 4, "torn.h5"),
    ],
)
def test_what_a_run_would_end_with_ends_it(shard, tmp_path, capsys, monkeypatch, words, code, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("collage_mpi.results.writer.LATE_S", 0.0)
    (tmp_path / "torn.h5").write_bytes(shard.read_bytes()[:2000])
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "headless" / "parts").mkdir(parents=True)
    (tmp_path / "headless" / "parts" / "images-0001-000001.parquet").touch()
    before = content(tmp_path)
    assert dry_run("--shards", "a.h5", *NULL, "--out", "out", *words) == code
    assert says in capsys.readouterr().err
    assert content(tmp_path) == before
    if code == 3 and "--out" in words:  # as the run itself does
        with pytest.raises(EnvironmentFault, match="--out"):
            open_folder(tmp_path / words[1], shared=False)


def test_shards_that_would_be_skipped_make_the_runs_code(shard, tmp_path, capsys):
    (tmp_path / "torn.h5").write_bytes(shard.read_bytes()[:2000])
    assert dry_run("--shards", tmp_path, *NULL, "--out", tmp_path / "out") == 4
    assert "1 good, 1 cannot be read" in capsys.readouterr().out


def test_a_folder_without_rights_is_told(shard, tmp_path, capsys, monkeypatch):
    locked, plain = tmp_path / "locked", os.access  # root may write everywhere
    locked.mkdir()
    monkeypatch.setattr(os, "access", lambda p, how: locked not in (p, p.parent) and plain(p, how))
    assert dry_run("--shards", shard, *NULL, "--out", locked / "deep" / "out") == 3
    assert "no right to write" in capsys.readouterr().err


def test_opening_a_shard_is_no_part_of_reading_an_image(tmp_path, monkeypatch):
    (tmp_path / "more").mkdir()
    for name in "bc":  # without labels, which a plan looks at
        write_shard(tmp_path / "more" / f"{name}.h5", np.zeros((40, 6, 6, 1), np.uint8))
    settings = RunSettings(
        shards=(str(tmp_path / "more"),),
        single="null",
        scheme="none",
        side=2,
        out="out",
        pixels="rank0",
    )
    plan, now_ns, plain = make_plan(settings, 5), [0], reader.open_source

    def slow(info):
        now_ns[0] += 10**9
        return plain(info)

    monkeypatch.setattr(reader, "open_source", slow)
    monkeypatch.setattr(forecast.time, "monotonic_ns", lambda: now_ns[0])
    order = Order(Shuffle(80, 1))
    assert forecast._read_ns(plan, build_encoder(plan), order) == 0
    plan.shards.close()
    assert now_ns == [2 * 10**9]


def test_reading_is_timed_for_teams_too(shard, monkeypatch):
    settings = RunSettings(
        shards=(str(shard),),
        single="null",
        scheme="none",
        side=2,
        out="out",
        teams=2,
        pixels="rank0",
    )
    plan, read = make_plan(settings, 10), []
    plain = ReadAhead.take

    def take(self, count):
        found = plain(self, count)
        read.extend(found.index.tolist())
        return found

    monkeypatch.setattr(ReadAhead, "take", take)
    forecast._read_ns(plan, build_encoder(plan), plan.order)
    plan.shards.close()
    assert len(read) > len(plan.order) > 0


def test_too_little_room_is_told(shard, tmp_path, capsys, monkeypatch):
    words = ("--shards", shard, *NULL, "--out", tmp_path / "out")
    for free, told in ((10, True), (1 << 40, False), (None, False)):
        monkeypatch.setattr(forecast, "free_bytes", lambda _, free=free: free)
        assert dry_run(*words) == 0
        assert ("TOO LITTLE" in capsys.readouterr().out) is told, free


def test_a_run_that_goes_on_has_what_is_left(shard, tmp_path, capsys):
    out = tmp_path / "out"
    settings = RunSettings(shards=(str(shard),), single="null", collage="null", side=2, out=out)
    plan = make_plan(settings, 6)
    writer = SoleWriter(out, fixed_facts(plan))
    for row in range(25):
        error = row < 3
        source = "error" if error else "single"
        times = {"t0_ns": 0, "latency_ns": 1, "group": row // 4, "cell": row % 4}
        add_image(
            writer, shard=0, row=row, position=row, source=source, answered=not error, **times
        )
    writer.close("incomplete")
    plan.shards.close()
    before = content(tmp_path)
    assert dry_run("--out", out) == 0
    assert "15 of 40 images" in capsys.readouterr().out
    assert dry_run("--shards", shard, *NULL, "--out", out) == 0
    assert "15 of 40 images" in capsys.readouterr().out
    assert dry_run("--out", out, "--order", "shuffle:1") == 2
    assert "has other settings" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_the_estimate_is_the_networks_time_over_the_ranks(shard):
    settings = RunSettings(shards=(str(shard),), single="null", scheme="none", side=2, out="out")
    plan = make_plan(settings, 5)
    plan.shards.close()
    measured = timings(50_000_000, 5.0)
    alone, crowded = (_simulated_s(plan, 4000, measured, share) for share in (1.0, 5.0))
    assert alone == pytest.approx(4000 * 0.05 / 4, rel=0.02)
    assert crowded == pytest.approx(5 * alone, rel=0.02)
    told = _time(plan, 4000, measured, Reads(rank0_ns=1e5))
    assert "about 50 s with a core or GPU for each rank, 4 min if 5.0 ranks share one" in told
    # Where reading takes longer than all networks, that is the time.
    assert "about 67 min;" in _time(plan, 4000, measured, Reads(rank0_ns=1e9))
    # Where ranks read, a core decodes or computes; a GPU computes while the cores decode.
    reads = Reads(decoding_ns=100e6, decoders=2)
    told = [_time(plan, 4000, replace(timings(50_000_000), on_gpu=gpu), reads) for gpu in (0, 1)]
    assert [text.partition(";")[0] for text in told] == ["about 2 min", "about 50 s"]
    assert "each rank reads and decodes 20 images/s" in told[0]
    slow_disk = Reads(reading_ns=200e6, decoding_ns=50e6)
    assert "about 4 min" in _time(plan, 4000, timings(50_000_000), slow_disk)


def test_the_limit_is_foretold(shard):
    """By the same rules as of a run that has ended."""
    settings = RunSettings(shards=(str(shard),), single="null", scheme="none", side=2, out="out")

    def told(single_ns: int, gpu: bool = False, reads: Reads = NO_READS, **more: object) -> str:
        plan = make_plan(replace(settings, **more), 5)
        plan.shards.close()
        measured = replace(timings(single_ns), on_gpu=gpu)
        return _limit(plan, 4000, measured, reads).partition(" is the limit")[0]

    assert told(50_000_000) == "the network on the CPU"
    assert told(50_000_000, gpu=True) == "the network on the GPU"
    assert told(5_000_000, reads=Reads(decoding_ns=9e6)) == "decoding on the CPU"
    assert told(5_000_000, gpu=True, reads=Reads(decoding_ns=11e6)) == "decoding on the CPU"
    assert told(5_000_000, gpu=True, reads=Reads(decoding_ns=9e6)) == "the network on the GPU"
    assert told(5_000_000, reads=Reads(reading_ns=9e6)) == "reading the input"
    assert told(5_000_000, reads=Reads(rank0_ns=9e6)) == "reading on rank 0"
    assert told(5_000_000, rate=50.0) == "the arrival of images"


def test_reading_and_decoding_are_timed_wherever_they_are_done(tmp_path):
    photos = write_folder(tmp_path / "photos")[0].parent.parent
    common = {"single": "null", "scheme": "none", "side": 2, "out": "out", "image_px": 16}

    def reads(**more: object) -> Reads:
        plan = make_plan(RunSettings(shards=(str(photos),), **common, **more), 5)
        found = _reads(plan, build_encoder(plan), plan.order)
        plan.shards.close()
        assert found.one_core_ns > found.decoding_ns
        return found

    by_workers, by_rank0 = reads(pixels="workers"), reads(pixels="rank0")
    assert by_workers.reading_ns > 0 < by_workers.decoding_ns
    assert by_workers.rank0_ns == by_rank0.reading_ns == 0
    assert by_rank0.rank0_ns > 0 < by_rank0.decoding_ns  # it sends files


def test_it_says_whether_shards_would_pay(shard, tmp_path):
    photos = write_folder(tmp_path / "photos")[0].parent.parent
    common = {"single": "null", "scheme": "none", "side": 2, "out": "out", "image_px": 16}

    def told(path: Path, single_ns: int, **more: object) -> str | None:
        plan = make_plan(RunSettings(shards=(str(path),), **common, **more), 5)
        measured = timings(single_ns)
        reads = _reads(plan, build_encoder(plan), plan.order)
        lines = dict(_lines(plan, plan.order, measured, reads, False))
        plan.shards.close()
        return lines.get("prep")

    quick = told(photos, 1)
    assert quick.startswith("each rank reads and decodes an image in ")
    assert "(one core of this host); the network takes 1e-06 ms: shards would be faster" in quick
    assert f"faster: `collage-mpi prep shards {photos} --size 16 --channels 3" in quick
    assert told(photos, 10**12).endswith("network takes 1e+06 ms: shards would not be faster")
    by_rank_0 = told(photos, 1, pixels="rank0")
    assert by_rank_0.startswith("rank 0 reads and decodes an image in ")
    assert "the network takes 1e-06 ms on each of 4" in by_rank_0
    assert told(shard, 1) is None


def test_the_number_format_of_each_network_is_told(shard):
    settings = RunSettings(shards=(str(shard),), single="null", scheme="none", side=2, out="out")
    plan = make_plan(settings, 5)
    for how, end in (("bfloat16, channels-last", "1-4, bfloat16, channels-last"), (NO_TUNING, "4")):
        measured = timings(50_000_000, 5.0, single=how)
        assert dict(_lines(plan, plan.order, measured, Reads(), False))["single"].endswith(end)
    plan.shards.close()


def test_costs_of_a_collage_and_of_a_batch_are_measured_unless_said(shard, monkeypatch):
    times_ns = {"single": {1: 100_000, 4: 250_000}, "collage": {1: 150_000, 4: 600_000}}

    def measured(_: Networks, kind: str, batch: int) -> Measured:
        return Measured(times_ns[kind][batch], times_ns[kind][batch])

    monkeypatch.setattr(Networks, "measured", measured)

    def costs(**more):
        names = {"single": "null", "collage": "null", "out": "out"}
        settings = RunSettings(shards=(str(shard),), side=2, batch=4, **names, **more)
        plan = make_plan(settings, 6)
        found = _measured_here(plan, build_encoder(plan), plan.order)
        plan.shards.close()
        return found.single_ns, found.costs.ratio, found.costs.batch_costs["single"]

    assert costs() == (100_000, 1.5, 0.5)
    assert costs(cost_ratio=2.0, batch_cost=0.1) == (100_000, 2.0, 0.1)


def test_a_forecast_counts_that_another_runtime_is_quicker(shard):
    settings = RunSettings(shards=(str(shard),), single="null", scheme="none", side=2, out="out")
    plan = make_plan(settings, 5)
    torch, quicker = (replace(timings(50_000_000), gain=gain) for gain in (1.0, 2.5))
    each = [_seconds(plan, 40, how, NO_READS, 1.0) for how in (torch, quicker)]
    assert each[0] / each[1] == pytest.approx(2.5, rel=0.1)
    assert (torch.asked_ns, quicker.asked_ns) == (50_000_000, 20_000_000)
    assert "2.5 times as quick" in _service(plan, quicker)
    plan.shards.close()


def test_free_memory_is_the_hosts_or_the_containers(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 2 << 20
    (tmp_path / "memory.current").write_text("3000\n")
    for limit, free in (("max\n", 2 << 20), ("4000\n", 1000), ("2000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert available_bytes(tmp_path / "meminfo", tmp_path) == free
    assert available_bytes(tmp_path / "gone", tmp_path / "gone") is None


def test_launch_looks_for_no_marker_of_a_dry_run():
    assert LaunchArguments(words=("run", "--out", "there")).out == Path("there")
    assert LaunchArguments(words=("run", "--dry-run", "--out", "there")).out is None


def test_a_threshold_of_accept_auto_does_not_keep_it_from_an_estimate(shard):
    settings = RunSettings(shards=(str(shard),), single="null", collage="null", side=2, out="out")
    plan = make_plan(settings, 6)
    plan.shards.close()
    sure = replace(plan, settings=replace(settings, confidence=0.9))
    measured = timings(50_000_000)
    assert _time(sure, 4000, measured, Reads()) == _time(plan, 4000, measured, Reads())
    assert "no estimate" in _time(replace(sure, asked=sure.settings), 4000, measured, Reads())
