# --- run; pass the signal on; wait ------------------------------------------------------------
# The ranks write what they have and leave with 6. Not in the first 15 s: one that is still
# starting would die of the signal.
trap 'while ((SECONDS < 15)); do sleep 1; done; kill -USR2 "$job"' USR2
"${launch[@]}" "${words[@]}" &
job=$!
while wait "$job" && code=0 || code=$?; ((code == 140)); do :; done   # 140: woken by the signal

# --- 6 is incomplete: this job again, later. Not if it was cancelled. ----------
if ((code == 6 && ${SLURM_RESTART_COUNT:-0} < ${CM_MAX_RESTARTS:-20})) \
    && [[ $(squeue -h -j "$SLURM_JOB_ID" -o %T | sort -u) == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID" \
        || echo "no requeue here; go on with: {{ "the same sbatch" if kind == "classify" else "CM_OUT=$out sbatch ..." }}" >&2
fi
exit "$code"
