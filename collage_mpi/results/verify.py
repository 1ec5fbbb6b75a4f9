"""Verifies that a run has exactly one row for every image, and that its two tables agree.

Tasks are checked only for sessions that ended by themselves. A session that was killed may have
lost the last seconds of any table, and another one did its lost images again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode
from collage_mpi.ledger.damage import examine, repair
from collage_mpi.ledger.jobs import jobs, note
from collage_mpi.ledger.records import LISTING, rows_name
from collage_mpi.ledger.records import Run as Numbered
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import EXPORT, PARTS_FOLDER, ROWS_FOLDER
from collage_mpi.results.columns import rows_of
from collage_mpi.results.lease_files import (
    LeaseFiles,
    closed,
    of_another_run,
    strangers,
    wrong_with,
)
from collage_mpi.results.manifest import COMPLETE, DUE, Json, compose, finals, resume_command
from collage_mpi.results.number_sets import Draw, InputCoverage, NumberSet, draw_of
from collage_mpi.results.parts import list_parts, read_ledger, read_runs, read_where_it_lies
from collage_mpi.results.reader import Inventory, Run, open_run, rows_of_part
from collage_mpi.results.status import find_writer
from collage_mpi.results.vectors import check_kept, extras_of
from collage_mpi.rows import (
    ASKED_FIRST,
    AUDIT_CODE,
    IMAGES,
    OTHERS,
    OUTCOME_CODE,
    SOURCE_CODE,
    TASKS,
    TableLayout,
    wait_ns,
)
from collage_mpi.system.files import reading, remove_leftovers, writing
from collage_mpi.system.printable import counted

_ERROR = SOURCE_CODE["error"]
REPAIR = (
    "Restore it from a copy, or end all jobs of the run and type collage-mpi verify --repair: what "
    "follows the damage is moved away, and its images are done again"
)


@dataclass
class VerifyReport:
    """The result of `verify_run`.

    Attributes:
        status: complete, complete_with_errors, incomplete or damaged.
        rows: number of image rows; expected: number of images of the input.
        doubles: number of rows whose image has an earlier row.
        missing: number of images without a row.
        error_rows: number of error rows.
        vectors: number of vectors; None if the run keeps none.
        problems: one sentence each; [] if the run is proven complete.
        notes: sentences about findings that are no problem.
        writing: a job that is writing to the run, as "host h, pid p".
        next_step: what to do if the run is incomplete.
    """

    path: Path
    status: str = "damaged"
    rows: int = 0
    expected: int = 0
    doubles: int = 0
    missing: int = 0
    error_rows: int = 0
    vectors: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    writing: str | None = None
    next_step: str = ""

    @property
    def ok(self) -> bool:
        """Whether the run is proven complete: every image exactly once, and no other problem."""
        return not self.problems and self.status in COMPLETE

    @property
    def exit_code(self) -> ExitCode:
        """0 if the run is proven complete, also with error rows; 6 if incomplete, 4 if damaged."""
        if self.ok:
            return ExitCode.COMPLETE
        return ExitCode.INCOMPLETE if self.status == "incomplete" else ExitCode.DATA

    @property
    def headline(self) -> str:
        """One line, such as "complete: 10,000 of 10,000 rows, no doubles"."""
        doubles = counted(self.doubles, "double") if self.doubles else "no doubles"
        status = self.status.replace("_", " ")
        errors = f", {counted(self.error_rows, 'error row')}" if self.error_rows else ""
        vectors = "" if self.vectors is None else f", {counted(self.vectors, 'vector')}"
        rows = f"{self.rows:,} of {counted(self.expected, 'row')}"
        return f"{status}: {rows}, {doubles}{errors}{vectors}"


def verify_run(path: Path | str, run: Run | None = None) -> VerifyReport:
    """Check the run in `path`, a part at a time. Damage is reported, not raised.

    Args:
        path: the run directory.
        run: the run from `open_run` or `read_results`, if it is open already.

    Raises:
        EnvironmentFault: there is no run in `path`, or it cannot be read.
    """
    report = VerifyReport(Path(path))
    try:
        if run is None and (damaged := _damaged_records(report.path)):
            raise DataFault(damaged[0])
        _check(report, open_run(path) if run is None else run)
    except EnvironmentFault:
        raise
    except CollageError as error:  # a damaged file, so the counts so far mean nothing
        report = VerifyReport(Path(path), problems=_damaged(Path(path)) or [str(error)])
    if not report.ok:
        _look_for_a_writer(report)
    return report


class _FoundRows:
    """Counts from one pass over the rows, for the checks.

    Attributes:
        answers: problem -> number of image rows that have it.
        error_rows: number of error rows.
        negative: number of image rows whose parts exceed their latency.
        sessions: number -> session, for sessions that closed.
    """

    def __init__(self, run: Run) -> None:
        """Read the run. Raises as `read_results`."""
        manifest = run.manifest
        closed = [entry for entry in manifest.get("sessions") or [] if entry["rows"] is not None]
        self.sessions = {entry["session"]: _Session(run, entry) for entry in closed}
        self.answers: Counter[str] = Counter()
        self.error_rows = self.negative = 0
        self._draw = draw_of(manifest)
        self.inventory = Inventory(run, partial(self._add, run))
        for piece in run.other_pieces():
            self._add_written(IMAGES, piece())

    def _add(self, run: Run, table: TableLayout, rows: np.ndarray) -> None:
        if table is IMAGES:
            self.error_rows += int((rows["source"] == _ERROR).sum())
            self.negative += int((rows["answered"] & (wait_ns(rows) < 0)).sum())
            _check_answers(self.answers, rows, run.manifest)
            _check_audits(self.answers, rows, run.manifest, self._draw)
        self._add_written(table, rows)

    def _add_written(self, table: TableLayout, rows: np.ndarray) -> None:
        for number in np.unique(rows["session"]).tolist():
            if number in self.sessions:
                self.sessions[number].add(table, rows[rows["session"] == number])


class _Session:
    """Counts of the rows of a session that closed.

    Attributes:
        said: table -> number of rows according to the manifest; "written": those of images, also
            of images that another job did too.
        twice: number of task rows whose task number occurred before.
        tasks: problem -> number of task rows that have it.
        by_image: rank -> images that it answered, from the image rows.
        by_task: rank -> images that it answered, from the task rows.
    """

    def __init__(self, run: Run, entry: Json) -> None:
        self.number, self.said = entry["session"], entry["rows"]
        self.images = 0  # rows that it wrote, and that are there
        self.twice = 0
        self.tasks: Counter[str] = Counter()
        self.by_image: Counter[int] = Counter()
        self.by_task: Counter[int] = Counter()
        self._seen = NumberSet(8 * run.rows_of(TASKS))

    def add(self, table: TableLayout, rows: np.ndarray) -> None:
        """Add rows of the session."""
        if table is IMAGES:
            self.images += len(rows)
            _add_by_rank(self.by_image, rows["rank"][rows["answered"]])
        else:
            self.twice += int(self._seen.add(rows["task"].astype(np.int64)).sum())
            _check_task_rows(self.tasks, rows, f"session {self.number}: ")
            _add_by_rank(self.by_task, rows["rank"], rows["resolved"])


def _add_by_rank(sums: Counter[int], ranks: np.ndarray, more: np.ndarray | None = None) -> None:
    numbers, place = np.unique(ranks, return_inverse=True)
    added = np.bincount(place, more).astype(np.int64)
    for rank, n in zip(numbers.tolist(), added.tolist(), strict=True):
        sums[rank] += n


def _check(report: VerifyReport, run: Run) -> None:
    found = _FoundRows(run)
    report.rows, report.expected = found.inventory.input.rows, run.manifest["rows"]
    report.next_step = resume_command(run.manifest, report.path)
    if "simulated" in run.manifest:
        report.next_step = "remove this folder and simulate again: a simulation cannot be resumed"
    report.error_rows = found.error_rows
    _check_keys(found.inventory.input, run.manifest, report)
    _tell(report, found.answers)
    if found.negative:
        report.notes.append(
            f"{counted(found.negative, 'image')} whose parts exceed their latency (wait < 0)"
        )
    if extras_of(run.manifest):
        _check_vectors(run, report)
    if run.complete:
        with reading(run.path):
            there, own = closed(FolderStore(run.path)), run.manifest.get("run_id")
            wrong = [wrong_with(run.path, *each, own) for each in there.items()]
            report.problems += filter(None, wrong)
            report.problems += [
                f"{run.path / ROWS_FOLDER / name}: of no lease of the run, and other readers take "
                "it for some of its rows. collage-mpi verify --repair moves it away"
                for name in strangers(run.path, there)
            ]
    for session in found.sessions.values():
        _check_session(session, found.inventory, report)
    _conclude(run, report)


def _check_vectors(run: Run, report: VerifyReport) -> None:
    """Checks that exactly the answered images have a vector, each one."""
    report.vectors = 0
    check = partial(check_kept, extras=extras_of(run.manifest))
    for part in (part for part in run.parts if part.table == IMAGES.name):
        for found, wrong in read_where_it_lies(part, check):
            report.vectors += found
            report.problems += wrong


def _look_for_a_writer(report: VerifyReport) -> None:
    """If a job is writing to the run, report this instead of how to go on."""
    writer = find_writer(report.path)
    if writer is None:
        return
    report.writing = str(writer)
    if report.status == "incomplete":
        report.problems = [f"{report.headline}; a job is writing here ({writer})"]


# ---- damage -----------------------------------------------------------------


def _bad_parts(out: Path) -> dict[str, str]:
    """The files in which rows that count lie, and that have not these rows: name -> why."""
    found = dict[str, str]()
    manifest = compose(out)
    for part in (part for part in read_ledger(out).parts if part.table == IMAGES.name):
        try:
            rows_of_part(part, IMAGES)
            if part.is_lease and (wrong := of_another_run(part.path, manifest["run_id"])):
                raise DataFault(wrong)
            if extras_of(manifest):
                check_kept(part, extras_of(manifest))
        except CollageError as error:
            found[str(part.path.relative_to(out))] = str(error)
    return found


def _damaged_records(out: Path) -> list[str]:
    """A sentence for each damaged record. While a job writes, gaps of a moment are not told."""
    store, known = FolderStore(out), read_runs(out)
    with reading(out):
        found = [examine(store, run).damage for run in known]
    if any(found) and find_writer(out) is not None:
        return []
    return [f"{out / name}: {why}. {REPAIR}" for each in found for name, why in each.items()]


def _damaged(out: Path) -> list[str]:
    """A sentence for each damaged record; if there is none, for each damaged part."""
    try:
        return _damaged_records(out) or list(_bad_parts(out).values())
    except CollageError:
        return []


def repair_run(out: Path) -> list[str]:
    """Move away all records that are damaged, that follow damaged ones, or that name damaged parts.
    Their images have no row then, and the next job does them again. Remove temporary files of jobs
    that were killed.

    Returns:
        What was done, a sentence each; [] if there was nothing to do.

    Raises:
        EnvironmentFault: there is no run in `out`, it cannot be read or written, or a job is
            writing to it.
        DataFault: a file is damaged that must be restored from a copy.
    """
    runs, store, told = read_runs(out), FolderStore(out), list[str]()
    writer = find_writer(out)
    if writer is not None:
        raise EnvironmentFault(
            f"{out}: a job is writing here ({writer}). End all jobs of the run, then repeat this "
            "command."
        )
    with reading(out):
        # The records first, so that parts can be read; and where the rows of a part are gone that
        # had replaced others, these count again, and their file may lack them.
        bad = dict[str, str]()
        for _ in range(2 + len(runs)):
            for run in runs:
                found = examine(store, run, bad)
                if found.damage or found.orphans:
                    repair(store, run, found)
                told += [f"{out / name}: {why}" for name, why in found.damage.items()]
                if found.orphans:
                    told.append(
                        f"{counted(len(found.orphans), 'file')} moved to {out / 'orphans'}; "
                        f"{counted(found.again, 'image')} will be done again"
                    )
            bad = _bad_parts(out)
            if not bad:
                break
        told += [*_without_bad_tasks(out, store), *_with_lease_files(out, runs[-1], store)]
        told += _without_spare_parts(out, store)
        folders = [path for path in out.iterdir() if path.is_dir() and path.name != EXPORT]
        if removed := sum(remove_leftovers(folder, ".*") for folder in (out, *folders)):
            told.append(f"{counted(removed, 'temporary file')} of jobs that were killed: removed")
    return told


def _with_lease_files(out: Path, run: Numbered, store: FolderStore) -> list[str]:
    """Make files of closed leases that are missing or wrong, and move those of others away.

    Returns:
        What was done, a sentence each.
    """
    told, files = list[str](), LeaseFiles(out, run)
    there, folder = closed(store), out / ROWS_FOLDER
    with writing(folder):
        store.make()  # it may be gone
        for name in strangers(out, there):
            store.move(f"{ROWS_FOLDER}/{name}", f"orphans/rows-{name}")
            told.append(f"{folder / name}: moved to {out / 'orphans'}")
        for start, parts in there.items():
            if files.mend(start, parts):
                told.append(f"{out / rows_name(start)}: made anew")
    return told


def _without_spare_parts(out: Path, store: FolderStore) -> list[str]:
    """Move parts of images away in which no row that counts lies: it lies in rows/, or another job
    did the image, or its record is damaged.

    Returns:
        What was done, in a sentence.
    """
    ledger, folder = read_ledger(out), out / PARTS_FOLDER
    named = {part.path for part in ledger.parts}
    there = list_parts(folder) if folder.is_dir() and not ledger.late else []
    spare = [part.path for part in there if part.path not in named]
    for path in spare:
        store.move(f"{PARTS_FOLDER}/{path.name}", f"orphans/{path.name}")
    if not spare:
        return []
    return [f"{counted(len(spare), 'part')} without a row that counts: moved to {out / 'orphans'}"]


def _without_bad_tasks(out: Path, store: FolderStore) -> list[str]:
    """Move damaged parts of tasks away, and let jobs that lack some say nothing of their rows.

    Returns:
        What was damaged, a sentence each.
    """
    told, rows = list[str](), Counter[int]()
    for part in read_ledger(out).parts:
        if part.table != TASKS.name:
            continue
        try:
            rows[part.session] += len(rows_of(part.path, TASKS))
        except CollageError as error:
            store.move(f"{PARTS_FOLDER}/{part.path.name}", f"orphans/{part.path.name}")
            told.append(str(error))
    for number, job in jobs(store).items():
        said = job.facts.get("rows")
        if said is not None and rows[number] < said["tasks"]:
            note(store, number, job.owner, {**job.facts, "rows": None, "written_parts": {}})
    return told


def _check_keys(found: InputCoverage, manifest: Json, report: VerifyReport) -> None:
    """Checks that each key occurs once and is in the input; if no image is missing, also that the
    keys are those of the input."""
    report.doubles, report.missing = found.doubles, found.missing
    if found.first_double is not None:
        first = _name(found.first_double)
        report.problems.append(f"{counted(report.doubles, 'double')}, the first is {first}")
    if found.first_foreign is not None:
        first = _name(found.first_foreign)
        report.problems.append(
            f"{counted(found.foreign, 'row')} outside the input, the first is {first}"
        )
    limit = manifest.get("limit")
    _check_size(manifest, report)
    digest = manifest.get("input_digest")
    exact = found.rows == report.expected and not (report.doubles or found.foreign)
    if digest and exact and found.digest() != digest:
        report.problems.append("as many rows as images, but other images: input_digest differs")
    elif limit is not None and manifest.get("order") != "file" and not digest:
        report.problems.append("manifest lacks input_digest, needed for order and limit as set")
    if found.rows - report.doubles - found.foreign > report.expected:
        report.problems.append(
            f"{counted(found.rows, 'row')} for {counted(report.expected, 'image')}"
        )


def _check_size(manifest: Json, report: VerifyReport) -> None:
    """Checks that the manifest's number of images agrees with its shards and its limit."""
    total = sum(shard["count"] for shard in manifest["shards"])
    limit = manifest.get("limit")
    wanted = total if limit is None else min(total, limit)
    wanted -= manifest.get("dropped") or 0
    if wanted != report.expected:
        report.problems.append(
            f"manifest expects {report.expected:,} rows, its shards and limit give {wanted:,}"
        )


def _name(key: tuple[int, int]) -> str:
    return f"shard {key[0]} row {key[1]}"


def _check_answers(found: Counter[str], images: np.ndarray, manifest: Json) -> None:
    """Checks that the columns of each image row agree with each other and with the manifest."""
    error = images["source"] == _ERROR
    _count(found, images["answered"] == error, "image rows answered and error at once, or neither")
    _count(found, error & (images["reason"] == b""), "error rows without a reason")
    _count(found, images["latency_ns"] < 0, "image rows with a negative latency")
    names = manifest.get("class_names")
    if names:
        for column, mask in (("predicted", images["answered"]), ("label", images["has_label"])):
            outside = mask & ((images[column] < 0) | (images[column] >= len(names)))
            _count(found, outside, f"image rows with {column} outside the {len(names)} classes")
    foreign = images["answered"] & _unknown_ranks(images, manifest)
    _count(found, foreign, "image rows answered by an unknown rank")


def _check_audits(found: Counter[str], images: np.ndarray, manifest: Json, draw: Draw) -> None:
    """Checks that each accepted answer whose image was drawn has an audit, with a valid class."""
    known = images[images["shard"] < len(manifest["shards"])]
    accepted = np.isin(known["source"], ASKED_FIRST) & draw.some(known)
    _count(found, accepted & (known["audited"] == 0), "accepted answers without their audit")
    names, done = manifest.get("class_names"), images["audited"] == AUDIT_CODE["done"]
    if names:
        for column, _ in OTHERS:
            outside = done & ((images[column] < 0) | (images[column] >= len(names)))
            _count(found, outside, f"image rows with {column} outside the {len(names)} classes")


def _unknown_ranks(images: np.ndarray, manifest: Json) -> np.ndarray:
    """(n,) bool, rows whose rank was not in the world of their session.

    Each session has its own world, because a later session may have fewer ranks. A session that was
    killed or failed recorded no world, and its rows are not checked.
    """
    unknown = np.zeros(len(images), dtype=bool)
    sessions = finals(manifest)
    only = manifest.get("world") if len(sessions) == 1 else None
    for session, final in sessions.items():
        world = final.get("world") or only
        mine = images["session"] == session
        if world and mine.any():
            unknown |= mine & ~np.isin(images["rank"], [member["rank"] for member in world])
    return unknown


def _check_session(session: _Session, inventory: Inventory, report: VerifyReport) -> None:
    """Checks the row counts of a closed session, and its tasks against its images."""
    number, before = session.number, len(report.problems)
    rows, said = inventory.rows[TASKS.name, number], session.said[TASKS.name]
    if rows != said:
        report.problems.append(
            f"session {number}: {rows:,} rows of {TASKS.name} found, {said:,} were written (a part "
            "is gone? Put it back)"
        )
    whole = len(report.problems) == before
    if session.twice:
        report.problems.append(f"session {number}: {session.twice:,} task rows are doubles")
        whole = False
    if not whole:
        return
    _tell(report, session.tasks)
    # Rows that do not count go with the parts of closed leases, and lost ones are done again.
    if session.images >= session.said.get("written", session.said[IMAGES.name]):
        _check_ranks(session, report)


def _check_task_rows(found: Counter[str], tasks: np.ndarray, of: str) -> None:
    """Checks that the columns of each task row agree with each other."""
    _count(found, tasks["resolved"] > tasks["items"], of + "tasks resolved more than they hold")
    silent = tasks["outcome"] != OUTCOME_CODE["answered"]
    _count(found, silent & (tasks["resolved"] > 0), of + "tasks resolved images unanswered")


def _check_ranks(session: _Session, report: VerifyReport) -> None:
    """Checks for each rank that as many image rows name it as images that its tasks resolved."""
    for rank in sorted(session.by_image.keys() | session.by_task.keys()):
        by_image, by_task = session.by_image[rank], session.by_task[rank]
        if by_image != by_task:
            report.problems.append(
                f"session {session.number}: rank {rank} answered {by_image:,} images, "
                f"its tasks resolved {by_task:,}"
            )


def _count(found: Counter[str], wrong: np.ndarray, what: str) -> None:
    found[what] += int(wrong.sum())


def _tell(report: VerifyReport, found: Counter[str]) -> None:
    report.problems += [f"{n:,} {what}" for what, n in found.items() if n]


def _conclude(run: Run, report: VerifyReport) -> None:
    """Sets the status. Missing rows mean incomplete; any other problem means damaged."""
    if report.problems:
        return
    manifest_status = run.manifest.get("status")
    bad = run.manifest.get("bad_shards") or []
    if run.manifest.get("limit") is not None:  # it stays without shards that it began without
        report.notes += [f"the run is without this shard: {shard['reason']}" for shard in bad]
        bad = []
    if report.missing:
        report.status = "incomplete"
        report.problems.append(f"{report.headline}; {report.next_step}")
        if run.complete:
            report.status = "damaged"
            report.problems.append("marked COMPLETE, but images have no row")
    elif bad:
        report.status = "incomplete"
        report.problems.append(f"{report.headline}; all rows of the shards that could be read")
    elif manifest_status not in COMPLETE or not run.complete:
        report.status = "incomplete"
        due = run.manifest.get(LISTING) == DUE
        why = "more images are to be listed" if due else "no job has marked the run as complete"
        report.problems.append(
            f"{report.headline}; all rows are there, but {why}: {report.next_step}"
        )
    else:
        report.status = "complete_with_errors" if report.error_rows else "complete"
        if report.status != manifest_status:
            report.problems.append(
                f"the ledger says {manifest_status}, {report.error_rows:,} error rows found"
            )
            report.status = "damaged"
    for shard in bad:
        report.problems.append(f"no image of this shard has a row: {shard['reason']}")
