"""What has changed in a source since it was listed: which pictures are new, have other bytes or
another name, or are gone. `compare` decides; nothing here touches a file.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from collage_mpi.errors import UsageError
from collage_mpi.shards.members import MemberIndex, name_text
from collage_mpi.system.printable import counted

MOST_BY_TIME = 0.1  # of the pictures may be classified again because of their times alone
ASK, AGAIN, SAME = "ask", "again", "same"


@dataclass(frozen=True)
class Update:
    """How a run is updated.

    Attributes:
        content: pictures are known by their bytes and not by their paths.
        touched: what to do with pictures of another time and the same size, whose bytes are not
            known: AGAIN, SAME, or ASK if they are more than MOST_BY_TIME.
        prune: pictures that are gone lose their rows.
    """

    content: bool = False
    touched: str = ASK
    prune: bool = False


class Changes(NamedTuple):
    """What has changed between two lists of members.

    Attributes:
        found: (n,) int64, for each row of the old list its row in the new one; -1: it is gone.
        changed: (n,) bool, the picture has other bytes, as far as is known, or another label.
        by_time: (n,) bool, those of them that only have another time.
        touched: (n,) bool, the picture has another time, whatever its bytes.
        new: (k,) int64, rows of the new list that are in no row of the old one.
    """

    found: np.ndarray
    changed: np.ndarray
    by_time: np.ndarray
    touched: np.ndarray
    new: np.ndarray


def compare(old: MemberIndex, new: MemberIndex, *, content: bool = False) -> Changes:
    """What has changed. Of several members with a name, the first ones are the same pictures.

    A picture that could be read and has a fault now is gone.

    Args:
        old, new: the lists.
        content: find pictures that have another name by their digests.
    """
    found = np.full(len(old), -1, np.int64)
    left: Sequence[int] = range(len(new))
    for keys in (_both, _digests, MemberIndex.raw_names) if content else (MemberIndex.raw_names,):
        left = _paired(found, old, keys(old), keys(new), left)
    was, now = (np.isin(range(len(each)), [*each.faults]) for each in (old, new))
    found[(found >= 0) & now[found] & ~was] = -1
    there = found >= 0
    known = np.zeros(len(old), bool)
    same = np.zeros(len(old), bool)
    if old.digests is not None and new.digests is not None:
        known = there & old.digests.any(axis=1) & new.digests[found].any(axis=1)
        same = known & (old.digests == new.digests[found]).all(axis=1)
    sized = there & (old.sizes != new.sizes[found])
    later = touched = np.zeros(len(old), bool)
    if old.times is not None and new.times is not None:
        later = there & (abs(old.times) != abs(new.times[found]))
        touched = later | there & (old.times < 0)
    mended, faulty = there & was & ~now[found], there & was & now[found]
    if old.labels is not None and new.labels is not None:  # the row has its label
        mended |= there & ~now[found] & (old.labels != new.labels[found])
    by_time = touched & ~known & ~sized & ~mended & ~faulty
    changed = ((known & ~same) | (~known & (sized | touched)) | mended) & ~faulty
    return Changes(found, changed, by_time, (later | changed) & ~faulty, np.array(left, np.int64))


def _both(index: MemberIndex) -> list[tuple[bytes, bytes] | None]:
    pairs = zip(index.raw_names(), _digests(index), strict=True)
    return [None if digest is None else (name, digest) for name, digest in pairs]


def _digests(index: MemberIndex) -> list[bytes | None]:
    if index.digests is None:
        return [None] * len(index)
    return [bytes(each) if each.any() else None for each in index.digests]


def _paired(
    found: np.ndarray,
    old: MemberIndex,
    old_keys: Sequence[Hashable],
    new_keys: Sequence[Hashable],
    left: Sequence[int],
) -> list[int]:
    """Find the rows of the new list that are `left` by their keys; None is no key.

    Returns:
        The rows that are still left.
    """
    rows: dict[Hashable, deque[int]] = defaultdict(deque)
    for row in np.argsort(~old.live, kind="stable").tolist():  # those that are gone last
        if found[row] < 0 and old_keys[row] is not None:
            rows[old_keys[row]].append(row)
    still = []
    for row in left:
        if new_keys[row] is not None and rows.get(new_keys[row]):
            found[rows[new_keys[row]].popleft()] = row
        else:
            still.append(row)
    return still


class Updated(NamedTuple):
    """A source after an update.

    Attributes:
        known: the list of the members that the run knows, in the order of their rows.
        more: the list of those that are new.
        again: rows of `known` to classify again.
        touched: rows of `known` to try again if they have no answer.
        removed: number of pictures that are gone now and were there.
        renamed: pictures have another name, or were gone and are there again.
    """

    known: MemberIndex
    more: MemberIndex
    again: np.ndarray
    touched: np.ndarray
    removed: int
    renamed: bool


def update(where: str, old: MemberIndex, new: MemberIndex, asked: Update | None) -> Updated:
    """What an update does with a source.

    Args:
        where: the source, for the message.
        old: what the run knows of it.
        new: what is there now.
        asked: by the user; None if no update is asked for. No picture is marked as gone then, and
            what is said of the others stays unless it is known that they have changed.

    Raises:
        UsageError: too many pictures differ only in their times.
    """
    if asked is None and old.times is not None:
        old = replace(old, times=abs(old.times))
    changes = compare(old, new, content=asked is not None and asked.content)
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
    if asked is not None:
        changed = changed & ~(changes.by_time & (how == SAME))
        gone, fresh = ~there, there
    whole = MemberIndex.joined([old, new])
    facts = whole.take(np.where(fresh, len(old) + changes.found, np.arange(len(old))))
    return Updated(
        replace(facts, gone=gone if gone.any() else None),
        new.take(changes.new),
        np.flatnonzero(changed),
        np.flatnonzero(changes.touched),
        int((gone & old.live).sum()),
        facts.names != old.names or bool((~gone & ~old.live).any()),
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
