"""The files besides shards that decide a run's rows, and their SHA-256.

Shards have fingerprints of their own.
"""

from __future__ import annotations

from pathlib import Path

from collage_mpi.errors import EnvironmentFault
from collage_mpi.kinds import NETWORK_SETTINGS
from collage_mpi.models.gate import sha256_of_network
from collage_mpi.models.named import is_file, is_null
from collage_mpi.settings.run_settings import RunSettings


def named_files(settings: RunSettings, *, networks: bool = True) -> dict[str, Path]:
    """Setting -> the file that it names, for the files that the run reads.

    Null networks, users' functions and networks of libraries are not files. They are identified by
    their names; for functions and libraries ranks also report fingerprints.

    Args:
        settings: of the run.
        networks: False for a simulation, which reads no networks.
    """
    used = {"trace_file": settings.straggler == "trace", "arrival_file": True}
    if networks:
        used |= {kind: settings.uses(kind) for kind in NETWORK_SETTINGS}
        used["class_names_file"] = True
    named = {name: getattr(settings, name) for name, wanted in used.items() if wanted}
    return {
        name: Path(spec)
        for name, spec in named.items()
        if spec and not is_null(spec) and is_file(spec)
    }


def digests(files: dict[str, Path]) -> dict[str, str]:
    """Setting -> SHA-256 of its file, 64 hex digits.

    Raises:
        EnvironmentFault, DataFault: a file cannot be read.
    """
    found = {}
    for name, path in files.items():
        try:
            found[name] = sha256_of_network(path)
        except OSError as error:
            raise EnvironmentFault(
                f"{name} {path}: cannot be read: {error.strerror or error}"
            ) from error
    return found
