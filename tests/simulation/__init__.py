"""A whole job in one process: the package as it is, on simulated processes, MPI, clocks, disk."""
