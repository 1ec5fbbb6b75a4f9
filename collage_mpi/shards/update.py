"""What has changed in a source since it was listed: which pictures are new, have other bytes or
another name, or are gone. `compare` decides; nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from collage_mpi.errors import UsageError
from collage_mpi.shards.column import Column, pieces
from collage_mpi.shards.members import MemberIndex, name_text
from collage_mpi.system.printable import counted

MOST_BY_TIME = 0.1  # of the pictures may be classified again because of their times alone
KEYS_AT_ONCE = 1 << 18  # of a list
KEY = np.dtype([("high", "<u8"), ("low", "<u8")])
NONE = bytes(KEY.itemsize)
ASK, AGAIN, SAME = "ask", "again", "same"


@dataclass(frozen=True)
class Update:
    """How a run is updated.

    Attributes:
        touched: what to do with pictures of another time and the same size, whose bytes are not
            known: AGAIN, SAME, or ASK if they are more than MOST_BY_TIME.
        prune: pictures that are gone lose their rows.
        trust_dirs: do not look at the known pictures of a folder that has its own time of before.
    """

    touched: str = ASK
    prune: bool = False
    trust_dirs: bool = False


class Changes(NamedTuple):
    """What has changed between two lists of members.

    Attributes:
        found: (n,) int64, for each row of the old list its row in the new one; -1: it is gone.
        changed: (n,) bool, the picture has other bytes, as far as is known, or another label.
        by_time: (n,) bool, those of them that only have another time.
        touched: (n,) bool, the picture has another time or name, whatever its bytes.
        other: (n,) bool, it is known to have other bytes.
        new: (k,) int64, rows of the new list that are in no row of the old one.
    """

    found: np.ndarray
    changed: np.ndarray
    by_time: np.ndarray
    touched: np.ndarray
    other: np.ndarray
    new: np.ndarray


def compare(old: MemberIndex, new: MemberIndex, *, content: bool = False) -> Changes:
    """What has changed. Of several members with a name, the first ones are the same pictures.

    A picture that could be read and has a fault now is gone.

    Args:
        old, new: the lists.
        content: find pictures that have another name by their digests.
    """
    found, left, live = np.full(len(old), -1, np.int64), np.ones(len(new), bool), old.live
    for sort in (_both, _digests, _names) if content else (_names,):
        pair(found, left, keys_of(old, sort), keys_of(new, sort), live)
    marks = changed, by_time, touched, other = [np.zeros(len(old), bool) for _ in range(4)]
    first = 0
    for was in old.blocks():
        own = slice(first, first := first + len(was))
        there = found[own] >= 0
        if there.any():
            now = new.take(found[own].clip(0))
            there &= ~(_faulty(now) & ~_faulty(was))
            found[own][~there] = -1
            for mark, values in zip(marks, _differ(was, now, there, content=content), strict=True):
                mark[own] = values
    return Changes(found, changed, by_time, touched, other, np.flatnonzero(left))


def _differ(
    was: MemberIndex, now: MemberIndex, there: np.ndarray, *, content: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`changed`, `by_time`, `touched` and `other` of `Changes`, (n,) bool, for pairs of members.
    `there`: (n,) bool, the pairs that are pictures and their successors."""
    known = later = touched = same = np.zeros(len(was), bool)
    if was.digests is not None and now.digests is not None:
        known = there & was.digests[:].any(axis=1) & now.digests[:].any(axis=1)
        same = known & (was.digests[:] == now.digests[:]).all(axis=1)
    sized = there & (was.sizes[:] != now.sizes[:])
    if was.times is not None and now.times is not None:
        later = there & (abs(was.times[:]) != abs(now.times[:]))
        touched = later | there & (was.times[:] < 0)
    if content:  # it may have been found by its bytes
        names = zip(was.raw_names(), now.raw_names(), strict=True)
        later = later | there & np.fromiter((one != two for one, two in names), bool, len(was))
    mended, faulty = there & _faulty(was) & ~_faulty(now), there & _faulty(was) & _faulty(now)
    if was.labels is not None and now.labels is not None:  # the row has its label
        mended |= there & ~_faulty(now) & (was.labels[:] != now.labels[:])
    by_time = touched & ~known & ~sized & ~mended & ~faulty
    changed = ((known & ~same) | (~known & (sized | touched)) | mended) & ~faulty
    return changed, by_time, (later | changed) & ~faulty, known & ~same


def _faulty(block: MemberIndex) -> np.ndarray:
    found = np.zeros(len(block), bool)
    found[[*block.faults]] = True
    return found


def _names(block: MemberIndex) -> list[bytes]:
    return block.raw_names()


def _digests(block: MemberIndex) -> list[bytes]:
    if block.digests is None:
        return [b""] * len(block)
    return [bytes(each) if each.any() else b"" for each in block.digests[:]]


def _both(block: MemberIndex) -> list[bytes]:
    pairs = zip(_names(block), _digests(block), strict=True)
    return [digest and digest + name for name, digest in pairs]


def keys_of(index: MemberIndex, sort: Callable[[MemberIndex], list[bytes]] = _names) -> Column:
    """(n,) KEY of the members: hashes of what `sort` returns for each of a block. b"" is no key."""
    found = Column(KEY)
    for block in index.blocks():
        hashes = (blake2b(text, digest_size=KEY.itemsize).digest() if text else NONE
                  for text in sort(block))  # fmt: skip
        found.append(np.frombuffer(b"".join(hashes), KEY))
    return found


def pair(found: np.ndarray, left: np.ndarray, old: Column, new: Column, live: np.ndarray) -> None:
    """Pair the rows of two lists that have equal keys. Of several rows with a key the first one is
    paired with the first one, and so on. Only a share of the keys is in memory at a time.

    Args:
        found: (n,) int64, for each row of the old list its row in the new one, or -1; is changed.
        left: (m,) bool, the rows of the new list that are in no pair; is changed.
        old, new: (n,) and (m,) KEY.
        live: (n,) bool; other rows of the old list come last.
    """
    parts = 1 + max(len(old), len(new)) // KEYS_AT_ONCE
    for part in range(parts):
        sides = _part(old, found < 0, part, parts), _part(new, left, part, parts)
        rows, keys = (np.concatenate(each) for each in zip(*sides, strict=True))
        side = np.repeat([0, 1], [len(own) for own, _ in sides])
        late = np.concatenate([~live[sides[0][0]], np.zeros(len(sides[1][0]), bool)])
        nth = _nth(rows, late, side, keys)
        order = np.lexsort((side, nth, keys["low"], keys["high"]))
        equal = (keys[order][1:] == keys[order][:-1]) & (np.diff(nth[order]) == 0)
        one, other = rows[order][:-1][equal], rows[order][1:][equal]
        found[one], left[other] = other, False


def repeated(index: MemberIndex) -> np.ndarray:
    """(k,) int64 ascending, the rows whose name an earlier row has."""
    keys, all_rows, found = keys_of(index), np.ones(len(index), bool), [np.empty(0, np.int64)]
    parts = 1 + len(index) // KEYS_AT_ONCE
    for part in range(parts):
        rows, own = _part(keys, all_rows, part, parts)
        zeros = np.zeros(len(rows), np.int64)
        found.append(rows[_nth(rows, zeros, zeros, own) > 0])
    return np.sort(np.concatenate(found))


def _nth(rows: np.ndarray, late: np.ndarray, side: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(k,) int64, how many rows of the same side and key come before each row."""
    order = np.lexsort((rows, late, side, keys["low"], keys["high"]))
    begins = np.ones(len(order), bool)  # another key or the other side
    begins[1:] = (np.diff(side[order]) != 0) | (keys[order][1:] != keys[order][:-1])
    number, nth = np.arange(len(order)), np.empty(len(order), np.int64)
    nth[order] = number - np.maximum.accumulate(np.where(begins, number, 0))
    return nth


def _part(keys: Column, wanted: np.ndarray, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows, (k,) int64, whose key is in a part of all keys, and their keys, (k,) KEY.
    `wanted`: (n,) bool, the rows to look at."""
    rows, found, first = [np.empty(0, np.int64)], [np.empty(0, KEY)], 0
    for some in pieces(keys):
        own = wanted[first : first + len(some)] & (some["high"] % parts == part)
        own &= (some["high"] != 0) | (some["low"] != 0)
        rows.append(np.flatnonzero(own) + first)
        found.append(some[own])
        first += len(some)
    return np.concatenate(rows), np.concatenate(found)


class Known:
    """Sizes and times of the pictures of a list, by their names. It takes 16 bytes a picture.

    Pictures with a fault, those that are gone, and those that may change without another time are
    not known.

    Attributes:
        folders: of the list.
    """

    def __init__(self, index: MemberIndex) -> None:
        self._index, self.folders = index, index.folders
        keys, rows, first = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        for block in index.blocks() if index.times is not None else ():
            assert block.times is not None
            known = np.flatnonzero((block.times[:] > 0) & block.live & ~_faulty(block))
            keys.append(np.fromiter(map(hash, block.raw_names()), np.int64, len(block))[known])
            rows.append(known + first)
            first += len(block)
        own = np.concatenate(keys)
        order = np.argsort(own)
        self._keys, self._rows = own[order], np.concatenate(rows)[order]

    def facts(self, names: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Name -> size in bytes and time in ns, of those of `names` that are known, and perhaps of
        others."""
        at = np.searchsorted(self._keys, np.fromiter(map(hash, names), np.int64, len(names)))
        some = self._index.take(self._rows[at[at < len(self._rows)]])
        times = some.sizes if some.times is None else some.times  # without times: no rows
        facts = zip(some.sizes[:].tolist(), times[:].tolist(), strict=True)
        return dict(zip(some.raw_names(), facts, strict=True))


class Updated(NamedTuple):
    """A source after an update.

    Attributes:
        known: the list of the members that the run knows, in the order of their rows.
        more: the list of those that are new.
        again: rows of `known` to classify again.
        touched: rows of `known` to try again if they have no answer.
        removed: number of pictures that are gone now and were there.
        renamed: pictures have another name or place in their source, or were gone and are there
            again.
    """

    known: MemberIndex
    more: MemberIndex
    again: np.ndarray
    touched: np.ndarray
    removed: int
    renamed: bool


def update(
    where: str,
    old: MemberIndex,
    new: MemberIndex,
    asked: Update | None,
    *,
    content: bool = False,
    complete: bool = True,
) -> Updated:
    """What an update does with a source.

    Args:
        where: the source, for the message.
        old: what the run knows of it.
        new: what is there now.
        asked: by the user; None if no update is asked for. No picture is marked as gone then, and
            what is said of the others stays unless it is known that they have changed.
        content: pictures are known by their bytes and not by their paths.
        complete: the run has all its rows. Otherwise those that it lacks are to be answers to the
            bytes that it has listed.

    Raises:
        UsageError: too many pictures differ only in their times.
    """
    if asked is None and old.times is not None:
        old = replace(old, times=Column.of(abs(some) for some in pieces(old.times)))
    changes = compare(old, new, content=content and (asked is not None or not complete))
    there, live = changes.found >= 0, int(old.live.sum())
    touched = int(changes.by_time.sum())
    how = AGAIN if asked is None else asked.touched
    if touched > MOST_BY_TIME * live and how == ASK:
        raise UsageError(
            f"{where}: {touched:,} of {counted(live, 'picture')} have another time and the same "
            "size, as after a copy, and their bytes were not kept in mind. --touched same keeps "
            "their rows, --touched again classifies them again. A run that is begun with --key "
            "content compares the bytes"
        )
    changed, gone, fresh = changes.changed, ~old.live, changes.touched
    if not complete:
        fresh = fresh & ~changes.other
    if asked is not None:
        changed = changed & ~(changes.by_time & (how == SAME))
        gone, fresh = ~there, there
    moved = renamed = False

    def facts() -> Iterator[MemberIndex]:
        nonlocal moved, renamed
        first = 0
        for was in old.blocks():
            own = slice(first, first := first + len(was))
            rows = np.where(fresh[own], len(was) + np.cumsum(fresh[own]) - 1, np.arange(len(was)))
            now = new.take(changes.found[own][fresh[own]])
            block = MemberIndex.packed([was, now]).take(rows)
            moved |= bool((was.offsets[:] != block.offsets[:]).any())
            renamed |= was.raw_names() != block.raw_names()
            yield block

    known = replace(MemberIndex.packed(facts()), gone=gone if gone.any() else None)
    if asked is not None:  # else some facts are older than the folders
        known = replace(known, folders=new.folders)
    return Updated(
        known,
        MemberIndex.packed(map(new.take, pieces(changes.new))),
        np.flatnonzero(changed),
        np.flatnonzero(changes.touched),
        int((gone & old.live).sum()),
        renamed or bool((~gone & ~old.live).any()) or (asked is not None and moved),
    )


def differences(old: MemberIndex, new: MemberIndex) -> str:
    """Says which members are new or gone since an earlier list; "" if none are."""
    changes = compare(old, new)
    gone = np.flatnonzero((changes.found < 0) & old.live)
    said = (
        f"{counted(len(rows), 'picture')} {how}, such as {name_text(index.name(int(rows[0])))}"
        for how, index, rows in (("more", new, changes.new), ("gone", old, gone))
        if len(rows)
    )
    return "; ".join(said)
