"""Sets of positions as spans [first, stop): sorted, none empty, none that touch each other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

Span = tuple[int, int]
Spans = tuple[Span, ...]


def count(spans: Iterable[Span]) -> int:
    """Number of positions."""
    return sum(stop - first for first, stop in spans)


def union(*sets: Iterable[Span]) -> Spans:
    """The positions of all sets, which may overlap."""
    found: list[Span] = []
    for first, stop in sorted(span for each in sets for span in each):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((first, stop))
    return tuple(found)


def common(one: Spans, other: Spans) -> Spans:
    """The positions of both sets."""
    found, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        first, stop = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if first < stop:
            found.append((first, stop))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def minus(one: Spans, other: Spans) -> Spans:
    """The positions of the first set that are not in the second."""
    found, j = [], 0
    for first, stop in one:
        while j < len(other) and other[j][1] <= first:
            j += 1
        k = j
        while k < len(other) and other[k][0] < stop:
            if first < other[k][0]:
                found.append((first, other[k][0]))
            first = max(first, other[k][1])
            k += 1
        if first < stop:
            found.append((first, stop))
    return tuple(found)


def head(spans: Spans, n: int) -> Spans:
    """The first n positions, or all."""
    found: list[Span] = []
    for first, stop in spans:
        if n <= 0:
            break
        found.append((first, min(stop, first + n)))
        n -= stop - first
    return tuple(found)


def in_order(spans: Spans) -> bool:
    """Whether spans of unknown origin are a set as this module makes them."""
    ends = [end for span in spans for end in span]
    return all(one < other for one, other in pairwise(ends))
