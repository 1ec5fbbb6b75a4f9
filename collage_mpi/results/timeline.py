"""Makes a timeline of tasks on ranks from the rows of a run.

The length of a bar is measured by the rank's clock (compute), and its end by rank 0's: the
bar ends when rank 0 noticed the answer. A rank does one task at a time, so the end is moved to the
start of the rank's next bar if that is earlier. So bars are late by the answer's transfer time and
rank 0's polling interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import SINGLE, TABLE
from collage_mpi.results.manifest import clock_offsets_ns, finals
from collage_mpi.results.reader import Results
from collage_mpi.rows import KINDS, OUTCOMES, ran_together

STRAGGLER = 3.0  # times the median service time of the rank's kind
STATES = ("used", "late", "skipped", "failed", "lost", "unfinished")
_LOOKS: dict[str, tuple[str, str]] = {  # kind of a used task, or state of another -> colour, legend
    **{kind: ("#56B4E9", f"{kind} answer of an earlier version") for kind in KINDS},
    **{kind.name: (kind.colour, kind.legend) for kind in TABLE},
    "late": ("#E69F00", "late answer, resolved nothing"),
    "skipped": ("#000000", "skipped: cancelled before it began"),
    "failed": ("#D55E00", "failed"),
    "lost": ("#D55E00", "lost with its rank"),
    "unfinished": ("#CC79A7", "unfinished"),
}
Json = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """One task on its rank. Times are in ns since the session began.

    Attributes:
        state: of STATES. used: it resolved an image. late: it was answered but resolved none.
        sent_ns, start_ns, end_ns: when rank 0 sent the task, the rank began it, and it ended.
        straggler: whether its service time was over STRAGGLER times the median of its kind.
        lane, lanes: its index in its batch, and the size of the batch.
        team: the number of its session minus that of the shown groups; 0 for the same team.
    """

    task: int
    rank: int
    kind: str
    group: int
    state: str
    sent_ns: int
    start_ns: int
    end_ns: int
    straggler: bool
    lane: int
    lanes: int
    team: int


def look_of(bar: Bar) -> str:
    """The key of a bar in `looks`."""
    return bar.kind if bar.state == "used" else bar.state


@dataclass(frozen=True)
class GroupRelease:
    """The times of a group's admission and of its last answer, in ns since the session began."""

    group: int
    t0_ns: int
    end_ns: int


@dataclass(frozen=True)
class Timeline:
    """The tasks during some groups of a run.

    Attributes:
        ranks: rank -> its label: "collage 10" or "rank 3".
        bars: by rank, then by time.
        releases: of the groups, in their order.
    """

    ranks: Mapping[int, str]
    bars: tuple[Bar, ...]
    releases: tuple[GroupRelease, ...]

    @property
    def begin_ns(self) -> int:
        """Time of the first admission."""
        return min(release.t0_ns for release in self.releases)

    @property
    def end_ns(self) -> int:
        """Time of the last answer."""
        return max(release.end_ns for release in self.releases)


def looks(timeline: Timeline) -> dict[str, tuple[str, str]]:
    """Colour and legend text of the bars: the kind of used tasks, or the state of others ->
    both."""
    found = {look_of(bar) for bar in timeline.bars}
    return {look: _LOOKS[look] for look in _LOOKS if look in found}


def make_timeline(run: Results, first: int, last: int, session: int = 1) -> Timeline:
    """The tasks that ran during groups `first` to `last`, both included.

    If there are several teams, `session` is that of the team that had the groups. The tasks of the
    other teams are included, with times on this team's clock.

    Raises:
        UsageError: the session has no such groups.
        DataFault: the run has no task rows.
    """
    if not len(run.tasks):
        raise DataFault(f"{run.path}: no tasks in this run")
    groups = run.groups[run.groups["session"] == session]
    chosen = np.sort(groups[(groups["group"] >= first) & (groups["group"] <= last)], order="group")
    if not len(chosen):
        known = f"{groups['group'].min()} to {groups['group'].max()}" if len(groups) else "none"
        raise UsageError(f"{run.path}: no groups {first} to {last}; session {session} has {known}")
    ends_ns = chosen["t0_ns"] + chosen["latency_ns"]
    tasks = _side_by_side(run, session)
    begin_ns, end_ns = int(chosen["t0_ns"].min()), int(ends_ns.max())
    shown = tasks[(tasks["done_ns"] >= begin_ns) & (tasks["sent_ns"] <= end_ns)]
    holders = [member for member in run.manifest.get("world") or () if member.get("kinds")]
    ranks = {int(member["rank"]) for member in holders} | {int(r) for r in shown["rank"]}
    called = [[kind] for kind in KINDS if kind != SINGLE]
    only = {int(m["rank"]): m["kinds"][0] for m in holders if m["kinds"] in called}
    releases = zip(chosen, ends_ns.tolist(), strict=True)
    return Timeline(
        ranks={rank: f"{only.get(rank, 'rank')} {rank}" for rank in sorted(ranks)},
        bars=tuple(
            _bars(np.sort(shown, order=("rank", "done_ns", "sent_ns", "task")), tasks, session)
        ),
        releases=tuple(GroupRelease(int(g["group"]), int(g["t0_ns"]), end) for g, end in releases),
    )


def _side_by_side(run: Results, session: int) -> np.ndarray:
    """The tasks of a session and of the other sessions of its MPI world that ran with it, on the
    clock of the session. Another world has other ranks of the same numbers."""
    told = finals(run.manifest)
    ranks = {each: {m["rank"] for m in told[each].get("world") or ()} for each in told}
    own = ranks.get(session, set())
    later_ns = {
        each: later
        for each, later in clock_offsets_ns(run.manifest, session).items()
        if each == session or not own & ranks[each]
    }
    tasks = run.tasks[np.isin(run.tasks["session"], list(later_ns))]
    for other, later in later_ns.items():
        mine = tasks["session"] == other
        for name in ("sent_ns", "done_ns"):
            tasks[name][mine] += later
    return tasks


def _bars(shown: np.ndarray, tasks: np.ndarray, session: int) -> Iterator[Bar]:
    service_ns = tasks["compute_ns"]
    answered = tasks["outcome"] == OUTCOMES.index("answered")
    limits = {
        code: STRAGGLER * float(np.median(service_ns[answered & (tasks["kind"] == code)]))
        for code in np.unique(tasks["kind"][answered]).tolist()
    }
    lanes = dict.fromkeys(map(_message, shown), 0)  # message -> tasks of it that were yielded
    for row, end_ns, size in zip(shown, _ends_ns(shown), ran_together(shown), strict=True):
        service = int(row["compute_ns"])
        outcome = OUTCOMES[row["outcome"]]
        lane = lanes[_message(row)] if size > 1 else 0
        lanes[_message(row)] += int(size > 1 and service > 0)
        yield Bar(
            task=int(row["task"]),
            rank=int(row["rank"]),
            kind=KINDS[row["kind"]],
            group=int(row["group"]),
            state=outcome if outcome != "answered" else "used" if row["resolved"] else "late",
            sent_ns=int(row["sent_ns"]),
            start_ns=max(int(row["sent_ns"]), end_ns - service),
            end_ns=end_ns,
            straggler=outcome == "answered" and service > limits[int(row["kind"])],
            lane=lane,
            lanes=int(size),
            team=int(row["session"]) - session,
        )


def _ends_ns(tasks: np.ndarray) -> list[int]:
    """When each task's service ended: when rank 0 noticed the answer, or when the rank's next
    service began, whichever is earlier.

    Args:
        tasks: (n,) of TASK_ROW, sorted by rank, done_ns and sent_ns.
    """
    ends: list[int] = tasks["done_ns"].tolist()
    last, free_ns = None, 0
    for i in range(len(tasks) - 1, -1, -1):
        service = int(tasks[i]["compute_ns"])
        if service == 0:
            continue  # it did not run
        message = _message(tasks[i])
        if last is None or message[0] != last[0]:
            free_ns = ends[i]
        if message != last:  # tasks of one batch end together
            end_ns = max(message[1], min(ends[i], free_ns))
            free_ns = end_ns - service
        ends[i], last = end_ns, message
    return ends


def _message(task: np.ndarray) -> tuple[int, int, int]:
    """Rank, sent_ns and done_ns, which identify the message of a task."""
    return int(task["rank"]), int(task["sent_ns"]), int(task["done_ns"])
