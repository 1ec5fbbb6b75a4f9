"""The bench's bare loops: the bytes of a round with nothing but mpi4py.

Owns: what a world is to the bench, the polling and the blocking loop of both sides.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from round_report import Block, Exchange, RoundMeter, exchanges
from round_settings import BenchSettings

from collage_mpi.encoding.collage import Encoder
from collage_mpi.job.coordinator import PollWatch
from collage_mpi.job.worker import RING_SPARE
from collage_mpi.mpi.protocol import TAG_TASK, TAG_UP
from collage_mpi.system.backoff import COORDINATOR_BACKOFF, WORKER_BACKOFF, Backoff

if TYPE_CHECKING:
    from cProfile import Profile


@dataclass(frozen=True)
class World:
    """What every rank has of the bench: two communicators, the messages of a round."""

    settings: BenchSettings
    job_comm: Any
    bare_comm: Any
    mpi: Any
    profile: Profile | None = None

    @property
    def rank(self) -> int:
        """This rank."""
        return int(self.job_comm.Get_rank())

    @property
    def size(self) -> int:
        """Ranks of the world."""
        return int(self.job_comm.Get_size())

    @property
    def messages(self) -> list[Exchange]:
        """The messages of a round."""
        return exchanges(self.settings, self.size - 2)

    def meet(self) -> None:
        """Wait until all ranks have left the turn before, with its receives withdrawn.

        A message of the next turn would else be matched by one of them, and be lost.
        """
        self.bare_comm.Barrier()


class BareBlock:
    """The same bytes with nothing but mpi4py: what any job on it has to pay.

    Args:
        images: (n, H, W, C) uint8, n at least a group: their collage is made in each round.
            None sends what is there.
    """

    def __init__(self, world: World, images: np.ndarray | None = None) -> None:
        self.world = world
        self._images = images
        self._encoder = Encoder(world.settings.grid, world.settings.image_shape, threads=1)
        self._encodes_ns: list[int] = []
        self._sent = [np.zeros(m.down_bytes, np.uint8) for m in world.messages]
        self._answers = [np.zeros(m.up_bytes, np.uint8) for m in world.messages]

    def play(self, *, blocks: bool) -> Block:
        """All rounds of a block, waiting in MPI (blocks) or polling with the job's back-off."""
        settings = self.world.settings
        meter = RoundMeter(settings, None if blocks else PollWatch())
        backoff = Backoff(COORDINATOR_BACKOFF)
        for _ in range(settings.played_rounds):
            meter.begin_round()
            if self._images is not None:
                self._encode(self._images)
            requests = self._post()
            if meter.polls is None:
                self.world.mpi.Request.Waitall(requests)
            else:
                self._poll(requests, backoff, meter.polls)
        measured = self._encodes_ns[settings.warmup : -1]
        return meter.block(np.array(measured, np.int64) if measured else None)

    def _encode(self, images: np.ndarray) -> None:
        """The next group's collage, to where its message is sent from."""
        start_ns = time.monotonic_ns()
        cells, encoder = self.world.settings.grid.cells, self._encoder
        first = len(self._encodes_ns) * cells % (len(images) - cells + 1)
        collage = self._sent[-1][-math.prod(encoder.input_shape) :]
        shrunk = encoder.shrink(images[first : first + cells])  # (cells, cell_px, cell_px, C)
        encoder.paste(list(shrunk), collage.reshape(encoder.input_shape))
        self._encodes_ns.append(time.monotonic_ns() - start_ns)

    def _post(self) -> list[Any]:
        """All receives and sends of a round."""
        comm, messages = self.world.bare_comm, self.world.messages
        receives = [
            comm.Irecv(answer, source=m.rank, tag=TAG_UP)
            for m, answer in zip(messages, self._answers, strict=True)
        ]
        return receives + [
            comm.Isend(sent, dest=m.rank, tag=TAG_TASK)
            for m, sent in zip(messages, self._sent, strict=True)
        ]

    def _poll(self, requests: list[Any], backoff: Backoff, polls: PollWatch) -> None:
        left = len(requests)
        backoff.reset()
        while left:
            polls.polled(time.monotonic_ns())
            done = self.world.mpi.Request.Testsome(requests)
            if done:
                left -= len(done)
                backoff.reset()
            else:
                backoff.pause()


def _mine(world: World) -> tuple[Exchange, int]:
    """What this rank gets, all alike, and how often in a block."""
    mine = [m for m in world.messages if m.rank == world.rank]
    return mine[0], len(mine) * world.settings.played_rounds


def answer_blocking(world: World) -> None:
    """Receive and answer, waiting in MPI."""
    exchange, count = _mine(world)
    task, answer = np.empty(exchange.down_bytes, np.uint8), np.zeros(exchange.up_bytes, np.uint8)
    for _ in range(count):
        world.bare_comm.Recv(task, source=0, tag=TAG_TASK)
        world.bare_comm.Send(answer, dest=0, tag=TAG_UP)


def answer_polling(world: World) -> None:
    """Receive and answer, polling as a worker does, with as many receives posted."""
    exchange, count = _mine(world)
    comm = world.bare_comm
    answer = np.zeros(exchange.up_bytes, np.uint8)
    slots = min(count, 2 + RING_SPARE)  # the job's: credit and spare
    buffers = [np.empty(exchange.down_bytes, np.uint8) for _ in range(slots)]
    ring = deque((comm.Irecv(b, source=0, tag=TAG_TASK), b) for b in buffers)
    posted, sends = slots, list[Any]()
    backoff = Backoff(WORKER_BACKOFF)
    while ring:
        if not ring[0][0].Test():
            backoff.pause()
            continue
        backoff.reset()
        _, buffer = ring.popleft()
        if posted < count:
            ring.append((comm.Irecv(buffer, source=0, tag=TAG_TASK), buffer))
            posted += 1
        sends = [request for request in sends if not request.Test()]
        sends.append(comm.Isend(answer, dest=0, tag=TAG_UP))
    world.mpi.Request.Waitall(sends)
