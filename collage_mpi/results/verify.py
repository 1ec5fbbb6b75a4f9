"""Proof that a run holds every image exactly once, and that its three tables agree.

Owns: the checks and their wording.
Does not know: shards (it trusts the fingerprints in the manifest), statistics.

Groups and tasks are checked for sessions that closed: a killed session may have lost
the last seconds of any table, and its lost images were done again by the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from collage_mpi.errors import CollageError, EnvironmentFault, ExitCode
from collage_mpi.kinds import COLLAGE
from collage_mpi.results.claim import LOOK_S, Patience, find_writer
from collage_mpi.results.file_names import PARTS_FOLDER
from collage_mpi.results.manifest import COMPLETE, Json, to_go_on
from collage_mpi.results.parts import counting, list_parts, read_part
from collage_mpi.results.reader import (
    Results,
    input_digest,
    inside_input,
    missing_images,
    read_results,
    sorted_keys,
)
from collage_mpi.results.rows import IMAGES, OUTCOME_CODE, SOURCE_CODE, wait_ns
from collage_mpi.results.vectors import check_file, extras_of, of_parts, vectors_path

_ERROR = SOURCE_CODE["error"]


@dataclass
class VerifyReport:
    """What `verify_run` found.

    Attributes:
        status: complete, complete_with_errors, incomplete or damaged.
        rows: image rows found; expected: images of the input.
        doubles: rows whose key another row has too.
        missing: images without a row.
        vectors: of answered images; None where the run keeps none.
        problems: one sentence each, [] when the run is proven complete.
        notes: worth knowing, no fault.
        writing: the job that is writing to an unfinished run, as "host h, pid p".
        to_go_on: what to do about an incomplete one.
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
    to_go_on: str = ""

    @property
    def ok(self) -> bool:
        """Every image exactly once, and nothing else wrong."""
        return not self.problems and self.status in COMPLETE

    @property
    def exit_code(self) -> ExitCode:
        """0 for proven (error rows included), 6 for incomplete, 4 for damaged."""
        if self.ok:
            return ExitCode.COMPLETE
        return ExitCode.INCOMPLETE if self.status == "incomplete" else ExitCode.DATA

    @property
    def headline(self) -> str:
        """One line: "complete: 10,000 of 10,000 rows, no doubles"."""
        doubles = f"{self.doubles:,} doubles" if self.doubles else "no doubles"
        status = self.status.replace("_", " ")
        errors = f", {self.error_rows:,} error rows" if self.error_rows else ""
        vectors = "" if self.vectors is None else f", {self.vectors:,} vectors"
        return f"{status}: {self.rows:,} of {self.expected:,} rows, {doubles}{errors}{vectors}"


def verify_run(path: Path | str, results: Results | None = None) -> VerifyReport:
    """Check the run in `path`. Damage is reported, not raised.

    Args:
        path: the run directory.
        results: what `read_results` gave of it, where it was read already.

    Raises:
        EnvironmentFault: there is no run in `path`, or it cannot be read.
    """
    report = VerifyReport(Path(path))
    _check(report, results)
    if not report.ok:
        _look_for_a_writer(report)
    return report


def _check(report: VerifyReport, results: Results | None) -> None:
    try:
        results = results or read_results(report.path)
    except EnvironmentFault:
        raise
    except CollageError as error:
        report.problems.append(str(error))
        return
    report.rows, report.expected = len(results.images), results.manifest["rows"]
    report.to_go_on = to_go_on(results.manifest, report.path)
    if "simulated" in results.manifest:
        report.to_go_on = "remove this folder and simulate again: a simulation begins anew"
    report.error_rows = int((results.images["source"] == _ERROR).sum())
    _check_keys(results, report)
    _check_answers(results, report)
    if extras_of(results.manifest):
        _check_vectors(results, report)
    for entry in results.manifest.get("sessions") or []:
        if entry["rows"] is not None:
            _check_session(results, entry, report)
    _note_late_parts(results, report)
    _conclude(results, report)


def _check_vectors(results: Results, report: VerifyReport) -> None:
    """Every answered image has its vector, once, and nothing else has one."""
    counts, out, report.vectors = counting(results.manifest), results.path, 0
    parts = [part for part in list_parts(out / PARTS_FOLDER) if counts(part)]
    here = of_parts(out, parts, results.manifest)
    for part in (part for part in parts if part not in here):
        path = vectors_path(out, part.session, part.number)
        report.problems.append(
            f"{path}: missing, so the images of {part.path.name} do not count: restore it, or run "
            "again with --resume, which does them again"
        )
    for part in here:
        if part.table != IMAGES.name:
            continue
        path = vectors_path(out, part.session, part.number)
        try:
            found, wrong = check_file(path, read_part(part.path, IMAGES), results.manifest)
        except CollageError as error:
            report.problems.append(str(error))
            continue
        report.vectors += found
        report.problems += wrong


def _look_for_a_writer(report: VerifyReport) -> None:
    """A run that a job is writing to is not to be resumed."""
    writer, _ = find_writer(report.path, Patience(still_s=LOOK_S))
    if writer is None:
        return
    report.writing = str(writer)
    if report.status == "incomplete":
        report.problems = [f"{report.headline}; a job is writing here ({writer})"]


def _note_late_parts(results: Results, report: VerifyReport) -> None:
    """Parts that do not count: their session was taken over, and their images done again."""
    counts = counting(results.manifest)
    late = [part for part in list_parts(results.path / PARTS_FOLDER) if not counts(part)]
    if late:
        report.notes.append(
            f"{len(late):,} parts are not counted, since another session had gone on before "
            f"they came: {late[0].path.name}" + (", ..." if len(late) > 1 else "")
        )


def _check_keys(results: Results, report: VerifyReport) -> None:
    """Each key once, inside the input; and, if none is missing, exactly the input."""
    keys, manifest = sorted_keys(results.images), results.manifest
    double = keys[1:] == keys[:-1]
    report.doubles = int(double.sum())
    if report.doubles:
        first = keys[1:][double][0]
        report.problems.append(f"{report.doubles:,} doubles, the first is {_name(first)}")
    inside = inside_input(keys, manifest)
    limit = manifest.get("limit")
    foreign = int((~inside).sum())
    if foreign:
        first = keys[~inside][0]
        report.problems.append(f"{foreign:,} rows outside the input, the first is {_name(first)}")
    report.missing = missing_images(keys, manifest)
    _check_size(manifest, report)
    digest = manifest.get("input_digest")
    exact = len(keys) == report.expected and not (report.doubles or foreign)
    if digest and exact and input_digest(keys["shard"], keys["row"]) != digest:
        report.problems.append("as many rows as images, but other images: input_digest differs")
    elif limit is not None and manifest.get("order") != "file" and not digest:
        report.problems.append("manifest lacks input_digest, needed for order and limit as set")
    if len(keys) - report.doubles - foreign > report.expected:
        report.problems.append(f"{len(keys):,} rows for {report.expected:,} images")


def _check_size(manifest: Json, report: VerifyReport) -> None:
    """The number of images the manifest expects is the one its shards and limit give."""
    total = sum(shard["count"] for shard in manifest["shards"])
    limit = manifest.get("limit")
    wanted = total if limit is None else min(total, limit)
    if wanted != report.expected:
        report.problems.append(
            f"manifest expects {report.expected:,} rows, its shards and limit give {wanted:,}"
        )


def _name(key: np.void) -> str:
    return f"shard {int(key['shard'])} row {int(key['row'])}"


def _check_answers(results: Results, report: VerifyReport) -> None:
    """What each image row says about itself."""
    images = results.images
    error = images["source"] == _ERROR
    _count(report, images["answered"] == error, "image rows answered and error at once, or neither")
    _count(report, error & (images["reason"] == b""), "error rows without a reason")
    _count(report, images["latency_ns"] < 0, "image rows with a negative latency")
    names = results.manifest.get("class_names")
    if names:
        for column, mask in (("predicted", images["answered"]), ("label", images["has_label"])):
            outside = mask & ((images[column] < 0) | (images[column] >= len(names)))
            _count(report, outside, f"image rows with {column} outside the {len(names)} classes")
    foreign = images["answered"] & _unknown_ranks(results)
    _count(report, foreign, "image rows answered by an unknown rank")
    negative = int((images["answered"] & (wait_ns(images) < 0)).sum())
    if negative:
        report.notes.append(f"{negative:,} images whose parts exceed their latency (wait < 0)")


def _unknown_ranks(results: Results) -> np.ndarray:
    """Rows whose rank is none of their session's world, (n,) bool.

    A later session may have come up with fewer ranks. One that was killed tells no world.
    """
    images = results.images
    unknown = np.zeros(len(images), dtype=bool)
    for entry in results.manifest.get("sessions") or []:
        final = entry.get("final") or {}
        world = final.get("world") or results.manifest.get("world")
        if world:
            mine = images["session"] == entry["session"]
            unknown |= mine & ~np.isin(images["rank"], [member["rank"] for member in world])
    return unknown


def _check_session(results: Results, entry: Json, report: VerifyReport) -> None:
    """A session that closed: its counts, groups against images, tasks against images."""
    session = entry["session"]
    written = np.concatenate([results.images, results.mended])
    images, groups, tasks = (
        rows[rows["session"] == session] for rows in (written, results.groups, results.tasks)
    )
    for name, rows in (("images", images), ("groups", groups), ("tasks", tasks)):
        if len(rows) != entry["rows"][name]:
            report.problems.append(
                f"session {session}: {len(rows):,} rows of {name} found, "
                f"{entry['rows'][name]:,} were written (a part is gone? "
                "Put it back, or go on with --resume)"
            )
    before = len(report.problems)
    for name, rows, column in (("group", groups, "group"), ("task", tasks, "task")):
        doubles = len(rows) - len(np.unique(rows[column]))
        if doubles:
            report.problems.append(f"session {session}: {doubles:,} {name} rows are doubles")
    if len(report.problems) == before:
        _check_groups(images, groups, session, report)
        _check_tasks(images, tasks, session, report)


def _check_groups(
    images: np.ndarray, groups: np.ndarray, session: int, report: VerifyReport
) -> None:
    """A group row says what its image rows add up to."""
    groups = np.sort(groups, order="group")
    place = np.searchsorted(groups["group"], images["group"])
    known = place < len(groups)
    known[known] = groups["group"][place[known]] == images["group"][known]
    of = f"session {session}: "
    _count(report, ~known, of + "image rows whose group has no row")
    images, place = images[known], place[known]
    found = np.bincount(place, minlength=len(groups))
    _count(report, found != groups["images"], of + "groups with another number of image rows")
    from_collage = images["source"] == SOURCE_CODE[COLLAGE]
    cells = np.bincount(place[from_collage], minlength=len(groups))
    _count(report, cells != groups["collage_cells"], of + "groups with other collage_cells")
    last = np.full(len(groups), np.iinfo(np.int64).min)
    np.maximum.at(last, place, images["t0_ns"] + images["latency_ns"])
    ends = groups["t0_ns"] + groups["latency_ns"]
    _count(report, (found > 0) & (last != ends), of + "groups that end with none of their images")
    flags = images["warmup"] != groups["warmup"][place]
    _count(report, flags, of + "image rows whose warm-up flag is not their group's")


def _check_tasks(images: np.ndarray, tasks: np.ndarray, session: int, report: VerifyReport) -> None:
    """Every answered image is resolved by a task of the rank it names (parity: the parity task)."""
    of = f"session {session}: "
    _count(report, tasks["resolved"] > tasks["items"], of + "tasks resolved more than they hold")
    silent = tasks["outcome"] != OUTCOME_CODE["answered"]
    _count(report, silent & (tasks["resolved"] > 0), of + "tasks resolved images unanswered")
    answered = images[images["answered"]]
    ranks = np.union1d(answered["rank"], tasks["rank"])
    by_image, by_task = np.zeros(len(ranks), np.int64), np.zeros(len(ranks), np.int64)
    np.add.at(by_image, np.searchsorted(ranks, answered["rank"]), 1)
    np.add.at(by_task, np.searchsorted(ranks, tasks["rank"]), tasks["resolved"].astype(np.int64))
    for i in np.flatnonzero(by_image != by_task):
        report.problems.append(
            f"{of}rank {ranks[i]} answered {by_image[i]:,} images, "
            f"its tasks resolved {by_task[i]:,}"
        )


def _count(report: VerifyReport, wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        report.problems.append(f"{int(wrong.sum()):,} {what}")


def _conclude(results: Results, report: VerifyReport) -> None:
    """Incomplete is a state of its own; anything else that is wrong is damage."""
    if report.problems:
        return
    manifest_status = results.manifest.get("status")
    bad = results.manifest.get("bad_shards") or []
    if report.missing:
        report.status = "incomplete"
        report.problems.append(f"{report.headline}; {report.to_go_on}")
        if results.complete:
            report.status = "damaged"
            report.problems.append("marked COMPLETE, but images have no row")
    elif bad:
        report.status = "incomplete"
        report.problems.append(f"{report.headline}; all rows of the shards that could be read")
    elif manifest_status not in COMPLETE or not results.complete:
        report.status = "incomplete"
        report.problems.append(
            f"{report.headline}; all rows are there, but the job did not close: "
            "--resume finishes it"
        )
    else:
        report.status = "complete_with_errors" if report.error_rows else "complete"
        if report.status != manifest_status:
            report.problems.append(
                f"manifest says {manifest_status}, {report.error_rows:,} error rows found"
            )
            report.status = "damaged"
    for shard in bad:
        report.problems.append(f"no image of this shard has a row: {shard['reason']}")
