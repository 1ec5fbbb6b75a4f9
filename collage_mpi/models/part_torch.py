"""Imports torch without the third of it that is not needed to answer images.

The modules that `import torch` imports last are postponed: operator shapes for `torch.compile` and
the like, and `torch.export`. With their own imports they take 0.3 of 1.0 s of a processor on each
rank (analysis/reports/benchmarks.md). torch's modules import each other in circles, so they
are imported before any other part of torch is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

LATER = ("torch._meta_registrations", "torch.export")


class _Later(ModuleType):
    """A module that has not run yet; the first use of one of its names runs it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _run(self)
        return getattr(self, name)


class _NotYet(Loader):
    """Makes a `_Later`, which the loader `own` will run."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Later(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing; the module runs on first use."""


class _Finder:
    """Is asked for each module before the finder that would find it."""

    def __init__(self) -> None:
        self.over = False  # torch is imported

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.over and name.startswith("torch."):
            whole_torch()
        elif name in LATER:
            spec = PathFinder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _NotYet(spec.loader)
                return spec
        return None


_finder = _Finder()


def import_part() -> None:
    """Import torch without the modules in LATER; does nothing if torch is imported already."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _finder)
        import torch.utils._device  # noqa: F401  # `with torch.device` imports it at first use

        _finder.over = True


def whole_torch() -> None:
    """Import the postponed modules, if there are any."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name in LATER:
        module = sys.modules.get(name)
        if isinstance(module, _Later):
            _run(module)


def _run(module: ModuleType) -> None:
    spec = module.__spec__
    assert spec is not None
    assert isinstance(spec.loader, _NotYet)
    module.__class__ = ModuleType
    spec.loader = module.__loader__ = spec.loader.own
    spec.loader.exec_module(module)
