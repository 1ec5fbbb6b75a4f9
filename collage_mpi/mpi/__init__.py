"""The messages between ranks, and their transport over MPI."""
