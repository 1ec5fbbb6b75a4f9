"""The model of a shared folder behind FUSE: the promises that it keeps in one process."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.folder.misbehaviour import HANG_S, Hang, Misbehaviour
from tests.folder.mount import Mounted, why_not
from tests.folder.promises import PROMISES, put, told

pytestmark = [pytest.mark.faults, pytest.mark.skipif(bool(why_not()), reason=why_not() or "")]


@pytest.fixture
def at() -> Iterator[Path]:
    """A folder that other users reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_is_kept(name: str, at: Path) -> None:
    plan, play = PROMISES[name]
    with Mounted(at, plan) as world:
        play(world)


def test_calls_and_hangs_take_their_time(at: Path) -> None:
    pace, began = 1000.0, time.monotonic()
    with Mounted(at, Misbehaviour(hangs=(Hang(0, HANG_S, "a"),)), pace) as world:
        put(world.host("a"), "/x", b"1")
    assert (time.monotonic() - began) * pace >= HANG_S
    began = time.monotonic()
    with Mounted(at / "slow", Misbehaviour(call_s=0.1)) as world:
        put(world.host("a"), "/x", b"1")
    assert time.monotonic() - began >= 0.3  # looked up, made, written


def test_a_process_waits_for_a_server_that_hangs_for_ever_until_its_host_is_lost(at: Path) -> None:
    with Mounted(at, Misbehaviour(hangs=(Hang(0, float("inf"), "a"),))) as world:
        a, b, seen = world.host("a"), world.host("b"), []
        waits = threading.Thread(target=lambda: seen.append(told(os.listdir, world.at / "a")))
        waits.start()
        put(b, "/x", b"1")
        assert (b.listdir("/"), seen) == (["x"], [])
        world.lose("a")
        waits.join()
        assert seen[0] in (errno.ENOTCONN, errno.ECONNABORTED)
        assert a is not None
