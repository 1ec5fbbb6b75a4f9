"""Checks of ranks that were started: their number, placement, devices and cores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from collage_mpi.doctor.checks_software import SRUN_LINES
from collage_mpi.doctor.facts import Facts, Finding, Rank, Trial, WantedJob, World, bad, ok, warn
from collage_mpi.encoding.grid import MAX_SIDE, MIN_SIDE
from collage_mpi.errors import CollageError
from collage_mpi.kinds import SINGLE
from collage_mpi.settings.placement import Placement
from collage_mpi.system.launchers import FAMILIES
from collage_mpi.system.printable import counted, numbers_text, ranges_in

if TYPE_CHECKING:
    from collage_mpi.settings.run_settings import RunSettings

# Text that MPI prints when ranks do not start, what it means, and the fix; the first match counts.
_TELLTALES = (
    *(telltale for launcher in FAMILIES.values() for telltale in launcher.telltales),
    (
        "unsupported PMI version",
        "launcher and MPI library are of different MPIs",
        f"use `collage-mpi launch` without --mpiexec, or {SRUN_LINES}",
    ),
)


def check_trial(trial: Trial) -> Finding:
    """The ranks that the doctor itself started have reported."""
    name, asked = "ranks start", trial.asked
    if trial.singletons > 1 or (trial.world is not None and trial.world.size == 1 < asked):
        return _singletons(name, asked)
    if trial.world is not None and not trial.world.missing and trial.exit_code == 0:
        return ok(name, f"{asked} ranks started and met in {trial.seconds:.1f} s")
    text = "\n".join(trial.output)
    for sign, meaning, fix in _TELLTALES:
        if sign in text:
            return bad(name, f"{asked} ranks do not start: {meaning}", fix)
    last = "; ".join(trial.output[-3:]) or f"exit code {trial.exit_code}"
    if trial.timed_out:
        last = f"timeout after {trial.seconds:.0f} s" + (f"; {last}" if trial.output else "")
    return bad(
        name,
        f"{asked} ranks did not meet: {last}",
        "try another network for MPI (export HYDRA_IFACE=lo FI_TCP_IFACE=lo UCX_NET_DEVICES=lo on "
        "one host), or another MPI (--mpi); --no-launch leaves this test out",
    )


def _singletons(name: str, asked: int) -> Finding:
    return bad(
        name,
        f"the launcher started {asked} ranks, but MPI makes each of them rank 0 of 1",
        f"use `collage-mpi launch -n {asked} -- ...`, or {SRUN_LINES}",
    )


def check_world(facts: Facts, world: World) -> Iterator[Finding]:
    """All checks of a world of ranks."""
    if world.size == 1 < (world.launcher_size or 1):
        yield _singletons("world", world.launcher_size or 1)
        return
    yield _met(world)
    yield check_size(facts.wanted, world.size)
    yield from check_software_alike(world.ranks)
    yield from check_shared_gpus(world.ranks)
    yield from check_host_cores(world.ranks)


def _met(world: World) -> Finding:
    if not world.missing:
        hosts = len({rank.host for rank in world.ranks})
        where = f"{counted(world.size, 'rank')} on {counted(hosts, 'host')}"
        return ok("world", f"{where} met in {world.seconds:.1f} s")
    lost, names = len(world.missing), numbers_text(world.missing)
    return bad(
        "world",
        f"{lost} of {world.size} ranks did not report in {world.seconds:.0f} s: {names}",
        "check that their hosts are up, and that the network between them and rank 0 carries MPI "
        "(firewall, FI_TCP_IFACE, OMPI_MCA_btl_tcp_if_include)",
    )


def roles(wanted: WantedJob, size: int) -> list[str]:
    """What each rank of a world of `size` holds, if that is known."""
    placed, _ = _placement(wanted, size)
    if not isinstance(placed, Placement):
        return ["coordinator", *["-"] * (size - 1)]
    held = ["+".join(sorted(kinds, reverse=True)) or "idle" for kinds in placed.kinds]
    return ["coordinator", *held[1:]] * wanted.run.get("teams", 1)


def _placement(wanted: WantedJob, size: int) -> tuple[Placement | CollageError, int | None]:
    """The placement that `run` would make for the first team (or the error), and the side.

    If the user gave neither --side nor --singles, a value is chosen that fits the number of ranks:
    a side if one fits, otherwise a number of single ranks.
    """
    tries: list[Mapping[str, int]] = [{}]
    if not wanted.run.keys() & {"side", "singles"}:
        tries = [{"side": side} for side in range(MIN_SIDE, MAX_SIDE + 1)]
        tries += [{"singles": singles} for singles in range(max(1, size - 1), 0, -1)]
    error: CollageError | None = None
    for numbers in tries:
        try:
            placed = _settings(wanted, **numbers).place_team(size, 0, None)
            return placed, numbers.get("side", wanted.run.get("side"))
        except CollageError as found:
            error = found
    assert error is not None
    return error, None


def _settings(wanted: WantedJob, **numbers: int) -> RunSettings:
    """The settings of `run` that decide which ranks there are. Raises UsageError like `run`."""
    from collage_mpi.settings.run_settings import RunSettings

    return RunSettings.from_mapping({**wanted.run, **numbers})


def check_size(wanted: WantedJob, size: int) -> Finding:
    """The number of ranks is one that `run` accepts."""
    placed, side = _placement(wanted, size)
    guessed = not wanted.run.keys() & {"side", "singles"}
    if not isinstance(placed, Placement):
        found, _, fix = str(placed).partition(": launch")
        needed = f"launch{fix}" if fix else "see collage-mpi run --help"
        if guessed:  # no number of singles fits
            found, needed = f"too few: {counted(size, 'rank')}", _sides_near(wanted, size)
        return bad("world size", found.splitlines()[0], needed)
    if guessed and side is None:
        n_single = len(placed.ranks_of(SINGLE))
        return warn(
            "world size",
            f"{size} ranks: no side needs {counted(n_single, 'single rank')}",
            f"give run --singles {n_single}, or {_sides_near(wanted, size)}",
        )
    teams = wanted.run.get("teams", 1)
    what = "" if teams == 1 else f"{teams} teams, each of "
    what += "" if side is None else f"side {side}: "
    return ok("world size", f"{what}{placed.describe()}")


def _sides_near(wanted: WantedJob, size: int) -> str:
    """What to launch for the largest side for which the ranks are enough, and for the next side."""
    found: dict[int, int] = {}
    for side in range(MIN_SIDE, MAX_SIDE + 1):
        with suppress(CollageError):  # for example more replicas than ranks
            found[side] = _settings(wanted, side=side).launch_size
    small = max(0, sum(found[side] <= size for side in found) - 1)
    near = list(found.items())[small : small + 2]
    return "launch " + " or ".join(f"-n {ranks} (side {side})" for side, ranks in near)


def check_software_alike(ranks: Sequence[Rank]) -> Iterator[Finding]:
    """All ranks run the same versions."""
    counts = Counter(rank.software for rank in ranks).most_common()
    if len(counts) < 2:
        return
    usual = counts[0][0]
    other = next(rank for rank in ranks if rank.software != usual)
    yield bad(
        "software",
        f"rank {other.rank} on {other.host} has {other.software}, but most ranks have {usual}",
        "use the same environment on all hosts, for example on a shared file system",
    )


def check_shared_gpus(ranks: Sequence[Rank]) -> Iterator[Finding]:
    """Each rank has its device, and sees all GPUs of its host."""
    without = [rank for rank in ranks if rank.problem]
    if without:
        first = without[0]
        more = f" (and {len(without) - 1} more ranks)" if len(without) > 1 else ""
        yield bad(
            "devices",
            f"rank {first.rank} on {first.host}{more}: {first.problem}",
            "ask for GPUs with --gpus-per-node, or use --device cpu",
        )
    by_host: dict[str, list[Rank]] = {}
    for rank in ranks:
        if (rank.device or "").startswith("cuda"):
            by_host.setdefault(rank.host, []).append(rank)
    for host, group in by_host.items():
        seen = {rank.visible for rank in group}
        if len(seen) > 1 and all(rank.gpu_count == 1 for rank in group):
            yield warn(
                "devices",
                f"on {host} each rank sees one GPU of its own: --gpus-per-task hides the others, "
                "and rank 0 may hold one that it does not use",
                "ask with --gpus-per-node=N and no --gpus-per-task",
            )
            return


def check_host_cores(ranks: Sequence[Rank]) -> Iterator[Finding]:
    """On each host the ranks may use enough cores for their threads."""
    by_host: dict[str, list[Rank]] = {}
    for rank in ranks:
        by_host.setdefault(rank.host, []).append(rank)
    for host, group in by_host.items():
        together = set().union(*(chain(*ranges_in(rank.affinity) or ()) for rank in group))
        threaded = [rank for rank in group if int(rank.omp or 0) > 1]
        threads = sum(int(rank.omp or 1) for rank in group)
        most = max(rank.host_cores for rank in group)
        if together and len(together) < min(len(group), most):
            yield warn(
                "binding",
                f"on {host} {len(group)} ranks are bound to {len(together)} of {most} cores",
                "Open MPI: --bind-to none; srun: --cpus-per-task=C or --cpu-bind=none",
            )
            return
        if threaded and together and threads > len(together):
            fair = max(1, len(together) // len(group))
            yield warn(
                "threads",
                f"on {host} {len(group)} ranks run {threads} threads on {len(together)} cores",
                f"export OMP_NUM_THREADS={fair}",
            )
            return
