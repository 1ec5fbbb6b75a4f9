"""Job scripts: the shipped ones are what render makes, and settings reach the text."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from collage_mpi.cli import main
from collage_mpi.errors import UsageError
from collage_mpi.slurm.job_script import KINDS, RUN_KINDS, SlurmSettings, hours, layout, render

JOBS = Path(__file__).parents[2] / "jobs" / "slurm"
GOLDEN = Path(__file__).parent / "golden"
SITE = SlurmSettings(
    account="proj1",
    partition="gpu",
    nodes=3,
    gpus_per_node=4,
    cpus_per_task=8,
    time="1-12:00:00",
    mem_per_cpu="2G",
    side=4,
    collage_ranks=2,
    launcher="pmi2",
    setup=("module load mpich", "source env/bin/activate"),
    directives=("--qos=long",),
)


def directive(text: str, name: str) -> list[str]:
    return re.findall(rf"^#SBATCH --{name}=(\S+)", text, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_scripts_are_what_render_makes(kind: str) -> None:
    path = JOBS / KINDS[kind].file
    assert path.read_text() == render(kind), (
        f"write it anew: collage-mpi slurm render {kind} --out jobs/slurm/{path.name}"
    )


def test_golden_of_a_site() -> None:
    assert render("run_nodes", SITE) == (GOLDEN / "run_nodes_site.sbatch").read_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [SlurmSettings(), replace(SITE, nodes=None)])
def test_every_script_is_bash_and_has_no_token_left(kind: str, settings: SlurmSettings) -> None:
    text = render(kind, replace(settings, launcher="pmix"))
    assert not re.search(r"@[A-Z_]+@", text)
    assert "set -euo pipefail" in text
    assert max(map(len, text.splitlines())) <= 100
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=30)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "chain"])
def test_site_values_are_marked_and_each_directive_once(kind: str) -> None:
    text = render(kind)
    first_part = text.split("#SBATCH hetjob")[0]
    assert directive(first_part, "account") == ["<account>"]
    assert directive(first_part, "partition") == ["<partition>"]
    names = re.findall(r"^#SBATCH --([a-z-]+)", first_part, re.MULTILINE)
    assert sorted(names) == sorted(set(names))
    assert "requeue" in names
    assert "open-mode" in names


@pytest.mark.parametrize("kind", RUN_KINDS)
@pytest.mark.parametrize(("side", "singles", "collage_ranks"), [(2, None, 1), (3, 20, 3)])
def test_slots_are_enough_and_spread(
    kind: str, side: int, singles: int | None, collage_ranks: int
) -> None:
    settings = SlurmSettings(side=side, singles=singles, collage_ranks=collage_ranks)
    text = render(kind, settings)
    plan = layout(kind, settings)
    ranks = 1 + (singles or side * side) + collage_ranks
    slots = plan.nodes * plan.tasks_per_node + (kind == "run_het")
    assert ranks <= slots < ranks + plan.nodes
    assert directive(text, "ntasks-per-node")[-1] == str(plan.tasks_per_node)
    assert "--ntasks=11" not in text  # a requeued job would get another number


def test_gpus_are_left_out_on_a_cpu_site() -> None:
    settings = SlurmSettings(gpus_per_node=0)
    assert not directive(render("run_nodes", settings), "gpus-per-node")
    assert "core hours" in render("run_nodes", settings)
    assert directive(render("train", settings), "cpus-per-task") == ["4"]


def test_only_the_second_part_of_a_heterogeneous_job_has_gpus() -> None:
    first, second = render("run_het").split("#SBATCH hetjob")
    assert not directive(first, "gpus-per-node")
    assert directive(first, "cpus-per-task") == ["8"]
    assert directive(second, "gpus-per-node") == ["4"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 0.5),
        ("30:00", 0.5),
        ("02:00:00", 2.0),
        ("1-12", 36.0),
        ("1-12:30", 36.5),
        ("2-00:00:36", 48.01),
    ],
)
def test_time_limits(text: str, expected: float) -> None:
    assert hours(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nodez": 3}, "unknown setting 'nodez'; did you mean 'nodes'.*Known: account"),
        ({"nodes": "3"}, "it needs int"),
        ({"nodes": True}, "it needs int"),
        ({"nodes": 0}, "at least 1"),
        ({"setup": [3]}, "it needs a list of strings"),
        ({"account": "a b"}, "one word"),
        ({"account": "a\n#SBATCH --x"}, "one word"),
        ({"directives": ["qos"]}, "option of sbatch"),
        ({"directives": ["--qos=a\nrm"]}, "option of sbatch"),
        ({"launcher": "mpirun"}, "pmix, pmi2, mpiexec"),
        ({"time": "two hours"}, "one word"),
        ({"time": "2h"}, "HH:MM:SS"),
        ({"side": 1}, "needs 2"),
    ],
)
def test_wrong_settings_say_what_is_allowed(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SlurmSettings.from_mapping(values)


def test_what_a_kind_cannot_take() -> None:
    with pytest.raises(UsageError, match="known are: prepare"):
        render("runs")
    with pytest.raises(UsageError, match="only srun"):
        render("run_het", SlurmSettings(launcher="mpiexec"))
    with pytest.raises(UsageError, match="use run_nodes"):
        render("run_one_node", SlurmSettings(nodes=2))


def test_command_takes_a_file_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "site.json"
    file.write_text(json.dumps({"account": "proj1", "nodes": 2, "setup": ["module load mpich"]}))
    out = tmp_path / "job.sbatch"
    words = ["slurm", "render", "run_nodes", "--settings", str(file), "--nodes", "3"]
    assert main([*words, "--directive=--qos=long", "--out", str(out)]) == 0
    expected = SlurmSettings(
        account="proj1", nodes=3, setup=("module load mpich",), directives=("--qos=long",)
    )
    assert out.read_text() == render("run_nodes", expected)


def test_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "render", "analyse"]) == 0
    assert capsys.readouterr().out == render("analyse")


def test_a_wrong_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "render", "run_nodes", "--cpus-per-task", "0"]) == 2
    assert "cpus_per_task is 0; it needs at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["slurm", "render", "run_nodes", "--launcher", "mpirun"])
    assert re.search("pmix.*pmi2.*mpiexec", capsys.readouterr().err)
