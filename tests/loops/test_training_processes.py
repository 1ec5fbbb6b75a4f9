"""Two processes under torchrun train as one does; a failure ends both with one message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.shards import write_shard
from collage_mpi.system.environment import TorchrunPlace
from collage_mpi.system.process_tree import end_family, process_table

pytest.importorskip("torch")
from collage_mpi.training.peers import Peers, check_batch, own_device

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
NET = ["--stem", "8x3/2", "--stages", "16x1/2", "--precision", "float32"]
TIMEOUT_S = 240.0  # only a hang takes so long
# torchrun kills what a signal has not ended after 30 s, which a busy machine may need for a step
PATIENT = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(TIMEOUT_S))}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    images = random.integers(0, 40, (400, 8, 8, 1), dtype=np.uint8)
    images[labels == 1, :, :4] += 150
    path = tmp_path_factory.mktemp("shards") / "train.h5"
    write_shard(path, images, labels, class_names=("a", "b", "c"), source="test")
    return path


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1", **PATIENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines of stderr that are ours."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        end_family(process, grace_s=0.0)
    return process.returncode, out, [line for line in err.splitlines() if "collage-mpi" in line]


def train(kind: str, shard: Path, out: Path, *more: str) -> list[str]:
    words = ["-m", "collage_mpi", "train", kind, "--shards", str(shard), "--out", str(out)]
    return [*words, *NET, "--batch", "16", "--norm", "group", *more]


def tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


@pytest.mark.slow
def test_two_processes_train_as_one_does(shard: Path, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    more = ["--side", "2", "--blank-share", "0.5", "--epochs", "2"]
    code, out, ours = ended(start([*TORCHRUN, *train("collage", shard, two, *more)]))
    assert (code, ours) == (0, [])
    assert "2 processes" in out
    assert out.count("epoch 2/2: train loss") == 1  # one of them speaks
    assert ended(start([sys.executable, *train("collage", shard, one, *more)]))[0] == 0
    found, wanted = tensors(two), tensors(one)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert np.allclose(found[name], wanted[name], atol=2e-3), name


@pytest.mark.slow
def test_a_killed_process_ends_both_and_resume_goes_on_to_the_same_weights(
    shard: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    epochs = ["--epochs", "15"]
    assert ended(start([*TORCHRUN, *train("single", shard, whole, *epochs)]))[0] == 0
    job = start([*TORCHRUN, *train("single", shard, cut, *epochs)])
    checkpoint = cut.with_name("cut.checkpoint")
    limit_s = time.monotonic() + TIMEOUT_S
    while not checkpoint.exists() and time.monotonic() < limit_s:
        time.sleep(0.005)
    os.kill(second_process(job.pid), signal.SIGKILL)
    code, _, ours = ended(job)
    assert code != 0
    assert len(ours) == 1, ours
    assert "another training process is gone" in ours[0]
    assert "--resume" in ours[0]
    assert not cut.exists()
    resumed = [*TORCHRUN, *train("single", shard, cut, *epochs, "--resume")]
    assert ended(start(resumed))[0] == 0
    found, wanted = tensors(cut), tensors(whole)
    for name in wanted:
        assert np.array_equal(found[name], wanted[name]), name


@pytest.mark.slow
def test_a_signal_stops_both_with_one_checkpoint(shard: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    checkpoint = out.with_name("cut.checkpoint")
    job = start([*TORCHRUN, *train("single", shard, out, "--epochs", "400")])
    limit_s = time.monotonic() + TIMEOUT_S
    while not checkpoint.exists() and time.monotonic() < limit_s:
        time.sleep(0.005)
    begun = checkpoint.exists()
    job.terminate()
    code, _, ours = ended(job)
    assert begun, "no checkpoint in time"
    assert code != 0
    assert len(ours) == 1, ours
    assert "stopped by SIGTERM after step" in ours[0]
    assert f"checkpoint {checkpoint} is written" in ours[0]
    assert not out.exists()


def second_process(torchrun: int) -> int:
    """The training process of rank 1 below a torchrun."""
    for pid, (parent, _) in process_table().items():
        if parent == torchrun:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if b"RANK=1" in words:
                return pid
    raise AssertionError("no second process")


@pytest.mark.slow
def test_what_is_wrong_for_all_is_said_once(shard: Path, tmp_path: Path) -> None:
    words = [*TORCHRUN, *train("single", shard, tmp_path / "w"), "--batch", "15"]
    code, _, ours = ended(start(words))
    assert code != 0
    assert len(ours) == 1, ours
    assert "use 14 or 16" in ours[0]


def test_a_batch_must_be_shared_evenly() -> None:
    check_batch(16, 4)
    with pytest.raises(UsageError, match=r"use 4$"):
        check_batch(1, 4)
    assert Peers(rank=1, size=4).part(16) == slice(4, 8)
    with pytest.raises(DataFault, match="fewer processes"):
        Peers(rank=1, size=4).part(6)


def test_each_process_has_a_device_of_its_own() -> None:
    place = TorchrunPlace(rank=5, size=8, local_rank=1, local_size=4, host_number=1)
    assert own_device("cpu", place, 0) == "cpu"
    assert own_device("cuda", place, 4) == "cuda:1"
    with pytest.raises(EnvironmentFault, match=r"shows 2 GPU.*nproc-per-node=2$"):
        own_device("cuda", place, 2)
    with pytest.raises(UsageError, match="a GPU each"):
        own_device("cuda:1", place, 4)
