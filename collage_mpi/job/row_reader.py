"""Reads the images of tasks that name places, on the rank that classifies them.

A thread reads and pastes the images while the network computes. Before HDF5 opens a file, its stamp
or SHA-256 must show that rank 0 has opened the same bytes.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from collage_mpi.encoding.collage import Encoder, paste_group
from collage_mpi.errors import EnvironmentFault, ShardFault
from collage_mpi.mpi.answers import Unread
from collage_mpi.mpi.protocol import WireFault
from collage_mpi.shards.pictures import PictureFit, UnreadablePicture, picture_pixels
from collage_mpi.shards.remote import absolute
from collage_mpi.shards.schema import ShardInfo
from collage_mpi.shards.source import ReadMeter

if TYPE_CHECKING:
    from collage_mpi.shards.reader import ShardSet

Place = tuple[int, int]  # shard number, row
Faults = tuple[Unread | None, ...]  # one for each image; () if all were read


class Wanted(NamedTuple):
    """The images of a task: their places in the input, and their cells in the group."""

    places: list[Place]
    cells: list[int]


class Inputs(NamedTuple):
    """The network's inputs for each task, (n, ...) items, and the faults of each task."""

    arrays: list[np.ndarray]
    faults: list[Faults]


def described(shards: ShardSet) -> list[str]:
    """A JSON text for each shard, which a rank needs to read it. A lost shard has no stamp."""
    return [
        json.dumps(
            replace(
                info,
                path=absolute(info.path),  # a launcher may start ranks in other folders
                class_names=None,
                source="",
                stamp=None if number in shards.lost else info.stamp,
            ).to_json()
        )
        for number, info in enumerate(shards.infos)
    ]


def decoded(
    parts: Sequence[np.ndarray | list[bytes | np.ndarray]], fit: PictureFit, meter: ReadMeter
) -> Inputs:
    """The inputs that tasks carried: pixels as they are, files decoded.

    Args:
        parts: of the tasks; of files, some may be the bytes of pixels, (k,) uint8.
        fit: how pictures become images.
        meter: counts the time.
    """
    arrays, faults, start_ns = [], [], time.monotonic_ns()
    for part in parts:
        own: list[Unread | None] = [None] * len(part)
        if isinstance(part, list):
            found = np.zeros((len(part), *fit.shape), np.uint8)
            for i, data in enumerate(part):
                try:
                    if isinstance(data, np.ndarray):
                        found[i] = data.reshape(fit.shape)
                    else:
                        found[i] = picture_pixels(data, fit)
                except UnreadablePicture as error:
                    own[i] = Unread(f"cannot be decoded: {error}", of_input=True)
            part = found
        arrays.append(part)
        faults.append(_if_any(own))
    meter.decoding_ns += time.monotonic_ns() - start_ns
    return Inputs(arrays, faults)


class RowReader:
    """Reads the job's input on this host.

    Args:
        descriptions: of all shards in order, from `described`.
        hash_limit_bytes: if a file's stamp differs from that on rank 0, the file is hashed. A file
            larger than this limit is not hashed and counts as another file. None: no limit.

    Raises:
        EnvironmentFault: this host cannot open a shard, or has another file with its name.
        WireFault: a description is invalid.
    """

    def __init__(self, descriptions: Sequence[str], hash_limit_bytes: int | None = None) -> None:
        from collage_mpi.shards.reader import ShardSet

        self._thread = ThreadPoolExecutor(1, "read")  # its thread starts at the first use
        try:
            self._shards = ShardSet(
                [ShardInfo.from_json(json.loads(text)) for text in descriptions]
            )
            self._shards.hash_limit_bytes = hash_limit_bytes
            self._shards.check_each()
        except ShardFault as fault:
            self._shards.close()
            raise EnvironmentFault(
                f"host {socket.gethostname()} does not have the input that rank 0 has: {fault}"
            ) from fault
        except (ValueError, RecursionError) as error:
            raise WireFault(f"rank 0 sent an invalid shard: {error}") from error

    def begin(self, tasks: Sequence[Wanted], encoder: Encoder | None) -> Future[Inputs]:
        """Run `inputs` in the reading thread, in the order of the calls."""
        return self._thread.submit(self.inputs, tasks, encoder)

    def inputs(self, tasks: Sequence[Wanted], encoder: Encoder | None) -> Inputs:
        """The network's inputs for each task.

        These are the task's images or, with an encoder, one picture. In a picture the cells of
        images that cannot be read are blank.

        Raises:
            WireFault: a place does not exist in the input.
        """
        places = [place for task in tasks for place in task.places]
        images, faults = self.read(places)
        ends = list(accumulate(len(task.places) for task in tasks))
        parts = [slice(end - len(t.places), end) for t, end in zip(tasks, ends, strict=True)]
        own = [_if_any(faults[part]) for part in parts]
        if encoder is None:
            return Inputs([images[part] for part in parts], own)
        images = encoder.shrink(images)  # (n, h, w, C) uint8
        pictures = np.empty((len(tasks), 1, *encoder.input_shape), np.uint8)
        for task, part, out in zip(tasks, parts, pictures, strict=True):
            each = zip(task.cells, images[part], faults[part], strict=True)
            paste_group(encoder, ((n, None if why else cell) for n, cell, why in each), out[0])
        return Inputs(list(pictures), own)

    def read(self, places: Sequence[Place]) -> tuple[np.ndarray, list[Unread | None]]:
        """Read and check the images at these places.

        Returns:
            (n, ...) items, with zeros for an image that cannot be used; and for each image None, or
            why it cannot be used.

        Raises:
            WireFault: a place does not exist in the input.
        """
        indices = np.array([self._index(*place) for place in places], dtype=np.int64)
        try:
            pixels, _, good = self._shards.read_checked(indices)
        except ShardFault as fault:
            if len(places) == 1:
                none = np.zeros((1, *self._shards.shape), self._shards.dtype)
                return none, [Unread(str(fault), of_input=False)]
            # The fault may belong to another image's shard, so read them one by one.
            each = [self.read([place]) for place in places]
            return np.concatenate([own for own, _ in each]), [why for _, (why,) in each]
        faults = [
            None if usable else Unread(self._shards.row_fault(index), of_input=True)
            for index, usable in zip(indices.tolist(), good.tolist(), strict=True)
        ]
        return pixels, faults

    @property
    def meter(self) -> ReadMeter:
        """What reading has taken so far."""
        return self._shards.meter

    @property
    def decoders(self) -> int:
        """How many pictures are decoded at a time."""
        return self._shards.decoders

    def close(self) -> None:
        """Close the files after the read that is under way; reads that wait are dropped."""
        self._thread.shutdown(cancel_futures=True)
        self._shards.close()

    def _index(self, shard: int, row: int) -> int:
        infos = self._shards.infos
        if shard >= len(infos) or row >= infos[shard].count:
            raise WireFault(f"row {row} of shard {shard}: there is no such place in the input")
        return self._shards.span(shard)[0] + row


def _if_any(faults: Sequence[Unread | None]) -> Faults:
    return tuple(faults) if any(faults) else ()
