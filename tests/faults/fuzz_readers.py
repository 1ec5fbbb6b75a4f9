"""The readers of this package, each with valid inputs: what fuzz.py damages.

Owns: one valid example of everything that is read, and the call that reads it.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz import Reader, change_json, other_value
from fuzz_job_readers import job_readers, json_change
from fuzz_shard_readers import shard_readers
from results_harness import make_run

from collage_mpi.errors import CollageError
from collage_mpi.job.joining import joined_settings
from collage_mpi.models.architecture import default_architecture
from collage_mpi.models.gate import tensor_files
from collage_mpi.models.weights import METADATA_KEY, describe_weights, read_tensors
from collage_mpi.prep.work import read_idx, read_labels
from collage_mpi.report.page import render_page
from collage_mpi.results import export_run, read_results, render_summary, summarise, verify_run
from collage_mpi.results.columns import parquet_bytes
from collage_mpi.results.slow_ranks import trace_of
from collage_mpi.rows import IMAGES, STORED
from collage_mpi.settings.flags import read_settings_file
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.schema import class_numbers
from collage_mpi.simulation.costs import costs_of
from collage_mpi.slurm import SlurmSettings, render
from collage_mpi.workload.arrivals import load_trace

USER = (CollageError,)


def make_readers(folder: Path) -> list[Reader]:
    """All of them; what they need lies in `folder`."""
    return [
        *_results(folder),
        *_settings(folder),
        *_arrays(folder),
        *_weights(folder),
        *job_readers(folder),
        *_vectors(folder),
        *_tables(folder),
        *_training(folder),
        *_simulation(folder),
        *_pictures(folder),
        *shard_readers(folder),
    ]


def _from_file(path: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def reader(raw: bytes) -> Any:
        path.write_bytes(raw)
        return read(path)

    return reader


# ---- results ----------------------------------------------------------------


def _read_run(run: Path) -> None:
    verify_run(run)
    results = read_results(run)
    render_summary(summarise(results))


def _use_run(run: Path) -> None:
    """As report, export, simulate and a job that joins do."""
    results = read_results(run)
    uses: tuple[tuple[Callable[..., Any], Any], ...] = (
        *((render_page, [run]), (trace_of, results), (costs_of, results)),
        (lambda out: joined_settings({"out": str(out)}, "flags", 11), run),
        (lambda found: export_run(found, "csv"), results),
    )
    for use, what in uses:
        try:
            use(what)
        except CollageError:
            pass  # one refuses, the next reads it all the same


def _results(folder: Path) -> list[Reader]:
    known = {"cost_ratio": 1.5, "batch_costs": {"single": 0.5}}
    run = make_run(folder / "run", 27, errors=frozenset({4}), **known)
    fixed, entry, record = run / "run.1.json", run / "jobs/0001.json", run / "leases/0.1"
    part = run / "rows/0.parquet"
    readers = []
    for path, name in ((fixed, "run"), (entry, "entry of a job"), (record, "record of a cell")):
        readers.append(_kept(f"{name}, bytes", path, run, None))
        readers.append(_kept(f"{name}, values", path, run, json_change))
    readers.append(_kept("run, values, as used", fixed, run, json_change, _use_run))
    readers.append(_kept("entry of a job, values, as used", entry, run, json_change, _use_run))
    readers.append(_kept("part, bytes", part, run, None))
    for table in STORED:
        path = part if table is IMAGES else run / f"parts/{table.name}-0001-000001.parquet"
        readers.append(_kept(f"part of {table.name}, rows", path, run, _change_rows))
        used = f"part of {table.name}, rows, as used"
        readers.append(_kept(used, path, run, _change_rows, _use_run))
    return readers


def _kept(
    name: str, path: Path, run: Path, change: Any, use: Callable[[Path], None] = _read_run
) -> Reader:
    """A reader of a file of the run, which is whole again after each input."""
    whole = path.read_bytes()

    def read(raw: bytes) -> None:
        try:
            path.write_bytes(raw)
            use(run)
        finally:
            path.write_bytes(whole)

    every = 10 if use is _use_run else 1
    return Reader(name, [whole], read, USER, every=every, **({"change": change} if change else {}))


def _change_rows(rng: random.Random, raw: bytes) -> bytes:
    """Rows with any values, their checksum right: as a program with a defect would write them."""
    table = pq.read_table(pa.py_buffer(raw))
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(table.num_columns)
        field, column = table.schema.field(at), table.column(at).to_pylist()
        row = rng.randrange(len(column))
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_string(kind):
            column[row] = rng.choice(("", "other", "\0", None, *filter(None, column)))
        else:
            width = max(1, kind.bit_width // 8)
            some = rng.choice((bytes(width), b"\xff" * width, rng.randbytes(width)))
            column[row] = np.frombuffer(some, kind.to_pandas_dtype())[0]
        values = pa.array(column, kind)
        values = values.dictionary_encode() if kind is not field.type else values
        table = table.set_column(at, field, values)
    return b"".join(parquet_bytes(table))


# ---- settings, job scripts -------------------------------------

SETTINGS = """
shards = ["a.h5", "b.h5"]
single = "null"
collage = "null"
scheme = "collage"
side = 3
confidence = 0.9
deadline_ms = 20.5
straggler = "lognormal"
straggler_seed = 3
slow_ranks = ["4:5"]
order = "shuffle:3"
limit = 1000
out = "runs/one"
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

    def slurm(path: Path) -> None:
        settings = SlurmSettings.from_mapping(read_settings_file(path), str(path))
        for kind in ("run_nodes", "train"):
            render(kind, settings)

    readers = []
    for name, text, read in (
        ("settings", SETTINGS, run_settings),
        ("slurm settings", SLURM, slurm),
    ):
        as_json = json.dumps(tomllib.loads(text)).encode()
        stem = name.replace(" ", "-")
        toml, plain = folder / f"{stem}.toml", folder / f"{stem}.json"
        readers.append(Reader(f"{name} .toml", [text.encode()], _from_file(toml, read), USER))
        readers.append(Reader(f"{name} .json", [as_json], _from_file(plain, read), USER))
        readers.append(
            Reader(f"{name}, values", [as_json], _from_file(plain, read), USER, json_change)
        )
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
    labels = _npy(np.arange(20) % 3)
    traces = [_npy(times), _npy(times.astype(np.float32)), _npy(times[0])]
    return [
        Reader(
            "trace .npy", traces, _from_file(folder / "t.npy", lambda p: load_trace(str(p))), USER
        ),
        Reader("trace .npy, header", traces,
               _from_file(folder / "t.npy", lambda p: load_trace(str(p))), USER, _npy_header),
        Reader("labels .npy", [labels], _from_file(folder / "l.npy", _labels), USER),
        Reader("labels .npy, header", [labels], _from_file(folder / "l.npy", _labels), USER,
               _npy_header),
        Reader("idx", [idx], _from_file(folder / "i.idx", read_idx), USER),
        Reader("idx.gz", [gzip.compress(idx)], _from_file(folder / "i.gz", read_idx), USER),
    ]  # fmt: skip


def _labels(path: Path) -> None:
    class_numbers(read_labels(str(path)), None)


def _npy_header(rng: random.Random, raw: bytes) -> bytes:
    """Another type, order or shape in a .npy's header, which is whole."""
    end = 10 + int.from_bytes(raw[8:10], "little")
    header = ast.literal_eval(raw[10:end].decode())
    types = ("<f8", ">i2", "|u1", "|S9", "<U3", "|O", "<M8[ns]", "|V0", "<c16", "|b1", "<f8,<f8")
    sizes = (0, 1, -1, 3, 10**12, 2**63, 10**30, 1.5, "3", None)
    key = rng.choice(list(header))
    if key == "descr":
        odd = ([("a", "<f8")], [("a", "<f8", (10**9,))], other_value(rng))
        header[key] = rng.choice((*types, *odd))
    elif key == "shape":
        shape = tuple(rng.choice(sizes) for _ in range(rng.randrange(4)))
        header[key] = rng.choice((shape, list(shape), rng.choice(sizes)))
    else:
        header[key] = rng.choice((True, 1, None, "x"))
    text = repr(header).encode("latin-1", "replace").ljust(117) + b"\n"
    return raw[:8] + struct.pack("<H", len(text)) + text + raw[end:]


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
        "architecture": asdict(default_architecture("single", 8)),
    }
    tensors = {"a": np.ones((4, 5), np.float16), "b": np.zeros(3, np.float32)}
    whole = save(tensors, metadata={METADATA_KEY: json.dumps(record)})
    path = folder / "w.safetensors"

    def read(path: Path) -> None:
        read_tensors(describe_weights(path))

    def facts(rng: random.Random, raw: bytes) -> bytes:
        header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
        inner = change_json(rng, json.loads(header["__metadata__"][METADATA_KEY]))
        header["__metadata__"][METADATA_KEY] = json.dumps(inner)
        return _with_header(raw, header)

    reader = _from_file(path, read)
    path.write_bytes(whole)  # the graph names it
    return [
        Reader("weights, bytes", [whole], reader, USER),
        Reader("weights, header", [whole], reader, USER, _header_change),
        Reader("weights, record", [whole], reader, USER, facts),
        Reader("graph of ONNX", [_graph()], _from_file(folder / "n.onnx", tensor_files), USER),
    ]


def _graph() -> bytes:
    """A graph with a tensor that is kept in the file w.safetensors beside it."""

    def message(field: int, *parts: bytes) -> bytes:
        inner = b"".join(parts)
        return bytes([*_number(8 * field + 2), *_number(len(inner))]) + inner

    place = message(13, message(1, b"location"), message(2, b"w.safetensors"))
    tensor = message(8, b"name") + place + bytes([8 * 14, 1])
    node = message(1, message(5, message(5, tensor)))
    return bytes([8, 9]) + message(7, node, message(5, tensor), message(2, b"x" * 200))


def _number(value: int) -> list[int]:
    return [value] if value < 0x80 else [value & 0x7F | 0x80, *_number(value >> 7)]


def _header_change(rng: random.Random, raw: bytes) -> bytes:
    """Other values in a safetensors header, which is whole."""
    return _with_header(
        raw, change_json(rng, json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]))
    )


def _with_header(raw: bytes, header: Any) -> bytes:
    text = json.dumps(header).encode()
    body = raw[8 + struct.unpack("<Q", raw[:8])[0] :]
    return struct.pack("<Q", len(text)) + text + body


# ---- vectors, tables, names ---------------------------------------------------


def _vectors(folder: Path) -> list[Reader]:
    """A run that keeps vectors."""
    run = folder / "kept"
    make_run(run, 27, errors=frozenset({4}), extras={"top_k": 2, "save": "embeddings"})
    (path,) = (run / "rows").glob("*.parquet")
    whole = path.read_bytes()

    def looked_at(raw: bytes) -> None:
        path.write_bytes(raw)
        verify_run(run)
        for name in ("top_classes", "top_scores", "embedding"):
            read_results(run).kept(name)

    return [
        Reader("vectors", [whole], looked_at, USER),
        Reader("vectors, columns", [whole], looked_at, USER, _other_columns),
    ]


def _other_columns(rng: random.Random, raw: bytes) -> bytes:
    """A sound Parquet file with a column of other values, type or name, or without it."""
    table = pq.read_table(io.BytesIO(raw))
    at, n = rng.randrange(table.num_columns), table.num_rows
    other = (
        pa.array(["x"] * n), pa.array([None] * n), pa.array([1.5] * n), pa.array([2**40] * n),
        pa.array([[1.0]] * n), pa.array([[]] * n), pa.array([[None]] * n),
        pa.array(([[1, 2], None] * n)[:n]), pa.array([{"a": 1}] * n), pa.array([float("nan")] * n),
        table.column(rng.randrange(table.num_columns)),
    )  # fmt: skip
    how = rng.choice(("values", "values", "values", "name", "without", "rows"))
    if how == "values":
        table = table.set_column(at, table.column_names[at], rng.choice(other))
    elif how == "name":
        table = table.rename_columns([*table.column_names[:at], "x", *table.column_names[at + 1 :]])
    elif how == "without":
        table = table.remove_column(at)
    else:
        table = rng.choice((table.slice(1), table.slice(0, 0), pa.concat_tables([table, table])))
    return b"".join(parquet_bytes(table))


def _tables(folder: Path) -> list[Reader]:
    """Text of other programs: names of classes, numbers of images, a file of checksums."""
    from collage_mpi.prep.arguments import PrepArguments
    from collage_mpi.shards.order import read_numbers
    from collage_mpi.shards.schema import read_sidecar, sidecar_path

    def names(path: Path) -> None:
        PrepArguments(out=path, class_names_file=path).names()

    shard = folder / "beside.h5"
    line = f"{'ab' * 32}  beside.h5\n".encode()
    return [
        Reader("names of classes", ["cat\ndög\n".encode()],
               _from_file(folder / "names.txt", names), USER),
        Reader("numbers of images", [b"3\n1\n4\n"],
               _from_file(folder / "some.txt", lambda p: read_numbers(p, 5)), USER),
        Reader("checksum beside a shard", [line],
               _from_file(sidecar_path(shard), lambda p: read_sidecar(shard)), USER),
    ]  # fmt: skip


# ---- training ---------------------------------------------------------------


def _training(folder: Path) -> list[Reader]:
    import torch
    from safetensors.numpy import save

    from collage_mpi.models.libraries import read_state
    from collage_mpi.training.loop import load_checkpoint, save_checkpoint
    from collage_mpi.training.sources import read_views

    identity = {"seed": 1}
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    path = folder / "c.pt"
    save_checkpoint(path, state, {"identity": identity, "step": 3})
    checkpoint = path.read_bytes()
    foreign = save({"a": np.ones((4, 5), np.float16), "b": np.zeros(3, np.float32)})
    kept = io.BytesIO()
    np.savez(kept, identity=np.array("[1]"), views=np.zeros((3, 2, 4), np.float32))
    cache = kept.getvalue()
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
        Reader("safetensors of other programs", [foreign],
               _from_file(folder / "w.safetensors", read_state), USER),
        Reader("safetensors of other programs, header", [foreign],
               _from_file(folder / "w.safetensors", read_state), USER, _header_change),
        Reader("cache of a teacher", [cache],
               _from_file(folder / "teacher.npz", lambda p: read_views(p, "[1]")), USER),
    ]  # fmt: skip


def _bytes_of(state: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


# ---- simulation, pictures ---------------------------------------------------


def _simulation(folder: Path) -> list[Reader]:
    from collage_mpi.commands.look import drawn
    from collage_mpi.results.status import StatusFiles, Watch, status_path
    from collage_mpi.rows import CELL, PRESENT, TASK_ROW
    from collage_mpi.simulation.simulator import read_answers, save_answers
    from collage_mpi.system.table import to_text
    from collage_mpi.workload.arrivals import load_times_ns

    given = np.array([(1, 0.5, PRESENT, 0, 0)] * 12, CELL)
    partly, path = given.copy(), folder / "a.npz"
    partly[0] = 0
    save_answers(path, 3, np.zeros(12), {"single": given, "collage": partly}, ["a", "b"])
    whole = path.read_bytes()
    save_answers(path, 3, np.zeros(12), {"single": given, "stage1": given}, ["a", "b"])
    bare = folder / "bare"
    for name in ("status", "beats"):
        (bare / name).mkdir(parents=True)
    rank = {"rank": 1, "host": "h", "kinds": ["single"], "state": "lost", "why": "gone", "tasks": 1}
    said = {"state": "running", "done": 5, "ranks": [rank, {**rank, "rank": 2}]}
    facts = {"run_id": "r", "session": 1, "label": "l", "total": 9, "before": 0}
    files = StatusFiles(bare, {**facts, "owner": "0" * 32}, 5.0)
    files.offer(lambda: (said, np.empty(0, TASK_ROW)))
    files.end("incomplete")
    status = status_path(bare, 1).read_bytes()
    top = _from_file(status_path(bare, 1), lambda p: to_text(drawn(p, Watch(bare).look(), 5)))
    times, text = _npy(np.arange(40) / 8), "\n".join(map(str, range(40))).encode()
    return [
        Reader("answers .npz", [whole, path.read_bytes()],
               _from_file(path, lambda p: read_answers(p, 3)), USER),
        Reader("arrivals .npy", [times],
               _from_file(folder / "a.npy", lambda p: load_times_ns(str(p), 9)), USER),
        Reader("arrivals .txt", [text],
               _from_file(folder / "a.txt", lambda p: load_times_ns(str(p), 9)), USER),
        Reader("status", [status], top, USER),
        Reader("status, values", [status], top, USER, json_change),
    ]  # fmt: skip


def _pictures(folder: Path) -> list[Reader]:
    import tarfile

    from PIL import Image

    from collage_mpi.shards.listing import list_tars
    from collage_mpi.shards.pictures import PictureFit, UnreadablePicture, picture_pixels

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
    fit = PictureFit(px=8, mode="letterbox", channels=3)
    path = folder / "p.tar"
    return [
        Reader("pictures", files, lambda raw: picture_pixels(raw, fit), (UnreadablePicture,)),
        Reader("tar", [packed.getvalue()], _from_file(path, lambda p: list_tars([p])), USER),
        *_sources(folder, files),
    ]


def _sources(folder: Path, files: list[bytes]) -> list[Reader]:
    """Sources that are read where they lie, and the list of the members of one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from collage_mpi.results.input_columns import InputColumns
    from collage_mpi.shards import ShardSet
    from collage_mpi.shards.inputs import ids_of
    from collage_mpi.shards.members import Member, MemberIndex

    def read(path: Path) -> None:
        with ShardSet.open([path]) as shards:
            shards.read_checked(range(min(len(shards), 20)))
            ids_of(shards.infos[0])

    def tell(path: Path) -> None:
        read(path)
        with ShardSet.open([path]) as shards:
            columns = InputColumns(dict(enumerate(shards.infos)))
            columns.of(np.zeros(3, [("shard", np.uint32), ("row", np.uint64)]))
            columns.check()

    def look(path: Path) -> None:
        index = MemberIndex.load(path)
        if index is not None and len(index):
            index.name(len(index) - 1)

    images = pa.array([{"bytes": data, "path": "a.jpg"} for data in files])
    about = {"info": {"features": {"label": {"names": [*"abcdefg"]}}}}
    table = pa.table({"image": images, "label": pa.array(range(len(files)))})
    packed = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), packed)
    members = [Member("a.jpg", "a.jpg", 3, label=1), Member("b", "b", 0, fault="none")]
    MemberIndex.of(zip(["a.jpg", "b"], members, strict=True)).save(folder / "index.npz")
    (folder / "a.jpg").write_bytes(files[0])
    rows = [{"path": "a.jpg", "n": 1, "box": [1, 2]}, {"path": "no.png", "n": 2.5, "m": {"k": "a"}}]
    named = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), named)
    tables = {
        "csv": b'path,n,said\na.jpg,1,"two\nlines"\nno.png,,b\n',
        "jsonl": b"\n".join(json.dumps(row).encode() for row in rows),
        "json": json.dumps(rows).encode(),
        "parquet": named.getvalue(),
    }
    return [
        Reader("parquet", [packed.getvalue()], _from_file(folder / "p.parquet", read), USER),
        *(
            Reader(f"table .{kind}", [data], _from_file(folder / f"t.{kind}", tell), USER)
            for kind, data in tables.items()
        ),
        Reader("list of paths", [b"a.jpg\n\nnone.png\na.jpg\n"],
               _from_file(folder / "l.txt", read), USER),
        Reader("list of members", [(folder / "index.npz").read_bytes()],
               _from_file(folder / "i.npz", look), USER),
    ]  # fmt: skip
