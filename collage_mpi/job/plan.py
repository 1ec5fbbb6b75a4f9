"""The plan of a run: settings, shards, networks and ranks, checked against each other."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.bounds.sample import Asked, front
from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.vectors import SCORES
from collage_mpi.errors import (
    CollageError,
    DataFault,
    EnvironmentFault,
    Interrupted,
    UsageError,
)
from collage_mpi.job.pairs import drawn_first
from collage_mpi.kinds import COLLAGE, KIND, KINDS, SINGLE
from collage_mpi.ledger.records import LISTING, OPEN, Run
from collage_mpi.models import describe
from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.models.asking import Described, ask
from collage_mpi.models.info import Geometry, NetworkInfo, agreed_names, check_fit, check_items
from collage_mpi.models.named import PREFIXES, Part, is_foreign, is_function, parts_of, read_spec
from collage_mpi.models.null import NULL_CLASSES
from collage_mpi.models.runtimes import candidates
from collage_mpi.models.weights import read_tensors
from collage_mpi.results import INDEX_FOLDER
from collage_mpi.results.manifest import COMPLETE, DUE
from collage_mpi.results.statistics import ADVICE, weaker_by
from collage_mpi.rows import MOST_ITEMS
from collage_mpi.settings.run_settings import (
    Placement,
    RunSettings,
    any_foreign,
    with_accept_of,
)
from collage_mpi.settings.stages import BEST, TOP5
from collage_mpi.shards import ShardSet
from collage_mpi.shards.inputs import HDF5, expand_paths, source_of
from collage_mpi.shards.lister import Lister, TakesLong, in_time
from collage_mpi.shards.order import (
    Listed,
    Order,
    Permutation,
    Shuffle,
    ranges_of,
    read_numbers,
)
from collage_mpi.shards.pictures import PictureFit, beside, is_enlarged, parse_fit
from collage_mpi.shards.reader import as_before, lists_before, saved
from collage_mpi.shards.remote import url_of
from collage_mpi.shards.schema import CHANNELS, ShardInfo, read_class_names
from collage_mpi.shards.source import MemberSource, ReadAs
from collage_mpi.shards.update import Update
from collage_mpi.system.environment import launcher_size
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell
from collage_mpi.workload.straggler_settings import make_delays

LARGEST_INPUT_BYTES = 1 << 30  # MPI counts bytes in 31 bits
GROUPS_LOOKED_AT = 10_000  # a share of 25 % is then known to 1 %
LOOKED_AT = 48  # pictures whose size is looked at before the run; more would delay its start
LARGEST_LABEL = 2**31 - 1  # the largest that a row of the results holds
ONE_CLASS_SHARE = 0.25  # of 10 mixed classes, one group in 10**8 has one class only (side 3)


@dataclass(frozen=True)
class Plan:
    """What a run will do. All parts fit each other."""

    settings: RunSettings
    shards: ShardSet
    order: Order
    grid: Grid
    placement: Placement
    class_names: tuple[str, ...] | None
    classes: int | None
    asked: RunSettings | None = None  # the settings before `accept auto` was resolved; or None
    by_file: AcceptSpec | None = None  # the threshold that `accept auto` took from a weights file
    first: int = 0  # position in the run of the first image of the order
    # Name of each network beside the first one that classifies -> names of its classes, or ().
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def promises(self) -> bool:
        """Whether a threshold is chosen for `agree`. It is about the images of the first run: the
        single network answers those that come later."""
        return self.settings.agree is not None and not self.first

    @property
    def front(self) -> int:
        """Number of images at the start of the order that are drawn for `agree`."""
        return drawn_of(self.settings, len(self.order)) if self.promises else 0

    @property
    def geometry(self) -> Geometry:
        """The shapes that a network without a weights file is told."""
        shards, grid = self.shards, self.grid
        told = Geometry(shards.shape, grid.side, grid.cell_px, self.classes, shards.dtype)
        fit = parse_fit(shards.fit) if shards.fit else None
        return (
            replace(told, beside=tuple(one.shape for one in fit.each))
            if fit and fit.beside
            else told
        )

    @cached_property
    def starts(self) -> np.ndarray:
        """(shards + 1,) int64: the global index of each shard's first row, and the end."""
        return np.cumsum([0, *(info.count for info in self.shards.infos)], dtype=np.int64)

    def at_batch(self, size: int) -> Plan:
        """This plan with a batch of `size` groups, if the batch is auto."""
        return replace(self, settings=self.settings.at_batch(size))

    def at_run(self, runs: Sequence[Run]) -> Plan:
        """This plan for the last of the runs, whose images follow those of the runs before.

        A later run asks for images again, and then for those of shards that could not be read.
        """
        if len(runs) == 1:
            return self
        first, grown = runs[-1].first, None
        if not any(run.again for run in runs):
            images = runs[-1].settings["images_now"]
            grown = self.order.grown(images)
        if grown is not None:
            order = grown.part([(first, runs[-1].stop)])
        else:
            order = Order.of_list(self.images_of(runs)[first:])
        return replace(self, order=order, first=first)

    def images_of(self, runs: Sequence[Run]) -> np.ndarray:
        """(n,) int64, the global index of the image at each position of the runs. An image that was
        asked again is there more than once: the last position counts."""
        found = self.order.indices(range(len(self.order)))
        images = runs[0].settings["images"]
        for run in runs[1:]:
            again = [found[first:stop] for first, stop in run.again]
            more = np.arange(images, images := run.settings["images_now"])
            found = np.concatenate([found, *again, more])
        return found

    @property
    def networks(self) -> dict[str, str]:
        """Kind -> network spec, for the kinds that the scheme uses."""
        settings = self.settings
        used = {kind for held in self.placement.kinds for kind in held}
        specs = {kind: settings.network(kind) for kind in KINDS if kind in used}
        parts = {kind: parts_of(spec) for kind, spec in specs.items()}
        return {kind: parts[kind][0].spec if not parts[kind][1:] else specs[kind] for kind in specs}


@dataclass
class Growing:
    """How a process lists its input while it is at work.

    Attributes:
        stop_reason: says why not to wait for the listing, or None.
        lister: what lists the input, if that takes long; None before, and for who joins the run.
    """

    stop_reason: Callable[[], str | None] = lambda: None
    lister: Lister | None = None

    def close(self) -> None:
        """End the listing."""
        if self.lister is not None:
            self.lister.close()
        self.lister = None


def make_plan(
    settings: RunSettings,
    world_size: int,
    known: Mapping[str, Any] | None = None,
    *,
    launched: bool = True,
    team: int = 0,
    update: Update | None = None,
    growing: Growing | None = None,
) -> Plan:
    """Check settings, world, shards and networks against each other.

    Args:
        settings: of the run.
        world_size: number of ranks.
        known: the manifest of a run that is joined; None or {} for a new run.
        launched: this process is a rank of the world, so the launcher's number of ranks is checked.
        team: the team whose ranks are placed.
        update: how the run is updated; None if it is not.
        growing: for a job that begins while the input is listed.

    Raises:
        UsageError, EnvironmentFault, DataFault: the first fault that is found.
    """
    settings.require_inputs()
    placement = settings.place_team(world_size, team, launcher_size() if launched else None)
    networks = check_without_images(settings, world_size)
    for network in networks.values():
        read_tensors(network)  # damage is found here, before any rank has loaded torch
    shards = shards_of(settings, known, update, read_as(settings, networks), growing)
    try:
        if growing is None or not (growing.lister and known):  # it was told before
            _tell_of_usual_resize(settings, networks, shards)
        order = run_order(settings, known["images"] if known else len(shards), known)
        return _fitted(settings, placement, networks, shards, order)
    except BaseException:
        shards.close()
        raise


def shards_of(
    settings: RunSettings,
    known: Mapping[str, Any] | None,
    update: Update | None,
    read_as: ReadAs,
    growing: Growing | None = None,
) -> ShardSet:
    """The shards of a run, with the numbers that they have there.

    Args:
        settings: of the run.
        known, update, growing: as in `make_plan`.
        read_as: how they are read.

    Raises:
        UsageError, EnvironmentFault, DataFault: they cannot be used, or the run not be updated.
    """
    indexes, paths = Path(settings.out) / INDEX_FOLDER, [Path(path) for path in settings.shards]
    entries = known["shards"] if known else []
    if update is not None and settings.partial:
        raise UsageError(
            "--update is for runs over all images, and this one has --limit or --only: leave it out"
        )
    content, listing = settings.key == "content", known.get(LISTING) if known else None
    if listing in (OPEN, DUE) and settings.teams > 1:
        raise UsageError(f"{settings.out}: its input is still listed. Finish it without --teams")
    if listing == OPEN or (listing == DUE and growing and growing.lister):
        infos = saved(entries, indexes, paths[0], replace(read_as, content=content))
        return _grown(infos, growing if listing == DUE else None)
    trusts = update is not None and update.trust_dirs
    if trusts and all(source_of(path)[0].name != "folder" for path in expand_paths(paths)):
        raise UsageError(
            "--trust-dirs is for folders of pictures, and no --input is one: leave it out"
        )
    before = lists_before(entries, indexes)
    read_as = replace(read_as, content=content, before=before, trust_dirs=trusts)
    streamed = None if known or growing is None else _streamed(settings, read_as)
    how = replace(read_as, in_time=in_time()) if streamed else read_as
    try:
        shards = ShardSet.open(paths, skip_bad=True, read_as=how)
    except TakesLong:
        assert streamed is not None
        assert growing is not None
        growing.lister = Lister(*streamed, read_as)
        return _grown([], growing)
    if not known:
        return shards
    try:
        complete = listing == DUE or known.get("status", COMPLETE[0]) in COMPLETE
        if listing == DUE and update is None:  # who listed it has died
            update = Update()
        return as_before(
            shards,
            entries,
            indexes,
            update,
            content=content,
            limited=settings.partial,
            complete=complete,
        )
    except BaseException:
        shards.close()
        raise


def _grown(infos: Sequence[ShardInfo], growing: Growing | None) -> ShardSet:
    """The shards of a run whose input is being listed: those of the run, and what was listed
    since. `growing`: None: nothing is to be added."""
    if growing is None or growing.lister is None:
        shards = ShardSet(infos)
        shards.grows = True
        return shards
    more = growing.lister.take(growing.stop_reason)
    if reason := growing.stop_reason():
        raise Interrupted(f"{reason}: go on with the same command")
    if not infos and not more:
        raise DataFault(f"{growing.lister.path}: no picture in it")
    shards = ShardSet([*infos, *more])
    shards.grows = not growing.lister.ended
    return shards


def _streamed(settings: RunSettings, read_as: ReadAs) -> tuple[type[MemberSource], Path] | None:
    """The input of a run, if ranks may begin while it is listed: one folder or list without labels,
    and settings that do not need the number of images."""
    needs = settings.shuffle_seed() is not None or settings.agree is not None or settings.partial
    needs |= settings.open_loop or settings.teams > 1 or settings.assign == "turn"
    paths = [] if needs else expand_paths(settings.shards)
    if len(paths) != 1:
        return None
    source, path = source_of(paths[0])
    if not issubclass(source, MemberSource) or source.stream(path, read_as) is None:
        return None
    return source, path


def read_as(settings: RunSettings, networks: Mapping[str, NetworkInfo]) -> ReadAs:
    """How sources other than HDF5 shards are read, so that the images fit the networks.

    Raises:
        UsageError, EnvironmentFault, DataFault: the class names, or a network given by its name,
            cannot be read.
    """
    asked: dict[str, Described] = {}
    paths, exact = expand_paths(settings.shards), [*settings.parts]
    if settings.stages:  # a stage may get fewer pixels
        exact = [SINGLE]
    if any(source_of(path)[0].name not in HDF5 for path in paths):
        shape = settings.picture_shape()
        cell_px = settings.cell_px or shape[0]
        asked = _ask_named(settings, Geometry(shape, settings.side, cell_px, None), titles=exact)
    known = {title: networks[title] for title in exact if title in networks}
    known |= {title: each.info for title, each in asked.items()}
    fits, names = [], None
    for alike in _alike(settings):
        infos = [info for title, info in known.items() if title in alike]
        shapes = [one.image_shape for one in infos if one.image_shape]
        images = next((shape for shape in shapes if shape[2] in CHANNELS), None)  # else no pictures
        told = next(
            (asked[title] for title in alike if title in asked and asked[title].resize_px), None
        )
        resize_px, by = (told.resize_px, told.filter) if told else (None, None)
        usual = bool(_unsaid(settings, networks, alike))
        fits.append(settings.picture_fit(images, resize_px, by, usual=usual))
        if len(fits) == 1:
            names = next((one.class_names for one in infos if one.class_names), None)
    if settings.class_names_file is not None:
        names = read_class_names(Path(settings.class_names_file))
    return ReadAs(beside(fits), names, settings.input_labels == "auto", pictures=False)


def _alike(settings: RunSettings) -> list[list[str]]:
    """The titles of the networks that get pictures of the same fit; see `RunSettings.parts`. Each
    network beside the first one has its own."""
    titles = [*settings.parts]
    return [[t for t in titles if t in KINDS], *([t] for t in titles if t not in KINDS)]


def _unsaid(settings: RunSettings, networks: Collection[str], alike: Sequence[str]) -> list[str]:
    """The networks, if none of them says how pictures are resized: files of other programs, and
    the user's own code unless it is mapped. [] if a network says it, or was trained on shards.

    Args:
        settings: of the run.
        networks: titles of those with a weights file of this package.
        alike: titles of networks that get pictures of the same fit.
    """
    parts = [part for title, (_, part) in settings.parts.items() if title in alike]
    named = [named for named in (read_spec(part.spec) for part in parts) if named is not None]
    says = any(title in networks for title in alike)
    says |= any(each.library in PREFIXES for each in named)
    maps = not settings.extras.classifies or any(part.maps for part in parts)
    return [] if says or maps else [each.spec for each in named]


def _tell_of_usual_resize(
    settings: RunSettings, networks: Mapping[str, NetworkInfo], shards: ShardSet
) -> None:
    """Tell the user how pictures are resized if neither the user nor a network says it."""
    fits = [parse_fit(info.fit) for info in shards.infos if info.fit]
    groups = _alike(settings) if fits and settings.resize_px is None else []
    for alike, fit in zip(groups, _each(fits[0], len(groups)) if groups else (), strict=True):
        unsaid = _unsaid(settings, networks, alike)
        if unsaid and fit.resize_px is not None:
            tell(
                f"{unsaid[0]} does not say how pictures are resized: the shorter edge becomes "
                f"{fit.resize_px} px and the middle {fit.px} x {fit.px} px are kept, as is usual "
                f"for ImageNet. --resize-px {fit.px} keeps the whole shorter edge",
                logging.INFO,
            )


def _each(fit: PictureFit, networks: int) -> Sequence[PictureFit]:
    """The fit of each network, of several beside each other."""
    return fit.each if fit.beside else [fit] * networks


def _shapes(settings: RunSettings, shards: ShardSet) -> list[tuple[list[str], tuple[int, ...]]]:
    """The titles of networks that get items of the same shape, and this shape."""
    groups = _alike(settings)
    fits = _each(parse_fit(shards.fit), len(groups)) if shards.fit else ()
    shapes = [tuple(fit.shape) for fit in fits] or [shards.shape] * len(groups)
    return [*zip(groups, shapes, strict=True)]


def _fitted(
    settings: RunSettings,
    placement: Placement,
    networks: Mapping[str, NetworkInfo],
    shards: ShardSet,
    order: Order,
) -> Plan:
    """The plan, if shards, networks and settings fit each other; raises as `make_plan`."""
    _check_pasting(settings, shards)
    collage, height = networks.get(COLLAGE), shards.shape[0] if len(shards.shape) == 3 else 1
    cell_px = (settings.cell_px if collage is None else collage.cell_px) or height
    geometry = Geometry(shards.shape, settings.side, cell_px, None, shards.dtype)
    functions = not shards.infos[0].is_picture and settings.extras.classifies
    shapes = {title: shape for titles, shape in _shapes(settings, shards) for title in titles}
    asked = _ask_named(settings, geometry, functions, shapes=shapes)
    networks = {**networks, **{title: each.info for title, each in asked.items()}}
    small = _check_px(settings, shards, networks)
    shape = next(iter(shapes.values()))
    whole = [info for title, info in networks.items() if title in KINDS and title not in small]
    check_items(whole, shards.dtype, shape, shards.infos[0].conversion)
    single, collage = networks.get(SINGLE), networks.get(COLLAGE)
    told = settings.shards, settings.side, settings.cell_px
    names = check_fit(whole, shape, shards.class_names, *told)
    others: dict[str, tuple[str, ...]] = {}
    for title, (_, part) in _beside(settings):
        own = [networks[title]] if title in networks else []
        check_items(own, shards.dtype, shapes[title], shards.infos[0].conversion)
        found = check_fit(own, shapes[title], None, settings.shards)
        others |= {} if part.maps else {part.name: found or ()}
    for kind, px in small.items():
        info, size = networks.get(kind), geometry.at_px(px).image_shape
        names = check_fit([info], size, names) or names
    if settings.class_names_file is not None:
        names = _named_by_file(Path(settings.class_names_file), shards, names)
    grid = Grid(settings.side, cell_px)
    _check_sizes(shards, grid, settings)
    warn_of_weak_collage(single, collage)
    settings.arrival_times_ns(len(order))  # reads the file, so that a bad one is found here
    classes = _count_classes(shards, names, asked)
    if classes is None:
        classes = _unnamed_classes(settings, shards, geometry)
    check_top_k(settings, classes)
    known = with_accept_of(settings, networks)
    if settings.confidence is None and known.confidence == 1:
        measure = (
            "" if any_foreign(settings) else ("`collage-mpi weights threshold` finds a threshold; ")
        )
        tell(
            "confidence auto: the collage network has no threshold for this single network, so its "
            f"answers count only if no single rank can answer. {measure}--confidence 0 accepts "
            "every answer",
            logging.INFO,
        )
    changed = (known.confidence, known.first) != (settings.confidence, settings.first)
    judged = networks.get(settings.judged)
    by_file = judged.accept if judged is not None and changed else None
    facts = known, shards, order, grid, placement, names, classes
    return Plan(*facts, asked=settings, by_file=by_file, beside=others)


def check_without_images(settings: RunSettings, world_size: int) -> dict[str, NetworkInfo]:
    """Check all that can be checked without images; the facts of the networks by kind.

    Raises:
        UsageError, EnvironmentFault, DataFault: the first fault that is found.
    """
    make_delays(settings)  # reads the trace, so that a bad one is found here
    settings.check_slow_ranks(world_size)
    networks = _networks(settings)
    for kind, part in settings.parts.values():
        candidates(part.spec, settings.tuning(kind))
    _check_names(settings, networks)
    return networks


def _check_names(settings: RunSettings, networks: Mapping[str, NetworkInfo]) -> None:
    """Check the class names that are known without images, and `top_k`, against each other."""
    path = settings.class_names_file
    given = None if path is None else read_class_names(Path(path))
    own = {kind: info for kind, info in networks.items() if kind in KINDS}
    theirs = ((f"the {kind} network", info.class_names) for kind, info in own.items())
    names = agreed_names([(f"--class-names-file {path}", given), *theirs])
    check_top_k(settings, None if names is None else len(names))


def _networks(settings: RunSettings) -> dict[str, NetworkInfo]:
    """The facts of the networks that the scheme needs, by title, without null networks.

    Raises:
        UsageError, DataFault: as in `describe`.
    """
    trusted = settings.trust_network
    described = {
        title: describe(part.spec, KIND[kind].network, trusted)
        for title, (kind, part) in settings.parts.items()
    }
    return {title: info for title, info in described.items() if info is not None}


def _beside(settings: RunSettings) -> list[tuple[str, tuple[str, Part]]]:
    """The networks beside the first one; see `RunSettings.parts`."""
    return [each for each in settings.parts.items() if each[0] not in KINDS]


def _named_by_file(path: Path, shards: ShardSet, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The class names in the file.

    Raises:
        UsageError, EnvironmentFault: as in `read_class_names`.
        DataFault: shards or networks have other names, or a label has no name.
    """
    given = read_class_names(path)
    where = f"--class-names-file {path}"
    agreed_names([(where, given), ("the shards and networks", names)])
    highest = shards.highest_label()
    if highest is not None and highest >= len(given):
        raise DataFault(
            f"{where} has {len(given)} names, for labels 0 to {len(given) - 1}, but the shards "
            f"have label {highest}"
        )
    return given


def _check_pasting(settings: RunSettings, shards: ShardSet) -> None:
    """Raise UsageError if the scheme pastes images into one picture, but items are no images."""
    if not settings.pastes or (shards.dtype == "uint8" and len(shards.shape) == 3):
        return
    raise UsageError(
        f"scheme {settings.scheme} pastes several images into one picture, which needs uint8 of "
        f"(height, width, channels); the source holds items of {shards.dtype} {shards.shape}. "
        "Use a scheme that pastes nothing: none, replicate, hedge, or cascade with --first W. "
        f"{shards.infos[0].conversion}".strip()
    )


def _ask_named(
    settings: RunSettings,
    geometry: Geometry,
    functions: bool = False,
    titles: Collection[str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Described]:
    """The facts of networks of other libraries, by title; see `asking.ask`.

    With `functions`, networks made by the user's own code are included, but none that is mapped.
    """
    px = {stage.kind: stage.px for stage in settings.stages}
    own = {title: replace(geometry, image_shape=shape) for title, shape in (shapes or {}).items()}
    return {
        title: ask(
            part.spec,
            KIND[kind].network,
            own.get(title, geometry).at_px(px.get(kind)),
            settings.trust_network,
        )
        for title, (kind, part) in settings.parts.items()
        if titles is None or title in titles
        if is_foreign(part.spec) and ((functions and not part.maps) or not is_function(part.spec))
    }


def _check_px(
    settings: RunSettings, shards: ShardSet, networks: Mapping[str, NetworkInfo]
) -> dict[str, int]:
    """Kind -> height and width of its pictures, for stages that get smaller ones.

    Raises:
        UsageError: the images are no pictures, or not larger; or a network needs smaller ones, and
            the user has not said so.
    """
    for stage in settings.stages:
        info = networks.get(stage.kind)
        needs = None if info is None or stage.px else info.image_shape
        if needs and len(needs) == len(shards.shape) == 3 and needs[0] < shards.shape[0]:
            raise UsageError(
                f"first is {stage.text}, which needs pictures of {needs[0]} px, and the single "
                f"network gets {shards.shape[0]} px: say --first {replace(stage, px=needs[0]).text}"
            )
    small = {stage.kind: stage for stage in settings.stages if stage.px is not None}
    for stage in small.values():
        assert stage.px is not None
        square = shards.dtype == "uint8" and len(shards.shape) == 3
        if not square or not stage.px < shards.shape[0] == shards.shape[1]:
            raise UsageError(
                f"first is {stage.text}, and the images are {shards.dtype} {shards.shape}: a stage "
                "may get square pictures with fewer pixels; leave out the input size"
            )
    return {kind: stage.px for kind, stage in small.items() if stage.px is not None}


def _count_classes(
    shards: ShardSet, names: tuple[str, ...] | None, asked: Mapping[str, Described]
) -> int | None:
    """Number of classes, by the class names and the networks that were asked; None if unknown.

    Raises:
        DataFault: the numbers differ, or a label is too large.
    """
    asked = {kind: each for kind, each in asked.items() if kind in KINDS}
    told = {f"{kind} network {each.info.origin}": each.classes for kind, each in asked.items()}
    told = {"the class names": len(names), **told} if names else told
    if not told:
        return None
    (first, number), *others = told.items()
    for where, other in others:
        if other != number:
            hdf5 = all(info.storage in HDF5 for info in shards.infos)
            advice = "" if hdf5 else ", or give --input-labels none if folders are no classes"
            raise DataFault(
                f"{number} classes in {first}, {other} in {where}; they must agree{advice}"
            )
    highest = shards.highest_label() if asked else None
    if highest is not None and highest >= number:
        raise DataFault(f"{number} classes in {first}, but the shards have label {highest}")
    return number


def _unnamed_classes(settings: RunSettings, shards: ShardSet, geometry: Geometry) -> int | None:
    """Number of classes if neither class names nor networks give it.

    Null networks are told this number. None if only a user's function knows, and its first answer
    on a rank is early enough. The function is called at once if the room for all scores depends on
    the number.

    Raises:
        UsageError: the number is needed, and the function does not give it.
    """
    specs = {kind: part.spec for title, (kind, part) in settings.parts.items() if title in KINDS}
    functions = [kind for kind, spec in specs.items() if is_function(spec)]
    highest = shards.highest_label()
    if not functions or highest is not None:
        return NULL_CLASSES if highest is None or not functions else highest + 1
    if settings.save != SCORES:
        return None
    try:
        first = functions[0]
        return ask(specs[first], KIND[first].network, geometry).classes
    except CollageError as error:
        raise UsageError(
            f"--save {SCORES} needs the number of classes at the start. The shards have neither "
            f"class names nor labels, and a trial call of the network failed ({error}): name the "
            "classes with --class-names-file FILE"
        ) from error


def check_top_k(settings: RunSettings, classes: int | None) -> None:
    """Raise UsageError if there are fewer classes than `top_k` needs."""
    if classes is not None and settings.agree_on == TOP5 and classes <= BEST:
        raise UsageError(
            f"top_k is {BEST} with --agree, and there are only {classes} classes: all of them are "
            "always among the five best. Leave out --top-k"
        )
    if classes is not None and (settings.top_k or 0) > classes:
        raise UsageError(f"top_k is {settings.top_k}, but there are only {classes} classes")


def run_order(settings: RunSettings, images: int, known: Mapping[str, Any] | None = None) -> Order:
    """The order of the run (C5): file order or shuffled by a seed, without the images that `only`
    does not name, cut at the limit.

    With `agree` the images that choose the threshold come first; they are drawn from all over it.
    What a collage says of an image depends on the others, so that all are shuffled if one is asked.

    Args:
        settings: of the run.
        images: number of images of the input.
        known: as in `make_plan`: a run keeps its permutation.

    Raises:
        EnvironmentFault: a later version of the package has shuffled the run, or the file of
            `only` cannot be read.
        DataFault: this file names an image that does not exist, or one twice.
    """
    only = None if settings.only is None else read_numbers(Path(settings.only), images)
    count = images if only is None else len(only)
    seed, most = settings.shuffle_seed(), min(count, settings.limit or count)
    version = known.get("permutation") if known else Shuffle.version
    permutation: Permutation
    if seed is None:
        permutation = Permutation(images)
    elif version is None:
        permutation = Listed.by_numpy(images, seed)
    elif version == Shuffle.version:
        permutation = Shuffle(images, seed)
    else:
        raise EnvironmentFault(
            f"the run was shuffled by permutation {version}; this version of collage-mpi knows "
            f"{Shuffle.version}. Go on with the version that began it"
        )
    if seed is None and settings.agree is not None and settings.uses_collage:
        permutation, seed = Shuffle(most if only is None else images, 0), 0
    ranges = None if only is None else ranges_of(np.sort(permutation.positions(only)))
    order = Order(permutation, ranges).part([(0, most)])
    return order if seed is not None else drawn_first(order, drawn_of(settings, most))


def drawn_of(settings: RunSettings, images: int) -> int:
    """How many of a job's images are drawn for the threshold of `agree`, and so come first."""
    return 0 if settings.agree is None else front(Asked(images, settings.agree, 1.0))


def warn_of_one_class_groups(plan: Plan) -> None:
    """Warn if many collages would hold one class only, as with shards sorted by class (C5).

    There is no warning if no collages are made, or if all images have one class, because then no
    order helps.
    """
    shards, size = plan.shards, plan.settings.group_size
    full = len(plan.order) // size
    mixed = plan.settings.uses_collage and full and plan.classes != 1
    if not mixed or not shards.infos[0].has_labels or shards.lost:
        return
    chosen = np.linspace(0, full - 1, min(full, GROUPS_LOOKED_AT)).astype(np.int64)
    positions = (chosen[:, None] * size + np.arange(size)).ravel()  # (groups * s*s,)
    labels = shards.labels_at(plan.order.indices(positions))
    assert labels is not None
    groups = labels.reshape(-1, size)  # (groups, s*s) int64
    share = float((groups == groups[:, :1]).all(axis=1).mean())
    if share > ONE_CLASS_SHARE and (groups != groups[0, 0]).any():
        tell(
            f"warning: {share:.0%} of the groups hold one class only (shards sorted by class?); "
            "the collage network was trained on collages of mixed classes: "
            "consider --order shuffle:0"
        )


def warn_of_small_pictures(plan: Plan) -> None:
    """Warn if pictures are enlarged. The headers of LOOKED_AT pictures of folders, tar files and
    lists are read, spread evenly."""
    shards, fit = plan.shards, plan.shards.fit
    infos = shards.infos
    if fit is None or any(one.members is None or url_of(one.path) for one in infos):
        return
    places = np.linspace(0, len(plan.order) - 1, min(LOOKED_AT, len(plan.order))).astype(int)
    with suppress(CollageError):  # a shard that is lost is told when it is read
        files, _ = shards.read_files_checked(plan.order.indices(places))
        needed = parse_fit(fit)
        small = sum(data is not None and is_enlarged(data, needed) for data in files)
        if small:
            edge = "longer" if needed.mode == "letterbox" else "shorter"
            tell(
                f"warning: {small:,} of {counted(len(files), 'picture')} looked at are enlarged, "
                f"because their {edge} edge is resized to {needed.resize_px or needed.px} px. "
                "--image-px and --resize-px make it smaller"
            )


def warn_of_weak_collage(single: NetworkInfo | None, collage: NetworkInfo | None) -> None:
    """Warn if the collage network was much less accurate in validation than the single network."""
    if single is None or collage is None:
        return
    counts = _validated(single), _validated(collage)
    gap = weaker_by(*counts)
    if gap is not None:
        shown = [f"{right / n:.1%}" for right, n in counts]
        tell(
            f"warning: in validation the collage network was right on {shown[1]} of the images, "
            f"the single network on {shown[0]}: each accepted answer of a collage costs about "
            f"{100 * gap:.0f} percentage points of accuracy. {ADVICE}"
        )


def _validated(info: NetworkInfo) -> tuple[int, int]:
    """(right, images) of the network's validation; (0, 0) if its record has none."""
    record = info.metadata.get("training")
    training = record if isinstance(record, dict) else {}
    share, n = training.get("validation_accuracy"), training.get("validation_images")
    if not isinstance(share, float) or type(n) is not int or not 0 <= share <= 1 or n < 0:
        return 0, 0
    return round(share * n), n


def _check_sizes(shards: ShardSet, grid: Grid, settings: RunSettings) -> None:
    """Raise UsageError if a task does not fit a message; DataFault if a label is too large."""
    batch, nbytes = settings.batch_size, grid.px * grid.px * shards.shape[-1] * settings.pastes
    images = max(settings.most_inputs(kind) for kind in KINDS if settings.uses(kind)) // batch
    item_bytes = math.prod(shards.shape) * np.dtype(shards.dtype).itemsize
    largest = max(nbytes, images * item_bytes)
    fit = LARGEST_INPUT_BYTES // largest
    if largest > LARGEST_INPUT_BYTES >= nbytes:
        raise UsageError(
            f"a message of {images} images takes {largest:,} bytes; at most "
            f"{LARGEST_INPUT_BYTES:,} are possible: choose a smaller --side, or smaller images"
        )
    if batch > fit >= 1:
        raise UsageError(
            f"a batch of {batch} takes {batch * largest:,} bytes in one message; at most "
            f"{LARGEST_INPUT_BYTES:,} are possible: use --batch {fit} or less"
        )
    if nbytes > LARGEST_INPUT_BYTES:
        raise UsageError(
            f"a collage of side {grid.side} with cells of {grid.cell_px} px takes {nbytes:,} "
            f"bytes; at most {LARGEST_INPUT_BYTES:,} are possible: choose a smaller --cell-px"
        )
    if batch * images > MOST_ITEMS:
        raise UsageError(
            f"a batch of {batch} groups has {batch * images:,} images in one task; at most "
            f"{MOST_ITEMS:,} are possible: use --batch {MOST_ITEMS // images} or less"
        )
    highest = shards.highest_label()
    if highest is not None and highest > LARGEST_LABEL:
        raise DataFault(
            f"the shards have label {highest}; labels must be class numbers from 0 to "
            f"{LARGEST_LABEL}"
        )
