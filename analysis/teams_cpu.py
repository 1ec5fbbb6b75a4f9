"""CPU of coordinators an image: one team, several, and as many jobs of one team at once or in turn.

    python analysis/teams_cpu.py --shards SHARD --out FOLDER --images 30000 --rounds 3
    python analysis/teams_cpu.py --shards SHARD --out FOLDER --images 9000 --rank-seconds

What several teams cost over one is of three parts: coordinators that each begin (jobs in turn),
more ranks than cores (jobs at once), and what teams do beside (teams). Null networks, one image a
message, three single ranks a team. With --rank-seconds instead: two teams beside one coordinator
with as many single ranks, where an image takes 20 ms.

Owns: the jobs, in turn; figures in analysis/reports/teams.md.
What a coordinator does with its time stands under `rank0` in a run's manifest.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from collage_mpi.results import read_results

SINGLES = 3
SLOW = "--straggler pinned:20"


def start(
    out: Path, shard: str, teams: int, images: int, singles: int = SINGLES, more: str = "--depth 8"
) -> subprocess.Popen[bytes]:
    """A job of so many teams."""
    shutil.rmtree(out, ignore_errors=True)
    job = f"run --shards {shard} --out {out} --limit {images} --teams {teams} --singles {singles}"
    how = f"--single null --collage null --side 2 --scheme none --endgame off {more}"
    said = "--status-every-s 600"
    words = f"launch -n {teams * (singles + 1)} -- {job} {how} {said}".split()
    command = [sys.executable, "-m", "collage_mpi", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def cpu_us(outs: list[Path]) -> float:
    """CPU of the coordinators' processes in their loops, over the images of the runs."""
    spent_ns = images = 0
    for out in outs:
        run = read_results(out)
        images += len(run.images)
        finals = (session["final"] for session in run.manifest["sessions"])
        spent_ns += sum(final["rank0"]["process_cpu_ns"] for final in finals)
    return spent_ns / images / 1e3


def rank_s(out: Path, singles: int) -> float:
    """Of all single ranks: from the first image of a team that arrives to its last answer."""
    images = read_results(out).images
    mine = [images[images["session"] == session] for session in set(images["session"])]
    ends = [(each["t0_ns"] + each["latency_ns"]).max() - each["t0_ns"].min() for each in mine]
    return singles * int(sum(ends)) / 1e9


def measured(args: argparse.Namespace, teams: int, jobs: int, *, at_once: bool) -> float:
    """Of so many jobs of so many teams, which share the images."""
    outs = [args.out / f"job{number}" for number in range(jobs)]
    running = []
    for out in outs:
        running.append(start(out, args.shards, teams, args.images // jobs))
        if not at_once:
            running[-1].wait()
    if any([job.wait() for job in running]):
        raise SystemExit("a job has failed: see above")
    return cpu_us(outs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True)
    parser.add_argument("--out", required=True, type=Path, help="overwritten")
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank-seconds", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for teams, singles in [(1, 2 * SINGLES), (2, SINGLES)] * (args.rounds * args.rank_seconds):
        load, out = Path("/proc/loadavg").read_text().strip(), args.out / "job"
        start(out, args.shards, teams, args.images, singles, SLOW).wait()
        print(f"{teams} x {singles}: {rank_s(out, singles):.1f} rank-s; load {load}", flush=True)
    if args.rank_seconds:
        return
    cases = {"1 team": (1, 1, True), "2 teams": (2, 1, True), "4 teams": (4, 1, True)}
    cases |= {"4 jobs at once": (1, 4, True), "4 jobs in turn": (1, 4, False)}
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, (teams, jobs, at_once) in cases.items():
            found[name].append(measured(args, teams, jobs, at_once=at_once))
            print(f"{name}: {found[name][-1]:.0f} us an image", flush=True)
    one = statistics.median(found["1 team"])
    for name, values in found.items():
        middle = statistics.median(values)
        least, most = min(values), max(values)
        print(f"{name:15} median {middle:.0f} us ({least:.0f} to {most:.0f}), {middle / one:.2f}")


if __name__ == "__main__":
    main()
