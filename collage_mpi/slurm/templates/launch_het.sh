# --- one world over both parts: pmix is Open MPI's, pmi2 is MPICH's and Intel MPI's -----------
{% include "srun_het.sh" %}
launch=("${srun[@]}"
    --het-group=0 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK_HET_GROUP_0"
    collage-mpi "${words[@]}" :
    --het-group=1 --ntasks=$((ranks - 1)) --cpus-per-task="$SLURM_CPUS_PER_TASK_HET_GROUP_1"
    collage-mpi)   # and the words once more
