# --- what to run: set these in front of sbatch, or here ---------------------------------------
shards=${CM_SHARDS:-${CM_DATA:+$CM_DATA/test}}
single=${CM_SINGLE:-${CM_WEIGHTS:+$CM_WEIGHTS/single.safetensors}}
collage=${CM_COLLAGE:-${CM_WEIGHTS:+$CM_WEIGHTS/collage.safetensors}}   # not every scheme has one
if [[ -z $shards || -z $single ]]; then
    echo "no input: set CM_SHARDS and CM_SINGLE, or CM_DATA and CM_WEIGHTS, in front of sbatch" >&2
    exit 2
fi
{% if not het %}

{% include "stage.sh" %}

{% endif %}
out=${CM_OUT:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}   # a requeued job keeps its number
side=${CM_SIDE:-{{ s.side }}}
singles=${CM_SINGLES:-{{ "$((side * side))" if s.singles is none else s.singles }}}
collage_ranks=${CM_COLLAGE_RANKS:-{{ s.collage_ranks }}}
ranks=$(({{ "teams * (1 + singles + collage_ranks)" if teamed else "1 + singles + collage_ranks" }}))   # rank 0 coordinates
# --resume begins the run, or goes on with it: requeued, or CM_OUT of an earlier job.
words=(run --resume --shards "$shards" --single "$single" ${collage:+--collage "$collage"}
    --out "$out" --side "$side" --singles "$singles" --collage-ranks "$collage_ranks" "$@")
mkdir -p "$(dirname "$out")"
echo "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID: $ranks ranks," \
    "collage-mpi ${words[*]}"
