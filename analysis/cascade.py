"""The cascade beside its baselines: images a rank-second in closed loop, tails in open loop.

    python analysis/cascade.py --answers analysis/answers --trace 'clouds=cloud.npy' --out OUT

Simulated by the package's own scheduler. Answers are replayed from the groups that did not choose
the thresholds (every other one). Writes OUT.csv, a line a placement, and
OUT.md, the tables. Typed again it goes on where it was. The placements are simulated one after the
other, so that a run that was stopped has all rows of its first placements.

Without a file `--trace` names service times that are drawn: "one rank 60 x slow" or "spells".
"""

from __future__ import annotations

import argparse
import csv
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from savings import both, read

from collage_mpi.rows import KIND_CODE, SOURCE_CODE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.training.threshold import TwoStages, saving_of
from collage_mpi.workload.straggler_settings import make_delays

Json = dict[str, Any]
LOADS = (None, 0.5, 0.8, 0.95, 1.5, 3.0)  # of what `none` can serve; None: closed loop
SHOWN = {  # column -> its form, in the tables by load
    "p99_ms": "{:.0f}",
    "p50_ms": "{:.0f}",
    "group_p99_ms": "{:.0f}",
    "points": "{:+.2f}",
    "first_stage": "{:.0%}",
}
AGREE = 0.99  # what the thresholds promise
WARM = 300  # images before the latencies that count
COSTS = ("float32", "bfloat16", "products")  # columns of ratios.csv: what a collage is said to cost
DEADLINES_MS = (150, 200, 300)  # swept, not chosen: after it a kept unsure cell answers
DRAWS = 2750  # service times of a rank by which its capacity is measured
# Service times that are drawn, as settings of a run; {slow} is a rank that the placement draws.
DRAWN: dict[str, Json] = {
    "one rank 60 x slow": {"straggler": "lognormal", "slow_ranks": ["{slow}:60"]},
    "spells": {"straggler": "markov"},
}


@dataclass(frozen=True)
class Network:
    """A network that has a threshold, and is asked first: by collages, or a quick one by batches.

    Attributes:
        name: of its answers.
        side: cells along an edge; a quick network's batch has as many images.
        ratio: service time of a collage, or of that batch, over the single's for an image.
        confidence: the score from which on an answer counts.
        further: what a further image of a batch takes over the first; None for a collage network.
        saving: images a rank-second over those of the single network, on the groups that chose the
            score.
    """

    name: str
    side: int
    ratio: float
    confidence: float
    saving: float
    further: float | None = None

    @property
    def sure(self) -> Json:
        """Settings by which its sure answers count, 1 % of them audited, as by default."""
        flags: Json = {"confidence": self.confidence}
        if self.further is None:
            return flags | {"cost_ratio": self.ratio}
        one = self.ratio / (1 + self.further * (self.side**2 - 1))  # an image alone
        return flags | {"cost_ratio": one, "batch_cost": self.further, "first": (self.name,)}


def networks(folder: Path, precision: str) -> list[Network]:
    """Those of ratios.csv beside the answers."""
    found = []
    for row in csv.DictReader((folder / "ratios.csv").open()):
        name = row["network"]
        known = read(folder / f"{name}.npz")
        side = known.side
        chosen = threshold(both(known))
        further = row[f"further_{precision}"]
        ratio, cost = float(row[precision]), float(further) if further else None
        saving = saving_of(ratio, side**2, chosen["share"])
        found.append(Network(name, side, ratio, chosen["confidence"], saving, cost))
    return found


def threshold(stages: TwoStages) -> Json:
    """The threshold for AGREE that every other group proves, and what it does to them."""
    chooses = np.arange(len(stages.single)) // stages.cells % 2 == 0
    half = TwoStages(stages.single[chooses], stages.first[chooses], None, stages.cells)
    confidence = half.lowest_score(AGREE)
    assert confidence is not None
    return half.at(confidence)


@dataclass(frozen=True)
class Entry:
    """A setting to be compared; `ranks` if it is not to have all of them."""

    name: str
    network: Network
    flags: tuple[tuple[str, Any], ...]
    ranks: int | None = None


def entries(found: list[Network]) -> list[Entry]:
    """Baselines first."""
    nines = (n for n in found if n.further is None and n.side == 3)  # as the quick network's batch
    best = max(nines, key=lambda network: network.saving)

    def entry(name: str, network: Network = best, ranks: int | None = None, **flags: Any) -> Entry:
        return Entry(name, network, tuple(flags.items()), ranks)

    ratio = {"cost_ratio": best.ratio}
    return [
        entry("none, pull", scheme="none"),
        entry("collage, the default", scheme="collage", **best.sure),
        *(
            entry(f"batch of 9, cost {cost}", scheme="none", batch=9, batch_cost=cost)
            for cost in (0.1, 0.3, 1.0)
        ),
        *(
            entry(f"collage-only, {ranks} ranks", ranks=ranks, scheme="collage-only", **ratio)
            for ranks in (1, 2, 3)
        ),
        *(
            entry(
                f"cascade, {n.name.removeprefix('fashion_collage_')}", n, scheme="cascade", **n.sure
            )
            for n in found
            if n.further is None
        ),
        *(
            entry(f"{n.name.removeprefix('fashion_')} network", n, scheme="cascade", **n.sure)
            for n in found
            if n.further is not None
        ),
        entry("cascade, ranks apart", scheme="cascade", placement="fixed", **best.sure),
        *(
            entry(f"cascade, deadline {ms} ms", scheme="cascade", deadline_ms=ms, **best.sure)
            for ms in DEADLINES_MS
        ),
        entry("cascade, audits off", scheme="cascade", **(best.sure | {"audit": 0.0})),
    ]


def service_times(trace: str, seed: int, ranks: int) -> Json:
    """Settings by which a placement's ranks take their time."""
    if trace in DRAWN:
        slow = [text.format(slow=1 + seed % ranks) for text in DRAWN[trace].get("slow_ranks", [])]
        return {**DRAWN[trace], "slow_ranks": slow, "straggler_seed": seed}
    return {"straggler": trace, "straggler_seed": seed}


@cache
def capacity(trace: str, seed: int, ranks: int) -> float:
    """Images a second that single networks can serve on the placement's ranks."""
    delays = make_delays(RunSettings.from_mapping(service_times(trace, seed, ranks), trace))
    ends_ns = [0] * ranks
    for rank, number in product(range(ranks), range(DRAWS)):
        ends_ns[rank] += delays.draw_ns(rank + 1, number, 1, ends_ns[rank])
    return sum(DRAWS * 1e9 / ns for ns in ends_ns)


def run(work: tuple[Entry, str, str, float | None, int, int, int, str]) -> Json:
    """One placement. Latencies in ms of an image, and of a group."""
    entry, trace, name, load, seed, ranks, images, answers = work
    flags: Json = dict(entry.flags)
    side = entry.network.side
    workers = entry.ranks or ranks
    flags |= {"side": side, **service_times(trace, seed, workers)}
    if load is not None:
        rate = load * capacity(trace, seed, ranks)
        flags |= {"rate": rate}
    counts = {"none": (workers, 0), "collage-only": (0, workers)}
    singles, others = counts.get(flags["scheme"], (workers - 1, 1))
    flags |= {"singles": singles or None, "collage_ranks": max(1, others)}
    settings = RunSettings.from_mapping(flags, entry.name)
    file = answers.format(entry.network.name)
    found = simulate_in_memory(SimulatedJob(settings, images, answers=file))
    rows, tasks = np.sort(found.images, order="row"), found.tasks
    ends_ns = rows["t0_ns"] + rows["latency_ns"]
    span_s = (ends_ns.max() - rows["t0_ns"].min()) / 1e9
    late_ms, groups_ms = rows["latency_ns"][WARM:] / 1e6, found.groups["latency_ns"] / 1e6
    first = tasks[tasks["kind"] != KIND_CODE["single"]]
    known = np.load(file, allow_pickle=False)
    n = len(rows)
    asked = np.arange(n) % (len(known["labels"]) // side**2 * side**2)
    right = (known["single_class"] == known["labels"])[asked].mean()
    return {
        "trace": name,
        "load": "closed" if load is None else load,
        "ranks": ranks,
        "entry": entry.name,
        "placement": seed,
        "images_per_s": len(rows) / span_s,
        "p50_ms": np.quantile(late_ms, 0.5),
        "p99_ms": np.quantile(late_ms, 0.99),
        "group_p99_ms": np.quantile(groups_ms[WARM // side**2 :], 0.99),
        "first_stage": first["items"].sum() / len(rows),
        "kept": (rows["source"] == SOURCE_CODE["kept"]).mean(),
        "points": 100 * ((rows["predicted"] == rows["label"]).mean() - right),
        "rank_ms": tasks["compute_ns"].sum() / 1e6 / len(rows),
    }


def halves(folder: Path, found: list[Network], into: Path) -> str:
    """The groups that did not choose a threshold, as files of answers; their pattern."""
    for network in found:
        with np.load(folder / f"{network.name}.npz", allow_pickle=False) as file:
            arrays = dict(file)
        groups = np.arange(len(arrays["labels"])) // network.side**2
        rows = {key: values for key, values in arrays.items() if values.shape == groups.shape}
        arrays |= {key: values[groups % 2 == 1] for key, values in rows.items()}
        np.savez_compressed(into / f"{network.name}.npz", **arrays)
    return str(into / "{}.npz")


def pending(
    args: argparse.Namespace, found: list[Network], answers: str, done: set[tuple[str, ...]]
) -> Iterator[Any]:
    """What is not in the table yet."""
    for seed, spec, ranks in product(range(args.placements), args.trace, args.ranks):
        name, _, file = spec.partition("=")
        compared = [e for e in entries(found) if not args.only or re.search(args.only, e.name)]
        for load, entry in product(args.loads, compared):
            key = (name, "closed" if load is None else str(load), str(ranks), entry.name, str(seed))
            grows = entry.name.startswith(("none", "collage, "))
            overload = load is not None and load > 1 and grows
            if key not in done and not overload:
                yield entry, file or name, name, load, seed, ranks, args.images, answers


def tables(rows: list[Json]) -> str:
    """Markdown: a table for each trace and number of ranks."""
    cells: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}  # ... -> placement -> value
    for row in rows:
        key = tuple(str(row[k]) for k in ("trace", "ranks", "load", "entry"))
        for name in ("images_per_s", *SHOWN):
            cells.setdefault(key, {}).setdefault(name, {})[row["placement"]] = float(row[name])

    def shown(key: tuple[str, ...], name: str, form: str) -> str:
        return form.format(np.median(list(cells[key][name].values()))) if key in cells else ""

    out = []
    names = list(dict.fromkeys(row["entry"] for row in rows))
    loads = [str(load) for load in LOADS if load is not None]
    for trace, ranks in dict.fromkeys((row["trace"], str(row["ranks"])) for row in rows):
        base = cells.get((trace, ranks, "closed", "none, pull"), {}).get("images_per_s")
        if base:
            row = "| | images/s over `none` pull (10-90 %) | points | P50, P99, ms | group's P99 |"
            out += [f"\n{trace}, {ranks} ranks: closed loop\n", row, "|---|---|---|---|---|"]
        for name in names:
            key = (trace, ranks, "closed", name)
            if not base or key not in cells:
                continue
            ratio = [rate / base[seed] for seed, rate in cells[key]["images_per_s"].items()]
            low, mid, high = np.quantile(ratio, [0.1, 0.5, 0.9])
            points, group = shown(key, "points", "{:+.2f}"), shown(key, "group_p99_ms", "{:.0f}")
            late = [shown(key, what, "{:.0f}") for what in ("p50_ms", "p99_ms")]
            rate = f"{mid:.2f} ({low:.2f}-{high:.2f})"
            out += [f"| {name} | {rate} | {points} | {', '.join(late)} | {group} |"]
        for what, form in SHOWN.items():
            worst_of = min if what == "points" else max
            out += [f"\n{trace}, {ranks} ranks: {what} by load, median (worst)\n"]
            out += ["| | " + " | ".join(loads) + " |", "|---|" + "---|" * len(loads)]
            for name in names:
                keys = [(trace, ranks, load, name) for load in loads]
                worst = [
                    f" ({form.format(worst_of(cells[k][what].values()))})" if k in cells else ""
                    for k in keys
                ]
                both = [shown(k, what, form) + w for k, w in zip(keys, worst, strict=True)]
                out += [f"| {name} | " + " | ".join(both) + " |"]
    return "\n".join(out) + "\n"


def as_load(text: str) -> float | None:
    """A load of the command line; `closed` is the closed loop."""
    return None if text == "closed" else float(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--answers", type=Path, required=True, help="folder of answers files")
    parser.add_argument("--trace", action="append", required=True, metavar="NAME[=FILE.npy]")
    parser.add_argument("--out", type=Path, required=True, metavar="STEM")
    parser.add_argument("--placements", type=int, default=24)
    parser.add_argument("--images", type=int, default=4500)
    parser.add_argument("--ranks", type=int, nargs="+", default=[11])
    parser.add_argument("--precision", choices=COSTS, default="float32")
    parser.add_argument("--loads", type=as_load, nargs="+", default=LOADS, metavar="LOAD")
    parser.add_argument("--only", metavar="REGEX", help="entries to simulate")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    path = args.out.with_suffix(".csv")
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    done = {tuple(r[k] for k in ("trace", "load", "ranks", "entry", "placement")) for r in rows}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(args.jobs) as pool:
        found = networks(args.answers, args.precision)
        work = list(pending(args, found, halves(args.answers, found, Path(folder)), done))
        for row in pool.map(run, work):
            fresh = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if fresh:
                    writer.writeheader()
                writer.writerow(row)
    rows = list(csv.DictReader(path.open()))
    args.out.with_suffix(".md").write_text(tables(rows))


if __name__ == "__main__":
    main()
