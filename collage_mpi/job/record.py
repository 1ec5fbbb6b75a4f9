"""A record of a coordinator's core: what the core was told and what it gave, to be played again.

A record is a line, then blocks: length, checksum, compressed MessagePack. The first block says how
to make the core, the last one why the record ends. The others hold calls of the core, each with its
result. A call is noted before it is made and its result after it, so that a record also shows a
core that raises or never returns.
"""

from __future__ import annotations

import threading
import time
import typing
import zlib
from ast import literal_eval
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from collage_mpi import __version__
from collage_mpi.core import events as ev
from collage_mpi.core.core import Core
from collage_mpi.core.policies import Confident, First
from collage_mpi.core.schemes import SchemeSettings, make_scheme
from collage_mpi.core.settings import CoreSettings
from collage_mpi.core.table import Table
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.system.files import reading, require_regular, writing
from collage_mpi.system.printable import size_text
from collage_mpi.system.tell import tell

MAGIC = b"collage-mpi record 1\n"  # with the version of the format
FLUSH_S = 1.0  # a kill loses at most the turns of one second
CLOSE_S = 10.0  # how long the end of the job waits for a slow disk
MOST_WAITING = 1 << 20  # entries that wait for a slow disk, some 100 MB
MOST_BYTES = 16 << 30  # of a record before it is compressed
MOST_BLOCK_BYTES = 1 << 30  # of a block that is not compressed, against harmful files
COMPLETE = "complete"
TAKEN = "taken"  # the entry for rows that were taken out
OF_TASK = ("id", "rank", "kind", "source", "attempt", "spare", "positions", "cells")  # what is sent

# The types whose fields a record must share with the core that plays it, by name.
_TYPES = (*typing.get_args(ev.Event), *typing.get_args(ev.Action), CoreSettings, SchemeSettings)
KINDS: dict[str, type] = {kind.__name__: kind for kind in _TYPES}


def _plain(value: Any) -> Any:
    """What MessagePack stores in place of a thing that it lacks."""
    if isinstance(value, np.ndarray):
        # The core does not read vectors, which are long, so their content is left out.
        data = b"" if value.ndim > 1 else value.tobytes()
        return msgspec.msgpack.Ext(0, encode((_form(value.dtype), value.shape, data)))
    if isinstance(value, np.generic):
        return value.item()
    return {name: getattr(value, name) for name in OF_TASK}


def _array(_: int, data: memoryview) -> np.ndarray:
    form, shape, content = msgspec.msgpack.decode(data)
    dtype = np.dtype(literal_eval(form))
    if len(shape) > 1:
        return np.broadcast_to(np.zeros((), dtype), shape)
    return np.frombuffer(bytearray(content), dtype)


@cache
def _form(dtype: np.dtype[Any]) -> str:
    return repr(np.lib.format.dtype_to_descr(dtype))


encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
decode = msgspec.msgpack.Decoder(ext_hook=_array).decode
fields_of = cache(typing.get_type_hints)


def named(things: Sequence[Any]) -> list[tuple[str, Any]]:
    """Events or actions, each with the name of its type."""
    return [(type(thing).__name__, thing) for thing in things]


def made(name: str, values: Sequence[Any]) -> Any:
    """An event or action from its decoded fields, which have a list in place of a set."""
    if name not in KINDS:
        return f"{name} {values}"
    pairs = zip(values, fields_of(KINDS[name]).values(), strict=True)
    return KINDS[name](
        *(frozenset(v) if typing.get_origin(hint) is frozenset else v for v, hint in pairs)
    )


# ---- write ------------------------------------------------------------------


def check_record(path: Path) -> None:
    """Raise where a record cannot be: its folder is missing, or another file has its name.

    Raises:
        EnvironmentFault: the folder cannot be read.
        UsageError: the file is not empty and is no record.
    """
    with writing(path):
        path.parent.stat()
        if path.is_file() and path.stat().st_size and path.open("rb").read(len(MAGIC)) != MAGIC:
            raise UsageError(
                f"--record {path}: this file is no record, and would be lost: name a new file"
            )


class Record:
    """Writes a record, in a thread. A record that cannot be written ends, and the run goes on."""

    def __init__(self, path: Path, settings: CoreSettings, scheme: SchemeSettings, table: Table):
        """`settings` and the others: of the core. Raises OSError."""
        self._path, self._end, self._bytes = path, "", 0
        self._waiting: deque[bytes] = deque()
        self._over = threading.Event()
        self._file = path.open("wb")
        self._file.write(MAGIC)
        fields = {name: list(fields_of(kind)) for name, kind in KINDS.items()}
        rows = table.group_size, table.start_ns, table.session, table.warm_groups
        self._write([encode((__version__, fields, settings, scheme, rows))])
        self._thread = threading.Thread(target=self._work, name="collage-mpi record", daemon=True)
        self._thread.start()

    def add(self, entry: Any) -> None:
        """Add what a turn is told, what it gave, or TAKEN."""
        if self._end:
            return
        try:
            data = encode(entry)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            self._stop(str(error))
            return
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > MOST_BYTES:
            self._stop(f"it has {size_text(MOST_BYTES)}")
        elif len(self._waiting) > MOST_WAITING:
            self._stop("the disk is too slow")

    def close(self) -> None:
        """Write what waits, and the end."""
        self._end = self._end or COMPLETE
        self._over.set()
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        """Write until the record ends."""
        try:
            ended = False
            while not ended:
                self._over.wait(FLUSH_S)
                ended = bool(self._end)
                entries = [self._waiting.popleft() for _ in range(len(self._waiting))]
                if entries:
                    self._write(entries)
            self._write(self._end)
        except OSError as error:
            self._stop(error.strerror or str(error))
        with suppress(OSError):
            self._file.close()

    def _write(self, content: Any) -> None:
        data = zlib.compress(encode(content), 1)  # with a checksum
        self._file.write(len(data).to_bytes(4, "big") + data)
        self._file.flush()

    def _stop(self, why: str) -> None:
        self._end = why
        tell(f"warning: {self._path}: the record ends here: {why}. The run goes on")


class RecordedCore(Core):
    """A core that notes in a record what it is told and what it gives."""

    record: Record

    def step(self, now_ns: int, events: Sequence[ev.Event] = ()) -> list[ev.Action]:
        """As of `Core`."""
        self.record.add((now_ns, named(events)))
        try:
            actions = super().step(now_ns, events)
        except Exception as error:
            self.record.add(raised(error))
            raise
        self.record.add(named(actions))
        return actions

    def take_tasks(self) -> np.ndarray:
        """As of `Core`. The rows of the table are taken at the same time."""
        self.record.add(TAKEN)
        return super().take_tasks()


def raised(error: Exception) -> list[tuple[str, Any]]:
    """What a turn gave that has failed."""
    return [("raised", f"{type(error).__name__}: {error}")]


# ---- play again -------------------------------------------------------------


class Replay:
    """Makes the core of a record and plays its turns.

    Attributes:
        core: as it is after the turns that were played.
        package: version of the package that wrote the record.
        turns: number of turns played.
        events, actions: name of the type -> number.
        core_ns: time that the core took. longest: (time, number) of the longest turn.
        end: why the record ends; "" as long as it is not known.
        error: what the core raised, if it raised the same when it was recorded, or if `cut`.
        cut: whether the record lacks what its last turn gave.
        difference: events of the last turn, its actions in the record, and its actions now; None if
            these are the same.
    """

    def __init__(self, path: Path) -> None:
        """Read how the core is made.

        Raises:
            EnvironmentFault: the file cannot be read.
            DataFault: it is no record, it is damaged, or it has other events.
            UsageError: no installed package has the scheme.
        """
        self._path, self._entries = path, self._read()
        ours = {name: list(fields_of(kind)) for name, kind in KINDS.items()}
        with reading(path, "damaged"):
            head = next(self._entries, None)
            if head is None:
                raise DataFault(f"{path}: the record ends before its first turn (cut)")
            self.package, theirs, core, scheme, rows = decode(head)
            if theirs != ours:
                raise DataFault(
                    f"{path}: collage_mpi {self.package} wrote this record, with other events than "
                    f"the installed {__version__} has: replay it with the version that wrote it"
                )
            scheme["accept"] = {
                kind: Confident(**policy) if "confidence" in policy else First(**policy)
                for kind, policy in scheme["accept"].items()
            }
            asked = CoreSettings(**core), make_scheme(SchemeSettings(**scheme))
            self.core = Core(*asked, Table(*rows))
        self.turns, self.core_ns, self.longest = 0, 0, (0, 0)
        self.events, self.actions = Counter[str](), Counter[str]()
        self.end, self.error, self.cut = "", "", False
        self.difference: tuple[list[Any], list[Any], list[Any]] | None = None

    def play(self, until: int | None = None) -> None:
        """Play all turns, or the first ones, up to the first whose actions differ.

        Raises:
            DataFault: the record is damaged.
        """
        for now_ns, events in self._turns():
            self.turns += 1
            self.events.update(name for name, _ in named(events))
            gave, gives = next(self._entries, None), encode(self._step(now_ns, events))
            self.cut = gave is None
            if gave not in (None, gives):
                with reading(self._path, "damaged"):
                    then, now = ([made(*each) for each in decode(of)] for of in (gave, gives))
                self.difference = events, then, now
            if self.difference or self.turns == until:
                return

    def _step(self, now_ns: int, events: list[Any]) -> list[tuple[str, Any]]:
        start_ns = time.perf_counter_ns()
        try:
            actions = named(self.core.step(now_ns, events))
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            return raised(error)
        took_ns = time.perf_counter_ns() - start_ns
        self.core_ns += took_ns
        self.longest = max(self.longest, (took_ns, self.turns))
        self.actions.update(name for name, _ in actions)
        return actions

    def _turns(self) -> Iterator[tuple[int, list[Any]]]:
        """The time and the events of each turn; what the turn gave is the next entry."""
        with reading(self._path, "damaged"):
            for entry in map(decode, self._entries):
                if entry == TAKEN:
                    self.core.table.take()
                    self.core.take_tasks()
                else:
                    yield entry[0], [made(*each) for each in entry[1]]

    def _read(self) -> Iterator[bytes]:
        """The entries, up to the end or to where the file is cut."""
        with reading(self._path, "damaged"):
            require_regular(self._path)
            with self._path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise DataFault(f"{self._path}: no record of this version's `run --record`")
                while len(head := file.read(4)) == 4:
                    data = file.read(length := int.from_bytes(head, "big"))
                    if len(data) < length:
                        return
                    block = decode(zlib.decompressobj().decompress(data, MOST_BLOCK_BYTES))
                    if isinstance(block, str):
                        self.end = block
                        return
                    yield from block
