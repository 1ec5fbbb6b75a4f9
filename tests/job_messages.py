"""Sound control messages, for what several rings of tests need of them."""

from __future__ import annotations

from collage_mpi.encoding.vectors import Extras
from collage_mpi.job.messages import Hello, Welcome
from collage_mpi.models.info import PLAIN, Geometry, Loading

WELCOME = Welcome(
    networks={},
    how=Loading(tuning=PLAIN),
    geometry=Geometry((4, 4, 1), side=2, cell_px=4, classes=10),
    credit=2,
    batch=1,
    extras=Extras(top_k=None, save="none"),
    fit=None,
    must_read=True,
    ranks=3,
)
HELLO = Hello(
    host="node1",
    pid=40,
    kinds=("single",),
    devices=("cpu",),
    tuning={"single": "float32, channels-last"},
    fingerprints={"single": "b" * 64},
    service_ns={"single": 1_000_000},
    longest_ns=1_000_000,
    classes={"single": 10},
    columns=(),
    cannot_read="",
)
