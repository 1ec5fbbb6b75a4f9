"""The core: which rank gets which images, and which answer is each image's outcome.

It is pure. `Core.step(now_ns, events)` returns the actions that a driver carries out: over MPI, or
on virtual time. docs/architecture.md lists its invariants.
"""
