"""Starts a small job as `launch` would, to prove that ranks start here and can communicate."""

from __future__ import annotations

import io
import json
import time
from typing import Any

from collage_mpi.doctor.facts import Rank, Trial, World
from collage_mpi.doctor.ranks import MARK
from collage_mpi.launch.ending import TIME_LIMIT
from collage_mpi.launch.mpiexec import Mpi, build_command, site_here
from collage_mpi.launch.supervisor import Limits, Supervisor
from collage_mpi.system.process_tree import own_command

BASE_LIMIT_S, LIMIT_PER_RANK_S = 10.0, 1.0  # a rank is 0.5 s of one core
LONGEST_LIMIT_S = 120.0
OUTPUT_LINES = 12


def try_ranks(mpi: Mpi, ranks: int, device: str) -> Trial:
    """Start `ranks` ranks that report and end; it takes at most the limit and some seconds."""
    limit_s = min(LONGEST_LIMIT_S, BASE_LIMIT_S + LIMIT_PER_RANK_S * ranks)
    program = (*own_command("collage_mpi.doctor.ranks"), f"{limit_s:g}", device)
    plan = build_command(mpi, ranks, program, site_here())
    out, err = io.StringIO(), io.StringIO()
    began_s = time.monotonic()
    ending = Supervisor(plan, Limits(limit_s), out, err).run()
    lines = out.getvalue().splitlines()
    worlds = [json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK)]
    other = [line for line in lines if not line.startswith(MARK)] + err.getvalue().splitlines()
    return Trial(
        asked=ranks,
        seconds=time.monotonic() - began_s,
        world=_world(worlds[0]) if worlds else None,
        singletons=len(worlds) if len(worlds) > 1 else 0,
        output=tuple(text for line in other if (text := line.strip(" -=")))[:OUTPUT_LINES],
        exit_code=ending.launcher,
        timed_out=ending.cut is TIME_LIMIT,
    )


def _world(values: dict[str, Any]) -> World:
    ranks = tuple(Rank(**rank) for rank in values.pop("ranks"))
    return World(**{**values, "ranks": ranks, "missing": tuple(values["missing"])})
