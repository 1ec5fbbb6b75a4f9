"""Gives the shards of a resumed run the same numbers as in its first session. A shard is identified
by its content.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collage_mpi.shards.members import MemberIndex
from collage_mpi.shards.pictures import parse_fit
from collage_mpi.shards.reader import ShardSet
from collage_mpi.shards.schema import BadShard, ShardInfo
from collage_mpi.system.printable import storable


def as_before(
    shards: ShardSet, known: Sequence[Mapping[str, Any]], *, limited: bool = False
) -> ShardSet:
    """Renumber shards by a run's manifest. New shards come last.

    A shard of the run that is bad now keeps its number and its count, and counts as lost. Pictures
    are resized as in the first session, even if the network asks for another filter now.

    Args:
        shards: the shards of this session, before anything is read from them.
        known: {path, fingerprint, count} of each shard, in the order of their numbers.
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
    for number, entry in enumerate(known):
        found = by_content[entry["fingerprint"]]
        if found:
            infos.append(_fitted(found.popleft(), entry))
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
    return renumbered


def member_changes(
    shards: ShardSet, known: Sequence[Mapping[str, Any]], indexes: Path
) -> list[str]:
    """Lines that say how the members of sources have changed since the run began.

    Args:
        shards: the shards of this session.
        known: as in `as_before`.
        indexes: the folder with the run's lists of members.
    """
    lines = []
    for info, entry in zip(shards.infos, known, strict=False):
        if info.fingerprint == entry["fingerprint"] or info.members is None:
            continue
        before = MemberIndex.load(indexes / f"{entry['fingerprint']}.npz")
        if before is not None:
            lines.append(f"{info.path}: {info.members.difference(before)}")
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
