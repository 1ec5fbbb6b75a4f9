"""Starts a module of exactly this copy of the package: `python start.py MODULE [arguments]`.

`python -m` and `python -c` put the current folder before the standard library, and Python 3.10
cannot be told not to (3.11 has -P). In a checkout its code would run instead of the installed one,
and a user's own queue.py would replace the standard one.
"""

import sys


def main(file: str) -> None:
    """Run `sys.argv[1]` like `python -m` would, from the package that contains `file`."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the package's own folder: its modules must not be found without its name
    sys.path.insert(0, file.rpartition("/collage_mpi/")[0])
    import collage_mpi  # noqa: F401  # its modules are found through it from now on

    del sys.path[0]
    import os

    server = os.environ.pop("COLLAGE_MPI_FORK", None)  # children of this process must not use it
    if server is not None:
        from collage_mpi.system.forked import relay

        relay(server)
    import runpy

    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(__file__)
