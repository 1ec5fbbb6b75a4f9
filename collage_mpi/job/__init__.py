"""The job on its ranks: rank 0 and the workers."""
