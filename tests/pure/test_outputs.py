"""What a mapped function returns: checked, kept beside the rows, read back, exported as Zarr."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import results_harness
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from results_harness import fill, make_run, manifest
from wire_tasks import unpack_results

from collage_mpi.encoding.vectors import (
    MOST_BYTES,
    Extras,
    KeptColumn,
    layout_of,
    most_floats,
    objects,
    unpack,
)
from collage_mpi.errors import CollageError, DataFault, UsageError
from collage_mpi.models import load_predictor
from collage_mpi.models.info import Geometry, Loading
from collage_mpi.mpi.answers import (
    ANSWERED,
    BEGIN_BYTES,
    Score,
    WireResult,
    in_messages,
    pack_results,
)
from collage_mpi.mpi.protocol import WireFault
from collage_mpi.report.page import worst_images
from collage_mpi.results import (
    export,
    export_run,
    follow,
    lease_files,
    read_results,
    row_sink,
    summarise,
    verify_run,
)
from collage_mpi.results.columns import array_of, parquet_bytes
from collage_mpi.results.export import write_zarr
from collage_mpi.results.reader import open_run
from collage_mpi.results.render import render_summary
from collage_mpi.results.sole import SoleWriter
from collage_mpi.results.status import StatusFiles
from collage_mpi.results.vectors import KeptValues
from collage_mpi.rows import IMAGES
from collage_mpi.settings.run_settings import RunSettings

GEOMETRY = Geometry((4, 4, 3), side=2, cell_px=4, classes=None)
OUTPUTS = {"top_k": None, "save": "outputs"}
FUNCTION = """
import numpy as np

class Each:
    def __init__(self, device): self.given, self.device = None, device
    def __call__(self, batch):
        return {"mean": batch.mean((1, 2, 3)), "top": batch[:, :2, :, 0]} if self.given is None \\
            else self.given
class Lists(Each):
    def __call__(self, batch): return {"mean": [1.5] * len(batch)}
class Scalars(Each):
    def __call__(self, batch): return {"mean": [np.float64(1.5)] * len(batch)}
class Raises(Each):
    def __call__(self, batch): raise KeyError("no weights")
class Empty(Each):
    def __call__(self, batch): return {"nothing": np.zeros((len(batch), 0))}
class Named(Each):
    def __call__(self, batch): return {"row": np.zeros(len(batch))}
class Counted(Each):
    def __call__(self, batch): return {"answered": np.zeros(len(batch))}
class Complex(Each):
    def __call__(self, batch): return {"z": np.zeros(len(batch), complex)}
class Large(Each):
    def __call__(self, batch): return {"volume": np.zeros((len(batch), 1 << 14, 1 << 13), "u1")}
class Boxes(Each):
    def __call__(self, batch):
        k = [int(b[0, 0, 0]) % 4 for b in batch]
        return self.given or {"boxes": [np.ones((i, 2), "f4") for i in k], "said": ["a"] * len(k)}
class Roomy(Boxes):
    most_bytes = 80
class Wide(Boxes):
    most_bytes = 40 << 20
class Odd(Boxes):
    def __init__(self, device): self.given, self.most_bytes = None, MOST
def plain(device): return lambda batch: {"n": np.ones(len(batch), ">i4")}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(FUNCTION)
    return path


def load(own: Path, name: str) -> Any:
    return load_predictor(f"{own}:{name}", "single", Loading(geometry=GEOMETRY, save="outputs"))


def test_a_mapped_class_is_a_network_whose_outputs_are_its_columns(own: Path) -> None:
    function = load(own, "Each")
    assert function.columns == (KeptColumn("mean", "<f8", ()), KeptColumn("top", "|u1", (2, 4)))
    assert (function.classes, function.made.device) == (1, "cpu")
    batch = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    scores, given = function.answer(batch)
    assert scores.tolist() == [[[1]], [[1]]]
    assert np.array_equal(function.predict(batch), scores)
    assert np.array_equal(given["top"], batch[:, :2, :, 0])
    for name in ("Lists", "Scalars"):  # one number an image: no list of arrays
        assert load(own, name).columns == (KeptColumn("mean", "<f8", ()),)
    assert load(own, "plain").columns == (KeptColumn("n", "<i4", ()),)
    # Other columns make another network: ranks, and a run that goes on, must have the same.
    assert load(own, "Each").fingerprint == function.fingerprint
    assert len({load(own, name).fingerprint for name in ("Each", "Lists", "plain")}) == 3
    type(function.made).__call__ = lambda _, batch: {"mean": batch.mean((1, 2, 3))}
    assert load(own, "Each").fingerprint != function.fingerprint


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([1, 2], "returned a list; needed: a dict of arrays"),
        ({}, "returned a dict"),
        ({"mean": np.zeros(3), "top": np.zeros((3, 2, 4), "u1")}, r"mean has the shape \(3,\)"),
        ({"mean": 1.0}, r"mean has the shape \(\).*images of the batch \(2\)"),
        ({"mean": [np.zeros(1), np.zeros(2)]}, r"gave mean <f8 \(None,\); its first outputs were"),
        ({"mean": [[1], [1, 2]]}, "mean is no array.*a list of an array or a text for each image"),
        ({"mean": np.array([None, None])}, "mean is an array of objects.*numbers of one shape"),
        (
            {"mean": np.zeros(2, "f4"), "top": np.zeros((2, 2, 4), "u1")},
            r"gave mean <f4 \(\), top.*its first outputs were mean <f8",
        ),
        ({"mean": np.zeros(2)}, "each batch must give the same"),
    ],
)
def test_outputs_that_are_not_as_they_should_be_are_named(own: Path, given: Any, says: str) -> None:
    function = load(own, "Each")
    function.made.given = given
    with pytest.raises(DataFault, match=says):
        function.answer(np.zeros((2, 4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([np.ones((1, 2), "f4"), np.ones((1, 3), "f4")], "only the first dimension may differ"),
        ([np.ones((1, 2), "f4"), np.ones((1, 2), "f8")], "only the first dimension may differ"),
        ([np.ones((2, 2), "f4")], r"boxes has the shape \(1,\)"),
        (np.ones((2, 1, 2), "f4"), r"boxes <f4 \(1, 2\).*each batch must give the same"),
        ([np.ones((11, 2), "f4")] * 2, "boxes of an image takes 88 bytes; the most is 80, or what"),
    ],
)
def test_lists_of_arrays_that_differ_in_more_than_their_length_are_named(
    own: Path, boxes: Any, says: str
) -> None:
    function = load(own, "Roomy")
    function.made.given = {"boxes": boxes, "said": ["", "b"]}
    with pytest.raises(CollageError, match=says):
        function.answer(np.zeros((2, 4, 4, 3), np.uint8))
    function.made.given["boxes"] = [np.ones((10, 2), ">f4"), np.ones((0, 2), "f4")]
    given = function.answer(np.zeros((2, 4, 4, 3), np.uint8))[1]
    assert [len(each) for each in given["boxes"]] == [10, 0]


def test_a_list_of_arrays_or_texts_is_a_column_of_any_length(own: Path) -> None:
    function = load(own, "Boxes")
    assert function.columns == (
        KeptColumn("boxes", "<f4", (None, 2)),
        KeptColumn("said", "text", (None,)),
    )
    # More room for longer ones makes no other network: a run goes on with it.
    roomy = load(own, "Roomy")
    assert roomy.columns == function.columns
    assert repr(roomy.columns) == repr(function.columns)  # of which the fingerprint is made
    assert [each.nbytes for each in roomy.columns] == [80, 80]
    assert most_floats(roomy.columns) == 2 + 20 + 20
    with pytest.raises(UsageError, match="2 columns of 83,886,080 bytes in all"):
        load(own, "Wide")


@pytest.mark.parametrize("most", ["0", "-5", "1 << 40", "'many'", "None", "1e6"])
def test_a_length_that_cannot_be_is_refused(own: Path, most: str) -> None:
    own.write_text(own.read_text().replace("MOST", most))
    with pytest.raises(
        UsageError, match=r"most_bytes is .*; needed: a whole number from 1 to 67,1"
    ):
        load(own, "Odd")


def test_an_empty_array_of_another_shape_is_told_what_it_lacks(own: Path) -> None:
    function = load(own, "Boxes")
    function.made.given = {"boxes": [np.array([])], "said": ["a"]}
    with pytest.raises(DataFault, match=r"nothing of an image: np\.zeros\(\(0, 4\), \"f4\"\)"):
        function.answer(np.zeros((1, 4, 4, 3), np.uint8))


def test_an_export_s_own_names_are_no_columns() -> None:
    for names in (("boxes", "boxes_offsets"), ("id",), ("a b",), ("1st",), ("n" * 65,), ("",)):
        with pytest.raises(UsageError, match="needs another name"):
            layout_of([KeptColumn(name, "<f4", (None,)) for name in names])


VARIED = [
    KeptColumn("boxes", "<f4", (None, 2, 3)),
    KeptColumn("score", "<f8", ()),
    KeptColumn("seen", "|b1", (None,)),
    KeptColumn("said", "text", (None,)),
]


def varied_of(lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """Values of VARIED, which all differ."""
    arrays = [np.arange(6 * n, dtype=np.float32).reshape(n, 2, 3) + n / 2 for n in lengths]
    return {
        "boxes": objects(arrays),
        "score": np.array(lengths) / 4,
        "seen": objects([np.arange(n) % 2 == 1 for n in lengths]),
        "said": objects(["é" * n for n in lengths]),
    }


def same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        len(found[name]) == len(values)
        and all(
            np.array_equal(a, b) and getattr(a, "dtype", 0) == getattr(b, "dtype", 0)
            for a, b in zip(found[name], values, strict=True)
        )
        for name, values in expected.items()
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_what_varies_comes_back_from_its_records(lengths: list[int]) -> None:
    layout, expected = layout_of(VARIED), varied_of(lengths)
    vectors = Extras(top_k=None, save="outputs").pack(layout, np.ones((len(lengths), 1)), expected)
    assert vectors.dtype == np.float32
    found = unpack(layout, vectors)
    assert same(found, expected)
    assert all(each.dtype == np.float32 and each.shape[1:] == (2, 3) for each in found["boxes"])


def test_answers_of_several_lengths_share_a_message() -> None:
    layout, results = layout_of(VARIED), []
    for task, lengths in enumerate(([0], [7, 2], [1])):
        vectors = Extras(top_k=None, save="outputs").pack(
            layout, np.ones((len(lengths), 1)), varied_of(lengths)
        )
        cells = tuple(Score(0, 1.0) for _ in lengths)
        results.append(WireResult(task, ANSWERED, cells=cells, vectors=vectors))
    out = np.empty(4096, np.uint8)
    nbytes = pack_results(out, 1, results)
    found = unpack_results(out[:nbytes].copy())
    for got, sent in zip(found, results, strict=True):
        assert np.array_equal(got.vectors.view(np.uint8), sent.vectors.view(np.uint8))
    for wrong in (nbytes - 4, nbytes + 4):
        with pytest.raises(WireFault):
            unpack_results(out[:wrong].copy())
    room = BEGIN_BYTES + max(nbytes // 2, 300)
    assert [len(part) for part in in_messages(results, room)] == [1, 1, 1]


@pytest.fixture
def varied_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """27 images, image i with i % 5 boxes and so on."""
    pytest.importorskip("pyarrow")
    layout = layout_of(VARIED)

    def vector_of(full: Any, index: int, predicted: int) -> np.ndarray:
        given = varied_of([index % 5])
        return Extras(top_k=None, save="outputs").pack(layout, np.ones((1, 1), np.float32), given)[
            0
        ]

    monkeypatch.setattr(results_harness, "layout_of_run", lambda full: layout)
    monkeypatch.setattr(results_harness, "vector_of", vector_of)
    monkeypatch.setattr(row_sink, "PART_BYTES", 600)
    monkeypatch.setattr(lease_files, "GROUP_BYTES", 600)
    more = {"extras": OUTPUTS, "errors": ERRORS, "status": "complete_with_errors"}
    return make_run(tmp_path / "run", 27, labels=False, **more)


def test_what_varies_is_kept_verified_and_read_back(varied_run: Path) -> None:
    assert len(open_run(varied_run).of_table(IMAGES)) > 1  # row groups
    report = verify_run(varied_run)
    assert report.ok, report.problems
    results = read_results(varied_run)
    expected = varied_of([i % 5 for i in range(27) if i not in ERRORS])
    names = [each.name for each in VARIED]
    answered = results.images["answered"]
    assert same({name: results.kept(name)[answered] for name in names}, expected)
    assert [results[i]["boxes"].shape for i in (0, 1, 5)] == [(0, 2, 3), (1, 2, 3), (0, 2, 3)]
    assert results[3]["said"] == "ééé"
    batches = [*results.kept_values]  # what `follow` gives
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
    assert same(joined, expected)
    schema = results.to_arrow("vectors").schema
    assert str(schema.field("seen").type) == "large_list<element: bool>"
    assert str(schema.field("said").type) == "string"
    assert results.to_arrow("vectors")["boxes"][2].as_py()[1] == [[7, 8, 9], [10, 11, 12]]


def in_lists(value: Any, inner: str) -> Any:
    import pyarrow as pa

    number = pa.float32() if inner != "bool" else pa.bool_()
    row = pa.list_(number, 2) if inner == "rows" else number
    return pa.array([value], pa.large_list(row))


@pytest.mark.parametrize(
    ("name", "value", "inner", "says"),
    [
        ("said", b"\xff", "", "UTF"),
        ("said", None, "", "nulls"),
        ("seen", None, "bool", "nulls"),
        ("seen", [True, None], "bool", "nulls"),
        ("boxes", [[1, 2], None], "rows", "nulls"),
        ("boxes", [[1, None]], "rows", "nulls"),
    ],
)
def test_what_varies_and_was_damaged_is_told(
    varied_run: Path, tmp_path: Path, name: str, value: Any, inner: str, says: str
) -> None:
    import pyarrow as pa

    path = next((varied_run / "rows").glob("*.parquet"))
    table = parquet.read_table(path)
    one = in_lists(value, inner) if inner else pa.array([value], pa.binary()).view(pa.string())
    column = pa.chunked_array([one] * len(table))
    at = table.column_names.index(name)
    changed = table.set_column(at, table.schema.field(name).with_type(one.type), column)
    path.write_bytes(b"".join(parquet_bytes(changed)))
    report = verify_run(varied_run)
    assert not report.ok
    with pytest.raises(DataFault, match=says):
        [*read_results(varied_run).kept_values]
    with pytest.raises(DataFault, match=says):
        export_run(read_results(varied_run), "zarr", tmp_path / "to")


def test_zarr_has_what_varies_one_image_behind_another(varied_run: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path, _ = export_run(read_results(varied_run), "zarr", tmp_path / "to")
    group = zarr.open_group(str(path), mode="r")
    lengths = [0 if i in ERRORS else i % 5 for i in range(27)]
    expected = varied_of(lengths)
    for name in ("boxes", "seen"):
        ends = group[f"{name}_offsets"][:]
        assert np.array_equal(ends, np.cumsum([0, *lengths]))
        values = [group[name][a:b] for a, b in pairwise(ends)]
        assert same({name: objects(values)}, {name: expected[name]})
    assert group["said"][:].tolist() == expected["said"].tolist()
    assert "id" not in group


def test_zarr_names_the_images_that_have_ids(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    images = np.zeros(3, IMAGES.dtype)
    images["row"] = [2, 0, 1]
    found = {"shard": images["shard"], "row": images["row"], "n": objects([np.ones(0)] * 3)}
    named = {2: "c.png", 0: "a.png"}

    def ids(some: np.ndarray) -> np.ma.MaskedArray:
        rows = some["row"].tolist()
        mask = [row not in named for row in rows]
        return np.ma.array([named.get(row, "") for row in rows], object, mask=mask)

    write_zarr(tmp_path / "a.zarr", images, ids, [found])
    group = zarr.open_group(tmp_path / "a.zarr")
    assert group["id"][:].tolist() == ["a.png", "", "c.png"]
    assert group["n"].shape == (0,)
    assert group["n_offsets"][:].tolist() == [0] * 4


def no_ids(images: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.array(np.full(len(images), "", object), mask=True)


def test_another_order_of_the_same_outputs_is_no_change(own: Path) -> None:
    function = load(own, "Each")
    function.made.given = {"top": np.ones((2, 2, 4), "u1"), "mean": np.zeros(2)}
    assert function.answer(np.zeros((2, 4, 4, 3), np.uint8))[1]["top"].all()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Raises", r"called with noise of uint8 \(1, 4, 4, 3\) it raised KeyError: 'no weights'"),
        ("Empty", r"'nothing' of <f8 with the shape \(0,\) for an image holds no value"),
        ("Named", "'row' of .* needs another name"),
        ("Counted", "'answered' of .* needs another name"),
        ("Complex", "'z' of <c16.*cannot be kept: the types that can are booleans, integers"),
        ("Large", "1 columns of 134,217,728 bytes in all.*at most 67,108,864"),
        ("gone", "has no function 'gone'"),
    ],
)
def test_what_cannot_be_kept_is_refused_when_it_is_loaded(own: Path, name: str, says: str) -> None:
    with pytest.raises(CollageError, match=says):
        load(own, name)
    assert layout_of([KeptColumn("x", "|u1", (MOST_BYTES,))]).itemsize == MOST_BYTES


@pytest.mark.parametrize("scheme", ["collage", "collage-only", "cascade"])
def test_a_scheme_that_decides_by_classes_refuses_a_map_by_name(scheme: str) -> None:
    with pytest.raises(UsageError, match=f"scheme {scheme} decides by the scores of classes"):
        RunSettings(single="own.py:Each", save="outputs", scheme=scheme)


def test_what_a_map_needs_and_cannot_have() -> None:
    for scheme in ("none", "replicate", "hedge"):
        RunSettings(single="own.py:Each", save="outputs", scheme=scheme, deadline_ms=5)
    for more in ({"single": "a.safetensors"}, {"single": "null"}, {"single": "m:F", "top_k": 1}):
        with pytest.raises(UsageError, match=r"a Python class of your own, FILE\.py:CLASS"):
            RunSettings(save="outputs", scheme="none", **more)


# ---- beside the rows ------------------------------------------------------------


ERRORS = frozenset((4, 11))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    pytest.importorskip("pyarrow")
    status = "complete_with_errors"
    return make_run(
        tmp_path / "run", 27, extras=OUTPUTS, errors=ERRORS, status=status, labels=False
    )


def test_outputs_are_read_back_in_their_types_and_shapes(run: Path) -> None:
    report = verify_run(run)
    assert report.ok, report.problems
    assert report.headline.endswith("2 error rows, 25 vectors")
    results = read_results(run)
    table = results.to_arrow("vectors")
    assert [str(table.schema.field(name).type) for name in ("mask", "share", "seen")] == [
        "fixed_size_list<element: fixed_size_list<element: uint8>[3]>[2]",
        "double",
        "fixed_size_list<element: bool>[2]",
    ]
    numbers = np.array([i for i in range(27) if i not in ERRORS])
    mask = results.kept("mask")
    assert (mask.dtype, mask.shape) == (np.uint8, (27, 2, 3))
    assert np.array_equal(mask[numbers, 1, 2], numbers)
    assert np.array_equal(results.kept("share")[numbers], numbers / 2)
    seen = np.stack([numbers % 2 == 1, numbers >= 0], 1)
    assert np.array_equal(results.kept("seen")[numbers], seen)
    with pytest.raises(UsageError, match="the run has no scores; it has mask, share, seen"):
        results.kept("scores")
    with pytest.raises(UsageError, match="the run has no row; it has mask, share, seen"):
        results.kept("row")


def test_of_what_is_kept_only_the_column_that_is_asked_for_stays_in_memory(
    run: Path, monkeypatch
) -> None:
    table = KeptValues.table
    told: list[list[str]] = []

    def seen(*args: Any, **more: Any) -> Any:
        found = table(*args, **more)
        told.append(found.column_names)
        return found

    monkeypatch.setattr(KeptValues, "table", seen)
    assert read_results(run).kept("share").shape == (27,)
    assert told == [["shard", "row", "share"]]


def test_results_are_a_data_set_of_the_images(run: Path, tmp_path: Path) -> None:
    results = read_results(run)
    assert len(results) == 27
    one = results[5]
    assert one.keys() == {"fingerprint", "row", "answered", "mask", "share", "seen"}
    assert one["share"] == 2.5
    assert results[-1]["share"] == 13
    assert not results[4]["answered"]
    assert results[4].keys() == {"fingerprint", "row", "answered", "reason"}
    with pytest.raises(IndexError):
        results[27]
    plain = read_results(make_run(tmp_path / "plain", 9))[2]
    assert plain.keys() == {"fingerprint", "row", "answered", "class", "score"}
    kept = read_results(make_run(tmp_path / "top", 9, extras={"top_k": 2, "save": "none"}))[2]
    assert kept["top_classes"][0] == kept["class"]


def test_image_i_of_the_results_is_image_i_of_the_input_however_they_arrived(
    tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(row_sink, "PART_BYTES", 100)  # several files
    arrival = [*range(20, 27), *range(0, 20, 2), *range(19, 0, -2)]
    path = make_run(
        *(tmp_path / "run", 27),
        extras=OUTPUTS,
        errors=ERRORS,
        status="complete_with_errors",
        labels=False,
        arrival=arrival,
    )
    assert verify_run(path).ok
    results = read_results(path)
    rows = [each["row"] for each in results.images]
    assert [each["row"] for each in map(results.__getitem__, range(27))] == rows
    shares = [None if i in ERRORS else i / 2 for i in range(27)]
    assert results.kept("share").tolist() == shares
    assert np.isnan(np.asarray(results.kept("share"))[[*ERRORS]]).all()  # no value to take for one
    assert [results[i].get("share") for i in range(27)] == shares
    told = results.to_arrow("vectors")
    assert told["share"].to_pylist() == [share for share in shares if share is not None]
    assert array_of(told["mask"])[:, 0, 0].tolist() == sorted({*range(27)} - ERRORS)


def test_large_outputs_make_smaller_parts_which_are_read_as_one(
    tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(row_sink, "PART_BYTES", 100)  # 7 images of 16 bytes
    monkeypatch.setattr(lease_files, "GROUP_BYTES", 100)
    run = make_run(tmp_path / "run", 27, extras=OUTPUTS)
    assert len(open_run(run).of_table(IMAGES)) == 4  # row groups
    assert verify_run(run).ok
    results = read_results(run)
    assert [one["share"] for one in results] == [i / 2 for i in range(27)]
    assert np.array_equal(results.kept("share"), np.arange(27) / 2)


def test_predictions_of_a_map_are_its_outputs(run: Path, monkeypatch) -> None:
    """In the order of the input, whatever is read at a time; null for error rows."""
    monkeypatch.setattr(export, "OUTPUT_BYTES", 100)  # 6 images of 16 bytes
    for some in (read_results(run), open_run(run)):
        (path,) = export_run(some, "parquet", only_predictions=True)
        table = parquet.read_table(path)
        names = ["id", "mask", "share", "seen", "source", "runtime", "error"]
        assert table.column_names == names
        assert [str(table.schema.field(name).type) for name in ("mask", "share")] == [
            "fixed_size_list<element: fixed_size_list<element: uint8>[3]>[2]",
            "double",
        ]
        for index, row in enumerate(table.to_pylist()):
            kept = [[index] * 3] * 2, index / 2, [bool(index % 2), True]
            wanted = (None, None, None) if index in ERRORS else kept
            assert (row["mask"], row["share"], row["seen"]) == wanted
            assert bool(row["error"]) == (index in ERRORS)
    assert "embedding" not in json.loads(table.schema.metadata[b"collage_mpi"])


def test_predictions_of_a_map_without_any_answer_or_with_lists(tmp_path: Path, monkeypatch) -> None:
    failed = {"errors": frozenset(range(9)), "status": "complete_with_errors"}
    none = make_run(tmp_path / "none", 9, extras=OUTPUTS, labels=False, **failed)
    (path,) = export_run(open_run(none), "parquet", only_predictions=True)
    assert parquet.read_table(path)["mask"].null_count == 9

    columns = (KeptColumn("runtime", "<f4", ()), KeptColumn("error", "text", (None,)))
    values = {"runtime": np.ones(1, "f4"), "error": objects(["why"])}

    def exported(name: str, count: int) -> Any:
        layout = layout_of(columns[:count])
        packed = Extras(**OUTPUTS).pack(layout, np.ones((1, 1), np.float32), values)[0]
        monkeypatch.setattr(results_harness, "layout_of_run", lambda full: layout)
        monkeypatch.setattr(results_harness, "vector_of", lambda *_: packed)
        found = open_run(make_run(tmp_path / name, 9, extras=OUTPUTS))
        return parquet.read_table(export_run(found, "parquet", only_predictions=True)[0])

    assert exported("taken", 1)["kept_runtime"].to_pylist() == [1.0] * 9
    assert exported("lists", 2)["kept_error"].to_pylist() == ["why"] * 9


def test_no_reader_shows_a_class_of_a_map(run: Path) -> None:
    results = read_results(run)
    with pytest.raises(UsageError, match="csv has no lists: leave out --predictions"):
        export_run(results, "csv", only_predictions=True)
    path = export_run(results, "csv")[0]
    for row in csv.DictReader(path.open()):
        assert (row["predicted"], row["predicted_name"], row["score"]) == ("", "", "")
    summary = summarise(results)
    assert summary["predictions"] is None
    said = render_summary(summary)
    assert "outputs of 25 images" in said
    assert "accuracy  " not in said
    assert worst_images(results, None, 3) is None


def test_zarr_has_the_outputs_in_the_order_of_the_input(run: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    for _ in range(2):  # the second replaces the first
        path, _ = export_run(read_results(run), "zarr", tmp_path / "to")
    group = zarr.open_group(str(path), mode="r")
    assert {*group} == {"shard", "row", "answered", "mask", "share", "seen"}
    answered = np.array([i not in ERRORS for i in range(27)])
    assert np.array_equal(group["answered"][:], answered)
    assert np.array_equal(group["mask"][:, 0, 0], np.arange(27) * answered)
    assert np.array_equal(group["share"][:], np.arange(27) * answered / 2)
    assert group["mask"].dtype == np.uint8
    keys = group["shard"][:].astype(np.int64) << 40 | group["row"][:].astype(np.int64)
    assert (np.diff(keys) > 0).all()
    assert [each.name for each in path.parent.iterdir() if "tmp" in each.name] == []


def test_zarr_of_a_run_with_a_part_of_error_rows_alone(run: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    results, path = read_results(run), tmp_path / "a.zarr"
    (values,) = results.kept_values
    write_zarr(
        path,
        results.images,
        no_ids,
        [{name: np.empty((0, 0)) for name in values}, values],
    )
    group = zarr.open_group(str(path), mode="r")
    assert [group[name].dtype for name in ("mask", "share", "seen")] == [np.uint8, float, bool]
    assert group["seen"][:].sum() == 12 + 25


def test_zarr_takes_answers_in_any_order(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    images = np.zeros(6, IMAGES.dtype)
    images["shard"], images["row"] = [1, 0, 0, 1, 0, 1], [2, 1, 0, 0, 2, 1]
    found = {name: images[name][:5] for name in ("shard", "row")}
    found["place"] = 10 * found["shard"].astype(np.int64) + found["row"].astype(np.int64)
    write_zarr(tmp_path / "a.zarr", images, no_ids, [found])
    assert zarr.open_group(tmp_path / "a.zarr")["place"][:].tolist() == [0, 1, 2, 10, 0, 12]


@given(st.lists(st.sampled_from(("|u1", "<f8", "|b1")), min_size=1, max_size=4))
def test_records_are_whole_numbers_of_floats(dtypes: list[str]) -> None:
    columns = [KeptColumn(f"c{i}", dtype, (3,)) for i, dtype in enumerate(dtypes)]
    layout = layout_of(columns)
    assert layout.itemsize % 4 == 0
    given = {each.name: np.arange(6).reshape(2, 3).astype(each.dtype) for each in columns}
    found = unpack(layout, Extras(top_k=None, save="outputs").pack(layout, np.ones((2, 1)), given))
    assert all(np.array_equal(found[name], values) for name, values in given.items())


def test_files_of_other_columns_are_damage(run: Path, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (path,) = (run / "rows").glob("*.parquet")
    table = parquet.read_table(path)
    for change, says in (
        (table.drop_columns(["mask", "share", "seen"]), "has the columns none"),
        (
            table.append_column(
                pyarrow.field("text", pyarrow.binary(), metadata={"kept": "text"}),
                pyarrow.array([b"a"] * 27),
            ),
            "has the columns text of binary",
        ),
        (table.append_column("text", pyarrow.array(["a"] * 27)), "columns are not those of this"),
    ):
        path.write_bytes(b"".join(parquet_bytes(change)))
        report = verify_run(run)
        assert any(says in problem for problem in report.problems), report.problems


@pytest.mark.parametrize("extras", [OUTPUTS, None])
def test_a_run_is_followed_while_it_is_written(
    extras: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = manifest(27, extras=extras)
    writer = SoleWriter(tmp_path, full)
    (tmp_path / "status").mkdir()
    told = {"session": 1, "owner": "0" * 32, "run_id": "r", "label": "l", "total": 27, "before": 0}
    files = StatusFiles(tmp_path, told, 5.0)
    fill(writer, full, range(9))
    writer.commit()
    writer = SoleWriter(tmp_path, full)
    batches = follow(tmp_path, every_s=0.01)
    seen = [next(batches)]
    assert sorted(seen[0]["row"].tolist()) == list(range(9))
    fill(writer, full, range(9, 27), errors=frozenset({20}))
    writer.close("complete_with_errors")
    files.end("complete_with_errors")
    seen += batches  # it ends with the job
    results = read_results(tmp_path)
    answered = results.images[results.images["answered"]]
    expected = {"shard": answered["shard"], "row": answered["row"]}
    if extras:
        names = results.kept_values.of(answered[0])
        expected |= {name: results.kept(name)[results.images["answered"]] for name in names}
    else:
        expected |= {"class": answered["predicted"], "score": answered["score"]}
    assert len(answered) == 26
    assert seen[0].keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(np.concatenate([batch[name] for batch in seen]), values)
