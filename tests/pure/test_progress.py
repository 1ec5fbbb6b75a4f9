"""Status lines: written seldom, read back exactly, harmless when damaged."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.core.outcomes import Totals
from collage_mpi.job.session import ShownProgress
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.environment import STATUS_VARIABLE
from collage_mpi.system.progress import (
    BarDisplay,
    LineDisplay,
    StatusLines,
    StatusReporter,
    WaitReporter,
    advancing,
    plain_line,
    split_statuses,
)
from collage_mpi.system.tell import mark_of, report, status_line

WORD = "4f1a"


class Clock:
    """Seconds that move when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_machine_lines_come_at_their_interval_and_say_the_last_state():
    stream, clock = io.StringIO(), Clock()
    reporter = StatusReporter(1800, "collage", StatusLines(WORD, stream), clock, every_s=1.0)
    for done in range(13):
        reporter.update(done, collage_share=0.5)
        clock.now_s += 0.0625
    reporter.update(13)
    reporter.close()
    reporter.close()
    lines = stream.getvalue().splitlines()
    statuses = [found for line in lines for found in split_statuses(line, WORD)[1]]
    assert [status["done"] for status in statuses if status] == [0, 4, 8, 12, 13]
    assert statuses[1] == {
        "phase": "collage",
        "done": 4,
        "total": 1800,
        "unit": "images",
        "images_s": 16.0,
        "collage_share": 0.5,
        "every_s": 1.0,
    }


def test_reaching_the_total_is_said_once_and_at_once():
    stream, clock = io.StringIO(), Clock()
    reporter = StatusReporter(9, "collage", StatusLines(WORD, stream), clock)
    for done in (0, 5, 9, 9):
        reporter.update(done)
    clock.now_s += 60.0  # late answers are waited for
    reporter.update(9)
    reporter.close()
    statuses = [
        (split_statuses(line, WORD)[1] or [{}])[0] for line in stream.getvalue().splitlines()
    ]
    assert [(status["done"], status.get("end", False)) for status in statuses] == [
        (0, False),
        (9, True),
    ]


def test_plain_lines_wait_for_the_first_interval(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    reporter = StatusReporter(200, "none", StatusLines(""), clock)
    reporter.update(1)
    assert caplog.messages == []
    clock.now_s += 5.0
    reporter.update(100, collage_share=0.123456)
    assert caplog.messages == [
        "none: 100 of 200 images (50.0 %), 20.0 images/s, collage share 0.123, 5 s left"
    ]


@pytest.mark.parametrize(("scheme", "share"), [("collage", ", collage share 50.0 %"), ("none", "")])
def test_the_rate_and_the_share_leave_the_warm_up_out_as_the_summary_does(caplog, scheme, share):
    """Two groups of nine took 10 s, of which a collage answered all; then 72 images in 9 s, and six
    of the warm-up, which was not over when the first of the 72 came."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    reporter = StatusReporter(90, scheme, StatusLines(""), clock)
    rates_begin = []
    reporter.follow(lambda last: None, rates_begin.append)
    told = ShownProgress(reporter, RunSettings(scheme=scheme, warmup_groups=2))
    for wait_s, admitted, images, collage in (
        *((9, 18, 9, 9), (1, 27, 12, 12)),
        *((0.75, 27, 18, 18), (4.5, 63, 54, 36), (4.5, 90, 90, 54)),
    ):
        clock.now_s += wait_s
        told.tell(Totals(images, collage=collage, admitted=admitted), 0, 90)
    assert rates_begin == [12]
    assert caplog.messages[-1] == f"{scheme}: 90 of 90 images (100.0 %), 8.0 images/s{share}"


def test_a_job_of_warm_up_alone_has_a_rate(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    told = ShownProgress(
        StatusReporter(20, "none", StatusLines(""), clock), RunSettings(scheme="none")
    )
    clock.now_s += 3.0
    told.tell(Totals(images=18), 2, 18)  # another job has done two
    assert caplog.messages == ["none: 18 of 18 images (100.0 %), 6.0 images/s, lost ranks 2"]


def test_numpy_numbers_are_welcome():
    np = pytest.importorskip("numpy")
    line = status_line({"done": np.int64(3), "share": np.float32(0.5)}, WORD)
    assert split_statuses(line, WORD) == ("", [{"done": 3, "share": 0.5}])


def test_a_reader_that_has_gone_does_not_stop_the_job():
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    clock = Clock()
    reporter = StatusReporter(10, "run", StatusLines(WORD, Gone()), clock)
    reporter.update(1)
    clock.now_s += 100
    reporter.update(2)


SHOWN = {"phase", "unit", "done", "total", "every_s", "code", "images_s"}  # as what they are


@given(
    st.text(),
    st.dictionaries(
        st.text().filter(lambda name: name not in SHOWN),
        st.one_of(st.integers(), st.none(), st.text()),
    ),
)
def test_what_was_written_is_read_back_after_any_output(before, status):
    before = before.replace("\n", "").replace(mark_of(WORD), "")
    assert split_statuses(before + status_line(status, WORD), WORD) == (before, [status])


@given(st.text())
def test_any_other_line_passes_unchanged(line):
    assert split_statuses(line, WORD) == (line, [])
    assert split_statuses(line + status_line({}, WORD), None)[1] == []


@pytest.mark.parametrize("word", ["", "status", "1"])
def test_a_mark_of_another_launch_is_output(word):
    """A file's name in a warning may look like a status; its word it cannot know."""
    line = f"warning: x{status_line({'exit': 0}, word)}.h5: x@status {{}}"
    assert split_statuses(line, WORD) == (line, [])


def test_statuses_that_run_together_are_told_apart():
    """Launchers put pieces of several processes' lines on one line."""
    line = 'half a line@status {"exit":5}@status {"ended": 3, "code": 0} and@status {'
    line = line.replace("@status ", mark_of(WORD))
    rest, statuses = split_statuses(line, WORD)
    assert statuses == [{"exit": 5}, {"ended": 3, "code": 0}]
    assert rest == f"half a line and{mark_of(WORD)}{{"


@pytest.mark.parametrize("line", ["@status {", '@status {"a":1', "@status [1]", "@status 3"])
def test_a_damaged_status_is_output(line):
    line = line.replace("@status ", mark_of(WORD))
    assert split_statuses(line, WORD) == (line, [])


def test_plain_line_without_a_total():
    assert plain_line({"phase": "train", "done": 3, "unit": "epochs"}) == "train: 3 epochs"


def test_line_display_prints_every_five_seconds_and_the_end_of_each_phase():
    stream, clock = io.StringIO(), Clock()
    display = LineDisplay(stream, clock)
    for second in range(12):
        clock.now_s = 100.0 + second
        display.show({"phase": "none", "done": second, "total": 11})
    display.show({"phase": "collage", "done": 0, "total": 11})
    display.show({"phase": "collage", "done": 1, "total": 11})
    display.close()
    assert [line.split(" (")[0] for line in stream.getvalue().splitlines()] == [
        "none: 5 of 11 images",
        "none: 10 of 11 images",
        "none: 11 of 11 images",
        "collage: 1 of 11 images",
    ]


def test_bar_leaves_one_line_a_phase():
    stream = io.StringIO()
    display = BarDisplay(stream)
    display.show({"phase": "none", "done": 1, "total": 2, "share [x]": 0.5})
    display.clear()
    display.show({"phase": "none", "done": 2, "total": 2})
    display.show({"phase": "collage", "done": 2, "total": 2, "end": True})
    assert stream.getvalue().endswith("collage: 2 of 2 images (100.0 %)\n")
    display.close()
    assert "none: 2 of 2 images (100.0 %)" in stream.getvalue()
    assert stream.getvalue().endswith("collage: 2 of 2 images (100.0 %)\n")


def test_exit_is_reported_only_to_a_launcher_of_ours(monkeypatch):
    stream = io.StringIO()
    monkeypatch.delenv(STATUS_VARIABLE, raising=False)
    report(stream, exit=6)
    assert stream.getvalue() == ""
    monkeypatch.setenv(STATUS_VARIABLE, WORD)
    report(stream, there=3)
    report(stream, exit=6)
    lines = stream.getvalue().splitlines()
    assert [split_statuses(line, WORD) for line in lines] == [
        ("", [{"there": 3}]),
        ("", [{"exit": 6}]),
    ]


def test_a_log_is_told_as_often_as_the_status_says():
    stream, clock = io.StringIO(), Clock()
    display = LineDisplay(stream, clock)
    for second in range(7):
        clock.now_s = 100.0 + second
        display.show({"phase": "none", "done": second, "total": 11, "every_s": 3.0})
    assert [line.split(" of")[0] for line in stream.getvalue().splitlines()] == [
        "none: 3",
        "none: 6",
    ]


def test_a_wait_is_shown_while_it_lasts_and_leaves_no_line():
    stream, clock = io.StringIO(), Clock()
    display = LineDisplay(stream, clock)
    display.show({"phase": "starting", "done": 3, "total": 11, "unit": "ranks", "passing": True})
    display.tick()
    assert stream.getvalue() == ""
    clock.now_s += 5.0
    display.tick()
    assert stream.getvalue() == "starting: 3 of 11 ranks (27.3 %)\n"
    ended = {"phase": "starting", "done": 11, "total": 11, "passing": True, "end": True}
    for shown in (display, BarDisplay(stream)):
        shown.show({**ended, "end": False})
        shown.show(ended)
        shown.close()
    assert "11 of 11 ranks" not in stream.getvalue()


@pytest.mark.parametrize("word", [WORD, ""])
def test_waits_have_no_pace_and_no_last_line(word, caplog):
    caplog.set_level(logging.INFO)
    stream, clock = io.StringIO(), Clock()
    reporter = WaitReporter(2, "loading", StatusLines(word, stream), clock, unit="ranks")
    clock.now_s += 5.0
    reporter.update(1)
    reporter.update(2)
    reporter.close()
    lines = stream.getvalue().splitlines()
    if not word:
        assert lines == []
        assert caplog.messages == ["loading: 1 of 2 ranks (50.0 %)"]
    else:
        (last,) = split_statuses(lines[-1], word)[1]
        assert last["passing"]
        assert last["end"]
        assert "ranks_s" not in last


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_part_and_time_left():
    stream = Terminal()
    display = BarDisplay(stream)
    display.show({"phase": "none", "done": 250, "total": 1000, "images_s": 10.0})
    display.clear()
    assert "25 %" in stream.getvalue()
    assert "10.0 images/s, 75 s left" in stream.getvalue()


def test_a_wait_that_does_not_move_is_told_once(caplog):
    waiting = {"phase": "loading networks", "total": 10, "unit": "ranks", "passing": True}
    stream, clock = io.StringIO(), Clock()
    display = LineDisplay(stream, clock)
    reporter = WaitReporter(
        10, "loading networks", StatusLines(""), clock, every_s=1.0, unit="ranks"
    )
    with caplog.at_level(logging.INFO):
        for second in range(60):
            display.show({**waiting, "done": second // 50})
            reporter.update(second // 50)
            clock.now_s += 6.0
    told = ["loading networks: 0 of 10 ranks (0.0 %)", "loading networks: 1 of 10 ranks (10.0 %)"]
    assert stream.getvalue().splitlines() == told
    assert caplog.messages == told


def test_one_of_several_trainings_tells_what_stays_and_the_others_nothing(capsys):
    for total in (10, 0):
        with advancing(total, "train", bar=False) as advance:
            advance(5)
            advance.say("epoch 1")
    assert capsys.readouterr().out == "epoch 1\n"
