"""The cases, the programs, whose turn it is, and what starts a program on a case.

Owns: what is compared with what.
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from collage_mpi.models import describe
from collage_mpi.shards import write_shard
from collage_mpi.system.fields import with_shipped

HERE, WORKERS = Path(__file__).parent, 8
BIN = Path(sys.executable).parent

THROUGHPUT = ["--scheme", "none", "--batch", "auto"]
COLLAGE = ["--scheme", "collage", "--confidence", "0", "--batch", "auto"]
SENT, NAMED = ["--pixels", "rank0"], ["--pixels", "workers"]
OURS = {
    "ours": ["--scheme", "none"],
    "ours-paper": ["--scheme", "none", "--settings", "shipped:paper.json"],
    "ours-batch-1": [*THROUGHPUT, "--batch", "1", *SENT],
    "ours-throughput": [*THROUGHPUT, *SENT],
    "ours-collage": [*COLLAGE, *SENT],
    "ours-batch-1+workers": [*THROUGHPUT, "--batch", "1", *NAMED],
    "ours-throughput+workers": [*THROUGHPUT, *NAMED],
    "ours-collage+workers": [*COLLAGE, *NAMED],
}
PEERS = {
    "bare_mpi": "mpi4py",
    "futures": "mpi4py",
    "static_loader": "torch",
    "parsl_htex": "parsl",
    "ray_actors": "ray",
    "ray_data": "ray",
    "daft_udf": "daft",
}
# Who reads: "" the images are in memory, "+sender" reads them as it sends, "+workers".
VARIANTS = {
    "bare_mpi": ("", "+sender", "+workers"),
    "futures": ("", "+sender", "+workers"),
    "static_loader": ("", "+workers"),
    "parsl_htex": ("", "+workers"),
    "ray_actors": ("", "+workers"),
    "ray_data": ("", "+workers"),
    "daft_udf": ("", "+workers"),
}
CHUNKS = {"futures": (1, 8, 32), "bare_mpi": (8, 32), "static_loader": (8,)}  # else 32


@dataclass(frozen=True)
class Case:
    """One piece of work; `slow`: worker 1 is so many times slower; `kill`: one is killed."""

    name: str
    px: int
    images: int
    stored: str = "raw"
    network: str = "null"
    service_ms: float = 0.0
    slow: float = 1.0
    kill: bool = False

    @property
    def shard(self) -> tuple[int, str]:
        return self.px, self.stored


CASES = (
    Case("224 px", 224, 4000),
    Case("JPEG of 500 x 375", 224, 1500, "jpeg"),
    Case("60 x slow", 28, 4200, service_ms=10.0, slow=60.0),
    Case("5 x slow", 28, 4200, service_ms=10.0, slow=5.0),
    Case("killed", 28, 4200, service_ms=10.0, kill=True),
    Case("28 px, shipped network", 28, 3000, network="shipped:fashion_single.safetensors"),
    Case("28 px", 28, 12000),
)


@dataclass(frozen=True)
class Turn:
    """One run to be made: `chunk` images a task, 0 what ours takes by itself."""

    case: Case
    repeat: int
    program: str
    chunk: int

    @property
    def key(self) -> tuple[object, ...]:
        return self.case.name, self.repeat, self.program, self.chunk


def turns(
    cases: list[Case], programs: list[str], repeats: int, chunks: tuple[int, ...]
) -> Iterator[Turn]:
    """Whose turn it is: each case whole before the next one, all cases before a repeat."""
    for repeat in range(repeats):
        for case in cases:
            for program in programs:
                if takes_part(program, case):
                    for chunk in chunks_of(program, case, chunks):
                        yield Turn(case, repeat, program, chunk)


def takes_part(program: str, case: Case) -> bool:
    """Who reads matters where nothing is slowed down; a JPEG in memory is a raw image."""
    if "+" in program:
        return not case.service_ms and case.network == "null"
    return program in OURS or case.stored == "raw"


def chunks_of(program: str, case: Case, chunks: tuple[int, ...]) -> tuple[int, ...]:
    if program in OURS:
        return (0,)
    usual = CHUNKS.get(program.partition("+")[0], (32,))
    if case.service_ms:  # large tasks would only make a slow worker's last one longer
        usual = (1, 8) if program == "futures" and not case.kill else (1,)
    return chunks or usual


def command(turn: Turn, shard: Path, work: Path) -> list[str]:
    """What starts the program on the case."""
    case, (program, _, source) = turn.case, turn.program.partition("+")
    if turn.program in OURS:
        ranks = WORKERS + 1 + ("collage" in program)
        words = [str(BIN / "collage-mpi"), "launch", "-n", str(ranks)]
        words += ["--on-rank-loss", "continue", "--", "run"]
        words += ["--shards", str(shard), "--single", case.network, "--out", str(work / "run")]
        words += ["--collage", case.network.replace("single", "collage_side3")]
        words += ["--singles", str(WORKERS), "--limit", str(case.images)]
        words += ["--status-every-s", "0.5"] if case.kill else []
        if case.service_ms:  # a further image of a batch takes as long as the first
            words += ["--straggler", f"pinned:{case.service_ms}"]
            words += ["--batch-cost", "1", "--cost-ratio", "1"]
            words += ["--slow-ranks", f"1:{case.slow}"] if case.slow > 1 else []
        return words + OURS[turn.program]
    said = {"shard": shard, "images": case.images, "workers": WORKERS, "chunk": turn.chunk}
    said |= {"source": source or "memory", "network": case.network, "slow": case.slow}
    said |= {"service-ms": case.service_ms, "notes": work}
    start = [sys.executable]
    if program in ("bare_mpi", "futures", "static_loader"):
        ranks = WORKERS + (program != "static_loader")
        start = [str(BIN / "mpiexec"), "-n", str(ranks), *start]
        start += ["-m", "mpi4py.futures"] if program == "futures" else []
    flags = [word for flag, value in said.items() for word in (f"--{flag}", str(value))]
    return [*start, str(HERE / f"{program}.py"), *flags]


def make_shard(case: Case, path: Path, count: int, classes: tuple[str, ...] | None) -> None:
    """A shard of noise, or a tar file of photographs' like, some of them again and again."""
    labels = np.zeros(count, np.int64)
    rng = np.random.default_rng(0)
    if case.stored == "raw":
        shape = (count, case.px, case.px, 3 if case.px > 28 else 1)
        images = rng.integers(0, 256, shape, np.uint8)
        write_shard(path, images, labels, class_names=classes)
        return
    files = []
    for _ in range(min(count, 200)):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        grain = rng.normal(0, 6, smooth.shape).astype(np.int16)
        stream = io.BytesIO()
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG")
        files.append(stream.getvalue())
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            data = files[number % len(files)]
            member = tarfile.TarInfo(f"{number:08d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def make_shards(cases: list[Case], folder: Path) -> dict[tuple[int, str], Path]:
    weights = with_shipped("shipped:fashion_single.safetensors")
    classes = describe(weights, "single").class_names
    shards = {}
    for case in cases:
        path = folder / f"{case.px}.{'h5' if case.stored == 'raw' else 'tar'}"
        if case.shard not in shards:
            make_shard(case, path, max(c.images for c in cases if c.shard == case.shard), classes)
        shards[case.shard] = path
    return shards
