"""Decides when images enter the job: as earlier groups end (closed loop), or at given times (open
loop). Reads their files, and those of traces: .npy files of measured service times in seconds,
(machines, requests), each row in the order of time.

In an open loop, an image's latency counts from its *intended* arrival, even if rank 0 was delayed.
Otherwise a system that cannot keep up would look fast (coordinated omission). Images that may not
enter yet are not read, so the window limits the memory.
"""

from __future__ import annotations

import io
from collections import deque
from pathlib import Path

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.system.files import reading, require_regular, save_file

LARGEST_S = 1e9


class ClosedLoop:
    """Images enter when the core requests them. The time of the request is their t0."""

    def __init__(self) -> None:
        self._wanted: deque[tuple[int, int]] = deque()  # (t0_ns, images)

    def start(self, now_ns: int) -> None:
        """Does nothing, because no image enters by time alone."""

    def admit(self, now_ns: int, images: int) -> None:
        """Note a request of the core, before the images are read (C3)."""
        self._wanted.append((now_ns, images))

    def granted(self, now_ns: int) -> None:
        """Let the open requests count from now, because there were no images to read until now."""
        self._wanted = deque((now_ns, images) for _, images in self._wanted)

    @property
    def waiting(self) -> bool:
        """Whether a requested image has not entered yet."""
        return bool(self._wanted)

    def due(self, now_ns: int) -> int:
        """The number of images that may enter now: the rest of the oldest request."""
        return self._wanted[0][1] if self._wanted else 0

    def enter(self, now_ns: int, images: int) -> tuple[int, int]:
        """Let the next images enter, at most as many as are due: their t0, and the time from which
        they could have been read."""
        t0_ns, wanted = self._wanted.popleft()
        if wanted > images:
            self._wanted.appendleft((t0_ns, wanted - images))
        return t0_ns, t0_ns

    def next_ns(self, now_ns: int) -> int | None:
        """Always None, because no image enters by time alone."""
        return None


class OpenLoop:
    """Images enter at given times, if the core has room for them.

    Args:
        times_ns: (n,) int64, non-decreasing, ns since the start.
    """

    def __init__(self, times_ns: np.ndarray) -> None:
        self._times_ns = times_ns
        self._start_ns = 0
        self._entered = 0
        self._room = 0  # images that the core accepts
        self._asked_ns: int | None = None  # time from which the next image could have been read

    def start(self, now_ns: int) -> None:
        """Let the times count from now."""
        self._start_ns = now_ns

    def admit(self, now_ns: int, images: int) -> None:
        """Note that the core accepts this many more images."""
        self._room += images

    @property
    def waiting(self) -> bool:
        """Whether there is room."""
        return self._room > 0

    def due(self, now_ns: int) -> int:
        """The number of images whose time has come and for which there is room."""
        ahead = self._times_ns[self._entered : self._entered + self._room]
        count = int(np.searchsorted(ahead, now_ns - self._start_ns, side="right"))
        if count and self._asked_ns is None:
            self._asked_ns = now_ns
        return count

    def enter(self, now_ns: int, images: int) -> tuple[np.ndarray, int]:
        """Let the next images enter: (images,) int64, the intended arrival of each, which is its
        t0; and the time from which they could have been read."""
        asked_ns = now_ns if self._asked_ns is None else self._asked_ns
        times_ns = self._times_ns[self._entered : self._entered + images] + self._start_ns
        self._entered += images
        self._room -= images
        self._asked_ns = None
        return times_ns, asked_ns

    def next_ns(self, now_ns: int) -> int | None:
        """The time of the next intended arrival; None if it has passed or there is no room."""
        if self._room == 0 or self._entered == len(self._times_ns):
            return None
        at_ns = self._start_ns + int(self._times_ns[self._entered])
        return at_ns if at_ns > now_ns else None


# Times are those of the driver's clock.
Arrivals = ClosedLoop | OpenLoop


def poisson_times_ns(rate: float, seed: int, images: int) -> np.ndarray:
    """Arrival times of a Poisson process with `rate` events a second: (images,) int64 ns. With
    fewer images the times are a prefix of these.
    """
    gaps_s = np.random.default_rng(seed).exponential(1 / rate, images)
    return np.round(np.cumsum(gaps_s) * 1e9).astype(np.int64)


def load_times_ns(path: str, images: int) -> np.ndarray:
    """Read intended arrivals from a file, in seconds since the start: .npy, or one number a line.

    Returns:
        (images,) int64 ns, the first times of the file.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file does not hold numbers, a time is negative or earlier than the time
            before, or there are fewer than `images` times.
    """
    times_s = load_numbers(path, "arrival file") if path.endswith(".npy") else _text(path)
    if times_s.ndim != 1:
        raise DataFault(f"arrival file {path} has shape {times_s.shape}; needed is (images,)")
    bad = ~((times_s >= 0) & (times_s <= LARGEST_S))
    if bad.any():
        first = int(np.argmax(bad))
        raise DataFault(
            f"arrival file {path}, time {first} is {times_s[first]}; they are seconds since the "
            "start, 0 or more"
        )
    falls = np.flatnonzero(np.diff(times_s) < 0)
    if len(falls):
        i = int(falls[0])
        raise DataFault(
            f"arrival file {path}: time {i + 1} ({times_s[i + 1]:g} s) is before time {i} "
            f"({times_s[i]:g} s); sort them"
        )
    if len(times_s) < images:
        raise DataFault(
            f"arrival file {path} has {len(times_s):,} times for {images:,} images: say --limit "
            f"{len(times_s)}, or name a longer file"
        )
    return np.round(times_s[:images] * 1e9).astype(np.int64)


def _text(path: str) -> np.ndarray:
    with reading(f"arrival file {path}", "no list of numbers"):
        require_regular(path)
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        words = [line.partition("#")[0].strip() for line in lines]
        return np.array([float(word) for word in words if word])


def load_trace(path: str) -> np.ndarray:
    """Read and check a trace.

    Returns:
        (machines, requests) float64, seconds, all positive.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: the file is not a .npy of numbers, is empty, has a wrong shape, or a number is
            not positive.
    """
    times = load_numbers(path, "trace")
    if times.ndim == 1:
        times = times[None, :]
    if times.ndim != 2 or times.size == 0:
        raise DataFault(
            f"trace {path} has shape {times.shape}; needed is (machines, requests), not empty"
        )
    bad = ~(np.isfinite(times) & (times > 0) & (times <= LARGEST_S))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataFault(
            f"trace {path} holds {int(bad.sum()):,} times that are not positive seconds, the first "
            f"in row {row}, column {column}: {times[row, column]}"
        )
    return times


def load_numbers(path: str, what: str) -> np.ndarray:
    """Read an array of real numbers from a .npy file, as float64. Nothing is unpickled.

    Args:
        what: names the file in messages.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: the file is not a .npy of numbers.
    """
    with reading(f"{what} {path}", "no .npy file of numbers"):
        require_regular(path)
        # Memory-mapped, so that a wrong header fails before memory is allocated.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray):
        found.close()  # an .npz
        raise DataFault(f"{what} {path} is an .npz; it needs one array: numpy.save makes it")
    if found.dtype.kind not in "fiu":
        raise DataFault(f"{what} {path} holds {found.dtype}; it needs numbers")
    return found.astype(np.float64)


def save_trace(path: Path, times_s: np.ndarray) -> None:
    """Write a trace atomically.

    Raises:
        EnvironmentFault: the file exists, or cannot be written.
    """
    if path.exists():
        raise EnvironmentFault(f"{path} is there already: name another --out, or remove it")
    content = io.BytesIO()
    np.save(content, times_s, allow_pickle=False)
    save_file(path, content.getvalue())
