"""The images of tasks by place, read on the rank that computes them.

Owns: the input's description as it travels, the check at the start that this host has the same
input, the thread that reads while the network computes, which images could not be read and why.
Does not know: messages, networks, how a shard is read (shards/).

Files are opened here without a process apart: rank 0's has opened the same bytes, which stamp or
SHA-256 tell before HDF5 sees them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from collage_mpi.errors import EnvironmentFault
from collage_mpi.mpi.protocol import WireFault
from collage_mpi.shards.schema import ShardFault, ShardInfo

if TYPE_CHECKING:
    from collage_mpi.shards.reader import ShardSet

Place = tuple[int, int]  # shard number, row


@dataclass(frozen=True)
class Unread:
    """Why an image could not be read; `of_input` if its row is bad, and not the whole file."""

    reason: str
    of_input: bool


Images = tuple[np.ndarray, list[Unread | None]]  # see RowReader.read


def described(shards: ShardSet) -> list[str]:
    """A JSON text a shard: what a rank needs to read it. Of one that is lost, nothing to check."""
    return [
        json.dumps(
            replace(
                info,
                path=info.path.absolute(),  # a launcher may start ranks in other folders
                class_names=None,
                source="",
                stamp=None if number in shards.lost else info.stamp,
            ).to_json()
        )
        for number, info in enumerate(shards.infos)
    ]


class RowReader:
    """The job's input as this host has it.

    Args:
        descriptions: of all shards, as `described` made them, in their order.

    Raises:
        EnvironmentFault: this host cannot open a shard, or has another file under its name.
    """

    def __init__(self, descriptions: Sequence[str]) -> None:
        from collage_mpi.shards.reader import ShardSet

        self._thread = ThreadPoolExecutor(1, "read")  # made at its first use
        self._host = socket.gethostname()
        self._shards = ShardSet([ShardInfo.from_json(json.loads(text)) for text in descriptions])
        try:
            self._shards.check_each()
        except ShardFault as fault:
            self._shards.close()
            raise EnvironmentFault(
                f"host {self._host} has not the input that rank 0 has: {fault}. With --pixels "
                "workers each host reads the shards itself: put them on a file system that all "
                "hosts share, or leave it out"
            ) from fault

    def begin(self, places: Sequence[Place]) -> Future[Images]:
        """Begin to `read`, in a thread, in the order of these calls."""
        return self._thread.submit(self.read, places)

    def read(self, places: Sequence[Place]) -> Images:
        """The images at these places, checked.

        Returns:
            (n, H, W, C) uint8, zeros where one is not usable, and why it is not, or None.

        Raises:
            WireFault: there is no such place.
        """
        indices = np.array([self._index(*place) for place in places], dtype=np.int64)
        try:
            pixels, _, good = self._shards.read_checked(indices)
        except ShardFault as fault:
            if len(places) == 1:
                none = np.zeros((1, *self._shards.shape), np.uint8)
                return none, [
                    Unread(f"cannot be read on host {self._host}: {fault}", of_input=False)
                ]
            # of some other's shard, maybe: one by one
            each = [self.read([place]) for place in places]
            return np.concatenate([own for own, _ in each]), [why for _, (why,) in each]
        faults = [
            None if usable else Unread(self._why(place, index), of_input=True)
            for place, index, usable in zip(places, indices.tolist(), good.tolist(), strict=True)
        ]
        return pixels, faults

    def close(self) -> None:
        """Close the files, once what is being read has been; what waits is given up."""
        self._thread.shutdown(cancel_futures=True)
        self._shards.close()

    def _index(self, shard: int, row: int) -> int:
        infos = self._shards.infos
        if shard >= len(infos) or row >= infos[shard].count:
            raise WireFault(f"row {row} of shard {shard}: there is no such place in the input")
        return self._shards.span(shard)[0] + row

    def _why(self, place: Place, index: int) -> str:
        """The cause first: a row of the results keeps no more than its beginning."""
        shard, row = place
        path = self._shards.infos[shard].path
        return f"{self._shards.row_fault(index)} (host {self._host}, {path}: row {row})"
