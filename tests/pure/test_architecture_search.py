"""Presets, and the search that they were chosen by."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from collage_mpi.commands.networks import settings_of
from collage_mpi.commands.parser import read_command
from collage_mpi.errors import UsageError
from collage_mpi.models.architecture import BY_SIDE, PRESETS, Stage, default_architecture, preset


@pytest.fixture(scope="module")
def search() -> ModuleType:
    path = Path(__file__).parents[2] / "analysis" / "architecture_search.py"
    spec = importlib.util.spec_from_file_location("architecture_search", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["architecture_search"] = module  # its dataclass looks itself up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module


def settings(*words: str):  # type: ignore[no-untyped-def]
    line = ["train", "collage", "--shards", "a.h5", "--out", "w", *words]
    return settings_of(read_command(line)[1], (28, 28, 1))


def test_a_side_has_its_network_unless_another_is_said() -> None:
    assert settings().architecture == default_architecture("collage") == preset("accurate")
    for side, name in BY_SIDE.items():
        assert settings("--side", str(side)).architecture == preset(name)
    assert settings("--side", "5", "--preset", "accurate").architecture == preset("accurate")
    assert settings("--width", "16").architecture == default_architecture("collage", 16)
    changed = settings("--preset", "fast", "--stages", "24x1/2").architecture
    assert (changed.stem_width, changed.stages) == (32, (Stage(24, 1, 2),))
    with pytest.raises(UsageError, match="give only one"):
        settings("--preset", "fast", "--width", "16")


def test_presets_are_named_in_the_message() -> None:
    with pytest.raises(UsageError, match=", ".join(PRESETS)):
        preset("slow")


def test_candidates_are_read_or_refused(search: ModuleType) -> None:
    text = "4 28 32x4/2 32x1,96x2/2  # why\n\n# nothing\n5 24 a b\n"
    assert search.read_candidates(text) == [(4, 28, "32x4/2", "32x1,96x2/2"), (5, 24, "a", "b")]
    for line in ("4 28 32x4/2", "four 28 a b"):
        with pytest.raises(UsageError, match="SIDE CELL_PX"):
            search.read_candidates(line)


def test_the_frontier_leaves_out_what_a_cheaper_one_equals(search: ModuleType) -> None:
    def point(name: str, ratio: float, accuracy: float):  # type: ignore[no-untyped-def]
        return search.Point(name, 3, 28, "grid", "s", "t", True, 2, 1.0, 1.0, ratio, accuracy)

    points = [point("c", 1.4, 0.92), point("a", 0.5, 0.9), point("b", 1.0, 0.9)]
    assert [p.name for p in search.frontier(points)] == ["a", "c"]


def test_the_figure_names_presets(search: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    numbers = (2, 1.0, 1.0, 0.5, 0.9)
    fast = search.Point("a", 3, 28, "grid", "32x4/2", "32x1,64x2/2", True, *numbers)
    other = search.Point("b", 4, 28, "yolo", "32x4/2", "32x1,65x2/2", False, *numbers)
    assert (search.preset_of(fast), search.preset_of(other)) == ("fast", "")
    search.write([fast, other], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"search.csv", "search.png", "search.pdf"}
