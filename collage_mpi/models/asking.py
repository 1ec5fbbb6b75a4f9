"""Describes a network of another library or of the user, by loading it and letting it answer noise
in a child process (`models.asked`), because a damaged file can crash the library.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import urllib.request
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.models.info import Declared, Geometry, NetworkInfo, own_info
from collage_mpi.models.named import OFFLINE, NotInCache
from collage_mpi.system.environment import without_rank
from collage_mpi.system.forked import of_server
from collage_mpi.system.process_tree import ask_apart, own_command
from collage_mpi.system.records import read_record
from collage_mpi.system.tell import tell

ADDRESS = ("HF_ENDPOINT", "https://huggingface.co")  # the variable that names another hub
REACH_S = 5.0  # a name server that does not answer takes longer
PORTS = {"http": 80, "https": 443}


def require_hub(spec: str) -> None:
    """Raise NotInCache unless the hub, or the proxy on the way to it, accepts a connection."""
    address = os.environ.get(*ADDRESS) or ADDRESS[1]
    why = _why_unreachable(address)
    if why:
        raise NotInCache(
            f"{spec} is not in the cache of this host (HF_HOME), and its hub {address} cannot be "
            f"reached: {why}. Random weights are never used. {fetch_advice(spec)}"
        )


def fetch_advice(spec: str) -> str:
    """How a cache is filled from another host."""
    return (
        f"On a host that reaches the hub, such as a login node, `collage-mpi weights fetch {spec}` "
        "fills the cache; HF_HOME must name the same shared folder on both hosts"
    )


def _why_unreachable(address: str) -> str | None:
    """Why no connection comes about; None if one does."""
    parts = urlsplit(address)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    found: list[str | None] = []

    def connect() -> None:
        try:
            place = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 443)
            socket.create_connection(place, REACH_S).close()
            found.append(None)
        except (OSError, ValueError) as error:
            found.append(str(error))

    trial = threading.Thread(target=connect, daemon=True)  # looking up a name has no time limit
    trial.start()
    trial.join(REACH_S)
    return found[0] if found else f"no answer within {REACH_S:g} s"


CHILD_COMMAND = own_command("collage_mpi.models.asked")
LIMIT_S = 1_800.0  # enough to download gigabytes


@dataclass(frozen=True)
class Described:
    """The description of a network, from the child process.

    Attributes:
        classes: number of classes.
        resize_px, filter: see `Declared`.
    """

    info: NetworkInfo
    classes: int
    resize_px: int | None
    filter: str | None = None


@lru_cache(maxsize=32)
def ask(spec: str, kind: str, geometry: Geometry, trusted: str = "") -> Described:
    """Load a foreign network in a child process, let it answer noise, and describe it.

    The library first reads only its cache, then asks its hub. So one process downloads the network,
    and other processes find it in the cache.

    Args:
        trusted: which networks that are programs may run: the setting trust_network.

    Raises:
        UsageError, EnvironmentFault, DataFault: the network cannot be used.
    """
    request = {"spec": spec, "kind": kind, "geometry": asdict(geometry), "trusted": trusted}
    told = _child(request, {**os.environ, OFFLINE: os.environ.get(OFFLINE, "1")})
    if told.get("fault") == NotInCache.__name__ and OFFLINE not in os.environ:
        require_hub(spec)
        tell(f"{spec} is not in the cache of its library: its hub is asked")
        told = _child(request, dict(os.environ))
    if "fault" in told:
        faults = (UsageError, EnvironmentFault, DataFault, NotInCache)
        raise next(f for f in faults if f.__name__ == told["fault"])(told["message"])
    facts = read_record(Declared, told["facts"])
    known = replace(geometry, image_shape=facts.shape or geometry.image_shape)
    info = replace(
        own_info(spec, kind, known, told["fingerprint"], facts),
        class_names=facts.class_names or (),
    )
    return Described(info, told["classes"], facts.resize_px, facts.filter)


def _child(request: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """The answer of the child process; a fault if the process died."""
    environment = {**without_rank(environment), **of_server}
    with tempfile.TemporaryDirectory() as folder:
        environment["TMPDIR"] = folder
        said = ask_apart(CHILD_COMMAND, request, LIMIT_S, environment)
    if said.code is None:
        message = f"{request['spec']}: it was not loaded within {LIMIT_S:,.0f} s"
        return {"fault": EnvironmentFault.__name__, "message": message}
    try:
        return json.loads(said.lines[-1])
    except (ValueError, IndexError):
        message = (
            f"{request['spec']}: loading it ended a process with exit code {said.code} "
            f"({said.last_word[:200] or 'no message'}): the file is damaged, or its library is"
        )
        return {"fault": DataFault.__name__, "message": message}
