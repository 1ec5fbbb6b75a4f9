#!/usr/bin/env bash
# Whole jobs in one process, on simulated processes, clocks, MPI and disk; see tests/simulation.
# What a seed draws is played to the end of its run; a seed that fails is printed with the command
# that repeats it.
#
# Usage: tests/simulate.sh --seeds 1000 --from 0            tests/simulate.sh --from 120 --trace
# Needs: an environment with the package and its extra `test`; PYTHON=... names its python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" -m tests.simulation.play "$@"
