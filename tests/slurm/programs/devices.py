"""Prints what a rank would do with the GPUs it sees: rank, host, device, threads.

Loads neither MPI nor torch: the number of GPUs that torch would count is that of the
entries its environment shows.
"""

from __future__ import annotations

import os

from collage_mpi.system import environment


def main() -> None:
    rank = environment.launcher_rank() or 0
    visible = environment.visible_devices()
    count = len(environment.visible_entries(visible) or [])
    local = environment.local_gpu_rank(rank)
    device = environment.assign_device(local, visible, "auto", count)
    threads = environment.threads_per_rank(environment.local_size() or 1)
    host = os.environ.get("SLURMD_NODENAME", "?")
    print(f"rank={rank} host={host} device={device} visible={visible} threads={threads}\n", end="")


if __name__ == "__main__":
    main()
