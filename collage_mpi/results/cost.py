"""The node-hours that a run used, and the joules if the hosts' energy counters could be read."""

from __future__ import annotations

from typing import Any

from collage_mpi.results.manifest import Json, finals
from collage_mpi.results.parts import launch_of, sessions_of
from collage_mpi.results.reader import Run

KINDS_OF_ENERGY = {"cpu_j": "processors", "gpu_j": "GPUs"}


def cost_of(run: Run, images: int) -> Json | None:
    """Node-hours of the sessions that ended, and the energy of the hosts that measured it.

    A host counts once in each launch, even if several coordinators run on it. A killed session
    recorded nothing. Joules per image are given only if every host measured in every session.

    Args:
        images: number of images with a row.

    Returns:
        node_hours; cpu_j, gpu_j and joules_per_image, each None if it is not known; sessions and
        sessions_told, hosts and hosts_measured: how many there were, and how many of them are in
        the figures; missing: "cpu_j" or "gpu_j" -> why it was not measured. None if no session
        recorded what it used.
    """
    launches, told = launch_of(run.manifest), list[tuple[int, set[str], str, Json]]()
    for session, final in finals(run.manifest).items():
        world, energy = final.get("world") or [], final.get("energy")
        if energy and world:
            hosts = {str(member.get("host")) for member in world}
            told.append((launches.get(session, session), hosts, str(world[0].get("host")), energy))
    if not told:
        return None
    seconds: dict[int, float] = {}
    hosts_of: dict[int, set[str]] = {}
    used: dict[str, dict[tuple[int, str], float]] = {kind: {} for kind in KINDS_OF_ENERGY}
    for launch, hosts, host, energy in told:
        seconds[launch] = max(seconds.get(launch, 0.0), energy["seconds"])
        hosts_of.setdefault(launch, set()).update(hosts)
        for kind, of_host in used.items():
            if energy.get(kind) is not None:
                of_host[launch, host] = max(of_host.get((launch, host), 0.0), energy[kind])
    places = {(launch, host) for launch, hosts in hosts_of.items() for host in hosts}
    measured = {place for of_host in used.values() for place in of_host}
    joules = {kind: sum(of_host.values()) if of_host else None for kind, of_host in used.items()}
    sessions = sessions_of(run.manifest).stop - 1  # killed ones too
    whole = measured == places and len(told) == sessions and images > 0
    return {
        "node_hours": sum(seconds[launch] * len(hosts_of[launch]) for launch in seconds) / 3600,
        "sessions": sessions,
        "sessions_told": len(told),
        "hosts": len({host for _, host in places}),
        "hosts_measured": len({host for _, host in measured}),
        **joules,
        "joules_per_image": sum(j or 0.0 for j in joules.values()) / images if whole else None,
        "missing": {k: text for *_, energy in told for k, text in energy["missing"].items()},
    }


def sessions_text(cost: Json) -> str:
    """The number of sessions that the figures come from, in words."""
    if cost["sessions_told"] == cost["sessions"]:
        return "all sessions"
    return f"{cost['sessions_told']} of {cost['sessions']} sessions; the others recorded nothing"


def energy_cells(cost: Json) -> list[Any]:
    """Two cells of a table: joules per image, and what was measured on how many hosts."""
    known = [
        f"{cost[kind]:,.0f} J by {name}"
        for kind, name in KINDS_OF_ENERGY.items()
        if cost[kind] is not None
    ]
    lacking = [f"{KINDS_OF_ENERGY[kind]}: {why}" for kind, why in cost["missing"].items()]
    if not known:
        return ["n/a", f"not measured here ({'; '.join(lacking)})"]
    per_image, hosts = cost["joules_per_image"], cost["hosts"]
    of_all = f"on {cost['hosts_measured']} of {hosts} hosts" if hosts > 1 else "of the whole host"
    note = f"{' and '.join(known)}, {of_all}" + (f"; not {'; '.join(lacking)}" if lacking else "")
    return ["n/a" if per_image is None else f"{per_image:.3g} J", note]
