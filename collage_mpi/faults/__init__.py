"""Detection of lost ranks, in several layers."""
