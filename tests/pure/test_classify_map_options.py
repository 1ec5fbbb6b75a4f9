"""Each option of `classify` and `map`, and what reaches the settings of the run that they start."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest

from collage_mpi.commands import classify, launch
from collage_mpi.commands.parser import read_command
from collage_mpi.errors import ExitCode, UsageError
from collage_mpi.results import parts
from collage_mpi.settings.flags import flag, own_fields
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.update import Update
from collage_mpi.system.fields import about

CLASSIFY = ("classify", "photos", "--network", "null", "--out", "c.csv", "--device", "cpu")
MAP = ("map", "own.py:Map", "--input", "photos", "--out", "o", "--device", "cpu")

# option -> its words, and the settings of the run that differ by them
OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "id": (("--id", "url"), {}),
    "columns": (("--columns", "url"), {}),
    "labels": (("--labels", "a ship, plane"), {"single": "hf:a/b,labels=a ship|plane"}),
    "as_": (("--as", "b"), {"single": "beside:b=null"}),
    "agree": (("--agree", "0.99"), {"agree": 0.99, "scheme": "cascade", "singles": None}),
    "first": (
        ("--agree", "0.99", "--first", "null"),
        {"agree": 0.99, "scheme": "cascade", "singles": None, "first": ["null"]},
    ),
    "top_k": (("--top-k", "3"), {"top_k": 3}),
    "class_names_file": (("--class-names-file", "n.txt"), {"class_names_file": "n.txt"}),
    "image_px": (("--image-px", "96"), {"image_px": 96}),
    "resize_px": (("--resize-px", "120"), {"resize_px": 120}),
    "fit": (("--fit", "letterbox"), {"fit": "letterbox"}),
    "device": (("--device", "auto"), {"device": "auto"}),
    "trust_network": (("--trust-network", "any"), {"trust_network": "any"}),
    "precision": (("--precision", "bfloat16"), {"precision": "bfloat16"}),
    "runtime": (("--runtime", "torch"), {"runtime": "torch"}),
    "batch": (("--batch", "4"), {"batch": 4}),
    "ranks": (("--ranks", "7"), {"singles": 7}),
    "pictures": ((), {}),  # these four are in the settings without any option
    "network": ((), {}),
    "out": ((), {}),
    "key": (("--key", "content"), {"key": "content"}),
    "touched": (("--touched", "same"), {}),
    "prune": (("--prune",), {}),
    "trust_dirs": (("--trust-dirs",), {}),
    "retry_errors": (("--retry-errors",), {}),
    "verbose": (("-v",), {}),
    "mpi": (("--mpi", "openmpi"), {}),
}


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[launch.LaunchArguments]:
    """What would have been launched."""
    found: list[launch.LaunchArguments] = []

    def launch_ranks(ranks: int, how: launch.LaunchArguments) -> int:
        assert how.settings is not None
        assert ranks == (3 if how.settings.agree else how.settings.launch_size)
        found.append(how)
        return ExitCode.INCOMPLETE

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "launch_ranks", launch_ranks)
    monkeypatch.setattr(classify, "processes_here", lambda: 2)
    monkeypatch.setattr("collage_mpi.job.networks.gpus_here", lambda: 0)
    monkeypatch.setattr(classify, "_check_columns", lambda *_: None)
    Path("photos").mkdir()
    Path("photos/a.png").touch()
    Path("n.txt").write_text("a\nb\nc\n")
    Path("own.py").write_text("class Map:\n    def __call__(self, batch): pass\n")
    return found


def run_of(started: list[launch.LaunchArguments], *words: str) -> launch.LaunchArguments:
    command, args = read_command(words)
    assert command.execute(args) == ExitCode.INCOMPLETE
    return started.pop()


def difference(found: launch.LaunchArguments, base: launch.LaunchArguments) -> dict[str, object]:
    pairs = ((how.settings.to_dict().items()) for how in (found, base))
    one, other = map(dict, pairs)
    return {name: value for name, value in one.items() if value != other[name]}


def test_what_classify_starts_without_options(started):
    found = run_of(started, *CLASSIFY)
    assert found.settings == RunSettings.from_mapping(
        {
            "shards": "photos",
            "single": "null",
            "out": "c.csv.run",
            "scheme": "none",
            "batch": None,
            "pixels": "workers",
            "input_labels": "none",
            "device": "cpu",
            "singles": 2,
        }
    )
    assert (found.run.retry_errors, found.run.brief) == (False, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*CLASSIFY, "--first", "w"), "--first names what answers before the network: add --agree"),
        ((*MAP, "--agree", "0.9"), "--agree is a promise about classes, and map gives none"),
        ((*CLASSIFY, "--agree", "0.9", "--precision", "bfloat16"), "name a cheaper one with --fir"),
    ],
)
def test_a_promise_that_cannot_be_is_refused(words, said, started):
    named = ["timm:a" if word == "null" else word for word in words]
    command, args = read_command(named)
    with pytest.raises(UsageError, match=said):
        command.execute(args)


ONE_RUN = [
    spec.name for spec in own_fields(classify.ClassifyArguments) if spec.name != "recall"
]  # which starts several: test_yes_or_no


@pytest.mark.parametrize("option", ONE_RUN)
def test_each_option_of_classify_reaches_the_run_and_changes_nothing_else(option, started):
    words, settings = OPTIONS[option]
    ours = ["hf:a/b" if option == "labels" and word == "null" else word for word in CLASSIFY]
    base, found = run_of(started, *CLASSIFY), run_of(started, *ours, *words)
    assert difference(found, base) == settings
    asked = {"touched": {"touched": "same"}, "prune": {"prune": True}}
    asked["trust_dirs"] = {"trust_dirs": True}
    assert found.run.asked == Update(**asked.get(option, {}))
    assert found.run.retry_errors == (option == "retry_errors")
    assert found.run.brief == (option != "verbose")
    assert found.mpi == ("openmpi" if option == "mpi" else "auto")


def classified_by(*networks: str) -> tuple[str, ...]:
    named = (word for network in networks for word in ("--network", network))
    return (*CLASSIFY[:2], *named, *CLASSIFY[4:])


EMBED = ("embed", "photos", "--network", "hf:a/b", "--out", "e.parquet", "--device", "cpu")


def test_what_embed_starts_is_a_map_of_the_network_without_its_last_layer(started):
    more = ("--image-px", "64", "--ranks", "3", "--retry-errors", "--prune")
    found = run_of(started, *EMBED, *more)
    values = {"shards": "photos", "single": "hf:a/b,embed=l2", "save": "outputs"}
    values |= {"out": "e.parquet.run", "scheme": "none", "batch": None, "device": "cpu"}
    values |= {"pixels": "workers", "input_labels": "none", "singles": 3, "image_px": 64}
    assert found.settings == RunSettings.from_mapping(values)
    assert (found.run.retry_errors, found.run.brief) == (True, True)
    assert found.run.asked == Update(prune=True)
    other = run_of(started, *EMBED, "--normalise", "none")
    assert other.settings.single == "hf:a/b,embed=none"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*EMBED, "--network", "n.onnx"), "needed are a network by name, timm:NAME or hf:ID"),
        ((*EMBED, "--out", "e.csv"), "a file whose name ends in .parquet"),
        ((*CLASSIFY, "--labels", "ship"), "needed are two or more different labels"),
        ((*CLASSIFY, "--labels", "ship, ship"), "needed are two or more different labels"),
        ((*CLASSIFY, "--labels", "ship,,plane"), "needed are two or more different labels"),
        ((*CLASSIFY, "--labels", "a|b,c"), "without |"),
        ((*CLASSIFY, "--labels", "a,b"), "a network with a text side, hf:ID, and null has none"),
        (
            (*classified_by("timm:x"), "--labels", "a,b"),
            "a network with a text side, hf:ID, and timm:x has none",
        ),
        (classified_by("hf:a/b,embed=l2"), "a table begins with a network that classifies"),
        (
            (*CLASSIFY, "--agree", "0.9", "--first", "hf:a/b,embed=l2"),
            "an embedding, which names no class",
        ),
    ],
)
def test_what_cannot_be_embedded_or_labelled_is_refused(words, said, started):
    command, args = read_command(words)
    with pytest.raises(UsageError, match=re.escape(said)):
        command.execute(args)


# Settings of a run whose value cannot be made from their bounds.
VALUES: dict[str, tuple[str, ...]] = {
    "shards": ("photos/a.png",),
    "class_names_file": ("n.txt",),
    "order": ("shuffle:7",),
    "device": ("auto",),
    "scheme": ("hedge", "--deadline-ms", "1"),
    "trust_network": ("any",),
    "slow_ranks": ("1:5",),
    "arrival_file": ("t.txt",),
    "straggler": ("lognormal",),
    "agree": ("0.99", "--scheme", "cascade"),
    "first": ("w", "--scheme", "cascade"),
}
# Settings that are refused without another one -> that one, which both commands get.
NEEDS: dict[str, tuple[str, ...]] = {}
NOT_OF_MAP = {"agree", "first", *classify.ITS_OWN}


def words_for(spec: dataclasses.Field) -> tuple[str, ...]:
    """Words that give the setting another value than its default."""
    known, default = about(spec), spec.default
    if spec.name in VALUES:
        return (flag(spec), *VALUES[spec.name])
    if known.choices:
        return (flag(spec), next(str(one) for one in known.choices if one != default))
    hint = typing.get_type_hints(RunSettings)[spec.name]
    kinds = [one for one in typing.get_args(hint) if one is not type(None)] or [hint]
    if kinds[0] in (int, float):
        least = max(known.at_least or 0, known.above or 0, default or 0)
        return (flag(spec), str(least + (1 if kinds[0] is int else 0.001)))
    return (flag(spec), "w")


@pytest.mark.parametrize("spec", dataclasses.fields(RunSettings), ids=lambda spec: spec.name)
def test_each_setting_that_map_takes_reaches_the_run(spec, started):
    words, needs = words_for(spec), NEEDS.get(spec.name, ())
    if spec.name in NOT_OF_MAP:
        with pytest.raises(
            UsageError, match=f"map sets {spec.name}|(a mapped function|map) gives none"
        ):
            run_of(started, *MAP, *words)
        return
    base, found = run_of(started, *MAP, *needs), run_of(started, *MAP, *needs, *words)
    assert spec.name in difference(found, base)


def test_what_map_starts_without_options(started):
    found = run_of(started, *MAP, "--ranks", "3", "--retry-errors", "--verbose")
    values = {"shards": "photos", "single": "own.py:Map", "save": "outputs", "out": "o"}
    values |= {"scheme": "none", "batch": None, "device": "cpu", "singles": 3}
    assert found.settings == RunSettings.from_mapping(values)
    assert (found.run.retry_errors, found.run.brief) == (True, False)


ZEN = {"vendor_id": "AuthenticAMD", "flags": "fpu avx512_bf16"}
AMX = {"vendor_id": "GenuineIntel", "flags": "avx512_bf16 amx_bf16"}


@pytest.mark.parametrize(
    ("images", "processor", "device", "how", "said"),
    [
        (18_200, ZEN, "cpu", "float32, channels-last", "about 0.66 of"),
        (1_000_000, AMX, "cpu", "float32, channels-last", "about 0.61 of"),
        (17_000, ZEN, "cpu", "float32, channels-last", ""),  # choosing costs more than it saves
        (10**6, {**AMX, "flags": "avx512_bf16"}, "cpu", "float32", ""),  # slower there
        (10**6, {}, "cpu", "float32", ""),
        (10**6, ZEN, "cuda:0", "float32", ""),
        (10**6, ZEN, "cpu", "bfloat16, channels-last", ""),
        (10**6, ZEN, "cpu", "null", ""),
    ],
)
def test_what_agree_would_bring_is_told_where_it_is_forecast_to_bring_something(
    images, processor, device, how, said
):
    world = [{"rank": 0, "kinds": []}, {"devices": [device], "tuning": {"single": how}}]
    hint = classify.agree_hint({"images": images, "world": world}, processor)
    assert said in hint
    parts = (f"for {images:,} pictures, and with 95 % probability change at most 0.5 % of", "if bf")
    assert [part in hint for part in parts] == [bool(said)] * 2


@pytest.mark.parametrize(
    ("there", "complete", "codes", "found"),
    [
        (False, False, [0], 0),
        (True, True, [0], 0),
        (True, False, [0, 5], 5),
        (True, False, [5, 0], 0),
        (True, False, [6], 6),
    ],
)
def test_a_run_is_updated_once_it_is_complete(monkeypatch, there, complete, codes, found):
    """By a second launch, if the first one had to go on with it."""
    monkeypatch.setattr(classify, "has_run", lambda _: there)
    monkeypatch.setattr(parts, "read_ledger", lambda _: SimpleNamespace(complete=complete))
    left = iter(codes)
    assert classify.updated(Path("out"), lambda: next(left)) == found
    assert [*left] == []
