"""What the shared folder promises and what it does not, each played by two hosts.

A play gets a `Store` or a `Mounted`: the same plays hold the model in one process and behind FUSE.
None depends on time: what is kept is kept for ever here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from tests.folder.misbehaviour import Misbehaviour
from tests.folder.server import NODE_BYTES, User

EVER_S = 1e12
MAKE = os.O_WRONLY | os.O_CREAT
FIRST = MAKE | os.O_EXCL
PROMISES: dict[str, tuple[Misbehaviour, Callable[[Any], None]]] = {}


def promise(**plan: Any) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def keep(play: Callable[[Any], None]) -> Callable[[Any], None]:
        PROMISES[play.__name__] = Misbehaviour(**plan), play
        return play

    return keep


def put(host: Any, path: str, data: bytes, flags: int = MAKE | os.O_TRUNC) -> None:
    file = host.open(path, flags, 0o666)
    try:
        host.write(file, data)
    finally:
        host.close(file)


def get(host: Any, path: str) -> bytes:
    file = host.open(path, os.O_RDONLY)
    try:
        return host.read(file, 1 << 20)
    finally:
        host.close(file)


def told(act: Callable[..., Any], *given: Any) -> int:
    """The number of the error that it raises; 0 for none."""
    try:
        act(*given)
    except OSError as error:
        return error.errno or 0
    return 0


@promise(keep_s=EVER_S)
def who_opens_after_a_close_reads_what_was_written(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    put(a, "/x", b"old")
    assert get(b, "/x") == b"old"
    put(a, "/x", b"newer")
    assert get(b, "/x") == b"newer"


@promise(keep_s=EVER_S)
def who_has_a_file_open_reads_what_is_appended_late(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    put(a, "/x", b"one")
    file = b.open("/x", os.O_RDONLY)
    assert b.pread(file, 99, 0) == b"one"
    put(a, "/x", b" two", os.O_WRONLY | os.O_APPEND)
    assert b.pread(file, 99, 0) == b"one"
    assert b.fstat(file).st_size == 3
    assert get(b, "/x") == b"one two"
    assert b.pread(file, 99, 0) == b"one two"
    b.close(file)


@promise()
def what_is_written_is_seen_when_it_was_synced(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    file = a.open("/x", FIRST)
    a.write(file, b"text")
    assert (a.fstat(file).st_size, get(a, "/x"), get(b, "/x")) == (4, b"text", b"")
    a.write(file, b" more")
    a.fsync(file)
    assert get(b, "/x") == b"text more"
    a.close(file)


@promise()
def a_host_reads_what_it_has_not_sent(world: Any) -> None:
    a = world.host("a")
    put(a, "/x", b"0123")
    file = a.open("/x", os.O_RDWR)
    a.pwrite(file, b"ab", 1)
    a.pwrite(file, b"end", 6)
    assert a.pread(file, 99, 0) == b"0ab3\0\0end"
    a.close(file)
    assert get(world.host("b"), "/x") == b"0ab3\0\0end"


@promise()
def a_host_without_power_loses_what_it_has_not_sent(world: Any) -> None:
    a = world.host("a")
    file = a.open("/x", FIRST)
    a.write(file, b"sent")
    a.fsync(file)
    a.write(file, b" not sent")
    world.lose("a")
    assert get(world.host("b"), "/x") == get(world.host("a"), "/x") == b"sent"


@promise(keep_s=EVER_S)
def attributes_are_old_until_the_file_is_opened(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    put(a, "/x", b"1")
    assert b.stat("/x").st_size == 1
    put(a, "/x", b"12345")
    assert b.stat("/x").st_size == 1
    assert get(b, "/x") == b"12345"
    assert b.stat("/x").st_size == 5


@promise(keep_s=EVER_S)
def a_name_that_was_missing_is_missing_until_this_host_changes_it(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    put(b, "/mine", b"b")
    assert told(b.stat, "/x") == errno.ENOENT
    put(a, "/x", b"a")
    assert told(b.stat, "/x") == told(b.open, "/x", os.O_RDONLY) == errno.ENOENT
    assert told(b.link, "/mine", "/x") == errno.EEXIST
    assert get(b, "/x") == b"a"


@promise(keep_s=EVER_S)
def a_removed_name_is_there_until_it_is_opened(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    put(a, "/x", b"1")
    b.stat("/x")
    a.unlink("/x")
    b.stat("/x")
    assert told(b.open, "/x", os.O_RDONLY) == told(b.stat, "/x") == errno.ENOENT


@promise(keep_s=EVER_S)
def a_listing_is_old_and_a_name_can_still_be_opened(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    put(a, "/x", b"1")
    assert b.listdir("/") == ["x"]
    put(a, "/y", b"2")
    assert b.listdir("/") == ["x"]
    assert get(b, "/y") == b"2"
    put(b, "/z", b"3")
    assert sorted(b.listdir("/")) == ["x", "y", "z"]


@promise(keep_s=EVER_S)
def a_replaced_file_is_the_new_one_where_it_is_opened(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    put(a, "/x", b"old")
    before = b.stat("/x").st_ino
    put(a, "/new", b"new")
    a.rename("/new", "/x")
    assert b.stat("/x").st_ino == before
    assert get(b, "/x") == b"new"
    assert b.stat("/x").st_ino != before


@promise(keep_s=EVER_S)
def the_server_decides_who_is_first(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    put(a, "/from a", b"a")
    put(b, "/from b", b"b")
    for name in ("/made", "/linked", "/folder"):
        assert told(a.stat, name) == told(b.stat, name) == errno.ENOENT
    put(a, "/made", b"", FIRST)
    assert told(b.open, "/made", FIRST) == errno.EEXIST
    b.link("/from b", "/linked")
    assert told(a.link, "/from a", "/linked") == errno.EEXIST
    assert (get(a, "/linked"), b.stat("/from b").st_nlink) == (b"b", 2)
    a.mkdir("/folder")
    assert told(b.mkdir, "/folder") == errno.EEXIST


@promise()
def a_handle_whose_file_another_host_removed_is_stale(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    put(a, "/x", b"1")
    file = b.open("/x", os.O_RDONLY)
    a.unlink("/x")
    assert told(b.pread, file, 9, 0) == told(b.fstat, file) == errno.ESTALE
    b.close(file)


@promise()
def a_file_removed_where_it_is_open_has_a_silly_name_until_it_is_closed(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    for remove in (lambda: a.unlink("/x"), lambda: a.rename("/y", "/x")):
        put(a, "/x", b"1")
        put(a, "/y", b"2")
        file = a.open("/x", os.O_RDONLY)
        remove()
        assert [name[:4] for name in b.listdir("/") if name not in ("x", "y")] == [".nfs"]
        assert (a.pread(file, 9, 0), a.fstat(file).st_nlink) == (b"1", 1)
        a.close(file)
        a.stat("/")
        assert not [name for name in b.listdir("/") if name not in ("x", "y")]


@promise(lost=1.0)
def a_change_whose_reply_is_lost_is_done(world: Any) -> None:
    a, sound = world.host("a"), world.host("sound", mended=True)
    put(sound, "/x", b"1")
    seen = set()
    for number in range(16):
        seen.add(told(a.link, "/x", f"/link{number}"))
        seen.add(told(a.open, f"/made{number}", FIRST))
        seen.add(told(a.mkdir, f"/folder{number}"))
    assert seen == {errno.EEXIST, errno.EIO}
    assert len(sound.listdir("/")) == 49
    assert {told(a.open, f"/kept{number}", MAKE) for number in range(16)} == {errno.EIO}
    for number in range(16):
        sound.unlink(f"/kept{number}")
    gone = {told(a.unlink, f"/made{number}") for number in range(16)}
    gone |= {told(a.rename, f"/link{number}", "/same") for number in range(1)}
    gone |= {told(a.rmdir, f"/folder{number}") for number in range(16)}
    assert gone == {errno.ENOENT, errno.EIO}
    assert "same" in sound.listdir("/")
    assert len(sound.listdir("/")) == 17


@promise(eio=1.0)
def a_call_that_fails_with_eio_is_not_done(world: Any) -> None:
    a, sound = world.host("a"), world.host("sound", mended=True)
    assert told(a.open, "/x", FIRST) == told(a.listdir, "/") == errno.EIO
    assert sound.listdir("/") == []


@promise(estale=1.0)
def a_handle_can_be_stale_though_its_file_is_there(world: Any) -> None:
    a, sound = world.host("a"), world.host("sound", mended=True)
    put(sound, "/x", b"1")
    file = a.open("/x", os.O_RDONLY)
    assert told(a.pread, file, 9, 0) == errno.ESTALE
    assert get(sound, "/x") == b"1"


def full(world: Any, number: int) -> None:
    """A write ends in its middle; a close or a sync tells it, and each write from then on."""
    a, b = world.host("a"), world.host("b")
    file = a.open("/x", FIRST)
    a.write(file, bytes(200_000))
    assert told(a.fsync, file) == number
    assert told(a.fsync, file) == 0
    assert b.stat("/x").st_size == 100_000
    assert told(a.write, file, b"more") == number
    assert told(a.open, "/y", FIRST) == number
    assert told(a.link, "/x", "/z") == 0
    world.mend()
    assert a.pwrite(file, b"more", 100_000) == 4
    a.close(file)
    assert len(get(b, "/x")) == 100_004


@promise(room_bytes=100_000 + NODE_BYTES)
def a_full_disk_takes_the_first_part_of_a_write(world: Any) -> None:
    full(world, errno.ENOSPC)


@promise(quota_bytes=100_000 + NODE_BYTES)
def a_users_quota_takes_the_first_part_of_a_write(world: Any) -> None:
    full(world, errno.EDQUOT)


@promise(room_bytes=2 * NODE_BYTES)
def room_is_given_back_with_the_last_name(world: Any) -> None:
    a = world.host("a")
    put(a, "/x", bytes(NODE_BYTES))
    assert told(put, a, "/y", b"") == errno.ENOSPC
    a.unlink("/x")
    put(a, "/y", bytes(NODE_BYTES))


@promise(apart=True)
def no_link_and_no_rename_leads_to_another_folder(world: Any) -> None:
    a = world.host("a")
    a.mkdir("/one")
    a.mkdir("/two")
    put(a, "/one/x", b"1")
    assert told(a.link, "/one/x", "/two/x") == told(a.rename, "/one/x", "/two/x") == errno.EXDEV
    a.link("/one/x", "/one/y")
    a.rename("/one/y", "/one/z")
    assert sorted(a.listdir("/one")) == ["x", "z"]


@promise()
def users_are_held_apart_by_umask_and_protected_links(world: Any) -> None:
    one, two = world.host("a", User(1001, 1001)), world.host("b", User(1002, 1002))
    put(world.host("a", User(1001, 1001), 0o077), "/secret", b"1")
    put(one, "/open", b"1")
    put(world.host("a", User(1001, 1001), 0), "/shared", b"1")
    assert told(get, two, "/secret") == errno.EACCES
    assert get(two, "/open") == get(one, "/secret") == b"1"
    assert told(two.open, "/open", os.O_WRONLY) == errno.EACCES
    assert told(two.link, "/open", "/stolen") == errno.EPERM
    two.link("/shared", "/linked")
    one.link("/open", "/own")
    one.mkdir("/folder", 0o755)
    assert told(two.open, "/folder/x", FIRST) == errno.EACCES
    assert told(two.chmod, "/open", 0o777) == errno.EPERM


@promise()
def a_folder_is_removed_when_it_is_empty(world: Any) -> None:
    a, b = world.host("a"), world.host("b")
    a.mkdir("/folder")
    put(b, "/folder/x", b"1")
    assert told(a.rmdir, "/folder") == errno.ENOTEMPTY
    b.unlink("/folder/x")
    a.rmdir("/folder")
    assert told(b.stat, "/folder") == errno.ENOENT
