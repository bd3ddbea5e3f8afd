"""Rows that say the same twice: exact duplicates by content, near-duplicates by the word triples they share.

Near-duplicates are found with MinHash and locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3): it proposes pairs, and each pair is then measured exactly, so none is grouped
by chance and about one in a thousand at the threshold is missed. The same rows and seed give the same groups in any
order. Words and arithmetic signs are compared, not meaning: a paraphrase is no duplicate.
100,000 rows of 50 words take 14 s of one core and 400 MiB.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm_ray.corpus.filters import Row, Step, filter_rows
from slm_ray.corpus.render import normalised
from slm_ray.corpus.unicode_text import question, words
from slm_ray.errors import ConfigError
from slm_ray.types import Example

Numbers = NDArray[np.integer]

NEAR = 0.8  # share of word triples from which two rows are near-duplicates
_SHINGLE_WORDS = 3
_KEY_BYTES = 16
_SIGNS = {
    ord(sign): f" {name} "
    for signs, name in (
        ("+", "plus"), ("-−–", "minus"), ("*×", "times"), ("/÷", "over"), ("%", "percent"), ("=", "is"),
        ("<", "below"), (">", "above"),
    )
    for sign in signs
}  # fmt: skip
_HASHES = 128
_MISSED = 0.001
_TEMPLATE_SHARE = 0.5
_TEMPLATE_ROWS = 5
_RARITY_ROWS = 1000
_EXACT_DIGITS = 9


class UnionFind:
    """A growing partition of the rows 0 to `count` - 1; at first every row is alone."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, row: int) -> int:
        """The first row of the row's group."""
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, left: int, right: int) -> None:
        """Put the groups of two rows together."""
        left, right = self.root(left), self.root(right)
        self._parent[max(left, right)] = min(left, right)

    def roots(self) -> list[int]:
        """For each row the first row of its group: rows with the same number belong together."""
        return [self.root(row) for row in range(len(self._parent))]


def exact(examples: Sequence[Row]) -> tuple[list[Row], Step]:
    """Without rows whose turns and answer, but for spacing, an earlier row has already."""
    seen: set[bytes] = set()

    def repeated(example: Example) -> str | None:
        turns = [(turn.role, _spaced(turn.content)) for turn in example.prompt.messages]
        text = json.dumps([*turns, ("answer", _spaced(example.target))])
        key = hashlib.sha256(text.encode()).digest()[:_KEY_BYTES]  # the texts would stand in memory once more
        if key in seen:
            return "said before"
        seen.add(key)
        return None

    return filter_rows("exact duplicates", examples, repeated)


def near(examples: Sequence[Row], *, threshold: float = NEAR, seed: int = 42) -> tuple[list[Row], Step]:
    """Only the first row of every group of near-duplicates; question and answer are compared together."""
    roots = groups(examples, threshold=threshold, seed=seed, text=_whole)
    kept = [example for row, example in enumerate(examples) if roots[row] == row]
    sizes = [size for size in Counter(roots).values() if size > 1]
    note = f"{len(sizes):,} groups, the largest of {max(sizes):,} rows, threshold {threshold:g}" if sizes else ""
    return kept, Step(name="near-duplicates", kept=len(kept), dropped=len(examples) - len(kept), note=note)


def groups(
    examples: Sequence[Example], *, threshold: float = NEAR, seed: int = 42, text: Callable[[Example], str] = question
) -> list[int]:
    """For each example the first row of its group of near-duplicates (itself where it has none).

    Two rows are near-duplicates when the similarity of what `text` says of them is at least `threshold`, in (0, 1]; a
    group also holds rows that are tied only through others. Similarity is the Jaccard index of the rows' shingles
    (three words in a row), each weighted by its rarity, 1 for a shingle of one row and falling with the logarithm of
    the rows that have it: a tool's description on fifty rows counts half. Shingles of more than half of the rows are the
    prompt's template and count nothing.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the threshold of near-duplicates is {threshold:g}; give a share above 0 and up to 1")
    shingles, hashes, rows_with = _index(text(example) for example in examples)
    weight = _weights(rows_with, len(examples))
    told = [_telling(row, weight) for row in shingles]
    ties = UnionFind(len(examples))

    def alike(left: int, right: int) -> bool:
        return _similarity(told[left], told[right], weight) >= threshold

    for bucket in buckets((hashes[row] for row in told), len(told), threshold, seed):
        _tie(bucket, ties, alike)
    return ties.roots()


def _telling(row: Numbers, weight: NDArray[np.float64]) -> Numbers:
    """The row's shingles that count, or all of them when none does; no copy where all do."""
    counting = weight[row] > 0
    return row if counting.all() or not counting.any() else row[counting]


def _tie(bucket: Sequence[int], ties: UnionFind, alike: Callable[[int, int], bool]) -> None:
    """Join the rows of a bucket that are alike. Rows that are joined already are not held against each other."""
    parts: list[list[int]] = []
    for row in bucket:
        mine: list[int] | None = None
        for part in list(parts):
            if ties.root(part[0]) != ties.root(row) and not any(alike(other, row) for other in part):
                continue
            ties.join(part[0], row)
            if mine is None:
                mine = part
                mine.append(row)
            else:
                mine.extend(part)
                parts.remove(part)
        if mine is None:
            parts.append([row])


def _index(texts: Iterable[str]) -> tuple[list[Numbers], Numbers, Numbers]:
    """Each text's shingles as numbers, and by number what MinHash hashes and how many texts have it.

    A shingle is known by 64 bits of BLAKE2: the texts of all of them would take ten times the memory of their rows. Among
    ten million shingles two are mistaken for one once in 370,000 data sets.
    """
    ends, keys, checks = [0], array("Q"), array("I")
    for text in texts:
        found = [shingle.encode() for shingle in dict.fromkeys(_shingles(text))]
        keys.extend(int.from_bytes(hashlib.blake2b(shingle, digest_size=8).digest()) for shingle in found)
        checks.extend(map(zlib.crc32, found))
        ends.append(len(keys))
    numbers, first, counts = _numbered(np.frombuffer(keys, dtype=np.uint64))
    rows: list[Numbers] = list(np.split(numbers, ends[1:-1])) if len(ends) > 1 else []
    return rows, np.frombuffer(checks, dtype=np.uint32)[first], counts


def _numbered(keys: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Every key's number, and by number one place of it and how many there are; `np.unique` takes twice the memory."""
    order = np.argsort(keys)
    ordered = keys[order]
    begins = np.ones(len(keys), dtype=bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    del ordered
    numbers = np.empty(len(keys), dtype=np.int32)
    numbers[order] = np.cumsum(begins, dtype=np.int32) - 1
    starts = np.flatnonzero(begins)
    return numbers, order[starts], np.diff(starts, append=len(keys))


def _shingles(text: str) -> Iterator[str]:
    # Signs are spelled out, because `3 + 4` and `3 - 4` are not the same question.
    folded = words(text.casefold().translate(_SIGNS))
    if len(folded) < _SHINGLE_WORDS:
        yield " ".join(folded) or normalised(text)
    for start in range(len(folded) - _SHINGLE_WORDS + 1):
        yield " ".join(folded[start : start + _SHINGLE_WORDS])


def _weights(rows_with: Numbers, rows: int) -> NDArray[np.float64]:
    """Each shingle's weight in [0, 1]. Few rows cannot tell what is common, so rarity is as among 1,000 at least."""
    template = max(rows * _TEMPLATE_SHARE, _TEMPLATE_ROWS - 1)
    scale = math.log(1 + max(rows, _RARITY_ROWS))
    kinds, which = np.unique(rows_with, return_inverse=True)
    by_kind = [0.0 if count > template else 1 - math.log(count) / scale for count in kinds.tolist()]
    return np.array(by_kind, dtype=np.float64)[which]


def buckets(hashes: Iterable[Numbers], rows: int, threshold: float, seed: int) -> Iterator[list[int]]:
    """Rows, by the hashes of their shingles, of which some are likely to reach `threshold`: two or more at a time, in order.

    Two rows are in a bucket when a band of their signatures is the same; they may be together in several.
    """
    from datasketch import MinHash  # it loads scipy

    empty = MinHash(num_perm=_HASHES, seed=seed, hashfunc=_same, scheme="affine32")
    signatures = np.empty((rows, _HASHES), dtype=np.uint32)
    for place, row in enumerate(hashes):
        sketch = empty.copy()
        sketch.update_batch(row.tolist())
        signatures[place] = sketch.hashvalues
    bands, length = _bands(threshold)
    for start in range(0, bands * length, length):
        band = signatures[:, start : start + length]
        order = np.lexsort(band.T)
        differs = (band[order[1:]] != band[order[:-1]]).any(axis=1)
        for same in np.split(order, np.flatnonzero(differs) + 1):
            if len(same) > 1:
                yield same.tolist()


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and hashes per band: the longest bands that miss a pair at `threshold` in at most 0.1 % of cases."""
    length = 1
    for longer in range(2, _HASHES // 2 + 1):
        if (1 - threshold**longer) ** (_HASHES // longer) > _MISSED:
            break
        length = longer
    return _HASHES // length, length


def _similarity(left: Numbers, right: Numbers, weight: NDArray[np.float64]) -> float:
    """Weighted Jaccard index; two rows of template alone are the same when their shingles are."""
    both, either = np.intersect1d(left, right, assume_unique=True), np.union1d(left, right)
    total = math.fsum(weight[either])
    if not total:
        return float(len(both) == len(either))
    # Rounded, so that a pair exactly at the threshold is not lost to the last bit.
    return round(math.fsum(weight[both]) / total, _EXACT_DIGITS)


def _whole(example: Example) -> str:
    return f"{question(example)}\n{example.target}"


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _same(value: Any) -> Any:
    return value
