"""What rank 0 and the workers tell each other besides tasks and answers.

Owns: the control messages and all their fields, as JSON and back.
Does not know: who sends which when, what follows from one, how the bytes travel.

Here alone a field is declared; whoever sends or reads one names an attribute. A message lacks no
field and has no other, each of its type: anything else is refused with WireFault, which names the
rank and the field. Records of other modules travel as they are declared there.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from collage_mpi.encoding.vectors import Extras
from collage_mpi.errors import CollageError
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.models.specs import ParitySpec
from collage_mpi.models.tuning import Tuning
from collage_mpi.mpi.protocol import CONTROL_BYTES, WireFault, pack_control, unpack_control
from collage_mpi.system.pidfd import ProcessId
from collage_mpi.workload.background_load import Burn
from collage_mpi.workload.straggler_settings import StragglerSettings

Shape = tuple[int, int, int]  # (H, W, C)
SHARDS_FRAME_BYTES = 128  # of a message of them: header, and JSON around the texts

# ---- down: rank 0 to a worker -----------------------------------------------


@dataclass(frozen=True)
class Rank0:
    """Who and where rank 0 is, so that no rank outlives it for long; answered by Here.

    Attributes:
        process: None where the system does not tell.
        tcp_link: where to connect; None where the launcher ends all ranks with any of them.
    """

    host: str
    process: ProcessId | None
    tcp_link: Offer | None


@dataclass(frozen=True)
class Shards:
    """The input, or the next part of it, for ranks that read it themselves; before the welcome.

    Attributes:
        descriptions: a text a shard (`row_reader.described`).
    """

    descriptions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """A session begins, and this is the rank's part; answered by Hello, or by Fault.

    Attributes:
        networks: kind -> what the rank loads.
        image_shape, encoded_shape: of one input: (H, W, C) of a single network, (P, P, C) of
            one for collages or stripes.
        side, cell_px, classes: of a network that does not know them itself; classes is None
            where the network alone knows how many there are.
        credit: messages of tasks that may be under way to the rank.
        batch: inputs of one message, at most.
        task_bytes, answer_bytes: of a message of tasks, and of answers, at most.
        extras: what an answer carries of each image beyond its class.
        parity: how answers are decoded from those of others; None where none are.
        warmup_tasks: of each network, before it is ready.
        draws_by_image: of injected delays: by an image's number, not its group's.
        burn: what burns beside the rank.
        fit: how files become images, where tasks may carry them (`pictures.Fit`).
        must_read: whether a rank whose host has not the shards cannot work; else it says so.
        ranks: of the world, which share the cores where no launcher says how many are on a host.
    """

    networks: dict[str, str]
    image_shape: Shape
    encoded_shape: Shape
    side: int
    cell_px: int
    classes: int | None
    device: str
    tuning: Tuning
    credit: int
    batch: int
    task_bytes: int
    answer_bytes: int
    extras: Extras
    parity: ParitySpec | None
    warmup_tasks: int
    straggler: StragglerSettings
    draws_by_image: bool
    burn: Burn | None
    fit: str | None
    must_read: bool
    ranks: int


@dataclass(frozen=True)
class Measure:
    """Time the kind's network with so many inputs, the other ranks waiting; see Measured."""

    kind: str
    batch: int


@dataclass(frozen=True)
class Start:
    """Tasks may come: the delay model's time begins.

    Attributes:
        cost_ratio: what a collage or a stripe takes over a single image.
        batch_costs: kind -> what a further input of a batch takes over the first.
    """

    cost_ratio: float
    batch_costs: dict[str, float]


@dataclass(frozen=True)
class End:
    """The session is over; another may follow."""


@dataclass(frozen=True)
class Stop:
    """The job is over, with this exit code for all ranks; answered by Bye."""

    exit_code: int


@dataclass(frozen=True)
class Leave:
    """Of a plain world: all have said Bye, MPI may end.

    No rank is in MPI_Finalize before it is sure that all will come: Open MPI's launcher hangs or
    crashes at times when such a job is aborted (3 of 100; 5.0.11, in PMIx).
    """


# ---- up: a worker to rank 0 -------------------------------------------------


@dataclass(frozen=True)
class Here:
    """MPI works, and so does this rank."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The rank's networks are loaded and warm.

    Attributes:
        devices: that they are on.
        tuning, fingerprints: by kind, of its network.
        service_ns: kind -> one input, while other ranks may be at work too.
        longest_ns: of any batch that was tried.
        classes: by kind, how many its network tells apart.
        embedding: how many numbers of an image it gives; None where it was asked for none.
        cannot_read: why it must be sent pixels, where it was told of shards; "" else.
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
    embedding: int | None
    cannot_read: str


@dataclass(frozen=True)
class Fault:
    """What keeps the rank from working, and the exit code that tells its sort."""

    message: str
    exit_code: int


@dataclass(frozen=True)
class Measured:
    """A few calls of a network in a row.

    Attributes:
        service_ns: the shortest of them on the clock.
        cpu_ns: processor time of the usual one, the median; None where a GPU does the work.
    """

    service_ns: int
    cpu_ns: int | None


@dataclass(frozen=True)
class Bye:
    """The rank ends now; in a plain world, when it is told to leave."""


# ---- down: the lead to a team's coordinator, which hears Rank0, Start and Stop too -----------


@dataclass(frozen=True)
class Begin:
    """A run begins, and the team is a session of it; answered by Ready, or by Fault.

    Attributes:
        session: of the team's rows.
        run_id: of the manifest, by which a team knows that it sees the lead's folder.
        order: digest of the job's order, which both make from the settings.
    """

    session: int
    run_id: str
    order: str


@dataclass(frozen=True)
class Lease:
    """Images that this team alone writes rows of, while the epoch lasts.

    Attributes:
        number: of the lease, growing.
        first_group: number of their first group; see `scheduler/leases`.
        places: positions in the job's order, as `packed_ranges`.
    """

    number: int
    epoch: int
    first_group: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Lull:
    """Nothing is left to give, until a team is lost or all is done; answered by Idle."""


@dataclass(frozen=True)
class Close:
    """No further image will come; answered by Done."""


@dataclass(frozen=True)
class Halt:
    """Stop as if a signal had come; answered by Done."""

    reason: str


@dataclass(frozen=True)
class SetThreshold:
    """From now on cells of at least this score count; None: nothing is collaged any more."""

    confidence: float | None


# ---- up: a team's coordinator to the lead, which says Here, Fault and Bye too ----------------


@dataclass(frozen=True)
class Ready:
    """The team's ranks are there; kind -> fingerprint of its network."""

    fingerprints: dict[str, str]


@dataclass(frozen=True)
class Begun:
    """The first image of a lease has come in."""

    number: int


@dataclass(frozen=True)
class Part:
    """A part is on the disk and may be published; `places` of one of images, as `packed_ranges`."""

    table: str
    number: int
    epoch: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Progress:
    """How far the team is: a sign of life, too.

    Images that have an outcome, errors, images that a collage answered, audits, and those of them
    where the networks differ.
    """

    images: int
    errors: int
    collage: int
    audited: int = 0
    differing: int = 0


@dataclass(frozen=True)
class Pairs:
    """Images that both networks have classified; see `calibration.Pair`."""

    pairs: tuple[tuple[int | None, float | None, bool], ...]


@dataclass(frozen=True)
class Idle:
    """All of the leases up to that number that could be read has its rows, in parts told of."""

    lease: int


@dataclass(frozen=True)
class Done:
    """The team has ended and all its parts were told of; more stands in a file of it.

    Attributes:
        status: of the scheduler's Finish, reason likewise.
        lost: why shards were not read in full, which another team may have read.
        changed: shards that are not as they were at the start.
    """

    status: str
    reason: str
    lost: tuple[str, ...]
    changed: tuple[str, ...]


# ---- as bytes ---------------------------------------------------------------

ToWorkers = Rank0 | Shards | Welcome | Measure | Start | End | Stop | Leave
FromWorkers = Here | Hello | Fault | Measured | Bye
ToTeams = Begin | Lease | Lull | Close | Halt | SetThreshold
FromTeams = Ready | Begun | Part | Progress | Pairs | Idle | Done
Message = ToWorkers | FromWorkers | ToTeams | FromTeams
TYPES: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in get_args(Message)}


def pack(out: np.ndarray, session: int, message: Message) -> int:
    """Write a control message into `out`, (capacity,) uint8; its length in bytes.

    Raises:
        WireFault: it does not fit `out`.
    """
    content = {"what": type(message).__name__.lower(), **asdict(message)}
    return pack_control(out, session, json.dumps(content).encode())


def shards_in_messages(descriptions: Sequence[str]) -> list[Shards]:
    """The descriptions, in order, in as few messages as have room for them."""
    parts: list[list[str]] = []
    free = 0
    for text in descriptions:
        needed = len(json.dumps(text)) + len(", ")
        if not parts or needed > free:
            parts.append([])
            free = CONTROL_BYTES - SHARDS_FRAME_BYTES
        parts[-1].append(text)
        free -= needed
    return [Shards(tuple(part)) for part in parts]


def packed_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """[start, stop) ranges, in order: of each how far it lies behind the last one's stop, and how
    long it is. Short numbers: a part of 4,096 images without two neighbours fits a message."""
    packed, at = [], 0
    for start, stop in ranges:
        packed += [start - at, stop - start]
        at = stop
    return tuple(packed)


def unpacked_ranges(packed: Sequence[int]) -> list[tuple[int, int]]:
    """The ranges again."""
    ranges, at = [], 0
    for gap, length in zip(packed[::2], packed[1::2], strict=True):
        ranges.append((at + gap, at + gap + length))
        at = ranges[-1][1]
    return ranges


def unpack(data: np.ndarray, rank: int) -> Message:
    """The control message that has come from a rank, (n,) uint8.

    Raises:
        WireFault: bytes that are none, or a message that this version does not know as it is.
    """
    try:
        content = json.loads(unpack_control(data))
        what = content.pop("what", None) if isinstance(content, dict) else None
        if not isinstance(what, str) or what not in TYPES:
            known = ", ".join(TYPES)
            raise ValueError(f"a control message {reprlib.repr(what)}; known are: {known}")
        message: Message = _record(TYPES[what], content, what)
        return message
    except (ValueError, RecursionError) as error:
        raise WireFault(f"rank {rank} sent {error}") from error


def _record(kind: type[Any], values: dict[str, Any], name: str) -> Any:
    """A dataclass of exactly these fields. Raises ValueError, naming the field."""
    hints = get_type_hints(kind)
    lacking, foreign = hints.keys() - values, values.keys() - hints
    if lacking or foreign:
        how = [f"without {each}" for each in sorted(lacking)]
        how += [f"with an unknown {reprlib.repr(each)}" for each in sorted(foreign)]
        raise ValueError(f"{name} {' and '.join(how)}")
    found = {each: _read(hints[each], values[each], f"{name}.{each}") for each in hints}
    try:
        return kind(**found)
    except (CollageError, ValueError) as error:
        raise ValueError(f"{name} that cannot be: {error}") from error


def _read(hint: Any, value: Any, name: str) -> Any:
    """What JSON gave, as its type says. Raises ValueError, naming the field."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):  # X | None
        return None if value is None else _read(inner[0], value, name)
    if isinstance(value, dict) and is_dataclass(hint):
        return _record(hint, value, name)  # type: ignore[arg-type]
    if isinstance(value, dict) and origin in (dict, Mapping):
        named, each = inner
        return {_key(named, k, name): _read(each, v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list) and origin is tuple:
        hints = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(hints) == len(value):
            return tuple(_read(each, one, name) for each, one in zip(hints, value, strict=True))
    if type(value) is hint:
        return value
    if hint is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    raise ValueError(f"{name} = {reprlib.repr(value)}; needed: {getattr(hint, '__name__', hint)}")


def _key(hint: type[Any], text: str, name: str) -> Any:
    """A mapping's key: JSON makes text of a number. Raises ValueError, naming the field."""
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"{name} of {reprlib.repr(text)}; needed: {hint.__name__}") from None
