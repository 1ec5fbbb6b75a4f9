"""A worker's networks: loaded once, and out of the sight of Python's collector."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from job_messages import WELCOME

from collage_mpi.encoding.vectors import EMBEDDINGS
from collage_mpi.job import networks
from collage_mpi.job.networks import NetworkLoader, joined, uncollected


@pytest.fixture
def thawed():
    """What a test has frozen would never be collected."""
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_while_a_network_is_loaded(monkeypatch, thawed):
    collected = []
    monkeypatch.setattr(
        networks, "load_predictor", lambda *a, **k: collected.append(gc.isenabled()) or "it"
    )
    load = NetworkLoader(1, 3)
    assert [load("w.safetensors", "single", WELCOME) for _ in range(2)] == ["it", "it"]
    assert collected == [False]  # once
    assert gc.isenabled()


def test_where_no_gpu_is_a_rank_whose_network_needs_no_torch_does_not_import_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import fails
    monkeypatch.setattr(networks, "gpus_here", lambda: 0)
    assert NetworkLoader(1, 3)._device("auto") == "cpu"
    with pytest.raises(ImportError):
        NetworkLoader(1, 3)._device("cuda")  # torch says why there is none


def test_a_network_is_loaded_as_the_welcome_says_and_again_where_it_must_be_told_shapes(
    monkeypatch, thawed
):
    asked = []
    monkeypatch.setattr(
        networks, "load_predictor", lambda spec, kind, how: asked.append((spec, how)) or "it"
    )
    monkeypatch.setattr(networks, "threads_per_rank", lambda ranks: 5)
    load = NetworkLoader(1, 3)
    how = replace(WELCOME.how, save=EMBEDDINGS)
    for side in (2, 3):
        geometry = replace(WELCOME.geometry, side=side)
        for spec in ("w.safetensors", "mine:net"):
            load(spec, "single", replace(WELCOME, geometry=geometry, how=how))
    assert [(spec, how.geometry and how.geometry.side) for spec, how in asked] == [
        ("w.safetensors", None),
        ("mine:net", 2),
        ("mine:net", 3),
    ]
    assert {(how.save, how.threads, how.device) for _, how in asked} == {(EMBEDDINGS, 5, "cpu")}


def test_what_a_network_brings_is_not_looked_at_again(thawed):
    before = gc.get_freeze_count()
    with uncollected():
        brought = [[i] for i in range(1000)]
    assert gc.get_freeze_count() >= before + len(brought)


def test_a_network_that_cannot_be_loaded_leaves_the_collector_on(thawed):
    with pytest.raises(ValueError, match="no"), uncollected():
        raise ValueError("no")
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off(thawed):
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_inputs_that_lie_one_behind_another_are_not_copied():
    message = np.arange(100, dtype=np.uint8)
    tasks = [message[10 + 12 * i : 22 + 12 * i].reshape(1, 2, 2, 3) for i in range(4)]
    assert np.shares_memory(joined(tasks), message)
    assert np.array_equal(joined(tasks), np.concatenate(tasks))
    images = np.arange(72, dtype=np.uint8).reshape(6, 2, 2, 3)
    assert np.shares_memory(joined([images[1:3], images[3:4], images[4:]]), images)


@pytest.mark.parametrize(
    "pick",
    [
        lambda images: [images[0:1], images[2:3]],  # the task between them was cancelled
        lambda images: [images[1:2], images[0:1]],
        lambda images: [images[0:1], images[1:2].copy()],
        lambda images: [images[0:2:1, ::-1], images[2:3]],
        lambda images: [images.astype(np.int16)[0:1], images[1:2]],
    ],
)
def test_other_inputs_are_put_together(pick):
    images = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
    assert np.array_equal(joined(pick(images)), np.concatenate(pick(images)))
    assert not np.shares_memory(joined(pick(images)), images)


KEPT_AFTER_A_TRIAL = """
import resource
import numpy as np
from pathlib import Path
from collage_mpi.job.networks import give_memory_back, keep_freed_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

keep_freed_memory()
before = resident_mb()
layers = [np.ones(20_000_000, np.uint8) for _ in range(10)]
del layers
kept = resident_mb() - before
give_memory_back()
print(kept, resident_mb() - before)
"""


def test_what_a_trial_of_large_batches_took_is_given_back():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("glibc alone has these settings")
    command = [sys.executable, "-c", KEPT_AFTER_A_TRIAL]
    kept_mb, left_mb = map(int, subprocess.check_output(command).split())
    assert kept_mb > 150
    assert left_mb < 20


FAULTS_OF_A_BATCH = """
import resource, sys
import numpy as np
from collage_mpi.job.networks import NetworkLoader

if sys.argv[1:]:
    NetworkLoader(1, 2)
for batch in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers = [np.ones(size, np.uint8) for size in [20_000_000] * 4 + [300_000]]
    del layers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_worker_keeps_the_memory_of_a_batch_for_the_next():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("glibc alone has these settings")
    command = [sys.executable, "-c", FAULTS_OF_A_BATCH]
    plain, worker = (
        int(subprocess.run([*command, *words], capture_output=True, check=True).stdout)
        for words in ([], ["worker"])
    )
    assert 5 * worker < plain


def test_older_c_libraries_keep_smaller_blocks_and_others_have_no_such_setting(monkeypatch):
    told = []

    class Old:
        @staticmethod
        def mallopt(what, nbytes):
            told.append((what, nbytes))
            return nbytes <= 1 << 25 or what == -1

    monkeypatch.setattr(networks.ctypes, "CDLL", lambda name: Old)
    networks.keep_freed_memory()
    assert told == [(-1, 2**31 - 1), (-3, 1 << 30), (-3, 1 << 25)]
    monkeypatch.setattr(networks.ctypes, "CDLL", lambda name: object())
    networks.keep_freed_memory()
    monkeypatch.setattr(networks.ctypes, "CDLL", Mock(side_effect=OSError("a static build")))
    networks.keep_freed_memory()


class Noisy:
    """An exact network whose classes a test can change."""

    device, runtime, classes, columns = "cpu", "own", 3, ()
    tuning = fingerprint = "its own"
    shift = 0

    def __init__(self) -> None:
        self.asked: list[int] = []

    def predict(self, batch):
        self.asked.append(len(batch))
        classes = (batch.reshape(len(batch), -1).sum(1) + self.shift) % 3
        return np.eye(3, dtype=np.float32)[classes][:, None]

    def answer(self, batch):
        return self.predict(batch), {}

    def begin(self, batch):
        return networks.Computation(lambda: self.answer(batch))


def held(monkeypatch, batch: int = 8):
    """Networks that hold a Noisy one, with a clock that stands still."""
    own = Noisy()
    welcome = replace(WELCOME, networks={"single": "mine:net"}, batch=batch, stages={})
    found = networks.Networks(welcome, lambda *a: own, lambda: 0, lambda: 0)
    return own, found


def answered(found, images: int) -> None:
    task = networks.WireTask(1, "single", [(0, 0)] * images)
    pixels = np.zeros((images, *found.input_shapes["single"]), np.uint8)
    found.begin([task], [pixels]).finish()


def test_known_inputs_are_answered_again_after_so_many_images_and_end_all_answers(monkeypatch):
    monkeypatch.setattr(networks, "KNOWN_EVERY", 20)
    own, found = held(monkeypatch)
    hello = found.hello()
    assert len(hello.known) == 32
    assert {kind for kind, _ in hello.known} == {0, 1, 2}
    answered(found, 19)
    own.asked.clear()
    assert not [*found.changes()]
    assert not own.asked  # not yet
    answered(found, 1)
    assert not [*found.changes()]
    assert own.asked[1:] == [8] * 4  # in batches that were warmed up; right
    answered(found, 20)
    own.shift = 1
    (told,) = found.changes()
    assert (told.kind, told.runtime) == ("single", "")
    assert "32 of 32 inputs got another class than at the start; the last 20 images" in told.why
    task = networks.WireTask(1, "single", [(0, 0)])
    pixels = np.zeros((1, *found.input_shapes["single"]), np.uint8)
    (result,) = found.begin([task], [pixels]).finish()
    assert result.status == networks.FAILED
    answered(found, 20)
    assert not [*found.changes()]  # it is told once


def test_weights_that_change_in_memory_end_all_answers_within_a_minute(monkeypatch):
    """`Noisy` answers as before: the changed weight matters to other images."""
    own, now_ns = Noisy(), [0]
    own.weights_sum = lambda: weights[0]
    weights, minute_ns = [7], networks.WEIGH_EVERY_NS
    welcome = replace(WELCOME, networks={"single": "mine:net"}, batch=8, stages={})
    found = networks.Networks(welcome, lambda *a: own, lambda: now_ns[0], lambda: 0)
    found.hello()
    answered(found, 24)
    now_ns[0] = minute_ns
    assert not [*found.changes()]
    weights[0] = None  # another runtime answers
    now_ns[0] = 2 * minute_ns
    assert not [*found.changes()]
    weights[0] = 7  # and torch again
    now_ns[0] = 3 * minute_ns
    assert not [*found.changes()]
    weights[0] = 9
    now_ns[0] = 4 * minute_ns - 1
    assert not [*found.changes()]
    now_ns[0] += 1
    (told,) = found.changes()
    assert told.why.startswith("its weights have changed in the memory of cpu; the last 24 images")
    assert not [*found.changes()]
    own.weights_sum = iter(range(99)).__next__  # a network that changes its own weights
    found = networks.Networks(welcome, lambda *a: own, lambda: now_ns[0], lambda: 0)
    found.hello()
    now_ns[0] += minute_ns
    assert not [*found.changes()]


def test_another_runtime_gives_new_known_answers_and_a_network_that_varies_has_none(monkeypatch):
    monkeypatch.setattr(networks, "KNOWN_EVERY", 20)
    own, found = held(monkeypatch)
    found.hello()
    answered(found, 20)
    own.shift, own.runtime = 1, "openvino float32"
    assert not [*found.changes()]
    answered(found, 20)
    assert not [*found.changes()]
    own, found = held(monkeypatch)
    plain = own.predict

    def varies(batch):
        own.shift += 1
        return plain(batch)

    own.predict = varies
    assert found.hello().known == ()
