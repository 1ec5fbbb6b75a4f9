"""Ray on this machine alone: import it from here. No usage report, no server that other machines
can reach, and no token in the home folder.
"""

from __future__ import annotations

import os
import secrets

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else its servers listen to the network
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else it leaves one in the home folder

import ray


def begin(workers: int) -> None:
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
