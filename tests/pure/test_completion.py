"""The script that shtab makes of the parser (docs/cluster.md), asked as a shell asks it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    words = [sys.executable, "-m", "shtab", "--shell", "bash"]
    words += ["collage_mpi.commands.parser.build_parser"]
    path.write_text(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("verif", {"verify"}),
        ("run --dry", {"--dry-run"}),
        ("run --save ", {"none", "scores", "embeddings", "outputs", "beside"}),
        ("run --scheme colla", {"collage", "collage-only"}),
        ("export runs --to pa", {"parquet"}),
        ("slurm render run_n", {"run_nodes"}),
    ],
)
def test_bash_completes(script, words, wanted):
    asked = ["collage-mpi", *words.split(" ")]
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", str(script), *asked],
        capture_output=True, text=True,
    )  # fmt: skip
    assert set(done.stdout.split()) == wanted, done.stderr
