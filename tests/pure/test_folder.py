"""The model of a shared folder that misbehaves, in one process: each of its promises, and time."""

from __future__ import annotations

import contextlib
import errno
import os
import random

import pytest

from tests.folder.misbehaviour import HANG_S, KEEP_S, KINDS, Hang, Misbehaviour
from tests.folder.promises import FIRST, PROMISES, get, put, told
from tests.folder.server import ROOT_USER
from tests.folder.store import Clock, Hung, Store


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_is_kept(name: str) -> None:
    plan, play = PROMISES[name]
    play(Store(plan))


def test_what_is_kept_is_kept_for_a_minute_at_most() -> None:
    longest = 0.0
    for seed in range(40):
        world = Store(Misbehaviour(seed, keep_s=KEEP_S))
        a, b = world.host("a"), world.host("b")
        put(a, "/x", b"1")
        file = b.open("/x", os.O_RDONLY)
        b.pread(file, 9, 0)
        b.listdir("/")
        assert told(b.stat, "/y") == errno.ENOENT
        put(a, "/x", b"12")
        put(a, "/y", b"1")
        looks = {
            "attributes": lambda b=b: b.stat("/x").st_size == 2,
            "content": lambda b=b, file=file: b.pread(file, 9, 0) == b"12",
            "a missing name": lambda b=b: told(b.stat, "/y") == 0,
            "a listing": lambda b=b: len(b.listdir("/")) == 2,
        }
        while looks:
            looks = {what: look for what, look in looks.items() if not look()}
            if looks:
                world.clock.wait(0.5)
        assert world.clock.now_s <= KEEP_S + 0.5
        longest = max(longest, world.clock.now_s)
    assert longest > KEEP_S - 10


def test_what_is_written_is_sent_after_half_a_minute_though_its_file_is_open() -> None:
    world = Store(Misbehaviour())
    a, b = world.host("a"), world.host("b")
    a.write(a.open("/x", FIRST), b"text")
    world.clock.wait(29)
    assert get(b, "/x") == b""
    world.clock.wait(1)
    assert get(b, "/x") == b"text"


def test_another_host_sees_a_long_file_grow_while_it_is_sent() -> None:
    seen = []

    class Watch(Clock):
        def wait(self, seconds: float) -> None:
            super().wait(seconds)
            seen.append(len(world.server._nodes[2].data) if 2 in world.server._nodes else 0)

    world = Store(Misbehaviour(), Watch())
    put(world.host("a"), "/x", bytes(150_000))
    assert {1 << 16, 1 << 17, 150_000} <= {*seen}


def test_a_call_takes_its_time() -> None:
    world = Store(Misbehaviour(call_s=0.02))
    put(world.host("a"), "/x", b"1")
    assert world.clock.now_s == pytest.approx(0.02 * world.server.calls)
    assert world.server.calls >= 3  # looked up, made, written


@pytest.mark.parametrize("only", [None, "a"])
def test_a_server_that_hangs_goes_on_after_three_minutes(only: str | None) -> None:
    late = set()
    for seed in range(8):
        world = Store(Misbehaviour(seed, hangs=(Hang(10, 10 + HANG_S, only),)))
        a, b = world.host("a"), world.host("b")
        put(a, "/x", b"1")
        assert world.clock.now_s == 0
        world.clock.wait(10)
        assert get(b, "/x") == b"1"
        assert (world.clock.now_s == 10) is (only == "a")
        world.clock.now_s = 11
        made = world.run(world.hosts["a"].mkdir(ROOT_USER, 1, "folder", 0o755))
        assert world.clock.now_s == 10 + HANG_S
        late.add(made.mtime_ns == 11 * 10**9)  # done at once, or when the server was back
    assert late == {True, False}


def test_a_server_that_hangs_for_ever_keeps_who_asks() -> None:
    world = Store(Misbehaviour(hangs=(Hang(0, float("inf"), "a"),)))
    with pytest.raises(Hung):
        world.host("a").listdir("/")
    assert world.host("b").listdir("/") == []


def played(seed: int) -> list[object]:
    """What two hosts meet under what a seed draws."""
    world = Store(Misbehaviour.drawn(seed))
    hosts, met = [world.host("a"), world.host("b")], []
    with contextlib.suppress(Hung):
        for number in range(60):
            host = hosts[number % 2]
            met.append(told(put, host, f"/{number % 7}", bytes(10_000)))
            met.append(told(host.link, f"/{number % 7}", f"/link{number % 11}"))
            met.append(told(host.unlink, f"/{number % 5}"))
    return [*met, world.clock.now_s]


def test_a_seed_draws_the_misbehaviour() -> None:
    seen = [played(seed) for seed in range(60)]
    assert seen == [played(seed) for seed in range(60)]
    errors = {number for each in seen for number in each[:-1]}
    drawn = {errno.EIO, errno.EEXIST, errno.ENOSPC, errno.EDQUOT, errno.ESTALE}
    assert drawn <= errors, drawn - errors
    plans = [Misbehaviour.drawn(seed) for seed in range(200)]
    assert {round(end - start) for plan in plans for start, end, _ in plan.hangs if end < 1e9} == {
        180
    }
    for kind, of in KINDS.items():
        changed = next(iter(of(random.Random(1))))
        assert any(getattr(plan, changed) for plan in plans), kind
