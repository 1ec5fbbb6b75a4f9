#!/bin/sh
# Between the launcher and one rank of `collage-mpi launch`, where lost ranks end the job:
#   mpiexec -n 11 sh watch.sh collage-mpi run ...
# It tells launch that its rank has ended, and ends in the same way. MPICH's launcher makes nothing
# of a rank that leaves with an error before MPI is up: all other ranks would wait for that rank.
# A stop goes to the rank as well; the shell waits for it.
trap : HUP INT TERM USR1 USR2
exec 3>&2 2>/dev/null   # a shell says "Killed" where launch says more
(exec "$@" 2>&3 3>&-)
code=$?
rank=${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-${PALS_RANKID:-0}}}
[ -n "$COLLAGE_MPI_STATUS" ] &&
    echo "@status:$COLLAGE_MPI_STATUS {\"ended\": $rank, \"code\": $code}" >&3
if [ "$code" -gt 128 ]; then
    # shellcheck disable=SC3045  # dash and bash have it
    ulimit -c 0   # the rank has left its core, if any
    trap - HUP INT TERM USR1 USR2
    kill "-$((code - 128))" $$
fi
# When a rank leaves with an error, MPICH's launcher ends the others as soon as the connection of that
# rank closes. If the launcher finds the ended process first, the others go on. The word above wakes
# the launcher, so this process must outlast that look.
[ "$code" -gt 0 ] && [ -n "$PMI_FD" ] && { sleep 0.2 || sleep 1; }
exit "$code"
