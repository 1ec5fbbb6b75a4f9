"""One run made by hand, plain and with a collage: every figure of it can be worked out on paper.

Groups have four images; two warm-up groups of 9 s come first. A measured group of number g takes
200 + 2 g ms, as long as rank 4 takes, twice as long as its peers. With the collage it takes
150 + g ms: the collage's answer comes first for the fourth image of each group. The plain run has
410 measured groups, enough for a P99; the run with the collage has the first 80 of these, which is
too few. The numbers g come in a mixed order, as groups that follow each other are not alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rows_by_name import add_image, add_task

from collage_mpi.results.sole import SoleWriter

SIDE, WARM = 2, 2
CELLS = SIDE * SIDE
GROUPS = {False: 410, True: 80}  # measured: plain, with the collage
IMAGES = {collage: CELLS * (WARM + groups) for collage, groups in GROUPS.items()}
CLASSES = ["cat", "dog", "ship", "tram"]
MS = 1_000_000
# How often a task of rank 4 ended otherwise, by its group; each number occurs once.
ENDS = {**dict.fromkeys(range(10, 15), "skipped"), **dict.fromkeys((20, 21, 22), "lost")}
ENDS |= {30: "failed", **dict.fromkeys((40, 41), "unfinished")}


def hand_made(out: Path, *, collage: bool, status: str = "complete", **changes: Any) -> Path:
    """Write the run; with the collage one image, the fourth of group 30, is an error row."""
    writer = SoleWriter(out, {**_manifest(collage), **changes})
    clock_ns = 0
    for group in range(WARM + GROUPS[collage]):
        clock_ns += _group(writer, group, clock_ns, collage)
    lost = {"rank": 4, "host": "node2", "kinds": ["single"], "at_s": 12.5, "why": "its link broke"}
    final = {"poll": {"longest_gap_ns": 1_250_000}}
    writer.close(status, **final, **({"lost": [lost]} if collage else {}))
    return out


def _manifest(collage: bool) -> dict[str, Any]:
    kinds = [[], *[["single"]] * CELLS, *([["collage"]] if collage else [])]
    world = [
        {"rank": rank, "host": f"node{1 + rank // 4}", "pid": rank, "kinds": kinds[rank]}
        for rank in range(len(kinds))
    ]
    scheme = "collage" if collage else "none"
    ratio = {"cost_ratio": 0.92}
    return {
        "run_id": "made-by-hand",
        "settings": {"scheme": scheme, "side": SIDE, "straggler": "lognormal"},
        "shards": [{"path": "in.h5", "fingerprint": "ab" * 32, "count": IMAGES[False]}],
        "rows": IMAGES[collage],
        "order": "file",
        "limit": IMAGES[True] if collage else None,
        "class_names": CLASSES,
        "scheme": scheme,
        "accept": "first" if collage else None,
        "mode": "carry, depth 1",
        "side": SIDE,
        "straggler": "lognormal, sigma 0.5",
        "world": world,
        "warmup_groups": WARM,
        **(ratio if collage else {}),
    }


def _group(writer: SoleWriter, number: int, t0_ns: int, collage: bool) -> int:
    """Rows of a group; how long it took, ns."""
    warmup = number < WARM
    g = 37 * (number - WARM) % GROUPS[collage]
    own_ns = [(9_000 if warmup else 100 + g) * MS] * 3 + [(9_000 if warmup else 200 + 2 * g) * MS]
    shared_ns = (9_000 if warmup else 150 + g) * MS
    used = collage and not warmup and g != 30  # a collage's answer counts
    common = {"group": number, "warmup": warmup}
    for cell in range(CELLS):
        wins = collage and cell == 3 and not warmup
        failed = wins and not used
        index = CELLS * number + cell
        took_ns = shared_ns if wins else own_ns[cell]
        add_image(
            writer,
            shard=0,
            row=index,
            cell=cell,
            answered=not failed,
            source="error" if failed else "collage" if wins else "single",
            predicted=_predicted(index, cell, wins),
            score=0.9,
            has_label=True,
            label=cell,
            rank=5 if wins else cell + 1,
            t0_ns=t0_ns,
            latency_ns=took_ns,
            read_ns=2 * MS,
            encode_ns=3 * MS,
            compute_ns=took_ns - 10 * MS,
            decode_ns=MS // 2,
            reason="crc32 of row wrong" if failed else "",
            **common,
        )
        ended = ENDS.get(g, "answered") if collage and cell == 3 else "answered"
        ran_ns = own_ns[cell] if ended == "answered" else 0
        _task(writer, number, cell + 1, "single", ended, t0_ns, own_ns[cell], ran_ns, not wins)
    if collage:
        _task(writer, number, 5, "collage", "answered", t0_ns, shared_ns, shared_ns, used)
    return shared_ns if collage else own_ns[3]


def _predicted(index: int, cell: int, wins: bool) -> int:
    """Every 20th image is wrong; of those that the collage answered every fourth group's too, and
    every fifth image of those that only the plain run has: so its accuracy is the lower one."""
    wrong = (
        index % 20 == 0 or (wins and index % 16 == 3) or (index >= IMAGES[True] and not index % 5)
    )
    return (cell + wrong) % CELLS


def _task(
    writer: SoleWriter,
    group: int,
    rank: int,
    kind: str,
    outcome: str,
    t0_ns: int,
    took_ns: int,
    ran_ns: int,
    resolved: bool,
) -> None:
    add_task(
        writer,
        task=10 * group + rank,
        rank=rank,
        kind=kind,
        group=group,
        attempt=0,
        items=CELLS if kind == "collage" else 1,
        resolved=int(resolved and outcome == "answered"),
        sent_ns=t0_ns,
        done_ns=t0_ns + took_ns,
        compute_ns=ran_ns,
        outcome=outcome,
        warmup=group < WARM,
    )
