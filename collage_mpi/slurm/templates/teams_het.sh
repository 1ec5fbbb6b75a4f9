# --- teams: a part of one rank, which coordinates, and a part of N + M ranks, in turn ---------
teams=$((SLURM_HET_SIZE / 2))
set -- --teams "$teams" "$@"
