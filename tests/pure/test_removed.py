"""What was removed is told with what to use instead, and nothing that exists counts as removed."""

from __future__ import annotations

import argparse

import pytest

from collage_mpi import removed
from collage_mpi.cli import main
from collage_mpi.commands.parser import build_parser
from collage_mpi.errors import UsageError
from collage_mpi.settings.run_settings import RunSettings


def leaves(parser, words=()):
    """Words of each command -> its parser."""
    subs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not subs:
        yield words, parser
    for name, child in (pair for sub in subs for pair in sub.choices.items()):
        yield from leaves(child, (*words, name))


@pytest.mark.parametrize("name", removed.TABLE)
def test_what_is_removed_is_gone_and_the_line_names_what_to_use(name):
    was, instead = removed.TABLE[name]
    assert was
    assert instead
    assert removed.removed(*name.split()) == f"{name} was removed ({was}): {instead}"
    for words, parser in leaves(build_parser()):
        known = parser._option_string_actions
        option, _, value = name.rpartition(" ")
        assert name not in (" ".join(words), *known)
        if option in known and known[option].choices:
            assert value not in known[option].choices


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "--parity-k", "3"], "--parity-k was removed"),
        (["run", "--hedge-quantile=0.9", "--scheme", "none"], "use --hedge-ms T"),
        (["run", "--scheme", "batch-backup"], "use --scheme cascade --first W"),
        (["train", "parity", "--k", "3"], "train parity was removed"),
        (["evaluate", "--approx-k", "3"], "--approx-k was removed"),  # before --shards is missed
    ],
)
def test_the_command_line_says_what_was_removed(words, line, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert line in said
    assert "required" not in said


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("grace_ms = 5", "--grace-ms was removed"),
        ('accept = "backup"', "use --confidence X"),
        ('dead_ranks = ["3:5"]', "use collage-mpi simulate --dead-ranks"),
    ],
)
def test_settings_files_say_what_was_removed(text, line, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert main(["run", "--settings", str(file), "--dry-run"]) == 2
    assert line in capsys.readouterr().err


def test_a_file_of_settings_in_yaml_is_told_to_be_toml(tmp_path, capsys):
    (tmp_path / "job.yml").write_text("side: 4")
    assert main(["run", "--dry-run", "--settings", str(tmp_path / "job.yml")]) == 2
    assert "job.yml: .yml was removed" in (said := capsys.readouterr().err)
    assert "write the file as .toml" in said


def test_what_never_existed_is_not_told_as_removed():
    with pytest.raises(UsageError, match="unknown setting 'parity_q'"):
        RunSettings.from_mapping({"parity_q": 3})


def test_a_training_by_several_processes_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "single", "--shards", "a.h5", "--out", f"{tmp_path}/w.safetensors"]) == 2
    assert "torchrun was removed" in capsys.readouterr().err


def test_a_value_may_have_the_name_of_a_command_that_was_removed(capsys):
    assert main(["simulate", "--straggler", "trace", "--trace-file", "none", "--images", "9"]) == 2
    assert "--out is missing" in capsys.readouterr().err
