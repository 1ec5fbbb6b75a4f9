"""The pure scheduler: events in, actions out.

Owns: who is sent what, which answer resolves which image, timers, credit, lost
ranks. Both the MPI coordinator and the simulator drive this same code.
"""

from collage_mpi.scheduler.core import Scheduler
from collage_mpi.scheduler.policies import (
    AcceptPolicy,
    Confident,
    First,
    Grace,
)
from collage_mpi.scheduler.schemes import Scheme, SchemeSettings, make_scheme
from collage_mpi.scheduler.settings import SchedulerSettings, batch_factor

__all__ = [
    "AcceptPolicy",
    "Confident",
    "First",
    "Grace",
    "Scheduler",
    "SchedulerSettings",
    "Scheme",
    "SchemeSettings",
    "batch_factor",
    "make_scheme",
]
