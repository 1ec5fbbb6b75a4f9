# --- one world over all parts: pmix is Open MPI's, pmi2 is MPICH's and Intel MPI's ------------
{% include "srun_het.sh" %}
launch=("${srun[@]}")
for ((part = 0; part < SLURM_HET_SIZE; part++)); do
    ((part == 0)) || launch+=("${words[@]}" :)   # of the part before; the last part's come below
    tasks=1
    ((part % 2 == 0)) || tasks=$((ranks / teams - 1))
    cores=SLURM_CPUS_PER_TASK_HET_GROUP_$part
    launch+=(--het-group="$part" --ntasks="$tasks" --cpus-per-task="${!cores}" collage-mpi)
done
