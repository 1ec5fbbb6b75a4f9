"""The settings of a run: one typed object, built from parts. The numbers of ranks and copies, and
which rank holds what, follow from them.

Rules between settings of different parts are here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from collage_mpi.core.policies import FIRST, AcceptPolicy, Confident, First
from collage_mpi.core.schemes import (
    ASSIGNMENTS,
    PLACEMENTS,
    SCHEME_NAMES,
    SchemeSettings,
    make_scheme,
    scheme_class,
)
from collage_mpi.core.settings import CoreSettings
from collage_mpi.encoding.grid import MAX_SIDE, MIN_SIDE
from collage_mpi.encoding.vectors import BESIDE, EMBEDDINGS, NO_SAVE, OUTPUTS, SAVES, Extras
from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, ENCODED_KINDS, KIND, KINDS, SINGLE, TABLE
from collage_mpi.models.info import PRECISIONS, RUNTIMES, TORCH, Tuning
from collage_mpi.models.named import (
    Part,
    check_trust,
    embeds,
    is_foreign,
    is_function,
    is_null,
    parts_of,
)
from collage_mpi.settings.stages import (
    BEST,
    CLASS,
    MARGIN,
    TOP,
    TOP5,
    Stage,
    at_threshold,
    read_stages,
)
from collage_mpi.system.fields import AUTO, Settings, about, by_name, names, setting
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell
from collage_mpi.workload.straggler_settings import StragglerSettings

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.models.architecture import AcceptSpec
    from collage_mpi.models.info import NetworkInfo
    from collage_mpi.shards.pictures import PictureFit


MOST_PX = 1 << 14  # largest height and width of a picture
_input = partial(setting, group="input and output")
_network = partial(setting, group="networks")


@dataclass(frozen=True, repr=False)
class InputSettings(Settings):
    """Which images are classified, and where the results go."""

    shards: tuple[str, ...] = _input(
        (),
        "the images: shard files or folders of them, folders of pictures, text files that list "
        "pictures, tar files, Parquet files or Zarr arrays (docs/inputs.md)",
        metavar="PATH",
        flag="--input --shards",
        shipped=True,
    )
    image_px: int | None = _input(
        None,
        "resize pictures that are not in shards to this height and width",
        unset="as the network needs, otherwise 224 px",
        at_least=1,
        at_most=MOST_PX,
    )
    fit: str = _input(
        "crop",
        "how pictures that are not in shards become square. crop: keep the middle. letterbox: "
        "keep the whole picture and add bars",
        choices=("crop", "letterbox"),
    )
    resize_px: int | None = _input(
        None,
        "with crop: length of the shorter edge before the crop",
        unset="as the network says; 256 for 224 px if it is a file of another program and says "
        "nothing; otherwise --image-px",
        at_least=1,
        at_most=MOST_PX,
    )
    channels: str = _input(
        "auto",
        "3 for colour, 1 for grey. auto: as the network needs, otherwise 3",
        choices=("auto", "1", "3"),
        hidden=True,
    )
    input_labels: str = _input(
        "auto",
        "labels of images that are not in shards. auto: take them from the source if it has any. "
        "none: no labels",
        choices=("auto", "none"),
    )
    key: str = _input(
        "path",
        "what an update of the run knows a picture by. path: its path, size and time of change. "
        "content: its bytes, which are read once, so that moved and renamed pictures keep their "
        "rows",
        choices=("path", "content"),
    )
    out: str = _input("", "folder to write the results to", metavar="DIR")
    shared_out: str = _input(
        "off",
        "on: write into a results folder that belongs to another user, for example one that a "
        "group shares. The owner of the folder can read, change and remove the rows",
        choices=("off", "on"),
    )
    alone: str = _input(
        "off",
        "on: this job has the results folder for itself, and no other job can share the run. For "
        "file systems without hard links",
        choices=("off", "on"),
    )
    order: str = _input(
        "file",
        "order of the images: file, or shuffle:SEED, a permutation that the seed decides",
        metavar="ORDER",
    )
    limit: int | None = _input(
        None, "classify at most this many images", at_least=1, at_most=math.inf
    )
    only: str | None = _input(
        None,
        "text file with the numbers of the images to classify, one on each line. The first image "
        "of the input has the number 0",
        unset="all images",
        metavar="FILE",
        shipped=True,
        hidden=True,
    )
    class_names_file: str | None = _input(
        None,
        "text file with the class names in order, one on each line. Needed if neither the input "
        "nor the networks name the classes",
        metavar="FILE",
        shipped=True,
    )
    pixels: str = _input(
        "auto",
        "which ranks read, check and decode the images. rank0: rank 0, which sends them to the "
        "workers. workers: the workers; every worker needs the shards at the same path. auto: the "
        "workers that find the shards at that path, and rank 0 for the others; with --depth 1 "
        "rank 0 for all workers, ahead of time",
        choices=("rank0", "workers", "auto"),
    )
    top_k: int | None = _input(
        None,
        "keep this many classes of each image with their scores, best first, as Parquet files in "
        "OUT/rows",
        unset="only the best class",
        at_least=1,
    )
    save: str = _input(
        "none",
        "what else to keep of each image, in OUT/rows. scores: the scores of all classes. "
        "embeddings: the network's embedding; needs scheme none, replicate or hedge. outputs: "
        "what a Python class of your own returns, as with `collage-mpi map`, or what `collage-mpi "
        "embed` writes. beside: what the networks answer that are named behind the first one",
        choices=SAVES,
    )

    def _check(self) -> None:
        self.shuffle_seed()

    def picture_shape(self, shape: tuple[int, ...] | None = None) -> tuple[int, int, int]:
        """(H, W, C) to which pictures are converted. `shape`: what the networks need, if known."""
        from collage_mpi.shards.pictures import DEFAULT_PX  # late: --help reads this module

        height, width, channels = shape or (DEFAULT_PX, DEFAULT_PX, 3)
        px = self.image_px or (height if height == width else DEFAULT_PX)
        return px, px, channels if self.channels == AUTO else int(self.channels)

    def picture_fit(
        self,
        shape: tuple[int, ...] | None = None,
        resize_px: int | None = None,
        by: str | None = None,
        *,
        usual: bool = False,
    ) -> PictureFit:
        """How pictures are converted to images.

        Args:
            shape: (H, W, C) that the networks need, if known.
            resize_px: length of the shorter edge before the crop, as the networks need it.
            by: filter for resizing, if the networks name one.
            usual: use `usual_resize_px` if neither the user nor the networks say the length.
        """
        from collage_mpi.shards.pictures import (  # late: --help reads this module
            FILTERS,
            PictureFit,
            usual_resize_px,
        )

        px, _, channels = self.picture_shape(shape)
        resized, unsaid = self.resize_px, self.resize_px is None and self.fit == "crop"
        if unsaid and usual:
            resized = usual_resize_px(px)
        elif unsaid and shape and shape[0] == px <= (resize_px or 0):
            resized = resize_px
        return PictureFit(px, self.fit, resized, channels, by or FILTERS[0])

    @property
    def partial(self) -> bool:
        """Whether some images may be left out. The run then does not grow with its input."""
        return self.limit is not None or self.only is not None

    @property
    def extras(self) -> Extras:
        """What is kept of an image beyond its class."""
        return Extras(self.top_k, self.save)

    def shuffle_seed(self) -> int | None:
        """Seed of `order = shuffle:SEED`, None for file order."""
        if self.order == "file":
            return None
        word, _, seed = self.order.partition(":")
        if word != "shuffle" or not seed.isdecimal():
            raise UsageError(f"order is {self.order!r}; known are: file, shuffle:SEED")
        return int(seed)


@dataclass(frozen=True, repr=False)
class NetworkSettings(Settings):
    """Which networks, and how the workers run them."""

    single: str = _network(
        "",
        "single classifier: a .safetensors file, shipped:NAME, timm:NAME, hf:ID, FILE.onnx, "
        "FILE.pt2, FILE.ts, MODULE:FUNCTION, or null",
        metavar="W",
        shipped=True,
    )
    collage: str = _network(
        "",
        "collage network: a .safetensors file, shipped:NAME, FILE.onnx, FILE.pt2, FILE.ts, "
        "MODULE:FUNCTION, or null",
        metavar="W",
        shipped=True,
    )
    trust_network: str = _network(
        "",
        "run networks whose files are programs (.pt2, TorchScript, code of a hub). DIGEST: the "
        "one with this SHA-256, which its refusal shows; several with commas between them. any: "
        "every one (docs/security.md)",
        metavar="DIGEST|any",
    )
    cell_px: int | None = _network(
        None,
        "height and width of a cell in pixels",
        unset="as the collage network was trained",
        at_least=1,
    )
    device: str = _network(
        "auto", "device that the workers run their networks on", choices=("auto", "cpu", "cuda")
    )
    precision: str = _network(
        "auto",
        "number format of the networks. auto: float32. bfloat16 and float16 are quicker on GPUs "
        "and on some CPUs, and change some classes (docs/networks.md)",
        choices=PRECISIONS,
    )
    runtime: str = _network(
        "auto",
        "what computes the networks. auto: on CPUs the quickest installed runtime with the answers "
        "of torch, on GPUs torch with CUDA graphs (docs/networks.md)",
        choices=RUNTIMES,
    )

    def _check(self) -> None:
        check_trust(self.trust_network)


RANKS = "redundancy and ranks"  # group of --help

_setting = partial(setting, group=RANKS)


UNTIL_CHOSEN = 0.9  # score that counts in a job with `agree`, which replaces it

_accept = partial(setting, group="when a collage's answer counts")


def ms_to_ns(value_ms: float | None) -> int | None:
    """Milliseconds as whole ns; None stays None."""
    return None if value_ms is None else round(value_ms * 1e6)


@dataclass(frozen=True, repr=False)
class RedundancySettings(Settings):
    """The settings of schemes and ranks, and of when answers count."""

    scheme: str = _setting(
        "collage", "how redundancy is added (docs/schemes.md)", choices=SCHEME_NAMES
    )
    first: tuple[str, ...] = _setting(
        (),
        "scheme cascade: networks that are asked before the single network, in this order. Each "
        "answers what the one before it is unsure of; with --agree the run chooses one of them. A "
        "network as for --single, or collage:W, or nothing for the single network, and behind it "
        "any of @160px (input size), @bfloat16, @int8 and other formats, @openvino and other "
        "runtimes, @margin or @top (score), @0.9 (threshold; otherwise --confidence)",
        unset="the collage network",
        metavar="W",
    )
    side: int = _setting(
        3,
        "cells along an edge of a collage. A collage has side x side cells, and a group has side "
        "x side images",
        at_least=MIN_SIDE,
        at_most=MAX_SIDE,
    )
    singles: int | None = _setting(None, "number of single ranks, N", unset="side*side", at_least=1)
    collage_ranks: int = _setting(
        1,
        "number of ranks beside the single ranks, M: for collages, or for each first network of a "
        "cascade",
        at_least=0,
    )
    assign: str = _setting(
        "pull",
        "which rank gets an image. turn: the next rank in turn. pull: a rank that has room takes "
        "the oldest image, and a slow rank leaves images to quicker ranks that would end them "
        "sooner; collages and other tasks are then handed out in this way too",
        choices=ASSIGNMENTS,
    )
    endgame: str = _setting(
        "on",
        "on: once no new image is left, idle ranks get copies of images that are still being "
        "computed",
        choices=("off", "on"),
    )
    placement: str | None = _setting(
        None,
        "which ranks get collages. fixed: M ranks that hold only the collage network. fastest: "
        "the fastest of N+M ranks that all hold both networks",
        unset="fixed; fastest with scheme cascade",
        choices=PLACEMENTS,
    )
    confidence: float | None = _accept(
        None,
        "an answer of a collage counts at once if its score is at least this. Otherwise it is "
        "kept, see --deadline-ms. 0: every answer counts at once, so the first answer to an image "
        "wins. 1: no answer counts at once. auto: the threshold in the collage network's file, or "
        "1 if the file has none for this single network (docs/networks.md)",
        unset=AUTO,
        auto=True,
        at_least=0,
        at_most=1,
    )
    agree: float | None = _accept(
        None,
        "ask a cheaper network first, and choose the lowest score from which on its answers count, "
        "without labels, so that at most 1 - A of all images get another answer than the single "
        "network's, with a probability of 95 % (docs/cascade.md). With --top-k 5 an answer is also "
        "which five classes are the best, in any order. The cheaper network is one of "
        "--first, or that of --collage, or the single one in bfloat16. The scheme is then cascade",
        metavar="A",
        above=0,
        below=1,
    )
    deadline_ms: float | None = _accept(
        None,
        "an answer with a lower score than --confidence counts this long after its group entered "
        "the job; the source of its row is then kept. Without a deadline it counts only if no "
        "single rank can answer the image. Scheme hedge: an image without an answer gets a second "
        "copy this long after it entered, when a rank is idle",
        at_least=0,
    )
    audit: float | None = _accept(
        None,
        "scheme cascade: share of the images to audit. If an answer for such an image is accepted "
        "before the single network is asked, the single network classifies the image as well, and "
        "the two answers are compared",
        unset="0.01; none with --agree, which audits by itself",
        at_least=0,
        at_most=1,
    )

    def _check(self) -> None:
        if self.first and not self.takes_threshold:
            raise UsageError(
                f"first is {' '.join(self.first)} with scheme {self.scheme}; only scheme cascade "
                "asks networks one after another: add --scheme cascade, or leave out --first"
            )
        if self.needs - {SINGLE} and self.collage_ranks < 1:
            raise UsageError(f"collage_ranks is {self.collage_ranks}; it needs at least 1")
        if self.replicas > self.n_singles:
            raise UsageError(
                f"scheme {self.scheme} with {counted(self.n_singles, 'single rank')}; each copy of "
                "an image needs a rank of its own"
            )
        if self.agree is not None and self.confidence is not None:
            raise UsageError(
                f"agree is {self.agree:g} with confidence {self.confidence:g}: agree chooses the "
                "score that counts; leave out --confidence, or --agree"
            )
        if self.agree is not None and self.deadline_ms is not None:
            raise UsageError(
                f"agree is {self.agree:g} with a deadline: after the deadline an answer counts "
                "whatever its score, so agree could not bound the changed answers; leave out "
                "--deadline-ms, or --agree"
            )
        for name, known in scheme_class(self.scheme).only.items():
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} is {getattr(self, name)} with scheme {self.scheme}; it takes: "
                    f"{', '.join(known)}"
                )
        if self.agree is not None and not self.takes_threshold:
            raise UsageError(
                f"agree is {self.agree:g} with scheme {self.scheme}; only scheme cascade decides "
                "by a score: add --scheme cascade, or leave out --agree"
            )
        given = next((s for s in self.stages if s.threshold is not None), None)
        if self.agree is not None and given is not None:
            raise UsageError(
                f"agree is {self.agree:g}, and first {given.text} has a threshold: --agree chooses "
                "the network and its score. Leave out the threshold, or leave out --agree and give "
                "each network a threshold: --first W@0.9 V@0.8"
            )
        make_scheme(self.scheme_settings())

    @property
    def layout(self) -> str:
        """Which ranks hold the collage network: one of PLACEMENTS."""
        return self.placement or scheme_class(self.scheme).placement

    @property
    def any_size(self) -> bool:
        """Whether a world may have any size. Then all ranks except rank 0 hold all networks."""
        own = scheme_class(self.scheme).placement
        return self.layout == own == "fastest" and self.singles is None

    @property
    def group_size(self) -> int:
        """Images of a full group."""
        return self.side * self.side

    def _takes(self, setting: str) -> bool:
        return setting in scheme_class(self.scheme).takes

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What a cascade asks before its exact network, in order; () for other schemes. With
        `agree` and no other network the exact network itself in bfloat16."""
        if not self.takes_threshold:
            return ()
        single, collage = (getattr(self, kind, None) for kind in (SINGLE, COLLAGE))
        own = self.agree is not None and single and not (self.first or collage)
        return read_stages(["@bfloat16"] if own else self.first, single or "")

    def stage(self, kind: str) -> Stage | None:
        """The stage of a cascade whose tasks are of this kind; None if there is none."""
        return next((stage for stage in self.stages if stage.kind == kind), None)

    @property
    def needs(self) -> frozenset[str]:
        """The kinds of network that the scheme needs."""
        return scheme_class(self.scheme).needs | {stage.kind for stage in self.stages}

    def uses(self, kind: str) -> bool:
        return kind in self.needs

    @property
    def uses_single(self) -> bool:
        """Whether the scheme needs a single network."""
        return self.uses(SINGLE)

    @property
    def only_singles(self) -> bool:
        """Whether the scheme needs a single network and no other network."""
        return self.needs == {SINGLE}

    @property
    def uses_collage(self) -> bool:
        """Whether the scheme needs a collage network."""
        return self.uses(COLLAGE)

    @property
    def pastes(self) -> bool:
        """Whether the scheme pastes several images into one picture."""
        return any(KIND[kind].encoded for kind in self.needs)

    @property
    def usual_singles(self) -> int:
        """Default number of single ranks: those of a group for each copy of an image."""
        return self.group_size * self.replicas

    @property
    def replicas(self) -> int:
        """Single ranks that the scheme sends each image to at once."""
        return scheme_class(self.scheme).replicas

    @property
    def n_singles(self) -> int:
        """Single ranks, N."""
        return self.usual_singles if self.singles is None else self.singles

    @property
    def n_copies(self) -> int:
        """Number of collage ranks that get the same collage."""
        return max(1, self.collage_ranks) if self.uses_single else 1

    @property
    def world_size(self) -> int:
        """Number of ranks that the settings need, including rank 0."""
        return 1 + sum(self.n_ranks(kind) for kind in KINDS if self.uses(kind))

    def n_ranks(self, kind: str) -> int:
        """Number of ranks that hold the kind, if the scheme needs it."""
        return self.n_singles if kind == SINGLE else int(getattr(self, KIND[kind].ranks))

    def place(self, world_size: int, launcher_size: int | None = None) -> Placement:
        """Rank 0 is the coordinator, ranks 1..N are single, then come the ranks of each further
        kind.

        A scheme without further kinds needs no collage rank. Worlds of 1+N and of 1+N+M ranks are
        both right then, and in the larger one the last M ranks stay idle. If a scheme does not use
        single ranks, worlds of 1+M and of 1+N+M are right, and the N single ranks stay idle.

        Args:
            world_size: number of ranks, from MPI.
            launcher_size: number of ranks, from the launcher; None outside a launcher.

        Raises:
            EnvironmentFault: the world has the wrong size, or is N worlds of one rank.
        """
        needs = self.needs
        counts = {kind: self.n_ranks(kind) for kind in KINDS if kind in needs}
        beside = [
            frozenset({kind}) for kind, n in counts.items() if kind != SINGLE for _ in range(n)
        ]
        most = 1 + self.n_singles + (len(beside) or self.collage_ranks)
        if not one_world(world_size, launcher_size):
            needed = self.world_size if beside else most
            raise one_world_is_missing(world_size, launcher_size, needed)
        if self.any_size:
            return Placement((frozenset(), *[needs] * (world_size - 1)))
        if world_size not in (self.world_size, most):
            usual = self.singles is None and self.replicas == 1
            who = f"--side {self.side}" if usual else f"--singles {self.n_singles}"
            raise wrong_size(world_size, who, counts, self.scheme)
        first = self.n_singles if SINGLE in needs or world_size > self.world_size else 0
        held = [needs & {SINGLE}] * first + beside
        if self.layout == "fastest":
            held = [needs if own else own for own in held]
        idle = [frozenset[str]()] * (world_size - 1 - len(held))
        return Placement((frozenset(), *held, *idle))

    def accept_policy(self, own: float | None = None) -> AcceptPolicy:
        """When an answer counts that is not the exact network's; `own`: a stage's own threshold."""
        if self.agree is not None:
            return Confident(UNTIL_CHOSEN, None)
        least = self.confidence if own is None else own
        if not least:
            return First(AUTO if least is None else FIRST)
        return Confident(least if least < 1 else math.inf, ms_to_ns(self.deadline_ms))

    @property
    def accept(self) -> dict[str, AcceptPolicy]:
        """Kind -> when its answers count, in the order in which a cascade asks them."""
        stages = {stage.kind: self.accept_policy(stage.threshold) for stage in self.stages}
        return stages or {COLLAGE: self.accept_policy()}

    @property
    def takes_threshold(self) -> bool:
        """Whether the scheme needs a threshold for sure answers. It may change during the run."""
        return self._takes("calibrate")

    @property
    def judged(self) -> str:
        """The kind whose answers the accept policy judges, the first one in a cascade."""
        return next(iter(self.accept))

    def scheme_settings(self) -> SchemeSettings:
        """The settings in the core's form."""
        return SchemeSettings(
            name=self.scheme,
            assign=self.assign,
            accept=self.accept,
            collage_copies=self.n_copies,
            hedge_ns=ms_to_ns(self.deadline_ms),
            placement=self.layout,
            calibrate=self.agree is not None,
        )

    @property
    def draws_by_image(self) -> bool:
        """Whether injected delays are drawn by image instead of by group.

        This is so if a rank may run several images of a group.
        """
        return self.assign == "pull" or self.endgame == "on"

    @property
    def takes_policy(self) -> bool:
        """Whether the scheme has an accept policy."""
        return self._takes("accept")

    def labels(self) -> dict[str, str]:
        """Scheme and accept policy, as shown in tables and legends.

        Numbers of ranks are included if they are not the defaults.
        """
        parts = [make_scheme(self.scheme_settings()).label]
        if self.uses_single and self.singles not in (None, self.usual_singles):
            parts.append(f"N = {self.singles}")
        if len(self.stages) > 1:
            chain = f" of {len(self.stages) + 1} stages"
            parts[0] += chain if self.agree is None else f", {len(self.stages)} tried"
        beside = self.needs - {SINGLE}
        if beside and self.collage_ranks != 1 and not self.any_size:
            parts.append(f"M = {self.collage_ranks}")
        if self.endgame == "on":
            parts.append("end game")
        accept = ", ".join(policy.name for policy in self.accept.values())
        accept = accept if self.agree is None else f"agree {self.agree:g}"
        return {"scheme": ", ".join(parts), **({"accept": accept} if self.takes_policy else {})}


@dataclass(frozen=True)
class Placement:
    """The networks of each rank: `kinds[i]` are the kinds that rank coordinator + i holds.

    A rank may hold several kinds (single and collage), one, or none (the coordinator, and ranks
    that a scheme does not use).
    """

    kinds: tuple[frozenset[str], ...]
    coordinator: int = 0  # its rank in the world; the other ranks of its team follow

    @property
    def world_size(self) -> int:
        """Number of ranks, including the coordinator."""
        return len(self.kinds)

    @property
    def of_rank(self) -> dict[int, frozenset[str]]:
        """Rank -> the kinds that it holds, without the coordinator."""
        return dict(enumerate(self.kinds[1:], start=self.coordinator + 1))

    @property
    def workers(self) -> tuple[int, ...]:
        """Ranks that hold at least one network."""
        return tuple(rank for rank, held in self.of_rank.items() if held)

    @property
    def idle(self) -> tuple[int, ...]:
        """Ranks other than the coordinator that hold no network."""
        return tuple(rank for rank, held in self.of_rank.items() if not held)

    def ranks_of(self, kind: str) -> tuple[int, ...]:
        """Ranks that hold `kind`, ascending."""
        return tuple(rank for rank, held in self.of_rank.items() if kind in held)

    def describe(self) -> str:
        """One line for a log: `0 coordinator, 1-9 single, 10 collage`."""
        parts = [f"{self.coordinator} coordinator"]
        runs: list[tuple[int, int, str]] = []
        for rank, held in self.of_rank.items():
            name = "+".join(sorted(held, reverse=True)) or "idle"
            if runs and runs[-1][2] == name:
                runs[-1] = (runs[-1][0], rank, name)
            else:
                runs.append((rank, rank, name))
        parts += [f"{a if a == b else f'{a}-{b}'} {name}" for a, b, name in runs]
        return ", ".join(parts)


def one_world(world_size: int, launcher_size: int | None) -> bool:
    """Whether the ranks that the launcher started are one world of several ranks."""
    return world_size > 1 and (launcher_size or world_size) == world_size


def wrong_size(world: int, who: str, counts: Mapping[str, int], scheme: str) -> EnvironmentFault:
    """The error for a world of the wrong size, with what to type instead.

    Args:
        world: number of ranks.
        who: the flag that gives the number of single ranks.
        counts: kind -> number of ranks that are needed.
        scheme: its name.
    """
    needed = 1 + sum(counts.values())
    parts = " + ".join(["1 coordinator", *[f"{n} {kind}" for kind, n in counts.items()]])
    beside = [
        f"{n} {kind} rank" + ("" if n == 1 else "s") for kind, n in counts.items() if kind != SINGLE
    ]
    by = " and ".join(beside) if beside and SINGLE in counts else f"--scheme {scheme}"
    first = next(iter(counts))
    possible = world - needed + counts[first]
    flag = "--" + KIND[first].ranks.replace("_", "-")
    other = f", or pass {flag} {possible}" if possible >= 1 else ""
    return EnvironmentFault(
        f"the world has {world} ranks; {who} with {by} needs {needed} ({parts}): "
        f"launch with -n {needed}{other}"
    )


def one_world_is_missing(world: int, launcher_size: int | None, needed: int) -> EnvironmentFault:
    """The error for ranks that are not one world, with what to type instead."""
    lines = (
        f"  collage-mpi launch -n {needed} -- run ...     finds the matching mpiexec\n"
        f"  mpiexec -n {needed} collage-mpi run ...       the mpiexec of the MPI installed here\n"
        f"  srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI) -n {needed} collage-mpi run ..."
    )
    if launcher_size is not None and launcher_size > 1:
        return EnvironmentFault(
            f"the launcher started {launcher_size} ranks, but MPI says this is rank 0 of {world}: "
            f"the launcher and the MPI library do not match. Use one of\n{lines}"
        )
    return EnvironmentFault(
        f"this is one process on its own; the job needs {needed} ranks. Use one of\n{lines}"
    )


MOST_BATCH = 1024  # no network is known that gains from a larger batch
MOST_TEAMS = 4096  # a run has at most 65,535 sessions, and each team of a launch is one

_pace = partial(setting, group="pace")
_survival = partial(setting, group="lost ranks, progress")


@dataclass(frozen=True, repr=False)
class PaceSettings(Settings):
    """When images arrive, and how groups follow each other."""

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
        "images a second (docs/networks.md)",
        unset=AUTO,
        at_least=1,
        auto=True,
        at_most=MOST_BATCH,
    )
    warmup_groups: int = _pace(
        2, "number of groups at the start that statistics leave out", at_least=0
    )

    def _check(self) -> None:
        if self.rate is not None and self.arrival_file is not None:
            raise UsageError(
                "rate and arrival_file both say when images arrive: leave out --rate or "
                "--arrival-file"
            )
        if self.open_loop and self.between == "drain":
            raise UsageError(
                "between is drain in an open loop; drain works only in the closed loop: leave out "
                "--between, or --rate and --arrival-file"
            )

    @property
    def open_loop(self) -> bool:
        """Whether images arrive at given times."""
        return self.rate is not None or self.arrival_file is not None

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
    """How the job survives lost and wrong ranks, and reports progress. These settings do not
    change the rows."""

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
    check: float = _survival(
        0.0,
        "share of the images that a second rank answers too, to find ranks that compute wrongly. "
        "Where two ranks differ, a third one decides",
        at_least=0,
        at_most=1,
    )
    status_every_s: float = _survival(5.0, "time between two progress lines", at_least=0.1)
    record: str | None = _survival(
        None,
        "for a bug report: write what the coordinator was told and decided to this file, for "
        "`collage-mpi replay`. Later sessions and other teams write FILE-2, FILE-3, ...",
        metavar="FILE",
    )
    teams: int = _survival(
        1,
        "number of coordinators. The ranks are split into this many equal teams, each with a "
        "coordinator of its own. Rank 0 coordinates the first team and leads the others",
        at_least=1,
        at_most=MOST_TEAMS,
    )


# Settings that do not change the rows.
NOT_OF_ROWS = ("out", "key", "shared_out", "alone", "trust_network", *names(SurvivalSettings))
# Most images in the job at a time in an open loop, at least, and for each single rank.
OPEN_WINDOW, OPEN_WINDOW_A_RANK = 4096, 8
MAX_ATTEMPTS = 3  # tasks of the main kind that may fail for an image before its error row
AUDIT_SEED = 0  # of the draw of audited images
R = TypeVar("R", bound="RunSettings")


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
        if self.teams > 1 and self.alone == "on":
            raise UsageError(
                f"teams is {self.teams}, and alone is on: several teams share a run as several "
                "jobs do. Leave out --teams, or choose an --out whose file system has hard links"
            )
        encoded = next((kind for kind in ENCODED_KINDS if self.uses(kind)), None)
        if self.save == EMBEDDINGS and encoded is not None:
            raise UsageError(
                f"save is embeddings with scheme {self.scheme}, but the {encoded} network's "
                "answers have no embedding of a single image: choose --save scores, or scheme "
                "none, replicate or hedge"
            )
        for spec in (self.single, self.collage, *(stage.network for stage in self.stages)):
            if spec and embeds(spec) and (self.save != OUTPUTS or spec != self.single):
                raise UsageError(
                    f"{spec} gives an embedding, which names no class: collage-mpi embed writes "
                    "embeddings; leave out embed= for classes"
                )
        self._check_beside(encoded)
        if self.save == OUTPUTS:
            self._check_map(encoded)
        if self.agree is not None and (self.save != NO_SAVE or self.top_k not in (None, BEST)):
            raise UsageError(
                f"agree is {self.agree:g}, and more than the class is kept of an image: only the "
                "class is promised, with --top-k 5 also which five classes are the best. Leave out "
                "--top-k and --save, or --agree"
            )
        named = next((stage.network for stage in self.stages if stage.kind == COLLAGE), "")
        if named and self.collage and named != self.collage:
            raise UsageError(
                f"first names the collage network {named}, and --collage {self.collage}: give one"
            )
        for stage in self.stages if self.single else ():
            same = stage.px is None and stage.network == self.single and not is_null(self.single)
            if same and self.tuning(stage.kind).like(self.tuning()):
                if self.agree is not None and not self.first:
                    raise UsageError(
                        f"agree is {self.agree:g}, and the single network has precision "
                        f"{self.precision} already: name a cheaper one with --first W, or leave "
                        "out --agree"
                    )
                raise UsageError(
                    f"first is {stage.text}, which is the single network itself: name another "
                    f"network, or another format or input size, such as {stage.network}@bfloat16"
                )

    @property
    def agree_on(self) -> str:
        """What `agree` promises of an answer, CLASS or TOP5."""
        return TOP5 if self.agree is not None and self.top_k == BEST else CLASS

    def _check_beside(self, encoded: str | None) -> None:
        """Check a single network that is several, which answer the same pictures."""
        first, *more = parts_of(self.single)
        if (self.save == BESIDE) != (bool(more) and not first.maps):
            raise UsageError(
                f"save is {self.save} with single {self.single}: {BESIDE} is for several networks, "
                "the first of which classifies"
            )
        if not more:
            return
        if first.maps and not all(part.maps for part in more):
            raise UsageError(f"{self.single}: name a network that classifies first")
        if encoded is not None or self.takes_threshold:
            raise UsageError(
                f"{self.single}: several networks answer each picture, so none comes before "
                f"another: scheme {self.scheme} is for one network"
            )
        if self.top_k:
            raise UsageError(f"top_k is {self.top_k}, and is for one network: leave out --top-k")
        if self.runtime not in ("auto", TORCH):
            raise UsageError(f"several networks run in torch: leave out --runtime {self.runtime}")

    def _check_map(self, encoded: str | None) -> None:
        parts = parts_of(self.single)
        mapped = not self.single or parts[0].maps or is_function(parts[0].spec)
        if self.top_k or not mapped:
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
        """Build from plain values. The usual scheme is cascade with `agree`, and none without a
        collage network.

        Raises:
            UsageError: as `Settings.from_mapping`.
        """
        values = by_name(cls, values, source)
        if values.get("agree") is not None:
            values = {"scheme": "cascade", **values}
        elif values.get(SINGLE) and not values.get(COLLAGE):
            values = {"scheme": "none", **values}
        return super().from_mapping(values, source)

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

    def network(self, kind: str) -> str:
        """The network that ranks of a kind load."""
        stage = self.stage(kind)
        return (stage.network if stage else "") or str(getattr(self, kind, ""))

    @property
    def parts(self) -> dict[str, tuple[str, Part]]:
        """Each network that is used: its title -> its kind, and what it is. The title is the kind;
        of networks beside the first one their own name follows."""
        return {
            f"{kind} {part.name}" if number else kind: (kind, part)
            for kind in KINDS
            if self.uses(kind)
            for number, part in enumerate(parts_of(self.network(kind)))
        }

    def tuning(self, kind: str = SINGLE) -> Tuning:
        """How the workers run their networks of a kind."""
        usual, stage = Tuning(precision=self.precision, runtime=self.runtime), self.stage(kind)
        return stage.tuning(usual) if stage else usual

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
        """Messages that a rank may have at a time. An image that waits on a busy rank cannot go to
        an idle one, so in an open loop it is one message."""
        return 1 if self.open_loop else scheme_class(self.scheme).credit

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
        usual = 0.01 if self.agree is None else 0.0
        share = usual if self.audit is None else self.audit
        return share if self.takes_threshold else 0.0

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
        self, workers: int, costs: Mapping[str, float], batch_costs: Mapping[str, float]
    ) -> CoreSettings:
        """The core's settings for a world or one team, in its units.

        Args:
            workers: number of ranks without the coordinator.
            costs: kind -> service time of its network divided by that of the single network.
            batch_costs: kind -> time of a further input of a batch divided by that of the first.
        """
        return CoreSettings(
            group_size=self.group_size,
            ranks=workers,
            costs=costs,
            batch_costs=batch_costs,
            batch=self.batch_size,
            together=not self.open_loop,
            depth=self.groups_in_flight(workers),
            paced=self.paced,
            drain=self.between == "drain",
            max_attempts=MAX_ATTEMPTS,
            endgame=self.endgame == "on",
            check=self.check,
        )

    def digest(self) -> str:
        """A hash of the settings that decide the rows."""
        rows = {k: v for k, v in self.to_dict().items() if k not in NOT_OF_ROWS}
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


# Settings that a later session may change: paths, output, numbers of ranks, and how often an image
# is tried. Shards are compared by content, so they may have moved.
FREE_SETTINGS = frozenset({"shards", "device", *NOT_OF_ROWS, *(kind.ranks for kind in TABLE)})
# Settings that name files. Two paths are the same if their content is.
FILE_SETTINGS = tuple(
    spec.name for spec in fields(RunSettings) if about(spec).shipped and spec.name != "shards"
)


def with_accept_of(settings: RunSettings, networks: Mapping[str, NetworkInfo]) -> RunSettings:
    """The settings with `confidence auto` replaced by the thresholds that fit these networks.

    A threshold is that of a network's file, if it was chosen for this single network. Otherwise
    no answer of a collage counts, and a cascade is refused. With `agree` the run itself chooses the
    threshold later. Every answer counts if a network is null, because no accuracy can be lost.

    Args:
        settings: of the run.
        networks: kind -> the facts of its network, of those that have any.

    Raises:
        UsageError: a cascade needs a threshold, and a network has none.
    """
    if settings.confidence is not None or settings.agree is not None or not settings.takes_policy:
        return settings
    if any(is_null(settings.network(kind)) for kind in (SINGLE, *settings.accept)):
        return with_every_answer(settings)
    if not settings.stages:
        found = _measured(networks, COLLAGE)
        return replace(settings, confidence=1.0 if found is None else found.confidence)
    stages = []
    for stage in settings.stages:
        found = None if stage.score == MARGIN else _measured(networks, stage.kind)
        if stage.threshold is None and found is None:
            raise _no_threshold(settings, stage)
        if stage.threshold is None and found is not None:
            stage = at_threshold(stage, found.confidence, TOP)
        stages.append(stage)
    if not settings.first:
        return replace(settings, confidence=stages[0].threshold)
    return replace(settings, first=tuple(stage.text for stage in stages))


def _measured(networks: Mapping[str, NetworkInfo], kind: str) -> AcceptSpec | None:
    """The threshold in the file of a kind's network, if it was chosen for this single network."""
    single, judged = networks.get(SINGLE), networks.get(kind)
    if judged is not None and judged.outdated:
        tell(
            f"warning: the threshold in {judged.origin} was chosen by accuracy, which is no longer "
            "done, and is not used. Choose a new one with `collage-mpi weights threshold`"
        )
    spec = None if judged is None else judged.accept
    fits = spec is not None and single is not None and spec.single == single.fingerprint
    return spec if fits else None


def _no_threshold(settings: RunSettings, stage: Stage) -> UsageError:
    """The error for a stage without a threshold, with what to type."""
    name, kind = settings.network(stage.kind), stage.kind
    flag = f"--{kind}" if kind == COLLAGE else "--first"
    measure = ""
    if not (is_foreign(settings.single) or is_foreign(name)):
        measure = (
            f"`collage-mpi weights threshold --shards SHARDS --single {settings.single} "
            f"{flag} {name}` finds one; "
        )
    if len(settings.stages) == 1:
        measure += "--agree 0.99 lets the run choose one; or "
    return UsageError(
        f"scheme {settings.scheme} needs a threshold, from which on an answer of "
        f"{flag} {name} counts, and this network has none for this single network. "
        f"{measure}set it by hand with --confidence 0.9"
        + ("" if kind == COLLAGE else f", or --first {stage.text}@0.9")
    )


def any_foreign(settings: RunSettings) -> bool:
    """Whether a network that a threshold concerns has no weights file of this package."""
    return any(is_foreign(settings.network(kind)) for kind in (SINGLE, settings.judged))


def with_every_answer(settings: RunSettings) -> RunSettings:
    """The settings changed so that every answer counts at once."""
    first = tuple(replace(stage, threshold=None).text for stage in settings.stages)
    own = first if settings.first else ()
    return replace(settings, confidence=0.0, agree=None, first=own)
