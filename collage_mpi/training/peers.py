"""The processes that share the steps of a training run (torchrun), or this process alone: their
devices, their parts of a step, data read once a host, and one error message for all.
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

# How long a process waits for the others, such as for the lead, which alone validates.
WAIT_LIMIT = timedelta(hours=1)
QUIET_S = 1.0
# What torch calls a peer that went away: gloo raises plain RuntimeErrors.
_LOST_WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")

Arrays = dict[str, np.ndarray]


class TrainingStopped(CollageError):
    """A signal came. The finished steps are in the checkpoint."""

    exit_code = ExitCode.INCOMPLETE


@dataclass(frozen=True)
class Peers:
    """This process among those of the run; alone by default.

    Attributes:
        rank, size: as torchrun says.
        device: of this process, "cpu" or "cuda:K".
        host_number: of this process's host.
        first_on_host: whether it reads the data for its host.
        store: torchrun's key-value store; None when alone.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    host_number: int = 0
    first_on_host: bool = True
    store: Any = None

    @property
    def lead(self) -> bool:
        """Whether this is the one process that validates, prints and writes files."""
        return self.rank == 0

    def part(self, inputs: int) -> slice:
        """This process's rows of a step's batch.

        Raises:
            DataFault: the step's inputs cannot be divided evenly.
        """
        if inputs % self.size:
            raise DataFault(
                f"the data fill {inputs} inputs a step, not divisible among {self.size} "
                "processes: use more images, a smaller --batch, or fewer processes"
            )
        each = inputs // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def totals(self, values: list[float], device: torch.device) -> list[float]:
        """The sum of each number over the processes, the same on all of them."""
        if self.size == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return summed.tolist()

    def wrap(self, network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The network with its gradients averaged over the processes; the network itself if
        alone.
        """
        if self.size == 1:
            return network
        ids = [device.index] if device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(network, device_ids=ids)


ALONE = Peers()


def check_batch(batch: int, size: int) -> None:
    """Raise UsageError unless `batch` inputs a step can be shared by `size` processes."""
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
        device: as the user gave it, "cpu" or "cuda".
        gpus: how many torch sees in this process.

    Raises:
        UsageError: a device that several processes cannot share.
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
    """Run `work`, together with the other processes if torchrun started several.

    If several processes fail, only the first one prints its error. An error of the lead is raised
    here, for the command line to print.

    Args:
        device: as the user gave it; `work` gets this process's own device.

    Raises:
        SystemExit: the error is already printed, by this process or another one.
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
    leave_at_once()  # else one exit in thirty aborts: "terminate called without an active ..."
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
    """The exception to raise after a failure here. The message is printed already, unless this is
    the lead.
    """
    fault = _as_fault(error)
    known = isinstance(fault, CollageError)
    leave = SystemExit(int(fault.exit_code if isinstance(fault, CollageError) else ExitCode.DEFECT))
    if not _first_to_fail(peers):
        time.sleep(QUIET_S)  # torchrun ends all with the first: its message comes before
        return leave
    if peers.lead:
        return fault
    told = str(fault) if known else "".join(traceback.format_exception(error))
    where = f"process {peers.rank} of {peers.size} on host {socket.gethostname()}"
    tell(f"collage-mpi train: {where}: {told}", logging.ERROR, any_rank=True)
    return leave


def _as_fault(error: Exception) -> Exception:
    """Turns the loss of another process into an EnvironmentFault; other exceptions stay as they
    are.
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
    except RuntimeError:  # the store is gone with its host: better twice than not at all
        return True


def read_once(
    peers: Peers, read: Callable[[], tuple[Arrays, dict[str, Any]]]
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and JSON facts that `read` returns, with one copy in memory for each host.

    The first process of a host reads into anonymous shared memory (memfd: nothing is left behind,
    however the job ends); the others map it read-only. Without memfd, each process reads for
    itself.
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
    """Copy the array into memory that lives as long as this process; returns a path by which others
    open it.
    """
    number = os.memfd_create(f"collage-mpi-{name}")
    with os.fdopen(number, "wb", closefd=False) as file:  # stays open: the path goes through it
        np.save(file, array, allow_pickle=False)
    return f"/proc/{os.getpid()}/fd/{number}"
