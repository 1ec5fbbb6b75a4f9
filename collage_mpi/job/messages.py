"""The control messages between rank 0, the workers and other teams, as JSON.

Tasks and answers are not control messages. Each field is declared here once. A message with a
missing field, an unknown field or a wrong type is refused with WireFault, which names the rank and
the field. Records of other modules are sent as they are declared there.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from collage_mpi.encoding.vectors import Extras, KeptColumn
from collage_mpi.errors import CollageError
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.models.info import Geometry, Loading
from collage_mpi.models.named import is_foreign, is_null
from collage_mpi.mpi.protocol import CONTROL_BYTES, WireFault, pack_control, unpack_control
from collage_mpi.settings.stages import CLASS, Stage
from collage_mpi.system.process_tree import ProcessId

SHARDS_FRAME_BYTES = 128  # of a message of shards: its header, and the JSON around the texts

# ---- down: rank 0 to a worker -----------------------------------------------


@dataclass(frozen=True)
class Rank0:
    """Where the coordinator is, so that its ranks end soon after it. The answer is Here.

    Attributes:
        host: its host name.
        process: its process; None if the system does not say.
        tcp_link: where to connect; None if the launcher ends all ranks when one ends.
    """

    host: str
    process: ProcessId | None
    tcp_link: Offer | None


@dataclass(frozen=True)
class Shards:
    """The shards, or the next part of the list, for ranks that read them. Sent before Welcome.

    Attributes:
        descriptions: a text for each shard (`row_reader.described`).
    """

    descriptions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """A session begins, and what the rank must know of it. The answer is Hello, or Fault.

    Attributes:
        networks: kind -> network spec that the rank loads.
        how: device, number format and delays of the networks.
        geometry: shapes of the items and the collage.
        credit: most messages of tasks that may be under way to the rank.
        batch: most inputs of one message, as far as is known.
        extras: what an answer carries of each image beyond its class.
        fit: how files become images (`pictures.PictureFit`); None if tasks carry no files.
        must_read: whether the rank fails if its host does not have the shards. Otherwise Hello
            says so.
        stages: kind -> how the network of a stage differs from the exact one's.
        agree_on: what of an answer is compared with others, CLASS or TOP5.
        ranks: number of ranks of the world. All are assumed to be on one host and share its cores,
            unless the launcher says how many are.
    """

    networks: dict[str, str]
    how: Loading
    geometry: Geometry
    credit: int
    batch: int
    extras: Extras
    fit: str | None
    must_read: bool
    ranks: int
    agree_on: str = CLASS
    stages: dict[str, Stage] = field(default_factory=dict)

    def how_of(self, kind: str, spec: str) -> Loading:
        """How the network of a kind, with this spec, is run, and the shapes that it is told."""
        how, geometry = self.how, self.geometry
        if (stage := self.stages.get(kind)) is not None:
            assert how.tuning is not None  # rank 0 says it
            how, geometry = replace(how, tuning=stage.tuning(how.tuning)), geometry.at_px(stage.px)
        told = is_null(spec) or is_foreign(spec)
        return replace(how, geometry=geometry if told else None)  # weights files know their shapes


@dataclass(frozen=True)
class Measure:
    """Time the network of this kind with a batch of inputs, while other ranks wait.

    The answer is Measured.
    """

    kind: str
    batch: int


@dataclass(frozen=True)
class Start:
    """Tasks may come.

    Attributes:
        costs: kind -> service time of its network divided by that of a single image.
        batch_costs: kind -> time of each further input of a batch divided by that of the first.
        batch: groups that are sent together.
        task_bytes, answer_bytes: length of the longest message of tasks, and of answers.
        runtimes: kind -> the folder in which its network, made for another runtime, is or will be.
        steady: kind -> how every rank must answer whose answers are promised to follow from the
            picture alone, as `Hello.how` has it.
    """

    costs: dict[str, float]
    batch_costs: dict[str, float]
    batch: int
    task_bytes: int
    answer_bytes: int
    runtimes: dict[str, str] = field(default_factory=dict)
    steady: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """The session is over."""


@dataclass(frozen=True)
class Release:
    """The session is over for this rank, while others go on, perhaps for hours."""


@dataclass(frozen=True)
class Stop:
    """The job is over; all ranks end with this exit code. The answer is Bye."""

    exit_code: int


# Longer than a coordinator waits for Byes: for ranks that owe an answer, idle, and silent ranks.
LEAVE_WAIT_S = 90.0


@dataclass(frozen=True)
class Leave:
    """All ranks have said Bye, so MPI may end. Sent only in a world that is not fault-tolerant.

    No rank enters MPI_Finalize before all ranks certainly will. If a job is aborted while some
    ranks are in it, Open MPI's launcher sometimes hangs or crashes (3 of 100 times; 5.0.11, in
    PMIx). A rank that has said Bye waits for this message for LEAVE_WAIT_S at most: its coordinator
    may be stopped. Then it enters MPI_Finalize all the same, whose time is limited.
    """


# ---- up: a worker to rank 0 -------------------------------------------------


@dataclass(frozen=True)
class Here:
    """This rank has started, and MPI works."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The rank's networks are loaded and warmed up.

    Attributes:
        host, pid: where the rank runs.
        kinds: of its networks.
        devices: of its networks, without duplicates.
        serials: of these, as far as they tell.
        tuning: kind -> number format and compilation of its network.
        fingerprints: kind -> fingerprint of its network.
        service_ns: kind -> time of one input; other ranks may be at work meanwhile.
        longest_ns: the longest time of any batch that was tried.
        classes: kind -> number of classes of its network.
        columns: what its answers carry of each image beyond the class.
        cannot_read: why the rank must be sent pixels although it was sent the shards, or "".
        like: the kind of its processor, and what else decides the last bits of its scores.
        known: class and score of each known input (`Networks`), by its exact network.
    """

    host: str
    pid: int
    kinds: tuple[str, ...]
    devices: tuple[str, ...]
    tuning: dict[str, str]
    fingerprints: dict[str, str]
    service_ns: dict[str, int]
    longest_ns: int
    classes: dict[str, int]
    columns: tuple[KeptColumn, ...]
    cannot_read: str
    serials: tuple[str, ...] = ()
    like: str = ""
    known: tuple[tuple[int, float], ...] = ()

    def how(self, kind: str) -> str:
        """In which format, and on which devices, the rank's network of this kind answers."""
        devices = sorted({device.partition(":")[0] for device in self.devices})
        return f"{self.tuning[kind]} on {' and '.join(devices)}"


@dataclass(frozen=True)
class Fault:
    """The rank cannot work: why, and the exit code that fits."""

    message: str
    exit_code: int


@dataclass(frozen=True)
class Measured:
    """Times of a few calls of a network.

    Attributes:
        service_ns: the shortest wall-clock time.
        cpu_ns: the median processor time; None if a GPU does the work.
        fits: whether the batch fits the device's memory; if not, the times mean nothing.
    """

    service_ns: int
    cpu_ns: int | None
    fits: bool = True


@dataclass(frozen=True)
class Changed:
    """The rank has tried another runtime, in the middle of a session.

    Attributes:
        kind: of its network.
        runtime: who answers from now on, one of `rows.ANSWERERS`; "" if the rank does no more
            tasks of this kind.
        why: why the rank stays with torch, or does no more; "" if it has changed over.
    """

    kind: str
    runtime: str
    why: str


@dataclass(frozen=True)
class Bye:
    """The rank ends now or, in a world that is not fault-tolerant, after Leave."""


# ---- between rank 0 and the coordinators of other teams, which also get Rank0, Stop and Leave, and
# say Here and Bye ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halt:
    """Rank 0 to a team: stop as if a signal had come."""

    reason: str


@dataclass(frozen=True)
class Ended:
    """A team to rank 0: it has ended with this exit code; why, if it could not work or go on."""

    exit_code: int
    why: str


# ---- as bytes ---------------------------------------------------------------

ToWorkers = Rank0 | Shards | Welcome | Measure | Start | End | Release | Stop | Leave
FromWorkers = Here | Hello | Fault | Measured | Changed | Bye
Message = ToWorkers | FromWorkers | Halt | Ended
TYPES: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in get_args(Message)}


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that are sent, by name."""
    return {each.name: getattr(record, each.name) for each in fields(record)}


_ENCODER = json.JSONEncoder(default=_fields)


def pack(out: np.ndarray, session: int, message: Message) -> int:
    """Write a control message into `out`, (capacity,) uint8, and return its length in bytes.

    Raises:
        WireFault: the message does not fit `out`.
    """
    return pack_control(out, session, as_text(message).encode())


def as_text(message: Message) -> str:
    """A control message as JSON, which `read_text` reads."""
    return _ENCODER.encode({"what": type(message).__name__.lower(), **vars(message)})


def shards_in_messages(descriptions: Sequence[str]) -> list[Shards]:
    """The descriptions in order, in as few messages as possible."""
    parts: list[list[str]] = []
    free = 0
    for text in descriptions:
        needed = len(json.dumps(text)) + len(", ")
        if needed > free:  # always true for the first text
            parts.append([])
            free = CONTROL_BYTES - SHARDS_FRAME_BYTES
        parts[-1].append(text)
        free -= needed
    return [Shards(tuple(part)) for part in parts]


def unpack(data: np.ndarray, rank: int) -> Message:
    """The control message that has come from a rank, (n,) uint8.

    Raises:
        WireFault: the bytes are no control message, or this version does not know it in this form.
    """
    try:
        return read_text(unpack_control(data))
    except (ValueError, RecursionError) as error:
        raise WireFault(f"rank {rank} sent {error}") from error


def read_text(text: str | bytes) -> Message:
    """The control message of `as_text`. Raises ValueError if this version does not know its
    form."""
    content = json.loads(text)
    what = content.pop("what", None) if isinstance(content, dict) else None
    if not isinstance(what, str) or what not in TYPES:
        known = ", ".join(TYPES)
        raise ValueError(f"a control message {reprlib.repr(what)}; known are: {known}")
    message: Message = _record(TYPES[what], content, what)
    return message


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass by field; cached, because evaluating them is slow."""
    return get_type_hints(kind)


def _record(kind: Any, values: dict[str, Any], name: str) -> Any:
    """The dataclass with these fields and no others. Raises ValueError, which names the field."""
    hints = _hints(kind)
    if hints.keys() != values.keys():
        lacking, foreign = hints.keys() - values, values.keys() - hints
        how = [f"without {each}" for each in sorted(lacking)]
        how += [f"with an unknown {reprlib.repr(each)}" for each in sorted(foreign)]
        raise ValueError(f"{name} {' and '.join(how)}")
    found = {each: _read(hints[each], values[each], f"{name}.{each}") for each in hints}
    try:
        return kind(**found)
    except (CollageError, ValueError) as error:
        raise ValueError(f"an invalid {name}: {error}") from error


def _read(hint: Any, value: Any, name: str) -> Any:
    """A JSON value in its declared type. Raises ValueError, which names the field."""
    if type(value) is hint:
        return value
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):  # X | None
        return None if value is None else _read(inner[0], value, name)
    if isinstance(value, dict) and is_dataclass(hint):
        return _record(hint, value, name)
    if isinstance(value, dict) and origin in (dict, Mapping):
        named, each = inner
        return {_key(named, k, name): _read(each, v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list) and origin is tuple:
        hints = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(hints) == len(value):
            return tuple(_read(each, one, name) for each, one in zip(hints, value, strict=True))
    if hint is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    raise ValueError(f"{name} = {reprlib.repr(value)}; needed: {getattr(hint, '__name__', hint)}")


def _key(hint: type[Any], text: str, name: str) -> Any:
    """A mapping's key, which JSON stores as text. Raises ValueError, which names the field."""
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"{name} of {reprlib.repr(text)}; needed: {hint.__name__}") from None
