"""The settings for when images arrive, how groups follow each other, and surviving lost ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from collage_mpi.errors import UsageError
from collage_mpi.system.fields import AUTO, Settings, setting

MOST_BATCH = 1024  # no network is known that gains from a larger batch
MOST_TEAMS = 4096  # a run has at most 65,535 sessions, and each team of a launch is one

_pace = partial(setting, group="pace")
_survival = partial(setting, group="lost ranks, progress")


@dataclass(frozen=True, repr=False)
class ArrivalSettings(Settings):
    """When images arrive. See each field's help line."""

    rate: float | None = _pace(
        None,
        "open loop: this many images a second enter the job at random times (Poisson), however "
        "busy the ranks are",
        unset="as earlier images are answered, see --depth",
        at_least=1e-6,
    )
    arrival_file: str | None = _pace(
        None,
        "open loop: images enter the job at the times of this file, in seconds since the start; "
        ".npy, or text with one number a line",
        metavar="FILE",
        shipped=True,
    )

    def _check(self) -> None:
        if self.rate is not None and self.arrival_file is not None:
            raise UsageError(
                "rate and arrival_file both say when images arrive: leave out --rate or "
                "--arrival-file"
            )

    @property
    def open_loop(self) -> bool:
        """Whether images arrive at given times."""
        return self.rate is not None or self.arrival_file is not None


@dataclass(frozen=True, repr=False)
class PaceSettings(ArrivalSettings):
    """How groups follow each other."""

    between: str = _pace(
        "carry",
        "what happens before the next group. carry: a busy rank stays busy. drain: wait until "
        "all ranks are idle",
        choices=("carry", "drain"),
    )
    depth: int | None = _pace(
        None,
        "closed loop: groups, or batches of groups, in the job at a time. auto: with --assign "
        "pull the next group enters when a rank has nothing to do; otherwise 1",
        unset="auto",
        at_least=1,
        auto=True,
    )
    batch: int | None = _pace(
        1,
        "number of groups that are sent together. A rank gets its tasks of all these groups in "
        "one message and runs them as one batch. auto: measured when the job starts, for the most "
        "images a second (docs/speed.md)",
        unset=AUTO,
        at_least=1,
        auto=True,
        at_most=MOST_BATCH,
    )
    credit: int | None = _pace(
        None,
        "messages that a rank may hold at a time; each message has one batch",
        unset="2; in an open loop and with scheme cascade 1, because an image that waits on a busy "
        "rank cannot go to an idle one or join a collage",
        at_least=1,
    )
    warmup_groups: int = _pace(
        2, "number of groups at the start that statistics leave out", at_least=0
    )

    def _check(self) -> None:
        if self.open_loop and self.between == "drain":
            raise UsageError(
                "between is drain in an open loop; drain works only in the closed loop: leave out "
                "--between, or --rate and --arrival-file"
            )

    @property
    def mode(self) -> str:
        """How groups follow each other, as shown in every table and legend (C6)."""
        batch = "" if self.batch == 1 else f", batch {self.batch or AUTO}"
        if self.rate is not None:
            return f"open loop, poisson {self.rate:g}/s{batch}"
        if self.arrival_file is not None:
            return f"open loop, times of {Path(self.arrival_file).name}{batch}"
        return f"{self.between}, depth {self.depth or AUTO}{batch}"

    @property
    def batch_size(self) -> int:
        """Groups of a batch; 1 until `--batch auto` has chosen it."""
        return self.batch or 1

    @property
    def warm_groups(self) -> int:
        """Groups that statistics leave out, rounded up to whole batches."""
        return -(-self.warmup_groups // self.released_together) * self.released_together

    @property
    def released_together(self) -> int:
        """Groups that enter the job together, with one t0: a batch in a closed loop."""
        return 1 if self.open_loop else self.batch_size


@dataclass(frozen=True, repr=False)
class SurvivalSettings(Settings):
    """How the job survives lost ranks and reports progress. These settings do not change the
    rows.
    """

    on_rank_loss: str | None = _survival(
        None,
        "what to do when a rank is lost. continue: go on without it. abort: end the job so that "
        "it can be resumed",
        unset="continue if the ranks were started in a way that survives a loss, as with "
        "`collage-mpi launch --on-rank-loss continue`; else abort",
        choices=("continue", "abort"),
    )
    reply_timeout_s: float | None = _survival(
        None,
        "a rank that has not answered a task for this long counts as silent, and its images go "
        "to other ranks. After twice this time the rank counts as lost",
        unset="30 s, or 10 times the longest service time seen if that is more",
        at_least=0.1,
    )
    start_timeout_s: float = _survival(
        600.0,
        "time that a rank has to become ready. After that the rank counts as lost; with "
        "--on-rank-loss abort the start fails",
        at_least=0.1,
    )
    status_every_s: float = _survival(5.0, "time between two progress lines", at_least=0.1)
    teams: int = _survival(
        1,
        "number of coordinators. The ranks are split into this many equal teams, each with a "
        "coordinator of its own. Rank 0 coordinates the first team and leads the others",
        at_least=1,
        at_most=MOST_TEAMS,
    )
