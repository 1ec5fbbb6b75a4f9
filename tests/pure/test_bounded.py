"""What is held of a run does not grow with it: it is read a part at a time."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from memory import peak_bytes
from results_harness import as_two_teams, described, fill, input_digest, make_run, manifest

from collage_mpi.report.page import _chosen, chart_data, excerpt, render_page
from collage_mpi.report.tables import confusions, ranks
from collage_mpi.results import (
    Results,
    lease_files,
    number_sets,
    read_results,
    statistics,
    summarise,
    verify_run,
)
from collage_mpi.results.manifest import began_ns, clock_offsets_ns, launch_of
from collage_mpi.results.number_sets import InputCoverage, keys_digest
from collage_mpi.results.parts import read_ledger
from collage_mpi.results.reader import Run, StoredRun, open_run
from collage_mpi.results.sole import SoleWriter
from collage_mpi.results.statistics import (
    PERCENTILES,
    BoundedSample,
    TimedSample,
    percentile_name,
    quantile_interval,
)
from collage_mpi.results.summary import Tally, TaskTally
from collage_mpi.rows import IMAGES, KEY_ROW, KIND_CODE, TASK_ROW, TableLayout

RNG = np.random.default_rng(22)


class Chopped(Run):
    """The rows of a run in memory as a run on the disk would give them, some at a time."""

    bound: ClassVar[int | None] = 32

    def __init__(self, of: Results, size: int = 7) -> None:
        self.path, self.manifest, self.complete = of.path, of.manifest, of.complete
        self._of, self._size = of, size

    def _pieces(self, rows: np.ndarray) -> Sequence[Callable[[], np.ndarray]]:
        starts = range(0, len(rows), self._size)
        return [lambda start=start: rows[start : start + self._size] for start in starts]

    def pieces(self, table: TableLayout) -> Sequence[Callable[[], np.ndarray]]:
        return self._pieces(getattr(self._of, table.name))

    def other_pieces(self) -> Sequence[Callable[[], np.ndarray]]:
        return self._pieces(self._of.others)

    def rows_of(self, table: TableLayout) -> int:
        return self._of.rows_of(table)


def close_to(found: Any, exact: Any, rel: float) -> bool:
    """Equal, but for floats, which may be off by a share of their value."""
    if isinstance(exact, dict):
        return found.keys() == exact.keys() and all(
            close_to(found[key], exact[key], rel) for key in exact
        )
    if isinstance(exact, list | tuple):
        return len(found) == len(exact) and all(map(close_to, found, exact, [rel] * len(exact)))
    return found == (pytest.approx(exact, rel=rel) if isinstance(exact, float) else exact)


# ---- samples ----------------------------------------------------------------


@pytest.mark.parametrize("n", [100, 101, 200_000])
def test_a_sample_beyond_its_bound_is_right_to_a_twentieth_of_a_percent(n: int) -> None:
    values = np.concatenate([RNG.lognormal(3, 1, n - 2), [-4.0, 0.0]])
    drawn = BoundedSample(n // 2)
    for some in np.array_split(values, 7):
        drawn.add(some)
    exact = described(values)
    found = drawn.spread(n)
    assert (drawn.exact, found.n, found.maximum) == (False, n, exact.maximum)
    for name in ("percentiles", "mean", "std"):
        assert close_to(getattr(found, name), getattr(exact, name), 2**-11), name
    assert found.over_3_medians == pytest.approx(exact.over_3_medians, abs=0.002)
    assert drawn.median == pytest.approx(float(np.median(values)), rel=0.05)
    assert len(drawn.steps()[0]) <= min(n, 20_000)  # of each a number and a count
    assert drawn.at_rank(1) == -4.0
    assert drawn.at_rank(n) == pytest.approx(exact.maximum, rel=2**-11)


def test_a_sample_within_its_bound_is_exact() -> None:
    values = RNG.lognormal(3, 1, 1000)
    drawn = BoundedSample(1000)
    for some in np.array_split(values, 3):
        drawn.add(some)
    assert drawn.exact
    assert drawn.spread(1000) == replace(described(values), intervals={})
    x, below = drawn.steps()
    assert (list(x), below[-1]) == (sorted(values), 1000)
    assert (drawn.at_rank(0), drawn.at_rank(2), drawn.at_rank(2000)) == (x[0], x[1], x[-1])


def test_a_sample_that_came_in_another_order_is_looked_at_in_that_of_time() -> None:
    values = RNG.lognormal(0, 0.3, 400) * np.repeat(RNG.lognormal(0, 0.5, 20), 20)
    timed = TimedSample(None)
    for some in np.array_split(RNG.permutation(400), 3):
        timed.add_at(values[some], some.astype([("at", "<i8")]))
    assert timed.spread(400) == described(values)
    assert timed.spread(400) == described(values), "asked again"


@pytest.mark.parametrize("n", [4000, 400_000])
def test_intervals_beyond_the_bound_are_those_of_all_values(n: int) -> None:
    """Slow spells of 20 values make the sample worth less, which a block of it tells too."""
    values = RNG.lognormal(0, 0.3, n) * np.repeat(RNG.lognormal(0, 0.3, n // 20), 20)
    timed = TimedSample(1000)
    keys = np.zeros(n, [("session", "<u2")])
    for some, key in zip(np.array_split(values, 50), np.array_split(keys, 50), strict=True):
        timed.add_at(some, key)
    found = timed.spread(n).intervals
    for q in PERCENTILES[:3]:
        exact = quantile_interval(values, q)
        interval = found[percentile_name(q)]
        assert interval.samples == pytest.approx(exact.samples, rel=0.4)
        assert interval.ends == pytest.approx(exact.ends, rel=0.02)


def test_the_first_double_is_the_lowest_of_all_pieces() -> None:
    marks = InputCoverage({"shards": [{"count": 3}], "rows": 3}, 9)
    for row, lowest in ((1, 1), (2, 1), (0, 0)):
        marks.add(np.array([(0, row), (0, row)], KEY_ROW))
        assert marks.first_double == (0, lowest)


def test_sessions_that_ran_at_the_same_time_belong_together() -> None:
    told = [(5, 1e-9), (None, None), (9, 3e-9), (7, None), (12, 1e-9), (13, 4e-9), (30, None)]
    sessions = [
        {"session": number, "final": {"began_ns": at_ns, "seconds": seconds}}
        for number, (at_ns, seconds) in enumerate(told, 1)
    ]
    assert began_ns({"sessions": sessions}) == {1: 5, 3: 9, 4: 7, 5: 12, 6: 13, 7: 30}
    assert launch_of({"sessions": sessions}) == {3: 3, 5: 3, 6: 3}
    offsets = clock_offsets_ns({"sessions": sessions}, 5)
    assert offsets == {3: -3, 5: 0, 6: 1}
    assert clock_offsets_ns({"sessions": sessions}, 1) == {1: 0}
    for number in (3, 5):  # of one process: the later one has begun when the other one had ended
        sessions[number - 1]["job"] = {"host": "a", "pid": 7}
    assert launch_of({"sessions": sessions}) == {5: 5, 6: 5}


# ---- summaries and proofs ---------------------------------------------------


def test_a_stored_run_is_summarised_as_one_in_memory(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 900, errors=frozenset({7, 400}), status="complete_with_errors")
    assert close_to(summarise(open_run(run)), summarise(read_results(run)), 1e-12)


@pytest.mark.parametrize("of", ["one", "teams", "unlabelled", "open"])
def test_a_run_beyond_the_bound_has_the_same_counts_and_near_times(tmp_path: Path, of: str) -> None:
    more = {"open_loop": True} if of == "open" else {}
    run = read_results(make_run(tmp_path / "run", 1800, labels=of != "unlabelled", **more))
    run = as_two_teams(run) if of == "teams" else run
    exact, found = summarise(run), summarise(Chopped(run))
    for summary in (exact, found):
        rows = [*summary["latency"].values(), *summary.get("teams", [])]
        for row in rows:  # of a share of some values, and of what blocks of them tell
            for key in [key for key in row if "ci95" in key or key == "over_3_medians"]:
                del row[key]
        for part in summary["parts_ms"].values():  # the lower one of two in the middle
            del part["median"]
    assert close_to(found, exact, 2**-11)


def test_the_row_of_an_image_that_was_asked_again_is_the_later_one(tmp_path: Path) -> None:
    full = manifest(90)
    first = SoleWriter(tmp_path / "run", full, rows_per_part=16)
    fill(first, full, range(90), errors=frozenset({3, 5}))
    first.close("complete_with_errors")
    asked = read_ledger(tmp_path / "run").errors
    assert asked == ((3, 4), (5, 6))
    again = SoleWriter(tmp_path / "run", full, asked, rows_per_part=16)
    fill(again, full, [3, 5], errors=frozenset({5}))
    again.close("complete_with_errors", summary=True)
    stored, run = open_run(tmp_path / "run"), read_results(tmp_path / "run")
    images = np.concatenate([*stored.chunks(IMAGES)])
    np.testing.assert_array_equal(np.sort(images, order=["shard", "row"]), run.images)
    assert close_to(summarise(stored), summarise(run), 1e-12)
    assert close_to(again.summary, summarise(run), 1e-12)
    assert Tally(stored).inventory.rows["images", 1] == 88  # the older rows are gone
    assert verify_run(tmp_path / "run").headline == verify_run(tmp_path / "run", run).headline


@pytest.mark.parametrize("done_ns", [(1, 1, 1, 2, 2), (1, 1, 2, 2, 2), (1, 2, 2, 2, 3)])
def test_tasks_of_a_message_stay_together_where_rows_are_let_go(done_ns: Sequence[int]) -> None:
    """What a batch took is shared by all its tasks, so none may be counted without the others."""
    rows = np.zeros(5, TASK_ROW)
    rows["done_ns"], rows["compute_ns"], rows["items"] = done_ns, 6_000_000_000, 1
    rows["kind"] = KIND_CODE["single"]
    of_all = {bound: TaskTally(SimpleNamespace(bound=bound, manifest={})) for bound in (None, 4)}
    for tally in of_all.values():
        tally.add(rows)
        tally.finish()
    assert of_all[4].work_s == of_all[None].work_s == pytest.approx(6 * len(set(done_ns)))


def test_the_report_of_a_long_run_looks_at_some_parts_and_at_all_extremes(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 1800))
    longest_ns = run.groups["latency_ns"].max()
    run.groups["latency_ns"][101] = longest_ns + 1  # of a part that is not among those kept
    chopped = Chopped(run)
    tally, whole = Tally(chopped), Tally(run)
    some = excerpt(chopped, tally)
    assert some.every == 125
    assert len(some.tasks) < len(run.tasks) / 4
    shown = chart_data(some, "x", tally=tally)
    exact = chart_data(run, "x", tally=whole)
    assert shown["timeline"] == exact["timeline"]
    assert max(shown["time"]["slowest"]) == max(exact["time"]["slowest"])
    assert shown["curve"]["n"] == exact["curve"]["n"]
    assert close_to(shown["curve"]["marks"], exact["curve"]["marks"], 2**-10)
    assert confusions(chopped) == confusions(run)
    for labelled in (True, False):
        best, n = _chosen(chopped, labelled, 24)
        of_all, of_n = _chosen(run, labelled, 24)
        assert n == of_n
        np.testing.assert_array_equal(best, of_all)
    told, tables = ranks(some, {5})
    assert "one in 125 of its parts" in " ".join(tables[0].notes)
    assert "rank 5" not in told
    assert "one in" not in " ".join(ranks(excerpt(run, whole))[1][0].notes)


def test_the_end_the_proof_and_the_report_hold_no_more_of_a_longer_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory at its most, counted by Python and numpy, of 3,600 images and of 36,000.

    With wider bins, so that the shorter run has met most of them too.
    """
    monkeypatch.setattr(StoredRun, "bound", 512)
    monkeypatch.setattr(statistics, "_SHIFT", 49)
    monkeypatch.setattr(lease_files, "GROUP_BYTES", 1 << 18)

    def end(run: Path, rows: int) -> None:
        full = manifest(rows)
        writer = SoleWriter(run, full, rows_per_part=1024)
        fill(writer, full, range(rows))
        tracemalloc.clear_traces()  # what the writer holds is not of the end
        writer.close("complete", summary=True)
        assert verify_run(run).ok

    end(tmp_path / "before", 3_600)  # so that all modules and templates are there
    render_page([tmp_path / "before"])
    ends, pages = [], []
    for rows in (3_600, 36_000):
        run = tmp_path / str(rows)
        ends.append(peak_bytes(partial(end, run, rows)))
        pages.append(peak_bytes(partial(render_page, [run])))
    assert ends[1] < 1.2 * ends[0]
    assert pages[1] < 1.2 * pages[0]


@pytest.mark.parametrize("limit", [200_000, 1234])
def test_the_digest_of_an_input_is_taken_a_piece_at_a_time(limit: int) -> None:
    starts = np.array([0, 70_000, 70_001, 200_000])
    order = np.random.default_rng(1).permutation(200_000)[:limit]
    shard = np.searchsorted(starts, order, side="right") - 1
    ascending = np.array_split(np.sort(order), 7)
    assert keys_digest(ascending, starts) == input_digest(shard, order - starts[shard])


def test_the_digest_of_a_run_is_the_same_whatever_is_taken_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Tally(read_results(make_run(tmp_path / "run", 900))).inventory.input
    whole = found.digest()
    monkeypatch.setattr(number_sets, "_RUN", 64)
    assert found.digest() == whole


def test_images_beyond_the_bits_count_like_the_others() -> None:
    shards = [{"count": 1 << 40}, {"count": 9}]
    found = number_sets.InputCoverage({"shards": shards, "rows": 4}, rows=2)
    images = np.array([(1, 3), (0, 500), (0, 2), (1, 3)], KEY_ROW)
    found.add(images)
    assert (found.rows, found.doubles, found.foreign, found.missing) == (4, 1, 0, 1)
    assert np.concatenate([*found.seen.ascending()]).tolist() == [2, 500, (1 << 40) + 3]
    assert found.digest() == input_digest(np.array([0, 0, 1]), np.array([2, 500, 3]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1 << 40, (1 << 63) - 1])
def test_images_that_only_a_manifest_claims_take_no_memory(tmp_path: Path, count: int) -> None:
    run = make_run(tmp_path / "run", 90, labels=False)
    stored = json.loads((run / "run.1.json").read_text())
    claimed = stored["settings"]
    claimed["shards"][1]["count"], claimed["rows"] = count, min(45 + count, 1 << 62)
    (run / "run.1.json").write_text(json.dumps(stored))

    def read() -> None:
        report, summary = verify_run(run), summarise(open_run(run))
        assert (report.status, report.missing) == ("damaged", claimed["rows"] - 90)
        assert summary["predictions"]["examples"][0]["row"] == 0

    assert peak_bytes(read) < 4 << 20
