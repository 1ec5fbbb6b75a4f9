"""Gives the shards of a resumed run the same numbers as in its first session. A shard is identified
by its content.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collage_mpi.shards.members import MemberIndex, name_text
from collage_mpi.shards.pictures import parse_fit
from collage_mpi.shards.reader import ShardSet
from collage_mpi.shards.schema import BadShard, ShardInfo, sidecar_path
from collage_mpi.system.printable import counted, storable


def as_before(
    shards: ShardSet,
    known: Sequence[Mapping[str, Any]],
    indexes: Path,
    session: int,
    *,
    limited: bool = False,
) -> ShardSet:
    """Renumber shards by a run's manifest. New shards come last.

    A shard of the run that is bad now keeps its number and its count, and counts as lost. Pictures
    are resized as in the first session, even if the network asks for another filter now.

    A source whose members have the same names and other bytes keeps its number, and the fingerprint
    that it had when the run began. Its entry then has two further keys: `content`, its fingerprint
    now, and `changed`, a list of [row, session]. A row of the results counts for a changed picture
    only if it was written in that session or later.

    Args:
        shards: the shards of this session, before anything is read from them.
        known: {path, fingerprint, count, ...} of each shard, in the order of their numbers.
        indexes: the folder with the run's lists of members.
        session: the number of this session.
        limited: leave out new shards, because with them --limit would choose other images.

    Returns:
        A new `ShardSet`; or `shards` itself if a shard of the run is missing and none of the bad
        shards has its name. The comparison of the manifests then reports the difference.
    """
    by_content: dict[str, deque[ShardInfo]] = defaultdict(deque)
    for info in shards.infos:
        by_content[info.fingerprint].append(info)
    bad = list(shards.bad)
    infos: list[ShardInfo] = []
    lost: dict[int, str] = {}
    since: dict[int, dict[str, Any]] = {}
    contents = {content_of(entry) for entry in known}
    others = [info for info in shards.infos if info.fingerprint not in contents]
    for number, entry in enumerate(known):
        found, changed = by_content[content_of(entry)], entry.get("changed") or []
        if not found:
            for info in others:
                rows = _changed_rows(info, entry, indexes)
                if rows is not None:
                    others.remove(info)
                    found = by_content[info.fingerprint]
                    changed = [*({**dict(changed), **dict.fromkeys(rows, session)}.items())]
                    break
        if found:
            infos.append(_fitted(found.popleft(), entry))
            content = infos[-1].fingerprint
            if changed:
                own = {"fingerprint": entry["fingerprint"], "content": content}
                since[number] = {**own, "changed": sorted(map(list, changed))}
            continue
        stand_in = _same_name(bad, entry)
        if stand_in is None:
            return shards
        bad.remove(stand_in)
        lost[number] = stand_in.reason
        infos.append(_unreadable(shards.infos[0], stand_in, entry))
    rest = {id(info) for left in by_content.values() for info in left}
    new = [info for info in shards.infos if id(info) in rest]
    renumbered = ShardSet(infos if limited else [*infos, *new], bad)
    renumbered.left_out = tuple(info.path for info in new) if limited else ()
    renumbered.lost.update(lost)
    renumbered.since.update(since)
    return renumbered


def content_of(entry: Mapping[str, Any]) -> str:
    """The fingerprint of a source when the run's last session began."""
    content: str = entry.get("content") or entry["fingerprint"]
    return content


def _changed_rows(info: ShardInfo, entry: Mapping[str, Any], indexes: Path) -> list[int] | None:
    """The rows of a source whose pictures have changed since the last session; None if it is
    another source, or if the changed pictures cannot be told."""
    before = MemberIndex.load(indexes / f"{content_of(entry)}.npz")
    if info.members is None or before is None or len(before) != info.count:
        return None
    rows = info.members.changed_since(before)
    if rows is None or (info.members.crc32 is None and os.path.exists(sidecar_path(info.path))):
        return None  # the .sha256 file says that bytes differ, and not whose
    return [int(row) for row in rows] or None


def member_changes(
    shards: ShardSet, known: Sequence[Mapping[str, Any]], indexes: Path
) -> list[str]:
    """Lines that say how the members of sources have changed since the last session.

    Args:
        shards: the shards of this session.
        known: as in `as_before`.
        indexes: the folder with the run's lists of members.
    """
    lines = []
    for number, (info, entry) in enumerate(zip(shards.infos, known, strict=False)):
        if info.fingerprint == content_of(entry) or info.members is None:
            continue
        before = MemberIndex.load(indexes / f"{content_of(entry)}.npz")
        if before is None:
            continue
        rows = info.members.changed_since(before) if number in shards.since else None
        if rows is None:
            lines.append(f"{info.path}: {info.members.difference(before)}")
        else:
            first = name_text(info.members.name(int(rows[0])))
            lines.append(
                f"{info.path}: {counted(len(rows), 'picture')} changed since the last session, "
                f"such as {first}. Changed pictures without an answer are classified again"
            )
    return lines


def _fitted(info: ShardInfo, entry: Mapping[str, Any]) -> ShardInfo:
    fit = parse_fit(entry["fit"]) if entry.get("fit") else None
    return info.fitted(fit) if fit is not None and fit.shape == info.shape else info


def _same_name(bad: Sequence[BadShard], entry: Mapping[str, Any]) -> BadShard | None:
    name = Path(entry.get("path") or "").name
    return next((shard for shard in bad if storable(shard.path.name) == name), None)


def _unreadable(like: ShardInfo, bad: BadShard, entry: Mapping[str, Any]) -> ShardInfo:
    """The description of a bad shard: path, count and fingerprint are its own, the rest is copied
    from another shard."""
    return dataclasses.replace(
        like,
        path=bad.path,
        count=entry["count"],
        fingerprint=entry["fingerprint"],
        stamp=None,
    )
