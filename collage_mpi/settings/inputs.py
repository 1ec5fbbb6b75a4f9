"""What is classified, by which networks, and where the results go: the settings of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from collage_mpi.encoding.vectors import SAVES, Extras
from collage_mpi.errors import UsageError
from collage_mpi.kinds import KIND
from collage_mpi.models.tuning import COMPILES, LAYOUTS, PRECISIONS, Tuning
from collage_mpi.system.fields import Settings, setting

_setting = partial(setting, group="input and output")
_network = partial(setting, group="networks")


@dataclass(frozen=True, repr=False)
class InputSettings(Settings):
    """Which images are classified, and where the results go."""

    shards: tuple[str, ...] = _setting((), "shard files, or folders of them", metavar="PATH")
    out: str = _setting("", "folder for the results", metavar="DIR")
    shared_out: str = _setting(
        "off",
        "on: take a folder for the results that belongs to another user, such as one that a group "
        "shares; its owner can read, change and remove the rows",
        choices=("off", "on"),
    )
    bad_shards: str = _setting(
        "skip",
        "a shard that cannot be read: do the rest and end with code 4, or refuse to start",
        choices=("skip", "refuse"),
    )
    order: str = _setting("file", "order of the images: file, or shuffle:SEED", metavar="ORDER")
    limit: int | None = _setting(
        None, "classify at most this many images", at_least=1, at_most=math.inf
    )

    class_names_file: str | None = _setting(
        None,
        "names of the classes in order, a name a line, where neither shards nor networks name them",
        metavar="FILE",
    )
    pixels: str = _setting(
        "rank0",
        "who reads, checks and decodes the images: rank 0, which sends them; the workers, "
        "which all need the shards at the same path; or those workers that have them",
        choices=("rank0", "workers", "auto"),
    )
    top_k: int | None = _setting(
        None,
        "keep so many classes of each image, the best first, with their scores, as Parquet in "
        "OUT/vectors",
        unset="the best alone",
        at_least=1,
    )
    save: str = _setting(
        "none",
        "keep the scores of all classes, or the network's embedding of each image, there too; "
        "embeddings with schemes none, replicate and hedge",
        choices=SAVES,
    )

    def _check(self) -> None:
        self.shuffle_seed()

    @property
    def by_place(self) -> bool:
        """Whether tasks name images, which their ranks read, those that can at least."""
        return self.pixels != "rank0"

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
        "single classifier: a .safetensors file, shipped:NAME, MODULE:FUNCTION, or null",
        metavar="W",
    )
    collage: str = _network(
        "", "collage-CNN: a .safetensors file, shipped:NAME, MODULE:FUNCTION, or null", metavar="W"
    )
    parity: str = _network(
        "", "parity network: a .safetensors file, shipped:NAME, or null", metavar="W"
    )
    backup: str = _network(
        "",
        "network of scheme batch-backup's spare ranks, or that scheme cascade-batch asks first: a "
        "single classifier, smaller maybe",
        unset="the single network",
        metavar="W",
    )
    cell_px: int | None = _network(
        None, "pixels along an edge of a cell", unset="what the collage network says", at_least=1
    )
    device: str = _network("auto", "device of the workers", choices=("auto", "cpu", "cuda"))
    precision: str = _network(
        "auto",
        "number format of the networks; auto is float32 with --save, else float16 on GPUs, "
        "bfloat16 on CPUs where it is faster (docs/speed.md)",
        choices=PRECISIONS,
    )
    channels_last: str = _network(
        "on", "networks in the channels-last memory format", choices=LAYOUTS
    )
    compile: str = _network(
        "auto", "how kernels are launched; auto is CUDA graphs on GPUs", choices=COMPILES
    )
    warmup_tasks: int = _network(3, "dummy tasks a rank runs before it is ready", at_least=0)

    def network(self, kind: str) -> str:
        """What ranks of the kind load: its own network, or the one that they run in its place."""
        return str(getattr(self, kind, "") or getattr(self, KIND[kind].network))

    def tuning(self) -> Tuning:
        """How the workers run their networks."""
        return Tuning(self.precision, self.channels_last, self.compile)
