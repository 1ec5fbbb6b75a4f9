"""Losses, the running average, schedules and the log: what a training step is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from collage_mpi.errors import UsageError
from collage_mpi.models.architecture import default_architecture
from collage_mpi.training.settings import TrainSettings
from collage_mpi.training.sources import TrainBatch

torch = pytest.importorskip("torch")

from collage_mpi.system.files import save_records  # noqa: E402
from collage_mpi.training.loop import (  # noqa: E402
    Distilled,
    Labels,
    running_average,
)


def make_batch(present: list[bool]) -> TrainBatch:
    """One collage of two cells that show images 3 and 1, of classes 2 and 0."""
    blank = np.zeros((1, 2, 4, 1), np.uint8)
    return TrainBatch(blank, np.array([[2, 0]]), np.array([present]), np.array([[3, 1]]))


def test_blank_cells_have_no_part_in_the_loss() -> None:
    outputs = torch.tensor([[[0.0, 1.0, 2.0], [9.0, 0.0, 0.0]]])
    first = Labels(0.0).loss(outputs, make_batch([True, False]))
    assert float(first) == pytest.approx(-float(outputs[0, 0].log_softmax(0)[2]))
    taught = Distilled(0.0, np.zeros((4, 3), np.float32), 0.5, 2.0)
    outputs[0, 1] = torch.tensor([5.0, -40.0, 0.0])
    one = taught.loss(outputs, make_batch([True, False]))
    outputs[0, 1] = torch.tensor([0.0, 0.0, 7.0])
    assert float(taught.loss(outputs, make_batch([True, False]))) == float(one)


def test_a_teacher_is_asked_about_the_image_in_each_cell() -> None:
    teacher = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    outputs = torch.from_numpy(teacher[[3, 1]])[None].clone()  # what the teacher says of them
    objective = Distilled(0.0, teacher, 1.0, 3.0)
    batch = make_batch([True, True])
    assert float(objective.loss(outputs, batch)) == pytest.approx(0, abs=1e-5)
    assert float(objective.loss(outputs.flip(1), batch)) > 0.1


def test_the_weight_mixes_labels_and_teacher() -> None:
    teacher = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    outputs, batch = torch.randn(1, 2, 3), make_batch([True, True])
    values = [
        float(Distilled(0.1, teacher, weight, 2.0).loss(outputs, batch))
        for weight in (0.0, 0.5, 1.0)
    ]
    assert values[0] == pytest.approx(float(Labels(0.1).loss(outputs, batch)), rel=1e-6)
    assert values[1] == pytest.approx((values[0] + values[2]) / 2, rel=1e-5)


def test_the_running_average_follows_and_forgets_the_start() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    average = running_average(network, 0.9)
    for value in (5.0, 1.0, 1.0, 1.0):
        with torch.no_grad():
            network.weight.fill_(value)
        average.update_parameters(network)
    # the first update copies; then decays of min(0.9, (1 + n) / (10 + n)), n = 1, 2, 3
    expected = 1 + 4 * (2 / 11) * (3 / 12) * (4 / 13)
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_a_schedule_warms_up_to_the_peak(schedule: str) -> None:
    settings = TrainSettings(
        "single", default_architecture("single"), learning_rate=0.3, schedule=schedule
    )
    rates = [settings.learning_rate_at(step, 200) for step in range(200)]
    assert rates[0] == pytest.approx(0.015)
    assert max(rates) == pytest.approx(0.3, rel=1e-3)
    assert rates[-1] == pytest.approx(0.3 if schedule == "constant" else 0.0003)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "steps"),
        ("keep", "first"),
        ("ema", 1.0),
        ("distill_weight", 1.5),
        ("distill_temperature", 0.0),
    ],
)
def test_impossible_settings_are_refused(name: str, value: object) -> None:
    changes = {name: value}
    with pytest.raises(UsageError, match=name):
        TrainSettings("single", default_architecture("single"), **changes)  # type: ignore[arg-type]


def test_the_log_is_a_table(tmp_path: Path) -> None:
    history = [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.25}]
    save_records(tmp_path / "log.csv", history)
    assert (tmp_path / "log.csv").read_text() == "epoch,train_loss\n1,0.5\n2,0.25\n"
