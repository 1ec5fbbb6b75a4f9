"""Runs first in every Python of a chaos round; does something in the ranks of the job only.

A rank writes its pid to a file, so that it can be killed from outside, and leaves a file
when MPI is up and one when its work begins. Rows go to disk in small parts, and rank 0's disk
may be full at a step that the plan names; a rank may end by itself. All of it from CHAOS_FOLDER;
without it, nothing. HOST_CLOCK names a file that says how many seconds a virtual host's date is
ahead (tests/cluster).
"""

import os
import sys
from pathlib import Path


def install(folder: Path, rank: str) -> None:
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    from collage_mpi.job import coordinator, main
    from collage_mpi.models.null import NullPredictor
    from collage_mpi.results import row_sink

    def mark_first(owner, name, mark, wanted=lambda *args: True):
        plain, seen = getattr(owner, name), []

        def first(*args, **options):
            if not seen and wanted(*args):
                seen.append(1)
                (folder / mark).touch()
            return plain(*args, **options)

        setattr(owner, name, first)

    plain_open = main.open_world

    def open_world(*args, **options):
        found = plain_open(*args, **options)
        (folder / f"up-{rank}").touch()
        return found

    main.open_world = open_world
    mark_first(NullPredictor, "predict", f"works-{rank}", lambda self, batch: batch.any())
    mark_first(coordinator.Coordinator, "run", f"works-{rank}")
    row_sink.RowSink.__init__.__kwdefaults__.update(rows_per_part=40, flush_s=0.2)
    if rank == "0" and (folder / "disk_full_at").exists():
        fill_disk(int((folder / "disk_full_at").read_text()))
    if (folder / f"exits-{rank}").exists():
        exit_at_start(*(folder / f"exits-{rank}").read_text().split(" ", 1))


def exit_at_start(after_s: str, how: str) -> None:
    """This rank has no MPI library, or ends by itself after so many seconds."""
    import signal
    import threading

    class NoLibrary:
        def find_spec(self, name, *_):
            if name == "mpi4py.MPI":
                raise ImportError("libmpi.so.12: cannot open shared object file")

    def leave() -> None:
        os._exit(1) if how == "exit 1" else os.kill(os.getpid(), signal.SIGINT)

    if how == "no library":
        sys.meta_path.insert(0, NoLibrary())
        return
    timer = threading.Timer(float(after_s), leave)
    timer.daemon = True
    timer.start()


def fill_disk(step: int) -> None:
    """From the step-th fsync of results on there is no room."""
    import errno

    from collage_mpi.system import files

    plain, count = os.fsync, iter(range(1, 1 << 30))

    class Os:
        def __getattr__(self, name):
            return getattr(os, name)

        def fsync(self, fd):
            if next(count) >= step:
                raise OSError(errno.ENOSPC, "No space left on device")
            plain(fd)

    files.os = Os()


def rank() -> str | None:
    names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
    return next((os.environ[name] for name in names if name in os.environ), None)


def install_in_forked(folder: Path) -> None:
    """This process forks the ranks."""
    from collage_mpi.system import forked

    plain = forked._become

    def become(*args) -> None:
        plain(*args)
        install(folder, rank())

    forked._become = become


def shift_date(seconds: int) -> None:
    """What this process takes for the date is so much ahead."""
    import datetime
    import time

    now_s, now_ns = time.time, time.time_ns
    time.time = lambda: now_s() + seconds
    time.time_ns = lambda: now_ns() + seconds * 10**9

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(seconds=seconds)

    datetime.datetime = Shifted


if clock := os.environ.get("HOST_CLOCK"):
    shift_date(int(Path(clock).read_text()))
FOLDER = os.environ.get("CHAOS_FOLDER")
if FOLDER and "collage_mpi.system.forked" in sys.orig_argv:
    install_in_forked(Path(FOLDER))
elif (
    FOLDER
    and rank()
    and {"collage_mpi", "run"} <= {*sys.orig_argv}
    and "COLLAGE_MPI_FORK" not in os.environ  # else this is a relay, no rank
):
    install(Path(FOLDER), rank())
