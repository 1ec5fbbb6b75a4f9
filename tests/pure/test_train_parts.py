"""Several training processes: their places, devices and parts of a step."""

from __future__ import annotations

import numpy as np
import pytest

from collage_mpi.models.architecture import default_architecture
from collage_mpi.system.environment import (
    TorchrunPlace,
    launcher_rank,
    telling_rank,
    torchrun_place,
)
from collage_mpi.training.batches import BatchMaker
from collage_mpi.training.settings import TrainSettings

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
}


def test_a_place_under_torchrun() -> None:
    assert torchrun_place(TORCHRUN) == TorchrunPlace(3, 4, 1, 2, 1)
    assert telling_rank(TORCHRUN) == 3
    assert telling_rank({**TORCHRUN, "SLURM_PROCID": "0"}) == 3  # srun started torchrun


def test_mpi_ranks_do_not_listen_to_RANK() -> None:
    ranks = {"RANK": "5", "WORLD_SIZE": "9", "LOCAL_RANK": "5", "PMI_RANK": "2", "PMI_SIZE": "3"}
    assert torchrun_place(ranks) is None
    assert (telling_rank(ranks), launcher_rank(ranks)) == (2, 2)
    assert launcher_rank(TORCHRUN) is None
    assert telling_rank({"RANK": "5"}) is None


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("side", [None, 2])
def test_the_parts_of_a_step_are_the_step(side: int | None, size: int) -> None:
    kind = "single" if side is None else "collage"
    settings = TrainSettings(
        kind, default_architecture(kind, 8, "batch"), side, None, batch=8, blank_share=0.5
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (100, 6, 6, 1), dtype=np.uint8)
    maker = BatchMaker(images, np.arange(100), settings)
    chosen = maker.order(0)[1]
    whole = maker.make(chosen, 0, 1)
    each = maker.inputs_per_step // size
    parts = [maker.make(chosen, 0, 1, slice(r * each, (r + 1) * each)) for r in range(size)]
    for name in ("pixels", "labels", "present"):
        together = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(together, getattr(whole, name)), name
    assert {part.step_cells for part in parts} == {whole.present.sum()} == {whole.step_cells}
