"""All schedules of a few owners, one operation after another, with few switches between them.

Each has none or one lost reply, a view of names that is so many operations old, and none or one
kill. Asked: each record follows; nothing that counted is lost; found complete is complete; it ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from greenlet import getcurrent, greenlet
from msgspec.structs import replace

from collage_mpi.errors import CollageError
from collage_mpi.ledger import owner as ledger_owner
from collage_mpi.ledger.owner import Owner
from collage_mpi.ledger.records import Part, Run
from tests.ledger_quick import Quick, QuickStore
from tests.ledger_world import Wrong, positions

Case = tuple[tuple[int, ...], int, int, int]  # switches, lost link, lag, kill
SHORT = {"BEAT_S": 4.0, "SILENT_S": 12.0, "LOOK_S": 3.0, "LIST_S": 20.0, "UNSEEN_S": 60.0}
LIMIT = 3000
FAIR = 70  # from this operation on all owners have their turns
POINTS = range(1, 40)


class Killed(BaseException):
    """A job is killed."""


@contextmanager
def short_times() -> Iterator[None]:
    """Times count operations here."""
    with mock.patch.multiple(ledger_owner, **SHORT):
        yield


def cases(owners: int, switches: int) -> Iterator[Case]:
    """All of a number of owners."""
    points = POINTS if owners == 2 else range(1, 60, 2)
    ways = itertools.chain.from_iterable(
        itertools.combinations(points, n) for n in range(switches + 1)
    )
    return itertools.product(ways, (-1, 0, 1, 2, 3), (0, 4, 12), (-1, 8, 20))  # type: ignore[return-value]


def play(owners: int, cell: int, want: int, case: Case) -> Quick:
    """Play a case. Raises Wrong."""
    switches, lost, lag, kill = case
    hub = getcurrent()
    run = Run(1, 0, 3, cell)
    truth = Quick(run, lag, lost)
    live: dict[int, greenlet] = {}
    found: list[int] = []

    def work(number: int) -> None:
        store = QuickStore(truth, lambda operation: hub.switch())
        owner = Owner(store, run, 1, lambda: float(truth.step), f"{number:032x}")  # type: ignore[arg-type]
        owner.rate, owner.counts = 0.2, truth.done
        todo: list[tuple[int, int]] = []
        older: Part | None = None
        for count in itertools.count():
            truth.step += 1
            hub.switch()
            owner.turn(0 if todo else want)
            while owner.grants:
                grant = owner.grants.popleft()
                todo += [(grant.start, p) for p in positions(grant.spans)]
            if owner.complete:
                found.append(number)
                return
            while todo:
                start, position = todo.pop(0)
                if not any(a <= position < b for a, b in owner.held(start)):
                    continue
                owner.ahead = {cell: (todo[0][1], todo[-1][1] + 1) for cell, _ in todo[:1]}
                file = f"images-{number:04d}-%06d.parquet"
                part = Part(file % count, 1, 0, ((position, position + 1),))
                store.overwrite(f"parts/{part.file}", b"")
                owner.wrote(part)
                if older is not None:  # it was refuted meanwhile
                    owner.wrote(replace(older, file=file % (count + LIMIT), reason="refuted"))
                older = part
                break

    for number in range(owners):
        live[number] = greenlet(work)
        live[number].switch(number)
    current = 0
    try:
        for step in range(LIMIT):
            if step in switches:
                current = (current + 1) % owners
            if step == kill and len(live) == owners:
                current = current if current in live else next(iter(live))
                _kill(live.pop(current))
            if not live:
                break
            if step > FAIR or current not in live:
                current = [*live][step % len(live)]
            live[current].switch()
            if live[current].dead:
                del live[current]
                if not truth.complete:
                    raise Wrong("found complete, is not")
        else:
            raise Wrong("no end")
    except CollageError as error:
        raise Wrong(f"{type(error).__name__}: {error}") from error
    finally:
        for thread in live.values():
            _kill(thread)
    if found and not truth.complete:
        raise Wrong("not complete")
    return truth


def _kill(thread: greenlet) -> None:
    try:
        thread.throw(Killed)
    except Killed:
        pass
