"""One module a command; `collage_mpi.cli` imports only the one that is asked for.

Each has `add_arguments(parser)` and `execute(args) -> int` (an exit code), and
imports what is heavy (torch, h5py, MPI) inside `execute`, so that `--help`
answers at once.
"""

# name -> (module below collage_mpi.commands, line in --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "real images with and without the collage, table and picture, one command"),
    "launch": ("launch", "start ranks with the MPI at hand, as in: launch -n 11 -- run"),
    "run": ("run", "the job: classify every image of the shards (under mpiexec or launch)"),
    "simulate": ("simulate", "the same job on virtual time: any number of ranks, no MPI"),
    "advise": ("advise", "which scheme to choose for a trace or a run of one's own: simulated"),
    "trace": ("trace", "service times of a run as a trace; delay models fitted to a trace"),
    "experiment": (
        "experiment",
        "many runs from one file: a grid of settings, seeds, one table; resumable",
    ),
    "top": ("top", "how a running job stands: progress, time left, ranks, lost and slow ones"),
    "verify": ("verify", "prove that a run holds every image exactly once"),
    "export": ("export", "write a run's rows as csv, parquet or hdf5"),
    "plot": (
        "plot",
        "figures of runs: latency CDFs, timelines, throughput, an experiment's points",
    ),
    "slow-ranks": (
        "slow_ranks",
        "ranks, GPUs and hosts that were slower than their peers; --exclude for Slurm",
    ),
    "report": ("report", "a page of one or several runs: charts, tables, pictures, in one file"),
    "shards": ("shards", "inspect or verify HDF5 shards"),
    "prep": ("prep", "make shards from folders or tar files of pictures, HDF5 or IDX files"),
    "train": ("train", "train a single classifier, a collage-CNN or a parity network"),
    "weights": (
        "weights",
        "torchvision's weights as a file of ours; a collage network's accept threshold",
    ),
    "evaluate": ("evaluate", "accuracy, FLOPs and service time of networks side by side"),
    "slurm": ("slurm", "render job scripts for Slurm from settings"),
    "bench": ("bench", "measure what the harness itself costs, with a null network"),
    "doctor": (
        "doctor",
        "what would keep a job from starting here, and how to fix it; which rank is where",
    ),
    "completion": ("completion", "print a script by which a shell completes these commands"),
}
