"""Training by several processes of torchrun, or by one: their devices, their parts of a step, data
read once for each host, and one error message for all.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.system.environment import TorchrunPlace, torchrun_place
from collage_mpi.system.hard_exit import leave_at_once
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell

# How long a process waits for others, for example while the lead validates.
WAIT_LIMIT = timedelta(hours=1)
QUIET_S = 1.0
# Words in the RuntimeErrors that torch raises if another process is lost.
_LOST_WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")

Arrays = dict[str, np.ndarray]


class TrainingStopped(CollageError):
    """Training was stopped by a signal, and the finished steps are in the checkpoint."""

    exit_code = ExitCode.INCOMPLETE


@dataclass(frozen=True)
class Peers:
    """The place of this process among those of the run; by default it is the only one.

    Attributes:
        rank, size: from torchrun.
        device: of this process, "cpu" or "cuda:K".
        host_number: of the process's host.
        first_on_host: whether this process reads the data for its host.
        store: torchrun's key-value store; None for a single process.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    host_number: int = 0
    first_on_host: bool = True
    store: Any = None

    @property
    def lead(self) -> bool:
        """Whether this is the process that validates, prints and writes files."""
        return self.rank == 0

    def part(self, inputs: int) -> slice:
        """The rows of a step's batch for this process.

        Args:
            inputs: number of inputs in a step.

        Raises:
            DataFault: the inputs cannot be divided evenly.
        """
        if inputs % self.size:
            raise DataFault(
                f"the data fill {inputs} inputs a step, not divisible among {self.size} "
                "processes: use more images, a smaller --batch, or fewer processes"
            )
        each = inputs // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def totals(self, values: list[float], device: torch.device) -> list[float]:
        """The sum of each value over all processes (all-reduce)."""
        if self.size == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return summed.tolist()

    def wrap(self, network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The network, with gradients averaged over processes if there are several."""
        if self.size == 1:
            return network
        ids = [device.index] if device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(network, device_ids=ids)


ALONE = Peers()


def check_batch(batch: int, size: int) -> None:
    """Raise UsageError unless `size` processes can share the `batch` inputs of a step evenly."""
    if batch % size:
        low = batch // size * size
        near = " or ".join(str(n) for n in (low, low + size) if n)
        raise UsageError(
            f"--batch is {batch}, the inputs of all {size} processes together, and cannot be "
            f"shared evenly: use {near}"
        )


def own_device(device: str, place: TorchrunPlace, gpus: int) -> str:
    """The device of one of several processes: "cpu", or the GPU of its local rank.

    Args:
        device: from the user, "cpu" or "cuda".
        place: of this process.
        gpus: number of GPUs that torch sees in this process.

    Raises:
        UsageError: several processes cannot share this device.
        EnvironmentFault: there are more processes on this host than GPUs.
    """
    if device == "cpu":
        return device
    if device != "cuda":
        raise UsageError(
            f"--device {device} with {place.size} processes: say cpu, or cuda for a GPU each"
        )
    if place.local_size > gpus:
        raise EnvironmentFault(
            f"{place.local_size} training processes on host {socket.gethostname()}, which shows "
            f"{counted(gpus, 'GPU')}: one GPU each is needed; use --nproc-per-node={max(1, gpus)}"
            + ("" if gpus else " and --device cpu")
        )
    return f"cuda:{place.local_rank}"


def together(device: str, work: Callable[[Peers], int]) -> int:
    """Run `work` in this process, as one of several if torchrun started them.

    If several processes fail, only the first one reports its error. If this is the lead, the error
    is raised, and the command line prints it.

    Args:
        device: from the user.
        work: gets the place and the device of this process, and returns the exit code.

    Raises:
        SystemExit: this or another process has printed the error.
    """
    place = torchrun_place()
    if place is None or place.size == 1:
        return work(Peers(device=device))
    peers = _meet(place, device)
    try:
        peers = _start_group(peers, place)
        code = work(peers)
    except TrainingStopped as stopped:  # all processes stop at once, and the lead prints it
        if peers.lead:
            raise
        time.sleep(QUIET_S)
        raise SystemExit(int(stopped.exit_code)) from stopped
    except Exception as error:
        raise _told_by_one(peers, error) from error
    dist.destroy_process_group()
    leave_at_once()  # a normal exit aborts once in thirty: "terminate called without an active ..."
    return code


def _meet(place: TorchrunPlace, device: str) -> Peers:
    try:
        store, rank, size = next(rendezvous("env://", timeout=WAIT_LIMIT))
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault(
            f"the {place.size} training processes cannot meet: {_first_line(error)}; start them "
            "with: torchrun --standalone --nproc-per-node=N -m collage_mpi train ..."
        ) from error
    store.set_timeout(WAIT_LIMIT)
    return Peers(rank, size, device, place.host_number, place.local_rank == 0, store)


def _start_group(peers: Peers, place: TorchrunPlace) -> Peers:
    gpus = torch.cuda.device_count() if peers.device == "cuda" else 0
    device = own_device(peers.device, place, gpus)
    cuda = device != "cpu"
    if cuda:
        torch.cuda.set_device(device)  # before the first CUDA call: no context on GPU 0
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=peers.store,
        rank=peers.rank,
        world_size=peers.size,
        timeout=WAIT_LIMIT,
    )
    return replace(peers, device=device)


def _told_by_one(peers: Peers, error: Exception) -> Exception | SystemExit:
    """The exception to raise after a failure in this process. Unless this is the lead, its message
    has been printed.
    """
    fault = _as_fault(error)
    known = isinstance(fault, CollageError)
    leave = SystemExit(int(fault.exit_code if isinstance(fault, CollageError) else ExitCode.DEFECT))
    if not _first_to_fail(peers):
        time.sleep(QUIET_S)  # time for the first one to print, before torchrun ends all processes
        return leave
    if peers.lead:
        return fault
    told = str(fault) if known else "".join(traceback.format_exception(error))
    where = f"process {peers.rank} of {peers.size} on host {socket.gethostname()}"
    tell(f"collage-mpi train: {where}: {told}", logging.ERROR, any_rank=True)
    return leave


def _as_fault(error: Exception) -> Exception:
    """An EnvironmentFault if the exception means that another process is lost; otherwise the
    exception.
    """
    if isinstance(error, CollageError) or not isinstance(error, RuntimeError):
        return error
    if not any(word in str(error) for word in _LOST_WORDS):
        return error
    return EnvironmentFault(
        f"another training process is gone ({_first_line(error)}): killed, out of memory, or its "
        "host is down. Go on from the checkpoint with the same command and --resume"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _first_to_fail(peers: Peers) -> bool:
    try:
        return int(peers.store.add("collage_mpi/failed", 1)) == 1
    except RuntimeError:  # the store is lost; to report twice is better than not at all
        return True


def read_once(
    peers: Peers, read: Callable[[], tuple[Arrays, dict[str, Any]]]
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and JSON facts that `read` returns, with one copy of the arrays on each host.

    The first process of a host reads them into anonymous shared memory (memfd), which the system
    frees however the job ends. The other processes map it read-only. Without memfd each process
    reads.
    """
    if peers.size == 1 or not hasattr(os, "memfd_create"):
        return read()
    key = f"collage_mpi/data/{peers.host_number}"
    if peers.first_on_host:
        arrays, facts = read()
        paths = {name: _to_shared_memory(name, arrays.pop(name)) for name in list(arrays)}
        peers.store.set(key, json.dumps({"paths": paths, "facts": facts}))
    told = json.loads(peers.store.get(key))
    try:
        mapped = {
            name: np.load(path, mmap_mode="r", allow_pickle=False)
            for name, path in told["paths"].items()
        }
    except OSError as error:
        raise EnvironmentFault(
            f"the data read by another process cannot be mapped: {error}; check that /proc is "
            "mounted and that all processes of a host run in one container"
        ) from error
    return {name: np.asarray(array) for name, array in mapped.items()}, told["facts"]


def _to_shared_memory(name: str, array: np.ndarray) -> str:
    """Copy an array into shared memory that lives as long as this process. Returns a path by which
    other processes open it.
    """
    number = os.memfd_create(f"collage-mpi-{name}")
    with os.fdopen(number, "wb", closefd=False) as file:  # stays open, because the path needs it
        np.save(file, array, allow_pickle=False)
    return f"/proc/{os.getpid()}/fd/{number}"
