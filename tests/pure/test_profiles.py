"""Named profiles: what each sets, that what a user gives wins, how runs that go on take them."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from collage_mpi.cli import main
from collage_mpi.errors import UsageError
from collage_mpi.job.resume import resumed_settings
from collage_mpi.results.file_names import MANIFEST
from collage_mpi.settings.flags import add_setting_flags, flags_of, given_run
from collage_mpi.settings.pace import PaceSettings
from collage_mpi.settings.profiles import PROFILES, Computed
from collage_mpi.settings.redundancy import RedundancySettings
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.runs import like, run_job, simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.system.fields import about, names

ROOT = Path(__file__).parents[2]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_setting_flags(made)
    return made


def parse(*argv: str) -> RunSettings:
    return given_run(vars(parser().parse_args(argv)))


def of(profile: str, **given) -> RunSettings:
    return RunSettings.from_mapping({"profile": profile, **given})


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_the_settings_that_it_names(name):
    found = of(name)
    for key, value in PROFILES[name].sets.items():
        if not isinstance(value, Computed):
            assert getattr(found, key) == value, key
    untouched = set(names(RunSettings)) - set(PROFILES[name].sets)
    assert all(getattr(found, key) == getattr(RunSettings(), key) for key in untouched)


def test_no_profile_is_the_default():
    assert parse() == RunSettings()


def test_paper_leaves_no_setting_of_the_schedule_to_a_later_default():
    assert set(PROFILES["paper"].sets) == {*names(RedundancySettings), *names(PaceSettings)}


def test_flags_win_over_the_file_and_the_file_over_the_profile(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('profile = "throughput"\nbatch = 4\nassign = "least"\n')
    found = parse("--settings", str(file), "--assign", "finish")
    assert (found.endgame, found.batch, found.assign) == ("on", 4, "finish")
    paper = parse("--settings", str(file), "--profile", "paper", "--depth", "1")
    assert (paper.endgame, paper.batch, paper.assign, paper.depth) == ("off", 4, "least", 1)


def test_what_is_given_wins_where_it_is_the_default_too():
    found = of("throughput", batch=1, depth=1, endgame="off")
    assert (found.assign, found.batch, found.depth, found.endgame) == ("pull", 1, 1, "off")


@pytest.mark.parametrize(
    ("given", "depth"),
    [
        ({}, 4),
        ({"credit": 3}, 6),
        ({"singles": 64}, 32),
        ({"side": 2, "singles": 9}, 12),
        ({"singles": 2}, 4),
        ({"scheme": "replicate"}, 8),
        ({"collage_ranks": 6}, 4),  # all get each collage
        ({"collage_ranks": 6, "collage_copies": 2}, 12),
        ({"scheme": "collage-only", "collage_ranks": 5}, 20),
        ({"scheme": "collage-only", "collage_ranks": 5, "singles": 90}, 20),
        ({"scheme": "none", "collage_ranks": 6, "collage_copies": 2}, 4),
        ({"depth": 7}, 7),
    ],
)
def test_depth_gives_every_rank_twice_its_credit(given, depth):
    assert of("throughput", **given).depth == depth


@pytest.mark.parametrize("value", ["fast", 3, ["paper"]])
def test_an_unknown_profile_names_the_known(value):
    with pytest.raises(UsageError, match=r"job: profile is .*known are: paper, throughput, lat"):
        RunSettings.from_mapping({"profile": value}, "job")


def test_an_unknown_flag_of_a_profile_names_the_known(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", "--profile", "fast"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in PROFILES)


def test_a_clash_says_what_the_profile_sets():
    with pytest.raises(
        UsageError, match=r"placement fastest .*\(profile latency sets collage_ranks, pl"
    ):
        of("latency", scheme="none")
    with pytest.raises(UsageError) as plain:
        of("paper", side=99)
    assert "side is 99" in str(plain.value)


def test_values_that_a_depth_cannot_be_made_from_are_told_as_ever():
    with pytest.raises(UsageError, match="credit is '3'; it needs int"):
        of("throughput", credit="3")
    with pytest.raises(UsageError, match="singles is 0"):
        of("throughput", singles=0)


def test_a_launch_from_a_program_passes_the_effective_settings_on():
    found = of("throughput", shards=["x.h5"])
    assert parse(*flags_of(found)) == found


def test_help_has_a_line_for_each():
    said = parser().format_help()
    for name, profile in PROFILES.items():
        first_words = " ".join(profile.says.split()[:4])
        assert f"\n  {name}: {first_words}" in said


def begun(tmp_path: Path, settings: RunSettings) -> str:
    """The folder of a run with these settings, as far as a manifest tells."""
    out = tmp_path / "run"
    run_job(SimulatedJob(replace(settings, out=str(out)), 90))
    return str(out)


def test_the_same_command_goes_on_with_its_run(tmp_path):
    run = of("throughput", singles=20, scheme="none", batch=2)
    out = begun(tmp_path, run)
    recorded = json.loads((Path(out) / MANIFEST).read_text())["settings"]
    assert recorded == {**run.to_dict(), "out": out}
    given = {"out": out, "profile": "throughput", "batch": 2, "singles": 20}
    assert resumed_settings(given, "flags", 21).digest() == run.digest()
    fewer = resumed_settings({**given, "singles": 9}, "flags", 10)
    assert (fewer.singles, fewer.depth) == (9, run.depth)  # a depth is none of what may change


def test_another_profile_is_another_run(tmp_path):
    out = begun(tmp_path, of("throughput"))
    found = resumed_settings({"out": out, "profile": "paper"}, "flags", 11)
    assert (found.assign, found.depth, found.batch) == ("turn", 1, 1)


def test_what_a_run_would_have_been_under_a_profile():
    run = SimpleNamespace(
        path="run", manifest={"settings": RunSettings(singles=20).to_dict(), "cost_ratio": 1.4}
    )
    settings = like(run, {"profile": "throughput"}, 90, Costs(), None).settings
    assert (settings.depth, settings.assign, settings.cost_ratio) == (12, "pull", 1.4)


@pytest.mark.parametrize("scheme", ["none", "collage", "hedge"])
@pytest.mark.parametrize("slow", ["4:5", "4:60"])
def test_throughput_reaches_the_sum_of_the_ranks_speeds(scheme, slow):
    """No part of it is idle: batch, depth and credit fit each other."""
    factor = int(slow.partition(":")[2])
    settings = of(
        "throughput",
        scheme=scheme,
        straggler="pinned",
        slow_ranks=[slow],
        hedge_ms=2000.0,  # over what a batch of 8 takes
        warmup_groups=0,
    )
    images = 2880
    rows = simulate_in_memory(SimulatedJob(settings, images)).images
    took_ns = (rows["t0_ns"] + rows["latency_ns"]).max() - rows["t0_ns"].min()
    assert took_ns / 1e9 <= 1.05 * images * 0.1 / (8 + 1 / factor)


def docs_table() -> str:
    """What each sets, in the order of the settings; paper's settings where another differs."""
    lines = ["| setting | default | " + " | ".join(f"`{name}`" for name in PROFILES) + " |"]
    lines.append("|---" * (len(PROFILES) + 2) + "|")
    defaults = {spec.name: spec for spec in dataclasses.fields(RunSettings)}
    others = [profile.sets for name, profile in PROFILES.items() if name != "paper"]
    for key in PROFILES["paper"].sets:
        if any(key in sets for sets in others):
            spec = defaults[key]
            everyone = ({key: spec.default}, *(profile.sets for profile in PROFILES.values()))
            lines.append(f"| `{key}` | " + " | ".join(_cell(s, spec) for s in everyone) + " |")
    return "\n".join(lines)


def _cell(sets, spec) -> str:
    if spec.name not in sets:
        return ""
    value = sets[spec.name]
    if value is None:
        return "auto" if about(spec).auto else "unset"
    return value.says if isinstance(value, Computed) else str(value)


def test_the_docs_show_what_each_sets():
    page = (ROOT / "docs" / "speed.md").read_text()
    assert docs_table() in page, f"docs/speed.md needs this table:\n{docs_table()}"
    for name, profile in PROFILES.items():
        assert f"- `{name}`: {profile.says}" in page
