"""The rules by which networks, images and side fit together, for jobs, evaluation and training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from collage_mpi.errors import DataFault
from collage_mpi.models.info import NetworkInfo
from collage_mpi.shards.schema import remake_command
from collage_mpi.system.printable import counted

Shape = tuple[int, ...]


def check_fit(
    networks: Iterable[NetworkInfo | None],
    shape: Shape,
    class_names: Sequence[str] | None,
    paths: Sequence[Path | str] = (),
    side: int | None = None,
    cell_px: int | None = None,
) -> tuple[str, ...] | None:
    """Check networks against the images, the requested grid, and each other's classes.

    Args:
        networks: those with weights; None for others.
        shape: (H, W, C) of the images.
        class_names: of the shards, if they have any.
        paths: of the shards, for the command that makes fitting shards from them.
        side, cell_px: as requested; None takes a collage network's.

    Returns:
        The class names that all agree on; None if none has class names.

    Raises:
        DataFault: the first thing that does not fit, and what to do.
    """
    found = [network for network in networks if network is not None]
    for network in found:
        _check_images(network, tuple(shape), paths)
        if network.side is not None:
            _check_grid(network, side, cell_px)
    named = [("the shards", class_names), *((_title(one), one.class_names) for one in found)]
    known = [(where, tuple(names)) for where, names in named if names]
    for where, names in known[1:]:
        if names != known[0][1]:
            raise DataFault(class_mismatch(*known[0], where, names))
    return known[0][1] if known else None


def check_parity(parity: NetworkInfo, single: NetworkInfo | None, asked: str) -> None:
    """Check that a parity network was trained for this single network.

    Args:
        parity: any network; only parity networks are checked.
        single: None for one without weights.
        asked: what the user gave as single network.

    Raises:
        DataFault: it was trained for another one.
    """
    spec = parity.parity
    if spec is None or (single is not None and spec.single == single.fingerprint):
        return
    other = asked if single is None else f"SHA-256 {single.fingerprint[:12]}..."
    raise DataFault(
        f"{_title(parity)} sums the answers of the single network {spec.single[:12]}..., the "
        f"single network {asked} is another ({other}): name that one, or train one with "
        f"collage-mpi train parity --single {asked}"
    )


def _check_images(network: NetworkInfo, shape: Shape, paths: Sequence[Path | str]) -> None:
    wanted = network.image_shape
    if wanted is not None and wanted != shape:
        raise DataFault(
            f"shards hold images of {shape} (H, W, C), {_title(network)} needs {wanted}: "
            f"{_remake(paths, wanted)}"
        )
    channels = network.shape[2]
    if channels != shape[2]:
        raise DataFault(
            f"shards hold {counted(shape[2], 'channel')}, {_title(network)} needs {channels}: "
            f"{_remake(paths, (shape[0], shape[1], channels))}"
        )


def _check_grid(network: NetworkInfo, side: int | None, cell_px: int | None) -> None:
    if side not in (None, network.side):
        raise DataFault(
            f"--side is {side}, {_title(network)} is of side {network.side}: say --side "
            f"{network.side}, or name weights of side {side}"
        )
    if cell_px not in (None, network.cell_px):
        raise DataFault(
            f"--cell-px is {cell_px}, {_title(network)} has cells of {network.cell_px} px: leave "
            "--cell-px out, or train one with that cell size"
        )


def _title(network: NetworkInfo) -> str:
    return f"{network.kind} network {network.origin}"


def _remake(paths: Sequence[Path | str], shape: tuple[int, int, int]) -> str:
    if not paths or shape[0] != shape[1]:
        return "make shards of that shape, or train a network for this one"
    made = remake_command(paths, shape)
    return f"`{made}` makes shards of that shape, or train a network for this one"


def class_mismatch(where: str, names: Sequence[str], elsewhere: str, others: Sequence[str]) -> str:
    """How two lists of class names differ: in length, or the first pair that is different."""
    if len(names) != len(others):
        return f"{len(names)} classes in {where}, {len(others)} in {elsewhere}; they must agree"
    first = next(i for i, (a, b) in enumerate(zip(names, others, strict=True)) if a != b)
    return (
        f"class {first} is {names[first]!r} in {where} and {others[first]!r} in {elsewhere}; "
        "they must have the same classes in the same order"
    )
