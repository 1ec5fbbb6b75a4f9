"""Decoding JPEG files: Pillow, simplejpeg; torchvision, torchcodec on the CPU and a GPU (nvJPEG).

Owns: the files (made here, of noise smoothed to a photograph's size in bytes), the clock, the
largest and mean difference of pixels to Pillow's.

    python analysis/decode_speed.py --device cuda       # needs collage-mpi[vision]; half a minute
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

PX, QUALITY = 224, 90  # some 17 kB a file

Decode = Callable[[Sequence[bytes]], Sequence["np.ndarray | torch.Tensor"]]


def make_files(count: int) -> list[bytes]:
    """JPEG files of PX x PX, each of its own seed."""
    found = []
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), np.uint8)
        buffer = io.BytesIO()
        picture = Image.fromarray(small).resize((PX, PX), Image.Resampling.BICUBIC)
        picture.save(buffer, "JPEG", quality=QUALITY)
        found.append(buffer.getvalue())
    return found


def pillow(files: Sequence[bytes]) -> list[np.ndarray]:
    """As folders of pictures are read."""
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]


def ways(device: str) -> Iterator[tuple[str, Decode]]:
    """Each decoder there is, on this device and on the CPU; why torchcodec is none is printed."""
    yield "Pillow", pillow
    if find_spec("simplejpeg"):
        from simplejpeg import decode_jpeg as by_turbo

        yield "simplejpeg", lambda files: [by_turbo(file) for file in files]
    devices = dict.fromkeys(("cpu", device))
    for where in devices:
        yield f"torchvision, {where}", on(where, partial(decode_jpeg, mode=ImageReadMode.RGB))
    try:
        from torchcodec import decoders
    except (ImportError, OSError, RuntimeError) as error:
        print(f"torchcodec is not measured: {str(error).splitlines()[0]}")
        return
    for where in devices:
        yield f"torchcodec, {where}", on(where, decoders.decode_jpeg)


def on(device: str, decoder: Callable[..., Any]) -> Decode:
    """One call for all files; its result is on the device, and there when it returns."""

    def decode(files: Sequence[bytes]) -> list[torch.Tensor]:
        raw = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        found: list[torch.Tensor] = decoder(raw, device=device)
        if device != "cpu":
            torch.cuda.synchronize()
        return found

    return decode


def least_ms(work: Callable[[], object], calls: int) -> float:
    """The least time of a call, after one more."""
    times = []
    for _ in range(1 + calls):
        start_ns = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - start_ns)
    return min(times[1:]) / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 9, 64])
    parser.add_argument("--calls", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = make_files(max(args.batches))
    print(f"{len(files)} files, {sum(map(len, files)) / len(files) / 1e3:.1f} kB each")
    print(f"{'decoder':<20} {'batch':>5} {'ms':>9} {'images/s':>9} {'most off':>9} {'mean off':>9}")
    known = np.stack(pillow(files)).astype(np.int16)  # (n, PX, PX, 3)
    for name, decode in ways(args.device):
        made = decode(files)
        pixels = [
            one.permute(1, 2, 0).cpu().numpy() if isinstance(one, torch.Tensor) else one
            for one in made
        ]
        off = np.abs(np.stack(pixels).astype(np.int16) - known)
        for size in args.batches:
            ms = least_ms(lambda decode=decode, size=size: decode(files[:size]), args.calls)
            print(
                f"{name:<20} {size:>5} {ms:>9.2f} {size / ms * 1e3:>9,.0f} {off.max():>9} "
                f"{off.mean():>9.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
