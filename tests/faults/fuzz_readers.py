"""The readers of this package, each with valid inputs: what fuzz.py damages.

Owns: one valid example of everything that is read, and the call that reads it.
Does not know: how inputs are damaged, what counts as a finding.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fuzz import Reader, change_json, damage
from job_messages import HELLO, WELCOME
from results_harness import make_run

from collage_mpi.errors import CollageError
from collage_mpi.experiments.spec import expand, read_experiment
from collage_mpi.job import messages
from collage_mpi.models.architecture import default_architecture
from collage_mpi.models.weights import METADATA_KEY, describe_weights, read_tensors
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import ANSWERED, FAILED, WireResult, pack_results, unpack_results
from collage_mpi.mpi.tasks import (
    WireTask,
    pack_cancel,
    pack_places,
    pack_tasks,
    unpack_cancel,
    unpack_tasks,
)
from collage_mpi.prep.idx import read_idx
from collage_mpi.results import read_results, render_summary, summarise, verify_run
from collage_mpi.results.rows import TABLES
from collage_mpi.scheduler.events import Score, Unread
from collage_mpi.settings.files import read_settings_file
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.slurm.job_script import SlurmSettings, render
from collage_mpi.workload.straggler_settings import StragglerSettings
from collage_mpi.workload.trace import load_trace

USER = (CollageError,)


def make_readers(folder: Path) -> list[Reader]:
    """All of them; what they need lies in `folder`."""
    return [
        *_results(folder),
        *_settings(folder),
        *_arrays(folder),
        *_weights(folder),
        *_messages(),
        *_training(folder),
        *_simulation(folder),
        *_pictures(folder),
        *_shards(folder),
    ]


def _from_file(path: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def reader(raw: bytes) -> Any:
        path.write_bytes(raw)
        return read(path)

    return reader


def _json_change(rng: random.Random, raw: bytes) -> bytes:
    return json.dumps(change_json(rng, json.loads(raw))).encode()


# ---- results ----------------------------------------------------------------


def _read_run(run: Path) -> None:
    verify_run(run)
    results = read_results(run)
    render_summary(summarise(results))


def _results(folder: Path) -> list[Reader]:
    run = make_run(folder / "run", 27, errors=frozenset({4}))
    manifest = run / "manifest.json"
    part = run / "parts" / "images-0001-000001.npy"
    readers = []
    for path, name in ((manifest, "manifest, bytes"), (part, "part, bytes")):
        readers.append(_kept(name, path, run, None))
    readers.append(_kept("manifest, values", manifest, run, _json_change))
    for table in TABLES:
        path = run / "parts" / f"{table.name}-0001-000001.npy"
        readers.append(_kept(f"part of {table.name}, rows", path, run, _change_rows))
    return readers


def _kept(name: str, path: Path, run: Path, change: Any) -> Reader:
    """A reader of a file of the run, which is whole again after each input."""
    whole = path.read_bytes()

    def read(raw: bytes) -> None:
        try:
            path.write_bytes(raw)
            _read_run(run)
        finally:
            path.write_bytes(whole)

    return Reader(name, [whole], read, USER, **({"change": change} if change else {}))


def _change_rows(rng: random.Random, raw: bytes) -> bytes:
    """Rows with any values, their checksum right: as a program with a defect would write them."""
    body = bytearray(raw[:-20])
    start = 10 + int.from_bytes(raw[8:10], "little")  # behind the .npy header
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(start, len(body))
        width = min(rng.choice((1, 2, 4, 8)), len(body) - at)
        body[at : at + width] = rng.choice((bytes(width), b"\xff" * width, rng.randbytes(width)))
    return bytes(body) + struct.pack("<8sQI", b"CMPIcrc1", len(body), zlib.crc32(body))


# ---- settings, experiments, job scripts -------------------------------------

SETTINGS = """
shards = ["a.h5", "b.h5"]
single = "null"
collage = "null"
scheme = "collage"
side = 3
accept = "grace"
grace_ms = 20.5
straggler = "lognormal"
straggler_seed = 3
slow_ranks = ["4:5"]
order = "shuffle:3"
limit = 1000
out = "runs/one"
"""
EXPERIMENT = """
name = "schemes"
how = "simulate"
images = 900
repeat = 2
[base]
side = 2
straggler = "lognormal"
warmup_groups = 1
[grid]
scheme = [{ name = "none", scheme = "none" }, { name = "first", accept = "first" }]
slow_ranks = [["1:5"], []]
[[point]]
name = "extra"
depth = 2
"""
SLURM = """
account = "proj1"
partition = "gpu"
nodes = 3
gpus_per_node = 4
time = "1-02:00:00"
singles = 9
setup = ["module load mpi"]
directives = ["--qos=long"]
"""


def _settings(folder: Path) -> list[Reader]:
    import tomllib

    def run_settings(path: Path) -> None:
        settings = RunSettings.from_mapping(read_settings_file(path), str(path))
        settings.world_size, settings.labels(), settings.digest()

    def experiment(path: Path) -> None:
        read_experiment(path)

    def slurm(path: Path) -> None:
        settings = SlurmSettings.from_mapping(read_settings_file(path), str(path))
        for kind in ("run_nodes", "sweep", "train"):
            render(kind, settings)

    readers = []
    for name, text, read in (
        ("settings", SETTINGS, run_settings),
        ("experiment", EXPERIMENT, experiment),
        ("slurm settings", SLURM, slurm),
    ):
        as_json = json.dumps(tomllib.loads(text)).encode()
        stem = name.replace(" ", "-")
        toml, plain = folder / f"{stem}.toml", folder / f"{stem}.json"
        readers.append(Reader(f"{name} .toml", [text.encode()], _from_file(toml, read), USER))
        readers.append(Reader(f"{name} .json", [as_json], _from_file(plain, read), USER))
        readers.append(
            Reader(f"{name}, values", [as_json], _from_file(plain, read), USER, _json_change)
        )
    assert expand(tomllib.loads(EXPERIMENT)).points
    return readers


# ---- arrays -----------------------------------------------------------------


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def _arrays(folder: Path) -> list[Reader]:
    times = np.random.default_rng(0).random((5, 40)) + 0.1
    idx = _idx(np.zeros((6, 10, 10), np.uint8))
    traces = [_npy(times), _npy(times.astype(np.float32)), _npy(times[0])]
    return [
        Reader(
            "trace .npy", traces, _from_file(folder / "t.npy", lambda p: load_trace(str(p))), USER
        ),
        Reader("idx", [idx], _from_file(folder / "i.idx", read_idx), USER),
        Reader("idx.gz", [gzip.compress(idx)], _from_file(folder / "i.gz", read_idx), USER),
    ]


# ---- weights ----------------------------------------------------------------


def _weights(folder: Path) -> list[Reader]:
    from safetensors.numpy import save

    record = {
        "format": "collage-mpi weights",
        "version": 1,
        "kind": "single",
        "height": 28,
        "width": 28,
        "channels": 1,
        "class_names": ["cat", "dog"],
        "temperature": 1.5,
        "normalisation": {"mean": [0.3], "std": [0.4]},
        "training": {"seed": 4},
        "architecture": default_architecture("single", 8).to_dict(),
    }
    tensors = {"a": np.ones((4, 5), np.float16), "b": np.zeros(3, np.float32)}
    whole = save(tensors, metadata={METADATA_KEY: json.dumps(record)})
    spec = {"k": 3, "encoder": "concat", "summed": "logits", "single": "ab" * 32}
    parity = {**record, "kind": "parity", "parity": spec}
    stripes = save(tensors, metadata={METADATA_KEY: json.dumps(parity)})
    path = folder / "w.safetensors"

    def read(path: Path) -> None:
        read_tensors(describe_weights(path))

    def values(rng: random.Random, raw: bytes) -> bytes:
        changed = change_json(rng, json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]))
        return _with_header(raw, changed)

    def facts(rng: random.Random, raw: bytes) -> bytes:
        header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
        inner = change_json(rng, json.loads(header["__metadata__"][METADATA_KEY]))
        header["__metadata__"][METADATA_KEY] = json.dumps(inner)
        return _with_header(raw, header)

    reader = _from_file(path, read)
    return [
        Reader("weights, bytes", [whole, stripes], reader, USER),
        Reader("weights, header", [whole, stripes], reader, USER, values),
        Reader("weights, record", [whole, stripes], reader, USER, facts),
    ]


def _with_header(raw: bytes, header: Any) -> bytes:
    text = json.dumps(header).encode()
    body = raw[8 + struct.unpack("<Q", raw[:8])[0] :]
    return struct.pack("<Q", len(text)) + text + body


# ---- messages ---------------------------------------------------------------


def _messages() -> list[Reader]:
    refused = (wire.WireFault,)
    buffer = np.zeros(4096, np.uint8)

    def message(pack: Callable[..., int], *args: Any) -> bytes:
        return buffer[: pack(buffer, 1, *args)].tobytes()

    def reading(unpack: Callable[[np.ndarray], Any]) -> Callable[[bytes], Any]:
        return lambda raw: unpack(np.frombuffer(raw, np.uint8))

    tasks = [
        WireTask(1, 0, 1, "single", ((0, 0),)),
        WireTask(2, 0, 1, "collage", tuple((i, i) for i in range(9))),
        WireTask(3, 0, 1, "single", ((2, 0),), by_place=True),
    ]
    results = [
        WireResult(1, ANSWERED, 10, 5, 7, cells=(Score(3, 0.5), None)),
        WireResult(2, FAILED, reason="out of memory", retryable=True),
        WireResult(3, FAILED, unread=(Unread("worn", of_input=True),)),
    ]
    told = replace(
        WELCOME, networks={"single": "null"}, straggler=StragglerSettings(straggler_seed=3)
    )

    def read_text(raw: bytes) -> Any:
        out = np.zeros(wire.HEADER.itemsize + len(raw), np.uint8)
        return messages.unpack(out[: wire.pack_control(out, 1, raw)], 1)

    pixels = [np.zeros((4, 4, 1), np.uint8), np.zeros((12, 12, 1), np.uint8), pack_places([(1, 2)])]
    cases = (
        ("tasks", unpack_tasks, message(pack_tasks, tasks, pixels)),
        ("results", unpack_results, message(pack_results, results)),
        ("cancel", unpack_cancel, message(pack_cancel, [4, 5, 6])),
        ("control", lambda raw: messages.unpack(raw, 1), message(messages.pack, HELLO)),
    )
    texts = [message(messages.pack, each)[wire.HEADER.itemsize :] for each in (HELLO, told)]
    return [
        *(Reader(f"message: {name}", [raw], reading(u), refused) for name, u, raw in cases),
        Reader("message: control, values", texts, read_text, refused, _json_change),
    ]


# ---- training ---------------------------------------------------------------


def _training(folder: Path) -> list[Reader]:
    import torch

    from collage_mpi.models.foreign_weights import read_state
    from collage_mpi.training.checkpoint import load_checkpoint, save_checkpoint

    identity = {"seed": 1}
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    path = folder / "c.pt"
    save_checkpoint(path, state, {"identity": identity, "step": 3})
    checkpoint = path.read_bytes()
    return [
        Reader(
            "checkpoint",
            [checkpoint],
            _from_file(path, lambda p: load_checkpoint(p, identity)),
            USER,
        ),
        Reader(
            "weights of other programs",
            [_bytes_of(network.state_dict()), _bytes_of({"state_dict": network.state_dict()})],
            _from_file(folder / "w.pth", read_state),
            USER,
        ),
    ]


def _bytes_of(state: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


# ---- simulation, pictures ---------------------------------------------------


def _simulation(folder: Path) -> list[Reader]:
    from collage_mpi.commands.top import drawn
    from collage_mpi.results.file_names import LATENCIES, STATUS, SUMMARY
    from collage_mpi.results.rows import TASK_ROW
    from collage_mpi.results.status import StatusFiles
    from collage_mpi.results.watch import Watch
    from collage_mpi.simulation.costs import FORMAT, VERSION, Costs, read_costs
    from collage_mpi.simulation.replayed_answers import read_answers
    from collage_mpi.simulation.runs import read_latencies_ns, read_summary
    from collage_mpi.system.terminal import to_text
    from collage_mpi.training.answers import save_answers
    from collage_mpi.workload.arrivals import load_times_ns

    given = [(1, 0.5)] * 12
    path = folder / "a.npz"
    save_answers(
        path, 3, np.zeros(12), {"single": given, "collage": [None, *given[1:]]}, ["a", "b"]
    )
    whole = path.read_bytes()
    answers = {"single": given, "collage": given, "parity": [None, *given[1:]], "coded": given}
    save_answers(path, 3, np.zeros(12), answers, ["a", "b"], {"parity": 3, "coded": 9})
    costs = json.dumps({"format": FORMAT, "version": VERSION, **Costs().__dict__}).encode()
    bare = folder / "bare"
    bare.mkdir()
    latencies, summary = _npy(np.arange(9)), json.dumps({"settings": {"side": 3}}).encode()
    rank = {"rank": 1, "host": "h", "kinds": ["single"], "state": "lost", "why": "gone", "tasks": 1}
    said = {"state": "running", "done": 5, "ranks": [rank, {**rank, "rank": 2}]}
    facts = {"run_id": "r", "session": 1, "label": "l", "total": 9, "before": 0}
    files = StatusFiles(bare, facts, 5.0, lambda: None)
    files.offer(lambda: (said, np.empty(0, TASK_ROW)))
    files.end("incomplete")
    status = (bare / STATUS).read_bytes()
    top = _from_file(bare / STATUS, lambda p: to_text(drawn(p, Watch(bare).look(), 5)))
    times, text = _npy(np.arange(40) / 8), "\n".join(map(str, range(40))).encode()
    return [
        Reader("answers .npz", [whole, path.read_bytes()],
               _from_file(path, lambda p: read_answers(p, 3)), USER),
        Reader("costs", [costs], _from_file(folder / "k.json", read_costs), USER),
        Reader("costs, values", [costs], _from_file(folder / "k.json", read_costs), USER,
               _json_change),
        Reader("arrivals .npy", [times],
               _from_file(folder / "a.npy", lambda p: load_times_ns(str(p), 9)), USER),
        Reader("arrivals .txt", [text],
               _from_file(folder / "a.txt", lambda p: load_times_ns(str(p), 9)), USER),
        Reader("latencies", [latencies],
               _from_file(bare / LATENCIES, lambda p: read_latencies_ns(bare)), USER),
        Reader("status", [status], top, USER),
        Reader("status, values", [status], top, USER, _json_change),
        Reader("summary without rows", [summary],
               _from_file(bare / SUMMARY, lambda p: read_summary(bare)), USER),
    ]  # fmt: skip


def _pictures(folder: Path) -> list[Reader]:
    import tarfile

    from PIL import Image

    from collage_mpi.prep.tars import list_tars
    from collage_mpi.shards.pictures import Fit, UnreadablePicture, picture_pixels

    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    files = []
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, kind)
        files.append(out.getvalue())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in (("0.jpg", files[0]), ("0.cls", b"3"), ("1.png", files[1]),
                           ("1.json", b'{"label": 4}')):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    fit = Fit(px=8, mode="letterbox", channels=3)
    path = folder / "p.tar"
    return [
        Reader("pictures", files, lambda raw: picture_pixels(raw, fit), (UnreadablePicture,)),
        Reader("tar", [packed.getvalue()], _from_file(path, lambda p: list_tars([p])), USER),
    ]


# ---- shards -----------------------------------------------------------------

SHARDS_A_CHILD = 25


def _shards(folder: Path) -> list[Reader]:
    """Many in one input: the child that looks first takes half a second to start."""
    import h5py

    from collage_mpi.shards import write_shard

    images = np.random.default_rng(0).integers(0, 256, (20, 3, 3, 1), dtype=np.uint8)
    labels = np.arange(20) % 3
    own, other = folder / "s.h5", folder / "other.h5"
    write_shard(own, images, labels, class_names=["a", "b", "c"], source="s", chunk_rows=6)
    with h5py.File(other, "w") as file:
        file["images"], file["labels"] = images, labels
    return [
        _shard_reader("shards", folder, own.read_bytes(), (images, labels)),
        _shard_reader("HDF5 of other programs", folder, other.read_bytes(), None),
    ]


def _shard_reader(
    name: str, folder: Path, whole: bytes, truth: tuple[np.ndarray, np.ndarray] | None
) -> Reader:
    from collage_mpi.shards import ShardSet, guard

    paths = [folder / f"{name.split()[0]}-{number}.h5" for number in range(SHARDS_A_CHILD)]

    def read(raw: bytes) -> None:
        rng = random.Random(raw)
        for path in paths:
            path.write_bytes(damage(rng, whole))
        for found in guard.examine_shards(paths):
            if isinstance(found, CollageError):
                continue
            try:
                with ShardSet([found]) as shards:
                    pixels, tags = shards.read_all()
            except CollageError:
                continue
            if truth is not None:  # a file without checksums cannot tell a changed pixel
                assert (pixels == truth[0]).all(), "wrong pixels were given out"
                assert tags is None or (tags == truth[1]).all(), "wrong labels were given out"

    return Reader(name, [b"0"], read, USER, _serial, SHARDS_A_CHILD)


def _serial(rng: random.Random, raw: bytes) -> bytes:
    return rng.randbytes(8)
