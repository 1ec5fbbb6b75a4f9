"""The node-hours of a run whose sessions ran on several hosts, at once or one after another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand_made import hand_made

from collage_mpi.errors import DataFault
from collage_mpi.results import read_results, render_summary, summarise
from collage_mpi.results.render import cost_text


def summary(
    tmp_path: Path, *sessions: tuple[float | None, str], at_once: bool = False
) -> dict[str, Any]:
    """Of a run with these sessions: seconds, and the hosts of its ranks.

    Args:
        at_once: all began at the same time.
    """
    run, at_ns, entries = read_results(hand_made(tmp_path / "run", collage=False)), 10**18, []
    for number, (seconds, hosts) in enumerate(sessions, 1):
        world = [{"host": host} for host in hosts.split()]
        final = {"seconds": seconds, "world": world, "began_ns": at_ns}
        entries.append({"session": number, "final": final})
        at_ns += 0 if at_once else int(1e9 * (seconds or 0))
    return summarise(replace(run, manifest={**run.manifest, "sessions": entries}))


def test_sessions_add_up_and_every_host_of_a_session_counts(tmp_path: Path) -> None:
    found = summary(tmp_path, (1800, "a"), (1800, "a b b"))
    assert found["cost"]["node_hours"] == 1.5
    assert cost_text(found["cost"]) == "1.5 node-hours on 2 hosts, all sessions"
    assert "1.5 node-hours" in " ".join(render_summary(found).split())


def test_a_killed_session_is_not_counted_and_told(tmp_path: Path) -> None:
    found = summary(tmp_path, (3600, "a"), (None, "a"))
    assert "on 1 host, 1 of 2 sessions; the others recorded nothing" in cost_text(found["cost"])


def test_coordinators_of_one_host_count_once(tmp_path: Path) -> None:
    found = summary(tmp_path, (60, "a"), (90, "a b"), at_once=True)
    assert found["cost"]["node_hours"] == 2 * 90 / 3600


@pytest.mark.parametrize(
    "final", [{"seconds": "long"}, {"retired": ["5"]}, {"world": [{"rank": "a"}]}]
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, final: dict[str, Any]) -> None:
    path = hand_made(tmp_path / "run", collage=False)
    entry = path / "jobs/0001.json"
    told = json.loads(entry.read_text())
    told["facts"]["final"] |= final
    entry.write_text(json.dumps(told))
    with pytest.raises(DataFault, match="'sessions' must be a list of sessions"):
        read_results(path)
