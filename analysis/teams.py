"""How large a team should be: what coordinators and the lead cost on 11 to 4,096 ranks, simulated.

    python analysis/teams.py --out figures/teams            # figure, tables, minutes of one core

It makes the figure of docs/teams.md and the tables of analysis/reports/teams.md, with the model in
team_model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from team_model import LeadCosts, Outcome, TeamsModel, World

from collage_mpi.figures.plots import COLOURS, MARKERS, STYLE, STYLES, pyplot, save
from collage_mpi.job.leases import LeaseSettings
from collage_mpi.simulation.costs import Costs

GROUP = 9
# Of 77 us an image at batch 1 (analysis/reports/benchmarks.md), as `Costs` parts them.
COSTS = Costs(receive_ns=46_000, send_ns=31_000, encode_ns=0)
# lead_cost, and 5 us for each message in MPI; a part of images comes with one of their tasks
LEAD = LeadCosts(lease_ns=45_000, part_ns=130_000, sign_ns=18_000, look_ns=13_000)
POLL_NS = 160  # a rank's receive tested: ten take 1.6 us under MPICH (the same page)
SIGMA = 0.3
IMAGES = 200  # a rank with a network
SIZES = (11, 32, 64)  # ranks of a team
ONE = (11, 32, 64, 128, 256, 1024, 4096)  # ranks of one coordinator
LARGEST = 4096


def world(ranks: int, size: int, images: int, lead: LeadCosts) -> World:
    """So many ranks in teams of that size."""
    workers, teams = size - 1, ranks // size
    leases = LeaseSettings(GROUP, batch=1, smallest=-(-workers // GROUP), largest=256)
    total = images * workers * teams
    return World(teams, workers, total, leases, COSTS, lead, POLL_NS, SIGMA)


def counts(size: int) -> Iterator[int]:
    """Ranks of 1, 2, 4 ... teams of that size, up to LARGEST."""
    teams = 1
    while teams * size <= LARGEST:
        yield teams * size
        teams *= 2
    if teams * size > LARGEST > teams // 2 * size:
        yield LARGEST // size * size


def rate(done: Outcome, of: World) -> float:
    """Images a second of a rank with a network."""
    return done.images_per_s / (of.teams * of.workers)


# ---- what is simulated -------------------------------------------------------


def scaling(images: int, lead: LeadCosts) -> dict[str, list[tuple[World, Outcome]]]:
    """Of one coordinator and of teams of each size, by name: each number of ranks."""
    found: dict[str, list[tuple[World, Outcome]]] = {}
    cases = [("one coordinator", [(ranks, ranks) for ranks in ONE])]
    cases += [(f"teams of {size}", [(r, size) for r in counts(size)]) for size in SIZES]
    for name, points in cases:
        for ranks, size in points:
            of = world(ranks, size, images, lead)
            found.setdefault(name, []).append((of, TeamsModel(of).run()))
    return found


def cuts(images: int, lead: LeadCosts) -> Iterator[tuple[str, World, Outcome]]:
    """1,024 ranks in teams of 32: lease sizes, jitter, one slow team."""
    base = world(1024, 32, images, lead)
    leases, groups = base.leases, base.images // GROUP
    ways = {
        "1/4 of a team's share of the rest": replace(leases, share=4),
        "1/5": leases,
        "1/8": replace(leases, share=8),
        "1/32": replace(leases, share=32),
        "1/5, down to a group": replace(leases, smallest=1),
        "16 groups, all": replace(leases, smallest=16, largest=16),
        "half a team's share, all": replace(
            leases,
            smallest=-(-groups // (2 * base.teams)),
            largest=-(-groups // (2 * base.teams)),
        ),
    }
    for name, way in ways.items():
        for sigma, slower in ((0.3, {}), (1.0, {}), (0.3, {7: 2.0})):
            of = replace(base, leases=way, sigma=sigma, slower=slower)
            yield name, of, TeamsModel(of).run()


def leads(images: int, lead: LeadCosts) -> Iterator[tuple[int, World, Outcome]]:
    """Teams of 11, the most work for the lead a rank; its costs 3 and 10 times those measured."""
    for times in (3, 10):
        dear = LeadCosts(*(ns * times for ns in vars(lead).values()))
        for teams in (16, 64, 372):
            of = world(11 * teams, 11, images, dear)
            yield times, of, TeamsModel(of).run()


# ---- figure and tables -------------------------------------------------------


def draw(found: dict[str, list[tuple[World, Outcome]]], dear: list, out: Path) -> list[Path]:
    """Cost an image, throughput over linear, the lead's load; each against ranks."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.9))
        figure.subplots_adjust(left=0.06, right=0.985, top=0.73, bottom=0.14, wspace=0.27)
        base = rate(*reversed(found["one coordinator"][0]))
        for number, (name, points) in enumerate(found.items()):
            look = {"color": COLOURS[number], "ls": STYLES[number], "marker": MARKERS[number]}
            ranks = [of.ranks for of, _ in points]
            axes[0].plot(ranks, [done.dearest_us for _, done in points], label=name, ms=4, **look)
            axes[1].plot(ranks, [rate(done, of) / base for of, done in points], ms=4, **look)
        for number, times in enumerate(sorted({times for times, _, _ in dear})):
            points = [(of.ranks, done.lead_s / done.seconds) for t, of, done in dear if t == times]
            look = {"color": COLOURS[4 + number % 3], "marker": MARKERS[4 + number % 3], "ms": 4}
            name = "its costs as measured" if times == 1 else f"{times} times"
            axes[2].plot(*zip(*points, strict=True), label=name, **look)
        titles = (
            ("CPU an image, busiest coordinator", "us an image"),
            ("images/s of a rank, over those at 11 ranks", "over linear"),
            ("the lead's own work, teams of 11", "share of the lead's core"),
        )
        for axis, (title, unit) in zip(axes, titles, strict=True):
            axis.set(title=title, ylabel=unit, xscale="log", xlabel="ranks, coordinators included")
            axis.set_xticks([11, 32, 128, 512, 1024, 4096], ["11", "32", "128", "512", "1k", "4k"])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            axis.set_ylim(bottom=0)
        axes[0].set(yscale="log", ylim=(50, 2500))
        axes[0].set_yticks([50, 100, 200, 500, 1000, 2000], [50, 100, 200, 500, "1,000", "2,000"])
        axes[0].minorticks_off()
        axes[1].axhline(0.95, color="0.4", lw=0.8, ls=":")
        axes[1].annotate("0.95", (11, 0.95), xytext=(0, -10), textcoords="offset points",
                         color="0.4", fontsize=8)  # fmt: skip
        axes[2].axhline(1.0, color="0.4", lw=0.8, ls=":")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="upper left", ncols=4,
                      bbox_to_anchor=(0.05, 0.89))  # fmt: skip
        figure.legend(*axes[2].get_legend_handles_labels(), loc="upper right", ncols=3,
                      bbox_to_anchor=(0.985, 0.89))  # fmt: skip
    title = TITLE.format(images=found["one coordinator"][0][0].images // 10)
    return save(figure, out, title, dpi=150)


TITLE = (
    "One coordinator and many (simulated)\n"
    "images of 5 ms (lognormal, sigma 0.3), one a message, {images} a rank; "
    "coordinator 77 us an image and 0.16 us a rank and poll"
)


def print_scaling(found: dict[str, list[tuple[World, Outcome]]]) -> None:
    """A row a point."""
    base = rate(*reversed(found["one coordinator"][0]))
    print("| | ranks | teams | CPU us/image | over linear | leases | lead's share of its core |")
    print("|---|---|---|---|---|---|---|")
    for name, points in found.items():
        for of, done in points:
            share = done.lead_s / done.seconds
            print(
                f"| {name} | {of.ranks:,} | {of.teams} | {done.dearest_us:.0f} "
                f"| {rate(done, of) / base:.3f} | {done.leases} | {share:.1%} |"
            )


def print_cuts(rows: Iterator[tuple[str, World, Outcome]]) -> None:
    """A row a way to cut, a column a jitter."""
    table: dict[str, list[str]] = {}
    for name, of, done in rows:
        ideal = sum(1 / of.slower.get(team, 1.0) for team in range(of.teams)) * of.workers
        over = done.images_per_s * of.costs.single_ns / 1e9 / ideal
        table.setdefault(name, []).append(f"{over:.3f} ({done.leases})")
    print("| leases | sigma 0.3 | sigma 1 | sigma 0.3, a team half as fast |")
    print("|---|---|---|---|")
    for name, cells in table.items():
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Print the tables, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="figure, without .png")
    parser.add_argument("--images", type=int, default=IMAGES, help="a rank with a network")
    args = parser.parse_args()
    lead = LEAD
    found = scaling(args.images, lead)
    print_scaling(found)
    print_cuts(cuts(args.images, lead))
    dear = [(1, *point) for point in found["teams of 11"]]
    for times, of, done in leads(args.images, lead):
        dear.append((times, of, done))
        share, over = done.lead_s / done.seconds, rate(done, of) * of.costs.single_ns / 1e9
        print(
            f"lead x {times}, {of.teams} teams of 11: {share:.1%} of its core, {over:.3f} of ideal"
        )
    if args.out:
        print(*draw(found, dear, args.out), sep="\n")


if __name__ == "__main__":
    main()
