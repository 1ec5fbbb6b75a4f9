"""Takes a process's rights to start programs and to write files, where the kernel has Landlock
(Linux 5.13 and later). The process cannot get the rights back, and its children lack them too.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

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
