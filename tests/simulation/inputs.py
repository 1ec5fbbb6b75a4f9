"""Shards for simulated jobs, made once by the package as it is: `python -m ...inputs FOLDER`; and
what happens to them. The images of each are there as pictures in a tar file, too.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

PX = 6
ROWS = {"a.h5": 41, "b.h5": 30, "c.h5": 7}
HARMS = ("damage row", "truncate shard", "replace shard", "lose shard", "link shard")
MADE_S = 1_700_000_000
NETWORK = f"null:height={PX},width={PX},cell_px={PX}"
FIRST = f"{NETWORK},wrong=30"  # which errs where it is not sure
CHOOSING = 8  # images that choose a threshold, of so few
UNLABELLED = "unlabelled"  # the folder of shards without labels


def number_of(name: str) -> int:
    """The number of a shard, in whatever form it is."""
    return list(ROWS).index(f"{Path(name).stem}.h5")


def rows_of(name: str) -> int:
    """How many images it has."""
    return list(ROWS.values())[number_of(name)]


def answer(shard: int, row: int) -> int:
    """The class of an image, by which rows are checked."""
    return (7 * shard + 3 * row) % 10


def first_answers(shard: int) -> tuple[np.ndarray, np.ndarray]:
    """What FIRST says of the images of a shard: classes and scores, (n,) each. It is computed here
    anew, by which rows are checked."""
    images = pixels(shard)[:, 0, :3, 0] / 255
    doubt = 1 - images[:, 1]
    errs = images[:, 2] * 255 < 512 * 0.3 * doubt
    exact = np.array([answer(shard, row) for row in range(len(images))])
    return (exact + errs) % 10, 1 - 0.4 * doubt


def pixels(shard: int) -> np.ndarray:
    """The images of a shard, (n, PX, PX, 1) uint8. The first pixel says the class, the next how
    sure the first network is; of the last half of a shard it is less sure."""
    rows = list(ROWS.values())[shard]
    images = np.random.default_rng(shard).integers(0, 255, (rows, PX, PX, 1), dtype=np.uint8)
    classes = np.array([answer(shard, row) for row in range(rows)], np.uint8)
    images[:, 0, 0, 0] = 10 * np.arange(rows) % 240 + classes
    images[rows // 2 :, 0, 1, 0] //= 2
    return images


def make(folder: Path) -> None:
    """Write the shards; and others of their names and sizes, which may take their place."""
    from collage_mpi.shards.writer import write_shard

    for base in (folder, folder / UNLABELLED):
        (base / "other").mkdir(parents=True)
        for shard, (name, rows) in enumerate(ROWS.items()):
            images, tar = pixels(shard), Path(name).with_suffix(".tar")
            classes = np.array([answer(shard, row) for row in range(rows)])
            for place, step in ((base, 1), (base / "other", -1)):
                labels = classes[::step] if base == folder else None
                write_shard(place / name, images[::step], labels)
                _write_tar(place / tar, images[::step], labels)
    for path in folder.rglob("*.tar"):  # whose time is part of the fingerprint
        os.utime(path, (MADE_S, MADE_S + ("other" in path.parts)))


def picture(image: np.ndarray) -> bytes:
    """An image, (PX, PX, 1) uint8, as a file."""
    stream = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(stream, "PNG")
    return stream.getvalue()


def _write_tar(path: Path, images: np.ndarray, labels: np.ndarray | None) -> None:
    with tarfile.open(path, "w") as tar:
        for row, image in enumerate(images):
            files = {"png": picture(image)}
            if labels is not None:
                files["cls"] = str(labels[row]).encode()
            for end, data in files.items():
                entry = tarfile.TarInfo(f"{row:02}.{end}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


class Shards:
    """The shards of a job, in a folder of its own.

    Attributes:
        harmed: the names of those that are not as they were -> which of HARMS it is.
    """

    def __init__(self, good: Path, folder: Path, names: tuple[str, ...]) -> None:
        self._good, self._folder, self._names = good, folder, names
        self.harmed: dict[str, str] = {}
        for name in names:
            self._put(good / name, name)

    def _put(self, source: Path, name: str) -> None:
        """Put a file in the place of another, by a rename."""
        beside = self._folder / f".{name}.new"
        shutil.copy2(source, beside)
        os.replace(beside, self._folder / name)
        side = source.with_name(f"{name}.sha256")
        if side.exists():
            shutil.copy2(side, self._folder / side.name)

    def makes_another(self, kind: str, number: int) -> bool:
        """Whether one of HARMS to that shard is seen when a run goes on: of a small tar file the
        bytes are part of the fingerprint."""
        tar = self._names[number % len(self._names)].endswith(".tar")
        return kind == "replace shard" or (kind == "damage row" and tar)

    def harm(self, kind: str, number: int) -> None:
        """Do one of HARMS to the shard and row of a number."""
        name = self._names[number % len(self._names)]
        path = self._folder / name
        once = kind in ("damage row", "link shard")  # a second one would mend the first
        if not path.exists() or (once and name in self.harmed):
            return
        self.harmed[name] = "replace shard" if self.makes_another(kind, number) else kind
        if kind == "damage row":
            image = pixels(number_of(name))[number % rows_of(name)]
            # of a picture the first byte, without which it is none
            raw, byte = (picture(image), 0) if path.suffix == ".tar" else (image.tobytes(), number)
            byte %= len(raw)
            at = path.read_bytes().index(raw) + byte
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(bytes([255 - raw[byte]]))
        elif kind == "truncate shard":
            os.truncate(path, path.stat().st_size * (number % 10) // 10)
        elif kind == "replace shard":
            self._put(self._good / "other" / name, name)
        elif kind == "lose shard":
            path.unlink()
        else:  # the same content, by a link
            del self.harmed[name]
            path.unlink()
            shutil.copy2(self._good / name, self._folder / f".{name}.linked")
            path.symlink_to(self._folder / f".{name}.linked")

    def mend(self) -> None:
        """Put the good ones back."""
        for name in self.harmed:
            self._put(self._good / name, name)
        self.harmed.clear()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
