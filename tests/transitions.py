"""Notes which transitions of the tables of states a test takes."""

from __future__ import annotations

import pytest

from collage_mpi.core.states import Moves


def note_transitions(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """The set of (state, event) that grows with each transition from now on."""
    taken = set()

    def look_up(moves: Moves, event: str) -> str:
        taken.add((moves.state, event))
        return moves.get(event) or moves.__missing__(event)

    monkeypatch.setattr(Moves, "__getitem__", look_up, raising=False)
    return taken
