"""A collage network that is much weaker than the single: said before, after and in evaluate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collage_mpi.job.plan import warn_of_weak_collage
from collage_mpi.models import describe
from collage_mpi.models.info import NetworkInfo
from collage_mpi.results.render import render_summary
from collage_mpi.results.statistics import weaker_by
from collage_mpi.system.fields import with_shipped


@pytest.mark.parametrize(
    ("single", "collage", "expected"),
    [
        ((830, 1000), (560, 1000), 0.27),
        ((940, 1000), (936, 1000), None),  # small
        ((94, 100), (88, 100), None),  # may be chance
        ((9400, 10000), (8800, 10000), 0.06),
        ((9400, 10000), (9000, 10000), None),  # sure, but below 5 points
        ((560, 1000), (830, 1000), None),
        ((0, 0), (5, 10), None),
    ],
)
def test_a_gap_counts_where_it_is_large_and_no_chance(
    single: tuple[int, int], collage: tuple[int, int], expected: float | None
) -> None:
    found = weaker_by(single, collage)
    assert found == (None if expected is None else pytest.approx(expected))


def shipped(kind: str, name: str, **training: Any) -> NetworkInfo:
    info = describe(with_shipped(f"shipped:{name}.safetensors"), kind)
    assert info is not None
    known = info.metadata["training"]
    return replace(info, metadata={**info.metadata, "training": {**known, **training}})


def test_a_run_says_at_its_start_what_the_records_know(
    caplog: pytest.LogCaptureFixture,
) -> None:
    single = shipped("single", "fashion_single")
    warn_of_weak_collage(single, shipped("collage", "fashion_collage_side3"))
    assert caplog.messages == []
    weak = shipped("collage", "fashion_collage_side3", validation_accuracy=0.56)
    warn_of_weak_collage(single, weak)
    (told,) = caplog.messages
    caplog.clear()
    assert (
        "the collage network was right on 56.0% of the images, the single network on 94.3%" in told
    )
    assert "costs about 38 percentage points" in told
    assert "--confidence 0.95" in told
    for odd in ({"validation_accuracy": "high"}, {"validation_images": -1}):
        warn_of_weak_collage(single, replace(weak, metadata={"training": odd}))
    warn_of_weak_collage(single, replace(weak, metadata={"training": None}))
    assert caplog.messages == []


def test_the_summary_says_what_it_cost(tmp_path: Path) -> None:
    from results_harness import make_run

    from collage_mpi.results import read_results, summarise

    summary = summarise(read_results(make_run(tmp_path / "run", 90)))
    assert "WEAK" not in render_summary(summary)
    accuracy = summary["accuracy"]
    accuracy["overall"]["n"] = 1000
    accuracy["by_source"]["single"].update(n=600, correct=498, accuracy=0.83)
    accuracy["by_source"]["collage"].update(n=400, correct=224, accuracy=0.56)
    told = " ".join(render_summary(summary).split())
    assert "WEAK COLLAGE: 56.00 % of its answers are right, 83.00 % of the single network's" in told
    assert "about 10.8 points of this run's accuracy are lost" in told  # 27 points of 40 %
