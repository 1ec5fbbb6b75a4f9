"""`collage-mpi count RUN`, or `count photos/ --network W --within 0.01 --out FILE`: how many images
the network calls each class, with intervals. A cheap network classifies all pictures, the network
itself no more of them than the intervals need (`bounds/shares`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collage_mpi.commands.classify import ClassifyArguments, cheap_settings, input_images, launched
from collage_mpi.commands.parser import Command, MpiArguments
from collage_mpi.errors import UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.models import describe
from collage_mpi.results import has_run
from collage_mpi.settings.flags import own_fields, switch
from collage_mpi.system.fields import REQUIRED, same, setting, with_shipped
from collage_mpi.system.files import save_csv
from collage_mpi.system.printable import counted, say
from collage_mpi.system.table import Column, Table, to_text

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CountArguments(MpiArguments):
    """The arguments of count."""

    what: Path = setting(
        REQUIRED,
        "folder of a run, or pictures: a folder, or any other --input of run",
        metavar="WHAT",
        positional=True,
    )
    classes: tuple[str, ...] = setting(
        (), "count only these classes, with narrower intervals", metavar="CLASS", flag="--class"
    )
    json: bool = switch("print the table as JSON")
    network: str | None = same(ClassifyArguments, "network", default=None, repeated=False)
    within: float | None = setting(
        None,
        "ask the network for pictures until each class's share is known to this, such as 0.01 for "
        "one percent of all pictures to either side",
        metavar="SHARE",
        above=0,
        below=1,
    )
    out: Path | None = setting(
        None,
        "CSV file to write; the runs are in FILE.run. Repeat the command to continue it",
        metavar="FILE",
        endings=(".csv",),
    )
    first: tuple[str, ...] = setting(
        (),
        "the cheap network that classifies all pictures (docs/cascade.md)",
        metavar="W",
        unset="the network itself in bfloat16",
    )
    class_names_file: str | None = same(ClassifyArguments, "class_names_file")
    image_px: int | None = same(ClassifyArguments, "image_px")
    resize_px: int | None = same(ClassifyArguments, "resize_px")
    fit: str = same(ClassifyArguments, "fit")
    device: str = same(ClassifyArguments, "device")
    trust_network: str = same(ClassifyArguments, "trust_network")
    precision: str = same(ClassifyArguments, "precision")
    runtime: str = same(ClassifyArguments, "runtime")
    batch: int | None = same(ClassifyArguments, "batch")
    ranks: int | None = same(ClassifyArguments, "ranks")
    verbose: bool = same(ClassifyArguments, "verbose")


def execute(args: CountArguments) -> int:
    """Count, and print. Returns 0, 5 if pictures have no answer, or the exit code of the run that
    is not complete."""
    classes = tuple(dict.fromkeys(args.classes))
    if has_run(args.what):
        if args.network is not None or args.within is not None:
            raise UsageError(f"{args.what} is a run: --network and --within are for pictures")
        _tell(args, *_of_run(args.what, classes))
        return 0
    if args.network is None or args.within is None or args.out is None:
        raise UsageError(
            f"{args.what} has no run. To count the pictures of an input, give --network W, "
            "--within 0.01 and --out FILE.csv"
        )
    from collage_mpi.commands.asking import class_numbers
    from collage_mpi.commands.counting import LEAST, Counting

    shared = {each.name for each in own_fields(CountArguments)}
    shared &= {each.name for each in own_fields(ClassifyArguments)}
    own = {**{name: getattr(args, name) for name in shared}, "network": (args.network,)}
    job_args = ClassifyArguments(pictures=args.what, **own)
    first, exact = cheap_settings(job_args, "count")
    info = describe(with_shipped(args.network), SINGLE, args.trust_network)
    if info is not None and info.class_names and not args.class_names_file:  # else a run tells
        class_numbers(classes, info.class_names, args.network, "--class")
    images = input_images(args.what)
    if images < LEAST:
        raise UsageError(
            f"{args.what} has {counted(images, 'picture')}. For less than {LEAST:,} of them count "
            "would ask for all: classify them, and count the run"
        )
    job = Counting(
        images,
        job_args.run,
        first,
        exact,
        lambda values: launched(job_args, values),
        classes,
        args.within,
    )
    if code := job.execute():
        return code
    known = job.known()
    _tell(args, *known.told())
    return known.code


def _of_run(path: Path, wanted: Sequence[str]) -> tuple[list[Json], str]:
    """A row for each class of a run, as `Counting.told`, and what was audited.

    Raises:
        UsageError: the run's answers were not audited, it has no such class, it is simulated, or
            it maps a function.
        CollageError: as `open_run`.
    """
    from collage_mpi.commands.asking import class_numbers
    from collage_mpi.results.class_counts import ClassCounts
    from collage_mpi.results.reader import open_run
    from collage_mpi.results.vectors import extras_of
    from collage_mpi.rows import IMAGES

    run = open_run(path)
    if "simulated" in run.manifest or not extras_of(run.manifest).classifies:
        raise UsageError(f"{path}: nothing was classified in this run")
    counts, images, done = ClassCounts(run.manifest), run.manifest["rows"], 0
    for rows in run.chunks(IMAGES):
        counts.add(rows)
        done += int(rows["answered"].sum())
    if not done:
        raise UsageError(f"{path}: no image has an answer")
    known = run.manifest.get("class_names") or [*map(str, range(counts.classes))]
    told = counts.told(class_numbers(wanted, known, str(path), "--class") if wanted else None)
    if told is None:
        raise UsageError(
            f"{path}: other networks answered {counts.others:,} images, and the network itself was "
            "asked for none of these. A run with --agree or --audit can be counted"
        )
    how = f"{done:,} of {counted(images, 'image')} have an answer"
    if counts.others:
        how += (
            f", {counts.others:,} by another network; the network itself was asked for "
            f"{counts.audited:,} of these"
        )
    return told, how


def _tell(args: CountArguments, rows: list[Json], how: str) -> None:
    """Print the table, the largest class first, and write it to --out."""
    rows = sorted(rows, key=lambda row: -(row["low"] + row["high"]))
    if args.out is not None:
        save_csv(args.out, [*rows[0]], [[*row.values()] for row in rows])
    if args.json:
        print(json.dumps({"classes": rows, "how": how}, indent=1))
        return
    table = [
        [
            row["class"] if row["name"] is None else row["name"],
            row["low"],
            row["high"],
            f"{100 * row['low'] / row['images']:.2f} to {100 * row['high'] / row['images']:.2f} %",
        ]
        for row in rows
    ]
    at_least, at_most = (Column(label, ",") for label in ("at least", "at most"))
    print(to_text(Table(("images called", at_least, at_most, "share"), table)))
    open_ends = any(row["low"] < row["high"] for row in rows)
    say(how + ". With a probability of 95 % all lines hold" * open_ends)


COMMAND = Command(execute, CountArguments)
