"""The bench of a round: what is measured, how a round is metered, what is reported.

Owns: the messages of a benched round, the variants, the meter, the report and its table.

A round is one group: nine images to single ranks and their collage to the collage
rank, answered by all ten. A round's time runs from the start of one to the start of
the next, and the next starts when every answer is in, for all variants but `job-carry`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from round_settings import BenchSettings

from collage_mpi.mpi.answers import BEGIN_BYTES, CELL, RESULT
from collage_mpi.mpi.tasks import task_message_bytes
from collage_mpi.results.statistics import percentile
from collage_mpi.system.backoff import COORDINATOR_BACKOFF, WORKER_BACKOFF

if TYPE_CHECKING:
    from collage_mpi.job.coordinator import PollWatch

FORMAT, VERSION = "collage-mpi bench round", 1

# name -> what it is, as the report's legend says it
VARIANTS = {
    "job": "the job: images read and shrunk ahead from an HDF5 shard, results on disk",
    "job-memory": "the job with images and cells in memory: rank 0's loop alone",
    "job-carry": "the job as users run it: next group at the last image, accept first",
    "bare": "mpi4py alone: the same bytes, the same polling; no packing, no rows",
    "bare-encode": "bare, each round's collage shrunk and pasted first, on the same thread",
    "blocking": "mpi4py alone: the same bytes, ranks block in Recv and Waitall",
}
BASELINES = ("bare", "bare-encode")


@dataclass(frozen=True)
class Exchange:
    """One task of a round: who gets how many bytes, and answers with how many."""

    rank: int
    down_bytes: int
    up_bytes: int


def exchanges(settings: BenchSettings, singles: int) -> list[Exchange]:
    """The messages of a round, of exactly the job's sizes: images in turn, then the collage."""
    image = task_message_bytes(1, 1, int(np.prod(settings.image_shape)))
    answer = BEGIN_BYTES + RESULT.itemsize
    cells = settings.grid.cells
    collage = task_message_bytes(1, cells, settings.grid.px**2 * settings.channels)
    return [Exchange(1 + i % singles, image, answer + CELL.itemsize) for i in range(cells)] + [
        Exchange(singles + 1, collage, answer + cells * CELL.itemsize)
    ]


@dataclass(frozen=True)
class Block:
    """What one block of one variant took on rank 0.

    Attributes:
        periods_ns: (rounds,) int64, start of a round to start of the next.
        process_ns: CPU time of rank 0's process: loop, writer and MPI's own threads.
        thread_ns: CPU time of the thread that runs the loop.
        longest_gap_ns: longest time between two polls; None where nobody polls.
        encode_ns: (rounds,) pasting the collage (in `bare-encode` shrinking too), wall; None
            where nobody does.
    """

    periods_ns: np.ndarray
    process_ns: int
    thread_ns: int
    polls: int | None = None
    longest_gap_ns: int | None = None
    encode_ns: np.ndarray | None = None


@dataclass
class RoundMeter:
    """Told when a round begins; measures those between warm-up and the closing one."""

    settings: BenchSettings
    polls: PollWatch | None = None
    _starts_ns: list[int] = field(default_factory=list)
    _cpu_ns: list[tuple[int, int]] = field(default_factory=list)
    _polled: tuple[int, int] | None = None

    def begin_round(self) -> None:
        """A round begins now."""
        number = len(self._starts_ns)
        self._starts_ns.append(time.monotonic_ns())
        if number == self.settings.warmup:
            self._cpu_ns.append((time.process_time_ns(), time.thread_time_ns()))
            if self.polls is not None:
                self.polls.longest_ns = self.polls.polls = 0
        elif number == self.settings.played_rounds - 1:
            self._cpu_ns.append((time.process_time_ns(), time.thread_time_ns()))
            if self.polls is not None:
                self._polled = (self.polls.polls, self.polls.longest_ns)

    def block(self, encode_ns: np.ndarray | None = None) -> Block:
        """What was measured, once all rounds were played."""
        (process_0, thread_0), (process_1, thread_1) = self._cpu_ns
        polls, gap_ns = self._polled or (None, None)
        return Block(
            np.diff(np.array(self._starts_ns[self.settings.warmup :], np.int64)),
            process_1 - process_0,
            thread_1 - thread_0,
            polls,
            gap_ns,
            encode_ns,
        )


def summarise(blocks: Sequence[Block], images: int) -> dict[str, Any]:
    """The figures of one variant over its blocks; `images` are those of a round.

    A percentile that the number of rounds does not support is None.
    """
    periods = np.concatenate([block.periods_ns for block in blocks])  # (rounds,) int64
    done = images * len(periods)
    gaps = [b.longest_gap_ns for b in blocks if b.longest_gap_ns is not None]
    polls = [b.polls for b in blocks if b.polls is not None]
    encodes = [b.encode_ns for b in blocks if b.encode_ns is not None]
    return {
        "rounds": len(periods),
        "round_p50_ms": _ms(percentile(periods, 0.5)),
        "round_p95_ms": _ms(percentile(periods, 0.95)),
        "images_s": done / (periods.sum() / 1e9),
        "cpu_us_per_image": sum(b.process_ns for b in blocks) / done / 1e3,
        "loop_cpu_us_per_image": sum(b.thread_ns for b in blocks) / done / 1e3,
        "longest_poll_gap_ms": _ms(max(gaps)) if gaps else None,
        "polls_per_round": sum(polls) / len(periods) if polls else None,
        "encode_p50_ms": _ms(percentile(np.concatenate(encodes), 0.5)) if encodes else None,
        "block_p50_ms": [_ms(float(np.median(b.periods_ns))) for b in blocks],
    }


def world_report(
    settings: BenchSettings,
    ranks: int,
    measured: dict[str, list[Block]],
    mpi_library: str,
    load_before: tuple[float, float, float],
) -> dict[str, Any]:
    """What one world showed, as plain JSON values."""
    singles = ranks - 2
    sent = exchanges(settings, singles)
    images = settings.grid.cells
    figures = {name: summarise(blocks, images) for name, blocks in measured.items()}
    for found in figures.values():
        for base in BASELINES:
            found[f"ratio_to_{base.replace('-', '_')}"] = {
                key: _ratio(found[key], figures[base][key])
                for key in ("round_p50_ms", "round_p95_ms", "images_s", "cpu_us_per_image")
            }
    return {
        "ranks": ranks,
        "singles": singles,
        "collage_ranks": 1,
        "down_bytes_per_round": sum(e.down_bytes for e in sent),
        "up_bytes_per_round": sum(e.up_bytes for e in sent),
        "mpi": mpi_library,
        "load_before": list(load_before),
        "load_after": list(os.getloadavg()),
        "variants": figures,
    }


def full_report(settings: BenchSettings, worlds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The worlds with what was asked for and the machine, as plain JSON values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": {
            **asdict(settings),
            "cell_px": settings.grid.cell_px,
            "collage_px": settings.grid.px,
            "coordinator_backoff": asdict(COORDINATOR_BACKOFF),
            "worker_backoff": asdict(WORKER_BACKOFF),
        },
        "machine": machine(),
        "worlds": list(worlds),
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    from collage_mpi.system.environment import allowed_cores

    return {
        "cpu": _cpu_name(),
        "cores": allowed_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "mpi4py", "h5py", "pillow")},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _ms(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e6


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def render(report: dict[str, Any]) -> str:
    """The report as a table for a terminal or a page."""
    asked, where = report["settings"], report["machine"]
    lines = [
        f"{asked['px']} px images, collage {asked['collage_px']} px "
        f"({asked['side']} x {asked['side']} cells of {asked['cell_px']} px), null network, "
        f"{asked['rounds']} rounds in {asked['blocks']} alternating blocks",
        f"{where['cpu']}, {where['cores']} cores; Python {where['python']}, "
        f"mpi4py {where['mpi4py']}",
    ]
    for world in report["worlds"]:
        lines += ["", *_world_lines(world)]
    lines += ["", *(f"{name:<14} {what}" for name, what in VARIANTS.items())]
    return "\n".join(lines)


# heading, form, value of a variant's figures
_COLUMNS = (
    ("p50 ms", ".2f", "round_p50_ms"),
    ("p95 ms", ".2f", "round_p95_ms"),
    ("images/s", ",.0f", "images_s"),
    ("CPU us/image", ".0f", "cpu_us_per_image"),
    ("loop us/image", ".0f", "loop_cpu_us_per_image"),
    ("poll gap ms", ".1f", "longest_poll_gap_ms"),
    ("polls/round", ".0f", "polls_per_round"),
    ("encode ms", ".2f", "encode_p50_ms"),
)

_WIDTH = 200  # columns that the table may take
_RATIOS = {
    "p50/bare": ("ratio_to_bare", "round_p50_ms"),
    "p50/encode": ("ratio_to_bare_encode", "round_p50_ms"),
    "CPU/bare": ("ratio_to_bare", "cpu_us_per_image"),
    "CPU/encode": ("ratio_to_bare_encode", "cpu_us_per_image"),
}


def _world_lines(world: dict[str, Any]) -> list[str]:
    from collage_mpi.system.table import Column, Table, to_text

    down = world["down_bytes_per_round"] / 1e6
    head = (
        f"{world['singles']} single + {world['collage_ranks']} collage ranks and rank 0, "
        f"{down:.2f} MB down a round; {world['mpi']}; load {world['load_before'][0]:.1f} before, "
        f"{world['load_after'][0]:.1f} after"
    )
    titles = [Column(title, form) for title, form, _ in _COLUMNS]
    ratios = [Column(title, ".2f") for title in _RATIOS]
    rows = [
        [
            name,
            *(found[key] for _, _, key in _COLUMNS),
            *(found[base][key] for base, key in _RATIOS.values()),
            f"{min(found['block_p50_ms']):.2f}-{max(found['block_p50_ms']):.2f}",
        ]
        for name, found in world["variants"].items()
    ]
    return [head, to_text(Table(["", *titles, *ratios, "p50 of blocks"], rows), _WIDTH)]
