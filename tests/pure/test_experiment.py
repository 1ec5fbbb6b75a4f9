"""An experiment file expands to an ordered list of checked, named settings."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collage_mpi.cli import main
from collage_mpi.errors import CollageError, UsageError
from collage_mpi.experiments import spec
from collage_mpi.experiments.runner import launches
from collage_mpi.experiments.spec import (
    LONGEST_NAME,
    expand,
    parse_indices,
    read_experiment,
)
from collage_mpi.experiments.table import write_tables
from collage_mpi.results import verify_run
from collage_mpi.system.printable import numbers_text

BASE = {"shards": ["a.h5"], "single": "null", "collage": "null"}
EXAMPLES = sorted((Path(__file__).parents[2] / "analysis" / "experiments").glob("*.toml"))
SLOW_RANK = Path(__file__).parents[2] / "analysis" / "experiments" / "slow_rank.toml"


def names(**document: object) -> list[str]:
    return [point.name for point in expand({"base": BASE, **document}).points]


def test_a_grid_is_every_combination_the_last_key_fastest_seeds_faster_still() -> None:
    found = expand(
        {"base": BASE, "grid": {"scheme": ["none", "collage"], "side": [2, 3]}, "repeat": [5, 7]}
    )
    assert [point.name for point in found.points][:5] == [
        "scheme-none_side-2_seed-5",
        "scheme-none_side-2_seed-7",
        "scheme-none_side-3_seed-5",
        "scheme-none_side-3_seed-7",
        "scheme-collage_side-2_seed-5",
    ]
    assert [point.index for point in found.points] == list(range(8))
    assert [point.ranks for point in found.points] == [5, 5, 10, 10, 6, 6, 11, 11]
    assert found.points[1].settings.straggler_seed == 7
    assert found.varied == ("scheme", "side", "straggler_seed")
    assert [(ranks, len(members)) for ranks, members in launches(found.points)] == [
        (5, 2),
        (10, 2),
        (6, 2),
        (11, 2),
    ]


def test_points_are_more_runs_beside_the_grid_or_without_one() -> None:
    extra = [
        {"collage_ranks": 2, "accept": "confident", "deadline_ms": 5},
        {"name": "my own", "side": 2},
    ]
    alone = ["collage_ranks-2_accept-confident_deadline_ms-5", "my-own"]
    assert names(point=extra) == alone
    assert names(grid={"side": [3, 4]}, point=extra) == ["side-3", "side-4", *alone]
    assert names() == ["run"]
    assert names(repeat=2) == ["seed-0", "seed-1"]


def test_an_axis_of_tables_sets_settings_together() -> None:
    axis = [{"name": "none", "scheme": "none"}, {"accept": "confident", "deadline_ms": 20.0}]
    found = expand({"base": BASE, "grid": {"policy": axis, "depth": [1]}})
    assert [point.name for point in found.points] == ["none", "policy-1"]
    assert found.points[1].settings.deadline_ms == 20
    assert found.varied == ("scheme", "accept", "deadline_ms")


def test_values_become_safe_names(tmp_path: Path) -> None:
    grid = {
        "shards": [["data/a.h5", "data/b.h5"], "/x/c.h5"],
        "order": ["file", "shuffle:1"],
        "time_scale": [0.5, 1],
    }
    assert names(grid=grid)[:3] == [
        "shards-a+b_order-file_time_scale-0.5",
        "shards-a+b_order-file_time_scale-1",
        "shards-a+b_order-shuffle-1_time_scale-0.5",
    ]
    point = expand({"base": BASE}).points[0]
    assert point.settings_in(tmp_path).out == str(tmp_path / "run")


def test_shipped_files_are_found() -> None:
    point = expand({"base": {**BASE, "shards": ["shipped:fashion_demo.h5"]}}).points[0]
    assert Path(point.settings.shards[0]).is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_committed_experiments_expand(path: Path) -> None:
    assert len(read_experiment(path).points) > 1


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_their_headers_say_how_to_run_and_draw_them(path: Path) -> None:
    head = path.read_text().split("\nname = ")[0].replace("\\\n#", "")
    experiment = read_experiment(path)
    assert f"collage-mpi experiment analysis/experiments/{path.name} --out " in head
    axes = {axis for point in experiment.points for axis in point.draft.axes}
    drawn = re.findall(r"--(?:series|panels|across|down) (\S+)", head)
    assert set(drawn) <= axes
    names = {point.name for point in experiment.points}
    assert set(re.findall(r"runs/\w+/([\w-]+)(?= )", head)) <= names


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"grids": {}}, "unknown key 'grids'; did you mean 'grid'"),
        ({"grid": {"schem": ["none"]}}, r"point 0 \(run\): unknown setting 'schem'; did you mean"),
        ({"base": {**BASE, "sid": 3}}, "unknown setting 'sid'; did you mean 'side'"),
        ({"point": [{"colour": 3}]}, "unknown setting 'colour'"),
        ({"grid": {"side": 3}}, "side is 3; it needs a list"),
        ({"grid": {"side": []}}, "it needs a list"),
        ({"grid": {"side": [3, "x"]}}, r"point 1 \(side-x\): side is 'x'; it needs int"),
        ({"grid": {"side": [3, 99]}}, "side is 99"),
        ({"grid": {"side": [3, 3]}}, "points 0 and 1 have the same name"),
        ({"point": [{"name": "a"}, {"name": "b"}]}, "points 0 and 1 have the same settings"),
        ({"point": [{"name": "a", "side": 2}, {"name": "A"}]}, "have the same name"),
        ({"grid": {"a": [{"side": 2}], "side": [3, 4]}}, "two axes set side"),
        ({"point": {"side": 3}}, r"needs \[\[point\]\] tables"),
        ({"point": [3]}, "needs a table"),
        ({"base": 3}, "needs a table"),
        ({"repeat": 0}, "how many seeds"),
        ({"repeat": [1, 1]}, "different seeds"),
        ({"repeat": True}, "how many seeds"),
        ({"repeat": 2, "grid": {"straggler_seed": [1, 2]}}, "leave it out of grid"),
        ({"how": "guess"}, "known are: run, simulate"),
        ({"images": 9}, "images is for how = 'simulate'"),
        ({"how": "simulate"}, "needs images"),
        ({"how": "simulate", "images": 9, "groups": 9}, "needs images, or groups"),
        ({"groups": 9}, "groups is for how = 'simulate'"),
        ({"baseline": {"scheme": "none"}}, "it needs one axis of the grid: none"),
        ({"grid": {"side": [3, 4]}, "baseline": {"side": 5}}, "known are: 3, 4"),
        ({"grid": {"side": [3, 4]}, "baseline": {"side": [3, 3]}}, "known are: 3, 4"),
        ({"baseline": 3}, "needs a table"),
        ({"name": 3}, "name is 3"),
        ({"name": ""}, "exp.toml: name is empty"),
        ({"how": "simulate", "images": 9, "costs": ""}, "exp.toml: costs is empty"),
        ({"how": "simulate", "images": 9, "answers": ""}, "exp.toml: answers is empty"),
        ({"base": {**BASE, "out": "x"}}, "--out DIR"),
        ({"base": {"shards": ["a"]}}, "--single is missing"),
        ({"base": {**BASE, "single": "shipped:none"}}, "ships fashion_collage_side3.safetensors"),
        ({"base": {**BASE, "collage_ranks": 0}}, "collage_ranks is 0"),
        ({"grid": {"collage_copies": [1, 2]}}, "each copy needs a rank"),
        ({"base": {**BASE, "teams": 2}}, r"point 0 \(run\): teams is 2; it needs 1"),
        ({"point": [{"scheme": "hedge"}]}, r"point 0 \(scheme-hedge\): .*hedge"),
        (
            {
                "base": {**BASE, "straggler": "pinned", "slow_ranks": ["10:5"]},
                "grid": {"scheme": ["collage", "none"]},
            },
            r"point 1 \(scheme-none\): slow rank 10; the world has worker ranks 1 to 9",
        ),
        ({"grid": {"depth": list(range(1, 200)), "credit": list(range(1, 200))}}, "39,601 points"),
        ({"point": [{"name": "x" * (LONGEST_NAME + 1)}]}, "give shorter ones"),
    ],
)
def test_bad_files_are_refused_with_one_message(document: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        expand({"base": BASE, **document}, "exp.toml")
    assert str(caught.value).count("exp.toml") == 1


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(["file", "shuffle:1", "shuffle:2"]), min_size=1, unique=True),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_counts_indices_and_names(depths: list, orders: list, repeat: int, extra: int) -> None:
    found = expand(
        {
            "base": BASE,
            "grid": {"depth": depths, "order": orders},
            "repeat": repeat,
            "point": [{"credit": 20 + n} for n in range(extra)],
        }
    )
    assert len(found.points) == (len(depths) * len(orders) + extra) * repeat
    assert [point.index for point in found.points] == list(range(len(found.points)))
    assert len({point.name.lower() for point in found.points}) == len(found.points)
    assert all(not set(point.name) & set("/:\\ ") for point in found.points)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 99) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["side", "scheme", "out", "name", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["name", "how", "repeat", "base", "grid", "point", "baseline", "groups"]),
        JUNK,
    )
)
def test_junk_is_refused_not_crashed_on(document: dict) -> None:
    document.setdefault("base", BASE)
    with contextlib.suppress(CollageError):
        expand(document)


@given(st.sets(st.integers(0, 40), min_size=1))
def test_indices_are_written_and_read(indices: set) -> None:
    assert parse_indices(numbers_text(sorted(indices), None, steps=False), 41) == sorted(indices)


@pytest.mark.parametrize("text", ["", "x", "3-1", "9", "0-9", "-1", "1,,2"])
def test_indices_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--index"):
        parse_indices(text, 9)


def test_the_list_and_errors_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "e.toml"
    file.write_text('[base]\nshards = ["a.h5"]\nsingle = "null"\ncollage = "null"\n')
    assert main(["experiment", str(file), "--list"]) == 0
    assert capsys.readouterr().out == "index\tname\tranks\n0\trun\t11\n"
    for words, code, message in (
        ([], 2, "--out is missing"),
        (["--out", str(tmp_path), "--index", "1"], 2, "points 0 to 0"),
        (["--out", str(tmp_path), "--table"], 3, "no run of this experiment"),
        (["--out", str(tmp_path)], 3, "a.h5"),  # found before any rank is started
    ):
        assert main(["experiment", str(file), *words]) == code
        assert message in capsys.readouterr().err
    file.write_text("[base\n")
    assert main(["experiment", str(file), "--list"]) == 2
    assert main(["experiment", str(tmp_path / "none.toml"), "--list"]) == 3


def test_a_simulated_experiment_needs_no_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "e.toml", tmp_path / "out"
    file.write_text(
        'how = "simulate"\nimages = 180\n[base]\nstraggler = "lognormal"\n'
        '[grid]\nscheme = ["none", "collage"]\n'
    )
    assert main(["experiment", str(file), "--out", str(out)]) == 0
    lines = (out / "table.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("index,name,how,status,scheme,groups,p50_ms")
    assert lines[2].startswith("1,scheme-collage,simulate,complete,collage,18,")
    assert (out / "points.csv").read_text().count("\n") == 3
    capsys.readouterr()
    assert main(["experiment", str(file), "--out", str(out)]) == 0
    assert "2 of 2 runs are done already" in capsys.readouterr().out


def test_settings_given_on_the_command_line_win(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(
        'how = "simulate"\nimages = 180\nrepeat = 9\n[base]\nside = 2\n[grid]\ndepth = [1, 2]\n'
    )
    found = read_experiment(file, ["repeat=1", "groups=10", "cost_ratio=1.5", "straggler=pinned"])
    assert [point.name for point in found.points] == ["depth-1_seed-0", "depth-2_seed-0"]
    assert {point.images for point in found.points} == {(10 + 2) * 4}
    assert found.points[0].settings.cost_ratio == 1.5
    assert found.points[0].settings.straggler == "pinned"
    for text, message in (
        ("x", "needs KEY=VALUE"),
        ("depth=3", "point depth-1 .* sets depth itself"),
        ("dept=3", "did you mean 'depth'"),
        ("name=3", "unknown setting 'name'"),
    ):
        with pytest.raises(UsageError, match=message):
            read_experiment(file, [text])


def test_a_file_of_real_runs_can_be_simulated() -> None:
    found = read_experiment(SLOW_RANK, ["how=simulate", "images=99"])
    assert found.how == "simulate"
    assert {point.images for point in found.points} == {99}
    with pytest.raises(UsageError, match="how is 'dream'; known are: run, simulate"):
        read_experiment(SLOW_RANK, ["how=dream"])


def test_a_simulation_that_was_cut_off_or_has_other_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "e.toml", tmp_path / "out"
    file.write_text('how = "simulate"\nimages = 90\n[base]\nstraggler = "pinned"\n')
    words = ["experiment", str(file), "--out", str(out)]
    assert main(words) == 0
    (out / "run" / "COMPLETE").unlink()  # as if it had been killed
    assert main(words) == 0
    assert (out / "run" / "COMPLETE").exists()
    manifest = json.loads((out / "run" / "manifest.json").read_text())
    unclosed = json.dumps({**manifest, "status": "incomplete"})
    (out / "run" / "manifest.json").write_text(unclosed)  # killed as it went on
    assert write_tables(read_experiment(file, []), out).rows == []
    assert main(words) == 0
    assert verify_run(out / "run").ok
    next((out / "run" / "parts").glob("images-*")).unlink()  # the marker is not believed
    assert main(words) == 0
    assert verify_run(out / "run").ok
    capsys.readouterr()
    assert main([*words, "--set", "images=99"]) == 2
    assert "images: 90 before, 99 now" in capsys.readouterr().err


def test_the_example_of_the_module_is_a_file_of_an_experiment(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    assert spec.__doc__ is not None
    file.write_text(spec.__doc__.partition("\n\n")[2])
    found = read_experiment(file, ["how=simulate", "images=99"])  # without networks
    assert (found.name, len(found.points)) == ("schemes", 2 * (2 * 2 + 1))
