"""Schemes: which tasks are made for an image and for a group, and what an answer means.

A scheme is a class. It is registered in a module of this package, or named by an entry point of
another installed package (group `collage_mpi.schemes`).
"""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from importlib import import_module

from collage_mpi.errors import UsageError
from collage_mpi.plugins import Names
from collage_mpi.scheduler.schemes.base import (
    ASSIGNMENTS,
    NOT_TAKEN,
    REGISTERED,
    Core,
    Later,
    Scheme,
    SchemeSettings,
)

__all__ = [
    "ASSIGNMENTS",
    "PLACEMENTS",
    "SCHEMES",
    "SCHEME_NAMES",
    "Core",
    "Later",
    "Scheme",
    "SchemeSettings",
    "make_scheme",
    "scheme_class",
]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

# In the order in which the modules above are imported; a base class comes before its subclasses.
SCHEMES = tuple(REGISTERED)
SCHEME_NAMES = Names("scheme", "collage_mpi.schemes", Scheme, SCHEMES)
PLACEMENTS = ("fixed", "fastest")


def scheme_class(name: str) -> type[Scheme]:
    """The class of the scheme with this name.

    Raises:
        UsageError: no scheme has this name.
        EnvironmentFault: the package that adds the scheme is broken.
    """
    if name not in REGISTERED:
        added = SCHEME_NAMES.load(name)
        if added is None:
            raise UsageError(f"scheme is {name!r}; known are: {', '.join(SCHEME_NAMES)}")
        return REGISTERED.setdefault(name, added)
    return REGISTERED[name]


def make_scheme(settings: SchemeSettings) -> Scheme:
    """The scheme that the settings name. Settings that it does not take are ignored.

    Raises:
        UsageError: no scheme has the name, or its settings contradict each other.
        EnvironmentFault: the package that adds the scheme is broken.
    """
    scheme = scheme_class(settings.name)
    if settings.placement == "fastest" and "placement" not in scheme.takes:
        raise UsageError(
            f"placement fastest is for collages, and scheme {settings.name} makes none: "
            "leave it out, or use --assign finish"
        )
    idle = {name: value for name, value in NOT_TAKEN.items() if name not in scheme.takes}
    return scheme(replace(settings, **idle))
