"""`collage-mpi classify photos/ --network timm:NAME --out classes.csv`: classifies a folder of
pictures with one command. It starts a run on this host, which reads the pictures from the folder,
and exports the predictions.

`collage-mpi embed photos/ --network timm:NAME --out e.parquet` is the same for embeddings.

`collage-mpi map FILE.py:CLASS --input ... --out DIR` runs a class of the user on every image of the
input, with ranks on this host. The arrays that it returns are stored once for each image.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.launch import LaunchArguments, check_and_launch
from collage_mpi.commands.look import ExportArguments
from collage_mpi.commands.parser import Command, MpiArguments
from collage_mpi.commands.run import RunArguments, proof_of
from collage_mpi.encoding.vectors import BESIDE, NO_SAVE, OUTPUTS, SCORES
from collage_mpi.errors import ExitCode, UsageError
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.models import describe
from collage_mpi.models.info import INT8, Tuning, processor_facts
from collage_mpi.models.named import (
    BETWEEN,
    LENGTHS,
    MAP,
    NAME_LENGTH,
    OPTIONS,
    PREFIXES,
    Part,
    beside,
    embeds,
    is_null,
    part_of,
    parts_of,
    read_spec,
)
from collage_mpi.results import BESIDE_FOLDER, ROWS_FOLDER, has_run, runs_beside
from collage_mpi.settings.flags import (
    Values,
    add_setting_flags,
    changed,
    over_file,
    own_fields,
    switch,
    words_of,
)
from collage_mpi.settings.run_settings import (
    InputSettings,
    NetworkSettings,
    PaceSettings,
    RedundancySettings,
    RunSettings,
)
from collage_mpi.settings.stages import read_stages
from collage_mpi.system.environment import launcher_size, processes_here
from collage_mpi.system.fields import REQUIRED, names, same, setting, with_shipped
from collage_mpi.system.files import writing
from collage_mpi.system.printable import counted, say
from collage_mpi.system.tell import tell

if TYPE_CHECKING:
    from collage_mpi.shards.schema import ShardInfo

RUN = ".run"  # the run's folder is called after the output file, with this suffix
IN_RUN = (
    f"The run is in FILE{RUN}; repeat the command to continue it, or to take new and changed "
    "pictures into it"
)
FORMATS = ("csv", "parquet")
RANKS_A_DEVICE = 4  # more of them on a core or GPU only wait for each other
HINTED = 0.995  # the promise that is forecast
WHY_NONE = "have the reason in the column error; --retry-errors tries them again"
BFLOAT16_GAIN = 2  # beside float32, on processors with such instructions (docs/networks.md)


@dataclass(frozen=True, kw_only=True)
class TableArguments(MpiArguments):
    """The arguments of commands that make a table of a folder of pictures. Those with the name of a
    setting of `run` are that setting."""

    pictures: Path = setting(
        REQUIRED,
        "folder of pictures, at any depth, or any other --input of run",
        metavar="DIR",
        positional=True,
    )
    id: str | None = same(ExportArguments, "id")
    columns: tuple[str, ...] = same(ExportArguments, "columns")
    key: str | None = same(InputSettings, "key", default=None, group="")
    touched: str = same(RunArguments, "touched")
    prune: bool = same(RunArguments, "prune")
    trust_dirs: bool = same(RunArguments, "trust_dirs")
    image_px: int | None = same(InputSettings, "image_px", group="")
    resize_px: int | None = same(InputSettings, "resize_px", group="")
    fit: str = same(InputSettings, "fit", group="")
    device: str = same(NetworkSettings, "device", group="")
    trust_network: str = same(NetworkSettings, "trust_network", group="")
    precision: str = same(NetworkSettings, "precision", group="")
    runtime: str = same(NetworkSettings, "runtime", group="")
    batch: int | None = same(PaceSettings, "batch", default=None, group="")
    ranks: int | None = setting(
        None, "worker ranks", unset="one for each GPU, or for each available core", at_least=1
    )
    retry_errors: bool = switch("also try the pictures of error rows again")
    verbose: bool = switch(
        "print the progress, how the batch was chosen, and the summary of the run",
        flag="-v --verbose",
    )
    out: Path

    @property
    def run(self) -> Path:
        """The run's folder, next to --out."""
        return self.out.with_name(self.out.name + RUN)


@dataclass(frozen=True, kw_only=True)
class ClassifyArguments(TableArguments):
    """The arguments of classify."""

    network: tuple[str, ...] = setting(
        REQUIRED,
        "network that classifies the pictures: timm:NAME, hf:ID, FILE.onnx, FILE.pt2, FILE.ts, a "
        ".safetensors file, or MODULE:FUNCTION. Of several, all answer each picture, which is read "
        "and decoded once; map:FILE.py:CLASS adds what a class of yours returns "
        "(docs/networks.md#several-networks)",
        metavar="W",
        repeated=True,
    )
    as_: tuple[str, ...] = setting(
        (),
        "name of each --network, in their order. It begins the names of the columns of all but the "
        "first network of a table",
        unset="the network's own name",
        metavar="NAME",
        flag="--as",
        repeated=True,
    )
    out: Path = setting(
        REQUIRED,
        "file to write, .csv or .parquet: id, class and score of each picture, and the error if "
        f"there is no answer. {IN_RUN}",
        metavar="FILE",
    )
    labels: str = setting(
        "",
        'classes in words, with commas between them: "ship, plane". A network with a text side, '
        "such as CLIP, gives each picture the label whose embedding is nearest to its own",
        metavar="WORDS",
    )
    agree: float | None = setting(
        None,
        "let a cheaper form of the network, or --first, answer what it is sure of, so that at most "
        "1 - A of all pictures get another class, with a probability of 95 % (docs/cascade.md). "
        "Without it each answer is the network's own",
        metavar="A",
        above=0,
        below=1,
    )
    first: tuple[str, ...] = same(RedundancySettings, "first", group="")
    recall: tuple[str, ...] = setting(
        (),
        "find at least this share of the pictures that the network calls CLASS, or one of several "
        "classes, with a probability of 95 %, without asking it for all pictures: --recall "
        "blank=0.95. --first, or bfloat16, classifies them all. --out then says yes or no of each "
        "picture (docs/cascade.md#yes-or-no)",
        metavar="CLASS=SHARE",
    )
    top_k: int | None = same(InputSettings, "top_k", group="")
    class_names_file: str | None = same(InputSettings, "class_names_file", group="")

    @property
    def spec(self) -> str:
        """The only network, with the labels that it compares pictures with."""
        network = self.network[0]
        words = [word.strip() for word in self.labels.split(",")] if self.labels else []
        if self.labels and (
            len(set(words)) < len(words) or len(words) < 2 or "" in words or BETWEEN in self.labels
        ):
            raise UsageError(
                f"--labels {self.labels!r}: needed are two or more different labels with commas "
                f'between them, without {BETWEEN}: --labels "ship, plane"'
            )
        named = read_spec(network)
        if words and (named is None or "labels" not in OPTIONS.get(named.library, ())):
            raise UsageError(
                f"--labels needs a network with a text side, hf:ID, and {network} has none"
            )
        return f"{network},labels={BETWEEN.join(words)}" if words else network

    @property
    def parts(self) -> tuple[Part, ...]:
        """The networks, with the names that --as gives them, or "".

        Raises:
            UsageError: as `parts_named`; or other arguments are for one network.
        """
        one = {"--labels": self.labels, "--agree": self.agree, "--recall": self.recall}
        several = len(self.network) > 1 or bool(self.as_)
        if several and (given := [flag for flag, value in one.items() if value]):
            raise UsageError(f"{given[0]} is for one network without --as: leave out the others")
        return parts_named(self.as_, self.network if several else (self.spec,))


def execute(args: ClassifyArguments) -> int:
    """Start the run, or go on with it, and export its predictions when it is complete. Returns the
    exit code of the run.
    """
    if args.out.suffix[1:] not in FORMATS:
        raise UsageError(f"--out {args.out}: its name must end in .csv or .parquet")
    if args.first and args.agree is None and not args.recall:
        raise UsageError("--first names what answers before the network: add --agree 0.995")
    _check_columns(args)
    parts = args.parts
    code, run = (_yes_or_no(args), args.run) if args.recall else _classified(args)
    if not _done(run, code, "classes"):
        return code
    if not args.recall:
        manifest = _export(args)
        say(f"classes in {args.out}; {proof_of(args.run)}")
        alone = args.agree is None and not parts[1:]
        if alone and (hint := agree_hint(manifest, processor_facts())):
            say(hint)
    if code == ExitCode.COMPLETE_WITH_ERRORS:
        say(f"pictures without a class {WHY_NONE}")
    return code


def _classified(args: ClassifyArguments) -> tuple[int, Path]:
    """Start, continue or update the runs of the table; the worst of their exit codes, or that of a
    run that was refused or did not end, and which run it is."""
    code = int(ExitCode.COMPLETE)
    for values in _runs_of(args):
        launch = partial(launched, args, values, *update_words(args))
        found = updated(Path(values["out"]), launch)
        if found not in (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS):
            return found, Path(values["out"])
        code = max(code, found)
    return code, args.run


def _runs_of(args: ClassifyArguments) -> list[Values]:
    """The settings of each run of the table: of those that are there, and of one for the networks
    that are new.

    Raises:
        UsageError: the table has another network of a name, or two new ones have the same.
    """
    from collage_mpi.results.manifest import compose, recorded_settings

    parts = args.parts
    if not has_run(args.run):
        if parts[0].maps:
            raise UsageError(
                f"--network {args.network[0]}: a table begins with a network that classifies: name "
                "one first, or type collage-mpi map or embed"
            )
        named = bool(args.as_ or parts[1:])
        return [_settings_of(args, with_own_names(parts) if named else parts)]
    places = {"": args.run, **runs_beside(args.run)}
    recorded = {place: recorded_settings(compose(path)) for place, path in places.items()}
    known = {
        part.name or place: (place, part.spec)
        for place, settings in recorded.items()
        for part in parts_of(str(settings[SINGLE]))
    }
    taken = {name.lower(): name for name in known}
    asked, new = set[str](), list[Part]()
    for part in parts:
        alike = [name for name, (_, spec) in known.items() if spec == part.spec]
        own = with_own_names([part])[0]
        if part.name in alike or ("" in alike and part.name not in known):
            if part.name not in alike:
                tell(f"{part.name}: {part.spec} is the table's first network: see class and score")
            asked.add(known[part.name if part.name in alike else ""][0])
        elif alike and not part.name:
            asked.add(known[alike[0]][0])
        elif len(parts) == 1 and not part.name:
            first = parts_of(str(recorded[""][SINGLE]))[0].spec
            raise UsageError(
                f"{args.out}: its classes are of {first}, and {part.spec} is another network. "
                f"--as NAME adds columns for it. To change the network, remove {args.run} or "
                "choose another --out"
            )
        elif (name := taken.get(own.name.lower())) is not None:
            raise UsageError(
                f"{args.out}: its columns {name} are of {known[name][1]}, and {own.spec} is "
                f"another network. Give it a name of its own: --as {own.name}2"
            )
        else:
            new.append(own)
    runs = []
    for place, path in places.items():
        if place in asked:
            saves = recorded[place].get("save")
            there = parts_of(str(recorded[place][SINGLE]))
            values = _settings_of(
                args, [replace(p, maps=p.maps or saves == OUTPUTS) for p in there]
            )
        else:
            values = changed(RunSettings.from_mapping(recorded[place]))
            values |= {"singles": _ranks(args)} if "singles" in values else {}
        runs.append({**values, "shards": [str(args.pictures)], "out": str(path)})
    if new:
        new.sort(key=lambda part: part.maps)  # the first one classifies, if any does
        with_own_names(new)  # refuses two of the same name
        values = _settings_of(args, new if new[1:] else [replace(new[0], name="")])
        runs.append({**values, "out": str(args.run / BESIDE_FOLDER / new[0].name)})
    return runs


def _settings_of(args: ClassifyArguments, parts: Sequence[Part]) -> Values:
    """The settings of a run of these networks; the only one may have no name."""
    if args.parts == (*parts,) and not parts[0].name:
        return _settings(args)
    spec = beside(parts) if parts[0].name else parts[0].spec
    values = {**_common(args), "scheme": "none", SINGLE: spec, "singles": _ranks(args)}
    save = OUTPUTS if parts[0].maps else BESIDE if parts[1:] else NO_SAVE
    return values | ({} if save == NO_SAVE else {"save": save})


def parts_named(names: Sequence[str], specs: Sequence[str]) -> tuple[Part, ...]:
    """Networks, with the names of --as, or without names.

    Raises:
        UsageError: there are not as many names, or a name is no word, or a network has none.
    """
    if names and len(names) != len(specs):
        raise UsageError(
            f"{counted(len(specs), 'network')} and {counted(len(names), 'name')} by --as: give one "
            "for each network, in their order, or none"
        )
    specs = [with_shipped(spec) for spec in specs]
    if not names and len(specs) == 1:
        spec = specs[0].removeprefix(MAP)
        return (Part("", spec, maps=spec != specs[0] or bool(embeds(spec))),)
    return tuple(
        part_of(name, spec) for name, spec in zip(names or [""] * len(specs), specs, strict=True)
    )


def with_own_names(parts: Sequence[Part]) -> list[Part]:
    """Networks, of which those without a name have got the last word of what names them.

    Raises:
        UsageError: two have the same name.
    """
    found = [part if part.name else replace(part, name=_own_name(part.spec)) for part in parts]
    counts = Counter(part.name.lower() for part in found)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise UsageError(f"two networks have the name {twice}: give each its own with --as NAME")
    return found


def _own_name(spec: str) -> str:
    word = "null" if is_null(spec) else re.split(r"[:/]", spec.partition(",")[0])[-1]
    name = re.sub(r"\W+", "_", word.partition(".")[0], flags=re.ASCII).strip("_")
    return (name if name[:1].isalpha() else f"n{name}")[:NAME_LENGTH]


def _done(run: Path, code: int, what: str) -> bool:
    """Whether a run is complete; otherwise says what to do."""
    if code == ExitCode.INCOMPLETE:
        say(f"repeat the command to continue; it writes the {what} when all images are done")
    elif code == ExitCode.USAGE:
        say(f"to change the network, remove {run} or choose another --out")
    return code in (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS)


def updated(run: Path, launch: Callable[[], int]) -> int:
    """Start a run, go on with it, or update it, by `launch`; its exit code. A run that was not
    complete is updated when it is."""
    from collage_mpi.results.parts import read_ledger

    goes_on = has_run(run) and not read_ledger(run).complete
    code = launch()
    return (
        launch() if goes_on and code in (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS) else code
    )


def launched(args: ClassifyArguments, values: Values, *how: str) -> int:
    """Start a run with these settings, or go on with it; returns its exit code. `how`: further
    flags of it."""
    # What kept its scores decided what was asked afterwards, so these must not change.
    retry = args.retry_errors and values.get("save") != SCORES
    words = run_words(values, *how, retry_errors=retry, verbose=args.verbose)
    # In a cascade every rank but rank 0 holds all networks.
    ranks = None if values.get("agree") is None else 1 + _ranks(args)
    return check_and_launch(LaunchArguments(words=words, mpi=args.mpi, ranks=ranks))


def _yes_or_no(args: ClassifyArguments) -> int:
    """Do the job of --recall; returns its exit code."""
    from collage_mpi.commands.yes_or_no import Question, YesOrNo, finish

    question = Question.read(args.recall)
    if args.agree is not None or args.top_k:
        raise UsageError(
            "--recall finds the pictures of a class, and promises nothing of other classes: leave "
            "out --agree and --top-k"
        )
    if has_run(args.run):
        raise UsageError(f"{args.run} has a run without --recall: choose another --out")
    known = describe(with_shipped(args.spec), SINGLE, args.trust_network)
    if known is not None and known.class_names and not args.class_names_file:
        question.numbers(known.class_names, args.network[0])  # otherwise the first run tells
    first, exact = cheap_settings(args, "--recall")
    first["save"] = SCORES
    images = input_images(args.pictures)
    job = YesOrNo(images, args.run, first, exact, lambda values: launched(args, values), question)
    code = job.execute()
    return finish(job, args.out, args.id, args.columns) if code == ExitCode.COMPLETE else code


def cheap_settings(args: ClassifyArguments, asker: str) -> tuple[Values, Values]:
    """The settings of the runs of the cheap network and of the network itself, without `out`.

    Args:
        args: of both.
        asker: the flag or command that asks both.

    Raises:
        UsageError: --first names several networks or a threshold, or it is the network itself.
    """
    exact = {name: value for name, value in _settings(args).items() if name not in ("first", "out")}
    common = {name: value for name, value in exact.items() if name not in ("single", "singles")}
    network = with_shipped(args.spec)
    (stage, *more) = read_stages(args.first or ("@bfloat16",), network)
    if more or stage.threshold is not None or stage.score is not None:
        raise UsageError(f"{asker} takes one network in --first, without a threshold or a score")
    if stage.precision == INT8:
        raise UsageError(
            f"{asker} does not take a network in int8, which is for stages of a cascade: choose "
            "@bfloat16 in place of @int8"
        )
    usual = Tuning(precision=args.precision, runtime=args.runtime)
    if (stage.network, stage.px) == (network, None) and stage.tuning(usual).like(usual):
        raise UsageError(
            f"{asker} asks {network} in {usual.dtype} first, which is the network itself: "
            "name a cheaper one with --first"
        )
    own = {"image_px": stage.px, "precision": stage.precision, "runtime": stage.runtime}
    given: Values = {name: value for name, value in own.items() if value is not None}
    if stage.kind == COLLAGE:
        given |= {"scheme": "collage-only", "collage_ranks": _ranks(args)}
        info = describe(network, SINGLE, args.trust_network)
        if info is not None and info.image_shape:  # collages are made of what this network gets
            px, _, channels = info.image_shape
            given |= {"image_px": args.image_px or px, "channels": str(channels)}
        return {**common, **given, "collage": stage.network}, exact
    return {**common, **given, "single": stage.network, "singles": _ranks(args)}, exact


def input_images(pictures: Path) -> int:
    """The number of images of an input that can be read."""
    return sum(info.count for info in _infos(str(pictures)).values())


def _settings(args: ClassifyArguments) -> Values:
    """The settings of a run of one network, without those that follow from others."""
    values = {"scheme": "none", **_common(args), "single": args.spec}
    return values | ({"singles": _ranks(args)} if args.agree is None else {"scheme": "cascade"})


def _common(args: TableArguments) -> Values:
    """The settings of a run over pictures that do not depend on what is asked of them."""
    shared = {spec.name for spec in own_fields(type(args))} & {*names(RunSettings)}
    given = {name: getattr(args, name) for name in sorted(shared)}
    return {
        "batch": None,  # auto
        "pixels": "workers",
        "input_labels": "none",
        **{name: value for name, value in given.items() if value not in (None, "", ())},
        "shards": [str(args.pictures)],
        "out": str(args.run),
    }


def _ranks(args: ClassifyArguments) -> int:
    return ranks_here("classify", args.ranks, args.device)


def update_words(args: TableArguments | MapArguments) -> tuple[str, ...]:
    """The words of `run` that update a run."""
    given = {"--prune": args.prune, "--trust-dirs": args.trust_dirs}
    return "--update", f"--touched={args.touched}", *(word for word in given if given[word])


def run_words(values: Values, *how: str, retry_errors: bool, verbose: bool) -> tuple[str, ...]:
    """The words of the `run` command that starts a run with these settings, or goes on with it.
    `how`: further flags of it."""
    retry = ("--retry-errors",) if retry_errors else ()
    return ("run", *how, *retry, *(() if verbose else ("--brief",)), *words_of(values))


def ranks_here(command: str, ranks: int | None, device: str) -> int:
    """How many workers a command starts on this host: `ranks`, or one for each GPU, or one for each
    available core.

    Raises:
        UsageError: this process is itself one of several ranks.
    """
    from collage_mpi.job.networks import gpus_here

    if (launcher_size() or 1) > 1:
        raise UsageError(f"{command} starts its ranks itself: call it without mpiexec or srun")
    gpus = gpus_here() if device != "cpu" else 0
    sensible = RANKS_A_DEVICE * (gpus or processes_here())
    if ranks is not None and ranks > sensible:
        what = counted(gpus, "GPU") if gpus else counted(processes_here(), "available core")
        say(
            f"--ranks {ranks} on {what}: more than {sensible} ranks are not faster, and each of "
            "them holds a network in memory"
        )
    return ranks or gpus or processes_here()


def _check_columns(args: TableArguments) -> None:
    """Raises UsageError if the input has no such columns, or --id cannot name its images."""
    from collage_mpi.results.input_columns import InputColumns

    if not args.id and not args.columns:
        return
    InputColumns(_infos(str(args.pictures)), args.columns, args.id).check()


def _infos(pictures: str) -> dict[int, ShardInfo]:
    """Number -> description of the sources that can be read."""
    from collage_mpi.shards.inputs import examine, expand_paths
    from collage_mpi.shards.schema import ShardInfo
    from collage_mpi.shards.source import ReadAs

    found = examine(expand_paths([pictures]), ReadAs(labels=False, pictures=False))
    return {n: info for n, info in enumerate(found) if isinstance(info, ShardInfo)}


def agree_hint(manifest: Mapping[str, Any], processor: Mapping[str, str]) -> str:
    """What `--agree` is forecast to bring to a job like this one, in a line; "" if nothing.

    Args:
        manifest: of the run, all of whose answers are the network's own.
        processor: of this host, see `processor_facts`.
    """
    from collage_mpi.bounds.sample import Asked, Candidate, least_images, price_at_s

    flags, images = processor.get("flags", "").split(), manifest["images"]
    amd = "AMD" in processor.get("vendor_id", "") and "avx512_bf16" in flags
    ranks = [each for each in manifest.get("world") or () if each.get("tuning")]
    float32 = all("float32" in how for each in ranks for how in each["tuning"].values())
    on_cpus = float32 and {device for each in ranks for device in each["devices"]} == {"cpu"}
    asked, cheaper = Asked(images, HINTED, 1.0), Candidate("bfloat16", 0.0, 1 / BFLOAT16_GAIN)
    least = least_images(asked, cheaper)
    if not (amd or "amx_bf16" in flags) or not on_cpus or least is None or images < least:
        return ""
    return (
        f"--agree {HINTED:g} may take about {price_at_s(asked, cheaper) / images:.2f} of the "
        f"network's time for {images:,} pictures, and with 95 % probability change at most "
        f"{100 * (1 - HINTED):.2g} % of the classes: a forecast, not measured here, if bfloat16 is "
        f"{BFLOAT16_GAIN:g} times as quick as float32 (1.6 to 3.6 times in torch on such "
        "processors) and 90 % of its answers count"
    )


def _export(args: TableArguments) -> Mapping[str, Any]:
    """Write --out; the manifest of the run."""
    from collage_mpi.results.beside import Joined
    from collage_mpi.results.export import NameBook, export_run
    from collage_mpi.results.reader import open_run

    run = open_run(args.run)
    names = NameBook(run.path, run.manifest, id_column=args.id, columns=args.columns)
    joined = Joined(names, run.path, run.manifest)
    to = args.out.suffix[1:]
    (path,) = export_run(run, to, names=names, only_predictions=True, joined=joined)
    with writing(args.out):
        os.replace(path, args.out)
    for note in (*names.notes, *names.columns.notes(args.out.suffix[1:])):
        tell(f"note: {note}")
    return run.manifest


CLASSIFY_COMMAND = Command(
    execute,
    ClassifyArguments,
    epilog="For example: collage-mpi classify photos/ --network timm:mobilenetv3_small_100 "
    "--top-k 5 --out classes.csv",
)


@dataclass(frozen=True, kw_only=True)
class EmbedArguments(TableArguments):
    """The arguments of embed."""

    network: str = setting(
        REQUIRED, "network by name whose embedding is written: timm:NAME or hf:ID", metavar="W"
    )
    out: Path = setting(
        REQUIRED,
        "file to write, .parquet: id and embedding of each picture, a list of float16 values, and "
        f"the error if there is none. {IN_RUN}",
        metavar="FILE",
    )
    normalise: str = setting(
        LENGTHS[0],
        "l2 divides each embedding by its Euclidean length, so that the sum of products of two is "
        "their cosine. none writes them as the network gives them",
        choices=LENGTHS,
    )


def execute_embed(args: EmbedArguments) -> int:
    """Map the network without its last layer over the pictures, or go on with it, and export the
    outputs when the run is complete. Returns the exit code of the run."""
    named = read_spec(args.network)
    if named is None or named.library not in PREFIXES or args.out.suffix != ".parquet":
        raise UsageError(
            f"embed --network {args.network} --out {args.out}: needed are a network by name, "
            "timm:NAME or hf:ID, and a file whose name ends in .parquet. `map` runs a class of "
            "your own, and `run --save embeddings` keeps what any network gives that classifies"
        )
    _check_columns(args)
    values = {**_common(args), "scheme": "none", "save": OUTPUTS}
    values |= {"single": f"{args.network},embed={args.normalise}"}
    values |= {"singles": ranks_here("embed", args.ranks, args.device)}
    words = run_words(
        values, *update_words(args), retry_errors=args.retry_errors, verbose=args.verbose
    )
    launch = LaunchArguments(words=words, mpi=args.mpi)
    code = updated(args.run, lambda: check_and_launch(launch))
    if _done(args.run, code, "embeddings"):
        _export(args)
        say(f"embeddings in {args.out}; {proof_of(args.run)}")
    if code == ExitCode.COMPLETE_WITH_ERRORS:
        say(f"pictures without an embedding {WHY_NONE}")
    return code


EMBED_COMMAND = Command(
    execute_embed,
    EmbedArguments,
    epilog="For example: collage-mpi embed photos/ --network timm:vit_small_patch14_dinov2 --out "
    "embeddings.parquet",
)


ITS_OWN = ("single", "save", "top_k", "singles")  # settings of `run` that map sets itself


@dataclass(frozen=True, kw_only=True)
class MapArguments(MpiArguments):
    """The arguments of map, in addition to the settings of `run`."""

    function: tuple[str, ...] = setting(
        REQUIRED,
        "class to run, FILE.py:CLASS or MODULE:CLASS, with __init__(device) and __call__(batch). "
        "A batch has n images; the call returns a dict of arrays with n items each "
        "(docs/inputs.md). Of several, all get each image, which is read and decoded once",
        metavar="CLASS",
        positional=True,
    )
    as_: tuple[str, ...] = same(
        ClassifyArguments,
        "as_",
        help="name of each of several classes, in their order. It begins the names of its columns",
    )
    ranks: int | None = same(ClassifyArguments, "ranks")
    touched: str = same(RunArguments, "touched")
    prune: bool = same(RunArguments, "prune")
    trust_dirs: bool = same(RunArguments, "trust_dirs")
    retry_errors: bool = switch("also process the images of error rows again")
    verbose: bool = same(ClassifyArguments, "verbose")


def execute_map(args: MapArguments) -> int:
    """Start the run, or go on with it. Returns its exit code."""
    from collage_mpi.models.own import check_mapped

    given, _ = over_file(args.given, RunSettings)
    theirs = [name for name in ITS_OWN if name in given]
    if theirs:
        raise UsageError(f"map sets {', '.join(theirs)} itself: leave them out, and use --ranks")
    if given.get("agree") is not None:
        raise UsageError("--agree is a promise about classes, and map gives none: leave it out")
    parts = parts_named(args.as_, [f"{MAP * (not embeds(each))}{each}" for each in args.function])
    for part in parts:
        check_mapped(part.spec)
    spec = beside(with_own_names(parts)) if args.as_ or parts[1:] else parts[0].spec
    singles = ranks_here("map", args.ranks, given.get("device", "auto"))
    values = {"scheme": "none", "batch": None, **given}
    values |= {"single": spec, "save": OUTPUTS, "singles": singles}
    how = () if {"limit", "only"} & given.keys() else update_words(args)
    words = run_words(values, *how, retry_errors=args.retry_errors, verbose=args.verbose)
    out = Path(values["out"])
    code = updated(out, lambda: check_and_launch(LaunchArguments(words=words, mpi=args.mpi)))
    if code in (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS):
        say(f"outputs in {out / ROWS_FOLDER}; {proof_of(out)}")
    elif code == ExitCode.INCOMPLETE:
        say("repeat the command to continue, with any number of --ranks")
    if code == ExitCode.COMPLETE_WITH_ERRORS:
        say("--retry-errors processes the images of error rows again")
    return code


MAP_COMMAND = Command(
    execute_map,
    MapArguments,
    more=add_setting_flags,
    usage="collage-mpi map FILE.py:CLASS --input PATH ... --out DIR [more settings]",
    epilog="Repeat the command to continue a run, with any number of ranks. For example: "
    "collage-mpi map segment.py:Segment --input photos/ --out runs/masks, then collage-mpi "
    "export runs/masks --to zarr",
)
