"""Finds what keeps a job from starting here, and says what to type.

Facts are gathered in some modules (gather, probe, ranks) and judged in others (checks_*), so that
the judgement of every fault can be tested without the fault. Nothing heavy is imported: the doctor
works if torch, h5py or mpi4py are missing or broken, and says so.
"""
