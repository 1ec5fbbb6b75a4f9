"""Settings for tests of the paper's layout, whose times can be worked out by hand."""

from __future__ import annotations

from typing import Any

from collage_mpi.settings.run_settings import RunSettings


def paper(**given: Any) -> RunSettings:
    """The profile `paper`, but for what is given."""
    return RunSettings.from_mapping({"profile": "paper", **given})
