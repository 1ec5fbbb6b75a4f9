"""Opens and verifies shards in a child process, under a time and a memory limit.

libhdf5 can loop or crash on damaged files (24 endless loops and a segfault in 7,923 mutated
shards), and a rank must not. The child is a new process (`python -m collage_mpi.shards.guard`) and
not a fork, because a fork after MPI_Init hangs. It takes one JSON request on stdin and answers with
one JSON line a shard. So one child checks many shards, and it is known which shard killed it.
"""

from __future__ import annotations

import json
import os
import resource
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.shards.schema import HASH_LIMIT_BYTES, ShardInfo, split_part
from collage_mpi.system.process_tree import ask_apart, own_command

CHILD_COMMAND = own_command("collage_mpi.shards.guard")
MEMORY_BYTES = 2 << 30
START_S = 60.0  # python and h5py from a cold network file system
BYTES_PER_S = 20e6  # hashing and reading that is slower than this counts as hung
DECODE_BYTES_PER_S = 2e6  # the same for verify, which decodes images: 20 to 40 MB/s on one core


def inspect_shard(path: Path | str, *, limit_s: float | None = None) -> ShardInfo:
    """Describe one shard after checking it.

    Raises:
        DataFault, EnvironmentFault: as `examine_shards` returns it.
    """
    [found] = examine_shards([Path(path)], limit_s=limit_s)
    if isinstance(found, CollageError):
        raise found
    return found


def examine_shards(
    paths: Sequence[Path], *, limit_s: float | None = None
) -> list[ShardInfo | CollageError]:
    """Describe shards after checking structure and, up to 256 MiB, their SHA-256.

    Args:
        paths: the files.
        limit_s: time for all files in seconds; the default grows with their size.

    Returns:
        For each file its description, or its fault. DataFault: the file is not a shard, is damaged,
        or hangs or crashes the HDF5 library. EnvironmentFault: it is missing or unreadable.
    """
    answers = _ask("inspect", paths, limit_s)
    found: list[ShardInfo | CollageError] = []
    for path, answer in zip(paths, answers, strict=True):
        if "info" in answer:
            info = ShardInfo.from_json(answer["info"])
            assert info.path == path
            found.append(info)
        else:
            kind = EnvironmentFault if answer.get("kind") == "environment" else DataFault
            found.append(kind(answer["problem"]))
    return found


def verify_shard(path: Path | str, *, limit_s: float | None = None) -> list[str]:
    """All problems of one shard (checksums of file and rows, structure, labels); [] if none.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
    """
    path = Path(path)
    (answer,) = _ask("verify", [path], limit_s)
    if answer.get("kind") == "environment":
        raise EnvironmentFault(answer["problem"])
    if "problem" in answer:
        return [answer["problem"].removeprefix(f"{path}: ")]
    return list(answer["problems"])


def _ask(task: str, paths: Sequence[Path], limit_s: float | None) -> list[dict[str, Any]]:
    """One answer for each path. If a child dies, the answer for the file that it was reading says
    so, and a new child goes on with the rest.
    """
    answers: list[dict[str, Any]] = []
    while len(answers) < len(paths):
        rest = paths[len(answers) :]
        found, death = _run_child(task, rest, _limit_s(task, rest) if limit_s is None else limit_s)
        answers += found[: len(rest)]
        if len(answers) < len(paths):
            culprit = paths[len(answers)]
            answers.append({"problem": f"{culprit}: {death}"})
    return answers


def _run_child(
    task: str, paths: Sequence[Path], limit_s: float
) -> tuple[list[dict[str, Any]], str]:
    request = {"task": task, "paths": [str(path) for path in paths], "cpu_s": int(limit_s) + 5}
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    said = ask_apart(CHILD_COMMAND, request, limit_s, environment)
    answers = [json.loads(line) for line in said.lines]
    if said.code == 1 and not answers:
        raise EnvironmentFault(
            f"the shard checker `{' '.join(CHILD_COMMAND)}` did not start: "
            f"{said.last_word or 'no message'}. Is h5py installed and working?"
        )
    if said.code is None:
        return answers, (
            f"reading it did not end within {limit_s:g} s; the file is damaged (copy or make "
            "it again) or its file system hangs"
        )
    return answers, (
        f"reading it crashed the HDF5 library (exit code {said.code}); "
        "the file is damaged: copy or make it again"
    )


def _limit_s(task: str, paths: Sequence[Path]) -> float:
    files = (split_part(path)[0] for path in paths)
    sizes = (os.path.getsize(file) for file in files if os.path.isfile(file))
    return START_S + sum(sizes) / (DECODE_BYTES_PER_S if task == "verify" else BYTES_PER_S)


def main() -> None:
    """The child process: set the limits, then print a JSON line for each path."""
    request = json.load(sys.stdin)
    _limit_child(request["cpu_s"])
    for path in map(Path, request["paths"]):
        print(json.dumps(_answer(request["task"], path)), flush=True)


def _limit_child(cpu_s: int) -> None:
    wanted = ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, cpu_s))
    for limit, value in (*wanted, (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(limit, (ceiling, hard))
        except (ValueError, OSError):
            pass  # some systems refuse RLIMIT_AS; the parent's time limit still holds


def _answer(task: str, path: Path) -> dict[str, Any]:
    from collage_mpi.shards.check import inspect_here, verify_here

    try:
        file = split_part(path)[0]
        if not stat.S_ISREG(file.stat().st_mode):
            problem = f"{path}: cannot be read: a folder, pipe or device, not a file"
            return {"problem": problem, "kind": "environment"}
        if task == "verify":
            return {"problems": verify_here(path)}
        hash_file = file.stat().st_size <= HASH_LIMIT_BYTES
        return {"info": inspect_here(path, hash_file=hash_file).to_json()}
    except CollageError as fault:
        return {"problem": str(fault), "kind": "data"}
    except OSError as error:
        reason = error.strerror or str(error)
        return {"problem": f"{path}: cannot be read: {reason}", "kind": "environment"}
    except MemoryError:
        return {"problem": f"{path}: reading it takes over {MEMORY_BYTES >> 20} MiB of memory"}


if __name__ == "__main__":
    main()
