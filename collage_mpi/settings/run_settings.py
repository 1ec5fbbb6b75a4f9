"""The settings of a run: one typed object, built once.

Owns: every setting's name, default, help line and check.
Does not know: what a setting makes the program do, files and flags (settings_file).

Unknown keys are errors that name the known ones.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.encoding.grid import MAX_SIDE, MIN_SIDE
from collage_mpi.errors import UsageError
from collage_mpi.models.tuning import COMPILES, LAYOUTS, PRECISIONS, Tuning
from collage_mpi.scheduler.policies import (
    POLICIES,
    AcceptPolicy,
    PolicySettings,
    make_delay,
    make_policy,
)
from collage_mpi.scheduler.schemes import (
    ASSIGNMENTS,
    PLACEMENTS,
    SCHEMES,
    USE_COLLAGE,
    USE_HEDGE,
    USE_PARITY,
    USE_POLICY,
    USE_SINGLE,
    SchemeSettings,
    make_scheme,
)
from collage_mpi.settings.placement import Placement, placement
from collage_mpi.settings.shipped import with_shipped
from collage_mpi.system.printable import shown
from collage_mpi.workload.arrivals import ARRIVALS, load_times_ns, poisson_times_ns
from collage_mpi.workload.straggler_settings import (
    MODELS,
    TRACE_DRAWS,
    StragglerSettings,
    parse_burn,
    parse_dead,
    parse_slow,
)

MODES = ("carry", "drain")
ENDGAMES = ("off", "on")
BAD_SHARDS = ("skip", "refuse")
ON_RANK_LOSS = ("continue", "abort")
# Settings that decide how a job survives and tells, not what its rows are.
NOT_OF_ROWS = (
    "out",
    "status_every_s",
    "bad_shards",
    "on_rank_loss",
    "reply_timeout_s",
    "start_timeout_s",
)
# They may name a file that comes with the package: shipped:NAME.
PATH_SETTINGS = ("shards", "single", "collage", "parity", "trace_file", "arrival_file")
LARGEST = 1e9  # of any number: times then fit 63 bits of ns
# An attempt is one byte of a row; batches beyond this gain nothing that is known.
MOST = {"max_attempts": 255, "limit": float("inf"), "batch": 1024}


def _setting(default: Any, help_line: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help_line, **more})


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run does. See each field's help line.

    Where several may be given, as of shards, one alone will do; a path may be a `Path`.

    Raises:
        UsageError: a value that is out of range or contradicts another.
    """

    shards: tuple[str, ...] = _setting((), "shard files, or folders of them", metavar="PATH")
    bad_shards: str = _setting(
        "skip",
        "a shard that cannot be read: do the rest and end with code 4, or refuse to start",
        choices=BAD_SHARDS,
    )
    single: str = _setting(
        "",
        "single classifier: a .safetensors file, shipped:NAME, MODULE:FUNCTION, or null",
        metavar="W",
    )
    collage: str = _setting(
        "", "collage-CNN: a .safetensors file, shipped:NAME, MODULE:FUNCTION, or null", metavar="W"
    )
    parity: str = _setting(
        "", "parity network: a .safetensors file, shipped:NAME, or null", metavar="W"
    )
    out: str = _setting("", "folder for the results", metavar="DIR")
    scheme: str = _setting("collage", "how redundancy is added", choices=SCHEMES)
    side: int = _setting(3, "cells along an edge of the collage; side*side images a group")
    cell_px: int | None = _setting(
        None, "pixels along an edge of a cell (default: what the collage network says)"
    )
    accept: str = _setting("first", "when a collage's answer counts", choices=POLICIES)
    grace_ms: float | None = _setting(
        None, "accept grace: the collage counts once this long has passed since t0"
    )
    singles: int | None = _setting(None, "single ranks N (default: side*side)")
    grace_quantile: float | None = _setting(
        None,
        "or a running quantile of the singles' latencies, 0 to 1 (until 50 are known: "
        "--grace-ms, or as first)",
    )
    confidence: float = _setting(0.9, "accept confident: the least score that counts at once")
    accept_deadline_ms: float | None = _setting(
        None, "accept confident: a less sure cell counts once this long has passed since t0"
    )
    accept_deadline_quantile: float | None = _setting(
        None, "or a running quantile of the singles' latencies, 0 to 1"
    )
    assign: str = _setting(
        "turn",
        "image to the next single rank in turn, to the least loaded, to the one that would "
        "finish first by the ranks' running service times, or (pull) every task, oldest image "
        "first, to whichever rank has room",
        choices=ASSIGNMENTS,
    )
    endgame: str = _setting(
        "off",
        "on: when no image is left to come, idle ranks copy those that are still out",
        choices=ENDGAMES,
    )
    placement: str = _setting(
        "fixed",
        "collages to M ranks of their own, or to the currently fastest of N+M ranks that hold "
        "both networks",
        choices=PLACEMENTS,
    )
    replicas: int = _setting(2, "scheme replicate: ranks that get the same image")
    hedge_ms: float | None = _setting(None, "hedge, collage-hedge: an image is late after this")
    hedge_quantile: float | None = _setting(
        None, "or a running quantile of the singles' latencies, 0 to 1"
    )
    hedge_budget: float = _setting(0.25, "hedge, collage-hedge: second copies per image, at most")
    collage_ranks: int = _setting(1, "collage ranks M")
    collage_copies: int | None = _setting(
        None, "collage ranks that get the same collage (default: all M; collage-only: 1)"
    )
    parity_k: int | None = _setting(
        None, "scheme parity: images of a stripe, for which the network was trained (default: side)"
    )
    parity_ranks: int | None = _setting(
        None, "scheme parity: parity ranks (default: one per k single ranks)"
    )
    between: str = _setting(
        "carry", "carry: a busy rank stays busy; drain: all ranks idle first", choices=MODES
    )
    depth: int = _setting(1, "groups in flight, or batches of groups (closed loop)")
    batch: int = _setting(
        1, "groups that travel together: a rank gets its tasks of so many at once, as one batch"
    )
    arrivals: str = _setting(
        "closed",
        "closed: images enter as groups end; poisson, file: open loop, at times of their own",
        choices=ARRIVALS,
    )
    rate: float | None = _setting(None, "arrivals poisson: images a second")
    arrival_seed: int = _setting(0, "arrivals poisson: seed of the times")
    arrival_file: str | None = _setting(
        None, "arrivals file: seconds since the start, .npy or a number a line", metavar="FILE"
    )
    window: int | None = _setting(
        None, "open loop: images in the job at a time (default: 4096, or 8 a single rank)"
    )
    credit: int = _setting(2, "messages a rank may have at a time, of a batch each")
    linger_ms: float | None = _setting(None, "send a part-filled collage after this long")
    image_timeout_s: float | None = _setting(None, "give an image up as an error row after this")
    max_attempts: int = _setting(3, "times an image is sent to single ranks before it is an error")
    order: str = _setting("file", "file, or shuffle:SEED", metavar="ORDER")
    limit: int | None = _setting(None, "classify at most this many images")
    device: str = _setting("auto", "device of the workers: auto, cpu or cuda", metavar="DEVICE")
    precision: str = _setting(
        "auto",
        "number format of the networks (auto: float16 on GPUs, bfloat16 on CPUs where it "
        "is faster: docs/speed.md)",
        choices=PRECISIONS,
    )
    channels_last: str = _setting("on", "networks laid out channels-last", choices=LAYOUTS)
    compile: str = _setting(
        "auto", "how kernels are launched (auto: CUDA graphs on GPUs)", choices=COMPILES
    )
    warmup_tasks: int = _setting(3, "dummy tasks a rank runs before it is ready")
    warmup_groups: int = _setting(2, "first groups that statistics leave out")
    straggler: str = _setting("none", "injected service times", choices=MODELS)
    straggler_seed: int = _setting(0, "seed of the injected service times")
    straggler_median_ms: float = _setting(
        100.0, "median (lognormal, pareto), of usual tasks (bimodal, markov), or constant (pinned)"
    )
    straggler_sigma: float = _setting(0.2, "sigma of the logarithm (lognormal, bimodal, markov)")
    straggler_tail: float = _setting(3.0, "index of the power law (pareto): small is heavy")
    straggler_slow_share: float = _setting(
        0.05, "part of the tasks (bimodal) or of the time (markov) that is slow"
    )
    straggler_slow_factor: float = _setting(5.0, "how much slower that is (bimodal, markov)")
    straggler_spell_s: float = _setting(2.0, "mean length of a slow spell (markov, --burn-ranks)")
    trace_file: str | None = _setting(
        None, "service times in seconds, .npy of (machines, requests)", metavar="FILE"
    )
    trace_draws: str = _setting(
        "rows", "a row a rank in order, or independent draws", choices=TRACE_DRAWS
    )
    time_scale: float = _setting(1.0, "multiplies every injected service time")
    slow_ranks: tuple[str, ...] = _setting(
        (), "RANK:FACTOR, a rank that is FACTOR times slower throughout", metavar="RANK:FACTOR"
    )
    dead_ranks: tuple[str, ...] = _setting(
        (),
        "RANK:SECONDSs or RANK:TASKS, a rank that answers nothing from then on",
        metavar="RANK:WHEN",
    )
    burn_ranks: tuple[str, ...] = _setting(
        (),
        "RANK:CORES, burn so many cores beside the rank, in slow spells",
        metavar="RANK:CORES",
    )
    cost_ratio: float | None = _setting(
        None,
        "collage's, or parity network's, service time over the single's for injection (default: "
        "measured)",
    )
    batch_cost: float | None = _setting(
        None,
        "what a further input of a batch takes over the first one, for injection (default: "
        "measured)",
    )
    on_rank_loss: str | None = _setting(
        None,
        "a lost rank: go on without it, or end the job, to be resumed (default: continue where "
        "the launch can, as collage-mpi launch --on-rank-loss continue can)",
        choices=ON_RANK_LOSS,
    )
    reply_timeout_s: float | None = _setting(
        None,
        "a rank that owes an answer for so long is silent, after twice as long lost (default: "
        "30 s, or 10 times the longest service time seen)",
    )
    start_timeout_s: float = _setting(
        600.0, "a rank that is not ready after this is lost, or ends the start"
    )
    status_every_s: float = _setting(5.0, "seconds between progress lines")

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = _plain(spec, getattr(self, spec.name))
            if spec.name in PATH_SETTINGS:
                value = _named(value)
            object.__setattr__(self, spec.name, value)
        self._check_choices()
        self._check_ranges()
        make_scheme(self.scheme_settings())
        self.stragglers()
        self.burning()
        self._check_arrivals()
        self.shuffle_seed()
        if self.uses_parity and self.n_stripe > self.group_size:
            raise UsageError(
                f"parity_k is {self.n_stripe} with groups of {self.group_size}; a stripe is part "
                "of one group: choose a smaller k, or a larger --side"
            )
        if self.scheme == "replicate" and self.replicas > self.n_singles:
            raise UsageError(
                f"replicas is {self.replicas} with {self.n_singles} single rank(s); each copy "
                "needs a rank of its own"
            )
        if self.n_copies > self.collage_ranks > 0:
            raise UsageError(
                f"collage_copies is {self.collage_copies} with {self.collage_ranks} collage "
                "rank(s); each copy needs a rank of its own"
            )

    def __repr__(self) -> str:
        """What differs from the defaults: enough to build it again."""
        given = ((spec, getattr(self, spec.name)) for spec in dataclasses.fields(self))
        shown = (f"{spec.name}={value!r}" for spec, value in given if value != spec.default)
        return f"{type(self).__name__}({', '.join(shown)})"

    def _check_arrivals(self) -> None:
        needs = {"poisson": ("rate", "--rate 200"), "file": ("arrival_file", "--arrival-file F")}
        for model, (name, example) in needs.items():
            given = getattr(self, name) is not None
            if given != (self.arrivals == model):
                problem = f"{name} needs arrivals {model}" if given else f"{name} is missing"
                raise UsageError(
                    f"arrivals {self.arrivals}: {problem}: --arrivals {model} {example}"
                )
        if self.rate is not None and not 1e-6 <= self.rate <= LARGEST:
            raise UsageError(f"rate is {self.rate}; it needs images a second, from 1e-6")
        if self.arrival_seed < 0:
            raise UsageError(f"arrival_seed is {self.arrival_seed}; it needs 0 or more")
        if self.open_loop and self.between == "drain":
            raise UsageError("between drain is for the closed loop: leave it out with arrivals")

    def _check_choices(self) -> None:
        for spec in dataclasses.fields(self):
            choices = spec.metadata.get("choices")
            value = getattr(self, spec.name)
            if choices and value is not None and value not in choices:
                raise UsageError(f"{spec.name} is {shown(value)}; known are: {', '.join(choices)}")

    def _check_ranges(self) -> None:
        if not MIN_SIDE <= self.side <= MAX_SIDE:
            raise UsageError(f"side is {self.side}; a collage needs {MIN_SIDE} to {MAX_SIDE}")
        at_least = {
            "cell_px": 1,
            "singles": 1,
            "collage_ranks": 1 if self.uses_collage else 0,
            "collage_copies": 1,
            "parity_k": 2,
            "parity_ranks": 1,
            "depth": 1,
            "batch": 1,
            "batch_cost": 0,
            "window": self.group_size,
            "credit": 1,
            "linger_ms": 0,
            "grace_ms": 0,
            "accept_deadline_ms": 0,
            "image_timeout_s": 0,
            "max_attempts": 1,
            "limit": 1,
            "warmup_tasks": 0,
            "warmup_groups": 0,
            "status_every_s": 0.1,
            "reply_timeout_s": 0.1,
            "start_timeout_s": 0.1,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UsageError(f"{name} is {value}; it needs at least {least}")
            if value is not None and not value <= MOST.get(name, LARGEST):
                raise UsageError(
                    f"{name} is {value}; it can be {MOST.get(name, LARGEST):g} at most"
                )
        if self.cost_ratio is not None and not 0 < self.cost_ratio < 1e6:
            raise UsageError(f"cost_ratio is {self.cost_ratio}; it needs a positive number")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device is {self.device!r}; known are: auto, cpu, cuda")

    # ---- what the fields mean together --------------------------------------

    @property
    def group_size(self) -> int:
        """Images of a full group."""
        return self.side * self.side

    def labels(self) -> dict[str, str]:
        """Scheme and accept policy, as shown in tables and legends.

        Ranks are named where they are not the usual ones: N other than one a cell (and
        copy), M other than 1.
        """
        parts = [make_scheme(self.scheme_settings()).label]
        if self.uses_single and self.singles not in (None, self._usual_singles):
            parts.append(f"N = {self.singles}")
        if self.uses_collage and self.collage_ranks != 1:
            parts.append(f"M = {self.collage_ranks}")
        if self.uses_parity and self.parity_ranks not in (None, self._usual_parities):
            parts.append(f"{self.parity_ranks} parity ranks")
        with_policy = self.scheme in USE_POLICY
        accept = {"accept": self.accept_policy().name} if with_policy else {}
        return {"scheme": ", ".join(parts), **accept}

    @property
    def n_singles(self) -> int:
        """Single ranks, N; scheme replicate needs as many for each copy."""
        return self._usual_singles if self.singles is None else self.singles

    @property
    def _usual_singles(self) -> int:
        return self.group_size * (self.replicas if self.scheme == "replicate" else 1)

    def place(self, world_size: int, launcher_size: int | None = None) -> Placement:
        """Which rank of the world holds what.

        Raises:
            UsageError, EnvironmentFault: as `placement.placement`.
        """
        return placement(
            world_size,
            self.n_singles if self.scheme == "replicate" else self.singles,
            self.collage_ranks,
            side=self.side,
            scheme=self.scheme,
            layout=self.placement,
            launcher_size=launcher_size,
            parity_ranks=self.n_parities,
        )

    @property
    def world_size(self) -> int:
        """Ranks of a world of just the right size, rank 0 included."""
        singles = self.n_singles if self.uses_single else 0
        collages = self.collage_ranks if self.uses_collage else 0
        return 1 + singles + collages + (self.n_parities if self.uses_parity else 0)

    @property
    def uses_single(self) -> bool:
        """Whether the scheme needs a single network."""
        return self.scheme in USE_SINGLE

    @property
    def uses_collage(self) -> bool:
        """Whether the scheme needs a collage network."""
        return self.scheme in USE_COLLAGE

    @property
    def uses_parity(self) -> bool:
        """Whether the scheme needs a parity network."""
        return self.scheme in USE_PARITY

    @property
    def encodes(self) -> bool:
        """Whether rank 0 makes one input of several images: a collage or a stripe's picture."""
        return self.uses_collage or self.uses_parity

    @property
    def n_stripe(self) -> int:
        """Images of a full stripe, k (scheme parity)."""
        return self.side if self.parity_k is None else self.parity_k

    @property
    def n_parities(self) -> int:
        """Parity ranks of scheme parity."""
        return self._usual_parities if self.parity_ranks is None else self.parity_ranks

    @property
    def _usual_parities(self) -> int:
        return -(-self.n_singles // self.n_stripe)

    @property
    def n_copies(self) -> int:
        """Collage ranks that get the same collage."""
        if self.collage_copies is not None:
            return self.collage_copies
        return 1 if self.scheme == "collage-only" else max(1, self.collage_ranks)

    @property
    def mode(self) -> str:
        """How groups follow each other, as shown in every table and legend (C6)."""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        if self.arrivals == "poisson":
            return f"open loop, poisson {self.rate:g}/s, seed {self.arrival_seed}{batch}"
        if self.arrivals == "file":
            return f"open loop, times of {Path(self.arrival_file or '').name}{batch}"
        return f"{self.between}, depth {self.depth}{batch}"

    @property
    def open_loop(self) -> bool:
        """Whether images come at times of their own."""
        return self.arrivals != "closed"

    @property
    def warm_groups(self) -> int:
        """Groups that statistics leave out: whole batches of them."""
        return -(-self.warmup_groups // self.released_together) * self.released_together

    @property
    def released_together(self) -> int:
        """Groups that come in at a time, with one t0: a batch in a closed loop."""
        return 1 if self.open_loop else self.batch

    def batch_costs(self) -> dict[str, float]:
        """By kind, what a further input of a batch takes over the first, where none is measured:
        as long as alone, so that a batch gains nothing."""
        if self.batch == 1:
            return {}
        cost = 1.0 if self.batch_cost is None else self.batch_cost
        return {"single": cost, "collage": cost, "parity": cost}

    @property
    def groups_in_flight(self) -> int:
        """The scheduler's depth: this one's, or an open loop's window in groups."""
        if not self.open_loop:
            return self.depth
        window = max(4096, 8 * self.n_singles) if self.window is None else self.window
        return -(-window // self.group_size)

    def arrival_times_ns(self, images: int) -> np.ndarray | None:
        """(images,) int64 ns since the start, non-decreasing; None in a closed loop.

        Raises:
            EnvironmentFault, DataFault: as `arrivals.load_times_ns`.
        """
        if self.arrivals == "poisson":
            return poisson_times_ns(self.rate or 0.0, self.arrival_seed, images)
        if self.arrivals == "file":
            return load_times_ns(self.arrival_file or "", images)
        return None

    def accept_policy(self) -> AcceptPolicy:
        """The accept policy of the collage."""
        return make_policy(
            PolicySettings(
                self.accept,
                _ms_to_ns(self.grace_ms),
                self.grace_quantile,
                self.confidence,
                _ms_to_ns(self.accept_deadline_ms),
                self.accept_deadline_quantile,
            )
        )

    def scheme_settings(self) -> SchemeSettings:
        """What the scheme is made from."""
        hedge = None
        if self.scheme in USE_HEDGE:
            hedge = make_delay("hedge", _ms_to_ns(self.hedge_ms), self.hedge_quantile)
        return SchemeSettings(
            self.scheme,
            self.assign,
            self.accept_policy(),
            self.n_copies,
            self.replicas,
            hedge,
            self.hedge_budget,
            self.placement,
            self.n_stripe,
        )

    def shuffle_seed(self) -> int | None:
        """Seed of `order = shuffle:SEED`, None for file order."""
        if self.order == "file":
            return None
        word, _, seed = self.order.partition(":")
        if word != "shuffle" or not seed.isdecimal():
            raise UsageError(f"order is {self.order!r}; known are: file, shuffle:SEED")
        return int(seed)

    def tuning(self) -> Tuning:
        """How the workers run their networks."""
        return Tuning(self.precision, self.channels_last, self.compile)

    def stragglers(self) -> StragglerSettings:
        """The injected service times."""
        return StragglerSettings(
            model=self.straggler,
            seed=self.straggler_seed,
            median_ms=self.straggler_median_ms,
            sigma=self.straggler_sigma,
            trace=self.trace_file,
            trace_draws=self.trace_draws,
            time_scale=self.time_scale,
            slow=dict(parse_slow(text) for text in self.slow_ranks),
            tail=self.straggler_tail,
            slow_share=self.straggler_slow_share,
            slow_factor=self.straggler_slow_factor,
            spell_s=self.straggler_spell_s,
            dead=dict(parse_dead(text) for text in self.dead_ranks),
            by_image=self.assign == "pull" or self.endgame == "on",
        )

    def burning(self) -> dict[int, int]:
        """Rank -> cores burned beside it."""
        return dict(parse_burn(text) for text in self.burn_ranks)

    def check_slow_ranks(self, world_size: int) -> None:
        """Raise UsageError for a slow, dead or burnt rank that the world does not have."""
        found = self.stragglers()
        named = {"slow": found.slow, "dead": found.dead, "burn": self.burning()}
        for what, ranks in named.items():
            for rank in ranks or {}:
                if rank >= world_size:
                    raise UsageError(
                        f"{what} rank {rank}; the world has worker ranks 1 to {world_size - 1}"
                    )

    def require_inputs(self) -> None:
        """Raise UsageError unless shards, networks and the output are named."""
        for name in ("shards", "single", "out"):
            if not getattr(self, name) and (self.uses_single or name != "single"):
                raise UsageError(f"--{name} is missing: collage-mpi run --help shows an example")
        if not self.uses_single and self.straggler != "none" and self.cost_ratio is None:
            raise UsageError(
                f"--cost-ratio is missing: scheme {self.scheme} has no single rank to measure "
                "the collage network against, and injected delays would hide its extra cost; "
                "take the ratio that a run of scheme collage printed"
            )
        if self.uses_collage and not self.collage:
            raise UsageError(f"--collage is missing: scheme {self.scheme} needs a collage network")
        if self.uses_parity and not self.parity:
            raise UsageError(
                f"--parity is missing: scheme {self.scheme} needs a parity network, which "
                "collage-mpi train parity --single W makes for the single network"
            )

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON values; `from_mapping` reads them back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def digest(self) -> str:
        """A hash of the settings that decide the rows; where they go does not count."""
        rows = {k: v for k, v in self.to_dict().items() if k not in NOT_OF_ROWS}
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "settings") -> RunSettings:
        """Build from plain values.

        Raises:
            UsageError: an unknown key (named, with the nearest known one), a value of
                the wrong type, or as the class itself.
        """
        known = {spec.name for spec in dataclasses.fields(cls)}
        hints = typing.get_type_hints(cls)
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise UsageError(
                    f"{source}: unknown setting {shown(key)}{hint} "
                    f"Known: {', '.join(sorted(known))}"
                )
        return cls(**{key: _typed(key, v, hints[key], source) for key, v in values.items()})


def _plain(spec: dataclasses.Field[Any], value: Any) -> Any:
    """Paths as text, and a tuple of texts where the field is one. Raises UsageError."""
    if not isinstance(spec.default, tuple):
        return os.fspath(value) if isinstance(value, os.PathLike) else value
    parts = [value] if isinstance(value, (str, os.PathLike)) else value
    if isinstance(parts, (list, tuple)) and all(isinstance(p, (str, os.PathLike)) for p in parts):
        return tuple(map(os.fspath, parts))
    raise UsageError(f"{spec.name} is {value!r}; it needs {spec.metadata['metavar']}, or a list")


def _named(value: Any) -> Any:
    """A path, or a tuple of paths, with shipped:NAME resolved. Raises UsageError."""
    if isinstance(value, tuple):
        return tuple(map(with_shipped, value))
    return with_shipped(value) if isinstance(value, str) else value


def _ms_to_ns(value_ms: float | None) -> int | None:
    return None if value_ms is None else round(value_ms * 1e6)


def _typed(key: str, value: Any, hint: Any, source: str) -> Any:
    """The value as the field's type, or UsageError. Integers pass as floats."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if origin is tuple:
        parts = [value] if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)) and all(isinstance(part, str) for part in parts):
            return tuple(parts)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UsageError(f"{source}: {key} is a number of over 300 digits") from None
    elif hint in (int, str) and type(value) is hint:  # a bool is no int here
        return value
    wanted = "a list of strings" if origin is tuple else getattr(hint, "__name__", str(hint))
    raise UsageError(f"{source}: {key} is {shown(value)}; it needs {wanted}")
