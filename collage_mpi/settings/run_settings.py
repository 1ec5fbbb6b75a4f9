"""The settings of a run: one typed object, built from the parts that the other modules declare.

Rules between settings of different parts are here, and the profile `paper`: a named set of
defaults, which settings of the user override. A run does not record its profile; only the effective
settings are recorded and compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from collage_mpi.core.schemes import scheme_class
from collage_mpi.core.settings import CoreSettings
from collage_mpi.encoding.vectors import EMBEDDINGS, OUTPUTS
from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import (
    BACKUP,
    ENCODED_KINDS,
    KIND,
    KINDS,
    SINGLE,
    SPARE_KINDS,
    TABLE,
)
from collage_mpi.models.named import is_foreign, is_function, is_null
from collage_mpi.removed import removed_setting
from collage_mpi.settings.inputs import InputSettings, NetworkSettings
from collage_mpi.settings.pace import PaceSettings, SurvivalSettings
from collage_mpi.settings.redundancy import Placement, RedundancySettings, ms_to_ns
from collage_mpi.system.fields import about, by_name, names
from collage_mpi.system.printable import shown
from collage_mpi.workload.straggler_settings import StragglerSettings

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.models.info import NetworkInfo

# Settings that do not change the rows.
NOT_OF_ROWS = ("out", "shared_out", "trust_network", *names(SurvivalSettings))
# Most images in the job at a time in an open loop, at least, and for each single rank.
OPEN_WINDOW, OPEN_WINDOW_A_RANK = 4096, 8
MAX_ATTEMPTS = 3  # tasks of the main kind that may fail for an image before its error row
AUDIT_SEED = 0  # of the draw of audited images
MOST_OF_A_LEASE = 4096  # most images of a batch with teams, whose places fit one message
R = TypeVar("R", bound="RunSettings")
PROFILE = "profile"  # the key, in files and for flags

Json = dict[str, Any]

# Every setting of ranks, acceptance, late images and pace: no default of a later version changes
# the paper's layout.
PROFILES: dict[str, Json] = {
    "paper": {
        "scheme": "collage",
        "side": 3,
        "singles": None,
        "collage_ranks": 1,
        "assign": "turn",
        "endgame": "off",
        "placement": "fixed",
        "confidence": 0.0,
        "agree": None,
        "deadline_ms": None,
        "audit": 0.0,
        "hedge_ms": None,
        "linger_ms": None,
        "rate": None,
        "arrival_file": None,
        "between": "carry",
        "depth": 1,
        "batch": 1,
        "credit": 2,
        "warmup_groups": 2,
    },
}


def profile_of(given: Mapping[str, Any], source: str) -> Json:
    """The settings of the profile that the given settings name; {} if they name none.

    Raises:
        UsageError: there is no such profile.
    """
    name = given.get(PROFILE)
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PROFILES:
        gone = isinstance(name, str) and removed_setting(PROFILE, name)
        known = f"profile is {shown(name)}; known is {', '.join(PROFILES)}"
        raise UsageError(f"{source}: {gone or known}")
    return PROFILES[name]


def with_profile(given: Mapping[str, Any], source: str) -> Json:
    """The given settings, completed by those of the profile that they name.

    Raises:
        UsageError: there is no such profile.
    """
    named = {key: value for key, value in given.items() if key != PROFILE}
    return {**profile_of(given, source), **named}


@dataclass(frozen=True, repr=False)
class RunSettings(  # fields, and groups of --help, come in the order of the bases from the last on
    StragglerSettings,
    SurvivalSettings,
    PaceSettings,
    RedundancySettings,
    NetworkSettings,
    InputSettings,
):
    """Everything that decides what a run does. See each field's help line.

    A setting that takes several values, such as shards, also accepts a single one. A path may be a
    `Path`.

    Raises:
        UsageError: a value is out of range or contradicts another one.
    """

    def _check(self) -> None:
        if self.teams > 1 and self.open_loop:
            raise UsageError(
                f"teams is {self.teams} in an open loop; several teams work only in the closed "
                "loop, where a team takes images when it has room: leave out --teams, or --rate "
                "and --arrival-file"
            )
        if self.teams > 1 and self.batch_size * self.group_size > MOST_OF_A_LEASE:
            raise UsageError(
                f"batch is {self.batch} with teams {self.teams} and side {self.side}: the most is "
                f"{MOST_OF_A_LEASE // self.group_size}"
            )
        encoded = next((kind for kind in ENCODED_KINDS if self.uses(kind)), None)
        if self.save == EMBEDDINGS and encoded is not None:
            raise UsageError(
                f"save is embeddings with scheme {self.scheme}, but the {encoded} network's "
                "answers have no embedding of a single image: choose --save scores, or scheme "
                "none, replicate or hedge"
            )
        if self.save == OUTPUTS:
            self._check_map(encoded)

    def _check_map(self, encoded: str | None) -> None:
        if self.top_k or (self.single and not is_function(self.single)):
            raise UsageError(
                f"save is outputs with single {self.single} and top_k {self.top_k}: outputs come "
                "from a Python class of your own, FILE.py:CLASS, which gives no classes of images"
            )
        if encoded is not None or self.takes_threshold:
            raise UsageError(
                f"scheme {self.scheme} decides by the scores of classes, and a mapped function "
                "gives none: choose scheme none, replicate or hedge"
            )

    @classmethod
    def from_mapping(cls: type[R], values: Mapping[str, Any], source: str = "settings") -> R:
        """Build from plain values; `profile` gives defaults for missing ones.

        Raises:
            UsageError: as `Settings.from_mapping`; also for an unknown profile, and for values
                that contradict the profile.
        """
        values = by_name(cls, values, source)
        sets = profile_of(values, source)
        try:
            return super().from_mapping(with_profile(values, source), source)
        except UsageError as error:
            theirs = ", ".join(key for key in sets if key not in values)
            if not theirs:
                raise
            raise UsageError(f"{error} (profile {values[PROFILE]} sets {theirs})") from error

    @classmethod
    def for_world(
        cls: type[R], values: Mapping[str, Any], source: str, world_size: int | None
    ) -> R:
        """As `from_mapping`, with the number of single ranks that fits the world, if all ranks
        except the coordinators are single ranks and `values` does not say how many there are.

        Args:
            values: plain values.
            source: their name, for messages.
            world_size: number of ranks; None if no ranks were started.

        Raises:
            UsageError: as `from_mapping`.
        """
        settings = cls.from_mapping(values, source)
        size = (world_size or 0) // settings.teams
        if size < 2 or settings.singles is not None or not settings.only_singles:
            return settings
        if size in (settings.world_size, settings.world_size + settings.collage_ranks):
            return settings  # the second keeps collage ranks idle, see `place`
        return cls.from_mapping({**values, "singles": size - 1}, source)

    def require_inputs(self) -> None:
        """Raise UsageError unless shards, networks and the output are named."""
        for name in ("shards", SINGLE, "out"):
            if not getattr(self, name) and (self.uses_single or name != SINGLE):
                raise UsageError(f"--{name} is missing: collage-mpi run --help shows an example")
        for kind in KINDS:
            if self.uses(kind) and not self.network(kind):
                raise UsageError(
                    f"--{kind} is missing: scheme {self.scheme} needs a {kind} network"
                )

    @property
    def by_place(self) -> bool:
        """Whether tasks refer to images by their place in the shards, so that workers read them.

        With one group at a time (depth 1) no rank would compute while a worker reads. So rank 0
        reads ahead.
        """
        return self.pixels == "workers" or (self.pixels == "auto" and self.depth != 1)

    def at_batch(self, size: int) -> RunSettings:
        """These settings with a batch of `size` groups, if the batch is auto."""
        return replace(self, batch=size) if self.batch is None else self

    @property
    def launch_size(self) -> int:
        """Number of ranks to launch, for all teams."""
        return self.teams * self.world_size

    def place_team(self, world_size: int, team: int, launcher_size: int | None) -> Placement:
        """The placement of one team, with ranks numbered in the whole world.

        Args:
            world_size: number of ranks of the whole world.
            team: number of the team, from 0.
            launcher_size: as in `place`, for the whole world.

        Raises:
            EnvironmentFault: as in `place`; also if the world cannot be split into this many equal
                teams.
        """
        if self.teams == 1:
            return self.place(world_size, launcher_size)
        size, rest = divmod(world_size, self.teams)
        if not rest and size > 1 and (launcher_size or world_size) == world_size:
            with suppress(EnvironmentFault):  # the error below is about the whole world
                return replace(self.place(size), coordinator=team * size)
        raise EnvironmentFault(
            f"--teams {self.teams} with {world_size} ranks: needed are {self.teams} teams of "
            + ("equal size" if self.any_size else f"{self.world_size} ranks")
            + f": launch with -n {self.launch_size}"
        )

    def arrival_times_ns(self, images: int) -> np.ndarray | None:
        """(images,) int64 ns since the start, non-decreasing; None in a closed loop.

        Raises:
            EnvironmentFault, DataFault: as in `arrivals.load_times_ns`.
        """
        from collage_mpi.workload.arrivals import load_times_ns, poisson_times_ns

        if self.rate is not None:
            return poisson_times_ns(self.rate, self.straggler_seed, images)
        return load_times_ns(self.arrival_file, images) if self.arrival_file else None

    @property
    def paced(self) -> bool:
        """Whether a group enters the job when a rank is idle (depth auto)."""
        held = self.open_loop or self.between == "drain" or self.assign != "pull"
        return self.depth is None and not held

    @property
    def messages(self) -> int:
        """Messages that a rank may have at a time."""
        return self.credit or (1 if self.open_loop else scheme_class(self.scheme).credit)

    def groups_in_flight(self, workers: int) -> int:
        """The largest depth of the core: the setting, or in an open loop the groups of the
        most images that may be in the job at a time.

        If groups enter when ranks are idle, each message may belong to another group.
        """
        if self.paced:
            return self.messages * max(self.world_size, workers + 1)
        if not self.open_loop:
            return self.depth or 1
        return -(-max(OPEN_WINDOW, OPEN_WINDOW_A_RANK * self.n_singles) // self.group_size)

    @property
    def audit_share(self) -> float:
        """Share of the images whose accepted answer is compared with the single network's."""
        backup, single = (Path(self.network(kind)).resolve() for kind in (BACKUP, SINGLE))
        itself = self.uses(BACKUP) and backup == single
        return self.audit if self.takes_threshold and not itself else 0.0

    def audit_facts(self) -> dict[str, Any]:
        """The manifest's facts about audits; {} without audits."""
        share = self.audit_share
        return {"audit": {"share": share, "seed": AUDIT_SEED}} if share else {}

    def most_inputs(self, kind: str) -> int:
        """Most inputs of a message to a rank of the kind."""
        return self.batch_size * (self.group_size if KIND[kind].batched else 1)

    def batch_costs(self) -> dict[str, float]:
        """Kind -> cost of a further input of a batch, relative to the first, if not measured.

        By default a further input costs as much as the first, so that a batch gains nothing.
        """
        cost = 1.0 if self.batch_cost is None else self.batch_cost
        batched = [
            kind
            for kind in KINDS
            if self.uses(kind) and (self.batch is None or self.most_inputs(kind) > 1)
        ]
        return dict.fromkeys(batched, cost)

    @property
    def in_whole_batches(self) -> bool:
        """Whether a run may be one task."""
        return self.scheme == "none" and self.assign == "pull" and self.batch_size > 1

    def core_settings(
        self, workers: int, ratio: float, batch_costs: Mapping[str, float]
    ) -> CoreSettings:
        """The core's settings for a world or one team, in its units.

        Args:
            workers: number of ranks without the coordinator.
            ratio: service time of the scheme's other network divided by that of the single network.
            batch_costs: kind -> time of a further input of a batch divided by that of the first.
        """
        return CoreSettings(
            group_size=self.group_size,
            ranks=workers,
            costs=dict.fromkeys(SPARE_KINDS, ratio),
            batch_costs=batch_costs,
            batch=self.batch_size,
            together=not self.open_loop,
            depth=self.groups_in_flight(workers),
            paced=self.paced,
            drain=self.between == "drain",
            linger_ns=ms_to_ns(self.linger_ms),
            max_attempts=MAX_ATTEMPTS,
            endgame=self.endgame == "on",
        )

    def digest(self) -> str:
        """A hash of the settings that decide the rows."""
        rows = {k: v for k, v in self.to_dict().items() if k not in NOT_OF_ROWS}
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


# Settings that a later session may change: paths, output, numbers of ranks, and how often an image
# is tried. Shards are compared by content, so they may have moved.
FREE_SETTINGS = frozenset(
    {"resume", "shards", "device", *NOT_OF_ROWS, *(kind.ranks for kind in TABLE)}
)
# Settings that name files. Two paths are the same if their content is.
FILE_SETTINGS = tuple(
    spec.name for spec in fields(RunSettings) if about(spec).shipped and spec.name != "shards"
)


def with_accept_of(
    settings: RunSettings, single: NetworkInfo | None, judged: NetworkInfo | None
) -> RunSettings:
    """The settings with `accept auto` replaced by the policy that fits these networks.

    The policy is `confident` with the judged network's threshold, if the threshold was measured
    with this single network, and otherwise `confident` with the confidence 1. With `agree` the run
    itself chooses the threshold later. Every answer counts if a network is null, or if the single
    network is its own first stage, because no accuracy can be lost.

    Args:
        settings: of the run.
        single: the single network's facts; None if it has none.
        judged: the facts of the network of kind `settings.judged`; None if it has none.

    Raises:
        UsageError: the scheme needs a threshold, and the judged network has none.
    """
    if settings.confidence is not None or settings.agree is not None or not settings.takes_policy:
        return settings
    name = settings.network(settings.judged)
    if is_null(settings.single) or is_null(name) or name == settings.single:
        return with_every_answer(settings)
    spec = None if judged is None else judged.accept
    if spec is not None and single is not None and spec.single == single.fingerprint:
        return replace(settings, confidence=spec.confidence)
    if not settings.takes_threshold:
        return replace(settings, confidence=1.0)
    measure = (
        ""
        if any_foreign(settings)
        else (
            f"`collage-mpi weights threshold --shards LABELLED --single {settings.single} "
            f"--{settings.judged} {name}` finds one; "
        )
    )
    raise UsageError(
        f"scheme {settings.scheme} needs a threshold, from which on an answer of "
        f"--{settings.judged} {name} counts, and this network has none for this single network. "
        f"{measure}--agree 0.99 lets the run choose one; "
        "or set it by hand with --confidence 0.9"
    )


def any_foreign(settings: RunSettings) -> bool:
    """Whether a network that a threshold concerns has no weights file of this package."""
    return any(is_foreign(settings.network(kind)) for kind in (SINGLE, settings.judged))


def with_every_answer(settings: RunSettings) -> RunSettings:
    """The settings changed so that every answer of a collage counts at once."""
    return replace(settings, confidence=0.0, agree=None)
