"""A TCP connection between rank 0 and each worker that carries nothing but its own end.

Owns: the listening socket, the addresses it is offered under, the greeting, keep-alive.
Does not know: MPI, what a rank does, what follows from a loss.

The kernel closes a dead process's sockets at once, whatever killed it, and keeps those of
a process that is merely busy: so a rank 0 that reads, pastes or waits for a disk is not
taken for a lost one, and no thread or message is needed to prove that it lives. A host
that vanishes is noticed by keep-alive after KEEP_IDLE_S + KEEP_PROBES * KEEP_EVERY_S = 20 s.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import struct
from collections.abc import Mapping
from typing import Any

KEEP_IDLE_S, KEEP_EVERY_S, KEEP_PROBES = 5, 5, 3
CONNECT_LIMIT_S = 5.0  # for each address
GREETING_BYTES = 2048  # at most; it comes in one piece, being far shorter than a segment
ANY_IPV4 = "0.0.0.0"
_SIOCGIFADDR = 0x8915


class Lifeline:
    """Rank 0's listening socket.

    Args:
        size: ranks that will connect.
        one_host: whether all of them are on this host; then nobody else can connect.
    """

    def __init__(self, size: int, *, one_host: bool) -> None:
        self.token = secrets.token_hex(16)
        self.listener = socket.create_server(
            ("127.0.0.1" if one_host else ANY_IPV4, 0), backlog=max(16, size)
        )
        self.listener.setblocking(False)
        self._one_host = one_host

    def offer(self) -> dict[str, Any]:
        """What a worker needs to connect; it travels over MPI."""
        addresses = ["127.0.0.1"] if self._one_host else _own_addresses()
        port = self.listener.getsockname()[1]
        return {"addresses": addresses, "port": port, "token": self.token}

    def accept(self) -> socket.socket | None:
        """A new connection, not yet greeted, or None."""
        try:
            line, _ = self.listener.accept()
        except OSError:  # nobody there any more, or no descriptor left
            return None
        line.setblocking(False)
        _keep_alive(line)
        return line

    def greeted(self, line: socket.socket) -> dict[str, Any] | None:
        """Who has connected, read from a readable line; None when it is none of ours."""
        try:
            content = json.loads(line.recv(GREETING_BYTES))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict):
            return None
        ours = hmac.compare_digest(str(content.get("token")).encode(), self.token.encode())
        return content if ours and type(content.get("rank")) is int else None

    def close(self) -> None:
        """Take no more connections."""
        self.listener.close()


def connect(offer: Mapping[str, Any], greeting: Mapping[str, Any]) -> socket.socket | None:
    """A worker's end: the first address that answers, greeted; None when none does."""
    message = json.dumps({**greeting, "token": offer["token"]}).encode()
    for address in offer["addresses"]:
        try:
            line = socket.create_connection((address, offer["port"]), timeout=CONNECT_LIMIT_S)
            line.sendall(message)
        except OSError:
            continue
        line.settimeout(None)
        _keep_alive(line)
        return line
    return None


def ended(line: socket.socket) -> bool:
    """Whether the other end of a readable line has gone."""
    try:
        return not line.recv(GREETING_BYTES, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:  # reset, or keep-alive gave up
        return True


def _keep_alive(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEP_IDLE_S),
        ("TCP_KEEPINTVL", KEEP_EVERY_S),
        ("TCP_KEEPCNT", KEEP_PROBES),
    ):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _own_addresses() -> list[str]:
    """This host's name, then the IPv4 address of each of its interfaces but loopback."""
    import fcntl

    found = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # down, or without an IPv4 address
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                found.append(address)
    return found
