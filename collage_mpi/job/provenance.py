"""What a run fixes, and what a job says of itself: settings, inputs, versions, and the ranks.

Versions are read from packages' metadata, so that no heavy package is imported for them.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from collage_mpi import __version__
from collage_mpi.errors import EnvironmentFault
from collage_mpi.job.messages import Changed, Hello
from collage_mpi.job.plan import Plan
from collage_mpi.job.session import TeamSession
from collage_mpi.ledger.records import LISTING, OPEN
from collage_mpi.models.gate import sha256_of_network
from collage_mpi.models.named import is_file, is_null
from collage_mpi.models.runtimes import processor
from collage_mpi.results.number_sets import keys_digest
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.inputs import HDF5
from collage_mpi.shards.pictures import decoder_text
from collage_mpi.system.backoff import WORKER_BACKOFF
from collage_mpi.system.bottleneck import Use

BATCH_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "FLUX_JOB_ID")
PACKAGES = ("numpy", "torch", "mpi4py", "h5py")


def job_facts(mpi_library: str) -> dict[str, Any]:
    """Facts about rank 0's process, for a session's entry in the manifest.

    Args:
        mpi_library: the MPI library's name and version.
    """
    packages = {name: _version(name) for name in PACKAGES}
    return {
        "command": command_line(sys.argv),
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processor": processor(),
        "batch_job": next(filter(None, map(os.environ.get, BATCH_JOB_VARIABLES)), None),
        "versions": {
            "collage_mpi": __version__,
            "python": platform.python_version(),
            **packages,
            "mpi_library": mpi_library,
        },
    }


def command_line(argv: list[str]) -> list[str]:
    """The command line as typed: `collage-mpi` by its name, a user's program by its path."""
    program = Path(argv[0])
    ours = program.name == "collage-mpi" or program.parts[-2:] == ("collage_mpi", "__main__.py")
    return ["collage-mpi", *argv[1:]] if ours else list(argv)


def _version(package: str) -> str | None:
    """The installed version; None if the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fixed_facts(plan: Plan, shards: int | None = None) -> dict[str, Any]:
    """What a run fixes for all of its jobs.

    Args:
        plan: of a job, for the first run.
        shards: the run has only so many of the shards.
    """
    settings, infos = plan.settings, plan.shards.infos[:shards]
    return {
        "run_id": uuid.uuid4().hex,
        "images": sum(info.count for info in infos),
        "settings": (plan.asked or settings).to_dict(),
        "inputs": digests(named_files(settings)),
        "shards": [
            {
                "path": str(info.path),
                "fingerprint": info.fingerprint,
                "count": info.count,
                **({"content": info.members.content} if info.members else {}),
                **({} if info.storage in HDF5 else {"source": info.storage, "fit": info.fit}),
            }
            for info in infos
        ],
        "bad_shards": [{"path": str(p), "reason": why} for p, why in plan.shards.bad.items()],
        "rows": len(plan.order),
        **({LISTING: OPEN} if plan.shards.grows else {}),
        "order": settings.order if settings.only is None else f"{settings.order}, only some",
        **({"permutation": plan.order.permutation} if plan.order.permutation else {}),
        **({"decoder": decoder_text()} if plan.shards.fit else {}),
        "limit": len(plan.order) if settings.only else settings.limit,
        "input_digest": keys_digest(plan.order.ascending(), plan.starts),
        "class_names": list(plan.class_names) if plan.class_names else None,
        **({"beside": dict(plan.beside)} if plan.beside else {}),
        **settings.labels(),
        **batch_facts(settings),
        "open_loop": settings.open_loop,
        "side": settings.side,
        "straggler": settings.describe_delays(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **({"extras": asdict(settings.extras)} if settings.extras else {}),
        **settings.audit_facts(),
    }


def batch_facts(settings: RunSettings) -> dict[str, Any]:
    """Facts about the batch; `--batch auto` chooses it when the ranks are ready."""
    return {
        "mode": settings.mode,
        "batch": settings.batch_size,
        "warmup_groups": settings.warm_groups,
    }


def final_facts(session: TeamSession, job: Mapping[str, Any]) -> dict[str, Any]:
    """What a job's entry says of its end. `job`: result of `job_facts`."""
    plan, coordinator = session.plan, session.coordinator
    uses = dict.fromkeys(session.hellos, Use()) | coordinator.uses
    checked = {rank: {"checked": asdict(n)} for rank, n in coordinator.core.checks.of.items()}
    unfit = {rank: {"unfit": why} for rank, why in coordinator.unfit.items()}
    return {
        "world": [
            {
                **member,
                **_changes(member["rank"], coordinator.changes),
                **checked.get(member["rank"], {}),
                **unfit.get(member["rank"], {}),
                "use": uses.get(member["rank"], session.use())._asdict(),
            }
            for member in world_of(plan, job["host"], session.hellos)
        ],
        "batch": plan.settings.batch_size,
        "cost_ratio": next(iter(session.start.costs.values()), 1.0),
        "batch_costs": session.start.batch_costs,
        "rank0": coordinator.work.means(),
        "poll": {
            "longest_gap_ns": coordinator.polls.longest_ns,
            "polls": coordinator.polls.polls,
            "coordinator_backoff": asdict(coordinator.backoff.settings),
            "worker_backoff": asdict(WORKER_BACKOFF),
        },
        "retired": coordinator.retired,
        "refuted": coordinator.refuted,
        "began_ns": session.began_ns,
    }


def world_of(plan: Plan, host: str, hellos: Mapping[int, Hello]) -> list[dict[str, Any]]:
    """The ranks of a job that has begun; `host`: of its coordinator."""
    first = {"rank": plan.placement.coordinator, "host": host, "pid": os.getpid(), "kinds": []}
    ranks = [{"rank": rank, **_member(hello)} for rank, hello in sorted(hellos.items())]
    return [{**first, "role": "coordinator"}, *ranks]


def _member(hello: Hello) -> dict[str, Any]:
    return {
        "host": hello.host,
        "pid": hello.pid,
        "kinds": hello.kinds,
        "devices": hello.devices,
        "serials": hello.serials,
        "tuning": hello.tuning,
        "fingerprints": hello.fingerprints,
        "service_ns": hello.service_ns,
    }


def _changes(rank: int, changes: Sequence[tuple[int, Changed]]) -> dict[str, Any]:
    """Which runtimes a rank has changed over to, and why it stayed with another: kind -> text."""
    own = [told for who, told in changes if who == rank]
    return {
        name: found
        for name, found in (
            ("runtimes", {told.kind: told.runtime for told in own if not told.why}),
            ("stayed", {told.kind: told.why for told in own if told.why and told.runtime}),
        )
        if found
    }


def named_files(settings: RunSettings) -> dict[str, Path]:
    """Setting, or kind of network -> the file that it names, for the files that the run reads.

    Null networks, users' functions and networks of libraries are not files. They are identified by
    their names; for functions and libraries ranks also report fingerprints.
    """
    named: dict[str, str | None]
    named = {title: part.spec for title, (_, part) in settings.parts.items()}
    named |= {
        name: getattr(settings, name) for name in ("arrival_file", "class_names_file", "only")
    }
    named["straggler"] = settings.trace
    return {
        name: Path(spec)
        for name, spec in named.items()
        if spec and not is_null(spec) and is_file(spec)
    }


def digests(files: dict[str, Path]) -> dict[str, str]:
    """Setting -> SHA-256 of its file, 64 hex digits.

    Raises:
        EnvironmentFault, DataFault: a file cannot be read.
    """
    found = {}
    for name, path in files.items():
        try:
            found[name] = sha256_of_network(path)
        except OSError as error:
            raise EnvironmentFault(
                f"{name} {path}: cannot be read: {error.strerror or error}"
            ) from error
    return found
