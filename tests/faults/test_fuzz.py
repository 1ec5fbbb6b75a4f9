"""No damaged input makes a reader do worse than refuse it: a few of each, --fuzz N for more."""

from __future__ import annotations

import ast
import json
import random
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz import Reader, Tally, fuzz, table
from fuzz_job_readers import CONTROL
from fuzz_readers import make_readers
from results_harness import make_run
from wire_tasks import unpack_results

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.job import messages
from collage_mpi.job.row_reader import RowReader
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import BEGIN_BYTES, FAILED, RESULT, Unread, WireResult, pack_results
from collage_mpi.results import read_results, verify_run
from collage_mpi.results.columns import parquet_bytes
from collage_mpi.results.manifest import compose
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.slurm import SlurmSettings
from collage_mpi.system.hard_exit import shared_memory
from collage_mpi.system.progress import split_statuses
from collage_mpi.system.tell import status_line
from collage_mpi.workload.arrivals import load_trace

pytestmark = pytest.mark.faults
FEW = 20
PACKAGE = Path(__file__).parents[2] / "collage_mpi"
NAMES = (
    *(f"{file}, {how}" for file in ("run", "entry of a job", "record of a cell")
      for how in ("bytes", "values")),
    *("run, values, as used", "entry of a job, values, as used"),
    *("part, bytes", "vectors", "vectors, columns"),
    *(f"part of {table}, rows{used}" for table in ("images", "tasks")
      for used in ("", ", as used")),
    *(f"{of}{how}" for of in ("settings", "slurm settings")
      for how in (" .toml", " .json", ", values")),
    *("trace .npy", "trace .npy, header", "labels .npy", "labels .npy, header"),
    *("labels .h5", "idx", "idx.gz", "names of classes", "checksum beside a shard"),
    *("weights, bytes", "weights, header", "weights, record"),
    *("safetensors of other programs", "safetensors of other programs, header"),
    *("graph of ONNX", "checkpoint", "weights of other programs", "cache of a teacher"),
    *(f"message: {what}" for what in ("tasks", "results", "cancel", "control", "control, values")),
    *("message: to rank 0, values", "message: to a team, values"),
    *(f"{what}{how}" for what in ("status lines", "greeting", "description of a shard")
      for how in ("", ", values")),
    *("record of a core", "record of a core, calls"),
    *("variables, values", "kernel's files of the host", "kernel's files of a process"),
    *("answers .npz", "status", "status, values"),
    *("arrivals .npy", "arrivals .txt", "numbers of images", "pictures", "tar"),
    *("parquet", *(f"table .{kind}" for kind in ("csv", "jsonl", "json", "parquet"))),
    *("list of paths", "list of members"),
    *(f"{what}{how}" for what in ("shards", "HDF5 of other programs") for how in ("", ", values")),
)  # fmt: skip

# What reads bytes, and is tried by no reader: (module, function) -> why not.
OWN, CHILD, KERNEL = "its own bytes", "what its own child says", "a file of the kernel, words only"
LIBRARY = "in a process apart, whose death is told: tests/loops/test_libraries"
NOT_TRIED = {
    ("results/writer", "refuse_alone"): "a ProcessId, as jobs have it in their entries",
    ("job/record", "check_record"): "its first bytes are compared, nothing more",
    ("encoding/vectors", "pack"): "a user's texts as bytes, which they are in this process",
    ("shards/order", "__init__"): "its seed's digest",
    ("doctor/examine", "probe"): CHILD,
    ("launch/mpiexec", "noted_signal"): "any text that is no signal's name is none",
    ("models/asking", "_child"): CHILD,
    ("models/asked", "main"): "its parent's request",
    ("shards/extents", "_list_what_is_asked"): "its parent's request",
    ("shards/reader", "_folders"): "what makes no sense is no folder's stamp",
    ("shards/lister", "take"): CHILD,
    **{
        ("models/libraries", f"load_{name}"): LIBRARY
        for name in ("timm", "hf", "onnx", "exported", "scripted")
    },
    ("job/changeover", "main"): CHILD,
    ("job/changeover", "make_as_asked"): "its parent's request",
    ("models/runtimes", "main"): "its parent's request",
    ("models/making", "make"): "any bytes have a hash",
    ("models/runtimes", "read_record"): "this user's cache: of another owner it is not read",
    ("models/runtimes", "_onnx"): "this user's cache: of another owner it is not read",
    ("models/runtimes", "_source_digest"): "any bytes have a hash",
    ("results/lease_files", "_content"): "the metadata of a part, under its seal",
    ("shards/pictures", "is_enlarged"): "every error is no picture",
    ("models/gate", "admit"): "any bytes are a file",
    ("models/gate", "_check_timm"): "a file of timm",
    ("models/gate", "_check_function"): "any bytes are a text",
    ("models/libraries", "_code_of_hub"): LIBRARY,
    ("models/libraries", "_zero_shot"): LIBRARY,
    ("models/gate", "_inside"): "any bytes are a file",
    ("models/runtimes", "why_unknown"): "every error means other answers",
    ("models/info", "processor_facts"): KERNEL,
    ("system/files", "sha256_of_file"): "any bytes have a hash",
    ("mpi/answers", "array"): "any bytes of a record are numbers",
    ("plugins", "offered"): "what pip installed; tests/loops/test_plugins breaks it",
    ("results/row_sink", "recent"): OWN,
    ("results/jobs", "entry"): OWN,
    ("results/row_sink", "_write"): OWN,
    ("system/files", "load_json"): "the format of an older run: what cannot be read is unknown",
    ("shards/members", "_zipped"): "writes a list that this process has made",
    ("shards/guard", "main"): "its parent's paths; shards are tried",
    ("shards/schema", "sha256_of"): "any bytes have a hash",
    ("system/environment", "_hosts_of_file"): "a file of hosts, words only",
    ("system/limits", "_descriptors_of_all"): KERNEL,
    ("system/limits", "_sizes_bytes"): KERNEL,
    ("system/forked", "_become"): "what its own launch says",
}
READS = re.compile(
    r"(^|\.)(loads|json\.load|np\.load|torch\.load|load_file|read_bytes|read_text|ParquetFile"
    r"|DictReader|File|frombuffer|raw_decode|(tarfile|gzip|Image)\.open"
    r"|(jit|export)\.load|create_model|from_pretrained|InferenceSession)$"
)


def what_reads() -> set[tuple[str, str]]:
    """(module, function) of the package with a call that makes something of bytes, or opens a file
    to read it."""
    found = set()
    for path in sorted(PACKAGE.glob("**/*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and any(map(_reads, ast.walk(function))):
                found.add((str(path.relative_to(PACKAGE).with_suffix("")), function.name))
    return found


def _reads(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name, words = ast.unparse(node.func), {ast.unparse(each) for each in node.args}
    opens = name == "open" or (name.endswith(".open") and name != "os.open")
    if opens and words & {"'rb'", "'r'"}:
        return True
    return bool(READS.search(name)) and not words & {"'w'", "'r+'"}


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return {r.name: r for r in make_readers(tmp_path_factory.mktemp("fuzz"))}


@pytest.fixture(scope="module")
def tallies():
    """Of all readers; `pytest -s` shows the table."""
    found: list[Tally] = []
    yield found
    if found:
        print(f"\n{table(found)}")


def test_every_reader_is_tried(readers: dict[str, Reader]) -> None:
    assert set(readers) == set(NAMES)


@pytest.mark.timeout(1800)
def test_whatever_reads_bytes_is_tried_by_a_reader(readers: dict[str, Reader]) -> None:
    """By which functions are entered while sound inputs are read; the others say why not."""
    entered, package = set(), str(PACKAGE) + "/"

    def note(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package):
            entered.add((code.co_filename[len(package) :].removesuffix(".py"), code.co_name))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        for reader in readers.values():
            for raw in reader.valid:
                reader.read(raw)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    reads = {each for each in what_reads() if not each[0].startswith("core/")}  # its own columns
    untried = {each for each in reads if not each[1].startswith("pack_")} - entered
    assert sorted(untried - set(NOT_TRIED)) == []


def test_every_control_message_is_among_the_inputs() -> None:
    assert {type(message) for message in CONTROL} == set(messages.TYPES.values())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_inputs_are_read_or_refused(readers, tallies, request, name: str) -> None:
    files = request.config.getoption("fuzz") or FEW
    tally = fuzz(readers[name], files, request.config.getoption("chaos_seed"))
    tallies.append(tally)
    assert tally.inputs * tally.files * readers[name].every >= files
    texts = "\n\n".join(f"{raw[:400]!r}\n{text}" for raw, text in tally.findings[:3])
    assert not tally.findings, f"{len(tally.findings)} of {tally.inputs}:\n{texts}"


def test_the_limits_hold(tmp_path) -> None:
    """A reader that takes too much memory or lets an exception out is found."""

    def greedy(raw: bytes) -> None:
        if raw != b"good":
            np.ones(1 << 33, np.uint8)

    tally = fuzz(Reader("greedy", [b"good"], greedy, (UsageError,)), 5, 1)
    assert len(tally.findings) + tally.read == 5
    assert any("MemoryError" in text for _, text in tally.findings)


# ---- what fuzzing found, each once -----------------------------------------


@pytest.mark.parametrize("shape", ["(10**12, 1)", "(1000000000000,)", "(-1,)", "(1, 10**30)"])
def test_a_trace_that_claims_to_be_huge(tmp_path, shape: str) -> None:
    shape = str(eval(shape, {}))
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path = tmp_path / "t.npy"
    raw = header.encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + bytes(64))
    with pytest.raises(DataFault):
        load_trace(str(path))


def test_a_trace_whose_header_ends_in_mid_sentence(tmp_path) -> None:
    path = tmp_path / "t.npy"
    raw = b"{'descr': '<f8', \0 'fortran_order': False, 'shape': (3,"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + bytes(64))
    with pytest.raises(DataFault):
        load_trace(str(path))


def test_numbers_of_400_digits() -> None:
    with pytest.raises(UsageError, match="300 digits"):
        RunSettings.from_mapping({"deadline_ms": 10**400})
    with pytest.raises(UsageError, match="nodes is"):
        SlurmSettings.from_mapping({"nodes": 10**400})


@pytest.mark.parametrize("progress", ["{", "[]", "{}", '{"identity": 3}', 7])
def test_a_checkpoint_whose_progress_is_damaged(tmp_path, progress) -> None:
    import torch

    from collage_mpi.training.loop import VERSION, load_checkpoint

    torch.save({"version": VERSION, "progress": progress}, tmp_path / "c.pt")
    with pytest.raises(DataFault, match="not a checkpoint"):
        load_checkpoint(tmp_path / "c.pt", {})


def test_a_checkpoint_whose_pickle_pops_from_nothing(tmp_path) -> None:
    """torch's restricted unpickler says IndexError."""
    from collage_mpi.training.loop import load_checkpoint

    (tmp_path / "c.pt").write_bytes(b"\x80\x02t.")
    with pytest.raises(DataFault, match="not a checkpoint"):
        load_checkpoint(tmp_path / "c.pt", {})


def test_a_control_message_nested_too_deep() -> None:
    buffer = np.zeros(wire.CONTROL_BYTES, np.uint8)
    message = buffer[: wire.pack_control(buffer, 1, b"[" * 60_000)]
    with pytest.raises(wire.WireFault, match="rank 1"):
        messages.unpack(message, 1)


def test_an_answer_that_claims_more_cells_than_there_are() -> None:
    buffer = np.zeros(4096, np.uint8)
    failed = WireResult(1, FAILED, reason="boom", unread=(Unread("worn", of_input=True),))
    message = buffer[: pack_results(buffer, 1, [failed])].copy()
    message[BEGIN_BYTES + RESULT.fields["n_cells"][1]] = 9
    with pytest.raises(wire.WireFault, match="do not add up"):
        unpack_results(message)


@pytest.mark.parametrize("raw", [b"{", b"{}", b"3", b'{"class_names": 3}', b"[" * 60_000])
def test_a_description_of_a_shard_that_is_none(raw: bytes) -> None:
    with pytest.raises(wire.WireFault, match="rank 0 sent an invalid shard"):
        RowReader([raw.decode()])


@pytest.mark.parametrize("status", [
    {"phase": "x", "done": None}, {"done": "1"}, {"done": 1, "total": []}, {"unit": 3, "done": 1},
    {"done": 10**400}, {"done": 1, "images_s": "3"}, {"ended": 1, "code": "x"}, {"phase": 1},
    {"every_s": None, "done": 1}, {"done": True},
])  # fmt: skip
def test_a_status_that_cannot_be_shown_is_output_like_any_other(status) -> None:
    line = status_line(status, "w")
    assert split_statuses(line, "w") == (line, [])
    sound = {"phase": "x", "done": 1, "total": None, "images_s": 2.5}
    assert split_statuses(status_line(sound, "w"), "w") == ("", [sound])


def test_a_mapped_file_of_any_name(tmp_path) -> None:
    """launch looks at what each rank has mapped."""
    line = b"7f00-7f01 rw-s 00000000 00:17 5      %s\n"
    names = (b"/home/caf\xe9.npy", b"/home/a\xe2\x80\xa8b /dev/shm/", b"/dev/shm/mpich_shm_1")
    (tmp_path / "maps").write_bytes(b"".join(line % name for name in names))
    assert shared_memory(tmp_path / "maps") == [Path("/dev/shm/mpich_shm_1")]


@pytest.mark.parametrize("change", [
    {"cost_ratio": "1"}, {"cost_ratio": float("nan")}, {"cost_ratio": 10**400},
    {"cost_ratio": True},
    {"batch_costs": []},
    {"batch_costs": {"single": "x"}},
])  # fmt: skip
def test_costs_in_a_manifest_are_numbers(tmp_path, change) -> None:
    run = make_run(tmp_path / "run", 18)
    entry = run / "jobs/0001.json"
    found = json.loads(entry.read_text())
    found["facts"]["final"] |= change
    entry.write_text(json.dumps(found))
    with pytest.raises(DataFault, match=f"{next(iter(change))}|it is damaged"):
        compose(run)


@pytest.mark.parametrize(("name", "value"), [
    ("fingerprint", 3), ("row", "x"), ("shard", [1]), ("top_classes", "x"), ("top_scores", 1.5),
    ("top_classes", []), ("top_classes", [None]), ("top_scores", {"a": 1}), ("session", None),
])  # fmt: skip
def test_vectors_whose_columns_are_of_other_types(tmp_path, name, value) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = make_run(tmp_path / "run", 18, extras={"top_k": 2, "save": "none"})
    (path,) = (run / "rows").glob("*.parquet")
    table = pq.read_table(path)
    at = table.column_names.index(name)
    values = pa.array([value] * len(table))
    field = table.schema.field(name).with_type(values.type)
    path.write_bytes(b"".join(parquet_bytes(table.set_column(at, field, values))))
    assert not verify_run(run).ok
    with pytest.raises(DataFault, match=r"the columns|columns are|other lengths|nulls"):
        read_results(run).kept("top_classes" if "top" not in name else name)


def test_damage_is_the_same_for_the_same_seed(readers) -> None:
    reader = readers["run, values"]
    raw = reader.valid[0]
    assert reader.change(random.Random(3), raw) == reader.change(random.Random(3), raw)
    assert json.loads(raw)
