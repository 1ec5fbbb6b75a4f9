"""The pure scheduler: events in, actions out. The coordinator and the simulator drive this code."""

from collage_mpi.scheduler.core import Scheduler
from collage_mpi.scheduler.policies import (
    AcceptPolicy,
    Confident,
    First,
)
from collage_mpi.scheduler.schemes import Scheme, SchemeSettings, make_scheme
from collage_mpi.scheduler.settings import SchedulerSettings, batch_factor

__all__ = [
    "AcceptPolicy",
    "Confident",
    "First",
    "Scheduler",
    "SchedulerSettings",
    "Scheme",
    "SchemeSettings",
    "batch_factor",
    "make_scheme",
]
