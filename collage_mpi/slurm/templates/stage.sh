# --- staging: CM_STAGE=/dev/shm, or a node's own disk, has the input on each node first --------
# Slurm sends each file once, from node to node; each node compares the checksums. The manifest
# names the copies, which are removed at the end: show images with `report --shards DIR`.
if [[ -n ${CM_STAGE:-} ]]; then
    stage=$CM_STAGE/collage-mpi-$SLURM_JOB_ID
    nodes=(srun --mpi=none --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
    "${nodes[@]}" mkdir -p "$stage/single" "$stage/collage"   # files that may have one name
    trap '"${nodes[@]}" rm -rf "$stage"' EXIT
    sums=
    staged() {   # staged FOLDER FILE...: copies; leaves checksum and name of each in $sums
        local file
        for file in "${@:2}"; do
            sbcast --force --preserve "$file" "$stage/$1/${file##*/}"
            sums+="$(sha256sum <"$file" | cut -d ' ' -f 1)  $1/${file##*/}"$'\n'
        done
    }
    if [[ -d $shards ]] && ! compgen -G "$shards/*.h5" >/dev/null; then
        echo "CM_STAGE copies files, and $shards is a folder without *.h5: make shards of it" \
            "(collage-mpi prep), name a tar or Parquet file, or leave CM_STAGE out" >&2
        exit 2
    fi
    if [[ -d $shards ]]; then
        staged . "$shards"/*.h5* && shards=$stage
    elif [[ -f $shards ]]; then
        staged . "$shards" && shards=$stage/${shards##*/}
    fi   # shipped:NAME is on every node
    if [[ -f $single ]]; then
        staged single "$single" && single=$stage/single/${single##*/}
    fi
    if [[ -f $collage ]]; then
        staged collage "$collage" && collage=$stage/collage/${collage##*/}
    fi
    printf '%s' "$sums" >"$stage/sums"
    sbcast --force "$stage/sums" "$stage/sums.all"
    "${nodes[@]}" sh -c "cd '$stage' && sha256sum --check --quiet --strict sums.all"
    set -- --pixels auto "$@"   # ranks read their node's copy
    echo "staged to $stage on $SLURM_JOB_NUM_NODES nodes"
fi
