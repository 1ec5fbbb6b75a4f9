"""A network that waits: what a call takes, what it is drawn by, and which ranks have one."""

from __future__ import annotations

import numpy as np
import pytest
from job_messages import WELCOME

from collage_mpi.errors import EnvironmentFault
from collage_mpi.job.messages import Welcome
from collage_mpi.job.networks import NetworkLoader
from collage_mpi.models.info import PLAIN, Answer, Computation, Geometry, Loading
from collage_mpi.models.null import NullPredictor
from collage_mpi.models.waiting import WaitingNetwork
from collage_mpi.workload import straggler_settings
from collage_mpi.workload.straggler_settings import StragglerSettings, make_delays

MS = 1_000_000
OWN_NS = 4 * MS  # what the network takes
SHAPE = (4, 4, 1)


class Network(NullPredictor):
    """A null network that takes its time on a clock of its own."""

    def __init__(self, kind: str = "single") -> None:
        super().__init__(kind, Geometry(SHAPE, 2, 4, 10))
        self.now_ns = 5 * MS
        self.error: Exception | None = None

    def answer(self, batch: np.ndarray) -> Answer:
        self.now_ns += OWN_NS
        if self.error is not None:
            raise self.error
        return super().answer(batch)

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def waiting(network: Network, rank: int = 3, kind: str = "single", **settings) -> WaitingNetwork:
    told = StragglerSettings(**settings)
    return WaitingNetwork(network, kind, rank, told, lambda: network.now_ns, network.sleep)


def took_ns(network: Network, asked: WaitingNetwork, inputs: int = 1) -> int:
    """The time of a call, whose answers are right."""
    start_ns = network.now_ns
    begun = asked.begin(np.full((inputs, *SHAPE), 7, np.uint8))
    assert begun.done()  # so a rank has one batch at a time
    scores, more = begun.finish()
    assert scores.argmax(2).tolist() == [[7]] * inputs
    assert more == {}
    return network.now_ns - start_ns


@pytest.mark.parametrize(
    ("rank", "kind", "inputs", "wanted"),
    [
        (3, "single", 1, 100),
        (2, "single", 1, 20),
        (2, "stage1", 1, 20 * 1.5),
        (2, "single", 3, 20 * (1 + 2 * 0.25)),
        (2, "stage1", 3, 20 * 1.5 * 1.5),
    ],
)
def test_a_call_takes_the_drawn_time_of_its_rank_kind_and_batch(rank, kind, inputs, wanted):
    given = {"straggler": "pinned:20", "slow_ranks": ("3:5",)}
    network = Network()
    asked = waiting(network, rank, kind, **given, cost_ratio=1.5, batch_cost=0.25)
    assert took_ns(network, asked, inputs) == round(wanted * MS)


def test_without_costs_a_further_input_and_another_network_take_as_long_as_the_first():
    given = {"straggler": "pinned:20"}
    network = Network()
    assert took_ns(network, waiting(network, kind="stage1", **given), 3) == 60 * MS


def test_a_network_that_takes_longer_than_the_drawn_time_does_not_wait():
    network = Network()
    asked = waiting(network, straggler="pinned:1")
    assert took_ns(network, asked) == OWN_NS


def test_without_a_model_a_slow_rank_takes_its_network_s_own_time_so_many_times():
    network = Network()
    assert took_ns(network, waiting(network, slow_ranks=("3:2.5",))) == OWN_NS * 5 // 2


def test_draws_are_by_rank_and_number_of_the_call():
    given = {"straggler": "lognormal:50", "straggler_seed": 3}
    draw, network = make_delays(StragglerSettings(**given)).draw_ns, Network()
    asked = waiting(network, **given)
    asked.predict(np.zeros((1, *SHAPE), np.uint8))  # a trial neither counts nor waits
    assert network.now_ns == 5 * MS
    found = [took_ns(network, asked) for _ in range(4)]
    assert found == pytest.approx([draw(3, call, 1) for call in range(4)], abs=1)
    assert len(set(found)) == 4


def test_slow_periods_are_by_the_time_since_the_first_call(monkeypatch):
    monkeypatch.setattr(straggler_settings, "SLOW_SHARE", 0.5)
    monkeypatch.setattr(straggler_settings, "SPELL_S", 0.2)
    given = {"straggler": "markov:10:0"}
    draw, network = make_delays(StragglerSettings(**given)).draw_ns, Network()
    asked, first_ns = waiting(network, **given), network.now_ns
    found, wanted = [], []
    for call in range(100):
        wanted.append(draw(3, call, 1, network.now_ns - first_ns))
        found.append(took_ns(network, asked))
    assert found == wanted
    assert set(found) == {10 * MS, 50 * MS}


def test_a_network_that_raises_does_not_wait():
    network = Network()
    network.error = RuntimeError("CUDA error")
    begun = waiting(network, straggler="pinned").begin(np.zeros((1, *SHAPE), np.uint8))
    with pytest.raises(RuntimeError, match="CUDA error"):
        begun.finish()
    assert network.now_ns == 5 * MS + OWN_NS


def test_a_device_computes_while_the_network_waits():
    """The computation is begun at once, and the wait counts from there."""
    network = Network()
    asked = waiting(network, straggler="pinned:20")
    network.begin = lambda batch: Computation(lambda: network.answer(batch), lambda: False)
    assert took_ns(network, asked) == 20 * MS


@pytest.mark.parametrize(
    ("settings", "ranks"),
    [({}, ()), ({"slow_ranks": ("2:5",)}, (2,)), ({"straggler": "pinned"}, (1, 2))],
)
def test_a_rank_has_one_where_the_settings_slow_it(settings, ranks):
    how = Loading(tuning=PLAIN, delays=StragglerSettings(**settings))
    told = Welcome(**{**vars(WELCOME), "how": how})
    found = [NetworkLoader(rank, 3)("null", "single", told) for rank in (1, 2)]
    assert [isinstance(each, WaitingNetwork) for each in found] == [r in ranks for r in (1, 2)]


def test_a_trace_that_a_rank_cannot_read_is_its_fault():
    how = Loading(tuning=PLAIN, delays=StragglerSettings("/no/such.npy"))
    with pytest.raises(EnvironmentFault, match=r"no/such\.npy"):
        NetworkLoader(1, 3)("null", "single", Welcome(**{**vars(WELCOME), "how": how}))
