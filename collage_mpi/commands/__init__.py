"""One module for each command; `collage_mpi.cli` imports only the one that is used.

Each module has a `COMMAND`, which says what the command takes and what it does. Heavy packages
(numpy, torch, h5py, MPI) are imported inside functions, so that `--help` answers at once.
"""

# name -> (module below collage_mpi.commands, line in --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "demo",
        "classify real images under four schemes; print tables and draw a picture",
    ),
    "classify": (
        "classify",
        "the classes of a folder of pictures as a CSV file, by one command; resumable",
    ),
    "launch": ("launch", "start ranks with the installed MPI, as in: launch -n 11 -- run"),
    "map": ("map", "map a class of your own over images: masks, embeddings, any arrays"),
    "run": ("run", "classify every image of the shards (the job itself; under mpiexec or launch)"),
    "simulate": ("simulate", "simulate a job: any number of ranks, no MPI and no waiting"),
    "advise": (
        "advise",
        "simulate all schemes for a trace or a run of your own and say which to choose",
    ),
    "trace": (
        "trace",
        "record the service times of a run as a trace, or fit delay models to a trace",
    ),
    "experiment": (
        "experiment",
        "run many jobs from one file: a grid of settings and seeds, one table; resumable",
    ),
    "top": ("top", "watch a running job: progress, time left, ranks, lost and slow ranks"),
    "verify": ("verify", "prove that a run has exactly one row for every image"),
    "export": ("export", "write a run's rows as CSV, Parquet or HDF5"),
    "plot": (
        "plot",
        "draw figures of runs: latency CDFs, timelines, throughput, points of an experiment",
    ),
    "slow-ranks": (
        "slow_ranks",
        "find ranks, GPUs and hosts that are slower than their peers; --exclude for Slurm",
    ),
    "report": (
        "report",
        "write an HTML page about one or several runs: charts, tables, pictures in one file",
    ),
    "shards": ("shards", "inspect or verify HDF5 shards, or add cells to them"),
    "prep": ("prep", "make shards from folders or tar files of pictures, from HDF5 or IDX files"),
    "train": ("train", "train a single classifier, a collage-CNN or a parity network"),
    "weights": (
        "weights",
        "import torchvision's weights; find a collage network's accept threshold",
    ),
    "evaluate": ("evaluate", "measure accuracy, FLOPs and service time of networks side by side"),
    "slurm": ("slurm", "render job scripts for Slurm from settings"),
    "bench": ("bench", "show how long rank 0's steps and the messages of a finished run took"),
    "doctor": (
        "doctor",
        "find what would keep a job from starting here, and how to fix it; show which rank is "
        "where",
    ),
    "completion": ("completion", "print a completion script for your shell"),
}
