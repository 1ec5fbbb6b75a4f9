"""The child process of `asking`: loads one network, lets it answer noise, and says what it is.

Before it imports a library it gives up the right to start programs and to write anywhere but in its
own folder and the caches of hubs, where the kernel has Landlock (Linux 5.13 and later). The process
cannot get the rights back, and its children lack them too. A network of the user's own code keeps
all rights.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from collage_mpi.models.named import FUNCTION, PREFIXES, read_spec

# System calls, with the same numbers on all processors that Python runs on; linux/landlock.h.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, PATH_BENEATH = 1, 1
SET_NO_NEW_PRIVS = 38  # of prctl
EXECUTE, WRITE_FILE, REFER, TRUNCATE = 1 << 0, 1 << 1, 1 << 13, 1 << 14
CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))  # remove and make what is in a folder
SINK = Path("/dev/null")  # libraries open it to write what nobody reads


def confine(writable: Iterable[Path]) -> bool:
    """From now on this thread and its children start no program and write only in these folders.

    Call it before the process has further threads, and never in a process that uses MPI or CUDA.

    Args:
        writable: folders; those that do not exist are left out.

    Returns:
        False if the kernel has no Landlock; then nothing has changed.
    """
    if sys.platform != "linux":
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(ctypes.c_long(CREATE_RULESET), None, ctypes.c_size_t(0), VERSION_FLAG)
    if version < 1:
        return False
    newer = {2: REFER, 3: TRUNCATE}
    of_files = WRITE_FILE | (TRUNCATE if version >= 3 else 0)
    writes = WRITE_FILE | CHANGE_FOLDER | sum(newer[v] for v in newer if v <= version)
    handled = struct.pack("Q", EXECUTE | writes)
    rules = call(ctypes.c_long(CREATE_RULESET), handled, ctypes.c_size_t(len(handled)), 0)
    if rules < 0:
        return False
    try:
        for place in (*writable, SINK):
            with suppress(OSError):
                _allow(call, rules, place, writes if place.is_dir() else of_files)
        ctypes.CDLL(None).prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        restricted: int = call(ctypes.c_long(RESTRICT_SELF), rules, 0)
        return restricted == 0
    finally:
        os.close(rules)


def _allow(call: ctypes._NamedFuncPointer, rules: int, place: Path, rights: int) -> None:
    beneath = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, beneath)
        call(ctypes.c_long(ADD_RULE), rules, PATH_BENEATH, rule, 0)
    finally:
        os.close(beneath)


# Variables that name caches of hubs, and the cache without them.
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE", "TORCH_HOME")
CACHE = ("XDG_CACHE_HOME", "~/.cache")


def main() -> int:
    """Read a request from stdin, and print the answer as a line of JSON."""
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that output of libraries goes to stderr
    confine_for(request["spec"])
    # Imported late: numpy starts threads, which would keep their rights.
    from collage_mpi.errors import CollageError
    from collage_mpi.models.info import Geometry, Loading
    from collage_mpi.models.own import load_foreign

    geometry = Geometry(**{**request["geometry"], "classes": None})
    geometry = replace(geometry, image_shape=tuple(geometry.image_shape))
    how = Loading(geometry=geometry, trusted=request["trusted"])
    try:
        predictor, facts = load_foreign(request["spec"], request["kind"], how)
        said = {"facts": asdict(facts), "classes": predictor.classes}
        told = {**said, "fingerprint": predictor.fingerprint}
    except CollageError as fault:
        told = {"fault": type(fault).__name__, "message": str(fault)}
    print(json.dumps(told), file=answers, flush=True)
    return 0


def confine_for(spec: str) -> None:
    """Give up the rights that loading this network does not need."""
    named = read_spec(spec)
    if named is None or named.library == FUNCTION:
        return
    folders = [Path(tempfile.gettempdir())]
    if named.library in PREFIXES:
        caches = [*(os.environ.get(name) for name in CACHES), os.environ.get(*CACHE)]
        found = [Path(place).expanduser() for place in caches if place]
        for folder in found:  # a right is given to a folder that is there
            os.makedirs(folder, exist_ok=True)
        folders += found
    confine(folders)


if __name__ == "__main__":
    raise SystemExit(main())
