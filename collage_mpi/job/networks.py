"""A worker's networks: loads them on this rank's device, warms them up, times and runs them."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np

from collage_mpi.encoding.collage import best_five, decode, resized
from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.vectors import KeptColumn, layout_of
from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.job.encoders import make_encoder
from collage_mpi.job.messages import Changed, Hello, Measured, Welcome
from collage_mpi.kinds import KIND, SINGLE, TABLE
from collage_mpi.models import load_predictor
from collage_mpi.models.info import Answer, Computation, Loading, Predictor
from collage_mpi.models.named import OFFLINE, is_foreign, is_function, is_null
from collage_mpi.models.null import parse_null
from collage_mpi.models.own import RAISED, raised_at_first
from collage_mpi.models.runtimes import (
    CACHE,
    Changeable,
    Record,
    Trial,
    change_over,
    processor,
    read_record,
    why_unequal,
    why_unknown,
)
from collage_mpi.models.waiting import WaitingNetwork
from collage_mpi.mpi.answers import ANSWERED, FAILED, Score, WireResult
from collage_mpi.mpi.tasks import WireTask
from collage_mpi.rows import ANSWERERS
from collage_mpi.settings.stages import CLASS, MARGIN, TOP, TOP5
from collage_mpi.system.environment import (
    assign_device,
    local_gpu_rank,
    local_size,
    threads_per_rank,
    visible_devices,
)
from collage_mpi.system.printable import counted

# Known inputs, how long they take at most, and after how many images they are answered again.
KNOWN, KNOWN_NS, KNOWN_EVERY = 32, 1_000_000_000, 10_000
WEIGH_EVERY_NS = 60_000_000_000
LOOK_EVERY_NS = 200_000_000  # for a network in another runtime
NOT_FINITE = "the network's scores are not finite (NaN or infinite)"
# Torch's errors (out of memory; a failed GPU, since torch 2.8), and Python's own.
DEVICE_ERRORS = ("OutOfMemoryError", "AcceleratorError", "MemoryError")
WARMUP_TASKS = 3  # calls of each network before the rank is ready
MEASURED_RUNS = 5  # calls in a round; few, because the networks take turns
# A round is no longer than this, or than two calls: all other ranks wait meanwhile, and
# `--batch auto` also measures batches that are far larger than the one it chooses.
MEASURED_NS, LEAST_MEASURED = 100_000_000, 2
# Options of glibc's mallopt, and their values in bytes. A glibc that refuses the first block size
# accepts 32 MiB.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, KEPT_BLOCK_BYTES = (1 << 31) - 1, (1 << 30, 1 << 25)

# (network spec, kind, welcome) -> predictor
Loader = Callable[[str, str, Welcome], Predictor]
Clock = Callable[[], int]


@dataclass
class Watched:
    """Known inputs, (n, ...), who answered them and what it said, (n, cells, classes); how many
    images the network has answered since; and the sum of its weights, and when to look at it."""

    inputs: np.ndarray
    runtime: str
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    since: int = 0
    weights: int | None = None
    weigh_ns: int = 0


def known_inputs(size: int, shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
    """Noise of a fixed seed, (size, *shape)."""
    return np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8).astype(dtype)


class NetworkLoader:
    """Loads each network once, however many sessions use it."""

    def __init__(self, rank: int, world_size: int, team: int = 0) -> None:
        """`team`: number of ranks of each team; 0 if there is one team."""
        self.rank, self.team = rank, team
        self.world_size = world_size
        self._loaded: dict[tuple[str, str, Loading], Predictor] = {}
        keep_freed_memory()

    def __call__(self, spec: str, kind: str, welcome: Welcome) -> Predictor:
        """The predictor of a network spec, for tasks of the kind.

        Raises:
            UsageError, EnvironmentFault, DataFault: as in `models.load_predictor`, and of a trace.
        """
        network, delays, how = KIND[kind].network, welcome.how.delays, welcome.how_of(kind, spec)
        if (spec, network, how) not in self._loaded:
            with uncollected():
                self._loaded[spec, network, how] = self._load(spec, network, how)
        found = self._loaded[spec, network, how]
        if not delays.injects and self.rank not in delays.slowed():
            return found
        return WaitingNetwork(found, kind, self.rank, delays)

    def _load(self, spec: str, kind: str, how: Loading) -> Predictor:
        if is_null(spec) and not how.names_columns:
            return parse_null(spec, kind, how.geometry)
        assert how.tuning is not None  # the welcome says it
        if is_foreign(spec) and not is_function(spec):
            os.environ.setdefault(OFFLINE, "1")  # rank 0 has downloaded what all ranks need
        threads = threads_per_rank(local_size() or self.world_size)
        return load_predictor(
            spec, kind, replace(how, device=self._device(how.device), threads=threads)
        )

    def _device(self, device: str) -> str:
        if device == "cpu" or (device == "auto" and not gpus_here()):
            return "cpu"
        import torch

        from collage_mpi.models.predictor import usable_device

        gpus = torch.cuda.device_count()
        chosen = assign_device(
            local_gpu_rank(self.rank, team=self.team), visible_devices(), device, gpus
        )
        usable_device(chosen)  # becomes torch's current device, also for a user's own network
        return chosen


class Networks:
    """The networks of a session, by kind.

    Args:
        welcome: of the session.
        load: loads a network.
        clock: monotonic, in ns.
        cpu_clock: processor time of this process, in ns.

    Raises:
        UsageError, EnvironmentFault, DataFault: as in `load`.
    """

    def __init__(self, welcome: Welcome, load: Loader, clock: Clock, cpu_clock: Clock) -> None:
        self._welcome = welcome
        self._clock, self._cpu_clock = clock, cpu_clock
        told = welcome.geometry
        grid, image = Grid(told.side, told.cell_px), told.image_shape
        self.encoder = make_encoder(grid, image, welcome.ranks)
        encoded = self.encoder.input_shape
        self.input_shapes = {kind.name: encoded if kind.encoded else image for kind in TABLE}
        dtypes = np.dtype(told.dtype), np.dtype(np.uint8)
        self.input_dtypes = {kind.name: dtypes[kind.encoded] for kind in TABLE}
        self.predictors = {
            kind: load(spec, kind, welcome) for kind, spec in welcome.networks.items()
        }
        self._px = {kind: stage.px for kind, stage in welcome.stages.items() if stage.px}
        self._scores = {kind: stage.scored for kind, stage in welcome.stages.items()}
        self.columns = self._columns()
        self._layout = layout_of(self.columns) if self.columns else None
        self._tried: dict[str, int] = {}  # kind -> the largest batch of `_untried` that was run
        self._awaited: dict[str, Path] = {}  # kind -> the folder of its network in another runtime
        self._steady: Collection[str] = ()  # kinds that answer as their folder says, or not at all
        self._unfit: dict[str, str] = {}  # kinds that answer no more -> why
        self._trials: dict[str, Trial] = {}
        self._look_ns = 0
        self._watched: dict[str, Watched] = {}  # by kind
        self._threads = threads_per_rank(local_size() or welcome.ranks)
        for predictor in self.predictors.values():
            if isinstance(predictor, Changeable):  # the session before may have changed it
                predictor.change_over()

    def _columns(self) -> tuple[KeptColumn, ...]:
        """What is kept of each image that a network of this rank resolves."""
        held = list(self.predictors.values())
        if not self._welcome.extras or not held:
            return ()
        return self._welcome.extras.columns(held[0].classes, held[0].columns)

    def hello(self, cannot_read: str = "") -> Hello:
        """Warm the networks up, and say what this rank holds. Raises as `warm_up`.

        Args:
            cannot_read: why this rank cannot read the job's input, or "".
        """
        service_ns, longest_ns = self.warm_up()
        known = self._watch(SINGLE, service_ns[SINGLE]) if SINGLE in self.predictors else ()
        held = self.predictors
        return Hello(
            host=socket.gethostname(),
            pid=os.getpid(),
            kinds=tuple(sorted(held)),
            devices=tuple(sorted({each.device for each in held.values()})),
            tuning={kind: each.tuning for kind, each in held.items()},
            fingerprints={kind: each.fingerprint for kind, each in held.items()},
            service_ns=service_ns,
            longest_ns=longest_ns,
            classes={kind: each.classes for kind, each in held.items()},
            columns=self.columns,
            cannot_read=cannot_read,
            serials=self._serials(),
            like=self._like(),
            known=tuple((int(row.argmax()), float(row.max())) for each in known for row in each),
        )

    def _serials(self) -> tuple[str, ...]:
        torch, names = sys.modules.get("torch"), {each.device for each in self.predictors.values()}
        if torch is None:
            return ()
        gpus = [torch.cuda.get_device_properties(n) for n in sorted(names) if n.startswith("cuda")]
        return tuple(f"GPU-{gpu.uuid}" for gpu in gpus if hasattr(gpu, "uuid"))

    def _like(self) -> str:
        """The processor of the exact network, the threads and the version of torch."""
        exact, torch = self.predictors.get(SINGLE), sys.modules.get("torch")
        name = f"{processor()}, {counted(self._threads, 'thread')}"
        if exact is None or torch is None:
            return name
        if exact.device.startswith("cuda"):
            name = torch.cuda.get_device_name(exact.device)
        return f"{name}, torch {torch.__version__}"

    def _watch(self, kind: str, took_ns: int) -> np.ndarray | tuple[()]:
        """Answer known inputs, whose answers must not change from now on.

        They are noise of a fixed seed, in the input shape of the kind: as many as take KNOWN_NS, in
        batches that were warmed up. A network that does not answer twice alike has none.

        Args:
            took_ns: time of one input.

        Returns:
            (n, cells, classes), the scores; () if there is nothing to compare.
        """
        predictor = self.predictors[kind]
        if is_null(self._welcome.networks[kind]) or isinstance(predictor, WaitingNetwork):
            return ()
        size = max(1, min(KNOWN, KNOWN_NS // max(1, took_ns)))
        noise = known_inputs(size, self.input_shapes[kind], self.input_dtypes[kind])
        watched, weights = Watched(noise, predictor.runtime), self._weights(kind)
        try:
            watched.scores = self._answer_known(kind, watched.inputs)
            again = self._answer_known(kind, watched.inputs)
            if why_unequal((again, {}), (watched.scores, {})):
                return ()
        except RAISED as error:  # a user's code may refuse noise
            if is_of_device(error):
                raise
            return ()
        if weights == self._weights(kind):  # a user's network may change its own
            watched.weights = weights
        watched.weigh_ns = self._clock() + WEIGH_EVERY_NS
        self._watched[kind] = watched
        return watched.scores

    def _answer_known(self, kind: str, inputs: np.ndarray) -> np.ndarray:
        step = 1 << max(1, min(KNOWN, self._welcome.batch)).bit_length() - 1
        parts = (self._fitted(kind, inputs[at : at + step]) for at in range(0, len(inputs), step))
        return np.concatenate([self.predictors[kind].answer(each)[0] for each in parts])

    def _check(self, kind: str, watched: Watched) -> Iterator[Changed]:
        """Answer the known inputs again. Other answers than at the start end all answers."""
        runtime, scores = self.predictors[kind].runtime, watched.scores
        try:
            found = self._answer_known(kind, watched.inputs)
            if runtime != watched.runtime:
                watched.runtime, watched.scores, watched.since = runtime, found, 0
                return
            why = why_unequal((found, {}), (scores, {}))
            why = why and f"{why} than at the start"
        except RAISED as error:
            why = f"the known inputs cannot be answered: {type(error).__name__}: {error}"
        if why:
            yield self._end(kind, why)
        watched.since = 0

    def _weights(self, kind: str) -> int | None:
        """The sum of a network's weights, if torch holds them."""
        weigh = getattr(self.predictors[kind], "weights_sum", None)
        return weigh() if weigh else None

    def _changed(self, kind: str, watched: Watched) -> bool:
        """Whether a network's weights have changed, as far as both sums are known."""
        watched.weigh_ns = self._clock() + WEIGH_EVERY_NS
        found = self._weights(kind)
        return None not in (found, watched.weights) and found != watched.weights

    def _end(self, kind: str, why: str) -> Changed:
        """Let a network answer no more."""
        last = counted(self._watched.pop(kind).since, "image")
        self._unfit[kind] = why = (
            f"{why}; the last {last} that it answered, since its last good check, may have a wrong "
            "class"
        )
        return Changed(kind, "", why)

    def warm_up(self) -> tuple[dict[str, int], int]:
        """Run each network with one input and with batches.

        Returns:
            Kind -> median time of one input in ns; and the longest time of any batch in ns.

        Raises:
            EnvironmentFault: a batch does not fit the device.
        """
        for kind in self.predictors:
            for _ in range(WARMUP_TASKS):
                self.service_ns(kind, 1)
        single_ns = {kind: self.service_ns(kind, 3) for kind in self.predictors}
        batch_ns = [self._try_batches(kind) for kind in self.predictors]
        return single_ns, max([*batch_ns, *single_ns.values()], default=0)

    def service_ns(self, kind: str, runs: int, batch: int = 1) -> int:
        """Median time of `runs` calls of the kind's network with a batch of inputs, in ns."""
        return int(statistics.median(wall for wall, _ in self._times_ns(kind, runs, batch)))

    def measured(self, kind: str, batch: int) -> Measured:
        """Times of the kind's network with a batch, for the message Measured."""
        try:
            for size in self._untried(kind, batch):  # warm up sizes of the job's last messages too
                self.service_ns(kind, 1, size)
            times = self._times_ns(kind, MEASURED_RUNS, batch)
        except Exception as error:
            if not is_of_device(error):
                raise
            return Measured(0, None, fits=False)
        finally:
            give_memory_back()  # the job's batches may be far smaller than those tried
        on_cpu = self.predictors[kind].device == "cpu"
        cpu_ns = int(statistics.median(cpu for _, cpu in times)) if on_cpu else None
        return Measured(min(wall for wall, _ in times), cpu_ns)

    def await_runtimes(self, folders: Mapping[str, str], steady: Collection[str] = ()) -> None:
        """From now on `changes` looks for networks that are made for other runtimes.

        Args:
            folders: kind -> the folder.
            steady: kinds whose folders are complete. If such a network cannot be loaded, or gives
                other answers to the known images, it answers no more.
        """
        self._steady = steady
        for kind, folder in folders.items():
            if kind in self.predictors:
                self._awaited[kind] = Path(folder)

    def changes(self) -> Iterator[Changed]:
        """Change over to a runtime whose folder is complete; called between two batches.

        Yields:
            What rank 0 must know.
        """
        for kind, trial in list(self._trials.items()):
            if trial.verdict is not None:
                del self._trials[kind]
                yield Changed(kind, self.predictors[kind].runtime, trial.verdict)
        for kind, watched in list(self._watched.items()):
            if watched.since >= KNOWN_EVERY and kind not in self._trials:
                yield from self._check(kind, watched)
            elif self._clock() >= watched.weigh_ns and self._changed(kind, watched):
                device = self.predictors[kind].device
                yield self._end(kind, f"its weights have changed in the memory of {device}")
        if not self._awaited or self._clock() < self._look_ns:
            return
        self._look_ns = self._clock() + LOOK_EVERY_NS
        for kind, folder in list(self._awaited.items()):
            record = read_record(folder)
            if record is None and kind not in self._steady:
                continue
            del self._awaited[kind]
            begun = None
            if record is not None:
                begun = change_over(self.predictors[kind], folder, record, self._threads)
            if begun is not None:
                self._trials[kind] = begun
            if kind in self._steady:
                yield from self._known(kind, folder, record)

    def _known(self, kind: str, folder: Path, record: Record | None) -> Iterator[Changed]:
        """Answer the images whose answers a folder has; others than these end all answers."""
        predictor = self.predictors[kind]
        if record is None:
            why = f"{folder} has no network, or cannot be read; set {CACHE} to a shared folder"
        elif (trial := self._trials.get(kind)) and trial.verdict and record.precision != "float32":
            why = trial.verdict
        else:
            why = why_unknown(predictor, folder)
        if why:
            self._trials.pop(kind, None)
            self._unfit[kind] = why
            self._watched.pop(kind, None)
            yield Changed(kind, "", why)
        elif kind not in self._watched:
            self._watch(kind, self.service_ns(kind, 1))

    def _times_ns(self, kind: str, runs: int, batch: int) -> list[tuple[int, int]]:
        """(wall-clock time, processor time) of each call, in ns."""
        inputs = np.zeros((batch, *self.input_shapes[kind]), self.input_dtypes[kind])
        if is_foreign(self._welcome.networks[kind]):  # a user's code may refuse a blank image
            rng = np.random.default_rng(0)
            inputs[:] = rng.integers(0, 256, inputs.shape[1:], np.uint8)
        times: list[tuple[int, int]] = []
        until_ns = self._clock() + MEASURED_NS
        while len(times) < runs and (self._clock() < until_ns or len(times) < LEAST_MEASURED):
            start_ns, cpu_ns = self._clock(), self._cpu_clock()
            self._call(kind, inputs)
            cpu_ns = self._cpu_clock() - cpu_ns
            times.append((self._clock() - start_ns, cpu_ns))
        return times

    def _call(self, kind: str, inputs: np.ndarray) -> None:
        """Run the network. An error of a user's code is raised as DataFault."""
        try:
            self.predictors[kind].predict(self._fitted(kind, inputs))
        except RAISED as error:
            spec = self._welcome.networks[kind]
            if not is_foreign(spec) or is_of_device(error) or isinstance(error, CollageError):
                raise
            raise raised_at_first(spec, inputs.dtype, inputs.shape, error) from error

    def _fitted(self, kind: str, inputs: np.ndarray) -> np.ndarray:
        """The inputs in the size that the kind's network gets: (n, H, W, C) uint8 -> (n, px, px, C)
        uint8 for a stage with an input size of its own."""
        px = self._px.get(kind)
        return inputs if px is None else resized(inputs, px)

    def _try_batches(self, kind: str) -> int:
        """Run batches of 2, 4, 8 ... up to the largest, to warm up; time of the last in ns."""
        took_ns = 0
        for size in self._untried(kind, self._welcome.batch):
            try:
                took_ns = self.service_ns(kind, 1, size)
            except Exception as error:
                if not is_of_device(error):
                    raise
                fits = self._tried.get(kind, 1)
                advice = "" if KIND[kind].batched else f": --batch {fits}"
                raise EnvironmentFault(
                    f"its device cannot run the {kind} network with a batch of {size} "
                    f"({type(error).__name__}: {error}); a batch of {fits} fits{advice}"
                ) from error
        return took_ns

    def _untried(self, kind: str, most: int) -> Iterator[int]:
        """The sizes 2, 4, 8 ... `most` that were not run before.

        A GPU captures a graph for each of them, so that it captures none during the job.
        """
        while (fits := self._tried.get(kind, 1)) < most:
            yield min(2 * fits, most)
            self._tried[kind] = min(2 * fits, most)

    def begin(
        self, tasks: Sequence[WireTask], inputs: Sequence[np.ndarray]
    ) -> Computation[list[WireResult]]:
        """Begin to compute tasks of one kind, as one batch. An exception fails a task, not the job.

        A batch that raises is run again in halves, down to one input. So a bad input, or a batch
        that no longer fits the device's memory, fails no other image. A task also fails if none of
        its rows of scores is finite, so that a broken GPU shows by its failures.

        Args:
            tasks: of one kind.
            inputs: for each task, (n, H, W, C) uint8 or (n, ...) other items.
        """
        predictor, unfit = self.predictors[tasks[0].kind], self._unfit.get(tasks[0].kind)
        if unfit is not None:
            return Computation(lambda: [failed(task, unfit) for task in tasks])
        if (watched := self._watched.get(tasks[0].kind)) is not None:
            watched.since += sum(len(task.items) for task in tasks)
        who = ANSWERERS.index(predictor.runtime)  # before it answers: a trial may end in between
        try:
            begun = predictor.begin(self._fitted(tasks[0].kind, joined(inputs)))
        except RAISED as error:
            why = f"{type(error).__name__}: {error}"
            return Computation(partial(self._apart, tasks, inputs, why))
        return Computation(partial(self._results, tasks, inputs, begun.finish, who), begun.done)

    def _results(
        self,
        tasks: Sequence[WireTask],
        inputs: Sequence[np.ndarray],
        finish: Callable[[], Answer],
        who: int,
    ) -> list[WireResult]:
        try:
            scores, given = finish()  # (n, cells, classes), and (n, ...) each
            results = []
            for task, part, end in zip(tasks, inputs, accumulate(map(len, inputs)), strict=True):
                own = slice(end - len(part), end)
                kept = {name: values[own] for name, values in given.items()}
                results.append(self._result(task, scores[own], kept))
                results[-1].runtime = who
            return results
        except RAISED as error:
            why = f"{type(error).__name__}: {error}"
        return self._apart(tasks, inputs, why)  # not in `except`: the error holds the batch

    def _apart(
        self, tasks: Sequence[WireTask], inputs: Sequence[np.ndarray], why: str
    ) -> list[WireResult]:
        """Answer tasks whose batch has raised, by running its halves."""
        if len(tasks) > 1:
            halves = _halves(len(tasks))
            return [each for own in halves for each in self._ask(tasks[own], inputs[own])]
        task = tasks[0]
        if KIND[task.kind].encoded or len(inputs[0]) == 1:
            return [failed(task, why)]
        halves = _halves(len(task.items))
        found = [
            self._ask([replace(task, items=task.items[own])], [inputs[0][own]])[0] for own in halves
        ]
        return [_answer_of(task, found)]

    def _ask(self, tasks: Sequence[WireTask], inputs: Sequence[np.ndarray]) -> list[WireResult]:
        return self.begin(tasks, inputs).finish()

    def _result(
        self, task: WireTask, scores: np.ndarray, given: Mapping[str, np.ndarray]
    ) -> WireResult:
        """The answer to a task, with the vectors that the user keeps."""
        by = self._scores.get(task.kind, TOP)
        result = result_of(task, scores, by, self._welcome.agree_on)
        if self._layout is None or result.status == FAILED:
            return result
        flat = scores.reshape(-1, scores.shape[-1])  # (n or cells, classes)
        asked = flat[[cell for _, cell in task.items]] if KIND[task.kind].encoded else flat
        result.vectors = self._welcome.extras.pack(self._layout, asked, given)  # (items, floats)
        return result


def joined(inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The inputs of several tasks as one batch, (n, H, W, C) uint8 or (n, ...) other items.

    Mostly they are neighbouring views of one array (the message, or what was read for it). Then
    nothing is copied, unless the values are not aligned in the message.
    """
    batch = inputs[0] if len(inputs) == 1 else _joined(inputs)
    return batch if batch.flags.aligned else batch.copy()


def _joined(inputs: Sequence[np.ndarray]) -> np.ndarray:
    base = inputs[0].base
    if isinstance(base, np.ndarray) and base.flags.c_contiguous:
        starts = [_address(own) - _address(base) for own in inputs]
        ends = list(accumulate((own.nbytes for own in inputs), initial=starts[0]))
        views = all(own.base is base and own.flags.c_contiguous for own in inputs)
        if views and starts == ends[:-1]:
            whole = base.reshape(-1).view(np.uint8)[starts[0] : ends[-1]]
            return whole.view(inputs[0].dtype).reshape(-1, *inputs[0].shape[1:])
    return np.concatenate(inputs)


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def result_of(
    task: WireTask, scores: np.ndarray, by: str = TOP, agree_on: str = CLASS
) -> WireResult:
    """The answer to a task. The task has failed if no row of its scores is finite.

    Args:
        task: what was asked.
        scores: (n, 1, classes) for a single task or a batch, a row per item; (1, cells, classes)
            for a collage, a row per cell.
        by: what the score of an answer is, one of `stages.SCORES`.
        agree_on: what of an answer is compared with others, CLASS or TOP5.
    """
    kind = KIND[task.kind]
    flat = scores.reshape(-1, scores.shape[-1])  # (n or cells, classes)
    answers = decode(flat, margin=by == MARGIN)
    also = best_five(flat).tolist() if agree_on == TOP5 else [0] * len(flat)
    records = [
        None if found is None else Score(*found, more)
        for found, more in zip(answers, also, strict=True)
    ]
    if not any(records) and not np.isfinite(flat).all(axis=1).any():
        return failed(task, NOT_FINITE)
    places = [cell for _, cell in task.items] if kind.encoded else range(len(task.items))
    return WireResult(task.task, ANSWERED, cells=tuple([records[place] for place in places]))


def _halves(count: int) -> tuple[slice, slice]:
    return slice(0, count // 2), slice(count // 2, count)


def _answer_of(task: WireTask, halves: Sequence[WireResult]) -> WireResult:
    """The answer to a task of several images, by the answers to its halves."""
    answered = [half for half in halves if half.status == ANSWERED]
    if not answered:
        return failed(task, halves[0].reason)
    places = _halves(len(task.items))
    cells: list[Score | None] = [None] * len(task.items)
    vectors = None
    if answered[0].vectors is not None:
        widest = max(half.vectors.shape[1] for half in answered if half.vectors is not None)
        vectors = np.zeros((len(cells), widest), np.float32)  # 0 where an image has failed
    for half, own in zip(halves, places, strict=True):
        if half.status == ANSWERED:
            cells[own] = half.cells
            if vectors is not None and half.vectors is not None:
                vectors[own, : half.vectors.shape[1]] = half.vectors
    return WireResult(
        task.task, ANSWERED, runtime=answered[0].runtime, cells=cells, vectors=vectors
    )


def failed(task: WireTask, reason: str) -> WireResult:
    """The answer to a task that failed."""
    return WireResult(task.task, FAILED, reason=reason)


def is_of_device(error: BaseException) -> bool:
    """Whether a device or its memory is at fault; by name, because torch may not be loaded."""
    return any(base.__name__ in DEVICE_ERRORS for base in type(error).__mro__)


def gpus_here() -> int:
    """Number of GPUs that this process sees. Torch (2 s to import) is asked only with a driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        if not os.path.exists("/dev/kfd"):  # AMD's
            return 0
    import torch

    return torch.cuda.device_count()


def keep_freed_memory() -> None:
    """Let this process keep the memory that a batch frees, for the next batch.

    glibc gives large blocks back to the kernel, which fills their pages with zeros when they are
    used again. This caused up to 900 page faults per image, a third of a small network's processor
    time.
    """
    with suppress(AttributeError, OSError):  # another C library, or none that can be opened
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        any(mallopt(M_MMAP_THRESHOLD, nbytes) for nbytes in KEPT_BLOCK_BYTES)


def give_memory_back() -> None:
    """Give the kernel the memory that `keep_freed_memory` has kept."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def free_networks() -> None:
    """Free the networks to which nothing refers any more, on their device too."""
    gc.unfreeze()  # see `uncollected`
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    give_memory_back()


@contextmanager
def uncollected() -> Iterator[None]:
    """Hide objects that are made inside from Python's cycle collector, now and later.

    Torch alone makes 165,000 objects that stay. Visiting them again and again takes a tenth of
    torch's import time, and each full collection during the job would stop the rank for 0.08 s.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
