"""The core: which rank gets which images, and which answer is each image's outcome.

It is pure. `Core.step(now_ns, events)` returns the actions that a driver carries out: over MPI, or
on virtual time. docs/architecture.md lists its invariants.
"""

from collage_mpi.core.core import Core, ProtocolViolation
from collage_mpi.core.schemes import make_scheme, scheme_class
from collage_mpi.core.table import Table

__all__ = ["Core", "ProtocolViolation", "Table", "make_scheme", "scheme_class"]
