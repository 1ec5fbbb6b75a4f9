# --wait: a rank that dies alone ends the job a minute later.
export OMPI_MCA_mpi_yield_when_idle=1   # Open MPI's ranks would spin, and starve the others
launcher=${CM_LAUNCHER:-{{ s.launcher }}}
case $launcher in
    pmix | pmi2) srun=(srun --mpi="$launcher" --kill-on-bad-exit=0 --wait=60) ;;
    *)
        echo "CM_LAUNCHER is $launcher; known are: pmix, pmi2 (mpiexec sees one part only)" >&2
        exit 2 ;;
esac
