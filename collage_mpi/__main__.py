"""`python -m collage_mpi`, and the console script `collage-mpi`."""

import signal
import sys


def main() -> int:
    """Run the command line. Ctrl-C during its import gives a message instead of a traceback.

    A rank does not return from here (see `system.hard_exit`).
    """
    try:
        from collage_mpi.cli import main as command
        from collage_mpi.system.hard_exit import leave_world
    except KeyboardInterrupt:
        print("collage-mpi: interrupted", file=sys.stderr)
        return 130
    code = command()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the exit code must not change any more
    leave_world(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
