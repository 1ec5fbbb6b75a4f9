"""What keeps a job from starting here, and what to type about it.

Facts are gathered in one place (gather, probe, ranks) and judged in another (checks_*),
so that every fault can be judged without having it. Nothing heavy is imported: the doctor
works where torch, h5py or mpi4py are missing or broken, and says so.
"""
