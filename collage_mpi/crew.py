"""The workers as rank 0 sees them: start-up, measuring and the end, by control messages.

Owns: who has said hello, the bounds on waiting for it, telling all of them to stop.
Does not know: tasks, images, rows.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Hashable
from typing import Any

from collage_mpi import protocol as wire
from collage_mpi.errors import (
    CollageError,
    DataFault,
    EnvironmentFault,
    ExitCode,
    UsageError,
)
from collage_mpi.transport import CoordinatorTransport, Received
from collage_mpi.waiting import COORDINATOR_BACKOFF, Backoff

HELLO_LIMIT_S = 600.0  # loading weights from a cold, shared file system
MEASURE_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0  # a rank may be loading its weights, or in the midst of a network
MEASURE_ROUNDS = 5

_FAULTS = {error.exit_code: error for error in (UsageError, EnvironmentFault, DataFault)}


class Crew:
    """All worker ranks of the world, over one or several sessions."""

    def __init__(
        self,
        transport: CoordinatorTransport,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        """`clock` in seconds."""
        self.transport = transport
        self.session = 0
        self._clock = clock
        self._backoff = backoff or Backoff(COORDINATOR_BACKOFF)
        self._stopped = False
        self._measured: dict[Hashable, tuple[dict[str, int], float | None]] = {}

    @property
    def ranks(self) -> range:
        """Every rank but 0."""
        return range(1, self.transport.size)

    def welcome(
        self,
        contents: dict[int, dict[str, Any]],
        limit_s: float = HELLO_LIMIT_S,
        interrupted: Callable[[], str | None] = lambda: None,
    ) -> dict[int, dict[str, Any]]:
        """Begin a session: tell each rank what it is; their hellos, by rank.

        Raises:
            UsageError, EnvironmentFault, DataFault: what a rank could not do; with the
                rank and its host named.
        """
        self.session += 1
        base = {"what": "welcome", "host": socket.gethostname(), "pid": os.getpid()}
        for rank in self.ranks:
            self._tell(rank, {**base, **contents[rank]})
        return self._collect("hello", set(self.ranks), limit_s, interrupted)

    def measure(self, rank: int, kind: str) -> int:
        """Idle service time in ns of a kind's network on a rank, the others waiting."""
        self._tell(rank, {"what": "measure", "kind": kind})
        answers = self._collect("measured", {rank}, MEASURE_LIMIT_S, lambda: None)
        return int(answers[rank]["service_ns"])

    def service_times(
        self, who: dict[str, int], networks: Hashable
    ) -> tuple[dict[str, int], float | None]:
        """Idle service times by kind in ns, and the collage's over the single's.

        The kinds are measured in turn, MEASURE_ROUNDS times, and the shortest time of each
        is taken: other work on the host can only lengthen one (medians of a busy host gave
        ratios between 0.96 and 1.49 for networks whose ratio is 1.38). Sessions with the
        same networks share one measurement: their injected delays are then the same.

        Args:
            who: the rank to measure for each kind.
            networks: what they are, to know them again.
        """
        if networks not in self._measured:
            rounds = [
                {kind: self.measure(rank, kind) for kind, rank in who.items()}
                for _ in range(MEASURE_ROUNDS)
            ]
            services = {kind: min(r[kind] for r in rounds) for kind in who}
            both = "single" in who and "collage" in who
            ratio = services["collage"] / services["single"] if both else None
            self._measured[networks] = services, ratio
        return self._measured[networks]

    def start(self, cost_ratio: float) -> None:
        """Tasks will follow."""
        for rank in self.ranks:
            self._tell(rank, {"what": "start", "cost_ratio": cost_ratio})

    def end(self) -> None:
        """The session is over; another may follow."""
        for rank in self.ranks:
            self._tell(rank, {"what": "end"})

    def stop(self, exit_code: int, limit_s: float = STOP_LIMIT_S) -> list[int]:
        """Everybody ends with this exit code.

        Returns:
            The ranks that did not say that they end within limit_s: with one of them MPI
            itself could not end.
        """
        if self._stopped:
            return []
        self._stopped = True
        for rank in self.ranks:
            self._tell(rank, {"what": "stop", "exit_code": int(exit_code)})
        silent = set(self.ranks)
        self._gather("bye", silent, {}, limit_s, lambda: None)
        if silent:
            return sorted(silent)
        if not self.transport.flush(limit_s):
            return list(self.ranks)
        self.transport.close()
        return []

    def _tell(self, rank: int, content: dict[str, Any]) -> None:
        buffer = self.transport.buffer(wire.CONTROL_BYTES)
        nbytes = wire.pack_control(buffer, self.session, content)
        self.transport.send_control(rank, buffer, nbytes)

    def _collect(
        self,
        what: str,
        missing: set[int],
        limit_s: float,
        interrupted: Callable[[], str | None],
    ) -> dict[int, dict[str, Any]]:
        """One control message of the wanted sort from each rank in `missing`.

        Raises:
            CollageError: a rank's fault; EnvironmentFault when the time is over.
        """
        answers: dict[int, dict[str, Any]] = {}
        self._gather(what, missing, answers, limit_s, interrupted)
        if missing:
            names = ", ".join(map(str, sorted(missing)))
            raise EnvironmentFault(
                f"no {what} from rank(s) {names} within {limit_s:g} s; "
                "are their hosts up, and can they read the weights?"
            )
        return answers

    def _gather(
        self,
        what: str,
        missing: set[int],
        answers: dict[int, dict[str, Any]],
        limit_s: float,
        interrupted: Callable[[], str | None],
    ) -> None:
        """Move ranks from `missing` to `answers` until none is left or the time is over."""
        until_s = self._clock() + limit_s
        while missing and self._clock() <= until_s:
            found = [f for f in self.transport.poll() if isinstance(f, Received)]
            for arrival in found:
                content = self._content(arrival)
                if content is None:
                    continue
                if content["what"] == "fault" and not self._stopped:
                    raise _fault(arrival.rank, content)
                if content["what"] == what:
                    answers[arrival.rank] = content
                    missing.discard(arrival.rank)
            if found:
                self._backoff.reset()
            else:
                self._backoff.pause()
            reason = interrupted()
            if reason is not None:
                raise _Interrupted(reason)

    def _content(self, arrival: Received) -> dict[str, Any] | None:
        """A control message of this session; anything else is a late answer."""
        header = wire.read_header(arrival.message)
        if header["session"] != self.session or header["type"] != wire.CONTROL:
            return None
        return wire.unpack_control(arrival.message)


class _Interrupted(CollageError):
    """A signal came before the job had begun."""

    exit_code = ExitCode.INCOMPLETE


def _fault(rank: int, content: dict[str, Any]) -> CollageError:
    error = _FAULTS.get(ExitCode(content["exit_code"]), EnvironmentFault)
    return error(f"rank {rank}: {content['message']}")
