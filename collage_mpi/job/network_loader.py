"""A worker's networks: from a welcome to a predictor on this rank's device.

Owns: the choice of device and threads for this rank, and that Python's collector is kept off
what a network brings with it.
Does not know: sessions, how a network is built.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from collage_mpi.encoding.vectors import EMBEDDINGS
from collage_mpi.job.messages import Welcome
from collage_mpi.kinds import KIND
from collage_mpi.models import load_predictor
from collage_mpi.models.info import Geometry, Loading, Predictor
from collage_mpi.models.null import NULL_CLASSES, NullPredictor
from collage_mpi.models.own import is_own
from collage_mpi.system.environment import (
    assign_device,
    local_gpu_rank,
    local_size,
    threads_per_rank,
    visible_devices,
)


class NetworkLoader:
    """Loads each network once, however many sessions use it."""

    def __init__(self, rank: int, world_size: int, team: int = 0) -> None:
        """`team`: ranks of each of several teams, 0 of one."""
        self.rank, self.team = rank, team
        self.world_size = world_size
        self._loaded: dict[tuple[str, str, Loading], Predictor] = {}

    def __call__(self, spec: str, kind: str, welcome: Welcome) -> Predictor:
        """The predictor of a network spec, for ranks of the kind.

        Raises:
            UsageError, EnvironmentFault, DataFault: as `models.load_predictor`.
        """
        kind = KIND[kind].network
        told = spec == "null" or is_own(spec)  # others know their shapes
        shapes = (welcome.image_shape, welcome.side, welcome.cell_px, welcome.classes)
        how = Loading(
            device=welcome.device,
            tuning=welcome.tuning,
            geometry=Geometry(*shapes) if told else None,
            embed=welcome.extras.save == EMBEDDINGS,
        )
        if (spec, kind, how) not in self._loaded:
            with uncollected():
                self._loaded[spec, kind, how] = self._load(spec, kind, how)
        return self._loaded[spec, kind, how]

    def _load(self, spec: str, kind: str, how: Loading) -> Predictor:
        if spec == "null" and not how.embed:
            assert how.geometry is not None
            known = how.geometry
            classes = known.classes or NULL_CLASSES
            return NullPredictor(kind, known.image_shape, known.side, known.cell_px, classes)
        threads = threads_per_rank(local_size() or self.world_size)
        return load_predictor(
            spec, kind, replace(how, device=self._device(how.device), threads=threads)
        )

    def _device(self, device: str) -> str:
        if device == "cpu":
            return "cpu"
        import torch

        from collage_mpi.models.predictor import usable_device

        gpus = torch.cuda.device_count()
        chosen = assign_device(
            local_gpu_rank(self.rank, team=self.team), visible_devices(), device, gpus
        )
        usable_device(chosen)  # current from now on, for a user's own network too
        return chosen


def gpus_here() -> int:
    """GPUs that this process sees."""
    import torch

    return torch.cuda.device_count()


@contextmanager
def uncollected() -> Iterator[None]:
    """What is made inside is never looked at by Python's cycle collector, then or later.

    torch alone makes 165,000 objects that stay: looking at them over and over takes a tenth of
    its import, and each full collection during the job would stop the rank for 0.08 s.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
