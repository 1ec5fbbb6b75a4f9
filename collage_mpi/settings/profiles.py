"""The profile `paper`: a named set of defaults, which settings of the user override.

A run does not record its profile; only the effective settings are recorded and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collage_mpi.errors import UsageError
from collage_mpi.removed import removed_setting
from collage_mpi.system.printable import shown

PROFILE = "profile"  # the key, in files and for flags

Json = dict[str, Any]

# Every setting of ranks, acceptance, late images and pace: no default of a later version changes
# the paper's layout.
PROFILES: dict[str, Json] = {
    "paper": {
        "scheme": "collage",
        "side": 3,
        "singles": None,
        "collage_ranks": 1,
        "assign": "turn",
        "endgame": "off",
        "placement": "fixed",
        "confidence": 0.0,
        "agree": None,
        "deadline_ms": None,
        "audit": 0.0,
        "hedge_ms": None,
        "linger_ms": None,
        "rate": None,
        "arrival_file": None,
        "between": "carry",
        "depth": 1,
        "batch": 1,
        "credit": 2,
        "warmup_groups": 2,
    },
}


def profile_of(given: Mapping[str, Any], source: str) -> Json:
    """The settings of the profile that the given settings name; {} if they name none.

    Raises:
        UsageError: there is no such profile.
    """
    name = given.get(PROFILE)
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PROFILES:
        gone = isinstance(name, str) and removed_setting(PROFILE, name)
        known = f"profile is {shown(name)}; known is {', '.join(PROFILES)}"
        raise UsageError(f"{source}: {gone or known}")
    return PROFILES[name]


def with_profile(given: Mapping[str, Any], source: str) -> Json:
    """The given settings, completed by those of the profile that they name.

    Raises:
        UsageError: there is no such profile.
    """
    named = {key: value for key, value in given.items() if key != PROFILE}
    return {**profile_of(given, source), **named}
