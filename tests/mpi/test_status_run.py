"""A real job's status: written while it runs, read by `top`, true at the end."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from collage_mpi.cli import main
from collage_mpi.errors import CollageError
from collage_mpi.results import verify_run
from collage_mpi.results.reader import read_results
from collage_mpi.results.slow_ranks import rank_speeds
from collage_mpi.results.status import ALIVE, ENDED, View, Watch
from collage_mpi.shards import write_shard

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]

QUICK = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def look(watch: Watch) -> View | None:
    """A look at a folder that may hold nothing yet."""
    try:
        return watch.look()
    except CollageError:
        return None


def test_top_sees_a_job_run_and_end(mpiexec, tmp_path, capsys) -> None:
    write_shard(tmp_path / "s.h5", np.zeros((200, 6, 6, 1), np.uint8), np.zeros(200, np.int64))
    words = ["-m", "collage_mpi", "run", "--shards", "s.h5", "--single", "null", "--out", "out"]
    words += ["--scheme", "none", "--side", "2", "--straggler", "pinned:20", "--slow-ranks", "3:5"]
    words += ["--status-every-s", "0.2"]
    words += ["--settings", "shipped:paper.json"]
    out, seen = tmp_path / "out", []
    watch = Watch(out)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(mpiexec, 5, words, env=QUICK)
        while not job.done():
            view = look(watch)
            if view is not None and view.status["state"] == "running" and view.status["done"]:
                seen.append(view)
            if len(seen) == 3 and not capsys.readouterr().out:
                assert main(["top", str(out), "--once"]) == 0
                assert "running (on " in capsys.readouterr().out
            time.sleep(0.3)
        assert job.result().returncode == 0, job.result().stderr
    assert ALIVE in {view.life for view in seen}  # 50 groups of 100 ms: 5 s, and a beat a second
    done = [view.status["done"] for view in seen]
    assert done == sorted(done)
    assert len(set(done)) >= 3
    ranks = {rank["rank"]: rank for rank in seen[-1].status["ranks"]}
    assert set(ranks) == {1, 2, 3, 4}
    assert {rank["state"] for rank in ranks.values()} == {"ready"}
    assert ranks[3]["service_ms"] > 3 * ranks[1]["service_ms"] > 0
    last = watch.look()
    assert (last.life, last.status["state"], last.status["done"]) == (ENDED, "complete", 200)
    assert verify_run(out).ok
    assert [s.ranks for s in rank_speeds(read_results(out)) if s.slow and s.unit == "rank"] == [
        (3,)
    ]
    assert main(["top", str(out)]) == 0
    assert "ended: complete" in capsys.readouterr().out
