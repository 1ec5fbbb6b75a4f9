"""Do the tests bite? One small defect at a time goes into the core, and the tests of its line run.

A script of ours and neither mutmut nor cosmic-ray: neither draws a seeded sample in proportion from
each part of the package, and cosmic-ray changes the checkout itself and runs all tests for each
mutant. Here those that run the line are run, a case of each function first, in a copy of the tree,
which processes that they start import too; each in a fork of a process that has collected them all.
A result is a line of JSON, and what is in the file is not run again.

    python tests/mutation/mutate.py --out runs/mutants.jsonl --sample 600 --seed 1
    python tests/mutation/mutate.py --out runs/mutants.jsonl --modules scheduler results/verify.py
    python tests/mutation/mutate.py --out runs/mutants.jsonl --again    # those that lived

What lives and is the same as the code for all who look is named in equivalent.py, with the reason.
Which tests run a line is measured once, and of a test's file again when that has changed. Only
tests/pure and tests/loops are asked: what real ranks alone would notice counts as lived. Every 25th
mutant is followed by a control, its tests on the code as it is: that must live.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from equivalent import SAME
from mutants import Mutant, drawn, mutants_of
from trees import ROOT, LinesOfTests, Tree

PARTS = (
    *("scheduler", "job", "mpi", "results", "faults", "encoding", "shards", "launch"),
    *("system/files.py", "workload/straggler_settings.py", "models/weights.py"),
    *("simulation/simulator.py", "simulation/costs.py"),
)
CONTROL_EVERY = 25


def all_mutants(parts: Sequence[str]) -> dict[str, list[Mutant]]:
    """Those of each part: a file or a folder of the package."""
    found = {}
    for part in parts:
        path = ROOT / "collage_mpi" / part
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        of_file = [mutants_of(str(f.relative_to(ROOT)), f.read_bytes()) for f in files]
        found[part] = [mutant for mutants in of_file for mutant in mutants]
    return found


def outcome(mutant: Mutant, control: bool, tests: LinesOfTests, limit_s: float, tree: Tree) -> dict:
    """What became of a mutant under its tests; of a control: of the code as it is."""
    found, chosen, took_s = tests.tests(mutant), {}, 0.0
    for test in found:
        took_s += tests.seconds[test]
        if chosen and took_s > limit_s:
            break
        chosen[test] = tests.seconds[test]
    key = mutant.key + "-control" * control
    record = {**asdict(mutant), "key": key, "control": control, "tests": len(chosen)}
    if not chosen:
        return {**record, "became": "untested"}
    start = time.monotonic()
    answer = tree.outcome(mutant, control, chosen, tests.files)
    seconds = round(time.monotonic() - start, 1)
    return {**record, **answer, "left_out": len(found) - len(chosen), "seconds": seconds}


def wilson(killed: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, killed / of
    middle, reach = (
        share + z * z / (2 * of),
        z * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2),
    )
    return (middle - reach) / (1 + z * z / of), (middle + reach) / (1 + z * z / of)


def table(records: Sequence[dict], parts: Sequence[str]) -> str:
    """What became of the mutants of each part, and of all; a hang is a death.

    The share of the dead is of those that are not the same as the code.
    """
    words = ("killed", "hung", "lived", "untested", "same")
    lines = [
        f"{'part':28}{'mutants':>8}" + "".join(f"{word:>9}" for word in words) + "  dead (95 %)"
    ]
    real = [r for r in records if not r["control"]]
    of_part = {part: [r for r in real if _is_of(r["file"], part)] for part in parts}
    for name, some in [*of_part.items(), ("all", real)]:
        if some:
            counts = [sum(r["became"] == word for r in some) for word in words]
            dead, of = counts[0] + counts[1], max(1, len(some) - counts[4])
            low, high = wilson(dead, of)
            lines.append(
                f"{name:28}{len(some):8}" + "".join(f"{count:9}" for count in counts)
                + f"  {dead / of:.0%} ({low:.0%} to {high:.0%})"
            )  # fmt: skip
    controls = [r for r in records if r["control"]]
    dead = sum(r["became"] in ("killed", "hung") for r in controls)
    return "\n".join([*lines, f"controls: {len(controls)}, of which {dead} died (none may)"])


def _is_of(file: str, part: str) -> bool:
    path = f"collage_mpi/{part}"
    return file == path or file.startswith(path + "/")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results; what is there is kept")
    parser.add_argument("--sample", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--modules", nargs="+", default=PARTS, help="of the package, or folders")
    parser.add_argument(
        "--tests", nargs="+", default=["tests/pure/test_*.py", "tests/loops/test_*.py"]
    )
    parser.add_argument("--tests-s", type=float, default=90.0, help="of CPU, of tests a mutant")
    parser.add_argument("--again", action="store_true", help="run those that lived once more")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()

    if not Path("/proc/self/schedstat").exists():  # else what only takes long would count as a hang
        raise SystemExit("mutate.py tells hangs by /proc/PID/schedstat, which this kernel has not")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    known = {record["key"]: record for record in map(json.loads, lines)}  # the last one counts
    sample = drawn(
        all_mutants(args.modules), args.sample, args.seed,
        lambda mutant: mutant.compiles((ROOT / mutant.file).read_bytes()),
    )  # fmt: skip
    anew = {"lived", "untested"} if args.again else set()
    todo = [m for m in sample if m.key not in known or known[m.key]["became"] in anew]
    with tempfile.TemporaryDirectory() as folder, args.out.open("a") as out:
        trees: SimpleQueue[Tree] = SimpleQueue()
        first = Tree(Path(folder, "0"))
        for tree in [first, *(first.copied(Path(folder, str(n))) for n in range(1, args.jobs))]:
            trees.put(tree)
        files = sorted({f for pattern in args.tests for f in ROOT.glob(pattern)})
        tests = LinesOfTests(trees, args.jobs, files)
        print(f"{len(sample)} mutants, {len(todo)} to run, {len(tests.seconds)} tests", flush=True)

        def run(number: int, mutant: Mutant) -> None:
            for control in (False, True)[: 1 + (number % CONTROL_EVERY == 0)]:
                tree = trees.get()
                record = outcome(mutant, control, tests, args.tests_s, tree)
                trees.put(tree)
                known[record["key"]] = record
                out.write(json.dumps(record) + "\n")
                out.flush()

        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(run, range(len(todo)), todo))
        for _ in range(args.jobs):
            trees.get().end()
    for mutant in sample:
        record = known[mutant.key]
        if record["became"] in ("lived", "untested"):
            source = (ROOT / mutant.file).read_bytes()
            diff = mutant.diff(source)
            why = SAME.get((mutant.file, mutant.added(source)))
            if why is not None:
                known[mutant.key] = {**record, "became": "same"}
            about = f"the same, as {why}" if why else record["became"]
            print(f"\n{about}: {mutant.file}:{mutant.line} {mutant.operator}\n{diff}")
    keys = [key for mutant in sample for key in (mutant.key, mutant.key + "-control")]
    print("\n" + table([known[key] for key in keys if key in known], args.modules))
    return 0


if __name__ == "__main__":
    sys.exit(main())
