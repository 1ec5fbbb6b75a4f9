"""`collage-mpi` with something broken on one rank.

Usage: saboteur.py RANK STAGE [ARGUMENT ...]: the stage is a function below.
"""

import dataclasses
import os
import signal
import sys
import time

import numpy as np

from collage_mpi import __main__
from collage_mpi.core.core import Core
from collage_mpi.errors import EnvironmentFault
from collage_mpi.job import coordinator, networks, run, worker, worker_group
from collage_mpi.ledger import owner
from collage_mpi.models.null import NullPredictor
from collage_mpi.mpi import protocol, transport
from collage_mpi.results import row_sink
from collage_mpi.shards.schema import ShardInfo
from collage_mpi.system.environment import launcher_rank

AFTER_IMAGES = 30


def boom(*args, **options):
    raise RuntimeError("boom")


def patch(owner, name, before):
    """Call `before(*arguments)` first each time."""
    plain = getattr(owner, name)

    def patched(*args, **options):
        before(*args, **options)
        return plain(*args, **options)

    setattr(owner, name, patched)


def nth(count, act):
    """Act at the count-th call."""
    calls = iter(range(1, 1 << 30))
    return lambda *args, **options: act() if next(calls) == count else None


def at_images(act):
    """Act once AFTER_IMAGES images are resolved."""

    def watch(self):
        if self.core.outcomes.totals.images >= AFTER_IMAGES:
            act()

    patch(coordinator.Coordinator, "turn", watch)


def at_task(act, count=5):
    """Act at a worker's count-th task."""
    patch(NullPredictor, "predict", lambda self, batch: at_real(batch, act, count))


seen = iter(range(1, 1 << 30))


def at_real(batch, act, count):
    if batch.any() and next(seen) == count:  # the warm-up's inputs are blank
        act()


def load():
    networks.NetworkLoader.__call__ = boom


def receive():
    plain = transport.WorkerTransport.poll_tasks
    transport.WorkerTransport.poll_tasks = lambda self: boom() if (m := plain(self)) else m


def reply():
    patch(transport.WorkerTransport, "send", nth(6, boom))


def garble():
    patch(transport.WorkerTransport, "send", lambda self, buffer, nbytes: buffer.fill(255))


def predict():
    """Soft: it never works on this rank."""
    patch(NullPredictor, "predict", lambda self, batch: boom() if batch.any() else None)


def plan():
    run.run_session.__globals__["make_plan"] = boom


def loop():
    at_images(boom)


def at_rows(act):
    """Act as the second part of the rows is handed over, of 20 rows."""
    row_sink.RowSink.__init__.__kwdefaults__["rows_per_part"] = 20
    coordinator.ROWS = 20
    patch(row_sink.Buffer, "hand_over", nth(2, act))


def row():
    at_rows(boom)


def disk_full():
    def full():
        raise EnvironmentFault("out/parts: cannot be written: No space left on device")

    at_rows(full)


def close():
    run.Share.leave = boom


def kill():
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    row_sink.RowSink.__init__.__kwdefaults__["rows_per_part"] = coordinator.ROWS = 8
    at_images(die) if RANK == 0 else at_task(die)


def stop(name="SIGUSR2"):
    number = signal.Signals[name]
    patch(coordinator.Coordinator, "run", lambda self, *ranks: None)
    fired = []

    def once():
        if not fired:
            fired.append(1)
            os.kill(os.getpid(), number)

    at_images(once)


def early_stop():
    """A signal while the workers load."""
    patch(worker_group.WorkerGroup, "welcome", lambda *a, **o: os.kill(os.getpid(), signal.SIGTERM))


def freeze():
    """A worker that stops for good; rank 0 shows less patience than by default."""
    if launcher_rank() == RANK:
        begin = worker.Session.start

        def stopped(self, *told):  # not at a task: on a busy machine it may compute none
            begin(self, *told)
            os.kill(os.getpid(), signal.SIGSTOP)

        worker.Session.start = stopped
    plain = Core.__init__

    def impatient(self, settings, *more):
        plain(self, dataclasses.replace(settings, end_ns=500_000_000), *more)

    Core.__init__ = impatient
    worker_group.STOP_LIMIT_S = 2.0


def hasty():
    """Ranks are let go, and jobs count as dead, after less time."""
    coordinator.RELEASE_NS = 1_000_000_000
    owner.SILENT_S = 8.0


def slow():
    """Every prediction takes 20 ms of sleep, so that something is always under way."""
    patch(NullPredictor, "predict", lambda self, batch: time.sleep(0.02))


def foreign():
    """This rank's weights are others than everybody else's."""
    plain = NullPredictor.__init__

    def other(self, *args):
        plain(self, *args)
        self.fingerprint = "f" * 64

    NullPredictor.__init__ = other


def version():
    """This rank runs another version of the program."""
    protocol.VERSION += 1


def elsewhere(folder):
    """This rank's host has another folder of that name: shards are looked for in it."""
    plain = ShardInfo.from_json.__func__

    def moved(kind, record):
        path = os.path.join(folder, os.path.basename(record["path"]))
        return plain(kind, {**record, "path": path})

    ShardInfo.from_json = classmethod(moved)


def zero():
    """Nothing is broken."""


np.seterr(all="raise")
worker_group.IDLE_STOP_S = transport.MEET_LIMIT_S = 60.0  # ranks that are slow are not stuck
RANK, STAGE = int(sys.argv[1]), sys.argv[2]
if launcher_rank() == RANK or STAGE == "freeze":
    name, _, argument = STAGE.partition(":")
    globals()[name](*filter(None, [argument]))
del sys.argv[1:3]
sys.exit(__main__.main())  # as ranks leave: a launcher may end the others once the first has left
