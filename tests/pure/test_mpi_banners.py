"""Launcher banners are held back; everything else passes at once and unchanged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.launch.ending import BannerFilter
from collage_mpi.system.launchers import FAMILIES, Death

RULE = "-" * 74
OPENMPI = f"""{RULE}
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-6986@1,1]
   Exit code:    1
{RULE}"""
OPENMPI_ABORT = f"""{RULE}
MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD
  Proc: [[9743,1],0]
  Errorcode: 6

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
{RULE}
{RULE}
prterun has exited due to process rank 0 with PID 0 on node vm calling
"abort". This may have caused other processes in the application to be
terminated by signals sent by prterun (as reported here).
{RULE}"""
MPICH = f"""{"=" * 83}
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 4242 RUNNING AT vm
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
{"=" * 83}
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions"""
MPICH_ABORT = (
    "Abort(6) on node 0 (rank 0 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 6)"
)
# As on Aurora (github.com/pmodels/mpich, issue 7569) and Polaris.
PALS = """x4006c0s6b0n0.hsn.cm.aurora.alcf.anl.gov: rank 256 died from signal 11
x3006c0s19b1n0.hsn.cm.polaris.alcf.anl.gov: rank 7 died from signal 6 and dumped core
x4001c5s4b0n0.hsn.cm.aurora.alcf.anl.gov: rank 0 exited with code 1"""


def run(text: str, family: str = "openmpi") -> tuple[list[str], list[str], BannerFilter]:
    found = BannerFilter(FAMILIES[family])
    shown = [line for given in text.split("\n") for line in found.feed(given)]
    return shown, found.finish(), found


BANNERS = [
    ("openmpi", OPENMPI),
    ("openmpi", OPENMPI_ABORT),
    ("mpich", MPICH),
    ("mpich", MPICH_ABORT),
    ("intel", MPICH),
    ("pals", PALS),
]


@pytest.mark.parametrize(("family", "banner"), BANNERS)
def test_banners_are_held_whole(family, banner):
    shown, held, found = run(f"before\n{banner}\nafter", family)
    assert shown == ["before", "after"]
    assert held == banner.split("\n")
    assert not found.explained


@pytest.mark.parametrize(
    ("line", "explained"),
    [
        ("collage-mpi run: the world has 8 ranks", True),
        ("This is a defect of collage-mpi: please report it.", True),
        ("see collage-mpi run: x", False),
    ],
)
def test_our_own_message_is_noticed(line, explained):
    assert run(line)[2].explained is explained


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_between_rules_passes(family):
    table = f"{RULE}\nname  value\n{RULE}\n{RULE}"
    shown, held, _ = run(table, family)
    assert shown + held == table.split("\n")


def test_a_banner_that_never_ends_does_not_swallow_the_output():
    lines = [RULE, "MPI_ABORT was invoked on rank 0", *map(str, range(100))]
    shown, held, _ = run("\n".join(lines))
    assert held + shown == lines
    assert shown[-1] == "99"


LINES = [
    RULE,
    "a",
    "",
    MPICH_ABORT,
    *(line for _, text in BANNERS for line in text.split("\n")[:3]),
]


@given(st.sampled_from(sorted(FAMILIES)), st.lists(st.sampled_from(LINES)))
def test_no_line_is_ever_lost(family, lines):
    found = BannerFilter(FAMILIES[family])
    shown = [line for given in lines for line in found.feed(given)]
    assert sorted(shown + found.finish()) == sorted(lines)


KILLED = """prterun noticed that process rank 2 with PID 28605 on node vm exited on
signal 9 (Killed)."""
SEGV = MPICH.replace("Killed (signal 9)", "Segmentation fault (signal 11)")
ORED = MPICH.replace("Killed (signal 9)", "Terminated (signal 15)")  # of SIGBUS and SIGKILL
BUS = MPICH.replace("EXIT CODE: 9", "EXIT CODE: 7").replace("signal 9", "signal 7")


@pytest.mark.parametrize(
    ("family", "banner", "death"),
    [
        ("openmpi", OPENMPI, Death(1, 1)),
        ("openmpi", KILLED, Death(137, 2, 28605)),
        ("mpich", MPICH, Death(137)),
        ("mpich", SEGV, Death(139)),
        ("mpich", ORED, Death()),
        ("intel", BUS, Death(135)),
        ("pals", PALS, Death(139, 256)),
        ("pals", PALS.rpartition("\n")[2], Death(1, 0)),
        *((family, "nothing", None) for family in FAMILIES),
    ],
)
def test_what_banners_say_of_a_death(family, banner, death):
    assert FAMILIES[family].death(banner) == death


def test_a_rank_that_says_why_it_failed_is_heard():
    found = BannerFilter(FAMILIES["mpich"])
    found.feed("collage-mpi: rank 1 on vm cannot connect to rank 0")
    assert not found.failed
    found.feed("collage-mpi: rank 2 on vm (pid 7) failed:")
    assert found.failed
