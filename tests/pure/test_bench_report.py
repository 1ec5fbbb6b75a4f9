"""The bench's sizes are the job's, its meter counts what it should, its table says n/a."""

from __future__ import annotations

import numpy as np
import pytest
from round_report import (
    VARIANTS,
    Block,
    RoundMeter,
    exchanges,
    full_report,
    render,
    summarise,
    world_report,
)
from round_settings import BenchSettings
from wire_tasks import pack_wire_tasks as pack_tasks

from collage_mpi.errors import UsageError
from collage_mpi.job.coordinator import PollWatch
from collage_mpi.mpi.answers import ANSWERED, Score, WireResult, pack_results
from collage_mpi.mpi.tasks import WireTask

MS = 1_000_000


def test_the_collage_of_224_px_images_is_that_of_the_paper_within_a_pixel():
    grid = BenchSettings().grid
    assert (grid.cell_px, grid.px) == (139, 417)


def test_a_round_moves_the_bytes_of_the_jobs_own_messages():
    settings = BenchSettings(px=16)
    *images, collage = exchanges(settings, singles=4)
    assert [e.rank for e in images] == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert collage.rank == 5
    out = np.empty(1 << 16, np.uint8)
    pixels = np.zeros(settings.image_shape, np.uint8)
    task = WireTask(0, "single", ((0, 0),))
    assert images[0].down_bytes == pack_tasks(out, 1, [task], [pixels])
    pasted = np.zeros((settings.grid.px, settings.grid.px, 3), np.uint8)
    task = WireTask(0, "collage", tuple((i, i) for i in range(9)))
    assert collage.down_bytes == pack_tasks(out, 1, [task], [pasted])
    for exchange, cells in ((images[0], 1), (collage, 9)):
        result = WireResult(0, ANSWERED, cells=(Score(1, 0.5),) * cells)
        assert exchange.up_bytes == pack_results(out, 1, [result])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"px": 4}, "--px 4"), ({"rounds": 3}, "--rounds 3"), ({"warmup": 0}, "--warmup 0")],
)
def test_settings_out_of_range_are_refused(wrong, words):
    with pytest.raises(UsageError, match=words):
        BenchSettings(**wrong)


def test_the_meter_leaves_the_warm_up_out():
    settings = BenchSettings(rounds=6, blocks=2, warmup=2)
    watch = PollWatch()
    meter = RoundMeter(settings, watch)
    for number in range(settings.played_rounds):
        meter.begin_round()
        watch.polled(1000 * number)
        watch.polled(1000 * number + 7)
    block = meter.block()
    assert len(block.periods_ns) == 3
    assert block.polls == 6
    assert block.longest_gap_ns == 993
    assert block.process_ns >= 0


def test_figures_are_those_of_all_blocks_and_a_percentile_without_support_is_absent():
    blocks = [
        Block(np.full(30, 2 * MS), 900_000, 450_000, 60, 3 * MS, np.full(30, MS)),
        Block(np.full(30, 4 * MS), 900_000, 450_000, 60, 5 * MS, np.full(30, MS)),
    ]
    found = summarise(blocks, images=9)
    assert found["rounds"] == 60
    assert found["round_p50_ms"] == 2.0
    assert found["round_p95_ms"] is None
    assert found["images_s"] == pytest.approx(9 * 60 / 0.18)
    assert found["cpu_us_per_image"] == pytest.approx(1800 / 540)
    assert found["loop_cpu_us_per_image"] == pytest.approx(900 / 540)
    assert found["longest_poll_gap_ms"] == 5.0
    assert found["polls_per_round"] == 2.0
    assert found["encode_p50_ms"] == 1.0
    assert found["block_p50_ms"] == [2.0, 4.0]


def test_the_table_has_every_variant_and_says_what_is_missing():
    settings = BenchSettings(rounds=8)
    block = Block(np.full(8, 2 * MS), 1000, 1000)
    fast = Block(np.full(8, MS), 1000, 1000)
    measured = {name: [fast if name.startswith("bare") else block] for name in VARIANTS}
    world = world_report(settings, 11, measured, "MPICH 5", (0.0, 0.0, 0.0))
    assert world["singles"] == 9
    for base in ("ratio_to_bare", "ratio_to_bare_encode"):
        assert world["variants"]["job"][base]["round_p50_ms"] == 2.0
    text = render(full_report(settings, [world]))
    for name in VARIANTS:
        (row,) = [line for line in text.splitlines() if line.startswith(f"{name} ")][:1]
        assert ("1.00" if name.startswith("bare") else "2.00") in row
        assert "n/a" in row
    assert "9 single + 1 collage" in text
