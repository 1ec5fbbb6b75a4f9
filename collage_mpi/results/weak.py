"""Whether a collage network is so much weaker than the single that its answers cost.

Owns: the one rule of evaluate, the start of a run and its summary, and what to do about it.
Does not know: where the counts come from.
"""

from __future__ import annotations

from collage_mpi.results.statistics import wilson_interval

LARGE_GAP = 0.05  # the shipped networks are within 0.01 of the single
ADVICE = (
    "--accept confident or grace lets fewer of the collage's answers count; more training, a "
    "--teacher or another --preset makes them better (docs/schemes.md, docs/weights.md)"
)


def weaker_by(single: tuple[int, int], collage: tuple[int, int]) -> float | None:
    """How much less often the collage network is right, 0 to 1.

    Args:
        single, collage: right answers, and all of them.

    Returns:
        None where the gap is small, or may be chance: the 95 % intervals meet.
    """
    known, other = wilson_interval(*single), wilson_interval(*collage)
    if known is None or other is None or other[1] >= known[0]:
        return None
    gap = single[0] / single[1] - collage[0] / collage[1]
    return gap if gap >= LARGE_GAP else None
