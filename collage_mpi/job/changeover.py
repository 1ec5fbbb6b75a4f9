"""Has a job's networks made for a quicker runtime while the ranks already work with torch.

Rank 0 starts a child process (`python -m collage_mpi.job.changeover`), because a runtime's library
may crash or hang on a host. The ranks look for the folder that the child fills, and change over
between two batches (`Networks.changes`).
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.encoding.collage import Encoder, resized
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import CollageError
from collage_mpi.job.encoders import make_encoder
from collage_mpi.job.handshake import ServiceCosts, welcomes
from collage_mpi.job.messages import Hello, Welcome, as_text, read_text
from collage_mpi.job.plan import Plan
from collage_mpi.job.row_reader import RowReader, Wanted, described
from collage_mpi.kinds import KIND
from collage_mpi.models import load_predictor
from collage_mpi.models.info import COMPILE, NO_TUNING, OWN_TUNING, PLAIN, TORCH, Tuning
from collage_mpi.models.named import OFFLINE
from collage_mpi.models.runtimes import (
    TRIED,
    Record,
    candidates,
    folder_of,
    read_record,
    unfinished,
)
from collage_mpi.plugins import pip_line
from collage_mpi.shards.order import Order
from collage_mpi.system.environment import local_size, threads_per_rank, without_rank
from collage_mpi.system.fields import AUTO
from collage_mpi.system.printable import one_line
from collage_mpi.system.process_tree import ask_apart, own_command
from collage_mpi.system.tell import tell

CHILD_COMMAND = own_command("collage_mpi.job.changeover")
MADE_BATCH = 4  # inputs of a thread at once; measured (Lite0): 8.0, 6.7, 7.4, 7.7 ms at 1, 4, 8, 16
LIMIT_S = 900.0  # for the child
WAIT_S = 0.1
JUDGED = 64  # images of the job on which the child compares the answers
PDEATHSIG = 1  # of Linux's prctl

# What the forecast assumes, in seconds of one core.
MAKING_S = 6.0  # the child, beside its calls of the network
COMPILING_S = 40.0  # torch.compile
JUDGE_CALLS = 2 * JUDGED  # of the network, for one image each
LOADING_S = 0.5  # on each rank
GAIN = 2.0  # how many times as quick as torch another runtime is; measured: 1.5 to 4
FEW = 4 * TRIED  # a rank with fewer images does not change over
LONG = 20  # a job is compiled if it takes this many times as long as the compiling
USUAL_GAIN = 3  # what users are told if no other runtime is installed (docs/networks.md)


def made_batch(batch: int, threads: int) -> int:
    """For which batch a network is made. More inputs at once make no runtime quicker, and jobs that
    choose other batches find the same network in the cache.
    """
    return 1 << (min(batch, MADE_BATCH * threads).bit_length() - 1)


def threads_of(plan: Plan) -> int:
    """Threads of a rank's network, if all hosts are alike."""
    return threads_per_rank(local_size() or plan.placement.world_size)


def least_batch(plan: Plan, tunings: Collection[str], devices: Collection[str]) -> int:
    """The smallest batch that `--batch auto` chooses where all networks run in torch on CPUs: that
    for which another runtime's network is made. 1 for other jobs.

    Args:
        plan: of the run.
        tunings: of all networks, in words.
        devices: of all ranks, without numbers.
    """
    plain = not {NO_TUNING, OWN_TUNING}.intersection(tunings) and not plan.settings.injects
    if not plain or set(devices) != {"cpu"}:
        return 1
    return made_batch(MADE_BATCH * threads_of(plan), threads_of(plan))


@dataclass(frozen=True)
class Work:
    """What a network has to do in a session.

    Attributes:
        images: number of inputs that it answers.
        image_s: processor time of an input in torch.
        ranks: number of ranks that share them.
    """

    images: int
    image_s: float
    ranks: int

    @property
    def seconds(self) -> float:
        """Processor time of all inputs in torch."""
        return self.images * self.image_s

    def pays(self, making_s: float) -> bool:
        """Whether making the network for a quicker runtime costs less than it saves.

        While it is made, the ranks answer in torch.
        """
        making_s += JUDGE_CALLS * self.image_s
        left_s = self.seconds - self.ranks * making_s
        return left_s * (1 - 1 / GAIN) > making_s + self.ranks * LOADING_S

    def gain(self, making_s: float) -> float:
        """How many times as quick as in torch alone the session is likely to be."""
        alone_s = self.seconds / self.ranks
        before_s = min(alone_s, making_s + JUDGE_CALLS * self.image_s)
        left_s = alone_s - before_s
        return alone_s / (before_s + LOADING_S + left_s / GAIN) if left_s > LOADING_S else 1.0


def chosen_runtimes(spec: str, tuning: Tuning, work: Work) -> tuple[tuple[str, ...], str]:
    """The runtimes to make a network for, and a line that says why there are none, or ""."""
    names = candidates(spec, tuning)
    if not names or tuning.runtime != "auto":
        return names, ""
    began = tuning.on("cpu").answerer
    if names == (COMPILE,):
        hint = f"`{pip_line('fast')}` would make it about {USUAL_GAIN} times as quick"
        return names if work.seconds >= COMPILING_S * LONG else (), f"runtime: {began}; {hint}"
    if not work.pays(MAKING_S):
        return (), (
            f"runtime: {began}; {work.images:,} images are too few to make a quicker one for "
            "(--runtime openvino makes it all the same)"
        )
    # A further runtime is tried where even a small gain saves more than the trial costs.
    more = [name for name in names[1:] if work.seconds >= LONG * MAKING_S]
    return (names[0], *more), ""


class Changeover:
    """The networks of a session that are made for another runtime.

    Use it as a context: children that still run at its end are killed.

    Attributes:
        folders: kind -> the folder in which ranks will find the network.
        gains: kind -> how many times as quick as in torch alone the kind's images are likely to be
            answered; without kinds that stay in torch.
        told: kinds of whose runtime and number format the user is told in one line.
    """

    def __init__(
        self,
        plan: Plan,
        hellos: Mapping[int, Hello],
        encoder: Encoder,
        costs: ServiceCosts,
        order: Order,
    ) -> None:
        """Decide what is made, and say why if nothing is.

        Args:
            plan: with the batch that is used.
            order: the images of the session.
        """
        self._plan, self._encoder, self._order = plan, encoder, order
        self.folders: dict[str, str] = {}
        self.gains: dict[str, float] = {}
        self.told: set[str] = set()
        self._requests: list[tuple[str, dict[str, Any]]] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._over, self._lock = False, threading.Lock()
        if not plan.settings.waits and len(order):
            for kind in plan.networks:
                self._decide(kind, hellos, costs)

    def _decide(self, kind: str, hellos: Mapping[int, Hello], costs: ServiceCosts) -> None:
        plan, tuning = self._plan, self._plan.settings.tuning(kind)
        settings = plan.settings
        ranks = [rank for rank in plan.placement.ranks_of(kind) if rank in hellos]
        if not ranks or hellos[ranks[0]].tuning.get(kind) in (None, NO_TUNING, OWN_TUNING):
            return
        if any("cpu" not in hellos[rank].devices for rank in ranks):
            if tuning.precision == "auto":
                self._tell(kind, ON_GPU.format(runtime=tuning.on("cuda").runtime))
            return
        batch = settings.most_inputs(kind)
        further = costs.batch_costs.get(kind, 1.0)
        image_s = costs.idle_ns.get(kind, 0) * (1 + further * (batch - 1)) / batch / 1e9
        share = settings.group_size if KIND[kind].encoded else 1
        work = Work(len(self._order) // share, image_s, settings.teams * len(ranks))
        size = made_batch(batch, threads_of(plan))
        stage = settings.stage(kind)
        geometry = plan.geometry.at_px(stage.px if stage else None)
        facts = {"batch": size, "save": settings.save, "geometry": asdict(geometry)}
        spec, held = plan.networks[kind], hellos[ranks[0]].fingerprints[kind]
        names = candidates(spec, tuning)
        if work.images >= FEW * work.ranks:
            for choice in (tuning.runtime, *(names if tuning.runtime == AUTO else (AUTO,))):
                asked = replace(tuning, runtime=choice)
                folder = folder_of(held, spec, KIND[kind].network, asked, facts)
                record = read_record(folder)
                if record is None or (choice != tuning.runtime and record.runtime not in names):
                    continue
                self._tell(kind, said_of(record, f"{kind} network", "made by an earlier job"))
                if record.runtime != TORCH:
                    self.folders[kind] = str(folder)
                    self.gains[kind] = record.times
                return
        runtimes, why = chosen_runtimes(spec, tuning, work)
        if why:
            self._tell(kind, why)
        if runtimes:
            self.told.add(kind)
            self.gains[kind] = work.gain(COMPILING_S if runtimes == (COMPILE,) else MAKING_S)
            made = folder_of(held, spec, KIND[kind].network, tuning, facts)
            self.folders[kind] = str(made)
            self._requests.append((kind, self._request(kind, ranks[0], size, runtimes)))

    def _tell(self, kind: str, line: str) -> None:
        tell(line, logging.INFO)
        self.told.add(kind)

    def _request(self, kind: str, rank: int, batch: int, runtimes: Sequence[str]) -> dict[str, Any]:
        """What the child must know, as JSON values."""
        shards = self._plan.shards
        step = max(1, len(self._order) // JUDGED)
        chosen = self._order.indices(range(0, len(self._order), step)[:JUDGED])
        numbers, rows = shards.locate_each(chosen)
        used, own = np.unique(numbers, return_inverse=True)
        texts = described(shards)
        return {
            "welcome": as_text(welcomes(self._plan, self._encoder)[rank]),
            "kind": kind,
            "shards": [texts[number] for number in used],
            "places": np.stack([own, rows], axis=1).tolist(),
            "batch": batch,
            "runtimes": list(runtimes),
            "threads": threads_of(self._plan),
            "folder": self.folders[kind],
        }

    def __enter__(self) -> Changeover:
        if self._requests:
            self._thread = threading.Thread(target=self._make_all, name="changeover")
            self._thread.start()
        return self

    def wait(self, stop_reason: Callable[[], str | None]) -> None:
        """Wait until all networks are made, or there is a reason to stop."""
        while self._requests and self._thread.is_alive() and stop_reason() is None:
            self._thread.join(WAIT_S)

    def record(self, kind: str) -> Record | None:
        """How a kind's network was made; None if it stays in torch, or is not made yet."""
        return read_record(Path(self.folders[kind])) if kind in self.folders else None

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            if self._child is not None:
                self._child.kill()
        if self._requests:
            self._thread.join()

    def _make_all(self) -> None:
        for kind, request in self._requests:
            line = run_child(kind, request, self._born)
            if self._over:
                return
            tell(line, logging.INFO)

    def _born(self, child: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._child = child
            if self._over:
                child.kill()


def run_child(
    kind: str, request: Mapping[str, Any], born: Callable[[subprocess.Popen[bytes]], object]
) -> str:
    """Let a child make a kind's network; what it made, as a line for the user.

    Args:
        request: see `Changeover._request`.
        born: see `ask_apart`.
    """
    environment = {**without_rank(os.environ), OFFLINE: os.environ.get(OFFLINE, "1")}
    made, pids = Path(request["folder"]), list[int]()

    def note(child: subprocess.Popen[bytes]) -> None:
        pids.append(child.pid)
        born(child)

    try:
        said = ask_apart(CHILD_COMMAND, request, LIMIT_S, environment, note)
    except OSError as error:
        return f"runtime: torch goes on; no child process can be started: {error}"
    for pid in pids:  # a killed child leaves its folder
        for folder in made.parent.glob(f"{unfinished(pid)}*"):
            shutil.rmtree(folder, ignore_errors=True)
    record = read_record(made)
    if record is not None:
        return said_of(record, f"{kind} network", f"of {record.judged} images of this job")
    if said.code is None:
        how = f"it took longer than {LIMIT_S:g} s"
    elif said.code < 0:
        how = f"its process was ended by {signal.Signals(-said.code).name}"
    else:
        how = said.last_word[:300] or f"its process ended with exit code {said.code}"
    return f"runtime: torch goes on; {', '.join(request['runtimes'])} could not be made: {how}"


ON_GPU = (
    "runtime: {runtime} in float32, channels-last, by CUDA graphs; --precision float16 is the "
    "format of torch's autocast here, several times as quick, and changes about 1 % of the classes"
)


def said_of(record: Record, what: str, where: str) -> str:
    """What a record means for a job, as a line for the user."""
    if record.runtime == TORCH:
        found = f"runtime: torch {record.precision} goes on for the {what}; {record.why}"
        changed = record.precision != "float32"
    else:
        found = (
            f"runtime: {record.answerer} for the {what}, {record.own_ms:.3g} ms an image, torch "
            f"takes {record.torch_ms:.3g} ({record.times:.1f} x)"
        )
        changed = True
    if changed and record.classes != 1:
        found += f"; {record.changed} of {record.judged} images get another class than in float32"
    return f"{found} ({where})"


# ---- the child ---------------------------------------------------------------


def main() -> int:
    """The child process: read a request from stdin, and make the folder."""
    with suppress(AttributeError, OSError):  # it ends with rank 0
        ctypes.CDLL(None).prctl(PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    request = json.load(sys.stdin)
    os.dup2(2, 1)  # so that output of libraries goes to stderr
    try:
        make_as_asked(request)
    except CollageError as fault:
        print(one_line(fault), file=sys.stderr)
        return 1
    return 0


def make_as_asked(request: Mapping[str, Any]) -> None:
    """Make a network for another runtime; see `Changeover._request`."""
    welcome, kind, threads = read_text(request["welcome"]), request["kind"], request["threads"]
    assert isinstance(welcome, Welcome)
    spec = welcome.networks[kind]
    how = replace(welcome.how_of(kind, spec), device="cpu", threads=threads)
    tuning = how.tuning
    assert tuning is not None
    asked = [PLAIN, tuning.on("cpu")]
    exact, tuned = (
        load_predictor(spec, KIND[kind].network, replace(how, tuning=each)) for each in asked
    )
    from collage_mpi.models.making import make
    from collage_mpi.models.predictor import TorchPredictor

    assert isinstance(exact, TorchPredictor)
    assert isinstance(tuned, TorchPredictor)
    inputs = judged_inputs(welcome, kind, request["shards"], request["places"])
    folder = Path(request["folder"])
    batch, runtimes = request["batch"], request["runtimes"]
    make(exact, tuned, inputs, batch, runtimes, folder, tuning.format, threads)


def judged_inputs(
    welcome: Welcome, kind: str, shards: Sequence[str], places: Sequence[Sequence[int]]
) -> np.ndarray:
    """(n, ...) inputs of the kind's network, made of images of the job."""
    reader = RowReader(shards)
    found = [(int(shard), int(row)) for shard, row in places]
    try:
        if not KIND[kind].encoded:
            pixels, faults = reader.read(found)
            pixels, stage = pixels[[why is None for why in faults]], welcome.stages.get(kind)
            return resized(pixels, stage.px) if stage is not None and stage.px else pixels
        told = welcome.geometry
        grid = Grid(told.side, told.cell_px)
        encoder = make_encoder(grid, told.image_shape, welcome.ranks)
        rng = np.random.default_rng(0)
        picks = rng.integers(0, len(found), (JUDGED, encoder.places))
        cells = list(range(encoder.places))
        tasks = [Wanted([found[i] for i in row], cells) for row in picks.tolist()]
        return np.concatenate(reader.inputs(tasks, encoder).arrays)
    finally:
        reader.close()


if __name__ == "__main__":
    raise SystemExit(main())
