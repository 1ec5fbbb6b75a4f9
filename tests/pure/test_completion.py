"""The script of `collage-mpi completion`, asked as a shell asks it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from collage_mpi.cli import main
from collage_mpi.commands import COMMANDS
from collage_mpi.commands.completion import SHELLS

pytest.importorskip("shtab")

# What bash does on Tab: words and the current one are set, the registered function is called.
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
read -ra registered <<<"$(complete -p collage-mpi)"
for ((i = 0; i < ${#registered[@]}; i++)); do
    [[ ${registered[i]} == -F ]] && function=${registered[i + 1]}
done
$function collage-mpi "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "bash"
    words = [sys.executable, "-m", "collage_mpi", "completion", "bash"]
    path.write_text(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("verif", {"verify"}),
        ("run --dry", {"--dry-run"}),
        ("run --save ", {"none", "scores", "embeddings", "outputs"}),
        ("run --scheme colla", {"collage", "collage-only"}),
        ("export runs --to pa", {"parquet"}),
        ("slurm render run_n", {"run_nodes"}),
        ("completion z", {"zsh"}),
        ("run --single my_w", {"my_weights.safetensors"}),
    ],
)
def test_bash_completes(script, tmp_path, words, wanted):
    (tmp_path / "my_weights.safetensors").touch()
    asked = ["collage-mpi", *words.split(" ")]
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", str(script), *asked],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert set(done.stdout.split()) == wanted, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shells_script_knows_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_without_shtab_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 3
    assert "pip install 'shtab>=" in capsys.readouterr().err
