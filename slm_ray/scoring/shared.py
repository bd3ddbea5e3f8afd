"""How many n-grams two sequences share: exact counts, by numbers instead of slices, so that a megabyte takes no minute.

A sequence is an array of whole numbers, one per token or character; equal numbers are equal tokens. Nothing is hashed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
_FEW = 120  # tokens of both together


def characters(text: str) -> Numbers:
    """The text's characters by code point, halves of surrogate pairs included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.int64)


def tokens(*texts: Sequence[Hashable]) -> tuple[Numbers, ...]:
    """Each sequence of tokens by numbers that all of them share, given in order of appearance."""
    number: dict[Hashable, int] = {}
    return tuple(
        np.fromiter((number.setdefault(token, len(number)) for token in text), dtype=np.int64, count=len(text))
        for text in texts
    )


def shared(given: Numbers, wanted: Numbers, orders: int) -> list[int]:
    """Per order from 1 to `orders` how many n-grams both have, one that is there twice counted up to twice.

    An n-gram is told from the shorter one before it and its last token. Only places where the shorter one is in `wanted`
    are looked at again, so an answer that has little of its reference is done after one order. A few tokens are counted one
    by one, which is done before an array is made.
    """
    if len(given) + len(wanted) <= _FEW:
        return _one_by_one(given.tolist(), wanted.tolist(), orders)
    kinds, first = np.unique(wanted, return_inverse=True)
    known, last = _among(given, kinds)
    numbers = np.full(len(given), -1, dtype=np.int64)
    numbers[known] = last
    places, grams, expected, counts = known, last, first, [_both(last, first)]
    for order in range(1, orders):
        inside = np.searchsorted(places, len(given) - order)  # places are in order
        places, grams = places[:inside], grams[:inside]
        following = numbers[places + order]
        kept = following >= 0
        longer, expected = np.unique(expected[: len(wanted) - order] * len(kinds) + first[order:], return_inverse=True)
        hit, grams = _among((grams * len(kinds) + following)[kept], longer)
        places = places[kept][hit]
        counts.append(_both(grams, expected))
    return counts


def _one_by_one(given: list[int], wanted: list[int], orders: int) -> list[int]:
    counts = [0] * orders
    for order in range(1, orders + 1):
        left = Counter(zip(*(wanted[place:] for place in range(order)), strict=False))
        for gram in zip(*(given[place:] for place in range(order)), strict=False):
            if left[gram] > 0:
                left[gram] -= 1
                counts[order - 1] += 1
        if not counts[order - 1]:
            break
    return counts


def _among(values: Numbers, kinds: Numbers) -> tuple[Numbers, Numbers]:
    """The places of the values that are in the sorted `kinds`, and where in it each of those is."""
    if not len(kinds):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    at = np.minimum(np.searchsorted(kinds, values), len(kinds) - 1)
    places = np.flatnonzero(kinds[at] == values)
    return places, at[places]


def _both(given: Numbers, wanted: Numbers) -> int:
    size = int(max(given.max(initial=-1), wanted.max(initial=-1))) + 1
    return int(np.minimum(np.bincount(given, minlength=size), np.bincount(wanted, minlength=size)).sum())
