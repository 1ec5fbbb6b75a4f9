"""The settings of the input, the networks, and the place of the results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from collage_mpi.encoding.vectors import SAVES, Extras
from collage_mpi.errors import UsageError
from collage_mpi.kinds import KIND
from collage_mpi.models.named import check_trust
from collage_mpi.models.tuning import PRECISIONS, RUNTIMES, Tuning
from collage_mpi.system.fields import AUTO, Settings, setting

if TYPE_CHECKING:
    from collage_mpi.shards.pictures import PictureFit

MOST_PX = 1 << 14  # largest height and width of a picture
_setting = partial(setting, group="input and output")
_network = partial(setting, group="networks")


@dataclass(frozen=True, repr=False)
class InputSettings(Settings):
    """Which images are classified, and where the results go."""

    shards: tuple[str, ...] = _setting(
        (),
        "the images: shard files or folders of them, folders of pictures, text files that list "
        "pictures, tar files, Parquet files or Zarr arrays (docs/inputs.md)",
        metavar="PATH",
        flag="--input --shards",
        shipped=True,
    )
    image_px: int | None = _setting(
        None,
        "resize pictures that are not in shards to this height and width",
        unset="as the network needs, otherwise 224 px",
        at_least=1,
        at_most=MOST_PX,
    )
    fit: str = _setting(
        "crop",
        "how pictures that are not in shards become square. crop: keep the middle. letterbox: "
        "keep the whole picture and add bars",
        choices=("crop", "letterbox"),
    )
    resize_px: int | None = _setting(
        None,
        "with crop: length of the shorter edge before the crop",
        unset="as the network says; 256 for 224 px if it is a file of another program and says "
        "nothing; otherwise --image-px",
        at_least=1,
        at_most=MOST_PX,
    )
    channels: str = _setting(
        "auto",
        "3 for colour, 1 for grey. auto: as the network needs, otherwise 3",
        choices=("auto", "1", "3"),
    )
    input_labels: str = _setting(
        "auto",
        "labels of images that are not in shards. auto: take them from the source if it has any. "
        "none: no labels",
        choices=("auto", "none"),
    )
    out: str = _setting("", "folder to write the results to", metavar="DIR")
    shared_out: str = _setting(
        "off",
        "on: write into a results folder that belongs to another user, for example one that a "
        "group shares. The owner of the folder can read, change and remove the rows",
        choices=("off", "on"),
    )
    order: str = _setting(
        "file",
        "order of the images: file, or shuffle:SEED, a permutation that the seed decides",
        metavar="ORDER",
    )
    limit: int | None = _setting(
        None, "classify at most this many images", at_least=1, at_most=math.inf
    )

    class_names_file: str | None = _setting(
        None,
        "text file with the class names in order, one on each line. Needed if neither the input "
        "nor the networks name the classes",
        metavar="FILE",
        shipped=True,
    )
    pixels: str = _setting(
        "auto",
        "which ranks read, check and decode the images. rank0: rank 0, which sends them to the "
        "workers. workers: the workers; every worker needs the shards at the same path. auto: the "
        "workers that find the shards at that path, and rank 0 for the others; with --depth 1 "
        "rank 0 for all workers, ahead of time",
        choices=("rank0", "workers", "auto"),
    )
    decoder: str = _setting(
        "pillow",
        "what decodes pictures. pillow: Pillow on the CPU. gpu: not yet",
        choices=("pillow", "gpu"),
        hidden=True,  # until there is a choice
    )
    top_k: int | None = _setting(
        None,
        "keep this many classes of each image with their scores, best first, as Parquet files in "
        "OUT/vectors",
        unset="only the best class",
        at_least=1,
    )
    save: str = _setting(
        "none",
        "what else to keep of each image, in OUT/vectors. scores: the scores of all classes. "
        "embeddings: the network's embedding; needs scheme none, replicate or hedge. outputs: "
        "what a Python class of your own returns, as with `collage-mpi map`",
        choices=SAVES,
    )

    def _check(self) -> None:
        self.shuffle_seed()
        if self.decoder == "gpu":
            raise UsageError("decoder gpu: pictures cannot be decoded on a GPU yet; use pillow")

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
    backup: str = _network(
        "",
        "scheme cascade-batch: single classifier for the batches, which is quicker than the single "
        "network",
        unset="the single network",
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
        "and on some CPUs, and change some classes (docs/speed.md)",
        choices=PRECISIONS,
    )
    runtime: str = _network(
        "auto",
        "what computes the networks. auto: on CPUs the quickest installed runtime with the answers "
        "of torch, on GPUs torch with CUDA graphs (docs/speed.md)",
        choices=RUNTIMES,
    )

    def _check(self) -> None:
        check_trust(self.trust_network)

    def network(self, kind: str) -> str:
        """The network that ranks of a kind load: their own, or the one that replaces it."""
        return str(getattr(self, kind, "") or getattr(self, KIND[kind].network))

    def tuning(self) -> Tuning:
        """How the workers run their networks."""
        return Tuning(precision=self.precision, runtime=self.runtime)
