#!/bin/sh
# Between MPICH's proxy and one rank, so that the rank's death is not the job's:
#   mpiexec -disable-auto-cleanup -n 11 sh mpich_rank.sh collage-mpi run ...
# The proxy ends all ranks when a child of its own dies by a signal; this child always ends
# by itself, with rank 0's code or with 0. The proxy tells of deaths by SIGUSR1, which would
# end a rank. A stop goes to the rank as well; the shell waits for it.
trap '' USR1
trap : TERM INT USR2
COLLAGE_MPI_FAULT_TOLERANT=1 "$@"
code=$?
[ "${PMI_RANK:-1}" = 0 ] && exit "$code"
exit 0
