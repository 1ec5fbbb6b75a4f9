# --- 6 is incomplete: this job again, later, with --resume. Not if it was cancelled. ----------
if ((code == 6 && ${SLURM_RESTART_COUNT:-0} < ${CM_MAX_RESTARTS:-20})) \
    && [[ $(squeue -h -j "$SLURM_JOB_ID" -o %T | sort -u) == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID" \
        || echo "no requeue here; go on with: {{ "the same sbatch" if kind == "classify" else "CM_OUT=$out sbatch ..." }}" >&2
fi
exit "$code"
