# --- what to run: set these in front of sbatch, or here ---------------------------------------
shards=${CM_SHARDS:-${CM_DATA:-data/fashion-mnist}/test}
single=${CM_SINGLE:-${CM_WEIGHTS:-weights}/single.safetensors}
collage=${CM_COLLAGE:-${CM_WEIGHTS:-weights}/collage.safetensors}
out=${CM_OUT:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}   # a requeued job keeps its number
side=${CM_SIDE:-{{ s.side }}}
singles=${CM_SINGLES:-{{ "$((side * side))" if s.singles is none else s.singles }}}
collage_ranks=${CM_COLLAGE_RANKS:-{{ s.collage_ranks }}}
ranks=$(({{ "teams * (1 + singles + collage_ranks)" if teamed else "1 + singles + collage_ranks" }}))   # rank 0 coordinates
# --resume begins the run, or goes on with it: requeued, or CM_OUT of an earlier job.
words=(run --resume --shards "$shards" --single "$single" --collage "$collage" --out "$out"
    --side "$side" --singles "$singles" --collage-ranks "$collage_ranks" "$@")
mkdir -p "$(dirname "$out")"
echo "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID: $ranks ranks," \
    "collage-mpi ${words[*]}"
