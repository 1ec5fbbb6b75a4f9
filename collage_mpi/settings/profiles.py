"""Profiles: named sets of defaults, which settings of the user override.

A run does not record its profile; only the effective settings are recorded and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.schemes import scheme_class
from collage_mpi.settings.pace import PaceSettings
from collage_mpi.settings.redundancy import RankSettings
from collage_mpi.system.fields import names
from collage_mpi.system.printable import shown

PROFILE = "profile"  # the key, in files and for flags

Json = dict[str, Any]


@dataclass(frozen=True)
class Computed:
    """A value that follows from other settings.

    Attributes:
        says: the rule in words.
        of: computes the value from the profile's other settings and the given ones.
    """

    says: str
    of: Callable[[Json], Any]


@dataclass(frozen=True)
class Profile:
    """Settings under a name.

    Attributes:
        says: the purpose in one line.
        sets: setting -> value.
    """

    says: str
    sets: Mapping[str, Any]


def full_credit(values: Json) -> int:
    """Messages that keep a rank busy all the time."""
    return scheme_class(values.get("scheme", RankSettings().scheme)).credit


def full_depth(values: Json) -> int | None:
    """Batches in flight that keep every rank busy, even if a few are slow.

    Half of them fill `credit` messages for every rank. Under `assign pull` a slow rank delays only
    the groups of its own messages; the other half makes up for these.
    """
    ranks = RankSettings.from_mapping({k: values[k] for k in names(RankSettings) if k in values})
    if ranks.any_size:
        return None  # auto: groups enter when ranks are idle, for any number of ranks
    given = PaceSettings.from_mapping({k: values[k] for k in ("credit",) if k in values}).credit
    credit = given or scheme_class(ranks.scheme).credit
    fill = -(-ranks.n_singles // ranks.group_size) if ranks.uses_single else 1
    if ranks.uses_collage:  # each group has a collage, on n_copies of the M ranks
        fill = max(fill, -(-ranks.collage_ranks // ranks.n_copies))
    return 2 * credit * fill


PROFILES: dict[str, Profile] = {
    # Every setting of ranks, acceptance, late images and pace: no default of a later version
    # changes it.
    "paper": Profile(
        "the layout of the paper. The rows are the same as with the defaults of version 0.1.0",
        {
            "scheme": "collage",
            "side": 3,
            "singles": None,
            "collage_ranks": 1,
            "collage_copies": None,
            "replicas": 2,
            "backup_ranks": 1,
            "collage_from": None,
            "collage_counts": "all",
            "assign": "turn",
            "endgame": "off",
            "placement": "fixed",
            "accept": "first",
            "confidence": 0.9,
            "agree": None,
            "deadline_ms": None,
            "audit": 0.0,
            "audit_seed": 0,
            "hedge_ms": None,
            "linger_ms": None,
            "image_timeout_s": None,
            "max_attempts": 3,
            "arrivals": "closed",
            "rate": None,
            "arrival_seed": 0,
            "arrival_file": None,
            "between": "carry",
            "depth": 1,
            "batch": 1,
            "credit": 2,
            "window": None,
            "warmup_groups": 2,
        },
    ),
    "throughput": Profile(
        "the most images a second. Every rank has work until the last row, even if some ranks "
        "are slow",
        {
            "assign": "pull",
            "endgame": "on",
            "between": "carry",
            "batch": None,  # auto: as the networks like it
            "credit": Computed("2; scheme cascade 1", full_credit),
            "depth": Computed(
                "2 x `credit` x (single ranks / images of a group), rounded up; more where "
                "there are many collage ranks",
                full_depth,
            ),
        },
    ),
    "latency": Profile(
        "short tail latency for each group, at about the single network's accuracy, with collages",
        {
            "scheme": "collage",
            "collage_ranks": 1,
            "placement": "fastest",
            "assign": "finish",
            "accept": "confident",
            "confidence": 0.9,
            "between": "carry",
            "depth": 1,
            "batch": 1,
            "credit": 2,
        },
    ),
}


def profile_of(given: Mapping[str, Any], source: str) -> Profile:
    """The profile that the given settings name; an empty one if they name none.

    Raises:
        UsageError: there is no such profile.
    """
    name = given.get(PROFILE)
    if name is None:
        return Profile("", {})
    if not isinstance(name, str) or name not in PROFILES:
        raise UsageError(f"{source}: profile is {shown(name)}; known are: {', '.join(PROFILES)}")
    return PROFILES[name]


def with_profile(given: Mapping[str, Any], source: str) -> Json:
    """The given settings, completed by the values of the profile that they name.

    Raises:
        UsageError: there is no such profile, or a value cannot be computed from the settings.
    """
    sets = profile_of(given, source).sets
    values = {k: v for k, v in sets.items() if not isinstance(v, Computed)}
    values |= {k: v for k, v in given.items() if k != PROFILE}
    return values | {
        k: v.of(values) for k, v in sets.items() if isinstance(v, Computed) and k not in given
    }


def over_recorded(
    recorded: Mapping[str, Any], given: Mapping[str, Any], source: str, *, anew: bool
) -> Json:
    """A run's settings, overridden by the given ones and by the profile that these name.

    Args:
        recorded: all settings of the run.
        given: settings, perhaps with a profile.
        source: of the given settings, for messages.
        anew: compute the profile's computed values again. Otherwise they stay as recorded, so
            that a run can be resumed with fewer ranks.

    Raises:
        UsageError: there is no such profile.
    """
    sets = profile_of(given, source).sets
    replaced = {k for k, v in sets.items() if anew or not isinstance(v, Computed)}
    return {k: v for k, v in recorded.items() if k not in replaced} | dict(given)
