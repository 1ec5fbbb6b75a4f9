"""The texts of the job scripts, with @NAMES@ where settings go.

Owns: what each script says and does.
Does not know: settings, #SBATCH lines and their values (slurm).
"""

from __future__ import annotations

_SITE = """\
# --- site: what makes collage-mpi and its MPI available -------------------------------------
@SETUP@
"""

_WHAT_TO_RUN = """\
# --- what to run: set these in front of sbatch, or here ---------------------------------------
shards=${CM_SHARDS:-${CM_DATA:-data/fashion-mnist}/test}
single=${CM_SINGLE:-${CM_WEIGHTS:-weights}/single.safetensors}
collage=${CM_COLLAGE:-${CM_WEIGHTS:-weights}/collage.safetensors}
out=${CM_OUT:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}   # a requeued job keeps its number
side=${CM_SIDE:-@SIDE@}
singles=${CM_SINGLES:-@SINGLES@}
collage_ranks=${CM_COLLAGE_RANKS:-@COLLAGE_RANKS@}
ranks=$((1 + singles + collage_ranks))   # rank 0 coordinates
"""

_RUN_WORDS = """\
# --resume begins the run, or goes on with it: requeued, or CM_OUT of an earlier job.
words=(run --resume --shards "$shards" --single "$single" --collage "$collage" --out "$out"
    --side "$side" --singles "$singles" --collage-ranks "$collage_ranks" "$@")
mkdir -p "$(dirname "$out")"
echo "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID: $ranks ranks," \\
    "collage-mpi ${words[*]}"
"""

_LAUNCH = """\
# --- how ranks are started: pmix is Open MPI's, pmi2 is MPICH's and Intel MPI's ---------------
# --wait: a rank that dies alone ends the job, a minute later. --kill-on-bad-exit=1 would do it at
# once, but also kill ranks that are just leaving in good order, with 6.
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
export OMPI_MCA_mpi_yield_when_idle=1   # Open MPI's ranks would spin, and starve the others
launcher=${CM_LAUNCHER:-@LAUNCHER@}
case $launcher in
    pmix | pmi2)
        launch=(srun --mpi="$launcher" --ntasks="$ranks" --kill-on-bad-exit=0 --wait=60
            collage-mpi) ;;
    mpiexec) launch=(collage-mpi launch -n "$ranks" --) ;;
    *)
        echo "CM_LAUNCHER is $launcher; known are: pmix, pmi2, mpiexec" >&2
        exit 2 ;;
esac
"""

_LAUNCH_HET = """\
# --- one world over both parts: pmix is Open MPI's, pmi2 is MPICH's and Intel MPI's -----------
# --wait: a rank that dies alone ends the job a minute later.
export OMPI_MCA_mpi_yield_when_idle=1   # Open MPI's ranks would spin, and starve the others
launcher=${CM_LAUNCHER:-@LAUNCHER@}
case $launcher in
    pmix | pmi2) srun=(srun --mpi="$launcher" --kill-on-bad-exit=0 --wait=60) ;;
    *)
        echo "CM_LAUNCHER is $launcher; known are: pmix, pmi2 (mpiexec sees one part only)" >&2
        exit 2 ;;
esac
launch=("${srun[@]}"
    --het-group=0 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK_HET_GROUP_0"
    collage-mpi "${words[@]}" :
    --het-group=1 --ntasks=$((ranks - 1)) --cpus-per-task="$SLURM_CPUS_PER_TASK_HET_GROUP_1"
    collage-mpi)   # and the words once more
"""

_WAIT = """\
# --- run; pass the signal on; wait ------------------------------------------------------------
# The ranks write what they have and leave with 6. Not in the first 15 s: one that is still
# starting would die of the signal.
trap 'while ((SECONDS < 15)); do sleep 1; done; kill -USR2 "$job"' USR2
"${launch[@]}" "${words[@]}" &
job=$!
while wait "$job" && code=0 || code=$?; ((code == 140)); do :; done   # 140: woken by the signal
"""

_REQUEUE = """\
# --- 6 is incomplete: this job again, later, with --resume. Not if it was cancelled. ----------
if ((code == 6 && ${SLURM_RESTART_COUNT:-0} < ${CM_MAX_RESTARTS:-20})) \\
    && [[ $(squeue -h -j "$SLURM_JOB_ID" -o %T | sort -u) == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID" \\
        || echo "no requeue here; go on with: CM_OUT=$out sbatch ..." >&2
fi
exit "$code"
"""

_OVERRIDES = """\
# What comes after the script's name goes to the command as it is, e.g. --scheme none.
# In front of sbatch CM_SHARDS, CM_SINGLE, CM_COLLAGE, CM_OUT (an earlier job's: go on), CM_SIDE,
# CM_SINGLES, CM_COLLAGE_RANKS, CM_LAUNCHER, CM_VENV=... replace what is below.
"""

RUN_ONE_NODE = """\
#!/bin/bash
# The job on one node: the ranks share its GPUs, several to each.
#
#   sbatch jobs/slurm/run_one_node.sbatch
#
@OVERRIDES@
#
# Takes images / (side * side) x the group latency; 10,000 images at 50 ms are a minute.
# Costs @COST@.
@DIRECTIVES@

set -euo pipefail

@SITE@

@WHAT_TO_RUN@

@LAUNCH@

@WAIT@

@REQUEUE@
"""

RUN_NODES = """\
#!/bin/bash
# The job on several nodes: rank 0 and the single ranks in order, the collage ranks last.
#
#   sbatch jobs/slurm/run_nodes.sbatch
#   CM_LAUNCHER=pmi2 sbatch jobs/slurm/run_nodes.sbatch --scheme none      # the baseline, MPICH
#
@OVERRIDES@
#
# Takes images / (side * side) x the group latency; 10,000 images at 50 ms are a minute.
# Costs @COST@.
@DIRECTIVES@

set -euo pipefail

@SITE@

@WHAT_TO_RUN@

@LAUNCH@

@WAIT@

@REQUEUE@
"""

RUN_HET = """\
#!/bin/bash
# The job in two parts: rank 0 on a CPU node, the ranks with networks on GPU nodes.
# The parts may be of different partitions: give each #SBATCH block its own --partition.
#
#   sbatch jobs/slurm/run_het.sbatch
#
@OVERRIDES@
#
# Takes images / (side * side) x the group latency; 10,000 images at 50 ms are a minute.
# Costs @COST@.
@DIRECTIVES@

set -euo pipefail

@SITE@

@WHAT_TO_RUN@

@LAUNCH_HET@

@WAIT@

@REQUEUE@
"""

PREPARE = """\
#!/bin/bash
# Shards from IDX files (MNIST, Fashion-MNIST): task 0 the training images, task 1 the test's.
#
#   sbatch jobs/slurm/prepare.sbatch                # -> data/fashion-mnist/train and test
#
# What comes after the script's name goes to `collage-mpi prep idx`, e.g. --limit 1000.
# In front of sbatch CM_IDX_DIR (the files), CM_DATA (the shards' folder), CM_CLASS_NAMES_FILE,
# CM_VENV=... replace what is below.
#
# Takes 2 seconds for 60,000 images of 28 x 28.
# Costs @COST@.
@DIRECTIVES@

set -euo pipefail

@SITE@

names=(train t10k)   # of the IDX files; as many as the array has tasks
folders=(train test)
name=${names[$SLURM_ARRAY_TASK_ID]}
folder=${CM_DATA:-data/fashion-mnist}/${folders[$SLURM_ARRAY_TASK_ID]}
idx=${CM_IDX_DIR:-/usr/share/datasets/fashion-mnist}

collage-mpi prep idx --images "$idx/$name-images-idx3-ubyte.gz" \\
    --labels "$idx/$name-labels-idx1-ubyte.gz" \\
    --class-names-file "${CM_CLASS_NAMES_FILE:-data_prep/fashion_classes.txt}" \\
    --source "$name images" --out "$folder" --prefix "$name" --overwrite "$@"
collage-mpi shards verify "$folder"
"""

TRAIN = """\
#!/bin/bash
# Both networks: task 0 the single classifier, task 1 the collage-CNN, a GPU a process.
#
#   sbatch jobs/slurm/train.sbatch                  # -> weights/single.safetensors, collage...
#
# What comes after the script's name goes to both, e.g. --epochs 3 (--batch is divisible by the
# processes). In front of sbatch CM_TRAIN_SHARDS, CM_WEIGHTS (folder), CM_SIDE, CM_PROCESSES,
# CM_DEVICE, CM_VENV=... replace what is below.
#
# Takes minutes for Fashion-MNIST on one GPU, half an hour on two cores. Stopped, it goes on
# from its checkpoint, which is at most a minute old.
# Costs @COST@.
@DIRECTIVES@

set -euo pipefail

@SITE@

kinds=(single collage)
kind=${kinds[$SLURM_ARRAY_TASK_ID]}
shards=${CM_TRAIN_SHARDS:-${CM_DATA:-data/fashion-mnist}/train}
weights=${CM_WEIGHTS:-weights}/$kind.safetensors
processes=${CM_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
device=${CM_DEVICE:-${SLURM_GPUS_ON_NODE:+cuda}}   # no GPUs in the job: cpu

launch=(torchrun --standalone --nproc-per-node="$processes" -m collage_mpi)
words=(train "$kind" --shards "$shards" --out "$weights" --device "${device:-cpu}"
    --threads $(((SLURM_CPUS_PER_TASK + processes - 1) / processes)))
if [[ $kind == collage ]]; then words+=(--side "${CM_SIDE:-@SIDE@}"); fi
words+=("$@")
if [[ ${SLURM_RESTART_COUNT:-0} -gt 0 && -e $weights.checkpoint ]]; then words+=(--resume); fi
mkdir -p "$(dirname "$weights")"
echo "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID: $processes processes," \\
    "collage-mpi ${words[*]}"

# --- run; on the signal end it and start this job again from the checkpoint -------------------
stopped=
trap 'stopped=yes; kill -TERM "$job"' USR2
"${launch[@]}" "${words[@]}" &
job=$!
while wait "$job" && code=0 || code=$?; ((code == 140)); do :; done   # 140: woken by the signal
if [[ -n $stopped ]] && ((code != 0)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""

ANALYSE = """\
#!/bin/bash
# Proof and figures of finished runs: verify, rows as CSV, latency CDFs in one picture.
#
#   sbatch jobs/slurm/analyse.sbatch runs/none runs/collage
#   sbatch --dependency=afterany:JOB jobs/slurm/analyse.sbatch runs/run_nodes-JOB
#
# afterany, not afterok: a run that is complete with error rows leaves with 5; this script
# itself refuses an incomplete one (6). In front of sbatch CM_EXPERIMENT=FILE adds the table of
# a sweep, whose folder is then the argument; CM_FIGURES (a stem), CM_VENV=... replace what is
# below.
#
# Takes seconds. Needs the extra collage-mpi[plot], and to be submitted from the project's folder.
# Costs @COST@.
@DIRECTIVES@

set -euo pipefail

@SITE@

if (($# == 0)); then
    echo "no runs given: sbatch jobs/slurm/analyse.sbatch RUN..." >&2
    exit 2
fi
figures=${CM_FIGURES:-figures/latency-$SLURM_JOB_ID}
mkdir -p "$(dirname "$figures")"

runs=("$@")
if [[ -n ${CM_EXPERIMENT:-} ]]; then
    collage-mpi experiment "$CM_EXPERIMENT" --table --out "$1"
    runs=("$1"/*/)
fi

collage-mpi verify "${runs[@]}"
for run in "${runs[@]}"; do collage-mpi export "$run" --to csv; done
collage-mpi plot cdf "${runs[@]}" --out "$figures"
"""

CHAIN = """\
#!/bin/bash
# The whole way as jobs that wait for each other; run it on the login node.
#
#   prepare (array) -> train (array) -> run without the collage, run with it -> analyse both
#
#   jobs/slurm/chain.sh                             # arguments go to both runs
#
# CM_PREPARE_ARGS, CM_TRAIN_ARGS, CM_FLAGS (of every sbatch) may hold more words; CM_DATA,
# CM_WEIGHTS, CM_RUNS (folders), CM_VENV, CM_LAUNCHER, ... are the jobs' own; SBATCH_ACCOUNT and
# SBATCH_PARTITION are read by sbatch and replace the scripts' <account> and <partition>.
# A job whose predecessor failed is removed; nothing waits for ever.
set -euo pipefail

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
none=$(CM_OUT=$runs/none submit --dependency="afterok:$train" "$here/run_nodes.sbatch" \\
    --scheme none "$@")
collage=$(CM_OUT=$runs/collage submit --dependency="afterok:$train" "$here/run_nodes.sbatch" "$@")
analyse=$(CM_FIGURES=$runs/latency submit --dependency="afterany:$none:$collage" \\
    "$here/analyse.sbatch" "$runs/none" "$runs/collage")

echo "prepare $prepare, train $train, run $none and $collage, analyse $analyse; in $runs"
echo "watch: squeue --me      stop: scancel $prepare $train $none $collage $analyse"
"""

SWEEP = """\
#!/bin/bash
# Many runs from one experiment file (docs/experiments.md): an array task a point of it.
#
#   collage-mpi experiment analysis/experiments/schemes_demo.toml --list    # index, name, ranks
#   sbatch --array=0-11 jobs/slurm/sweep.sbatch analysis/experiments/schemes_demo.toml
#   CM_EXPERIMENT=analysis/experiments/schemes_demo.toml sbatch --dependency=afterany:JOB \\
#       jobs/slurm/analyse.sbatch runs/sweep-JOB
#
# The second needs a slot for each rank of the largest point. In front of sbatch CM_OUT (an
# earlier sweep's: finished points are skipped, others go on), CM_LAUNCHER, CM_VENV=... replace
# what is below.
#
# Takes as long as its longest point, if all tasks run at once; the demo's points 20 seconds.
# Costs @COST@.
@DIRECTIVES@

set -euo pipefail

@SITE@

# --- what to run: the point of this task, with as many ranks as it needs ----------------------
file=${1:?the experiment file is missing: sbatch --array=0-11 sweep.sbatch FILE}
point=$SLURM_ARRAY_TASK_ID
out=${CM_OUT:-runs/sweep-$SLURM_ARRAY_JOB_ID}
ranks=$(collage-mpi experiment "$file" --list | awk -F'\\t' -v i="$point" '$1 == i {print $3}')
if [[ -z $ranks ]]; then
    echo "$file has no point $point; --array goes beyond its list" >&2
    exit 2
fi
words=(experiment "$file" --index "$point" --out "$out")   # it resumes by itself
mkdir -p "$out"
echo "start $((${SLURM_RESTART_COUNT:-0} + 1)) of point $point: $ranks ranks," \\
    "collage-mpi ${words[*]}"

@LAUNCH@

@WAIT@

@REQUEUE@
"""

_BLOCKS = {
    "SITE": _SITE,
    "OVERRIDES": _OVERRIDES,
    "WHAT_TO_RUN": _WHAT_TO_RUN + _RUN_WORDS,
    "LAUNCH": _LAUNCH,
    "LAUNCH_HET": _LAUNCH_HET,
    "WAIT": _WAIT,
    "REQUEUE": _REQUEUE,
}


def _whole(text: str) -> str:
    """A script with its blocks put in; a block stands on a line of its own."""
    for name, block in _BLOCKS.items():
        text = text.replace(f"@{name}@\n", block)
    return text


BODIES: dict[str, str] = {
    "prepare": _whole(PREPARE),
    "train": _whole(TRAIN),
    "run_one_node": _whole(RUN_ONE_NODE),
    "run_nodes": _whole(RUN_NODES),
    "run_het": _whole(RUN_HET),
    "sweep": _whole(SWEEP),
    "analyse": _whole(ANALYSE),
    "chain": CHAIN,
}
