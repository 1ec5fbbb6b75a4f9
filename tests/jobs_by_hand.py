"""Jobs on a run in this process, without ranks: the package says what is to do, a test does it."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rows_by_name import add_image

from collage_mpi.job.plan import Growing, Plan, make_plan
from collage_mpi.job.provenance import fixed_facts
from collage_mpi.job.run import (
    Ask,
    close_empty,
    next_run,
    refuse_other_images,
    refuse_other_settings,
)
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.jobs import register
from collage_mpi.ledger.owner import Owner, join
from collage_mpi.ledger.reading import View, runs
from collage_mpi.ledger.records import Run
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import INDEX_FOLDER
from collage_mpi.results.jobs import entry
from collage_mpi.results.lease_files import LeaseFiles
from collage_mpi.results.manifest import compose
from collage_mpi.results.row_sink import RowSink
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.update import Update

SETTINGS = {"single": "null", "scheme": "none", "singles": 2, "input_labels": "none"}
TURNS = 8
GOOD = b"picture "  # what a picture begins with that these jobs can answer


def answer_to(data: bytes) -> int | None:
    """What a job says of these bytes; None: they cannot be read."""
    return zlib.crc32(data) >> 1 if data.startswith(GOOD) else None


class Job:
    """A job that comes to a folder: what it is told to do; `do` does it.

    Attributes:
        lacking: the global indices of the images that it is to do; None if nothing is left.
    """

    def __init__(
        self,
        source: Path,
        out: Path,
        update: Update | None = None,
        owner: str = "a" * 32,
        redo: str = "",
        growing: Growing | None = None,
        **more,
    ) -> None:
        known = compose(out) if (out / "run.1.json").exists() else {}
        settings = RunSettings(shards=(str(source),), out=str(out), **{**SETTINGS, **more})
        plan = make_plan(settings, 3, known, update=update, growing=growing)
        self.store = FolderStore(out)
        self.out, self.name, self.lacking, self.plan = out, owner, None, plan
        self.ask, self.there, self.mine = Ask(update=update, redo_rank=redo), [], None
        if not known:
            for folder in ("", "parts"):
                (out / folder).mkdir(exist_ok=True)
            self.store.make()
            images = len(plan.order)
            self.mine = Run(1, 0, images, images, settings=entry(fixed_facts(plan)))
            return
        refuse_other_settings(plan, known)
        self.there, self.mine = next_run(plan, self.store, self.ask)
        if self.mine is not None and self.mine.first == self.mine.stop:
            plan.shards.save_indexes(out / INDEX_FOLDER)
            close_empty(out, self.store, self.mine, owner)
            self.mine = None

    def begin(self) -> Job:
        """Join the run."""
        if self.mine is None:
            return self
        plan, mine = self.plan, self.mine
        if mine.number > 1:
            plan = plan.at_run([*self.there[: mine.number - 1], mine])
        plan.shards.save_indexes(self.out / INDEX_FOLDER)
        self.run = join(self.store, mine)
        if mine.number > 1:
            refuse_other_images(self.out, self.run, mine)
        self.session = register(self.store, self.name, {})
        done = View(self.store, self.run).look().counted
        self.left = sp.minus(((self.run.first, self.run.stop),), done)
        self.at = [position for span in self.left for position in range(*span)]
        places = np.array(self.at, np.int64) - self.run.first
        self.lacking = plan.order.indices(places).tolist()
        return self

    def do(
        self,
        images: list[int],
        errors: tuple[int, ...] | None = None,
        by: Any = MappingProxyType({}),
    ) -> None:
        """Write rows of these images, and leave. `errors`: those that get an error row; None: as
        their bytes say. `by`: which rank answers an image, if not rank 1."""
        files = LeaseFiles(self.out, self.run)
        owner = Owner(self.store, self.run, name=self.name, files=files)
        fixed = {**runs(self.store)[0].settings, **self.run.settings}
        sink = RowSink(self.out, fixed, self.session, owner.wrote)
        shards: Plan = self.plan.shards
        for _ in range(TURNS):  # a job takes half of what is free
            owner.turn(max(1, len(self.at)))  # who wants none looks at no cell so soon
        for image in images:
            (data,), _ = shards.read_files_checked([image])
            known = answer_to(data or b"")
            failed = image in errors if errors is not None else known is None
            shard, row = shards.locate(image)
            source, reason = ("error", "cannot be decoded") if failed else ("single", "")
            more = {"source": source, "answered": not failed, "reason": reason}
            more["rank"] = by.get(image, 1)
            at = self.at[self.lacking.index(image)]
            predicted = 0 if failed else known or 0
            add_image(sink, shard=shard, row=row, position=at, predicted=predicted, **more)
        assert sink.drain() is None
        owner.turn()
        owner.settle()
        owner.leave()
