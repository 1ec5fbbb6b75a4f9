"""Prints what a rank would do with the GPUs it sees: rank, host, device, threads.

Loads neither MPI nor torch: the number of GPUs that torch would count is that of the
entries its environment shows. Arguments: NAME=VALUE sets a variable of the environment
first, as a site's prologue would.
"""

from __future__ import annotations

import os
import sys

from collage_mpi import topology


def main() -> None:
    os.environ.update(word.partition("=")[::2] for word in sys.argv[1:])
    rank = topology.launcher_rank() or 0
    visible = topology.visible_devices()
    count = len(topology.visible_entries(visible) or [])
    local = topology.local_gpu_rank(rank)
    device = topology.assign_device(local, visible, "auto", count)
    threads = topology.threads_per_rank(topology.local_size() or 1)
    host = os.environ.get("SLURMD_NODENAME", "?")
    print(f"rank={rank} host={host} device={device} visible={visible} threads={threads}\n", end="")


if __name__ == "__main__":
    main()
