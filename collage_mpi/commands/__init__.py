"""The commands. `collage_mpi.cli` imports only the module of the command in use.

The `COMMAND` of a module, or `VERIFY_COMMAND` and others if it has several, holds the arguments of
the command and the function that executes it.
Heavy packages (numpy, torch, h5py, MPI) are imported inside functions, so that `--help` is fast.
"""

# Command -> its module, if the module has several. Otherwise it has the name of the command.
MODULES = {
    **dict.fromkeys(("top", "verify", "export", "plot", "ranks", "report"), "look"),
    **dict.fromkeys(("classify", "embed", "map"), "classify"),
    **dict.fromkeys(("train", "weights", "evaluate"), "networks"),
}
# name -> line in --help
COMMANDS: dict[str, str] = {
    "demo": "classify real images under three schemes; print a table and draw a picture",
    "classify": "classify a folder of pictures and write the classes to a CSV file; resumable",
    "count": "count images by class, in a run or in pictures, with intervals",
    "embed": "write the embedding of each picture to a Parquet file, by a network of timm or hf",
    "launch": "start ranks with the installed MPI, as in: launch -n 11 -- run",
    "map": "run a Python class of your own on every image: masks, embeddings, any arrays",
    "run": "classify every image of the input. Each MPI rank runs this command: start it with "
    "launch or mpiexec",
    "simulate": "simulate a job on virtual time, or compare schemes: any number of ranks, no MPI",
    "top": "watch a running job: progress, time left, ranks, lost and slow ranks",
    "verify": "prove that a run has exactly one row for every image",
    "export": "write a run's rows as CSV, Parquet or Zarr",
    "plot": "draw latency distributions of runs",
    "ranks": "find ranks, GPUs and hosts that are slow, fail or are wrong; --exclude for Slurm",
    "report": "write an HTML page about one or several runs: charts, tables, pictures in one file",
    "prep": "make shards from pictures, HDF5 or IDX files; inspect and verify any input",
    "train": "train a single or a collage network",
    "weights": "download networks; find the score from which a network's answers count",
    "evaluate": "measure accuracy, FLOPs and service time of networks side by side",
    "slurm": "render job scripts for Slurm from settings",
    "replay": "play the record of a run again: does the core decide the same",
    "doctor": "find what would keep a job from starting here, and how to fix it",
}
