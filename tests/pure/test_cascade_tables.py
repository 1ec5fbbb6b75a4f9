"""The tables of what the shipped collage networks save: made again from what is committed."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import re
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid

ROOT = Path(__file__).parents[2]
ANSWERS = ROOT / "analysis" / "answers"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "analysis" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


savings, cells = script("savings"), script("cascade_cells")
cascade = script("cascade")


def test_the_table_of_the_docs_is_what_the_answers_give(capsys):
    assert savings.main([]) == 0
    assert capsys.readouterr().out in (ROOT / "analysis" / "reports" / "saving.md").read_text()


def test_the_ratios_are_those_of_the_cards():
    told = {
        "float32": r"service time / single network's \| \*\*([0-9.]+)\*\*",
        "products": r"MFLOP / single network's \| ([0-9.]+)",
    }
    rows = csv.DictReader((ANSWERS / "ratios.csv").open(newline=""))
    for row in rows:
        if row["network"] == "fashion_quick":  # it does not come with the package
            continue
        card = (ROOT / "analysis" / "reports" / "cards" / f"{row['network']}.md").read_text()
        for column, pattern in told.items():
            found = re.search(rf"\| {pattern} \|", card)
            assert found is not None
            assert float(row[column]) == float(found[1])


def test_the_quick_network_is_asked_in_batches_that_take_as_long_as_measured():
    found = cascade.networks(ANSWERS, "float32")
    entry = next(e for e in cascade.entries(found) if e.name == "quick network")
    flags = dict(entry.flags)
    assert flags["scheme"] == "cascade"
    assert flags["first"] == (entry.network.name,) == ("fashion_quick",)
    batch = flags["cost_ratio"] * (1 + 8 * flags["batch_cost"])
    assert batch == pytest.approx(entry.network.ratio) == 0.51
    with np.load(ANSWERS / "fashion_quick.npz", allow_pickle=False) as file:
        sure = file["stage1_score"] >= flags["confidence"]
    assert 0.9 < sure.mean() < 0.95


@pytest.mark.parametrize(
    ("ratios", "code", "said"),
    [
        (None, 3, "ratios.csv cannot be read"),
        ("network,float32\nfashion_collage_side3,1\n", 4, "needed are a header"),
        ("network,float32,bfloat16\nfashion_collage_side3,1,x\n", 4, "needed are a header"),
        ("network,float32,bfloat16\nfashion_collage_side3,1,1\n", 3, "side3.npz: cannot be read"),
    ],
)
def test_a_folder_without_what_is_needed_is_a_line(ratios, code, said, tmp_path, capsys):
    if ratios is not None:
        (tmp_path / "ratios.csv").write_text(ratios)
    assert savings.main(["--answers", str(tmp_path)]) == code
    assert said in capsys.readouterr().err


class Reader:
    """A network that says what stands in each cell: its pixels' value as a class, blank as 0."""

    classes = 5

    def __init__(self, side: int, px: int) -> None:
        self.side, self.px, self.seen = side, px, []

    def predict(self, collages: np.ndarray) -> np.ndarray:
        n = len(collages)
        corners = collages[:, :: self.px, :: self.px, 0].reshape(n, -1)  # (n, cells)
        self.seen += corners.tolist()
        return np.eye(self.classes, dtype=np.float32)[corners]


def test_the_first_cells_are_filled_in_file_order_and_the_others_are_blank():
    images = np.array([1, 2, 3, 4, 3, 2, 1], np.uint8).repeat(4).reshape(7, 2, 2, 1)
    network = Reader(2, 2)
    found = cells.answers(network, Encoder(Grid(2, 2), (2, 2, 1)), images, 3)
    assert network.seen == [[1, 2, 3, 0], [4, 3, 2, 0]]  # the seventh image stays out
    assert found.argmax(1).tolist() == [1, 2, 3, 4, 3, 2]
    found = cells.answers(network, Encoder(Grid(2, 2), (2, 2, 1)), images, 1)
    assert found.argmax(1).tolist() == [1, 2, 3, 4, 3, 2, 1]


def test_sure_cells_are_counted_beside_the_single_network():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.8, 0.2], [0.6, 0.4]])
    labels, single_right = np.array([0, 0, 0, 0, 0]), np.array([True, True, False, True, True])
    assert cells.counted(scores, labels, single_right, 0.8) == (4, 3, 2, 2, 1)
    row = cells.told(np.array([cells.counted(scores, labels, single_right, 0.8)]), 1)
    assert row == "75.0%; 66.67% (66.67%); +0.00 (70.71)"
    assert cells.told(np.zeros((1, 5), int), 2) == ""


def test_counts_are_kept_and_printed_again(tmp_path, capsys):
    counts = np.array([[100, 80, 79, 77, 76], [98, 70, 69, 68, 68]])
    cells.save(tmp_path / "c.npz", {"side3": cells.Cells(0.75, counts)})
    assert cells.main(["--from", str(tmp_path / "c.npz")]) == 0
    told = capsys.readouterr().out
    assert "| images | side3, score 0.75 |" in told
    assert "| 1 | 80.0%; 98.75% (96.25%); +2.00 (3.98) |" in told
    (tmp_path / "c.npz").write_bytes(b"x")
    assert cells.main(["--from", str(tmp_path / "c.npz")]) == 4
    assert "no file of cascade_cells.py" in capsys.readouterr().err
    assert cells.main(["--from", str(tmp_path / "none.npz")]) == 3


def test_a_data_set_that_is_not_there_is_asked_for(tmp_path, capsys):
    out = tmp_path / "c.npz"
    assert cells.main(["--out", str(out), "--data", str(tmp_path)]) == 3
    assert "apt install dataset-fashion-mnist" in capsys.readouterr().err
    assert not out.exists()


def test_the_images_are_read_and_stdout_is_left_to_the_table(tmp_path, capsys):
    images = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8)
    for name, head, body in (
        ("images-idx3", (2051, 3, 28, 28), images),
        ("labels-idx1", (2049, 3), np.array([7, 0, 9], np.uint8)),
    ):
        words = np.array(head, ">u4").tobytes() + body.tobytes()
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(words))
    found, labels = cells.test_images(tmp_path)
    assert (found.shape, labels.tolist()) == ((3, 28, 28, 1), [7, 0, 9])
    assert (found.reshape(-1) == images).all()
    assert capsys.readouterr().out == ""


def test_the_table_of_cells_is_what_was_counted(capsys):
    assert cells.main(["--from", str(ANSWERS / "cells.npz")]) == 0
    assert capsys.readouterr().out == (ANSWERS / "cells.md").read_text()


def test_a_slow_rank_is_drawn_by_the_placement_and_serves_a_sixtieth():
    name = "one rank 60 x slow"
    assert cascade.service_times(name, 12, 11)["slow_ranks"] == ["2:60"]
    assert cascade.service_times(name, 12, 3)["slow_ranks"] == ["1:60"]
    mean_s = 0.1 * np.exp(0.2**2 / 2)  # of a lognormal time
    assert cascade.capacity(name, 0, 2) == pytest.approx((1 + 1 / 60) / mean_s, rel=0.02)
    # A twentieth of the time a rank serves a fifth: images of a spell are fewer than its share.
    assert cascade.capacity("spells", 0, 40) == pytest.approx(40 * 0.96 / mean_s, rel=0.02)
    assert cascade.service_times("t.npy", 3, 11)["straggler"] == "t.npy"


def test_all_of_a_placement_is_simulated_before_the_next():
    found = cascade.networks(ANSWERS, "float32")
    given = {"placements": 2, "trace": ["spells", "c=c.npy"], "ranks": [11, 33], "images": 9}
    args = Namespace(**given, loads=cascade.LOADS, only=None)
    work = list(cascade.pending(args, found, "", set()))
    assert [one[4] for one in work] == sorted(one[4] for one in work)
    assert {one[1:3] for one in work} == {("spells", "spells"), ("c.npy", "c")}
    entry, *_ = work[0]
    done = {("spells", "closed", "11", entry.name, "0")}
    assert len(list(cascade.pending(args, found, "", done))) == len(work) - 1
    args.loads, args.only = [cascade.as_load("closed"), cascade.as_load("0.8")], "^cascade, side5"
    some = list(cascade.pending(args, found, "", set()))
    assert {(one[0].name, one[3]) for one in some} == {
        ("cascade, side5", None),
        ("cascade, side5", 0.8),
    }


def test_the_tables_have_the_median_and_the_worst_placement():
    columns = ("images_per_s", *cascade.SHOWN)
    rows = [
        {"trace": "c", "ranks": 11, "load": load, "entry": entry, "placement": seed}
        | dict.fromkeys(columns, rate * (1 + seed))
        for load in ("closed", "0.8")
        for entry, rate in (("none, pull", 1.0), ("cascade", 6.0))
        for seed in range(3)
    ]
    told = cascade.tables(rows)
    assert "| cascade | 6.00 (6.00-6.00) | +12.00 | 12, 12 | 12 |" in told
    assert "c, 11 ranks: group_p99_ms by load, median (worst)" in told
    assert "| cascade |  | 12 (18) |  |  |  |" in told
    told = cascade.tables([row for row in rows if row["load"] != "closed"])
    assert "closed loop" not in told
    assert "| cascade |  | 12 (18) |  |  |  |" in told
