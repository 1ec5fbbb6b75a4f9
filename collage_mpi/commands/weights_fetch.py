"""`collage-mpi weights fetch timm:NAME hf:ID`: fills the cache of networks on a host that reaches
the hub.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from collage_mpi.commands.parser import Command
from collage_mpi.errors import UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.models.named import OFFLINE, PREFIXES, read_spec
from collage_mpi.settings.flags import Arguments
from collage_mpi.settings.inputs import NetworkSettings
from collage_mpi.system.fields import REQUIRED, same, setting
from collage_mpi.system.printable import say

CACHE = ("HF_HOME", "~/.cache/huggingface")


@dataclass(frozen=True, kw_only=True)
class FetchArguments(Arguments):
    """The arguments of `weights fetch`."""

    networks: tuple[str, ...] = setting(
        REQUIRED,
        "networks by name, timm:NAME or hf:ID, as `run` and `classify` take them",
        metavar="W",
        positional=True,
    )
    trust_network: str = same(NetworkSettings, "trust_network", group="")


def execute(args: FetchArguments) -> int:
    """Download each network that the cache lacks, and try it. Returns 0."""
    from collage_mpi.models import describe
    from collage_mpi.models.asking import ask
    from collage_mpi.models.info import Geometry
    from collage_mpi.shards.pictures import DEFAULT_PX

    for spec in args.networks:
        named = read_spec(spec)
        if named is None or named.library not in PREFIXES:
            raise UsageError(f"{spec} comes from no hub: give timm:NAME or hf:ID")
        describe(spec, SINGLE, args.trust_network)
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise UsageError(f"{OFFLINE} is set, so that no hub may be asked: unset it first")
    geometry = Geometry((DEFAULT_PX, DEFAULT_PX, 3), side=1, cell_px=DEFAULT_PX, classes=None)
    folder = os.path.expanduser(os.environ.get(*CACHE) or CACHE[1])
    for spec in args.networks:
        found = ask(spec, SINGLE, geometry, args.trust_network)
        size = " x ".join(map(str, found.info.shape))
        say(f"{spec}: in the cache {folder}; {found.classes:,} classes, images of {size}")
    return 0


FETCH = Command(
    execute,
    FetchArguments,
    "download networks of timm and transformers into the cache, as on a login node",
    epilog="Ranks find the networks there if HF_HOME names the same folder on their hosts. For "
    "example: HF_HOME=/shared/hub collage-mpi weights fetch timm:resnet50 hf:microsoft/resnet-18",
)
