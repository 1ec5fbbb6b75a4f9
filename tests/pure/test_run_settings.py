"""Settings: files, flags that win, and every wrong value a clear usage error."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper import paper

from collage_mpi.cli import main
from collage_mpi.errors import CollageError, UsageError
from collage_mpi.settings.flags import add_setting_flags, flags_of, given_run, read_settings_file
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.fields import Settings, about, setting, spellings


def parse(*argv: str) -> RunSettings:
    parser = argparse.ArgumentParser()
    add_setting_flags(parser)
    return given_run(vars(parser.parse_args(argv)))


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('side = 4\nsingle = "a.safetensors"\nshards = ["x.h5"]\n')
    found = parse(
        "--settings",
        str(file),
        "--side",
        "5",
        "--straggler",
        "pinned",
        "--slow-ranks",
        "3:5",
        "4:2.5",
    )
    assert (found.side, found.single, found.shards) == (5, "a.safetensors", ("x.h5",))
    assert found.slowed() == {3: 5.0, 4: 2.5}


def test_a_file_takes_each_option_by_its_name_and_flags_still_win(tmp_path):
    file = tmp_path / "job.json"
    default = RunSettings()
    for spec in dataclasses.fields(RunSettings):
        for word in spellings(spec):
            value = default.to_dict()[spec.name]
            file.write_text(json.dumps({word.removeprefix("--"): value}))
            assert parse("--settings", str(file)) == default, word
    file.write_text(json.dumps({"input": ["a.h5"], "image-px": 9}))
    found = parse("--settings", str(file), "--shards", "b.h5")
    assert (found.shards, found.image_px) == (("b.h5",), 9)
    file.write_text(json.dumps({"input": ["a.h5"], "shards": ["b.h5"]}))
    with pytest.raises(UsageError, match="input and shards are one setting"):
        parse("--settings", str(file))


@pytest.mark.parametrize(
    ("given", "world", "singles"),
    [
        ({"scheme": "none"}, 3, 2),
        ({"scheme": "none"}, None, 9),
        ({"scheme": "none"}, 10, 9),
        ({"scheme": "none"}, 11, 9),  # one rank stays idle, as the collage rank of the baseline
        ({"scheme": "hedge", "deadline_ms": 1.0}, 4, 3),
        ({"scheme": "none", "teams": 2}, 8, 3),
        ({"scheme": "none", "singles": 2}, 5, 2),
        ({"scheme": "collage"}, 5, 9),
    ],
)
def test_without_other_networks_the_ranks_say_how_many_are_single(given, world, singles):
    assert RunSettings.for_world(given, "flags", world).n_singles == singles


def test_saved_settings_are_a_settings_file(tmp_path):
    first = parse("--side", "4", "--straggler", "pinned", "--slow-ranks", "3:5", "--limit", "9")
    (tmp_path / "settings.json").write_text(json.dumps(first.to_dict()))
    assert parse("--settings", str(tmp_path / "settings.json")) == first


@pytest.mark.parametrize("given", ["x.h5", Path("x.h5"), ["x.h5"], [Path("x.h5")], ("x.h5",)])
def test_one_shard_is_a_list_of_one(given):
    found = RunSettings(shards=given, out=Path("runs/a"), straggler="pinned", slow_ranks="3:5")
    assert (found.shards, found.out) == (("x.h5",), "runs/a")
    assert found.slowed() == {3: 5.0}
    assert json.loads(json.dumps(found.to_dict()))["shards"] == ["x.h5"]


@pytest.mark.parametrize("given", [5, [5], None, {"x.h5"}])
def test_what_is_no_shard_is_told(given):
    with pytest.raises(UsageError, match=r"shards is .*; it needs PATH, or a list"):
        RunSettings(shards=given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"single": 5}, "single is 5; it needs str"),
        ({"single": None}, "single is None; it needs str"),
        ({"endgame": 3}, "endgame is 3; it needs one of off, on"),
        ({"side": "3"}, "side is '3'; it needs int"),
        ({"side": True}, "side is True; it needs int"),
        ({"confidence": "high"}, "confidence is 'high'; it needs float"),
    ],
)
def test_a_value_of_another_type_is_told_in_python_too(given, says):
    with pytest.raises(UsageError, match=f"^{says}$"):
        RunSettings(**given)
    with pytest.raises(UsageError, match=f"^job.toml: {says}$"):
        RunSettings.from_mapping(given, "job.toml")


@dataclasses.dataclass(frozen=True, repr=False)
class Flipped(Settings):
    flips: bool = setting(True, "a setting that is yes or no")


def test_python_takes_the_words_and_numbers_that_a_file_takes():
    found = RunSettings(depth="auto", batch="auto", endgame=False, confidence=1)
    assert (found.depth, found.batch, found.endgame) == (None, None, "off")
    assert type(found.confidence) is float
    counted = RunSettings(limit=np.int64(9), confidence=np.float32(0.5))
    assert repr(counted) == "RunSettings(limit=9, confidence=0.5)"
    with pytest.raises(UsageError, match=r"limit is .*9\.0.*; it needs int"):
        RunSettings(limit=np.float64(9.0))
    assert RunSettings(endgame=np.False_).endgame == "off"
    assert Flipped(flips=np.False_).flips is False
    with pytest.raises(UsageError, match="side is True; it needs int"):
        RunSettings(side=np.True_)


def test_a_repr_shows_what_is_not_the_default():
    found = RunSettings(shards="x.h5", side=4)
    assert repr(found) == "RunSettings(shards=('x.h5',), side=4)"
    assert eval(repr(found)) == found
    assert repr(RunSettings()) == "RunSettings()"


@pytest.mark.parametrize("package", ["collage_mpi", "collage_mpi.shards", "collage_mpi.results"])
def test_a_package_lists_its_public_names(package):
    code = f"import {package} as p; assert set(p.__all__) <= set(dir(p)), p.__all__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_digest_ignores_where_the_rows_go():
    assert parse("--out", "a").digest() == parse("--out", "b").digest()
    assert parse("--side", "2").digest() != parse("--side", "3").digest()


def test_meaning():
    found = parse("--straggler", "pinned", "--slow-ranks", "3:5", "--order", "shuffle:7")
    assert found.slowed() == {3: 5.0}
    assert found.shuffle_seed() == 7
    assert found.mode == "carry, depth auto"
    assert (found.n_singles, found.group_size) == (9, 9)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sides": 3}, "did you mean 'side'"),
        ({"zzz": 3}, "unknown setting .zzz.; the command.s --help lists them all"),
        ({"side": "3"}, "side is '3'"),
        ({"side": True}, "side is True"),
        ({"side": 1}, "2 to 16"),
        ({"shards": 3}, "list of strings"),
        ({"scheme": "replicate3"}, "known are: none, replicate, hedge, collage,"),
        ({"deadline_ms": 9.0, "confidence": 2.0}, "confidence is 2"),
        ({"scheme": "hedge"}, "--deadline-ms"),
        ({"scheme": "replicate", "singles": 1}, "each copy of an image needs a rank"),
        ({"scheme": "none", "placement": "fastest"}, "is for collages"),
        ({"placement": "nearest"}, "known are: fixed, fastest"),
        ({"order": "shuffle"}, "shuffle:SEED"),
        ({"collage_ranks": 0}, "at least 1"),
        ({"straggler": "pinned", "slow_ranks": ["3=5"]}, "RANK:FACTOR"),
        ({"straggler": "trace"}, "it needs FILE.npy"),
        ({"cost_ratio": float("nan")}, "positive"),
        ({"deadline_ms": float("nan")}, "at least 0"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
    ],
)
def test_wrong_values_are_usage_errors(values, says):
    with pytest.raises(UsageError, match=says):
        RunSettings.from_mapping(values)


def test_missing_inputs_are_named():
    with pytest.raises(UsageError, match="--shards"):
        parse().require_inputs()
    with pytest.raises(UsageError, match="--collage"):
        parse(
            "--scheme", "collage", "--shards", "x", "--single", "null", "--out", "o"
        ).require_inputs()


def test_a_scheme_without_singles_needs_no_single_network():
    only = ["--scheme", "collage-only", "--shards", "x", "--collage", "null", "--out", "o"]
    found = parse(*only, "--collage-ranks", "2")
    found.require_inputs()
    assert (found.world_size, found.n_copies) == (3, 1)


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"scheme": "none"}, "none"),
        ({"scheme": "none", "assign": "pull", "endgame": "on"}, "none, pulled, end game"),
        ({"scheme": "none", "singles": 11}, "none, N = 11"),
        ({"scheme": "replicate", "singles": 18}, "replicate 2"),
        ({"scheme": "collage", "collage_ranks": 2}, "collage, M = 2"),
        ({"scheme": "hedge", "deadline_ms": 150.0}, "hedge after 150 ms"),
        ({"scheme": "collage-only", "singles": 4}, "collage-only"),
        ({"placement": "fastest"}, "collage, fastest"),
        ({"placement": "fastest", "assign": "pull"}, "collage, pulled, fastest"),
    ],
)
def test_labels_name_what_is_not_usual(values, label):
    assert paper(**values).labels()["scheme"] == label


def test_a_flag_that_is_near_a_known_one_is_told(capsys):
    assert main_code(["run", "--sied", "3"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert (
        err[-1] == "collage-mpi run: error: unrecognized arguments: --sied 3; did you mean --side?"
    )
    assert len(err) == 2


def main_code(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(argv)
    return int(str(left.value.code))


@pytest.mark.parametrize("name", ["job.toml", "job.json"])
@given(text=st.text(max_size=60))
def test_any_text_is_settings_or_a_clear_error(tmp_path_factory, name, text):
    path: Path = tmp_path_factory.mktemp("s") / name
    path.write_text(text, encoding="utf-8")
    try:
        RunSettings.from_mapping(read_settings_file(path), name)
    except CollageError:
        pass


def test_other_endings_and_missing_files(tmp_path):
    with pytest.raises(UsageError, match=r"\.toml"):
        read_settings_file(tmp_path / "job.ini")
    with pytest.raises(CollageError, match="cannot be read"):
        read_settings_file(tmp_path / "job.toml")


@pytest.mark.parametrize(
    ("values", "paced", "depth"),
    [
        ({}, True, 22),  # two messages of 11 ranks
        ({"batch": 8, "scheme": "cascade"}, True, 11),
        ({"depth": "auto"}, True, 22),
        ({"depth": 3}, False, 3),
        ({"assign": "turn"}, False, 1),
        ({"between": "drain"}, False, 1),
        ({"rate": 9.0}, False, 456),  # 4,096 images
        ({"rate": 9.0, "singles": 900}, False, 800),  # 8 for each single rank
    ],
)
def test_depth_auto_follows_the_ranks_where_they_pull(values, paced, depth):
    found = RunSettings.from_mapping(values)
    assert (found.paced, found.groups_in_flight(found.world_size - 1)) == (paced, depth)


def test_in_an_open_loop_a_rank_holds_one_message():
    asked = [{}, {"rate": 9.0}, {"scheme": "cascade"}]
    assert [RunSettings(**settings).messages for settings in asked] == [2, 1, 1]


def test_auto_is_found_out_later_where_a_setting_has_that_word():
    found = parse("--depth", "auto", "--batch", "auto")
    assert (found.depth, found.batch, found.assign) == (None, None, "pull")
    assert (found.batch_size, found.warm_groups) == (1, 2)
    assert RunSettings(batch=None).batch_costs() == {"single": 1.0, "collage": 1.0}
    assert (found.at_batch(8).batch, RunSettings(batch=2).at_batch(8).batch) == (8, 2)
    for words in (["--singles", "auto"], ["--depth", "deep"]):
        with pytest.raises(SystemExit):
            parse(*words)
    with pytest.raises(UsageError, match="singles is 'auto'; it needs int"):
        RunSettings.from_mapping({"singles": "auto"})


def test_batches_are_in_the_mode_and_warm_up_by_whole_ones():
    plain, batches = RunSettings(), RunSettings(batch=4, warmup_groups=5, depth=2)
    assert plain.mode == "carry, depth auto"
    assert (plain.warm_groups, plain.batch_costs()) == (2, {})
    assert batches.mode == "carry, depth 2, batch 4"
    assert batches.warm_groups == 8
    assert batches.batch_costs() == {"single": 1.0, "collage": 1.0}
    assert RunSettings(batch=4, batch_cost=0.1).batch_costs()["single"] == 0.1
    opened = RunSettings(batch=4, rate=9.0)
    assert opened.warm_groups == 2
    assert opened.mode.endswith(", batch 4")
    for values in ({"batch": 0}, {"batch": 1025}, {"batch_cost": -0.1}):
        with pytest.raises(UsageError):
            RunSettings(**values)


def test_a_rank_of_a_stage_gets_a_group_as_one_batch():
    apart = {"scheme": "cascade", "first": ("q",), "placement": "fixed", "side": 2}
    found = RunSettings(**apart, batch_cost=0.25)
    assert (found.n_singles, found.collage_ranks, found.world_size) == (4, 1, 6)
    assert [found.most_inputs(kind) for kind in ("single", "stage1")] == [1, 4]
    assert found.batch_costs() == {"stage1": 0.25}
    found = RunSettings(**apart, batch=3, collage_ranks=2)
    assert [found.most_inputs(kind) for kind in ("single", "stage1")] == [3, 12]
    assert found.batch_costs() == {"single": 1.0, "stage1": 1.0}
    assert "M = 2" in found.labels()["scheme"]


def test_files_of_the_package_are_known_by_name() -> None:
    settings = RunSettings(
        shards=("shipped:fashion_demo.h5", "mine.h5"),
        single="shipped:fashion_single.safetensors",
        collage="mine.safetensors",
    )
    assert Path(settings.shards[0]).is_file()
    assert Path(settings.single).is_file()
    assert (settings.shards[1], settings.collage) == ("mine.h5", "mine.safetensors")
    with pytest.raises(
        UsageError, match=r"shipped:single: the package ships fashion_collage_side3"
    ):
        RunSettings(single="shipped:single")


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--shards", "a.h5", "--single", "shipped:none"),
        ("train", "collage", "--shards", "a.h5", "--out", "w", "--teacher", "shipped:none"),
        ("train", "single", "--shards", "shipped:none", "--out", "w"),
        ("simulate", "--images", "9", "--answers", "shipped:none"),
        ("run", "--shards", "a.h5", "--single", "w", "--collage", "shipped:none", "--out", "o"),
        ("prep", "inspect", "shipped:none"),
    ],
)
def test_a_name_that_is_not_shipped_lists_those_that_are(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words)
    except SystemExit as left:
        code = int(str(left.code))
    assert code == 2
    assert "shipped:none: the package ships fashion_collage_side3" in capsys.readouterr().err


def test_a_long_value_is_told_in_short() -> None:
    with pytest.raises(UsageError) as caught:
        RunSettings.from_mapping({"side": ["x" * 1000] * 1000})
    assert len(str(caught.value)) < 200


def test_run_s_help_begins_with_what_is_needed(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: collage-mpi run --shards PATH ... --single W --collage W --out")
    groups = dict.fromkeys(about(spec).group for spec in dataclasses.fields(RunSettings))
    assert next(iter(groups)) == "input and output"
    places = [said.index(f"\n{group}:\n") for group in groups]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "settings",
    [
        RunSettings(),
        RunSettings(shards=("a.h5", "b b.h5"), single="null", out="-odd", limit=7),
        RunSettings(straggler="lognormal:100:1.1", slow_ranks=("1:2.0", "2:3.0")),
        RunSettings(rate=1 / 3, on_rank_loss="continue", straggler="none"),
        RunSettings(batch=None),
    ],
)
def test_flags_made_of_settings_give_them_again(settings):
    assert parse(*flags_of(settings)) == settings
