"""Settings for tests of the paper's layout, whose times can be worked out by hand."""

from __future__ import annotations

from typing import Any

from collage_mpi.settings.flags import read_settings_file
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.fields import DATA

PAPER = read_settings_file(DATA / "paper.json")


def paper(**given: Any) -> RunSettings:
    """The layout of the paper, but for what is given."""
    return RunSettings.from_mapping({**PAPER, **given})
