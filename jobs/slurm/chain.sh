#!/bin/bash
# The whole way as jobs that wait for each other; run it on the login node.
#
#   prepare (array) -> train (array) -> run without the collage, run with it -> analyse both
#
#   CM_IDX_DIR=idx CM_DATA=data jobs/slurm/chain.sh   # arguments go to both runs
#
# CM_IDX_DIR has the IDX files. CM_PREPARE_ARGS, CM_TRAIN_ARGS, CM_FLAGS (of every sbatch) may
# hold more words; CM_DATA, CM_WEIGHTS, CM_RUNS (folders), CM_VENV, CM_LAUNCHER, ... are the jobs'
# own; SBATCH_ACCOUNT and SBATCH_PARTITION are read by sbatch and replace the scripts' <account>
# and <partition>.
# A job whose predecessor failed is removed; nothing waits for ever.
set -euo pipefail

if [[ -z ${CM_IDX_DIR:-} || -z ${CM_DATA:-} ]]; then
    echo "no input: set CM_IDX_DIR (the IDX files) and CM_DATA (the shards' folder)" >&2
    exit 2
fi
export CM_WEIGHTS=${CM_WEIGHTS:-weights}   # train writes there, the runs read there

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
submit() {   # prints the job's number; federated clusters append ;CLUSTER
    local id
    # shellcheck disable=SC2086
    id=$(sbatch --parsable --kill-on-invalid-dep=yes ${CM_FLAGS:-} "$@")
    echo "${id%%;*}"
}

# shellcheck disable=SC2086
prepare=$(submit "$here/prepare.sbatch" ${CM_PREPARE_ARGS:-})
# shellcheck disable=SC2086
train=$(submit --dependency="afterok:$prepare" "$here/train.sbatch" ${CM_TRAIN_ARGS:-})
runs=${CM_RUNS:-runs/chain-$train}
none=$(CM_OUT=$runs/none submit --dependency="afterok:$train" "$here/run_nodes.sbatch" \
    --scheme none "$@")
collage=$(CM_OUT=$runs/collage submit --dependency="afterok:$train" "$here/run_nodes.sbatch" "$@")
analyse=$(CM_FIGURES=$runs/latency submit --dependency="afterany:$none:$collage" \
    "$here/analyse.sbatch" "$runs/none" "$runs/collage")

echo "prepare $prepare, train $train, run $none and $collage, analyse $analyse; in $runs"
echo "watch: squeue --me      stop: scancel $prepare $train $none $collage $analyse"
