"""The Python API behind `collage-mpi run`, for programs started under mpiexec.

Owns: the function a user's program calls on every rank.
Does not know: how a job is run (session and world do).
"""

from __future__ import annotations

from collage_mpi.config import RunSettings
from collage_mpi.errors import ExitCode


def run(settings: RunSettings, *, resume: bool = False, retry_errors: bool = False) -> ExitCode:
    """Run a job; call it on every rank of the world, e.g. under `mpiexec -n 11`.

    Rank 0 classifies and writes the results to `settings.out` (read them with
    `read_results`); the other ranks serve until the job is over.

    Args:
        settings: of the run.
        resume: go on with the run in `settings.out`, if one was begun there.
        retry_errors: likewise, and do the images again whose rows are errors.

    Returns:
        The job's exit code, the same on every rank.
    """
    from collage_mpi.session import run_session
    from collage_mpi.world import run_world

    code = run_world(
        "run",
        lambda crew, stop: int(
            run_session(
                settings, crew, resume=resume, retry_errors=retry_errors, stop_reason=stop
            ).exit_code
        ),
    )
    return ExitCode(code)
