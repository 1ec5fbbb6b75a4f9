"""What the package says: standard log records for a program, plain stderr for a command."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from collage_mpi.cli import main
from collage_mpi.system.tell import LOGGER, tell, told_on_stderr


def test_messages_are_records_of_the_packages_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tell("a rank is lost\x1b[2J")
    tell("too big a side", logging.ERROR)
    tell("half done: 50 %", logging.INFO)
    assert caplog.record_tuples == [
        ("collage_mpi", logging.WARNING, "a rank is lost\\x1b[2J"),
        ("collage_mpi", logging.ERROR, "too big a side"),
        ("collage_mpi", logging.INFO, "half done: 50 %"),
    ]
    assert {Path(record.pathname).name for record in caplog.records} == {"test_tell.py"}


def test_what_all_ranks_have_to_say_rank_0_says(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in ("0", "3"):
        monkeypatch.setenv("PMI_RANK", rank)
        tell(f"all: {rank}")
        tell(f"one: {rank}", any_rank=True)
    assert caplog.messages == ["all: 0", "one: 0", "one: 3"]


TOLD = "tell('a loss'); tell('how far', logging.INFO); tell('the end', logging.ERROR)"


@pytest.mark.parametrize(
    ("set_up", "shown"),
    [
        ("", "a loss\nthe end\n"),  # as Python does where a program has set up nothing
        ("logging.getLogger('collage_mpi').setLevel(logging.CRITICAL)", ""),
        ("logging.getLogger('collage_mpi').addHandler(logging.NullHandler())", ""),
        (
            "logging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s %(message)s')",
            "WARNING collage_mpi a loss\nINFO collage_mpi how far\nERROR collage_mpi the end\n",
        ),
    ],
)
def test_a_program_has_the_say(set_up: str, shown: str) -> None:
    program = f"import logging\nfrom collage_mpi.system.tell import tell\n{set_up}\n{TOLD}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", shown)


def test_a_command_prints_all_of_it_and_nothing_but_it(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    before = LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)
    with told_on_stderr():
        tell("half done: 50 %", logging.INFO)
        tell("two\nlines")
        LOGGER.debug("of no interest")
    assert capsys.readouterr().err == "half done: 50 %\ntwo\nlines\n"
    assert caplog.messages == [], "once, not again by a handler of the program's"
    assert (LOGGER.level, LOGGER.propagate, LOGGER.handlers) == before


def test_a_failing_command_leaves_the_logger_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "/nowhere"]) != 0
    assert capsys.readouterr().err.startswith("collage-mpi verify: ")
    assert (LOGGER.level, LOGGER.propagate, LOGGER.handlers) == (logging.NOTSET, True, [])


def test_a_reader_that_has_gone_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full, told_on_stderr():
        monkeypatch.setattr(sys, "stderr", full)
        tell("to nobody")
        tell("to nobody")
