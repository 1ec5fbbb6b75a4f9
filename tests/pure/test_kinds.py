"""The table of kinds of network: what is on the wire and on disk stays, and nobody keeps a list."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from results_harness import make_run

import collage_mpi
from collage_mpi import kinds
from collage_mpi.commands import networks
from collage_mpi.job.provenance import named_files
from collage_mpi.mpi import tasks
from collage_mpi.results import read_results, summarise, timeline
from collage_mpi.results.render import render_summary
from collage_mpi.rows import ENCODED, KIND_CODE, SOURCE_CODE, SOURCES
from collage_mpi.settings.run_settings import FILE_SETTINGS, FREE_SETTINGS, RunSettings
from collage_mpi.system.fields import about

PACKAGE = Path(collage_mpi.__file__).parent


def test_codes_stay():
    assert {kind.name: kind.code for kind in kinds.TABLE} == {
        "single": 0,
        "collage": 1,
        "stage1": 3,
        "stage2": 5,
        "stage3": 6,
    }
    assert kinds.KINDS is tasks.KINDS
    assert SOURCES[:7] == ("single", "collage", "replica", "hedge", "parity", "retry", "error")


def test_rows_and_sources_are_of_the_table():
    assert [*KIND_CODE] == [
        *("single", "collage", "parity", "stage1", "coded", "stage2", "stage3"),
    ]
    encoded = ["collage", "parity", "coded"]  # two of them are of earlier versions
    assert kinds.ENCODED_KINDS == ("collage",)
    assert [SOURCES[code] for code in ENCODED] == [*encoded, "kept"]
    assert SOURCES[7:] == ("endgame", "stage1", "coded", "kept", "stage2", "stage3", "check")
    assert {kind.name: kind.source for kind in kinds.TABLE}.items() <= SOURCE_CODE.items()


def test_settings_of_a_kind_are_there():
    names = {spec.name for spec in fields(RunSettings)}
    shown = {spec.name for spec in fields(RunSettings) if about(spec).group}
    for kind in kinds.TABLE:
        assert {kind.network, kind.ranks} <= names & shown
        assert kind.network in FILE_SETTINGS
        assert kind.ranks in FREE_SETTINGS  # a resumed run may have lost some


def test_every_kind_of_network_is_trained_and_evaluated():
    assert tuple(networks.TRAIN_COMMAND.each) == kinds.NETWORKS == ("single", "collage")
    assert set(kinds.NETWORKS) <= {spec.name for spec in fields(networks.EvaluateArguments)}


def test_figures_tell_kinds_and_states_apart():
    looks = timeline._LOOKS
    colours = [kind.colour for kind in kinds.TABLE]
    others = {colour for name, (colour, _) in looks.items() if name not in kinds.KIND}
    assert len({*colours, *others}) == len(colours) + len(others)


@pytest.mark.parametrize(("scheme", "kept"), [("none", "single"), ("collage-only", "collage")])
def test_files_of_kinds_that_a_scheme_leaves_idle_are_not_the_runs(scheme, kept):
    given = {kind: f"{kind}.safetensors" for kind in kinds.NETWORKS}
    files = named_files(RunSettings(scheme=scheme, **given))
    assert files == {kept: Path(f"{kept}.safetensors")}


def test_the_files_of_stages_are_the_runs():
    first = ("collage:c.safetensors@0.9", "q.safetensors@160px@bfloat16")
    settings = RunSettings(scheme="cascade", single="s.safetensors", first=first)
    files = {"single": "s", "collage": "c", "stage2": "q"}
    named = {kind: Path(f"{name}.safetensors") for kind, name in files.items()}
    assert named_files(settings) == named


@pytest.mark.parametrize("kind", ["collage", "stage1", "stage2"])
def test_the_price_names_the_kind_that_ranks_hold(tmp_path, kind):
    shown = render_summary(summarise(read_results(make_run(tmp_path, 90, kind=kind))))
    assert shown.count(" share  ") == 1
    assert f"{kind} share" in shown


def _spelt(node: ast.AST) -> bool:
    """Whether the code names several kinds in one literal, or compares with the name of one."""
    if isinstance(node, ast.Dict):
        parts, most = node.keys, 1
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        parts, most = node.elts, 1
    elif isinstance(node, ast.Compare):
        parts, most = [node.left, *node.comparators], 0
    else:
        return False
    words = [part.value for part in parts if isinstance(part, ast.Constant)]
    return sum(word in kinds.KINDS for word in words) > most


def test_no_list_and_no_question_of_kinds_is_kept_elsewhere():
    word = re.compile("[\"'](" + "|".join(kinds.KINDS) + ")[\"']")
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        modules = path.name == "collage_net.py"  # those of ShuffleNet have such names
        if path.name != "kinds.py" and not modules and word.search(text):
            nodes = ast.walk(ast.parse(text))
            found += [f"{path.relative_to(PACKAGE)}:{n.lineno}" for n in nodes if _spelt(n)]
    assert not found, "import SINGLE, COLLAGE or KINDS from collage_mpi.kinds"


# ---- a fourth kind -----------------------------------------------------------

SKETCH = f"""\
    Kind(
        "sketch",
        code={len(KIND_CODE)},
        source={len(SOURCES)},
        ranks="sketch_ranks",
        encoded=True,
        colour="#F0E442",
        legend="sketch answer that resolved images",
        share="of images the sketch resolved",
    ),
)
KIND = """
SCHEMES = '''

@register
class SketchScheme(Scheme):
    """Singles, and a rank of another kind."""

    name = "sketch"
    needs = frozenset({SINGLE, "sketch"})
    takes = frozenset({"assign"})


@register
class CollageReplicateScheme(ReplicateScheme, CollageScheme):
    """Several copies of every single at once, and the group's collage."""

    name = "collage-replicate"
    needs = CollageScheme.needs
    takes = ReplicateScheme.takes | CollageScheme.takes


SCHEMES = '''
OURS = ("collage_mpi", "results_harness", "rows_by_name", "core_world", "wire_tasks")


def _ours() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in OURS]


@pytest.fixture
def four_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package as it is with one entry more in the table of kinds, and two schemes more."""
    copy = tmp_path / "edited" / "collage_mpi"
    for folder in ("", "core"):
        (copy / folder).mkdir(parents=True)
        for path in (PACKAGE / folder).iterdir():
            if path.name not in ("kinds.py", "core", "schemes.py", "__pycache__"):
                (copy / folder / path.name).symlink_to(path)
    table = (PACKAGE / "kinds.py").read_text().split(")\nKIND = ")
    (copy / "kinds.py").write_text(SKETCH.join(table))
    schemes = (PACKAGE / "core" / "schemes.py").read_text().split("\n\nSCHEMES = ")
    (copy / "core" / "schemes.py").write_text(SCHEMES.join(schemes))
    monkeypatch.syspath_prepend(copy.parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = {name: sys.modules.pop(name) for name in _ours()}
    try:
        yield
    finally:
        for name in _ours():
            del sys.modules[name]
        sys.modules.update(known)


@pytest.mark.usefixtures("four_kinds")
def test_a_fourth_kind_travels_and_is_filed():
    from wire_tasks import pack_wire_tasks

    from collage_mpi import rows
    from collage_mpi.mpi import tasks as wire

    task = wire.WireTask(5, "sketch", ((7, 0), (8, 1)))
    out = np.zeros(256, np.uint8)
    length = pack_wire_tasks(out, 1, [task], [np.zeros(4, np.uint8)])
    assert wire.unpack_tasks(out[:length])[0] == [task]
    assert rows.KIND_CODE["sketch"] == len(KIND_CODE)
    assert rows.SOURCE_CODE["sketch"] == len(SOURCES)
    assert rows.SOURCES[:-1] == SOURCES
    assert rows.SOURCE_CODE["sketch"] in rows.ENCODED


@pytest.mark.usefixtures("four_kinds")
def test_a_fourth_kind_is_placed_and_its_scheme_is_known():
    from core_world import scheme_settings

    from collage_mpi.core.schemes import SCHEMES, make_scheme
    from collage_mpi.errors import EnvironmentFault, UsageError
    from collage_mpi.settings.run_settings import RedundancySettings
    from collage_mpi.system.fields import setting

    @dataclass(frozen=True, repr=False)
    class Sketched(RedundancySettings):
        sketch_ranks: int = setting(2, "ranks that hold the sketch network", at_least=1)

    assert SCHEMES[-2:] == ("sketch", "collage-replicate")
    assert make_scheme(scheme_settings("sketch")).needs == {"single", "sketch"}
    found = Sketched(side=2, scheme="sketch").place(7)
    assert found.describe() == "0 coordinator, 1-4 single, 5-6 sketch"
    with pytest.raises(EnvironmentFault, match=r"2 sketch ranks needs 7 .*4 single \+ 2 sketch"):
        Sketched(side=2, scheme="sketch").place(6)
    with pytest.raises(UsageError, match="sketch_ranks is 0; it needs at least 1"):
        Sketched(side=2, scheme="sketch", sketch_ranks=0)


@pytest.mark.usefixtures("four_kinds")
def test_a_scheme_of_known_kinds_is_one_class():
    from collage_mpi.errors import UsageError
    from collage_mpi.settings.run_settings import RunSettings

    settings = RunSettings(scheme="collage-replicate", assign="turn", endgame="off")
    assert (settings.n_singles, settings.world_size) == (18, 20)
    assert settings.labels() == {"scheme": "collage-replicate 2", "accept": "auto"}
    with pytest.raises(UsageError, match="each copy of an image needs a rank of its own"):
        RunSettings(scheme="collage-replicate", singles=1)


@pytest.mark.usefixtures("four_kinds")
def test_a_fourth_kind_is_in_summary_tables_timeline_and_figures(tmp_path):
    from results_harness import make_run

    from collage_mpi.results import read_results, summarise
    from collage_mpi.results.render import compare, render_comparison, render_summary
    from collage_mpi.results.timeline import look_of, looks, make_timeline
    from collage_mpi.results.verify import verify_run

    path = make_run(tmp_path / "run", 90, kind="sketch")
    run = read_results(path)
    assert verify_run(path).ok
    price = summarise(run)["price"]
    assert price["sketch_share"] > 0
    assert price["collage_share"] == 0
    assert (price["single_ranks"], price["sketch_ranks"], price["collage_ranks"]) == (9, 1, 0)
    shown = render_summary(summarise(run), width=200)
    assert "of images the sketch resolved" in shown
    assert "9 hold the single network, 1 the sketch network" in shown
    assert "sketch share" in render_comparison(compare([run]), width=200)
    found = make_timeline(run, 3, 5)
    assert found.ranks[10] == "sketch 10"
    used = {look_of(bar) for bar in found.bars if bar.rank == 10 and bar.state == "used"}
    assert used == {"sketch"}
    assert looks(found)["sketch"] == ("#F0E442", "sketch answer that resolved images")
