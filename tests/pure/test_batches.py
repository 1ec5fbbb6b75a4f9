"""Which batch `--batch auto` chooses, for networks whose best batch is known."""

from __future__ import annotations

import pytest

from collage_mpi.settings.batches import (
    ModelTimes,
    MostGroups,
    choose_batch,
    injected_ns,
    most_groups,
)
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob

MS = 1_000_000
MOST = MostGroups(256, "the most is 256")


def chosen(*curves, most=MOST, room=1 << 20):
    """Of networks that take `first + further * n` ms for a batch of n, on a device with room."""
    kinds = ("single", "collage")[: len(curves)]

    def times_of(size):
        if size > room:
            return None
        return {k: round((a + b * size) * MS) for k, (a, b) in zip(kinds, curves, strict=True)}

    return choose_batch(most, times_of)


@pytest.mark.parametrize(
    ("curve", "size", "why"),
    [
        ((10, 10), 16, "larger batches do at most 1.03 times its images a second"),
        ((30, 10), 32, "a batch of 64 takes 670 ms, the most is 500"),
        ((0, 1), 16, "larger batches do at most 1.00 times its images a second"),
        ((0, 30), 1, "larger batches do at most 1.00 times its images a second"),
        ((0.5, 0.01), 256, "the most is 256"),
        ((0, 600), 1, "a batch of 2 takes 1,200 ms, the most is 500"),
    ],
    ids=["its knee", "too long", "short", "gains nothing", "gains for ever", "slow"],
)
def test_the_batch_grows_while_the_images_a_second_rise(curve, size, why):
    found = chosen(curve)
    assert (found.size, found.why) == (size, why)
    assert str(found).startswith(f"batch {size}, chosen by --batch auto; the single network takes")


def test_a_device_without_room_ends_the_search_and_is_no_failure():
    found = chosen((10, 1), room=8)
    assert (found.size, found.together["single"]) == (8, 18 * MS)
    assert found.why == "a batch of 16 does not fit the memory of a device"
    assert "18 ms for a batch and does 4.89 times the images a second of batch 1" in str(found)


def test_the_ranks_of_all_networks_are_to_gain():
    assert chosen((10, 10), (0, 30)).size == 8  # 1.28 times; of 16 it would be 1.31
    assert chosen((10, 10), (-8, 18)).size == 1  # 10 ms alone, 28 ms for two


def test_one_time_that_was_disturbed_does_not_end_the_search():
    curve = {1: 20, 2: 30, 4: 90, 8: 90, 16: 170, 32: 330, 64: 650}
    assert choose_batch(MOST, lambda size: {"single": curve[size] * MS}).size == 16


@pytest.mark.parametrize("noise", [{}, {1: 20}, {4: 115}, {8: 150}], ids=str)
def test_where_batches_are_alike_noise_does_not_choose_the_smallest_one(noise):
    """A network that another runtime takes over is made for one batch and cached for it."""
    times = {size: {"single": noise.get(size, 25 * size) * MS} for size in (1, 4, 8, 16)}
    assert choose_batch(MOST, times.__getitem__, least=4).size == 4
    assert choose_batch(MostGroups(3, ""), lambda n: {"single": 25 * n * MS}, least=4).size == 2
    assert choose_batch(MOST, lambda n: {"single": 300 * n * MS}, least=4).size == 1


@pytest.mark.parametrize("found", [{}, {1: {"single": 30 * MS}}], ids=["never", "at first"])
def test_where_nothing_was_measured_the_batch_is_1(found):
    """All ranks may be lost while they are timed."""
    chosen = choose_batch(MOST, lambda size: found.get(size, {}))
    assert (chosen.size, chosen.why) == (1, "no service time was measured")
    assert str(chosen).startswith("batch 1, chosen by --batch auto; ")


@pytest.mark.parametrize(
    ("values", "images", "sent_bytes", "size", "why"),
    [
        ({}, 10**9, 0, 1024, "the most is 1024"),
        ({}, 720, 0, 10, "each rank must get at least 8 batches of 720 images"),
        ({}, 5, 0, 0, "each rank must get at least 8 batches of 5 images"),
        ({"teams": 2}, 1440, 0, 10, "each rank must get at least 8 batches of 1,440 images"),
        ({}, 10**9, 150_528, 55, "rank 0 sends at most 8 MiB in a message"),
    ],
)
def test_no_batch_is_larger_than_the_input_and_the_messages_allow(
    values, images, sent_bytes, size, why
):
    settings = RunSettings(scheme="none", batch=None, **values)
    placement = settings.place(settings.world_size)
    assert most_groups(settings, placement, images, sent_bytes) == (size, why)


def test_without_a_single_rank_a_message_has_a_task_a_group():
    settings = RunSettings(scheme="collage-only", batch=None)
    placement = settings.place(settings.world_size)
    assert most_groups(settings, placement, 720).size == 10 // settings.collage_ranks


def test_a_batch_is_as_long_as_the_injected_delays_make_it():
    settings = RunSettings(batch=None, straggler="pinned:20")
    assert injected_ns(settings) == 20 * MS
    assert injected_ns(RunSettings()) == 0
    took = {"single": 4 * MS, "collage": 900 * MS}
    costs = {"collage": 1.5}
    model = ModelTimes(settings, 20 * MS, costs, {"single": 0.5})
    assert model.at_least(3, took) == {"single": 40 * MS, "collage": 900 * MS}
    assert model.at_least(2, {"collage": 0}) == {"collage": 60 * MS}
    grown = ModelTimes(
        settings, 20 * MS, {"collage": 1.5}, {}, {"single": 2 * MS, "collage": 600 * MS}
    )
    assert grown.at_least(3, took) == {"single": 40 * MS, "collage": 900 * MS}
    assert grown.at_least(3, {"collage": 60 * MS}) == {"collage": 60 * MS}
    assert grown.at_least(3, {"collage": 1800 * MS})["collage"] == 1800 * MS
    cheap = ModelTimes(settings, 20 * MS, {"collage": 1e-9}, {})
    assert cheap.at_least(3, {"collage": 0}) == {"collage": 1}  # a time to divide by


@pytest.mark.parametrize(
    ("images", "batch_cost", "batch"), [(9 * 32 * 8, 0.5, 16), (9 * 4 * 8, 0.1, 4), (9999, 1.0, 1)]
)
def test_a_simulation_takes_the_batch_that_its_costs_make_best(images, batch_cost, batch):
    settings = RunSettings(scheme="none", batch=None, batch_cost=batch_cost)
    job = SimulatedJob(settings, images, Costs(single_ns=40 * MS))
    assert (settings.mode, job.effective.batch) == ("carry, depth auto, batch auto", batch)
    found = simulate_in_memory(job)
    assert found.manifest["batch"] == batch
    assert ("batch" in found.manifest["mode"]) == (batch > 1)
    assert found.manifest["warmup_groups"] == max(2, batch)
    sizes = {}
    for task in found.tasks:
        key = task["rank"], task["sent_ns"]
        sizes[key] = sizes.get(key, 0) + task["items"]
    assert max(sizes.values()) == batch
