"""`collage-mpi replay FILE`: plays the record of a run again and compares what the core decides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import Command
from collage_mpi.errors import ExitCode
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import counted, numbered, one_line, say

if TYPE_CHECKING:
    from collage_mpi.core.core import Core
    from collage_mpi.job.record import Replay

_SHOWN = 20  # events of a turn, images or tasks
_BITS = ("OPEN", "DONE", "DRAWN", "KEPT", "DECIDED", "TROUBLED")  # of an image's state
_WIDTH = 2000  # of an event or action


@dataclass(frozen=True, kw_only=True)
class ReplayArguments(Arguments):
    """The arguments of replay."""

    record: Path = setting(
        REQUIRED, "file that `run --record` wrote", metavar="FILE", positional=True
    )
    until: int | None = setting(
        None, "play only so many turns", unset="all", metavar="TURN", at_least=1
    )
    state: bool = switch("print the core's state after the last turn that is played")


def execute(args: ReplayArguments) -> int:
    """Replay. Returns 1 if a turn has other actions than the record."""
    from collage_mpi.job.record import COMPLETE, Replay

    replay = Replay(args.record)
    replay.play(args.until)
    turn, (longest_ns, longest) = f"{replay.turns:,}", replay.longest
    events = sum(replay.events.values())
    told = f"{counted(events, 'event')} in {counted(replay.turns, 'turn')}: the same actions"
    if replay.difference:
        _tell_difference(replay, *replay.difference)
    elif replay.error:
        what = "fails now; the record is cut in it" if replay.cut else "fails as it did in the run"
        say(f"{told}. Turn {turn} {what}: {one_line(replay.error)}")
    elif replay.end == COMPLETE or replay.turns == args.until:
        say(told)
    else:
        say(f"{told}. The record ends in turn {turn} ({replay.end or 'cut'})")
    say(
        f"events: {_counts(replay.events)}\nactions: {_counts(replay.actions)}\n"
        f"the core took {replay.core_ns / max(1, events) / 1e3:.1f} us an event; the longest turn, "
        f"{longest:,}, took {longest_ns / 1e3:.1f} us"
    )
    if args.state:
        say(state_of(replay.core))
    return int(ExitCode.DEFECT if replay.difference else ExitCode.COMPLETE)


def _tell_difference(replay: Replay, told: list[Any], then: list[Any], now: list[Any]) -> None:
    """What the core was told, and the first action that differs."""
    lines = [[*map(_line, actions), "no further action"] for actions in (then, now)]
    first = next((i for i, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), 0)
    events = "\n  ".join(map(_line, told[:_SHOWN]))
    say(
        f"turn {replay.turns:,} differs from the record of collage_mpi {replay.package}. It has "
        f"{counted(len(told), 'event')}:\n  {events}\n"
        f"action {first + 1} of {len(then)} in the record:\n  {lines[0][first]}\n"
        f"action {first + 1} of {len(now)} now:\n  {lines[1][first]}"
    )


def _line(thing: Any) -> str:
    """An event or action on a line, with the first and last items of arrays."""
    import numpy as np

    with np.printoptions(threshold=8, edgeitems=2):
        return one_line(thing, _WIDTH)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.most_common()) or "none"


def state_of(core: Core) -> str:
    """A core's images, ranks and work that waits, in words."""
    from collage_mpi.core import states

    bits = {getattr(states, name): name.lower() for name in _BITS}
    counts, special = Counter[str](), list[str]()
    slots = core.table.state.nonzero()[0]
    for slot in slots[core.table.position[slots].argsort()].tolist():
        has = [name for bit, name in bits.items() if core.table.state[slot] & bit]
        counts.update(has)
        if len(has) > 1 and len(special) < _SHOWN:
            position = core.table.position[slot]
            of = [f"{task.id} (rank {task.rank})" for task in core.holders(slot)]
            special.append(f"  image {position}: {', '.join(has)}; {numbered('task', of)}")
    come, waiting = core.admission, {"never sent": core.fresh.count, "late": len(core.late)}
    waiting |= {f"{kind} again": queue.count for kind, queue in core.queues.items()}
    input_is = "closed" if come.closed else "paused" if come.paused else "open"
    lines = [
        f"at {core.now_ns} ns; next timer: {core.wake_ns}; stopping: {core.stopping}; the input is "
        f"{input_is}, {counted(come.promised, 'image')} asked for",
        f"images: {_counts(counts)}; that wait: {_counts(Counter(waiting))}",
        *special,
    ]
    for rank in core.ranks.known.values():
        lines.append(
            f"  rank {rank.id} ({', '.join(sorted(rank.kinds))} on {rank.host}): {rank.status}, "
            f"{rank.messages} of {rank.credit} messages, tasks {sorted(rank.tasks)}, "
            f"{rank.bound.count} images bound, {rank.pace_ns / 1e6:.3f} ms an image"
        )
    return "\n".join(lines)


COMMAND = Command(
    execute,
    ReplayArguments,
    epilog="Exit codes: 0, the same actions. 1, a turn has other actions. 4, the file is no record "
    "or damaged, or a version with other events wrote it.",
)
