"""One module a command; `collage_mpi.cli` imports only the one that is asked for.

Each has `add_arguments(parser)` and `execute(args) -> int` (an exit code), and
imports what is heavy (torch, h5py, MPI) inside `execute`, so that `--help`
answers at once.
"""
