"""`python -m collage_mpi`: the same as the console script `collage-mpi`."""

from collage_mpi.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
