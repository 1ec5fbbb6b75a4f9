"""Commands, options, settings and values that collage_mpi no longer has, and what to use instead.

The command line, settings files and the Python API print `removed` of a name that they do not know.
"""

from __future__ import annotations

_DECODED = "decoded missing answers from those of other images"
_DEAD = ("ranks that stopped answering", "use collage-mpi simulate --dead-ranks, or kill a rank")
_COLLAGE = "use --scheme collage, or --scheme replicate"
_LITE = "trained EfficientNet-Lite0"
_BACKBONE = "use --backbone torchvision:NAME; the network itself is timm:tf_efficientnet_lite0"

# The words as they are typed, `COMMAND --option VALUE` at the most -> what it was, what to use.
# An option has one row for all commands that had it; a setting has the row of its option; a
# format of files has the row of its ending.
TABLE: dict[str, tuple[str, str]] = {
    "--backbone efficientnet-lite:lite0": (_LITE, _BACKBONE),
    "--backbone efficientnet-lite:lite0_16": (_LITE, _BACKBONE),
    "shards add-cells": ("stored cells beside the images", "leave it out: jobs shrink the images"),
    "--store": (
        "stored picture files in shards",
        "leave it out, or use the folder, tar or Parquet file of the pictures as --input",
    ),
    "slow-ranks": ("found slow ranks", "use collage-mpi ranks, which also finds wrong ones"),
    "completion": ("printed a completion script", "see docs/cluster.md, Completion in a shell"),
    ".yaml": ("settings and experiments as YAML", "write the file as .toml"),
    ".yml": ("settings and experiments as YAML", "write the file as .toml"),
    "--scheme parity": (_DECODED, _COLLAGE),
    "--scheme approx": (_DECODED, _COLLAGE),
    "--scheme collage-hedge": ("collages and late second copies", "use --scheme collage"),
    "--scheme batch-backup": ("each group also as a batch", "use --scheme cascade --first W"),
    "--scheme cascade-batch": (
        "a quick network, or the single network in batches, before the single network",
        "use --scheme cascade --first W, or --scheme none --batch 9",
    ),
    "--aim": ("what a threshold optimises", "use --agree, the share of classes to keep"),
    "--errors": ("standard errors added to a loss", "use --agree, the share of classes to keep"),
    "--decoder": ("what decoded pictures", "leave it out: Pillow does, on the CPU"),
    "--backup": ("quick network of scheme cascade-batch", "use --first W"),
    "--parity": ("network that answers for the sum of several images", _COLLAGE),
    "--parity-k": ("images that were decoded together", _COLLAGE),
    "--parity-ranks": ("ranks of scheme parity", _COLLAGE),
    "--approx-k": ("measured the answers of scheme approx", "leave it out"),
    "train parity": ("trained a parity network", "use collage-mpi train collage"),
    "--accept": (
        "which answers of collages count",
        "use --confidence X: 0 for first, 1 for grace and backup, a score for confident",
    ),
    "--grace-ms": ("time in which no collage counted", "use --confidence 1 --deadline-ms T"),
    "--grace-quantile": ("running quantile of latencies", "use --deadline-ms T"),
    "--accept-deadline-ms": ("deadline of unsure answers", "use --deadline-ms T"),
    "--accept-deadline-quantile": ("running quantile of latencies", "use --deadline-ms T"),
    "--hedge-quantile": ("running quantile of latencies", "use --hedge-ms T"),
    "--compile": ("how kernels were launched", "use --runtime torch, or --runtime compile"),
    "--burn-ranks": ("kept cores busy beside a rank", "start `stress-ng --cpu N` beside the rank"),
    "run --dead-ranks": _DEAD,
    "map --dead-ranks": _DEAD,
    "--hedge-budget": ("share of second copies", "leave it out; --hedge-ms limits the copies"),
    "torchrun": ("training in several processes", "start one process: collage-mpi train ..."),
    "weights import": (
        "weights file of another library's network",
        "use timm:NAME,weights=FILE where a network is named",
    ),
    "--layers": ("trained only the last layer", "leave it out; --init W trains all layers from W"),
    "bench": ("costs of rank 0 in a run, as a file", "use collage-mpi simulate --costs RUN"),
    "trace": ("service times of runs as a trace", "use collage-mpi export RUN --to trace"),
    "shards": ("described and checked shards", "use collage-mpi prep inspect, or prep verify"),
    "--like": (
        "simulated a finished run beside it",
        "use collage-mpi simulate --costs RUN, with the settings of the run",
    ),
    "advise": ("compared schemes on a trace", "use collage-mpi simulate --schemes A B --seeds 0-9"),
    "plot throughput": ("throughput against latency", "use collage-mpi report RUN..."),
    "plot points": ("figures of an experiment", "use collage-mpi report RUN..."),
    "experiment": (
        "runs of a grid of settings",
        "start each with collage-mpi launch, or use collage-mpi simulate --schemes A B",
    ),
    "--profile": (
        "named sets of settings",
        "use --settings shipped:paper.json for paper, --batch auto for throughput, and "
        "--placement fastest --confidence 0.9 --depth 1 for latency",
    ),
    "--assign finish": (
        "gave each image to the rank that would end it first",
        "leave it out: with --assign pull a slow rank leaves images to quicker ranks that would "
        "end them sooner",
    ),
    "--assign least": ("gave each image to the rank with the fewest tasks", "use --assign pull"),
    "doctor --out": ("tried to write results", "use collage-mpi run --dry-run"),
    "doctor --shards": ("opened the input", "use collage-mpi run --dry-run"),
    "doctor --scheme": (
        "which rank holds what",
        "use collage-mpi launch -n RANKS -- run --dry-run",
    ),
    "doctor --side": ("ranks of a job", "use collage-mpi doctor -n RANKS"),
    "doctor --singles": ("ranks of a job", "use collage-mpi doctor -n RANKS"),
    "doctor --teams": ("ranks of a job", "use collage-mpi doctor -n RANKS"),
    "doctor --collage-ranks": ("ranks of a job", "use collage-mpi run --dry-run"),
    "doctor --assign": ("setting of a job", "use collage-mpi run --dry-run"),
    "doctor --endgame": ("setting of a job", "use collage-mpi run --dry-run"),
    "doctor --placement": ("which rank holds what", "use collage-mpi run --dry-run"),
    "run --report": ("report page when the job ends", "use collage-mpi report OUT"),
    "--audit-seed": ("seed of the draw of audited images", "leave it out"),
    "--arrivals": ("how images enter the job", "use --rate X, or --arrival-file FILE"),
    "--arrival-seed": ("seed of the arrival times", "use --straggler-seed, which draws them too"),
    "--collage-copies": (
        "ranks that got the same collage",
        "leave it out: all M with --scheme collage, one with collage-only",
    ),
    "--replicas": ("copies of scheme replicate", "leave it out: each image has two"),
    "--backup-ranks": ("ranks for batches of a quick network", "use --collage-ranks M"),
    "--collage-from": (
        "images that had to wait for a collage",
        "leave it out: 3, or the next number above the cost ratio",
    ),
    "--collage-counts": ("which waiting images made a collage", "leave it out: all of them"),
    "--image-timeout-s": (
        "time after which an image was given up",
        "use --reply-timeout-s S for ranks that are silent",
    ),
    "--max-attempts": ("tries before an error row", "leave it out: each image has three"),
    "--window": ("images in an open loop at a time", "leave it out: 4096, or 8 for each rank"),
    "--warmup-tasks": ("dummy tasks at the start of a rank", "leave it out: each rank runs three"),
    "--channels-last": ("memory format of the networks", "leave it out: always channels-last"),
    "--bad-shards": (
        "what to do with shards that cannot be read",
        "leave it out: the others are classified, and the exit code is 4; --dry-run names them",
    ),
    "--no-simulation": ("slow-ranks without its simulation", "leave it out; none is made"),
    "slurm render run_het": ("rank 0 on a CPU node", "use run_nodes"),
    "slurm render run_teams_het": ("coordinators on CPU nodes", "use run_teams"),
    "slurm render chain": ("submitted all steps", "see jobs/slurm/README.md, Submit"),
    "--coordinator-cpus": ("cores of a coordinator in run_het", "leave it out"),
    "--straggler pareto": ("service times with a heavy tail", "use --straggler lognormal"),
    "--straggler-tail": ("index of the model pareto", "use --straggler lognormal"),
    "--straggler-slow-share": ("share that is slow", "leave it out: 5 % of tasks or of the time"),
    "--straggler-slow-factor": ("how much slower", "leave it out: 5 times; see --slow-ranks"),
    "--straggler-spell-s": ("mean length of slow periods", "leave it out: 2 s"),
    "--trace-draws": ("how a trace is drawn from", "leave it out: a row for each rank, in order"),
    "--time-scale": (
        "factor of injected times",
        "use --straggler-median-ms MS, or multiply the numbers of the trace",
    ),
    "demo --groups": ("length of the demo's runs", "use --images N"),
    "demo --time-scale": ("factor of the demo's times", "leave it out"),
}


def removed(*words: str) -> str | None:
    """The line about something that was removed; None if the words name no such thing.

    Args:
        words: a command, an option, or one of them with its value, such as "--scheme", "parity".
    """
    name = " ".join(words)
    if name not in TABLE:
        return None
    was, instead = TABLE[name]
    return f"{name} was removed ({was}): {instead}"


def removed_setting(name: str, value: object = None) -> str | None:
    """As `removed`, for a setting such as parity_k, or for one of its values."""
    flag = "--" + name.replace("_", "-")
    if value is not None:
        return removed(flag, str(value))
    return removed(flag) or removed("run", flag)
