"""Every control message reads back as it was sent; any other is refused, rank and field named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_messages import HELLO, WELCOME

from collage_mpi.encoding.vectors import KeptColumn
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.job import messages
from collage_mpi.job.messages import TYPES, Bye, Hello, Leave, Measured, Rank0, Start, Stop, Welcome
from collage_mpi.models.info import PRECISIONS, RUNTIMES, Loading, Tuning
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.protocol import WireFault
from collage_mpi.system.process_tree import LARGEST_PID, ProcessId
from collage_mpi.workload.straggler_settings import MODELS, StragglerSettings

numbers = st.floats(allow_nan=False)  # NaN is no other NaN
ranks = st.integers(1, 10**6)
slowed = st.builds("{}:{}".format, ranks, st.floats(0.1, 10))
stragglers = st.builds(
    StragglerSettings,
    straggler=st.sampled_from(MODELS),
    straggler_seed=st.integers(0, 10**9),
    slow_ranks=st.lists(slowed).map(tuple),
)
tunings = st.builds(
    Tuning,
    precision=st.sampled_from(PRECISIONS),
    runtime=st.sampled_from(RUNTIMES),
)
columns = st.builds(
    KeptColumn,
    st.from_regex(r"x\w{0,63}", fullmatch=True, alphabet=st.characters(codec="ascii")),
    st.sampled_from(("|b1", "<f2", "<u8")),
    st.lists(st.integers(1)).map(tuple),
)
processes = st.builds(ProcessId, pid=st.integers(1, LARGEST_PID))
SOUND = {kind: st.from_type(kind) for kind in TYPES.values()} | {
    Rank0: st.builds(Rank0, process=st.none() | processes),
    Welcome: st.builds(
        Welcome,
        how=st.builds(Loading, tuning=tunings, delays=stragglers),
    ),
    Hello: st.builds(Hello, columns=st.lists(columns).map(tuple)),
    Start: st.builds(
        Start, st.dictionaries(st.text(), numbers), st.dictionaries(st.text(), numbers)
    ),
}
EXAMPLES = [
    Rank0("node0", ProcessId("boot ns", 5, 7), Offer(("node0", "10.0.0.1"), 4000, "x")),
    replace(
        WELCOME,
        how=replace(WELCOME.how, delays=StragglerSettings("pinned", slow_ranks=("3:2",))),
    ),
    messages.Shards(("{}", "[1]")),
    messages.Measure("single", 4),
    Start(
        {"collage": 1.5},
        {"collage": 0.5},
        8,
        4096,
        16384,
        {"single": "cache/x"},
        {"stage1": "bfloat16 on cpu"},
    ),
    messages.Changed("single", "openvino float32", ""),
    Stop(6),
    Leave(),
    HELLO,
    messages.Fault("no CUDA device", 3),
    Measured(5, None),
    Measured(0, None, fits=False),
]


def back(message: Any) -> Any:
    out = np.zeros(wire.CONTROL_BYTES, np.uint8)
    return messages.unpack(out[: messages.pack(out, 1, message)], 3)


def changed(message: Any, change: Callable[[dict[str, Any]], object]) -> Any:
    """What comes of a message whose JSON somebody has changed."""
    out = np.zeros(wire.CONTROL_BYTES, np.uint8)
    content = json.loads(wire.unpack_control(out[: messages.pack(out, 1, message)]))
    change(content)
    return messages.unpack(out[: wire.pack_control(out, 1, json.dumps(content).encode())], 3)


@pytest.mark.parametrize("text", ["x", "x" * 700, "x" * 32_750, '"' * 9_000, "\udcff" * 900])
def test_any_number_of_shards_fits_its_messages(text):
    descriptions = [f"{text}{i}" for i in range(150)]
    parts = messages.shards_in_messages(descriptions)
    assert [each for part in parts for each in back(part).descriptions] == descriptions
    whole = sum(len(json.dumps(each)) for each in descriptions)
    assert len(parts) <= 1 + 2 * whole // wire.CONTROL_BYTES  # none is less than half full


@pytest.mark.parametrize("kind", TYPES.values())
@given(data=st.data())
def test_every_message_reads_back(kind, data):
    message = data.draw(SOUND[kind])
    assert back(message) == message


@pytest.mark.parametrize("message", EXAMPLES)
def test_of_what_is_read_back_all_is_of_its_type(message):
    assert repr(back(message)) == repr(message)  # a list is no tuple, 3 no "3", 1 no 1.0


EACH = [(message, each.name) for message in EXAMPLES for each in fields(message)]


@pytest.mark.parametrize(("message", "name"), EACH)
def test_a_field_that_lacks_is_named_and_so_is_its_rank(message, name):
    with pytest.raises(WireFault, match=rf"^rank 3 sent \w+ without {name}$"):
        changed(message, lambda content: content.pop(name))


@pytest.mark.parametrize(("message", "name"), EACH)
def test_a_field_of_another_type_is_named_and_so_is_its_rank(message, name):
    other = 1 if type(getattr(message, name)) is bool else True
    with pytest.raises(WireFault, match=rf"^rank 3 sent \w+\.{name} = {other}; needed: "):
        changed(message, lambda content: content.update({name: other}))


@pytest.mark.parametrize("message", [*EXAMPLES, Bye()])
def test_a_field_that_nobody_declared_is_refused(message):
    with pytest.raises(WireFault, match=r"^rank 3 sent \w+ with an unknown 'more'$"):
        changed(message, lambda content: content.update(more=1))


NESTED = ("geometry", "how")
SLOW = {"precision": "auto", "runtime": "please"}


def delays(**changes: Any) -> dict[str, Any]:
    """How to load a network, with other delays than the settings allow."""
    return {"delays": {**StragglerSettings().to_dict(), **changes}}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("credit", True, r"welcome\.credit = True; needed: int"),
        ("geometry", {"side": 3.0}, r"welcome\.geometry\.side = 3\.0; needed: int"),
        ("geometry", {"image_shape": 4}, r"welcome\.geometry\.image_shape = 4; needed: tuple"),
        (
            "geometry",
            {"image_shape": [4, "1"]},
            r"welcome\.geometry\.image_shape = '1'; needed: int",
        ),
        ("networks", {"single": None}, r"welcome\.networks\.single = None; needed: str"),
        ("how", delays(slow_ranks=[3]), r"welcome\.how\.delays\.slow_ranks = 3; needed: str"),
        ("how", delays(straggler_seed="1"), r"welcome\.how\.delays\.straggler_seed = '1'"),
        ("how", delays(straggler="snail"), r"an invalid welcome\.how\.delays: .* 'snail'"),
        ("how", {"tuning": SLOW}, r"an invalid welcome\.how\.tuning: runtime is 'please'"),
        ("how", {"more": 1}, r"welcome\.how with an unknown 'more'"),
    ],
)
def test_what_cannot_be_is_refused(name, value, says):
    def change(content: dict[str, Any]) -> None:
        content[name] = {**content[name], **value} if name in NESTED else value

    with pytest.raises(WireFault, match=f"^rank 3 sent {says}"):
        changed(WELCOME, change)


def test_a_process_that_cannot_be_is_refused():
    with pytest.raises(WireFault, match=r"an invalid rank0\.process: .* pid 0"):
        changed(EXAMPLES[0], lambda content: content["process"].update(pid=0))


def test_a_whole_number_is_a_float_too():
    found = changed(
        Start({}, {}, 1, 4096, 16384), lambda content: content["costs"].update(single=2)
    )
    assert (
        repr(found) == "Start(costs={'single': 2.0}, batch_costs={}, batch=1, task_bytes=4096, "
        "answer_bytes=16384, runtimes={}, steady={})"
    )


@pytest.mark.parametrize("text", [b'{"what": "helo"}', b'{"what": ["stop"]}', b"{}", b"[3]", b"3"])
def test_a_message_of_no_known_sort_is_refused(text):
    out = np.zeros(256, np.uint8)
    with pytest.raises(WireFault, match=r"rank 3 sent a control message .*; known are: rank0, "):
        messages.unpack(out[: wire.pack_control(out, 1, text)], 3)


@given(data=st.data())
@pytest.mark.parametrize("message", EXAMPLES)
def test_damaged_bytes_never_do_worse_than_wire_fault(message, data):
    out = np.zeros(4096, np.uint8)
    sent = out[: messages.pack(out, 1, message)]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(wire.HEADER.itemsize, len(sent) - 1))
        sent[at] = data.draw(st.integers(0, 255))
    try:
        messages.unpack(sent, 3)
    except WireFault:
        pass


@given(text=st.binary(max_size=200))
def test_bytes_of_any_sort_are_refused(text):
    out = np.zeros(512, np.uint8)
    with pytest.raises(WireFault):
        messages.unpack(out[: wire.pack_control(out, 1, text)], 3)
