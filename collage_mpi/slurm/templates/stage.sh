# --- staging: CM_STAGE=/dev/shm, or a node's own disk, has the input on each node first --------
# Slurm sends each file once, from node to node; each node compares the checksums. The manifest
# names the copies, which are removed at the end: show images with `report --shards DIR`.
if [[ -n ${CM_STAGE:-} ]]; then
    stage=$CM_STAGE/collage-mpi-$SLURM_JOB_ID
    nodes=(srun --mpi=none --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
    "${nodes[@]}" mkdir -p "$stage"
    trap '"${nodes[@]}" rm -rf "$stage"' EXIT
    sums=
    staged() {   # staged FILE...: copies; leaves a line of checksum and name for each in $sums
        local file
        for file in "$@"; do
            sbcast --force --preserve "$file" "$stage/${file##*/}"
            sums+=$(cd "$(dirname "$file")" && sha256sum "${file##*/}")$'\n'
        done
    }
    if [[ -d $shards ]]; then staged "$shards"/*.h5*; fi
    if [[ -f $shards ]]; then staged "$shards"; fi
    if [[ -e $shards ]]; then shards=$stage; fi   # shipped:NAME is on every node
    if [[ -f $single ]]; then staged "$single" && single=$stage/${single##*/}; fi
    if [[ -f $collage ]]; then staged "$collage" && collage=$stage/${collage##*/}; fi
    printf '%s' "$sums" >"$stage/sums"
    sbcast --force "$stage/sums" "$stage/sums.all"
    "${nodes[@]}" sh -c "cd '$stage' && sha256sum --check --quiet --strict sums.all"
    set -- --pixels auto "$@"   # ranks read their node's copy
    echo "staged to $stage on $SLURM_JOB_NUM_NODES nodes"
fi
