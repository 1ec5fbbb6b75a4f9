"""The file of the paper's layout: what it sets, that what a user gives wins, how runs that go on
take it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from collage_mpi.job.joining import joined_settings
from collage_mpi.results.manifest import compose
from collage_mpi.settings.flags import add_setting_flags, flags_of, given_run
from collage_mpi.settings.run_settings import PaceSettings, RedundancySettings, RunSettings
from collage_mpi.simulation.runs import run_job, simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.system.fields import names
from tests.paper import PAPER, paper


def parse(*argv: str) -> RunSettings:
    made = argparse.ArgumentParser()
    add_setting_flags(made)
    return given_run(vars(made.parse_args(argv)))


def test_paper_sets_every_setting_of_the_schedule_and_no_other():
    """So no later default changes it."""
    assert PAPER.keys() == {*names(RedundancySettings), *names(PaceSettings)}
    assert parse("--settings", "shipped:paper.json") == replace(RunSettings(), **PAPER)
    assert parse() == RunSettings()


def test_flags_win_over_files_and_a_file_over_those_before_it(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('batch = 4\nassign = "turn"\n')
    files = "--settings", "shipped:paper.json", "--settings", str(file)
    found = parse(*files, "--assign", "pull")
    assert (found.endgame, found.batch, found.assign) == ("off", 4, "pull")


def test_a_launch_from_a_program_passes_the_effective_settings_on():
    found = paper(shards=["x.h5"])
    assert parse(*flags_of(found)) == found


def test_the_same_command_goes_on_with_its_run(tmp_path):
    run, out = paper(scheme="none", batch=2), str(tmp_path / "run")
    run_job(SimulatedJob(replace(run, out=out), 90))
    recorded = compose(Path(out))["settings"]
    assert recorded == {**run.to_dict(), "out": out}
    given = {**PAPER, "out": out, "scheme": "none", "batch": 2}
    assert joined_settings(given, "flags", 10).digest() == run.digest()
    assert joined_settings({**PAPER, "out": out}, "flags", 11).batch == 1


@pytest.mark.parametrize("scheme", ["none", "collage", "hedge"])
@pytest.mark.parametrize("slow", ["4:5", "4:60"])
def test_the_default_reaches_the_sum_of_the_ranks_speeds(scheme, slow):
    """Ranks do not wait for a slow one."""
    factor = int(slow.partition(":")[2])
    settings = RunSettings(
        scheme=scheme,
        confidence=0.0,
        batch=8,
        straggler="pinned",
        slow_ranks=[slow],
        deadline_ms=2000.0,  # over what a batch of 8 takes
        warmup_groups=0,
    )
    images = 2880
    rows = simulate_in_memory(SimulatedJob(settings, images)).images
    took_ns = (rows["t0_ns"] + rows["latency_ns"]).max() - rows["t0_ns"].min()
    assert took_ns / 1e9 <= 1.05 * images * 0.1 / (8 + 1 / factor)
