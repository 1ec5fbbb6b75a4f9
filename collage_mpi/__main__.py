"""`python -m collage_mpi`, and the console script `collage-mpi`."""

import sys


def main() -> int:
    """The command line; Ctrl-C while it is still being imported is a word, not a traceback."""
    try:
        from collage_mpi.cli import main as command
    except KeyboardInterrupt:
        print("collage-mpi: interrupted", file=sys.stderr)
        return 130
    return command()


if __name__ == "__main__":
    raise SystemExit(main())
