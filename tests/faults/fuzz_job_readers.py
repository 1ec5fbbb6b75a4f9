"""What the parts of a running job read of each other, and of their surroundings, each with valid
inputs: what fuzz.py damages.

Owns: messages, rank 0's and a team's ends of theirs, status lines, greetings, descriptions of
shards, variables and kernel files.
"""

from __future__ import annotations

import io
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from fakes import FakeMonitor
from fuzz import Reader, change_json, damage
from job_messages import HELLO, WELCOME
from test_record import a_record
from wire_tasks import pack_wire_tasks as pack_tasks
from wire_tasks import unpack_results

from collage_mpi.encoding.vectors import KeptColumn
from collage_mpi.errors import CollageError
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.faults.tcp_link import Offer, read_greeting
from collage_mpi.job import messages as said
from collage_mpi.job.record import MAGIC, Replay
from collage_mpi.job.row_reader import RowReader, described
from collage_mpi.job.teams import OtherTeams, RankZero
from collage_mpi.launch.ending import exit_code
from collage_mpi.launch.mpiexec import LaunchPlan
from collage_mpi.launch.supervisor import Limits, Supervisor
from collage_mpi.models.info import Loading
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import (
    ANSWERED,
    FAILED,
    Score,
    Unread,
    WireResult,
    pack_results,
)
from collage_mpi.mpi.tasks import (
    WireTask,
    pack_cancel,
    pack_places,
    unpack_cancel,
    unpack_tasks,
)
from collage_mpi.mpi.transport import Received
from collage_mpi.shards import write_shard
from collage_mpi.system import environment
from collage_mpi.system.hard_exit import UCX, shared_memory
from collage_mpi.system.launchers import FAMILIES, LAUNCHERS
from collage_mpi.system.process_tree import ProcessId, holders_of, watch_process
from collage_mpi.workload.straggler_settings import StragglerSettings

Change = Callable[[random.Random, bytes], bytes]
USER = (CollageError,)
REFUSED = (wire.WireFault,)
PROCESS = ProcessId("m", 1, 2)
OFFER = Offer(("h", "10.0.0.1"), 4000, "ab" * 16)
STATUS_WORD = "f" * 32

# One of each type, or several; `messages.TYPES` says which there are.
CONTROL: tuple[said.Message, ...] = (
    *(HELLO, replace(HELLO, columns=(KeptColumn("embedding", "<f4", (3,)),)), WELCOME),
    replace(WELCOME, networks={"single": "null"}, how=Loading(delays=StragglerSettings("pinned"))),
    *(said.Rank0("h", PROCESS, OFFER), said.Rank0("h", None, None), said.Shards(("{}", "{}"))),
    *(
        said.Measure("single", 2),
        said.Start({"collage": 1.5}, {"single": 0.5}, 1, 4096, 16384),
        said.End(),
        said.Stop(0),
        said.Leave(),
    ),
    *(said.Here(), said.Fault("no GPU", 3), said.Measured(1000, None), said.Bye()),
    said.Changed("single", "openvino float32", ""),
    said.Release(),
    *(said.Halt("stopped"), said.Ended(5, ""), said.Ended(3, "no GPU")),
)


def job_readers(folder: Path) -> list[Reader]:
    """All of them; what they need lies in `folder`."""
    return [
        *_messages(),
        *_teams(),
        *_lines(),
        *_descriptions(folder),
        *_records(folder),
        *_surroundings(folder),
    ]


def json_change(rng: random.Random, raw: bytes) -> bytes:
    """Sound JSON with other values in it."""
    return json.dumps(change_json(rng, json.loads(raw))).encode()


# ---- messages ---------------------------------------------------------------


def _packed(pack: Callable[..., int], *args: Any) -> bytes:
    buffer = np.zeros(wire.CONTROL_BYTES, np.uint8)
    return buffer[: pack(buffer, 1, *args)].tobytes()


def _text(message: said.Message) -> bytes:
    return _packed(said.pack, message)[wire.HEADER.itemsize :]


def _message(text: bytes) -> np.ndarray:
    """The bytes of a control message of any text."""
    out = np.zeros(wire.HEADER.itemsize + len(text), np.uint8)
    return out[: wire.pack_control(out, 0, text)]


def _messages() -> list[Reader]:
    def reading(unpack: Callable[[np.ndarray], Any]) -> Callable[[bytes], Any]:
        return lambda raw: unpack(np.frombuffer(raw, np.uint8))

    tasks = [
        WireTask(1, "single", ((0, 0),)),
        WireTask(2, "collage", tuple((i, i) for i in range(9))),
        WireTask(3, "single", ((2, 0),)),
    ]
    results = [
        WireResult(1, ANSWERED, compute_ns=10, cells=(Score(3, 0.5), None)),
        WireResult(2, FAILED, reason="out of memory"),
        WireResult(3, FAILED, unread=(Unread("worn", of_input=True),)),
    ]
    place = np.frombuffer(pack_places([(1, 2)]), np.uint8)
    pixels = [np.zeros((4, 4, 1), np.uint8), np.zeros((12, 12, 1), np.uint8), place]
    cases = (
        ("tasks", unpack_tasks, [_packed(pack_tasks, tasks, pixels)]),
        ("results", unpack_results, [_packed(pack_results, results)]),
        ("cancel", unpack_cancel, [_packed(pack_cancel, [4, 5, 6])]),
        ("control", lambda raw: said.unpack(raw, 1), [_packed(said.pack, m) for m in CONTROL]),
    )
    texts = [_text(message) for message in CONTROL]
    return [
        *(Reader(f"message: {name}", valid, reading(u), REFUSED) for name, u, valid in cases),
        Reader("message: control, values", texts, lambda raw: said.unpack(_message(raw), 1),
               REFUSED, json_change),
    ]  # fmt: skip


class _Endpoint:
    """A team's end of its messages with rank 0: hears one, says nothing."""

    def __init__(self, message: np.ndarray) -> None:
        self._left = [message]

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def send(self, buffer: np.ndarray, nbytes: int) -> None:
        pass

    def poll_control(self) -> np.ndarray | None:
        return self._left.pop() if self._left else None


def _teams() -> list[Reader]:
    """What teams say to rank 0, and rank 0 to a team."""

    def to_rank_0(raw: bytes) -> None:
        transport = SimpleNamespace(poll=lambda: [Received(4, _message(raw), 1)])
        detector = FailureDetector((4,), 0)
        OtherTeams(SimpleNamespace(transport=transport, detector=detector, present=[4])).look()

    def to_team(raw: bytes) -> None:
        RankZero(_Endpoint(_message(raw)), FakeMonitor()).stop_reason()

    up = [_text(said.Here()), _text(said.Ended(5, ""))]  # with a fault it raises
    down = [_text(m) for m in CONTROL if isinstance(m, said.Halt | said.Rank0 | said.Stop)]
    allowed = (*REFUSED, *USER)
    return [
        Reader("message: to rank 0, values", up, to_rank_0, allowed, json_change),
        Reader("message: to a team, values", down, to_team, allowed, json_change),
    ]


# ---- lines and greetings ----------------------------------------------------


def _lines() -> list[Reader]:
    """What ranks print, as launch reads it; what comes to rank 0's port."""
    statuses: list[dict[str, Any]] = [
        {"there": 1}, {"up": 1}, {"ended": 2, "code": 137}, {"exit": 0},
        {"phase": "collage", "done": 5, "total": 9, "images_s": 3.5, "unit": "images", "end": True},
    ]  # fmt: skip
    mark = f"@status:{STATUS_WORD} "

    def line(raw: bytes) -> None:
        variables = {environment.STATUS_VARIABLE: STATUS_WORD}
        plan = LaunchPlan(("true",), FAMILIES["mpich"], variables, ranks=4)
        job = Supervisor(plan, Limits(start_limit_s=9.0), io.StringIO(), io.StringIO())
        job._note_shared_memory = lambda: None  # looks at the processes of this machine
        for text in raw.split(b"\n"):
            job.line(text.decode(errors="replace"), job._out)
        job._display.close()
        exit_code(job._ending, None, must_report=True)

    def lines(change: Change) -> Change:
        def changed(rng: random.Random, raw: bytes) -> bytes:
            return b"\n".join(mark.encode() + change(rng, one) for one in raw.split(b"\n"))

        return changed

    texts = b"\n".join(json.dumps(status).encode() for status in statuses)
    whole = b"\n".join(mark.encode() + each for each in texts.split(b"\n"))
    greeting = json.dumps({"rank": 1, "process": asdict(PROCESS), "token": OFFER.token}).encode()

    def greeted(raw: bytes) -> None:
        """As `ProcessMonitor._greet` takes it; the error that it catches may leave."""
        greeting = read_greeting(raw, OFFER.token)
        if greeting is not None and greeting.process is not None:
            watch_process(greeting.process)

    met = (ProcessLookupError,)
    return [
        Reader("status lines", [whole], line, ()),
        Reader("status lines, values", [texts], line, (), lines(json_change)),
        Reader("greeting", [greeting], greeted, met),
        Reader("greeting, values", [greeting], greeted, met, json_change),
    ]


# ---- descriptions of shards -------------------------------------------------


def _descriptions(folder: Path) -> list[Reader]:
    from collage_mpi.shards import ShardSet

    path = folder / "described" / "s.h5"
    write_shard(path, np.zeros((9, 3, 3, 1), np.uint8), np.arange(9) % 3, class_names=list("abc"))
    with ShardSet.open([path]) as shards:
        texts = [text.encode() for text in described(shards)]

    def read(raw: bytes) -> None:
        RowReader([raw.decode(errors="replace")])

    return [
        Reader("description of a shard", texts, read, (*USER, *REFUSED)),
        Reader("description of a shard, values", texts, read, (*USER, *REFUSED), json_change),
    ]


# ---- surroundings -----------------------------------------------------------


def _records(folder: Path) -> list[Reader]:
    """Of a core; what it was told and gave, too, in blocks whose checksums are right."""
    path = folder / "record"
    a_record(path)

    def play(raw: bytes) -> None:
        path.write_bytes(raw)
        Replay(path).play()

    def told(rng: random.Random, raw: bytes) -> bytes:
        block, at = raw[len(MAGIC) :], rng.randrange(2)
        lengths = [int.from_bytes(block[:4], "big")]
        blocks = [block[4 : 4 + lengths[0]], block[4 + lengths[0] :]]
        entries = msgspec.msgpack.decode(zlib.decompress(blocks[at][4 * at :]))
        place = rng.randrange(len(entries))
        entries[place] = damage(rng, entries[place])
        data = zlib.compress(msgspec.msgpack.encode(entries))
        changed = len(data).to_bytes(4, "big") + data
        return MAGIC + (changed + blocks[1] if at == 0 else block[: 4 + lengths[0]] + changed)

    sound = [path.read_bytes()]
    return [
        Reader("record of a core", sound, play, USER),
        Reader("record of a core, calls", sound, play, USER, told),
    ]


def _surroundings(folder: Path) -> list[Reader]:
    """Variables that launchers and batch systems set; files of the kernel."""
    names = {name for each in LAUNCHERS for field in ("ranks", "sizes", "local_ranks",
             "local_sizes", "host_numbers", "interfaces")
             for name in getattr(each, field, ())}  # fmt: skip
    names |= {*environment.HOSTS_VARIABLES, environment.CPUS_ON_NODE,
              environment.CPUS_PER_TASK, *environment.HOST_FILES}  # fmt: skip
    values = json.dumps(dict.fromkeys(sorted(names), "3")).encode()

    def variables(raw: bytes) -> None:
        found = json.loads(raw.decode(errors="replace"))
        if not isinstance(found, dict):
            return
        environ = {str(k): str(v).replace("\0", "") for k, v in found.items()}
        environment.launcher_rank(environ)
        environment.launcher_size(environ), environment.local_rank(environ)
        environment.torchrun_size(environ)
        environment.local_size(environ), environment.told_interface(environ)
        environment.fault_tolerant_launch(environ), environment.visible_devices(environ)
        environment.allocated_hosts(environ), environment.local_gpu_rank(1, environ)
        environment.threads_per_rank(2, environ)

    hosts, proc = folder / "hosts", folder / "proc"
    kernel = {"cpu.max": b"200000 100000", "memory.max": b"1000000", "memory.current": b"5000",
              "meminfo": b"MemTotal: 900 kB\nMemAvailable: 500 kB\n"}  # fmt: skip
    # What stands around the names is the kernel's own, and sound.
    process = {"environ": b"JOB=x\0PMI_RANK=0\0", "maps": b"/dev/shm/mpich_shm_1",
               "stat": b"python"}  # fmt: skip
    around = {"environ": b"%s", "maps": b"7f00-7f01 rw-s 0000 00:17 5      %s\n",
              "stat": b"7 (%s) S 1 7 7 0 -1 41 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1"}  # fmt: skip
    for each in (hosts, proc / "7"):
        each.mkdir(parents=True)

    def of(where: Path, files: dict[str, bytes], look: Callable[[], object]) -> Any:
        def read(raw: bytes) -> None:
            name, _, content = raw.partition(b"=")
            for each, sound in files.items():
                inner = content if each == name.decode() else sound
                (where / each).write_bytes(around.get(each, b"%s") % inner)
            look()

        return read

    def limits_of_host() -> None:
        environment.allowed_cores({}, hosts)
        environment.available_bytes(hosts / "meminfo", hosts)

    def looked() -> None:
        holders_of("JOB=x", proc)
        shared_memory(proc / "7" / "maps", UCX)

    def behind_name(rng: random.Random, raw: bytes) -> bytes:
        name, equals, content = raw.partition(b"=")
        return name + equals + damage(rng, content).replace(b"\n", b" ")  # names hold none

    def named(files: dict[str, bytes]) -> list[bytes]:
        return [name.encode() + b"=" + content for name, content in files.items()]

    return [
        Reader("variables, values", [values], variables, (), json_change),
        Reader("kernel's files of the host", named(kernel), of(hosts, kernel, limits_of_host), (),
               behind_name),
        Reader("kernel's files of a process", named(process), of(proc / "7", process, looked), (),
               behind_name),
    ]  # fmt: skip
