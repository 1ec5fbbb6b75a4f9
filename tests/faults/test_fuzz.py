"""No damaged input makes a reader do worse than refuse it: a few of each, --fuzz N for more."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from fuzz import Reader, Tally, fuzz, table
from fuzz_readers import make_readers

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.job import messages
from collage_mpi.mpi import protocol as wire
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.slurm.job_script import SlurmSettings
from collage_mpi.training.checkpoint import VERSION, load_checkpoint
from collage_mpi.workload.trace import load_trace

pytestmark = pytest.mark.faults
FEW = 20
NAMES = (
    *("manifest, bytes", "part, bytes", "manifest, values"),
    *(f"part of {table}, rows" for table in ("images", "groups", "tasks")),
    *(f"{of}{how}" for of in ("settings", "experiment", "slurm settings")
      for how in (" .toml", " .json", ", values")),
    *("trace .npy", "idx", "idx.gz", "weights, bytes", "weights, header", "weights, record"),
    *(f"message: {what}" for what in ("tasks", "results", "cancel", "control", "control, values")),
    *("costs", "costs, values", "status", "status, values"),
    *("checkpoint", "weights of other programs", "answers .npz"),
    *("arrivals .npy", "arrivals .txt", "latencies", "summary without rows", "pictures", "tar"),
    *("shards", "HDF5 of other programs"),
)  # fmt: skip


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
@pytest.mark.parametrize("name", NAMES)
def test_damaged_inputs_are_read_or_refused(readers, tallies, request, name: str) -> None:
    files = request.config.getoption("fuzz") or FEW
    tally = fuzz(readers[name], files, request.config.getoption("chaos_seed"))
    tallies.append(tally)
    assert tally.inputs * tally.files >= files
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
        RunSettings.from_mapping({"grace_ms": 10**400})
    with pytest.raises(UsageError, match="nodes is"):
        SlurmSettings.from_mapping({"nodes": 10**400})


@pytest.mark.parametrize("progress", ["{", "[]", "{}", '{"identity": 3}', 7])
def test_a_checkpoint_whose_progress_is_damaged(tmp_path, progress) -> None:
    import torch

    torch.save({"version": VERSION, "progress": progress}, tmp_path / "c.pt")
    with pytest.raises(DataFault, match="not a checkpoint"):
        load_checkpoint(tmp_path / "c.pt", {})


def test_a_checkpoint_whose_pickle_pops_from_nothing(tmp_path) -> None:
    """torch's restricted unpickler says IndexError."""
    (tmp_path / "c.pt").write_bytes(b"\x80\x02t.")
    with pytest.raises(DataFault, match="not a checkpoint"):
        load_checkpoint(tmp_path / "c.pt", {})


def test_a_control_message_nested_too_deep() -> None:
    buffer = np.zeros(wire.CONTROL_BYTES, np.uint8)
    message = buffer[: wire.pack_control(buffer, 1, b"[" * 60_000)]
    with pytest.raises(wire.WireFault, match="rank 1"):
        messages.unpack(message, 1)


def test_damage_is_the_same_for_the_same_seed(readers) -> None:
    reader = readers["manifest, values"]
    raw = reader.valid[0]
    assert reader.change(random.Random(3), raw) == reader.change(random.Random(3), raw)
    assert json.loads(raw)
