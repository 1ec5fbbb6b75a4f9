"""`collage-mpi` whose ranks die or hang at a chosen moment.

Usage: mortal.py FOLDER DEATHS ARGUMENT ...

DEATHS is RANK:MOMENT:HOW[:COUNT], several joined by commas; the moments and the ways are the
functions below, COUNT the call at which it happens (default 1). "apart" among them makes
every rank believe that it is on a machine of its own, "hasty" lets ranks go soon, "only-mpi" and
"only-processes" blind the other one of the two for what they see of a death; "in-turn", the last of
them, lets no rank compute before those have died that are to at an earlier call. FOLDER/RANK.death
holds the clock just before, FOLDER/losses a line for each loss that rank 0 notices: rank, layer,
clock; FOLDER/silences one for each rank that it finds silent.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from collage_mpi import __main__, cli
from collage_mpi.faults import failure_detector, process_monitor
from collage_mpi.job import coordinator, main, networks, worker_group
from collage_mpi.launch.supervisor import JOB_VARIABLE
from collage_mpi.ledger import owner
from collage_mpi.models.null import NullPredictor
from collage_mpi.mpi import transport
from collage_mpi.system import hard_exit, process_tree
from collage_mpi.system.environment import launcher_rank
from collage_mpi.system.forked import RELAY

FOLDER, DEATHS, ARGUMENTS = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
RANK = launcher_rank()


def ranks():
    """The processes of this job's ranks on this machine, with their relays."""
    found = []
    for pid in process_tree.holders_of(f"{JOB_VARIABLE}={os.environ[JOB_VARIABLE]}"):
        words = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
        rank = launcher_rank(dict(word.split("=", 1) for word in words if "=" in word))
        if rank is not None and process_tree.stat_of(pid)[0] != "sh":
            found.append((pid, rank))
    return found


def started():
    """The process that the launcher has started for this rank: its relay, or this one."""
    own = [pid for pid, rank in ranks() if rank == RANK]
    return next((p for p in own if process_tree.stat_of(p)[0] == RELAY), os.getpid())


def note_relay():
    """FOLDER/RANK.relay is there if this rank was forked."""
    if started() != os.getpid():
        Path(FOLDER, f"{RANK}.relay").touch()


def parent(pid):
    return int(process_tree.stat_of(pid)[1][1])


# ---- ways ---------------------------------------------------------------------


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def segv():
    import ctypes

    ctypes.string_at(0)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def nap():
    """This coordinator alone is stopped, until others have completed the run."""
    done = Path(ARGUMENTS[ARGUMENTS.index("--out") + 1], "COMPLETE.1")
    wait = f"for _ in $(seq 600); do [ -e {done} ] && break; sleep 0.1; done"
    wake = f"kill -STOP {os.getpid()}; {wait}; kill -CONT {os.getpid()}"
    subprocess.Popen(["sh", "-c", wake], start_new_session=True)
    time.sleep(1.0)  # so that the moment is this one


def leave():
    os._exit(1)


def leave0():
    os._exit(0)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def orphan():
    """The launcher dies, not this rank; its job cannot end before that is noticed."""
    pid = started()
    while process_tree.stat_of(pid)[0] not in ("mpiexec", "mpirun", "prterun"):
        pid = parent(pid)
    os.kill(pid, signal.SIGKILL)
    time.sleep(1.0)


def note_memory():
    """Nobody dies: FOLDER/RANK.shm holds the files of the MPI library in shared memory."""
    files = hard_exit.shared_memory(Path("/proc/self/maps"))
    Path(FOLDER, f"{RANK}.shm").write_text("\n".join(map(str, files)))


def bare():
    """The shell around this rank dies, not this rank."""
    os.kill(parent(started()), signal.SIGKILL)


def suspend():
    """All ranks are stopped for a while, as `scontrol suspend` does; this one wakes first."""
    pids = " ".join(str(pid) for pid, _ in ranks())
    stop = f"kill -STOP {pids}; sleep 3; kill -CONT {os.getpid()}; sleep 0.3; kill -CONT {pids}"
    subprocess.Popen(["sh", "-c", stop], start_new_session=True)


def blind():
    """From now on it can read no shard."""
    from collage_mpi.errors import EnvironmentFault
    from collage_mpi.shards import reader

    def gone(self, number):
        raise EnvironmentFault(f"shard {number}: its disk is gone")

    reader.ShardSet._shard = gone


def throw():
    raise RuntimeError("boom")


# ---- moments ------------------------------------------------------------------


def before(holder, name, act, count, only=lambda *args: True):
    """Act before the count-th call of a method whose arguments `only` accepts."""
    plain, left = getattr(holder, name), [count]

    def patched(*args, **options):
        if only(*args):
            left[0] -= 1
            if left[0] == 0:
                act()
        return plain(*args, **options)

    setattr(holder, name, patched)


def mpi(act, count):
    """Before MPI_Init."""
    act()


def library(act, count):
    """It has said that it begins to start MPI, and has not."""
    before(main, "open_world", act, count)


def start(act, count):
    """MPI is up, nothing has been said."""
    for life in ("work", "work_as_team"):
        before(main._World, life, act, count)


def load(act, count):
    before(networks.NetworkLoader, "__call__", act, count)


def warm(act, count):
    before(networks.Networks, "service_ns", act, count)


def measure(act, count):
    """While it is measured alone."""
    before(networks.Networks, "measured", act, count)


def receive(act, count):
    plain, left = transport.WorkerTransport.poll_tasks, [count]

    def patched(self):
        found = plain(self)
        left[0] -= bool(found)
        if found and left[0] == 0:
            act()
        return found

    transport.WorkerTransport.poll_tasks = patched


def compute(act, count):
    before(NullPredictor, "predict", act, count, lambda self, batch: batch.any())


def reply(act, count):
    before(transport.WorkerTransport, "send", act, count + 1)  # the first is the hello


def shutdown(act, count):
    """It has been told to stop, and has not said goodbye."""
    before(process_monitor.CoordinatorMonitor, "release", act, count)


def leaving(act, count):
    """Its work is done, and it is about to leave MPI."""
    before(cli, "leave_if_armed", act, count)


def images(act, count):
    """Rank 0, once so many images have their rows."""
    from collage_mpi.job import coordinator

    before(
        coordinator.Coordinator,
        "turn",
        act,
        1,
        lambda self: self.core.outcomes.totals.images >= count,
    )


AT_WORK = ("receive", "compute", "reply")
WAIT_LIMIT_S = 20.0


def in_turn():
    """Where a machine keeps those ranks waiting, the others would do their images meanwhile."""
    told = [death.split(":") for death in DEATHS if death.count(":") > 1]
    calls = {int(rank): int((*more, 1)[0]) for rank, moment, _, *more in told if moment in AT_WORK}
    mine = calls.pop(RANK, 1 << 30)
    first = [Path(FOLDER, f"{rank}.death") for rank, call in calls.items() if call < mine]
    plain = NullPredictor.predict

    def predict(self, batch):
        until_s = time.monotonic() + WAIT_LIMIT_S
        while batch.any() and first and time.monotonic() < until_s:
            first[:] = [file for file in first if not file.exists()]
            time.sleep(0.002)
        return plain(self, batch)

    NullPredictor.predict = predict


def noted(act):
    def noting():
        Path(FOLDER, f"{RANK}.death").write_text(str(time.monotonic_ns()))
        act()

    return noting


def note(what, rank, layer):
    with open(FOLDER / what, "a") as file:
        file.write(f"{rank} {layer} {time.monotonic_ns()}\n")


def note_losses():
    plain, look = failure_detector.FailureDetector._lose, failure_detector.FailureDetector.look

    def noting(self, ended, now_ns):
        known = plain(self, ended, now_ns)
        if known:
            note("losses", ended.rank, ended.layer)
        return known

    def looking(self, now_ns):
        signs = look(self, now_ns)
        for sign in signs:
            if isinstance(sign, failure_detector.RankSilent):
                note("silences", sign.rank, failure_detector.TIMEOUT)
        return signs

    failure_detector.FailureDetector._lose, failure_detector.FailureDetector.look = noting, looking


def only_mpi():
    process_monitor.ProcessMonitor.look = lambda self: []


def only_processes():
    failure_detector.FailureDetector.gone = lambda self, found: None


def hasty():
    coordinator.RELEASE_NS = 500_000_000


def apart():
    plain = process_tree.this_process

    def elsewhere():
        return dataclasses.replace(plain(), machine=f"machine {RANK}")

    process_tree.this_process = elsewhere
    for module in (
        sys.modules["collage_mpi.job.worker_group"],
        sys.modules["collage_mpi.faults.process_monitor"],
    ):
        module.this_process = elsewhere


for death in DEATHS:
    if death in ("apart", "hasty", "only-mpi", "only-processes", "in-turn"):
        globals()[death.replace("-", "_")]()
    elif death and int(death.split(":")[0]) == RANK:
        _, moment, how, *count = death.split(":")
        globals()[moment](noted(globals()[how]), int(count[0]) if count else 1)
worker_group.HERE_LIMIT_S, main.SHORT_STOP_S, transport.MEET_LIMIT_S = 5.0, 2.0, 2.0
owner.SILENT_S = 5.0  # of a job that died apart
note_losses()
note_relay()
sys.argv[1:] = ARGUMENTS
sys.exit(__main__.main())
