"""The Python API of a run: `launch_run` and `map_batches` start ranks, `run` runs on each rank."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.errors import EnvironmentFault, ExitCode, UsageError
from collage_mpi.settings.run_settings import RunSettings

if TYPE_CHECKING:
    from collage_mpi.results import Results


def run(settings: RunSettings, *, retry_errors: bool = False, leave: bool = False) -> ExitCode:
    """Run a job; call it on every rank of the world.

    Start such a program with `collage-mpi launch -n 11 -- script.py`, or with `mpiexec -n 11 python
    script.py`. To start ranks from a program of one process, use `launch_run`.

    Rank 0 classifies and writes the results to `settings.out`; with several teams, the first rank
    of each team does. If the folder has the run already, the job goes on with it, beside other jobs
    that may be at work. Read the results with `read_results`. The other ranks serve until the job
    is over. Messages go to the logger `collage_mpi` (`logging`).

    Args:
        settings: of the run.
        retry_errors: if the run is complete, classify the images again whose rows are errors.
        leave: when other jobs hold all images that are left, end in place of waiting.

    Returns:
        The job's exit code, the same on every rank.

    Raises:
        UsageError: a second call in a world that survives lost ranks.
    """
    from collage_mpi.job.main import run_world
    from collage_mpi.job.run import Ask, run_session
    from collage_mpi.system import hard_exit

    if hard_exit.armed():
        raise UsageError(
            "collage_mpi.run was called a second time in a launch with --on-rank-loss continue, "
            "which allows one call only. Start the second run with a launch of its own, or leave "
            "the flag out"
        )
    code = run_world(
        "run",
        lambda worker_group, stop: int(
            run_session(settings, worker_group, Ask(stop, retry_errors, leave=leave)).exit_code
        ),
        teams=settings.teams,
    )
    return ExitCode(code)


def launch_run(
    settings: RunSettings,
    ranks: int | None = None,
    *,
    mpi: str = "auto",
    timeout_s: float | None = None,
) -> ExitCode | int:
    """Start the ranks of a run and wait, like `collage-mpi launch -n RANKS -- run ...`.

    Call it from one process, for example a notebook: MPI is started in other processes. The results
    are in `settings.out` (read them with `read_results`).

    Args:
        settings: of the run; relative paths are in the current folder.
        ranks: of the world, rank 0 included; by default as many as the settings need.
        mpi: as in `collage-mpi launch --mpi`.
        timeout_s: end the job after this time, as incomplete; None for no limit.

    Returns:
        The job's exit code; 128 + the number of a signal that came before the job began.

    Raises:
        UsageError: the settings cannot be run.
        EnvironmentFault: no fitting MPI, or this process is a rank itself.
    """
    from collage_mpi.commands.launch import LaunchArguments, launch_ranks
    from collage_mpi.settings.flags import flags_of

    settings.require_inputs()
    words = ("run", *flags_of(settings))
    how = LaunchArguments(words=words, mpi=mpi, timeout=timeout_s)
    code = launch_ranks(settings.launch_size if ranks is None else ranks, how)
    return ExitCode(code) if code in set(ExitCode) else code


def map_batches(
    function: type | str,
    *,
    input: Path | str | Sequence[Path | str],
    out: Path | str,
    ranks: int | None = None,
    mpi: str = "auto",
    **settings: Any,
) -> Results:
    """Map a class over images of any source on this host, like `collage-mpi map`.

    Each rank makes one object of the class, with its device. The object is called with batches of
    images, (n, ...), and returns a dict of arrays whose first axis is the batch. If `out` has a
    run, the run is continued, with any number of ranks.

    Args:
        function: the class, or where it is: "FILE.py:CLASS" or "MODULE:CLASS".
        input: files and folders of images.
        out: folder of the run.
        ranks: number of workers; by default one for each GPU, or for each available core.
        mpi: as in `collage-mpi launch --mpi`.
        settings: further settings of the run, for example `scheme` or `batch`.

    Returns:
        The results, in the order of the input. `complete` says whether all images are done,
        `kept(NAME)[i]` is one of the arrays for image i, and `[i]` is all that is known of it.

    Raises:
        UsageError: the class is not at the top of a file, or the settings cannot be run.
        EnvironmentFault: the job ended early; its messages say why.
    """
    from collage_mpi.commands.classify import MapArguments, execute_map
    from collage_mpi.results import read_results

    paths = [input] if isinstance(input, (str, Path)) else input
    given = {"shards": tuple(map(str, paths)), "out": str(out), **settings}
    code = execute_map(
        MapArguments(function=(spec_of(function),), ranks=ranks, mpi=mpi, given=given)
    )
    if code not in (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS, ExitCode.INCOMPLETE):
        raise EnvironmentFault(
            f"the job of {out} ended with exit code {code}; its messages above say why"
        )
    return read_results(out)


def spec_of(function: type | str) -> str:
    """Where ranks find the class. Raises UsageError if they cannot."""
    if isinstance(function, str):
        return function
    file = getattr(inspect.getmodule(function), "__file__", None)
    if file is None or not function.__qualname__.isidentifier():
        raise UsageError(
            f"ranks cannot import {function.__qualname__}: put it at the top of a .py file, and in "
            "a script let `if __name__ == '__main__':` call map_batches"
        )
    return f"{Path(file).resolve()}:{function.__qualname__}"
