"""Joules: counters that begin anew or fail, and what a run of several hosts has cost."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from hand_made import hand_made

from collage_mpi.errors import DataFault
from collage_mpi.results import read_results, render_summary, summarise
from collage_mpi.results.cost import cost_of, energy_cells
from collage_mpi.results.manifest import read_manifest, write_manifest
from collage_mpi.system.energy import EnergyMeter, nvml, rapl


def zone(
    folder: Path, name: str, joules: float, end: float = 100.0, called: str = "package-0"
) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "name").write_text(f"{called}\n")
    (folder / name / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{round(end * 1e6)}\n")


def test_packages_are_counted_and_their_parts_are_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 5)
    zone(tmp_path, "intel-rapl:0:0", 3)
    zone(tmp_path, "intel-rapl:1", 7, called="package-1")
    zone(tmp_path, "intel-rapl:2", 99, called="psys")  # the packages and the board
    assert rapl(tmp_path) == {"intel-rapl:0": (5.0, 100.0), "intel-rapl:1": (7.0, 100.0)}
    with pytest.raises(OSError, match="no processor package"):
        rapl(tmp_path / "none")


def test_a_counter_that_begins_anew_loses_nothing(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 90)
    with EnergyMeter({"cpu_j": lambda: rapl(tmp_path)}) as meter:
        zone(tmp_path, "intel-rapl:0", 97)
        meter.sample()
        zone(tmp_path, "intel-rapl:0", 4)
        assert meter.facts()["cpu_j"] == pytest.approx(14.0)


def test_a_counter_that_fails_is_missing_and_not_guessed(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 1)

    def gone() -> dict[str, tuple[float, float]]:
        raise OSError("no driver")

    with EnergyMeter({"cpu_j": lambda: rapl(tmp_path), "gpu_j": gone}) as meter:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("")
        facts = meter.facts()
    assert (facts["cpu_j"], facts["gpu_j"]) == (None, None)
    assert facts["missing"]["gpu_j"] == "no driver"
    assert "cpu_j" in facts["missing"]


def test_a_counter_that_was_set_back_is_missing() -> None:
    told = iter([9.0, 4.0])
    with EnergyMeter({"gpu_j": lambda: {"gpu 0": (next(told), 0.0)}}) as meter:
        facts = meter.facts()
    assert facts["gpu_j"] is None
    assert facts["missing"] == {"gpu_j": "a counter was set back"}


def test_the_counter_is_read_again_before_it_can_go_past_its_end_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("collage_mpi.system.energy.SAMPLE_S", 0.001)
    often = threading.Event()
    told = itertools.count()

    def read() -> dict[str, tuple[float, float]]:
        joules = float(next(told))
        if joules > 3:
            often.set()
        return {"intel-rapl:0": (joules, 100.0)}

    with EnergyMeter({"cpu_j": read}):
        assert often.wait(60)


class Driver:
    """NVIDIA's library with two GPUs that have used 1.5 and 2.5 kJ, or with a fault."""

    def __init__(self, code: int = 0) -> None:
        self.nvmlInit_v2 = lambda: 0
        self.code = code

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, gpu: Any) -> int:
        gpu._obj.value = 1 + number
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: Any, millijoules: Any) -> int:
        millijoules._obj.value = 500_000 + 1_000_000 * gpu.value
        return self.code


def test_each_gpu_is_counted_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    assert nvml() == {"gpu 0": (1500.0, 0.0), "gpu 1": (2500.0, 0.0)}
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(code=3))
    with pytest.raises(OSError, match="nvmlDeviceGetTotalEnergyConsumption returned 3"):
        nvml()


def energy(seconds: float, cpu_j: float | None, gpu_j: float | None = None) -> dict:
    missing = {k: "no driver" for k, v in (("cpu_j", cpu_j), ("gpu_j", gpu_j)) if v is None}
    return {"seconds": seconds, "cpu_j": cpu_j, "gpu_j": gpu_j, "missing": missing}


def summary(
    tmp_path: Path,
    *told: dict,
    worlds: tuple[str, ...],
    launches: list | None = None,
    session: int = 0,
):
    """Of a run whose sessions told this; `worlds`: the hosts of each, its coordinator's first."""
    run = read_results(hand_made(tmp_path / "run", collage=False))
    run.manifest["sessions"] = [
        {"session": i + 1, "final": {"energy": each, "world": [{"host": h} for h in hosts.split()]}}
        for i, (each, hosts) in enumerate(zip(told, worlds, strict=True))
    ]
    run.manifest["session"] = session or len(told)
    if launches:
        run.manifest.update(launches=launches, session=1, teams=len(told))
    return summarise(run)


def test_sessions_add_up_and_images_share(tmp_path: Path) -> None:
    found = summary(
        tmp_path, energy(1800, 600.0, 900.0), energy(1800, 200.0, 0.0), worlds=("a", "a")
    )
    cost = found["cost"]
    assert (cost["node_hours"], cost["cpu_j"], cost["gpu_j"]) == (1.0, 800.0, 900.0)
    assert cost["joules_per_image"] == 1700 / found["rows"]["found"]
    assert energy_cells(cost)[1] == "800 J by processors and 900 J by GPUs, of the whole host"


def test_one_host_of_two_is_no_figure_for_an_image(tmp_path: Path) -> None:
    found = summary(tmp_path, energy(3600, 50.0), worlds=("a b",))
    assert found["cost"]["node_hours"] == 2.0
    assert energy_cells(found["cost"]) == [
        "n/a", "50 J by processors, on 1 of 2 hosts; not GPUs: no driver",
    ]  # fmt: skip


def test_a_killed_session_used_joules_that_nobody_told(tmp_path: Path) -> None:
    found = summary(tmp_path, energy(3600, 50.0, 7.0), worlds=("a",), session=2)
    assert found["cost"]["joules_per_image"] is None
    assert found["cost"]["node_hours"] == 1.0
    assert "1 host, 1 of 2 sessions" in render_summary(found)


def test_coordinators_of_one_host_count_once(tmp_path: Path) -> None:
    told = energy(60, 50.0, 0.0), energy(90, 70.0, 0.0)
    cost = summary(tmp_path, *told, worlds=("a", "a"), launches=[[1, 2]])["cost"]
    assert (cost["cpu_j"], cost["node_hours"]) == (70.0, 90 / 3600)


def test_nothing_measured_is_said_and_older_runs_say_nothing(tmp_path: Path) -> None:
    found = summary(tmp_path, energy(60, None), worlds=("a",))
    text = render_summary(found)
    assert "node-hours" in text
    assert "not measured here (processors: no driver; GPUs: no driver)" in text
    assert "node-hours" not in render_summary({**found, "cost": None})


def test_a_run_without_a_row_has_no_joules_an_image(tmp_path: Path) -> None:
    run = read_results(hand_made(tmp_path / "run", collage=False))
    final = {"energy": energy(60, 1.0, 1.0), "world": [{"host": "a"}]}
    run.manifest["sessions"] = [{"session": 1, "final": final}]
    cost = cost_of(run, 0)
    assert cost is not None
    assert cost["joules_per_image"] is None


@pytest.mark.parametrize(
    "final",
    [
        {"energy": [5]},
        {"energy": {**energy(60, 1.0, 1.0), "seconds": None}},
        {"energy": {**energy(60, 1.0, 1.0), "cpu_j": "much"}},
        {"energy": {"seconds": 60}},
        {"retired": ["5"]},
        {"world": [{"rank": 0, "host": ["a"]}]},
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, final: dict) -> None:
    path = hand_made(tmp_path / "run", collage=False)
    told = read_manifest(path)
    told["sessions"][0]["final"] |= final
    write_manifest(path, told)
    with pytest.raises(DataFault, match="'sessions' must be a list of sessions"):
        read_results(path)
