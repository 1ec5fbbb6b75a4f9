"""Every message reads back as written, and no bytes from the wire can do worse than WireFault."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import fields, is_dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_tasks import Packed, unpack_results
from wire_tasks import pack_wire_tasks as pack_tasks

from collage_mpi.core.events import LOST_REASON
from collage_mpi.job import messages
from collage_mpi.kinds import KINDS
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import (
    ANSWERED,
    BEGIN_BYTES,
    CELL,
    FAILED,
    LINE_BYTES,
    REASON_BYTES,
    RESULT,
    SKIPPED,
    STATUSES,
    USE,
    VECTOR,
    Score,
    Unread,
    WireResult,
    _bytes_of,
    in_messages,
    pack_results,
    unpack_use,
    use_bytes,
)
from collage_mpi.mpi.tasks import (
    FILE,
    ITEM,
    PLACE,
    TASK,
    WireTask,
    pack_cancel,
    pack_file,
    pack_places,
    task_message_bytes,
    unpack_cancel,
    unpack_files,
    unpack_places,
    unpack_tasks,
)
from collage_mpi.mpi.tasks import pack_tasks as plain_pack_tasks
from collage_mpi.system.bottleneck import Use

ids = st.integers(0, 2**62)
tasks = st.builds(
    WireTask,
    task=ids,
    kind=st.sampled_from(KINDS),
    items=st.lists(st.tuples(ids, st.integers(0, 255)), min_size=1, max_size=9).map(tuple),
) | st.builds(
    WireTask,
    task=ids,
    kind=st.sampled_from(KINDS),
    items=st.lists(st.tuples(ids, st.just(0)), min_size=1, max_size=9).map(tuple),
    as_files=st.booleans(),
)
places = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)), max_size=9)
scores = st.builds(
    Score, st.integers(0, 2**31 - 1), st.floats(0, 1, width=32), st.integers(0, 2**16 - 1)
)
answered = st.builds(
    WireResult,
    task=ids,
    status=st.just(ANSWERED),
    cells=st.lists(st.none() | scores, max_size=9).map(tuple),
    compute_ns=ids,
    read_ns=ids,
    runtime=st.integers(0, 255),
)
failures = st.builds(
    WireResult, task=ids, status=st.just(FAILED), reason=st.text("abcäµ", max_size=50)
)
results = answered | failures | st.builds(WireResult, task=ids, status=st.just(SKIPPED))
faults = st.builds(Unread, st.text("abcäµ", min_size=1, max_size=40), st.booleans())


def test_what_travels_changes_only_with_its_version():
    """Ranks with two versions of the package must refuse each other's bytes, not misread them."""
    layouts = [
        each.descr for each in (wire.HEADER, TASK, ITEM, PLACE, FILE, USE, RESULT, CELL, VECTOR)
    ]
    codes = wire.TASKS, wire.CANCEL, wire.ANSWERS, wire.CONTROL, STATUSES
    sizes = wire.CONTROL_BYTES, wire.UP_BYTES  # what the receiver has room for
    control = sorted(
        (name, [(field.name, field.type) for field in fields(found)])
        for name, found in vars(messages).items()
        if is_dataclass(found)
    )
    assert len(control) > 20
    digest = zlib.crc32(repr((layouts, codes, sizes, control)).encode())
    assert (wire.VERSION, digest) == (22, 1783708005)


@given(
    batch=st.lists(tasks, min_size=1, max_size=4, unique_by=lambda task: task.task),
    session=st.integers(0, 9),
)
def test_tasks_of_several_groups_travel_together(batch, session):
    pixels = [np.full((2, 3, 1), i, np.uint8) for i in range(len(batch))]
    first = batch[0]
    alike = {"kind": first.kind, "as_files": first.as_files, "by_place": False}
    batch = [dataclasses.replace(task, **alike) for task in batch]
    out = np.zeros(4096, np.uint8)
    length = pack_tasks(out, session, batch, pixels)
    found, payload = unpack_tasks(out[:length])
    assert found == batch
    assert payload.tobytes() == b"".join(p.tobytes() for p in pixels)
    assert wire.read_header(out[:length]).session == session


@given(places)
def test_places_travel_instead_of_pixels(named):
    items = tuple((i, 0) for i in range(len(named)))
    task = WireTask(1, "single", items, by_place=True)
    out = np.zeros(1024, np.uint8)
    length = pack_tasks(out, 1, [task], pack_places(named))
    assert length == task_message_bytes(1, len(named), len(named) * PLACE.itemsize)
    found, payload = unpack_tasks(out[:length])
    assert found == [task]
    assert unpack_places(payload) == named


def test_images_in_sequence_take_one_record():
    run = np.array([(7, 2, 5)], ITEM).tobytes()
    out = np.zeros(task_message_bytes(1, 1, 0), np.uint8)
    length = plain_pack_tasks(out, 1, [Packed(1, "single", range(5))], [run], b"")
    found, payload = unpack_tasks(out[:length])
    assert found[0].items == tuple((7 + i, 2 + i) for i in range(5))
    assert found[0].by_place
    assert not payload.size


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5), st.binary(max_size=3))
def test_files_travel_instead_of_pixels(files, rest):
    packed = b"".join(pack_file(data).tobytes() for data in files)
    payload = np.frombuffer(packed + rest, np.uint8)
    assert unpack_files(payload, len(files)) == (files, len(packed))
    for end in range(len(packed)):
        with pytest.raises(wire.WireFault, match="does not hold"):
            unpack_files(payload[:end], len(files))


def test_half_a_place_is_refused():
    with pytest.raises(wire.WireFault, match="13 bytes"):
        unpack_places(np.zeros(PLACE.itemsize + 1, np.uint8))


@given(batch=st.lists(results, min_size=1, max_size=4))
def test_results_read_back(batch):
    out = np.zeros(8192, np.uint8)
    assert unpack_results(out[: pack_results(out, 1, batch)]) == batch


@given(
    batch=st.lists(results, min_size=1, max_size=4),
    unread=st.lists(st.none() | faults, min_size=9, max_size=9).filter(any),
    failed=st.booleans(),
)
def test_what_was_not_read_is_told_item_by_item(batch, unread, failed):
    """Of an answered task and of a failed one, which has no cells."""
    last = batch[-1]
    last.cells = () if failed else (Score(1, 0.5),) * len(unread)
    last.status, last.unread = FAILED if failed else ANSWERED, tuple(unread)
    last.compute_ns = last.read_ns = last.runtime = 0
    last.reason = next(why.reason for why in unread if why)
    out = np.zeros(8192, np.uint8)
    length = pack_results(out, 1, batch)
    assert length == BEGIN_BYTES + sum(map(_bytes_of, batch))
    last.cells = () if failed else tuple(None if why else Score(1, 0.5) for why in unread)
    assert unpack_results(out[:length]) == batch


@pytest.mark.parametrize(
    ("images", "told", "most"), [(1, 1, REASON_BYTES - 1), (64, 64, 63), (200, 67, LINE_BYTES)]
)
def test_the_images_of_a_task_share_the_room_for_reasons(images, told, most):
    """A line is cut between characters. Lines beyond the room are left out, and none is half."""
    long = "\u00e4" * REASON_BYTES
    unread = tuple(Unread(f"{n}: two\nlines {long}", n % 2 == 0) for n in range(images))
    out = np.zeros(32_768, np.uint8)
    (found,) = unpack_results(out[: pack_results(out, 1, [WireResult(1, FAILED, unread=unread)])])
    assert [why.of_input for why in found.unread] == [why.of_input for why in unread]
    for n, why in enumerate(found.unread[:told]):
        assert why.reason.startswith(f"{n}: two lines \u00e4")
        assert most - 1 <= len(why.reason.encode()) <= most
    assert {why.reason for why in found.unread[told:]} <= {LOST_REASON}


def test_a_reason_of_several_lines_is_told_in_one():
    sent = WireResult(1, FAILED, reason="RuntimeError: CUDA error\n  at kernel\n")
    out = np.zeros(8192, np.uint8)
    (found,) = unpack_results(out[: pack_results(out, 1, [sent])])
    assert found.reason == "RuntimeError: CUDA error at kernel"


@given(
    batch=st.lists(results, min_size=1, max_size=4),
    have=st.lists(st.booleans(), min_size=4, max_size=4),
    floats=st.integers(1, 5),
)
def test_vectors_travel_with_the_results_that_have_them(batch, have, floats):
    for result, some in zip(batch, have, strict=False):
        count = len(result.cells)
        vectors = np.random.default_rng(count).normal(size=(count, floats)).astype(np.float32)
        result.vectors = vectors if count and some else None
    out = np.zeros(8192, np.uint8)
    length = pack_results(out, 1, batch)
    assert length <= BEGIN_BYTES + sum(map(_bytes_of, batch))
    found = unpack_results(out[:length])
    for result, back in zip(batch, found, strict=True):
        sent, came = result.vectors, back.vectors
        assert (sent is None) == (came is None)
        assert sent is None or np.array_equal(sent, came)
        result.vectors = back.vectors = None
    assert found == batch


def test_counts_of_vectors_that_do_not_add_up_are_refused():
    out = np.zeros(256, np.uint8)
    result = WireResult(7, ANSWERED, cells=(None,), vectors=np.ones((1, 3), np.float32))
    length = pack_results(out, 1, [result])
    record = out[BEGIN_BYTES:][: RESULT.itemsize].view(RESULT)
    record["n_vectors"] = 2
    with pytest.raises(wire.WireFault, match="vectors"):
        unpack_results(out[:length])


@given(st.builds(Use, *[ids] * len(Use._fields)), st.lists(results, max_size=3))
def test_the_use_of_a_ranks_time_travels_with_its_answers(use, batch):
    out = np.zeros(8192, np.uint8)
    message = out[: pack_results(out, 1, batch, use)]
    assert (unpack_use(use_bytes(message)), unpack_results(message)) == (use, batch)
    with pytest.raises(wire.WireFault, match="does not match"):
        unpack_results(message[: BEGIN_BYTES - 1])


@given(st.lists(ids, max_size=20))
def test_cancels_read_back(batch):
    out = np.zeros(1024, np.uint8)
    assert unpack_cancel(out[: pack_cancel(out, 1, batch)]) == batch


@given(st.binary(max_size=99))
def test_controls_read_back(text):
    out = np.zeros(wire.CONTROL_BYTES, np.uint8)
    message = out[: wire.pack_control(out, 1, text)]
    assert wire.unpack_control(message) == text
    assert wire.read_header(message) == (wire.CONTROL, 1, 0, 0, len(text))


def test_another_type_is_no_control():
    out = np.zeros(64, np.uint8)
    length = wire.pack_control(out, 1, b"text")
    for other in (length - 1, length + 1):
        with pytest.raises(wire.WireFault, match="is no CONTROL"):
            wire.unpack_control(out[:other])
    with pytest.raises(wire.WireFault, match="type 2"):
        wire.unpack_control(out[: pack_cancel(out, 1, [])])


TASK_OF_ONE = WireTask(1, "single", ((0, 0),))


@pytest.mark.parametrize(
    "pack",
    [
        lambda out: pack_tasks(out, 1, [TASK_OF_ONE], [np.zeros(9, np.uint8)]),
        lambda out: pack_results(out, 1, [WireResult(1, FAILED, reason="no")]),
        lambda out: wire.pack_control(out, 1, b"x" * 9),
    ],
)
def test_a_message_may_fill_its_buffer_and_no_more_is_written(pack):
    length = pack(np.zeros(256, np.uint8))
    assert pack(np.zeros(length, np.uint8)) == length
    with pytest.raises(wire.WireFault, match=f"buffer of {length - 1}"):
        pack(np.zeros(length - 1, np.uint8))


def test_room_is_needed_for_the_pixels_that_follow_too():
    at = pack_tasks(np.zeros(256, np.uint8), 1, [TASK_OF_ONE])
    assert pack_tasks(np.zeros(at + 9, np.uint8), 1, [TASK_OF_ONE], following=9) == at
    with pytest.raises(wire.WireFault, match=f"of {at + 9} bytes for a buffer of {at + 8}"):
        pack_tasks(np.zeros(at + 8, np.uint8), 1, [TASK_OF_ONE], following=9)


@pytest.mark.parametrize(
    ("field", "value", "words"), [("n_items", 2, "add up"), ("kind", 99, "kind 99")]
)
def test_a_task_that_does_not_add_up_is_refused(field, value, words):
    out = np.zeros(256, np.uint8)
    length = pack_tasks(out, 1, [TASK_OF_ONE], [])
    out[wire.HEADER.itemsize :][: TASK.itemsize].view(TASK)[field] = value
    with pytest.raises(wire.WireFault, match=words):
        unpack_tasks(out[:length])


def test_a_record_of_more_images_than_the_message_has_bytes_is_refused():
    """Before a list of them is made, which could take all memory."""
    count = (1 << 32) - 1
    run, out = np.array([(7, 2, count)], ITEM).tobytes(), np.zeros(256, np.uint8)
    length = plain_pack_tasks(out, 1, [Packed(1, "single", range(count))], [run])
    with pytest.raises(wire.WireFault, match=f"{length} bytes does not match its counts"):
        unpack_tasks(out[:length])


def test_an_answer_of_more_cells_than_its_message_has_is_refused():
    out = np.zeros(256, np.uint8)
    length = pack_results(out, 1, [WireResult(1, SKIPPED)])
    out[BEGIN_BYTES:length].view(RESULT)["n_cells"] = 1
    with pytest.raises(wire.WireFault, match="do not add up"):
        unpack_results(out[:length])


def test_of_a_task_that_was_skipped_nothing_was_measured():
    assert WireResult(1, SKIPPED) == WireResult(
        1, SKIPPED, (), "", (), None, compute_ns=0, read_ns=0, runtime=0
    )


def test_another_version_is_refused_by_name():
    out = np.zeros(64, np.uint8)
    length = pack_cancel(out, 1, [5])
    out[4] = 99
    with pytest.raises(wire.WireFault, match="version 99"):
        unpack_cancel(out[:length])


def test_a_reason_that_is_no_text_travels_all_the_same():
    out = np.zeros(2048, np.uint8)
    result = WireResult(1, FAILED, reason="bad \ud800 text")
    (found,) = unpack_results(out[: pack_results(out, 1, [result])])
    assert found.reason == "bad ? text"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("status", 9, "status 9"), ("n_cells", 2, "add up"), ("reason_bytes", 1, "add up")],
)
def test_a_result_that_does_not_add_up_is_refused(field, value, words):
    out = np.zeros(256, np.uint8)
    result = WireResult(7, ANSWERED, cells=(Score(3, 0.5),))
    length = pack_results(out, 1, [result])
    record = out[BEGIN_BYTES:][: RESULT.itemsize].view(RESULT)
    record[field] = value
    with pytest.raises(wire.WireFault, match=words):
        unpack_results(out[:length])


READERS = [unpack_tasks, unpack_results, unpack_cancel, wire.unpack_control]


@given(st.binary(max_size=300))
@pytest.mark.parametrize("reader", READERS)
def test_foreign_bytes_are_refused(reader, data):
    with pytest.raises(wire.WireFault):
        reader(np.frombuffer(data, np.uint8))


@given(batch=st.lists(results, min_size=1, max_size=3), data=st.data())
@pytest.mark.parametrize("reader", READERS)
def test_damaged_messages_never_do_worse_than_wire_fault(reader, batch, data):
    out = np.zeros(4096, np.uint8)
    message = out[: pack_results(out, 1, batch)]
    for _ in range(3):
        at = data.draw(st.integers(8, len(message) - 1))
        message[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    try:
        reader(message[:cut])
    except wire.WireFault:
        pass


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 600)), max_size=60))
def test_results_are_split_into_messages_that_fit(wanted):
    results = [
        WireResult(i, ANSWERED, cells=(None,) * cells, reason="x" * reason)
        for i, (cells, reason) in enumerate(wanted)
    ]
    parts = in_messages(results)
    assert [result for part in parts for result in part] == results
    out = np.zeros(wire.UP_BYTES, np.uint8)
    lengths = [pack_results(out, 1, part) for part in parts]
    assert all(a + b > wire.UP_BYTES for a, b in pairwise(lengths))
