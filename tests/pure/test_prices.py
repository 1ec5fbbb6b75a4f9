"""One run made by hand, with every figure of its summary worked out from its rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from results_harness import make_run
from rows_by_name import add_image, add_task

from collage_mpi.results import read_results, summarise, verify_run, write_summary
from collage_mpi.results.sole import SoleWriter

MS = 1_000_000
SECOND = 1000 * MS


def manifest() -> dict[str, Any]:
    return {
        "run_id": "by-hand",
        "session": 1,
        "settings": {"scheme": "collage", "side": 2, "straggler": "lognormal"},
        "shards": [{"path": "in/a.h5", "fingerprint": "aa" * 32, "count": 28}],
        "rows": 28,
        "order": "file",
        "limit": None,
        "class_names": ["a", "b"],
        "scheme": "collage",
        "accept": "first",
        "mode": "carry, depth 1",
        "side": 2,
        "straggler": "lognormal, by hand",
        "world": [
            {"rank": 0, "kinds": []},
            *({"rank": rank, "kinds": ["single"]} for rank in range(1, 5)),
            {"rank": 5, "kinds": ["collage"]},
        ],
    }


# By group and cell: source, rank, then ms: latency, read, decode, compute, held.
# Group 0 is warm-up: nothing of it may enter a time or a price.
IMAGES = [
    [("single", r, 700, 300, 90, 200, 100) for r in (1, 2, 3, 4)],
    [
        ("single", 1, 40, 2, 1, 30, 0),
        ("single", 2, 50, 2, 1, 30, 10),
        ("collage", 5, 60, 2, 3, 40, 0),
        ("error", 0, 80, 2, 0, 0, 0),
    ],
    [
        ("single", 1, 20, 4, 1, 10, 0),
        ("retry", 3, 90, 4, 2, 10, 40),
        ("collage", 5, 30, 4, 5, 12, 0),
        ("collage", 5, 30, 4, 5, 12, 0),
    ],
    *([("single", r, 20, 4, 1, 10, 0) for r in (1, 2, 3, 4)] for _ in range(3)),
    [
        *(("single", r, 20, 4, 1, 10, 0) for r in (1, 2, 3)),
        ("single", 4, 400, 4, 1, 380, 0),
    ],
]
ENCODE_MS = (50, 6, 10, 0, 0, 0, 0)
WRONG = {(0, 2), (1, 1)}  # group, cell: predicted another class

# Rank, kind, group, items, resolved, sent and done (ms after the group's start), compute, held,
# outcome. Those of group 1 on rank 4 that end together were one message.
TASKS = [
    *((r, "single", 0, 1, 1, 0, 690, 200, 100, "answered") for r in (1, 2, 3, 4)),
    (5, "collage", 0, 4, 0, 0, 900, 500, 300, "answered"),
    (1, "single", 1, 1, 1, 0, 40, 30, 0, "answered"),
    (2, "single", 1, 1, 1, 0, 50, 30, 10, "answered"),
    (3, "single", 1, 1, 0, 0, 130, 20, 100, "answered"),
    (4, "single", 1, 1, 0, 0, 5, 0, 0, "failed"),
    (5, "collage", 1, 4, 1, 1, 60, 40, 0, "answered"),
    (4, "single", 1, 1, 0, 10, 70, 24, 0, "answered"),
    (4, "single", 1, 1, 0, 10, 70, 24, 0, "answered"),
    (1, "single", 2, 1, 1, 0, 20, 10, 0, "answered"),
    (2, "single", 2, 1, 0, 0, 35, 0, 0, "lost"),
    (3, "single", 2, 1, 1, 35, 90, 10, 40, "answered"),
    (3, "single", 2, 1, 0, 0, 30, 0, 0, "skipped"),
    (4, "single", 2, 1, 0, 0, 80, 0, 0, "unfinished"),
    (5, "collage", 2, 3, 2, 1, 30, 12, 0, "answered"),
    *((r, "single", g, 1, 1, 0, 20, 10, 0, "answered") for g in (3, 4, 5) for r in (1, 2, 3, 4)),
    *((r, "single", 6, 1, 1, 0, 20, 10, 0, "answered") for r in (1, 2, 3)),
    (4, "single", 6, 1, 1, 0, 400, 380, 0, "answered"),
]


def write(out: Path) -> Path:
    writer = SoleWriter(out, manifest())
    for group, images in enumerate(IMAGES):
        t0_ns, warmup = group * SECOND, group == 0
        for cell, (source, rank, latency, read, decode, compute, held) in enumerate(images):
            add_image(writer,
                shard=0, row=4 * group + cell, group=group, cell=cell, source=source,
                answered=source != "error", predicted=int((group, cell) in WRONG), score=0.5,
                has_label=True, label=0, rank=rank, t0_ns=t0_ns, latency_ns=latency * MS,
                read_ns=read * MS, encode_ns=ENCODE_MS[group] * MS, decode_ns=decode * MS,
                compute_ns=(compute + held) * MS, warmup=warmup,
                reason="boom" if source == "error" else "",
            )  # fmt: skip
    for number, row in enumerate(TASKS):
        rank, kind, group, items, resolved, sent, done, compute, held, outcome = row
        add_task(writer,
            task=number, rank=rank, kind=kind, group=group, attempt=1, items=items,
            resolved=resolved, sent_ns=group * SECOND + sent * MS,
            done_ns=group * SECOND + done * MS, compute_ns=(compute + held) * MS,
            outcome=outcome, warmup=group == 0,
        )  # fmt: skip
    writer.close(
        "complete_with_errors", cost_ratio=1.25,
        poll={"longest_gap_ns": 1_500_000}, lost=[{"rank": 4, "why": "killed"}],
    )  # fmt: skip
    return out


GROUP_MS = [80, 90, 20, 20, 20, 400]
IMAGE_MS = [40, 50, 60, 80, 20, 90, 30, 30, *[20] * 15, 400]


def test_every_figure_of_the_summary(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    assert verify_run(run).problems == []
    summary = write_summary(read_results(run))
    assert json.loads((run / "summary.json").read_text()) == summary

    def share(correct: int, n: int, low: float, high: float) -> dict[str, Any]:
        ends = pytest.approx([low, high], abs=5e-5)
        return {"n": n, "correct": correct, "accuracy": pytest.approx(correct / n), "ci95": ends}

    def part(n: int, median: float, total: float) -> dict[str, Any]:
        return {"n": n, "median": median, "mean": pytest.approx(total / n)}

    # Work: 30 + 40 + 120 + 40, 24 of two together; 10 + 50 + 12; 16 x 10 less one, 380.
    work_s, wasted_s = 0.326 + 0.150 + 0.380, 0.120 + 0.024
    span_s = 5.4  # from the start of group 1, at 1 s, to the end of group 6, at 6.4 s
    wanted: dict[str, Any] = {
        "run": str(run),
        "run_id": "by-hand",
        "complete": True,
        "status": "complete_with_errors",
        "scheme": "collage, first",
        "mode": "carry, depth 1",
        "batch": None,  # as earlier versions wrote it
        "side": 2,
        "straggler": "lognormal, by hand",
        "order": "file",
        "rows": {
            "expected": 28, "found": 28, "answered": 27, "errors": 1, "groups": 7,
            "warmup_groups": 1, "warmup_images": 4, "sessions": 1,
        },
        "latency": {
            "group": {
                "n": 6, "groups": 6, "independent": 6,
                "p50_ms": 20.0, "p95_ms": None, "p99_ms": None, "p99.9_ms": None,
                # 6 values: the least and the largest enclose the median but for 2 / 64.
                "p50_ci95_ms": [20.0, 400.0],
                "p95_ci95_ms": None, "p99_ci95_ms": None, "p99.9_ci95_ms": None,
                "p50_ci95_samples": 6, "p95_ci95_samples": 6, "p99_ci95_samples": 6,
                "p99.9_ci95_samples": 6,
                "mean_ms": 105.0, "std_ms": pytest.approx(stdev(GROUP_MS)), "max_ms": 400.0,
                "over_3_medians": 3 / 6,
            },
            "image": {
                "n": 24, "groups": 6, "independent": 6,
                "p50_ms": 20.0, "p95_ms": None, "p99_ms": None, "p99.9_ms": None,
                "mean_ms": pytest.approx(1100 / 24), "std_ms": pytest.approx(stdev(IMAGE_MS)),
                "max_ms": 400.0, "over_3_medians": 3 / 24,
            },
        },
        "support": {"p50": 6, "p95": 72, "p99": 368, "p99.9": 3688},
        "parts_ms": {  # of the 23 that were answered; encode of the three from a collage
            "read": part(23, 4.0, 3 * 2 + 20 * 4),
            "encode": part(3, 10.0, 6 + 10 + 10),
            "wait": part(23, 6.0, 8 + 8 + 12 + 6 + 36 + 4 + 4 + 15 * 6 + 16),
            "compute": part(23, 10.0, 30 + 30 + 40 + 10 + 10 + 12 + 12 + 15 * 10 + 380 + 10 + 40),
            "decode": part(23, 1.0, 1 + 1 + 3 + 1 + 2 + 5 + 5 + 16),
        },
        "accuracy": {
            "overall": share(25, 28, 0.72804, 0.96288),
            "by_source": {
                "single": share(21, 23, 0.73204, 0.97582),
                "collage": share(3, 3, 0.43850, 1.0),
                "retry": share(1, 1, 0.20655, 1.0),
                "error": share(0, 1, 0.0, 0.79345),
            },
        },
        "audit": None,
        "promise": None,
        "predictions": None,
        "price": {
            "collage_share": pytest.approx(3 / 23),
            "stage1_share": 0.0, "stage2_share": 0.0, "stage3_share": 0.0,
            "cost_ratio": 1.25,
            "wasted_work": pytest.approx(wasted_s / work_s),
            "wasted_s": pytest.approx(wasted_s), "work_s": pytest.approx(work_s),
            "saving": None,
            "work_s_of": {"single": pytest.approx(0.804), "collage": pytest.approx(0.052)},
            "ranks": 6, "coordinators": 1, "single_ranks": 4, "collage_ranks": 1,
            "parity_ranks": 0, "coded_ranks": 0,
            "stage1_ranks": 0, "stage2_ranks": 0, "stage3_ranks": 0,
            "rank_seconds_per_image": pytest.approx(span_s * 6 / 24),
            "busy_seconds_per_image": pytest.approx(work_s / 24),
            "images_per_s": pytest.approx(24 / span_s),
            "tasks": 29, "collage_tasks": 2, "late_answers": 3,
            "skipped_tasks": 1, "failed_tasks": 1, "lost_tasks": 1, "unfinished_tasks": 1,
            "unfinished_s": 0.08,
        },
        "cost": None,
        "arrivals": None,
        "rank0": {"longest_poll_gap_ms": 1.5, "poll": {"longest_gap_ns": 1_500_000}},
        "ledger": None,
        "checked": [],
        "refuted": [],
        "errors": {"boom": 1},
        "first_errors": {"boom": {"shard": "in/a.h5", "row": 7}},
        "lost_ranks": [{"rank": 4, "why": "killed"}],
        "networks": "",
        "limit": None,
    }  # fmt: skip
    assert list(summary) == list(wanted)
    for key, figures in wanted.items():
        assert summary[key] == figures, key


@pytest.mark.parametrize(
    ("admitted", "images", "seconds"),
    [
        ("one after another", 72, 8),
        # The warm-up's 18 images are done in the same seconds, so leaving them out would be wrong.
        ("all at once", 90, 10),
    ],
)
def test_throughput_is_that_of_the_seconds_after_the_warm_up(
    tmp_path: Path, admitted: str, images: int, seconds: int
) -> None:
    """Ten groups of nine images, two of them warm-up; one group is done a second."""
    run = read_results(make_run(tmp_path / "run", 90, warmup_groups=2))
    tables = {"images": run.images.copy(), "groups": run.groups.copy()}
    for rows in tables.values():
        begin_s = rows["group"] * (admitted == "one after another")
        rows["t0_ns"] = begin_s * SECOND
        rows["latency_ns"] = (rows["group"] + 1 - begin_s) * SECOND
    price = summarise(dataclasses.replace(run, **tables))["price"]
    assert price["images_per_s"] == pytest.approx(images / seconds)
    assert price["rank_seconds_per_image"] == pytest.approx(seconds * price["ranks"] / images)


def test_a_cascade_tells_how_long_the_single_network_alone_would_take(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 90, warmup_groups=1))
    settings = {**(run.manifest.get("settings") or {}), "scheme": "cascade"}
    run = dataclasses.replace(run, manifest={**run.manifest, "settings": settings})
    price = summarise(run)["price"]
    each_s = price["work_s_of"]["single"] / (price["tasks"] - price["collage_tasks"])
    assert price["collage_tasks"] > 0
    assert price["saving"] == pytest.approx(81 * each_s / price["work_s"])


def test_tasks_are_images_whether_a_message_has_a_row_or_each_image(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 90, collage=False))
    tasks = run.tasks.copy()
    tasks["resolved"][:2] = 0  # late
    whole = tasks[:10].copy()
    whole["items"], whole["resolved"] = 9, 9
    whole["resolved"][0] = 7
    told = [summarise(dataclasses.replace(run, tasks=rows))["price"] for rows in (tasks, whole)]
    assert [price["tasks"] for price in told] == [90, 90]
    assert [price["late_answers"] for price in told] == [2, 2]
