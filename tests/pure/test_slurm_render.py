"""Job scripts: the shipped ones are what render makes, and settings reach the text."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from collage_mpi.cli import main
from collage_mpi.errors import UsageError
from collage_mpi.slurm import KINDS, RUN_KINDS, SlurmSettings, hours, layout, render

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
    path = JOBS / f"{kind}.sbatch"
    assert path.read_text() == render(kind), (
        f"write it anew: collage-mpi slurm render {kind} --out jobs/slurm/{path.name}"
    )


def test_all_templates_together_stay_short() -> None:
    templates = files("collage_mpi.slurm") / "templates"
    assert sum(len(file.read_text().splitlines()) for file in templates.iterdir()) <= 270


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


STAND_INS = """set -euo pipefail
sbcast() { cp "${@: -2}"; }
srun() { while [[ $1 == --* ]]; do shift; done; "$@"; }
"""


def stage_files(folder: Path, names: str, shown: str) -> subprocess.CompletedProcess[str]:
    """Stage to a folder, then run what shows how it stands."""
    stage = (files("collage_mpi.slurm") / "templates" / "stage.sh").read_text()
    given = {"CM_STAGE": str(folder), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    script, env = f"{STAND_INS}{names}\n{stage}\n{shown}", {**os.environ, **given}
    return subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)


def test_one_file_of_any_kind_is_staged_and_a_folder_without_shards_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "pictures.tar").write_text("pictures")
    done = stage_files(
        tmp_path, f"single=null collage= shards={tmp_path}/in/pictures.tar", "cat $shards"
    )
    assert done.stdout.endswith("nodes\npictures"), done.stderr
    done = stage_files(tmp_path, f"single=null collage= shards={tmp_path}/in", "echo $shards")
    assert done.returncode == 2
    assert f"{tmp_path}/in is a folder without *.h5" in done.stderr
    assert not (tmp_path / "collage-mpi-7").exists()


def test_staged_weights_of_one_name_keep_apart(tmp_path: Path) -> None:
    for folder in ("single", "collage", "shards"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "best.h5").write_text(folder)
    names = " ".join(f"{n}={tmp_path}/{n}/best.h5" for n in ("single", "collage"))
    shown = 'cat "$single" "$collage" "$shards"/*.h5; echo "$@"'
    done = stage_files(tmp_path, f"{names} shards={tmp_path}/shards", shown)
    assert "singlecollageshards--pixels auto" in done.stdout, done.stderr
    assert not (tmp_path / "collage-mpi-7").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_site_values_are_marked_and_each_directive_once(kind: str) -> None:
    text = render(kind)
    assert directive(text, "account") == ["<account>"]
    assert directive(text, "partition") == ["<partition>"]
    names = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
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
    ranks = plan.teams * (1 + (singles or side * side) + collage_ranks)
    slots = plan.nodes * plan.tasks_per_node
    assert ranks <= slots < ranks + plan.nodes
    assert directive(text, "ntasks-per-node")[-1] == str(plan.tasks_per_node)
    assert "--ntasks=11" not in text  # a requeued job would get another number


def test_gpus_are_left_out_on_a_cpu_site() -> None:
    settings = SlurmSettings(gpus_per_node=0)
    assert not directive(render("run_nodes", settings), "gpus-per-node")
    assert "core hours" in render("run_nodes", settings)
    assert directive(render("train", settings), "cpus-per-task") == ["4"]


@pytest.mark.parametrize(
    ("nodes", "teams", "found", "tasks"),
    [(4, None, 4, 11), (4, 2, 2, 6), (4, 8, 8, 22), (1, 3, 3, 33), (6, 3, 3, 6)],
)
def test_teams_have_whole_nodes_or_nodes_whole_teams(
    nodes: int, teams: int | None, found: int, tasks: int
) -> None:
    text = render("run_teams", SlurmSettings(nodes=nodes, teams=teams))
    assert f"teams=${{CM_TEAMS:-{found}}}\n" in text
    assert "ranks=$((teams * (1 + singles + collage_ranks)))" in text
    assert directive(text, "ntasks-per-node") == [str(tasks)]


def started(script: str, folder: Path, **env: str) -> list[str]:
    """The words that a stand-in for srun is given."""
    srun = folder / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > words\n')
    srun.chmod(0o755)
    job = {
        "SLURM_JOB_NAME": "j",
        "SLURM_JOB_ID": "7",
        "CM_DATA": "d",
        "CM_WEIGHTS": "w",
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    subprocess.run(
        ["bash", "-s", "--", "--limit", "9"],
        input=script, text=True, check=True, timeout=30, cwd=folder, env={**job, **env},
    )  # fmt: skip
    return (folder / "words").read_text().splitlines()


def test_a_world_of_teams_is_started_at_once(tmp_path: Path) -> None:
    script = render("run_teams", SlurmSettings(setup=("true",), nodes=2))
    words = started(script, tmp_path, SLURM_CPUS_PER_TASK="2", CM_TEAMS="6")
    assert words[:5] == [
        "--mpi=pmix", "--ntasks=66", "--kill-on-bad-exit=0", "--wait=60", "collage-mpi",
    ]  # fmt: skip
    assert words[-4:] == ["--teams", "6", "--limit", "9"]


@pytest.mark.parametrize("kind", [*RUN_KINDS, "prepare", "train"])
def test_an_input_that_nobody_named_ends_the_job(kind: str, tmp_path: Path) -> None:
    """No script falls back to the files of somebody else's folder."""
    script = render(kind, SlurmSettings(setup=("true",)))
    job = {"SLURM_ARRAY_TASK_ID": "0", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-s"], input=script, text=True, check=False, timeout=30, cwd=tmp_path, env=job,
        capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.split(": set CM_")[0]) == (2, "no input")
    assert list(tmp_path.iterdir()) == []


def test_the_script_of_classify_and_map_passes_the_command_on_with_its_workers(
    tmp_path: Path,
) -> None:
    script = render("classify", SlurmSettings(setup=("true",), nodes=2, gpus_per_node=3))
    assert directive(script, "ntasks-per-node") == ["4"]  # 6 workers and the coordinator
    (tmp_path / "collage-mpi").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > words; exit 5\n')
    (tmp_path / "collage-mpi").chmod(0o755)
    env = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "2"}
    env["PATH"] = f"{tmp_path}:{os.environ['PATH']}"

    def code(*words: str, **more: str) -> int:
        return subprocess.run(
            ["bash", "-s", "--", *words],
            input=script, text=True, check=False, timeout=30, cwd=tmp_path, env=env | more,
        ).returncode  # fmt: skip

    assert code("map", "m.py:M", "--out", "a b") == 5
    words = ["map", "m.py:M", "--out", "a b", "--ranks", "6"]
    assert (tmp_path / "words").read_text().splitlines() == words
    assert code("classify", CM_RANKS="3") == 5
    assert (tmp_path / "words").read_text().splitlines() == ["classify", "--ranks", "3"]
    assert code("run") == code() == 2


def test_a_header_names_its_own_file_and_those_beside_it() -> None:
    text = render("analyse", file="site/mine.sbatch")
    assert "sbatch site/mine.sbatch runs/none" in text
    assert "jobs/slurm" not in text


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("run_one_node", SlurmSettings(), "At most 3 ranks to a GPU. Memory: the site's default"),
        ("run_nodes", SlurmSettings(), "At most 1 rank to a GPU. Memory"),
        ("run_nodes", SITE, "At most 2 ranks to a GPU. Memory of a task: 8 x 2G"),
        ("run_nodes", SlurmSettings(gpus_per_node=0), "Memory: the site's default; render --mem"),
        ("prepare", SlurmSettings(mem_per_cpu="1G"), "Memory of a task: 4 x 1G"),
    ],
)
def test_ranks_to_a_gpu_and_memory_are_told(kind: str, settings: SlurmSettings, said: str) -> None:
    assert f"\n# {said}" in render(kind, settings)


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
        ({"nodez": 3}, "unknown setting 'nodez'; did you mean 'nodes'"),
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
    with pytest.raises(UsageError, match="Known are: prepare"):
        render("runs")
    with pytest.raises(UsageError, match="teams is 3 for run_nodes; use run_teams"):
        render("run_nodes", SlurmSettings(teams=3))
    with pytest.raises(UsageError, match=r"teams is 3 on 4 nodes.*or whole teams a node"):
        render("run_teams", SlurmSettings(nodes=4, teams=3))
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
    assert out.read_text() == render("run_nodes", expected, str(out))
    assert f"#   sbatch {out}\n" in out.read_text()


def test_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "render", "analyse"]) == 0
    assert capsys.readouterr().out == render("analyse", file="analyse.sbatch")


def test_a_wrong_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "render", "run_nodes", "--cpus-per-task", "0"]) == 2
    assert "cpus_per_task is 0; it needs at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["slurm", "render", "run_nodes", "--launcher", "mpirun"])
    assert re.search("pmix.*pmi2.*mpiexec", capsys.readouterr().err)
