#!/bin/sh
# Into an image of Debian or Ubuntu with Python >= 3.10, as both recipes beside it do:
#   sh containers/install.sh openmpi     (or mpich: the family of the cluster's MPI)
# An MPI that is there already (an mpicc on PATH) is taken as it is. PYTHON names another interpreter.
set -eu
mpi=${1:?say openmpi or mpich, the family of the MPI of the cluster}
source=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
case $mpi in
    openmpi) packages='openmpi-bin libopenmpi-dev' ;;
    mpich) packages='mpich libmpich-dev' ;;
    *)
        echo "install.sh: '$mpi' is neither openmpi nor mpich" >&2
        exit 2
        ;;
esac
if ! command -v mpicc >/dev/null; then
    apt-get update
    # shellcheck disable=SC2086  # two words
    apt-get install --yes --no-install-recommends gcc libc6-dev $packages
    rm -rf /var/lib/apt/lists/*
fi
# mpi4py is built against that MPI: its wheel would look for one at run time.
"$python" -m pip install --no-cache-dir --no-binary mpi4py "${source}[plot]"
"$python" -m collage_mpi --version
