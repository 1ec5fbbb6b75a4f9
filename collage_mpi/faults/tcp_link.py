"""A TCP connection between a coordinator and each worker, whose end shows that a process has ended.

Nothing is sent after the greeting. The kernel closes the sockets of a dead process at once,
whatever killed it, but not those of a process that is only busy. So no thread or message is needed
as a heartbeat. The kernel's keep-alive notices a host that disappears after 18 to 20 s. A network
that comes back within 15 s closes no connection.
"""

from __future__ import annotations

import errno
import hmac
import json
import secrets
import socket
import struct
from dataclasses import asdict, dataclass

from collage_mpi.system.process_tree import ProcessId
from collage_mpi.system.records import read_json

KEEP_IDLE_S, KEEP_EVERY_S, KEEP_PROBES = 2, 1, 18
CONNECT_LIMIT_S = 5.0  # for each address
GREETING_BYTES = 2048  # longest greeting; it comes in one piece, as it is shorter than a segment
LOOPBACK, ANY_IPV4 = "127.0.0.1", "0.0.0.0"
FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # the connection has to wait
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Offer:
    """What a worker needs to connect; sent over MPI."""

    addresses: tuple[str, ...]
    port: int
    token: str


@dataclass(frozen=True)
class Greeting:
    """What a worker says of itself. It has no process if its system does not tell."""

    token: str
    rank: int
    process: ProcessId | None = None


class TcpLink:
    """Rank 0's listening socket.

    Args:
        size: ranks that will connect.
        one_host: whether all ranks are on this host; then no other host can connect.
        interface: the network device by which all hosts reach this one, if known; otherwise
            connections are accepted on all devices.
    """

    def __init__(self, size: int, *, one_host: bool, interface: str | None = None) -> None:
        self.token = secrets.token_hex(16)
        told = None if interface is None else _address_of(interface)
        address = LOOPBACK if one_host else (told or ANY_IPV4)
        self.listener = socket.create_server((address, 0), backlog=max(16, size))
        self.listener.setblocking(False)

    def offer(self) -> Offer:
        """What the workers must know to connect."""
        address, port = self.listener.getsockname()
        addresses = _own_addresses() if address == ANY_IPV4 else [address]
        return Offer(tuple(addresses), port, self.token)

    def accept(self) -> socket.socket | None:
        """A new connection that has not greeted yet, or None.

        Raises:
            OSError: one of FULL; the connection attempt stays pending.
        """
        try:
            line, _ = self.listener.accept()
        except OSError as error:
            if error.errno in FULL:
                raise
            return None  # the other end has closed it
        line.setblocking(False)
        _keep_alive(line)
        return line

    def greeted(self, line: socket.socket) -> Greeting | None:
        """The greeting of a new connection; None if it is not from a rank of this job."""
        try:
            return read_greeting(line.recv(GREETING_BYTES), self.token)
        except OSError:
            return None

    def close(self) -> None:
        """Accept no more connections."""
        self.listener.close()


def read_greeting(data: bytes, token: str) -> Greeting | None:
    """The greeting of a worker that knows the token; None for any other bytes."""
    try:
        said = read_json(Greeting, data)
    except ValueError:
        return None
    return said if hmac.compare_digest(said.token.encode(), token.encode()) else None


def connect(offer: Offer, rank: int, process: ProcessId | None) -> socket.socket | None:
    """Connect to the first address that answers, and greet it; None if none answers.

    Args:
        offer: of the coordinator.
        rank, process: of this worker; see `Greeting`.
    """
    message = json.dumps(asdict(Greeting(offer.token, rank, process))).encode()
    for address in offer.addresses:
        try:
            line = socket.create_connection((address, offer.port), timeout=CONNECT_LIMIT_S)
            line.sendall(message)
        except OSError:
            continue
        line.settimeout(None)
        _keep_alive(line)
        return line
    return None


def ended(line: socket.socket) -> bool:
    """Whether the other end of a readable connection has been closed."""
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
    """This host's name, then the IPv4 address of each of its interfaces except loopback."""
    addresses = (_address_of(name) for _, name in socket.if_nameindex())
    return [socket.gethostname(), *(address for address in addresses if address is not None)]


def _address_of(interface: str) -> str | None:
    """The IPv4 address of a device; None for loopback, or if it is down, missing or has none."""
    import fcntl

    request = struct.pack("256s", interface.encode(errors="replace")[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    address = socket.inet_ntoa(answer[20:24])
    return None if address.startswith("127.") else address
