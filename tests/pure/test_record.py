"""A record of a core is played again to the same actions, or says where it differs, ends or is
damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from core_plays import Play
from core_world import World

from collage_mpi.cli import main
from collage_mpi.core.core import Core, ProtocolViolation
from collage_mpi.errors import ExitCode
from collage_mpi.job import record
from collage_mpi.job.record import Record, RecordedCore, Replay


def recorded(world: World, path: Path) -> Record:
    """Let the core of a new world be recorded."""
    core = RecordedCore(world.settings, world.scheme, world.table)
    core.record = Record(path, world.settings, world.asked, world.table)
    world.core = core
    return core.record


def a_record(path: Path) -> World:
    """The world of a short recorded job that is stopped; its log has the turns."""
    world = World(scheme="none", singles=2, assign="pull", keeps=True, depth=2)
    own = recorded(world, path)
    world.start()
    while world.admitted:
        world.arrive(4)
    world.answer(world.of(1)[0])
    world.take()
    world.stop()
    while world.live:
        world.answer(min(world.live))
    own.close()
    return world


def replayed(capsys, *words: object) -> tuple[int, str]:
    code = main(["replay", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out + done.err


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_a_random_play_is_replayed_to_the_same_actions(seed, tmp_path, monkeypatch):
    play = Play(seed)
    own = recorded(play.world, tmp_path / "r")
    monkeypatch.setattr(World, "again", lambda world: None)  # it makes another core
    play.run()
    own.close()
    replay = Replay(tmp_path / "r")
    replay.play()
    assert (replay.difference, replay.error, replay.end) == (None, "", record.COMPLETE)
    log = play.world.log
    assert (replay.turns, replay.events.total()) == (len(log), sum(len(told) for _, told, _ in log))
    assert replay.actions.total() == sum(len(actions) for _, _, actions in log)


def test_replay_tells_counts_time_and_state(tmp_path, capsys):
    world = a_record(tmp_path / "r")
    code, said = replayed(capsys, tmp_path / "r")
    events = sum(len(told) for _, told, _ in world.log)
    assert code == 0
    assert said.startswith(f"{events} events in {len(world.log)} turns: the same actions\n")
    assert "RankReady 2" in said
    assert "us an event" in said
    code, said = replayed(capsys, tmp_path / "r", "--until", "4", "--state")
    assert "in 4 turns: the same actions\n" in said
    assert "images: open " in said
    assert "rank 2 (single on h.org): ready, 2 of 2 messages" in said


def test_a_core_that_was_changed_is_told_with_the_turn(tmp_path, capsys, monkeypatch):
    world = a_record(tmp_path / "r")
    monkeypatch.setattr(Core, "stop", lambda core, reason: None)
    stopped = next(n for n, (_, told, _) in enumerate(world.log, 1) if "asked to" in str(told))
    code, said = replayed(capsys, tmp_path / "r")
    assert code == 1
    turn = int(said.split()[1])
    assert turn > stopped
    assert f"turn {turn} differs from the record of collage_mpi" in said
    assert "Answered(" in said
    assert "Send(rank=" in said.partition(" now:\n")[2]


def test_a_core_that_raises_is_recorded_up_to_the_end(tmp_path, capsys):
    world = World(scheme="none", singles=2)
    own = recorded(world, tmp_path / "r")
    world.start()
    with pytest.raises(ProtocolViolation):
        world.core.step(-1)
    own.close()
    code, said = replayed(capsys, tmp_path / "r")
    assert code == 0
    assert "same actions. Turn 3 fails as it did in the run: ProtocolViolation: a step" in said


def test_a_turn_that_fails_now_and_in_which_the_record_is_cut_is_told_as_that(tmp_path, capsys):
    world = World(scheme="none", singles=2)
    own = recorded(world, tmp_path / "r")
    world.start()
    own.add((-1, []))  # what it gave is lacking
    own.close()
    code, said = replayed(capsys, tmp_path / "r")
    assert code == 0
    assert "Turn 3 fails now; the record is cut in it: ProtocolViolation: a step" in said


def test_a_record_is_played_up_to_where_it_is_cut(tmp_path, capsys):
    world = a_record(tmp_path / "r")
    raw = (tmp_path / "r").read_bytes()
    said = {}
    for size in range(len(record.MAGIC), len(raw), 7):
        (tmp_path / "cut").write_bytes(raw[:size])
        code, text = replayed(capsys, tmp_path / "cut")
        said[text.splitlines()[0].partition(" actions. ")[2] or "before its first turn" in text] = 0
        assert code in (0, ExitCode.DATA)
    turns = len(world.log)
    assert [*said] == [
        True,
        "The record ends in turn 0 (cut)",
        f"The record ends in turn {turns} (cut)",
    ]


@pytest.mark.parametrize("place", [5, 200, -30])
def test_a_file_that_is_foreign_or_damaged_is_refused(tmp_path, capsys, place):
    a_record(tmp_path / "r")
    raw = bytearray((tmp_path / "r").read_bytes())
    raw[place] ^= 64
    (tmp_path / "r").write_bytes(raw)
    code, said = replayed(capsys, tmp_path / "r")
    assert code == ExitCode.DATA
    assert ("no record of this version" if place == 5 else "damaged") in said


def test_a_record_of_another_version_names_both(tmp_path, capsys, monkeypatch):
    a_record(tmp_path / "r")
    monkeypatch.setattr(record, "KINDS", {"Answered": Replay})
    monkeypatch.setattr(record, "__version__", "9.8.7")
    code, said = replayed(capsys, tmp_path / "r")
    assert code == ExitCode.DATA
    assert "wrote this record, with other events than the installed 9.8.7 has" in said


@pytest.mark.parametrize("change", [("MOST_BYTES", 0), ("MOST_WAITING", 0)])
def test_a_record_that_grows_too_large_ends_and_the_run_goes_on(
    tmp_path, capsys, monkeypatch, change
):
    monkeypatch.setattr(record, *change)
    world = a_record(tmp_path / "r")
    assert world.finish is not None
    code, said = replayed(capsys, tmp_path / "r")
    assert code == 0
    assert "The record ends in turn " in said
