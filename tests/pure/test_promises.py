"""What version 1.0.0 promised (docs/results.md): its files are read, its names are there.

`fixtures/formats_1_0_0` holds a file of each format, as that version wrote it, and promises.json
with its commands, flags, exit codes, columns and public names. None of them may be made anew once
the version is tagged; until then `PYTHONPATH=tests python tests/pure/test_promises.py` writes
promises.json. Runs are not among them: those of another format are refused (test_old_runs).
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
from results_harness import make_run
from test_docs import flags_of

import collage_mpi
from collage_mpi import results, shards
from collage_mpi.cli import main
from collage_mpi.commands import COMMANDS
from collage_mpi.errors import DataFault, ExitCode
from collage_mpi.models import describe, load_predictor
from collage_mpi.settings.flags import read_settings_file
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.simulator import read_answers
from collage_mpi.slurm import SlurmSettings
from collage_mpi.workload.arrivals import load_trace

KEPT = Path(__file__).parent.parent / "fixtures" / "formats_1_0_0"


def columns(folder: Path) -> dict:
    """By table, the header of what this version exports of a run with the two best classes."""
    run = make_run(folder / "run", 18, extras={"top_k": 2, "save": "none"})
    assert main(["export", str(run), "--to", "csv"]) == 0
    found = {}
    for path in sorted((run / "export").glob("*.csv")):
        with path.open(newline="") as lines:
            found[path.stem] = next(csv.reader(lines))
    return found


def promises() -> dict:
    """What this version would promise, but for its columns, in the form of promises.json."""
    return {
        "commands": {name: sorted(flags_of(name)) for name in COMMANDS},
        "exit_codes": {code.name: code.value for code in ExitCode},
        "names": {
            module.__name__: sorted(module.__all__) for module in (collage_mpi, results, shards)
        },
    }


PROMISED = json.loads((KEPT / "promises.json").read_text())


@pytest.mark.parametrize("command", PROMISED["commands"])
def test_a_command_has_all_its_flags(command: str) -> None:
    assert set(PROMISED["commands"][command]) <= set(promises()["commands"][command])


def test_exit_codes_mean_the_same() -> None:
    assert PROMISED["exit_codes"].items() <= promises()["exit_codes"].items()


@pytest.mark.parametrize("module", PROMISED["names"])
def test_public_names_are_there(module: str) -> None:
    assert set(PROMISED["names"][module]) <= set(promises()["names"][module])


@pytest.mark.parametrize("table", PROMISED["columns"])
def test_an_export_has_all_its_columns(table: str, tmp_path: Path) -> None:
    assert set(PROMISED["columns"][table]) <= set(columns(tmp_path)[table])


def test_a_shard_is_read() -> None:
    with shards.ShardSet.open([KEPT / "input.h5"]) as opened:
        rows = [row for row in range(20) if row != 13]  # damaged
        images, labels = opened.read(rows)
    assert labels is not None
    assert labels.tolist() == images[..., 0].max(2).argmax(1).tolist() == [r % 5 for r in rows]


def program(of: int) -> str:
    """A program of the part `Old shards` of data_prep/README.md."""
    part = (KEPT.parents[2] / "data_prep/README.md").read_text().partition("## Old shards")[2]
    return re.findall(r"```python\n(.*?)```", part, re.S)[of]


def test_a_shard_of_picture_files_is_refused_and_a_program_takes_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(KEPT / "encoded.h5", "old.h5")
    with pytest.raises(DataFault, match=r"holds picture files.*`Old shards`"):
        shards.ShardSet.open(["old.h5"])
    exec(program(0), {})
    assert len(list(Path("photos").iterdir())) == 5
    assert main(["prep", "images", "photos", "--size=8", "--enlarge", "--out=new"]) == 0
    with shards.ShardSet.open(["new"]) as opened:
        images, labels = opened.read_all()
    assert labels.tolist() == images[..., 0].max(2).argmax(1).tolist()


def test_a_shard_with_cells_is_refused_and_a_program_takes_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shards.write_shard("old.h5", np.zeros((3, 8, 8, 1), np.uint8))
    with h5py.File("old.h5", "r+") as file:
        file["cells_4"], file["cells_4_crc32"] = np.zeros((3, 4, 4, 1), "u1"), np.zeros(3, "u4")
    with pytest.raises(DataFault, match="SHA-256"):
        shards.ShardSet.open(["old.h5"])
    Path("old.h5.sha256").write_text(hashlib.sha256(Path("old.h5").read_bytes()).hexdigest())
    with pytest.raises(DataFault, match=r"holds cells \(cells_4\).*`Old shards`"):
        shards.ShardSet.open(["old.h5"])
    exec(program(1), {})
    with shards.ShardSet.open(["old.h5"]) as opened:
        assert len(opened.read_all()[0]) == 3


def test_networks_are_read_and_answer_as_they_did() -> None:
    with shards.ShardSet.open([KEPT / "input.h5"]) as opened:
        images, _ = opened.read(range(5))
    single = load_predictor(str(KEPT / "single.safetensors"), "single")
    assert single.predict(images)[:, 0].argmax(1).tolist() == [0, 1, 2, 3, 4]
    collage = describe(str(KEPT / "collage.safetensors"), "collage")
    assert collage is not None
    assert collage.class_names == tuple(f"class {i}" for i in range(5))


def test_numbers_for_simulations_are_read() -> None:
    assert load_trace(str(KEPT / "trace.npy")).shape == (2, 3)
    answers = read_answers(KEPT / "answers.npz", 2)
    assert (answers.side, len(answers.known["single"]), "collage" in answers.known) == (2, 40, True)


def test_files_of_settings_are_read() -> None:
    run = RunSettings.from_mapping(read_settings_file(KEPT / "run.toml"))
    assert (run.scheme, run.side, run.confidence) == ("cascade", 2, 0.9)
    site = SlurmSettings.from_mapping(read_settings_file(KEPT / "site.toml"))
    assert (site.nodes, site.workers, site.directives) == (3, 18, ("--qos=long",))


if __name__ == "__main__":
    with TemporaryDirectory() as name:
        made = {**promises(), "columns": columns(Path(name))}
    (KEPT / "promises.json").write_text(json.dumps(made, indent=1) + "\n")
