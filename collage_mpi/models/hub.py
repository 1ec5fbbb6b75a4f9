"""Whether the hub of networks can be reached from this host, known within seconds.

The libraries try again and again, for two minutes, before they say so.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from urllib.parse import urlsplit

from collage_mpi.models.named import NotInCache

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
