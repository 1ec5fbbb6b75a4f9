"""Finds what keeps a job from starting here, and says what to type.

`examine` looks at this host, judges what it finds, and starts two ranks. Nothing heavy is imported:
the doctor works if torch, h5py or mpi4py are missing or broken, and says so.
"""
