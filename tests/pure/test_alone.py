"""A job that has its folder for itself, where the file system has no hard links."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace

import pytest

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.ledger.owner import Owner, join
from collage_mpi.ledger.records import Part, Run, run_name
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results.writer import ALONE, leave_alone, open_folder
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.process_tree import this_process

LINK = os.link


@pytest.fixture(autouse=True)
def _no_links(monkeypatch):
    def link(*names):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


def test_without_hard_links_a_job_alone_does_its_run_and_others_are_told_of_it(tmp_path):
    with pytest.raises(EnvironmentFault, match="--alone on"):
        join(open_folder(tmp_path, shared=False), Run(1, 0, 8, 8))
    store = open_folder(tmp_path, shared=False, alone=True)
    run = join(store, Run(1, 0, 8, 8, by="a" * 32))
    owner = Owner(store, run, name="a" * 32)
    owner.turn(8)
    owner.turn(8)
    for alone in (False, True):
        with pytest.raises(EnvironmentFault, match="has this folder for itself"):
            open_folder(tmp_path, shared=False, alone=alone)
    owner.wrote(Part("images-0001-000001.parquet", 1, 1, ((0, 8),)))
    owner.turn()
    assert owner.settle()
    there = store.read(run_name(1))
    assert not store.link(run_name(1), b"another")
    assert store.read(run_name(1)) == there
    leave_alone(tmp_path)
    open_folder(tmp_path, shared=False)


def test_a_job_alone_whose_process_has_ended_keeps_nobody_out(tmp_path):
    dead = replace(this_process(), started=1)
    (tmp_path / ALONE).write_text(json.dumps(asdict(dead)))
    open_folder(tmp_path, shared=False, alone=True)
    (tmp_path / ALONE).write_text("?")
    with pytest.raises(EnvironmentFault, match=f"rm .*{ALONE}"):
        open_folder(tmp_path, shared=False, alone=True)


def test_teams_are_several_jobs():
    with pytest.raises(UsageError, match="alone is on"):
        RunSettings(teams=2, alone="on")


def test_a_lone_job_where_there_are_links_takes_no_name_from_another_job(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", LINK)
    store = open_folder(tmp_path, shared=False, alone=True)
    other = FolderStore(tmp_path)
    store.read = lambda name: None  # the other job makes it right afterwards
    assert other.link("leases/0.0", b"theirs")
    assert not store.link("leases/0.0", b"mine")
    assert other.read("leases/0.0") == b"theirs"
