# --- how ranks are started: pmix is Open MPI's, pmi2 is MPICH's and Intel MPI's ---------------
# --wait: a rank that dies alone ends the job, a minute later. --kill-on-bad-exit=1 would do it at
# once, but also kill ranks that are just leaving in good order, with 6.
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
export OMPI_MCA_mpi_yield_when_idle=1   # Open MPI's ranks would spin, and starve the others
launcher=${CM_LAUNCHER:-{{ s.launcher }}}
case $launcher in
    pmix | pmi2)
        launch=(srun --mpi="$launcher" --ntasks="$ranks" --kill-on-bad-exit=0 --wait=60
            collage-mpi) ;;
    mpiexec) launch=(collage-mpi launch -n "$ranks" --) ;;
    *)
        echo "CM_LAUNCHER is $launcher; known are: pmix, pmi2, mpiexec" >&2
        exit 2 ;;
esac
