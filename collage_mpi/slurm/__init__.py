"""Renders Slurm job scripts from settings and templates.

The scripts in jobs/slurm are rendered with the default settings, which a test checks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from collage_mpi.errors import UsageError
from collage_mpi.settings.run_settings import RedundancySettings
from collage_mpi.system.fields import Settings, same, setting
from collage_mpi.system.printable import counted

DEFAULT_SETUP = ("# module load <your MPI>", 'source "${CM_VENV:-.venv}/bin/activate"')
_TEMPLATES = Path(__file__).with_name("templates")  # shell, for jinja
RUN_KINDS = ("run_one_node", "run_nodes", "run_teams")  # all three by one template

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class ScriptKind:
    """The defaults of one kind of script.

    Attributes:
        nodes: number of nodes for the ranks with networks.
        gpus_per_node: None: one for each rank of the fullest node.
        time: time limit, in Slurm's format.
        array: indices of the array tasks; None for a job without an array.
    """

    nodes: int = 1
    gpus_per_node: int | None = 0
    time: str = "02:00:00"
    array: str | None = None


KINDS: dict[str, ScriptKind] = {
    "prepare": ScriptKind(time="00:20:00", array="0-1"),
    "train": ScriptKind(gpus_per_node=1, time="04:00:00", array="0-1"),
    "run_one_node": ScriptKind(gpus_per_node=4),
    "run_nodes": ScriptKind(nodes=4, gpus_per_node=None),
    "run_teams": ScriptKind(nodes=4, gpus_per_node=4),
    "classify": ScriptKind(gpus_per_node=4),
    "analyse": ScriptKind(time="00:20:00"),
}
_ARRAY_NOTE = {
    "prepare": "training and test images",
    "train": "single classifier and collage network",
}


@dataclass(frozen=True, repr=False)
class SlurmSettings(Settings):
    """The settings of a job script. See each field's help line.

    Raises:
        UsageError: a value that Slurm or the job cannot take.
    """

    account: str = setting("<account>", "account that pays for the job")
    partition: str = setting("<partition>", "partition with the nodes")
    nodes: int | None = setting(
        None,
        "number of nodes for the ranks with networks",
        unset="depends on the script",
        at_least=1,
    )
    gpus_per_node: int | None = setting(
        None,
        "GPUs of each node, shared by its ranks; 0 for none",
        unset="one for each rank",
        at_least=0,
    )
    cpus_per_task: int = setting(4, "cores of each rank", at_least=1)
    teams: int | None = setting(
        None,
        "number of teams in run_teams, each with a coordinator",
        unset="one for each node",
        at_least=1,
    )
    time: str | None = setting(None, "time limit, e.g. 02:00:00", unset="depends on the script")
    mem_per_cpu: str | None = setting(
        None, "memory for each core, e.g. 4G", unset="the default of the site"
    )
    array: str | None = setting(
        None, "indices of the array tasks, e.g. 0-11%2", unset="depends on the script"
    )
    side: int = same(RedundancySettings, "side")
    singles: int | None = same(RedundancySettings, "singles")
    collage_ranks: int = same(RedundancySettings, "collage_ranks", at_least=1)
    launcher: str = setting(
        "pmix", "how the ranks are started", choices=("pmix", "pmi2", "mpiexec")
    )
    setup: tuple[str, ...] = setting(
        DEFAULT_SETUP,
        "shell line that makes collage-mpi and its MPI available, such as 'module load openmpi'",
        metavar="LINE",
        repeated=True,
    )
    directives: tuple[str, ...] = setting(
        (),
        "additional #SBATCH option, e.g. --qos=long",
        metavar="LINE",
        flag="--directive",
        repeated=True,
    )

    def _check(self) -> None:
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


@dataclass(frozen=True)
class ScriptLayout:
    """Numbers that follow from the settings, for one kind of script.

    Attributes:
        nodes: number of nodes for the ranks with networks.
        teams: number of teams, each with a coordinator; 1 without teams.
        tasks_per_node: task slots of each node; some of the last node may stay unused.
        gpus_per_node: number of GPUs of each node.
        limit_hours: the time limit.
    """

    nodes: int
    teams: int
    tasks_per_node: int
    gpus_per_node: int
    limit_hours: float


def layout(kind: str, settings: SlurmSettings) -> ScriptLayout:
    """The tasks and GPUs of each node.

    Tasks are given per node and not in total, because a requeued job keeps that number. (With
    --ntasks=11 --nodes=4 Slurm packs 7, 2, 1, 1 tasks. Adding --ntasks-per-node=3 spreads them, but
    then the requeued job gets 12 tasks.)

    Raises:
        UsageError: settings that this kind of script cannot take.
    """
    defaults = KINDS[kind]
    nodes = settings.nodes or defaults.nodes
    if kind == "run_one_node" and nodes != 1:
        raise UsageError(f"nodes is {nodes} for run_one_node; use run_nodes")
    teams = _teams(kind, settings, nodes)
    ranks = settings.workers + 1  # of a team
    gpus = settings.gpus_per_node
    if kind == "classify":  # workers: --singles, or one a GPU; and the coordinator
        each = defaults.gpus_per_node if gpus is None else gpus
        workers = settings.singles or nodes * (each or 0) or settings.side**2
        tasks = -(-(workers + 1) // nodes)
    elif kind not in RUN_KINDS:
        tasks = 1
    elif teams > nodes:
        tasks = ranks * (teams // nodes)
    else:
        tasks = -(-ranks // (nodes // teams))
    if gpus is None or kind in ("prepare", "analyse"):
        gpus = tasks if defaults.gpus_per_node is None else defaults.gpus_per_node
    if kind == "train":  # one process, so at most one GPU
        gpus = min(1, gpus)
    return ScriptLayout(nodes, teams, tasks, gpus, hours(settings.time or defaults.time))


def _teams(kind: str, settings: SlurmSettings, nodes: int) -> int:
    """Number of teams on these nodes: each team has whole nodes, or each node whole teams."""
    if kind != "run_teams":
        if settings.teams is not None:
            raise UsageError(f"teams is {settings.teams} for {kind}; use run_teams")
        return 1
    teams = settings.teams or nodes
    if nodes % teams and teams % nodes:
        raise UsageError(
            f"teams is {teams} on {nodes} nodes; {kind} needs whole nodes a team, or whole teams a "
            "node: change one"
        )
    return teams


def hours(text: str) -> float:
    """A Slurm time limit in hours: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        UsageError: the text has another form.
    """
    found = _TIME.fullmatch(text)
    if not found:
        raise UsageError(f"time is {text!r}; it needs the form HH:MM:SS or D-HH:MM:SS")
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    unit_s = 60.0 if days is None and len(numbers) < 3 else 3600.0
    seconds = sum(number * unit_s / 60**place for place, number in enumerate(numbers))
    return float(int(days or 0) * 24 + seconds / 3600)


def render(kind: str, settings: SlurmSettings | None = None, file: str | None = None) -> str:
    """The text of a job script.

    Args:
        kind: one of KINDS.
        settings: None for the defaults.
        file: path of the script, for its header; None: its place in this repository.

    Raises:
        UsageError: an unknown kind, or settings that this kind cannot take.
    """
    settings = settings or SlurmSettings()
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is not a job script. Known are: {', '.join(KINDS)}")
    if settings.array is not None and KINDS[kind].array is None:
        known = ", ".join(name for name, of in KINDS.items() if of.array)
        raise UsageError(f"array is {settings.array!r} for {kind}; it is for {known}")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    defaults, plan = KINDS[kind], layout(kind, settings)
    cores = settings.cpus_per_task
    template = "run" if kind in RUN_KINDS else kind
    return environment.get_template(f"{template}.sbatch").render(
        kind=kind,
        file=file or f"jobs/slurm/{kind}.sbatch",
        s=settings,
        plan=plan,
        cores=cores,
        cost=_cost(kind, settings, plan, cores),
        shares=_shares(kind, settings, plan, cores),
        array=settings.array or defaults.array,
        array_note=_ARRAY_NOTE.get(kind),
        time=settings.time or defaults.time,
        stoppable=kind in ("train", "classify", *RUN_KINDS),
        teamed=kind == "run_teams",
    )


def _cost(kind: str, settings: SlurmSettings, plan: ScriptLayout, cores_of_task: int) -> str:
    cores = plan.nodes * plan.tasks_per_node * cores_of_task
    each = " a task" if KINDS[kind].array else ""
    gpus = plan.nodes * plan.gpus_per_node
    if gpus:
        spent, what = gpus * plan.limit_hours, counted(gpus, "GPU")
        return f"at most {spent:.4g} GPU hours{each} ({what}, {cores} cores)"
    return f"at most {cores * plan.limit_hours:.4g} core hours{each} ({cores} cores)"


def _shares(kind: str, settings: SlurmSettings, plan: ScriptLayout, cores_of_task: int) -> str:
    """How many workers share a GPU, and how much memory each task has, as text."""
    said = ""
    if kind in RUN_KINDS and plan.gpus_per_node:
        workers = -(-plan.tasks_per_node // plan.gpus_per_node)
        said = f"At most {workers} rank{'s' * (workers > 1)} to a GPU. "
    if settings.mem_per_cpu:
        return f"{said}Memory of a task: {cores_of_task} x {settings.mem_per_cpu}"
    return f"{said}Memory: the site's default; render --mem-per-cpu asks for more"
