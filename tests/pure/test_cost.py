"""The node-hours of a run whose sessions ran on several hosts, at once or one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hand_made import hand_made

from collage_mpi.errors import DataFault
from collage_mpi.results import read_results, render_summary, summarise
from collage_mpi.results.manifest import read_manifest, write_manifest
from collage_mpi.results.render import cost_text


def summary(
    tmp_path: Path, *sessions: tuple[float, str], last: int = 0, launches: Any = None
) -> dict[str, Any]:
    """Of a run with these sessions: seconds, and the hosts of its ranks.

    Args:
        last: number of the last session, which recorded nothing if it is beyond `sessions`.
        launches: the sessions of each launch, if they ran at once.
    """
    run = read_results(hand_made(tmp_path / "run", collage=False))
    run.manifest["sessions"] = [
        {"session": i, "final": {"seconds": seconds, "world": [{"host": h} for h in hosts.split()]}}
        for i, (seconds, hosts) in enumerate(sessions, 1)
    ]
    run.manifest["session"] = last or len(sessions)
    if launches:
        run.manifest.update(launches=launches, session=1, teams=len(sessions))
    return summarise(run)


def test_sessions_add_up_and_every_host_of_a_session_counts(tmp_path: Path) -> None:
    found = summary(tmp_path, (1800, "a"), (1800, "a b b"))
    assert found["cost"]["node_hours"] == 1.5
    assert cost_text(found["cost"]) == "1.5 node-hours on 2 hosts, all sessions"
    assert "1.5 node-hours" in " ".join(render_summary(found).split())


def test_a_killed_session_is_not_counted_and_told(tmp_path: Path) -> None:
    found = summary(tmp_path, (3600, "a"), last=2)
    assert "on 1 host, 1 of 2 sessions; the others recorded nothing" in cost_text(found["cost"])


def test_coordinators_of_one_host_count_once(tmp_path: Path) -> None:
    found = summary(tmp_path, (60, "a"), (90, "a"), launches=[[1, 2]])
    assert found["cost"]["node_hours"] == 90 / 3600


@pytest.mark.parametrize(
    "final", [{"seconds": "long"}, {"retired": ["5"]}, {"world": [{"rank": "a"}]}]
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, final: dict[str, Any]) -> None:
    path = hand_made(tmp_path / "run", collage=False)
    told = read_manifest(path)
    told["sessions"][0]["final"] |= final
    write_manifest(path, told)
    with pytest.raises(DataFault, match="'sessions' must be a list of sessions"):
        read_results(path)
