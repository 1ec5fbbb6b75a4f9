"""The node-hours that a run used."""

from __future__ import annotations

from collage_mpi.results.manifest import Json, finals
from collage_mpi.results.parts import launch_of, sessions_of
from collage_mpi.results.reader import Run
from collage_mpi.system.printable import counted


def cost_of(run: Run) -> Json | None:
    """Node-hours of the sessions that ended.

    A host counts once in each launch, even if several coordinators run on it. A killed session
    recorded nothing.

    Returns:
        node_hours; hosts; sessions, and sessions_told, how many of them recorded their time. None
        if no session recorded it.
    """
    launches = launch_of(run.manifest)
    seconds: dict[int, float] = {}
    hosts_of: dict[int, set[str]] = {}
    told = 0
    for session, final in finals(run.manifest).items():
        world = final.get("world") or []
        if final.get("seconds") is None or not world:
            continue
        told += 1
        launch = launches.get(session, session)
        seconds[launch] = max(seconds.get(launch, 0.0), final["seconds"])
        hosts_of.setdefault(launch, set()).update(str(member.get("host")) for member in world)
    if not told:
        return None
    return {
        "node_hours": sum(seconds[launch] * len(hosts_of[launch]) for launch in seconds) / 3600,
        "hosts": len(set().union(*hosts_of.values())),
        "sessions": sessions_of(run.manifest).stop - 1,  # killed ones too
        "sessions_told": told,
    }


def cost_text(cost: Json) -> str:
    """The node-hours, and the sessions that they come from, in words."""
    sessions = "all sessions"
    if cost["sessions_told"] < cost["sessions"]:
        sessions = (
            f"{cost['sessions_told']} of {cost['sessions']} sessions; the others recorded nothing"
        )
    return f"{cost['node_hours']:.4g} node-hours on {counted(cost['hosts'], 'host')}, {sessions}"
