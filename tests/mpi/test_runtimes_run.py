"""Ranks change over to a network that was made for another runtime, in the middle of a job."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from conftest import Mpi, MpiExec
from job_messages import HELLO

from collage_mpi.errors import ExitCode
from collage_mpi.job.changeover import Changeover, make_as_asked
from collage_mpi.job.handshake import ServiceCosts
from collage_mpi.job.plan import make_plan
from collage_mpi.job.session import build_encoder
from collage_mpi.models import load_predictor
from collage_mpi.models.runtimes import CACHE, TRIED_AGAIN
from collage_mpi.results import read_results, verify_run
from collage_mpi.rows import ANSWERERS
from collage_mpi.settings.run_settings import RunSettings

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(240)]

DATA = files("collage_mpi") / "data"
SINGLE, DEMO = str(DATA / "fashion_single.safetensors"), str(DATA / "fashion_demo.h5")
IMAGES = 700
OPENVINO, TORCH = map(ANSWERERS.index, ("openvino float32", "torch float32"))


def test_two_runs_with_other_rank_counts_give_the_same_classes(
    mpi: Mpi, mpiexec: MpiExec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    given = {"single": SINGLE, "scheme": "none", "batch": 4, "runtime": "openvino"}
    settings = RunSettings(shards=(DEMO,), limit=IMAGES, singles=1, out="x", **given)
    plan = make_plan(settings, 2)
    held = load_predictor(SINGLE, "single").fingerprint
    hello = replace(HELLO, devices=("cpu",), fingerprints={"single": held})
    costs = ServiceCosts({"single": 10**7}, {}, {}, {}, 4, None)
    made = Changeover(plan, {1: hello}, build_encoder(plan), costs, plan.order)
    ((_, request),) = made._requests
    make_as_asked(request)
    plan.shards.close()
    found = []
    for ranks in (2, 4):
        out = tmp_path / f"ranks-{ranks}"
        words = ["run", "--shards", DEMO, "--limit", str(IMAGES), "--out", str(out)]
        words += [word for k, v in given.items() for word in (f"--{k}", str(v))]
        words = ["-m", "collage_mpi", *words, "--singles", str(ranks - 1)]
        done = mpiexec(ranks, words, libraries=["torch"])
        assert done.returncode == ExitCode.COMPLETE, done.stderr
        assert "runtime: openvino float32 for the single network" in done.stderr
        assert verify_run(out).ok
        images = read_results(out).images
        images.sort(order=("shard", "row"))
        by = images["runtime"].tolist()
        assert {*by} == {OPENVINO, TORCH}
        assert by.count(TORCH) < IMAGES // 2
        for rank in range(1, ranks):  # torch's answers count while a rank tries the other runtime
            assert (images["runtime"][images["rank"] == rank] == TORCH).sum() >= TRIED_AGAIN
        found.append(images["predicted"].tolist())
    assert found[0] == found[1]
