"""Damaged inputs for every reader of this package, and what the readers make of them.

Usage: python tests/faults/fuzz.py --inputs 1000 --seed 1      so many for each reader
       python tests/faults/fuzz.py --inputs 1000 --seed 1 --log fuzz.jsonl      goes on where it was
       python tests/faults/fuzz.py --inputs 5000 --cpu-s 2      fewer of what takes long

Each input is a valid file (or message) with bytes changed, zeroed, cut off, repeated or
inserted, numbers made huge, text tokens exchanged; for JSON also with values replaced and
the rest of the file kept sound. A reader may read it or refuse it with an error for the
user. Anything else is a finding: another exception, more than LIMIT_S seconds of CPU time or
HANG_S on the clock, more memory than ROOM_BYTES on top of what the process had.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "pure"))
sys.path.insert(0, str(Path(__file__).parents[1] / "loops"))
sys.path.insert(0, str(Path(__file__).parents[2]))

LIMIT_S = 10.0  # CPU time of one input; a sound one takes up to 0.2 s
HANG_S = 120.0  # of one that waits for something, however busy the machine is
ROOM_BYTES = 2 << 30  # address space for one input: a header that claims more must not get it
HUGE = (b"1000000000000", b"-1", b"99999999999999999999999", b"1e309", b"NaN", b"null", b"[]")


class TooSlow(BaseException):
    """An input took longer than it may; no handler of a reader may catch it."""


@dataclass
class Reader:
    """One reader and valid inputs for it.

    Attributes:
        name: in the table.
        valid: sound inputs.
        read: takes the bytes; raises what it raises.
        allowed: what may leave it.
        change: how inputs are damaged; bytes by default.
        files: damaged files that one input stands for.
        every: so many times fewer inputs than asked for: one takes a second.
    """

    name: str
    valid: list[bytes]
    read: Callable[[bytes], Any]
    allowed: tuple[type[BaseException], ...]
    change: Callable[[random.Random, bytes], bytes] = field(
        default=lambda rng, raw: damage(rng, raw)
    )
    files: int = 1
    every: int = 1


@dataclass
class Tally:
    """What became of a reader's inputs."""

    name: str
    inputs: int = 0
    files: int = 1
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[bytes, str]] = field(default_factory=list)


# ---- damage -----------------------------------------------------------------


def damage(rng: random.Random, raw: bytes) -> bytes:
    """One to four changes of bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        raw = rng.choice(CHANGES)(rng, raw)
    return raw


def _flip(rng: random.Random, raw: bytes) -> bytes:
    at = _place(rng, raw)
    return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]


def _zero(rng: random.Random, raw: bytes) -> bytes:
    at, n = _place(rng, raw), rng.choice((1, 2, 4, 8, 64))
    return raw[:at] + bytes([rng.choice((0, 255))]) * n + raw[at + n :]


def _cut(rng: random.Random, raw: bytes) -> bytes:
    return raw[: _place(rng, raw)]


def _remove(rng: random.Random, raw: bytes) -> bytes:
    at = _place(rng, raw)
    return raw[:at] + raw[at + rng.choice((1, 2, 8, 100)) :]


def _repeat(rng: random.Random, raw: bytes) -> bytes:
    at, n = _place(rng, raw), rng.choice((1, 8, 64, 500))
    return raw[: at + n] + raw[at : at + n] * rng.choice((1, 1, 50)) + raw[at + n :]


def _insert(rng: random.Random, raw: bytes) -> bytes:
    at = _place(rng, raw)
    return raw[:at] + rng.randbytes(rng.choice((1, 4, 30))) + raw[at:]


def _number(rng: random.Random, raw: bytes) -> bytes:
    """A number in the text, or four or eight bytes, become another number."""
    found = list(re.finditer(rb"\d+(\.\d+)?", raw[:100_000]))
    if found and rng.random() < 0.7:
        match = rng.choice(found)
        return raw[: match.start()] + rng.choice(HUGE) + raw[match.end() :]
    at = _place(rng, raw)
    size = rng.choice((4, 8))
    value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 10**12 % 2 ** (8 * size)))
    return raw[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + raw[at + size :]


def _token(rng: random.Random, raw: bytes) -> bytes:
    found = list(re.finditer(rb"[A-Za-z_]{3,}", raw[:100_000]))
    if len(found) < 2:
        return _flip(rng, raw)
    one, other = rng.choice(found), rng.choice(found)
    return raw[: one.start()] + other[0] + raw[one.end() :]


def _place(rng: random.Random, raw: bytes) -> int:
    """Half of the time in the first 300 bytes, where headers are."""
    if not raw:
        return 0
    return rng.randrange(min(300, len(raw)) if rng.random() < 0.5 else len(raw))


CHANGES = (_flip, _flip, _zero, _cut, _remove, _repeat, _insert, _number, _number, _token)


def other_value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, odd ones above all."""
    plain = (None, True, 0, -1, 1, 3, 10**12, 10**400, -(10**30), 1e308, -0.5, "", "x", "a" * 999)
    odd = (float("inf"), float("nan"), "\ud800", "../../x", "/etc/x", "\x00", "single", "1:5")
    if depth < 2 and rng.random() < 0.25:
        inner = [other_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        return inner if rng.random() < 0.5 else {str(i): v for i, v in enumerate(inner)}
    return rng.choice((*plain, *odd))


def change_json(rng: random.Random, value: Any) -> Any:
    """A JSON value with some of it replaced, removed or added."""
    holder = [value]
    for _ in range(rng.choice((1, 1, 2, 3))):
        node: Any = holder
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            inner = node[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
                node = inner
                continue
            if isinstance(node, dict) and rng.random() < 0.15:
                del node[key]
            else:
                node[key] = other_value(rng)
            break
    return holder[0]


# ---- running ----------------------------------------------------------------


@contextmanager
def limits() -> Iterator[None]:
    """A time limit and an address space limit around one input."""

    def late(number: int, frame: object) -> None:
        raise TooSlow

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, LIMIT_S),
              (signal.SIGALRM, signal.ITIMER_REAL, HANG_S))  # fmt: skip
    old = {number: signal.signal(number, late) for number, _, _ in timers}
    for _, timer, limit_s in timers:
        signal.setitimer(timer, limit_s)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        for number, timer, _ in timers:
            signal.setitimer(timer, 0)
            signal.signal(number, old[number])


def fuzz(reader: Reader, files: int, seed: int, cpu_s: float = math.inf) -> Tally:
    """So many damaged files (or messages) for a reader, or as many as there is time for."""
    rng = random.Random(f"{seed}:{reader.name}")
    tally = Tally(reader.name, files=reader.files)
    for raw in reader.valid:
        reader.read(raw)  # they are valid, and what is imported on first use is there
    end_s = time.process_time() + cpu_s
    while tally.inputs * reader.files * reader.every < files and time.process_time() < end_s:
        raw = reader.change(rng, rng.choice(reader.valid))
        tally.inputs += 1
        try:
            with limits():
                reader.read(raw)
            tally.read += 1
        except reader.allowed as error:
            tally.refused[type(error).__name__] += 1
        except (Exception, TooSlow):
            tally.findings.append((raw, traceback.format_exc(limit=-4)))
    return tally


def table(tallies: list[Tally]) -> str:
    """A line a reader."""
    rows = [("reader", "inputs", "read", "refused", "findings")]
    rows += [(name, *map(str, counts)) for name, *counts in map(_row, tallies)]
    sums = [str(sum(int(row[i]) for row in rows[1:])) for i in range(1, 5)]
    rows.append(("all", *sums))
    return "\n".join(f"{row[0]:30}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)


def _row(tally: Tally) -> tuple[Any, ...]:
    n, refused = tally.files, sum(tally.refused.values())
    return tally.name, n * tally.inputs, n * tally.read, n * refused, len(tally.findings)


def main() -> int:
    """Fuzz all readers, print the table and the findings; 1 if there are any."""
    from fuzz_readers import make_readers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cpu-s", type=float, default=math.inf, help="for each reader at most")
    parser.add_argument("--only", help="readers whose name holds this")
    parser.add_argument("--log", type=Path, help="what was done, a line a reader and seed")
    args = parser.parse_args()
    lines = args.log.read_text().splitlines() if args.log and args.log.exists() else []
    done = {(line["seed"], line["inputs"], line["name"]) for line in map(json.loads, lines)}
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        for reader in make_readers(Path(folder)):
            one = {"seed": args.seed, "inputs": args.inputs, "name": reader.name}
            if (args.only and args.only not in reader.name) or tuple(one.values()) in done:
                continue
            tallies.append(fuzz(reader, args.inputs, args.seed, args.cpu_s))
            _tell(tallies[-1])
            if args.log:
                _, *counts = _row(tallies[-1])
                with args.log.open("a") as log:
                    print(json.dumps({**one, "counts": counts}), file=log)
    print(table(tallies))
    return int(any(tally.findings for tally in tallies))


def _tell(tally: Tally) -> None:
    print(f"{tally.name}: {len(tally.findings)} findings", flush=True)
    kinds = Counter(text.strip().splitlines()[-1][:100] for _, text in tally.findings)
    for kind, count in kinds.most_common(8):
        raw, example = next((r, t) for r, t in tally.findings if kind in t)
        print(f"  {count} x {kind}\n{example}  {raw[:600]!r}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
