"""What goes wrong on a shared folder, drawn from one seed."""

from __future__ import annotations

import errno
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

HANG_S = 180.0
KEEP_S = 60.0
CHANGES = ("create", "ensure", "link", "mkdir", "unlink", "rename", "rmdir", "write", "setattr")
MAKES = ("create", "link", "mkdir")
REMOVES = ("unlink", "rename", "rmdir")
BY_HANDLE = ("getattr", "read", "write", "readdir")


class Hang(NamedTuple):
    """A time in which the server does not answer. `host`: only this host; None: any."""

    start_s: float
    end_s: float
    host: str | None = None


class Fate(NamedTuple):
    """What becomes of one call.

    Attributes:
        before_s, after_s: how long the call and its reply travel.
        instead: the error that the host gets, while the server does nothing; 0 for none.
        told: the error that the host gets though the server has done it; 0 for none.
    """

    before_s: float
    after_s: float
    instead: int = 0
    told: int = 0


@dataclass(frozen=True)
class Misbehaviour:
    """All of a folder's faults. Silly renames and what open() promises are always there.

    Attributes:
        seed: of each host's draws.
        call_s: how long a call to the server takes.
        keep_s: the longest time that a host keeps attributes, names, missing names and listings.
        lost: share of the changes that are done, but whose host is told EEXIST, ENOENT or EIO.
        eio, estale: share of the calls that fail.
        room_bytes: of the disk; None has no end.
        quota_bytes: of each user.
        hangs: when the server does not answer.
        apart: each folder is a file system of its own for link and rename.
    """

    seed: int = 0
    call_s: float = 0.0
    keep_s: float = 0.0
    lost: float = 0.0
    eio: float = 0.0
    estale: float = 0.0
    room_bytes: int | None = None
    quota_bytes: int | None = None
    hangs: tuple[Hang, ...] = ()
    apart: bool = False

    @classmethod
    def drawn(cls, seed: int, kinds: Sequence[str] | None = None, **given: Any) -> Misbehaviour:
        """What a seed draws. `kinds`: of KINDS, those that are to happen; None: drawn too."""
        rng = random.Random(seed)
        if kinds is None:
            kinds = [kind for kind in KINDS if rng.random() < 0.3]
        drawn = cls(seed, call_s=rng.choice((0.0, 0.001, 0.02)), keep_s=rng.choice((0, 3, KEEP_S)))
        for kind in kinds:
            drawn = replace(drawn, **KINDS[kind](rng))
        return replace(drawn, **given)

    def silence_s(self, host: str, now_s: float) -> float:
        """How long the server goes on not to answer this host; 0 where it answers."""
        ends = [
            hang.end_s
            for hang in self.hangs
            if hang.start_s <= now_s < hang.end_s and hang.host in (None, host)
        ]
        return max(ends, default=now_s) - now_s

    def fate(self, host: str, op: str, now_s: float, rng: random.Random) -> Fate:
        """Draw what becomes of a call."""
        draw, before_s, after_s = rng.random(), self.call_s / 2, self.call_s / 2
        if silent_s := self.silence_s(host, now_s) if self.hangs else 0.0:
            if draw < 0.5:  # the server had the call, and only its reply is late
                return Fate(before_s, after_s + silent_s)
            return Fate(before_s + silent_s, after_s)
        if draw < self.lost:
            if op not in CHANGES:
                return Fate(before_s, after_s)
            repeated = errno.EEXIST if op in MAKES else errno.ENOENT if op in REMOVES else errno.EIO
            return Fate(before_s, after_s, told=rng.choice((repeated, errno.EIO)))
        if draw < self.lost + self.eio:
            return Fate(before_s, after_s, instead=errno.EIO)
        if draw < self.lost + self.eio + self.estale and op in BY_HANDLE:
            return Fate(before_s, after_s, instead=errno.ESTALE)
        return Fate(before_s, after_s)


def _hang(rng: random.Random) -> dict[str, Any]:
    start_s = rng.uniform(0, HANG_S)
    return {"hangs": (Hang(start_s, start_s + HANG_S, rng.choice((None, "a", "b"))),)}


def _hang_for_ever(rng: random.Random) -> dict[str, Any]:
    return {"hangs": (Hang(rng.uniform(0, HANG_S), math.inf, rng.choice(("a", "b"))),)}


# What may be drawn of each kind. Two users are no fault: they are who asks (`host.User`).
KINDS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "late": lambda rng: {"keep_s": KEEP_S},
    "slow": lambda rng: {"call_s": 0.02},
    "lost reply": lambda rng: {"lost": rng.choice((0.01, 0.05, 0.2))},
    "EIO": lambda rng: {"eio": rng.choice((0.001, 0.01))},
    "ESTALE": lambda rng: {"estale": rng.choice((0.01, 0.05))},
    "ENOSPC": lambda rng: {"room_bytes": rng.randrange(1 << 18)},
    "EDQUOT": lambda rng: {"quota_bytes": rng.randrange(1 << 18)},
    "hang": _hang,
    "hang for ever": _hang_for_ever,
    "EXDEV": lambda rng: {"apart": True},
}
