#!/bin/sh
# Between the launcher and one rank, so that the rank's death is not the job's:
#   mpiexec -disable-auto-cleanup -n 11 sh rank.sh collage-mpi run ...     MPICH
#   mpirun --with-ft ulfm -n 11 sh rank.sh collage-mpi run ...             Open MPI
# MPICH's proxy ends all ranks when a child of its own dies by a signal, whatever its options say.
# So a worker's child ends at once, with 0, and leaves its rank to a shell that the proxy does not
# know; the proxy waits for the ranks' output to close. Rank 0 stays its child, for the exit code.
# The proxy tells of deaths by SIGUSR1, which would end a rank. Open MPI's daemon tells the others
# of a child that dies by a signal, so that this one does as its rank did. A stop goes to the rank
# as well; the shell waits for it.
# Before MPI is up nobody else can tell that a rank has ended: `collage-mpi launch` is told.
trap '' USR1
run() {
    trap : TERM INT USR2
    COLLAGE_MPI_FAULT_TOLERANT=1 "$@"
    code=$?
    rank=${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}}
    [ -n "$COLLAGE_MPI_STATUS" ] &&
        echo "@status:$COLLAGE_MPI_STATUS {\"ended\": $rank, \"code\": $code}" >&2
    return "$code"
}
if [ "${PMI_RANK:-0}" != 0 ]; then
    run "$@" &
    exit 0
fi
run "$@"
code=$?
[ -z "$PMI_RANK" ] && [ "$code" -gt 128 ] && kill -KILL $$
# Where all others have left with another code than 0, Open MPI's daemon kills rank 0, which may not
# have said its own yet.
[ "${OMPI_COMM_WORLD_RANK:-0}" = 0 ] || exit 0
exit "$code"
