"""The table of launchers: what other modules read in it, for each of them."""

from __future__ import annotations

import signal

import pytest
from test_environment import FLUX, MPICH, OPENMPI, PALS

from collage_mpi.system.environment import fault_tolerant_launch
from collage_mpi.system.launchers import FAMILIES, LAUNCHERS, MPIS, first_number


def test_launch_offers_what_it_can_start_and_srun_is_not_of_those():
    assert set(MPIS) == {"auto", "mpich", "openmpi", "intel", "flux", "pals"}
    assert {launcher.name for launcher in LAUNCHERS} - set(MPIS) == {"srun"}


def test_a_stop_is_passed_on_by_the_signal_that_the_launcher_forwards():
    assert {name: launcher.stop_signal for name, launcher in FAMILIES.items()} == {
        "mpich": signal.SIGTERM,
        "intel": signal.SIGTERM,
        "openmpi": signal.SIGUSR2,
        "flux": signal.SIGTERM,
        "pals": signal.SIGTERM,
    }


@pytest.mark.parametrize(
    ("environ", "outlives"),
    [
        ({}, False),
        ({"COLLAGE_MPI_FAULT_TOLERANT": "1"}, True),
        ({"OMPI_MCA_mpi_ft_enable": "1", "OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"OMPI_MCA_mpi_ft_enable": "1", "SLURM_PROCID": "0"}, False),
        ({"OMPI_MCA_mpi_ft_enable": "0", "OMPI_COMM_WORLD_RANK": "0"}, False),
    ],
)
def test_who_says_that_ranks_outlive_each_other(environ, outlives):
    assert fault_tolerant_launch(environ) is outlives


@pytest.mark.parametrize(
    ("name", "environ"),
    [
        ("mpich", MPICH),
        ("intel", MPICH),
        ("openmpi", OPENMPI),
        ("pals", PALS),
        ("flux", FLUX),
    ],
)
def test_each_reads_its_own_variables(name, environ):
    assert FAMILIES[name].size(environ) == 11
    assert first_number(FAMILIES[name].ranks, environ) == (5 if name in ("pals", "flux") else 3)
