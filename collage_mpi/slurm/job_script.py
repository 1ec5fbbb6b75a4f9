"""Slurm job scripts from settings: a pure function from a dataclass to text.

Owns: the settings of a job script, what follows from them (tasks a node, GPUs, cost), the
#SBATCH lines and why each is there.
Does not know: the cluster, the bodies of the scripts (slurm_bodies), how a job runs.

The scripts in jobs/slurm are what `render` gives by default; a test holds them equal.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collage_mpi.encoding.grid import MAX_SIDE, MIN_SIDE
from collage_mpi.errors import UsageError
from collage_mpi.slurm.templates import BODIES

MOST = 1_000_000  # nodes, ranks, cores: no cluster has more
LAUNCHERS = ("pmix", "pmi2", "mpiexec")
DEFAULT_SETUP = ("# module load <your MPI>", 'source "${CM_VENV:-.venv}/bin/activate"')
RUN_KINDS = ("run_one_node", "run_nodes", "run_het", "sweep")

_LISTS = ("setup", "directives")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_COMMENT_COLUMN = 38


@dataclass(frozen=True)
class Kind:
    """One of the scripts: its file and the defaults that are its own.

    Attributes:
        file: name in jobs/slurm.
        nodes: that hold networks.
        gpus_per_node: None: one for each rank of the fullest node.
        time: limit, as Slurm writes it.
        array: task numbers, or None for a job that is no array.
    """

    file: str
    nodes: int = 1
    gpus_per_node: int | None = 0
    time: str = "02:00:00"
    array: str | None = None


KINDS: dict[str, Kind] = {
    "prepare": Kind("prepare.sbatch", time="00:20:00", array="0-1"),
    "train": Kind("train.sbatch", gpus_per_node=4, time="04:00:00", array="0-1"),
    "run_one_node": Kind("run_one_node.sbatch", gpus_per_node=4),
    "run_nodes": Kind("run_nodes.sbatch", nodes=4, gpus_per_node=None),
    "run_het": Kind("run_het.sbatch", nodes=3, gpus_per_node=None),
    "sweep": Kind("sweep.sbatch", nodes=4, gpus_per_node=None, array="0-11"),
    "analyse": Kind("analyse.sbatch", time="00:20:00"),
    "chain": Kind("chain.sh"),
}


_ARRAY_NOTE = {
    "prepare": "training and test images",
    "train": "single classifier and collage-CNN",
    "sweep": "points of the file; 0-11%2: two at a time",
}


def _setting(default: Any, help_line: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_line})


@dataclass(frozen=True)
class SlurmSettings:
    """What a job script is made from. See each field's help line.

    Raises:
        UsageError: a value that Slurm or the job could not take.
    """

    account: str = _setting("<account>", "who pays")
    partition: str = _setting("<partition>", "where the nodes are")
    nodes: int | None = _setting(None, "nodes that hold networks")
    gpus_per_node: int | None = _setting(
        None, "GPUs of a node, shared by its ranks; 0 for none (default: one a rank)"
    )
    cpus_per_task: int = _setting(4, "cores of a rank")
    coordinator_cpus: int = _setting(8, "cores of rank 0 in run_het")
    time: str | None = _setting(None, "time limit, e.g. 02:00:00")
    mem_per_cpu: str | None = _setting(None, "memory a core, e.g. 4G (default: the site's)")
    array: str | None = _setting(None, "array tasks, e.g. 0-11%2")
    side: int = _setting(3, "cells along an edge of the collage")
    singles: int | None = _setting(None, "single ranks N (default: side*side)")
    collage_ranks: int = _setting(1, "collage ranks M")
    launcher: str = _setting("pmix", f"how ranks are started: {', '.join(LAUNCHERS)}")
    setup: tuple[str, ...] = _setting(
        DEFAULT_SETUP, "shell lines that make collage-mpi and its MPI available"
    )
    directives: tuple[str, ...] = _setting((), "more #SBATCH options, e.g. --qos=long")

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise UsageError(f"launcher is {self.launcher!r}; known are: {', '.join(LAUNCHERS)}")
        if not MIN_SIDE <= self.side <= MAX_SIDE:
            raise UsageError(f"side is {self.side}; a collage needs {MIN_SIDE} to {MAX_SIDE}")
        for name, least in (
            ("nodes", 1),
            ("gpus_per_node", 0),
            ("cpus_per_task", 1),
            ("coordinator_cpus", 1),
            ("singles", 1),
            ("collage_ranks", 1),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= MOST:
                raise UsageError(
                    f"{name} is {value!r:.40}; it needs at least {least}, at most {MOST:,}"
                )
        for name in ("account", "partition", "time", "mem_per_cpu", "array"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[^\s#]+", value):
                raise UsageError(f"{name} is {value!r}; it needs one word")
        for line in self.directives:
            if not re.fullmatch(r"-[^\x00-\x1f]+", line):
                raise UsageError(f"directive {line!r}; it needs an option of sbatch: --qos=long")
        if self.time is not None:
            hours(self.time)

    @property
    def workers(self) -> int:
        """Ranks that hold a network."""
        return (self.side**2 if self.singles is None else self.singles) + self.collage_ranks

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "settings") -> SlurmSettings:
        """Build from plain values, as a settings file gives them.

        Raises:
            UsageError: an unknown key, a value of the wrong type, or as the class itself.
        """
        hints = typing.get_type_hints(cls)
        for key, value in values.items():
            if key not in hints:
                raise UsageError(f"{source}: unknown setting {key!r}. Known: {', '.join(hints)}")
            if key in _LISTS:
                good = isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
            else:
                good = not isinstance(value, bool) and isinstance(value, hints[key])
            if not good:
                raise UsageError(f"{source}: {key} is {value!r}, which is of the wrong type")
        plain: dict[str, Any] = {k: tuple(v) if k in _LISTS else v for k, v in values.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Layout:
    """What follows from the settings for one kind of script.

    Attributes:
        nodes: that hold networks.
        tasks_per_node: task slots of each; the last may stay unused.
        gpus_per_node: of each.
        limit_hours: the time limit.
    """

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    limit_hours: float


def layout(kind: str, settings: SlurmSettings) -> Layout:
    """Tasks and GPUs a node. Tasks a node, not tasks in all: a requeued job keeps them.

    (With --ntasks=11 --nodes=4 Slurm packs 7, 2, 1, 1; adding --ntasks-per-node=3 spreads
    them, but the requeued job is then told 12 tasks.)
    """
    defaults = KINDS[kind]
    nodes = settings.nodes or defaults.nodes
    if kind == "run_one_node" and nodes != 1:
        raise UsageError(f"nodes is {nodes} for run_one_node; use run_nodes")
    ranks = settings.workers + (kind != "run_het")  # there rank 0 has a node of its own
    tasks = -(-ranks // nodes) if kind in RUN_KINDS else 1
    gpus = settings.gpus_per_node
    if gpus is None or kind in ("prepare", "analyse"):
        gpus = tasks if defaults.gpus_per_node is None else defaults.gpus_per_node
    return Layout(nodes, tasks, gpus, hours(settings.time or defaults.time))


def hours(text: str) -> float:
    """A Slurm time limit in hours: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        UsageError: it is none of these.
    """
    found = _TIME.fullmatch(text)
    if not found:
        raise UsageError(f"time is {text!r}; it needs HH:MM:SS or D-HH:MM:SS")
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    unit_s = 60.0 if days is None and len(numbers) < 3 else 3600.0
    seconds = sum(number * unit_s / 60**place for place, number in enumerate(numbers))
    return float(int(days or 0) * 24 + seconds / 3600)


def render(kind: str, settings: SlurmSettings | None = None) -> str:
    """The text of a job script.

    Raises:
        UsageError: an unknown kind, or settings that this kind cannot take.
    """
    settings = settings or SlurmSettings()
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is no job script; known are: {', '.join(KINDS)}")
    if settings.array is not None and KINDS[kind].array is None:
        known = ", ".join(name for name, of in KINDS.items() if of.array)
        raise UsageError(f"array is {settings.array!r} for {kind}; it is for {known}")
    if kind == "run_het" and settings.launcher == "mpiexec":
        raise UsageError("run_het cannot use launcher mpiexec: only srun spans both parts")
    plan = layout(kind, settings)
    tokens = {
        "DIRECTIVES": "\n".join(_directives(kind, settings, plan)),
        "COST": _cost(kind, settings, plan),
        "SETUP": "\n".join(settings.setup),
        "LAUNCHER": settings.launcher,
        "SIDE": str(settings.side),
        "SINGLES": "$((side * side))" if settings.singles is None else str(settings.singles),
        "COLLAGE_RANKS": str(settings.collage_ranks),
    }
    return re.sub(r"@([A-Z_]+)@", lambda found: tokens[found.group(1)], BODIES[kind])


def _cost(kind: str, settings: SlurmSettings, plan: Layout) -> str:
    """The most that the job can cost: what it holds x its limit."""
    cores = plan.nodes * plan.tasks_per_node * settings.cpus_per_task * _processes(kind, plan)
    cores += settings.coordinator_cpus * (kind == "run_het")
    each = " a task" if KINDS[kind].array else ""
    gpus = plan.nodes * plan.gpus_per_node
    if gpus:
        return f"at most {gpus * plan.limit_hours:g} GPU hours{each} ({gpus} GPUs, {cores} cores)"
    return f"at most {cores * plan.limit_hours:g} core hours{each} ({cores} cores)"


def _directives(kind: str, settings: SlurmSettings, plan: Layout) -> list[str]:
    """All #SBATCH lines, each with its reason."""
    array = settings.array or KINDS[kind].array
    log = "%x-%A_%a.log" if array else "%x-%j.log"
    lines = [_line(f"--job-name={kind}", "as squeue shows it"), *_site(kind, settings)]
    if array:
        lines.append(_line(f"--array={array}", _ARRAY_NOTE[kind]))
    lines += [
        _line("--requeue", "start again after a node failed or a preemption"),
        _line("--open-mode=append", "the log of a second start follows the first's"),
        _line(f"--output={log}", "in the folder of the submission"),
        *(_line(option, "your own") for option in settings.directives),
    ]
    if kind == "train" or kind in RUN_KINDS:
        why = "120 s before the limit: the shell below passes it on"
        lines.append(_line("--signal=B:USR2@120", why))
    if kind == "run_het":
        lines += _part(settings, 1, 1, settings.coordinator_cpus, 0)
        lines += ["#SBATCH hetjob", *_site(kind, settings)]
    cores = settings.cpus_per_task * _processes(kind, plan)
    lines += _part(settings, plan.nodes, plan.tasks_per_node, cores, plan.gpus_per_node)
    return lines


def _processes(kind: str, plan: Layout) -> int:
    """In one task: torchrun is a task, and starts a process a GPU."""
    return max(1, plan.gpus_per_node) if kind == "train" else 1


def _site(kind: str, settings: SlurmSettings) -> list[str]:
    return [
        _line(f"--account={settings.account}", "site: who pays"),
        _line(f"--partition={settings.partition}", "site: where such nodes are"),
        _line(f"--time={settings.time or KINDS[kind].time}", "the limit; what is done is kept"),
    ]


def _part(settings: SlurmSettings, nodes: int, tasks: int, cores: int, gpus: int) -> list[str]:
    """Nodes and what is wanted of each; a heterogeneous job has two such parts."""
    lines = [
        _line(
            f"--nodes={nodes}", "all on one node" if nodes == 1 else "the ranks are spread evenly"
        ),
        _line(
            f"--ntasks-per-node={tasks}",
            "one process there" if tasks == 1 else "slots for the 1 + N + M ranks",
        ),
        _line(f"--cpus-per-task={cores}", "cores of each, which are its threads"),
    ]
    if settings.mem_per_cpu:
        lines.append(_line(f"--mem-per-cpu={settings.mem_per_cpu}", "memory of each core"))
    if gpus:
        lines.append(
            _line(f"--gpus-per-node={gpus}", "all ranks there see all; each takes its own")
        )
    return lines


def _line(option: str, why: str = "") -> str:
    return f"#SBATCH {option:<{_COMMENT_COLUMN - 8}} # {why}" if why else f"#SBATCH {option}"
