"""The child process of `asking`: loads one network, lets it answer noise, and says what it is.

Before it imports a library it gives up the right to start programs and to write anywhere but in its
own folder and the caches of hubs (`system.landlock`). A network of the user's own code keeps all
rights.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from collage_mpi.models.named import FUNCTION, PREFIXES, read_spec
from collage_mpi.system.landlock import confine

# Variables that name caches of hubs, and the cache without them.
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE", "TORCH_HOME")
CACHE = ("XDG_CACHE_HOME", "~/.cache")


def main() -> int:
    """Read a request from stdin, and print the answer as a line of JSON."""
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that output of libraries goes to stderr
    confine_for(request["spec"])
    # Imported late: numpy starts threads, which would keep their rights.
    from collage_mpi.errors import CollageError
    from collage_mpi.models.info import Geometry, Loading
    from collage_mpi.models.own import load_foreign

    geometry = Geometry(**{**request["geometry"], "classes": None})
    geometry = replace(geometry, image_shape=tuple(geometry.image_shape))
    how = Loading(geometry=geometry, trusted=request["trusted"])
    try:
        predictor, facts = load_foreign(request["spec"], request["kind"], how)
        said = {"facts": asdict(facts), "classes": predictor.classes}
        told = {**said, "fingerprint": predictor.fingerprint}
    except CollageError as fault:
        told = {"fault": type(fault).__name__, "message": str(fault)}
    print(json.dumps(told), file=answers, flush=True)
    return 0


def confine_for(spec: str) -> None:
    """Give up the rights that loading this network does not need."""
    named = read_spec(spec)
    if named is None or named.library == FUNCTION:
        return
    folders = [Path(tempfile.gettempdir())]
    if named.library in PREFIXES:
        caches = [*(os.environ.get(name) for name in CACHES), os.environ.get(*CACHE)]
        found = [Path(place).expanduser() for place in caches if place]
        for folder in found:  # a right is given to a folder that is there
            os.makedirs(folder, exist_ok=True)
        folders += found
    confine(folders)


if __name__ == "__main__":
    raise SystemExit(main())
