"""How fast images become cells: microseconds an image by filter, size and batch.

Owns: random images and the clock around each way to shrink them. The table
is in analysis/reports/benchmarks.md.
One core, arrays in memory; nothing else should run.

    python analysis/encode_rates.py

OpenCV and torchvision are measured where they are installed (pip install
opencv-python-headless torchvision); encoding needs neither.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image

from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid

CASES = (((224, 224, 3), 139, 3), ((224, 224, 3), 104, 4), ((28, 28, 1), 20, 3))
IMAGES, REPEATS = 64, 5
Work = Callable[[], object]


def us_an_image(work: Work) -> float:
    """The fastest of `REPEATS` runs of `work`, which takes IMAGES images."""
    work()
    times = []
    for _ in range(REPEATS):
        start_ns = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - start_ns)
    return min(times) / IMAGES / 1e3


def pillow(images: np.ndarray, px: int, name: str, gap: float | None = None) -> Work:
    """Pillow, an image at a time."""
    way = Image.Resampling[name]

    def work() -> None:
        for image in images:
            plain = image[:, :, 0] if image.shape[2] == 1 else image
            np.asarray(Image.fromarray(plain).resize((px, px), way, reducing_gap=gap))

    return work


def torch_batches(encoder: Encoder, images: np.ndarray, batch: int) -> Work:
    """The encoder's own way, `batch` images a call."""
    return lambda: [encoder.shrink(images[at : at + batch]) for at in range(0, len(images), batch)]


def opencv(images: np.ndarray, px: int) -> Work | None:
    """OpenCV's area filter, or None where it is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return lambda: [cv2.resize(i, (px, px), interpolation=cv2.INTER_AREA) for i in images]


def torchvision(images: np.ndarray, px: int, batch: int) -> Work | None:
    """torchvision's resize of a batch, or None where it is not installed."""
    try:
        from torchvision.transforms.v2.functional import resize
    except ImportError:
        return None

    def work() -> None:
        for at in range(0, len(images), batch):
            pixels = torch.from_numpy(images[at : at + batch]).permute(0, 3, 1, 2)  # (n, C, H, W)
            resize(pixels, [px, px], antialias=True).permute(0, 2, 3, 1).contiguous()

    return work


def paste(encoder: Encoder, images: np.ndarray) -> Work:
    """What is left for rank 0's loop: pasting cells that are ready."""
    cells = list(encoder.shrink(images))
    out = np.empty(encoder.input_shape, np.uint8)
    n = encoder.grid.cells
    groups = [cells[at : at + n] for at in range(0, IMAGES, n)]
    return lambda: [encoder.paste(group, out) for group in groups]


def jpeg(images: np.ndarray, px: int, draft: bool) -> Work:
    """A smooth photograph's JPEG bytes to a cell; `draft` decodes at a smaller scale if it can."""
    height, width, channels = images.shape[1:]
    mode = "L" if channels == 1 else "RGB"
    noise = Image.fromarray(images[0, :8, :8].squeeze())
    stream = io.BytesIO()
    noise.convert(mode).resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG")

    def work() -> None:
        for _ in range(IMAGES):
            image = Image.open(io.BytesIO(stream.getvalue()))
            if draft:
                image.draft(mode, (px, px))
            np.asarray(image.resize((px, px), Image.Resampling.BILINEAR))

    return work


def ways(shape: tuple[int, int, int], px: int, side: int) -> Iterator[tuple]:
    """(what, work) of a case."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), np.uint8)
    encoder = Encoder(Grid(side, px), shape, threads=1)
    yield "Pillow bilinear", pillow(images, px, "BILINEAR")
    yield "Pillow bilinear, reducing_gap 1", pillow(images, px, "BILINEAR", 1.0)
    yield "Pillow box", pillow(images, px, "BOX")
    yield "OpenCV area", opencv(images, px)
    yield "torchvision, 64 a call", torchvision(images, px, 64)
    yield "torch, 1 a call", torch_batches(encoder, images, 1)
    yield "torch, 9 a call", torch_batches(encoder, images, 9)
    yield "torch, 64 a call (the job)", torch_batches(encoder, images, 64)
    yield "pasting ready cells", paste(encoder, images)
    yield "JPEG to cell, Pillow", jpeg(images, px, draft=False)
    yield "JPEG to cell, Pillow with draft", jpeg(images, px, draft=True)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    for shape, px, side in CASES:
        print(f"\n{shape[0]} x {shape[1]} x {shape[2]} to {px} px, us an image")
        for what, work in ways(shape, px, side):
            shown = "not installed" if work is None else f"{us_an_image(work):8.1f}"
            print(f"  {what:<34} {shown}")


if __name__ == "__main__":
    main()
