"""What limits a run, from what each rank did with its time: one sentence, and the busy GPUs."""

from __future__ import annotations

import pytest

from collage_mpi.system.bottleneck import (
    LIFTS,
    SUBJECTS,
    Limit,
    RankUse,
    Use,
    limit_of,
    limit_of_members,
)

S = 1_000_000_000


def use(**parts: float) -> Use:
    """Of 10 s, in seconds; `decoders` as it is."""
    decoders = int(parts.pop("decoders", 1))
    times = {f"{name}_ns": round(s * S) for name, s in {"elapsed": 10.0, **parts}.items()}
    return Use(**times, decoders=decoders)


def ranks(*uses: Use, device: str = "cpu") -> list[RankUse]:
    return [RankUse(n, each, "host", device) for n, each in enumerate(uses, 1)]


IDLE0 = use(computing=0.5)
STARVED = {"starved": 6.1, "computing": 3.9}
JOBS = {
    "decoding": (
        ranks(*[use(**STARVED, decoding=9, reading=1)] * 2),
        IDLE0,
        "decoding on the CPU is the limit: the network waits 61 % of the time; "
        "2 more cores a rank or shards would lift it",
    ),
    "reading": (
        ranks(*[use(**STARVED, decoding=2, reading=8)] * 2, device="cuda:0"),
        IDLE0,
        "reading the input is the limit: the network waits 61 % of the time; "
        "a faster disk, more ranks or shards would lift it",
    ),
    "gpu": (
        ranks(use(computing=9.3, decoding=6), device="cuda:0"),
        IDLE0,
        "the network on the GPU is the limit: it computes 93 % of the time; "
        "more GPUs or a quicker number format would lift it",
    ),
    "cpu": (
        ranks(use(computing=9, starved=1, decoding=3), use(computing=8)),
        IDLE0,
        "the network on the CPU is the limit: it computes 85 % of the time; "
        "more cores or a GPU would lift it",
    ),
    "arrivals": (
        ranks(use(computing=2)),
        use(computing=9),
        "the arrival of images is the limit: the ranks wait for work 80 % of the time; "
        "fewer ranks would do",
    ),
    "rank 0": (
        ranks(use(computing=2), use(computing=3)),
        use(computing=9, decoding=9),
        "rank 0 is the limit: it works 90 % of the time, and the ranks wait for work 75 % of the "
        "time; a larger --batch or more --teams would lift it",
    ),
    "rank 0 decoding": (
        ranks(use(computing=2)),
        use(decoding=7, reading=2),
        "decoding on rank 0 is the limit: the ranks wait for work 80 % of the time; "
        "--pixels workers or shards would lift it",
    ),
    "rank 0 reading": (
        ranks(use(computing=2)),
        use(decoding=2, reading=7),
        "reading on rank 0 is the limit: the ranks wait for work 80 % of the time; "
        "--pixels workers or a faster disk would lift it",
    ),
    "one rank": (
        ranks(use(computing=2), use(computing=8), use(computing=3)),
        IDLE0,
        "rank 2 is the limit: it is busy 80 % of the time, and the others 25 %; "
        "without it the others would wait less",
    ),
    "in flight": (
        ranks(use(computing=4), use(computing=3)),
        IDLE0,
        "too few images in flight are the limit: the ranks wait for work 65 % of the time, and "
        "nothing else is busy; a larger --depth or --batch would lift it",
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_limit_of_each_job_is_named(name: str) -> None:
    workers, rank0, sentence = JOBS[name]
    found = limit_of(workers, [rank0], open_loop=name == "arrivals")
    assert (found.name, found.sentence) == (name, sentence)


def test_every_limit_has_a_job_here() -> None:
    assert JOBS.keys() == LIFTS.keys() == {*SUBJECTS, "one rank"}


def test_a_run_of_less_than_a_second_has_no_limit() -> None:
    short = use(elapsed=0.4, starved=0.4, decoding=0.4)
    assert limit_of(ranks(short, short), [IDLE0]).name == ""
    assert limit_of(ranks(short, short, short), [IDLE0]).name == "decoding"
    assert limit_of([], [IDLE0]).name == ""


@pytest.mark.parametrize(
    ("starved", "decoders", "cores"),
    [(5.0, 1, "one more core a rank"), (5.0, 4, "4 more cores a rank"), (9.8, 1, "more cores")],
)
def test_how_many_cores_would_lift_it(starved: float, decoders: int, cores: str) -> None:
    found = limit_of(ranks(use(starved=starved, decoding=10, decoders=decoders)), [IDLE0])
    assert f"; {cores}" in found.sentence


def test_ranks_of_one_gpu_are_added_and_little_use_is_warned_of() -> None:
    shared = ranks(use(computing=2, starved=8, decoding=9), use(computing=0.5), device="cuda:0")
    other = RankUse(3, use(computing=6), "host", "cuda:1")
    found = limit_of([*shared, other], [IDLE0])
    assert found.gpus == pytest.approx({"host cuda:0": 0.25, "host cuda:1": 0.6})
    assert found.text().endswith(
        ". GPU host cuda:0 is busy 25 % of the time, GPU host cuda:1 is busy 60 % of the time"
    )
    assert found.warning.startswith("warning: GPU host cuda:0 is busy 25 % of the time; some sites")
    assert limit_of([other], [IDLE0]).warning == ""
    many = Limit("gpu", "x", {str(n): n / 10 for n in range(9)})
    assert many.text() == "x. 9 GPUs are busy 0 % to 80 % of the time"


def test_the_manifest_of_a_run_says_it_again() -> None:
    workers, rank0, sentence = JOBS["reading"]
    world = [{"rank": 0, "role": "coordinator", "use": rank0._asdict()}]
    world += [
        {"rank": w.rank, "host": w.host, "devices": [w.device], "use": w.use._asdict()}
        for w in workers
    ]
    found = limit_of_members(world, open_loop=False)
    assert (found.sentence, found.gpus) == (sentence, {"host cuda:0": 0.78})
