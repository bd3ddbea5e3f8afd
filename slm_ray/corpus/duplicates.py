"""Rows that say the same twice: exact duplicates by content, near-duplicates by the word triples they share.

Near-duplicates are found with MinHash and locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3): it proposes pairs, and each pair is then measured exactly, so none is grouped
by chance and about one in a thousand at the threshold is missed. The same rows and seed give the same groups in any
order. Words and arithmetic signs are compared, not meaning: a paraphrase is no duplicate.
100,000 rows of 50 words take half a minute of one core and 2 GiB.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from slm_ray.corpus.letters import question, words
from slm_ray.corpus.render import normalised
from slm_ray.corpus.step import Step, sift
from slm_ray.corpus.ties import Ties
from slm_ray.errors import ConfigError
from slm_ray.types import Example

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


def exact(examples: Sequence[Example]) -> tuple[list[Example], Step]:
    """Without rows whose turns and answer, but for spacing, an earlier row has already."""
    seen: set[bytes] = set()

    def repeated(example: Example) -> str | None:
        turns = [(turn.role, _spaced(turn.content)) for turn in example.prompt.messages]
        text = json.dumps([*turns, ("answer", _spaced(example.reference))])
        key = hashlib.sha256(text.encode()).digest()[:_KEY_BYTES]  # the texts would stand in memory once more
        if key in seen:
            return "said before"
        seen.add(key)
        return None

    return sift("exact duplicates", examples, repeated)


def near(examples: Sequence[Example], *, threshold: float = 0.8, seed: int = 42) -> tuple[list[Example], Step]:
    """Only the first row of every group of near-duplicates; question and answer are compared together."""
    roots = groups(examples, threshold=threshold, seed=seed, text=_whole)
    kept = [example for row, example in enumerate(examples) if roots[row] == row]
    sizes = [size for size in Counter(roots).values() if size > 1]
    note = f"{len(sizes):,} groups, the largest of {max(sizes):,} rows, threshold {threshold:g}" if sizes else ""
    return kept, Step(name="near-duplicates", kept=len(kept), dropped=len(examples) - len(kept), note=note)


def groups(
    examples: Sequence[Example], *, threshold: float = 0.8, seed: int = 42, text: Callable[[Example], str] = question
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
    shingles, rows_with = _index([text(example) for example in examples])
    weight = _weights(rows_with, len(examples))
    told = [tuple(shingle for shingle in row if weight[shingle]) or row for row in shingles]
    ties = Ties(len(examples))
    for left, right in candidates(told, list(rows_with), threshold, seed):
        if ties.root(left) != ties.root(right) and _similarity(told[left], told[right], weight) >= threshold:
            ties.join(left, right)
    return ties.roots()


def _index(texts: Iterable[str]) -> tuple[list[tuple[int, ...]], dict[str, int]]:
    """Each text's shingles as numbers, and every shingle, in the order of its number, with its count of rows."""
    number: dict[str, int] = {}
    rows_with: dict[str, int] = {}
    rows: list[tuple[int, ...]] = []
    for text in texts:
        found = dict.fromkeys(_shingles(text))
        for shingle in found:
            rows_with[shingle] = rows_with.get(shingle, 0) + 1
        rows.append(tuple(number.setdefault(shingle, len(number)) for shingle in found))
    return rows, rows_with


def _shingles(text: str) -> Iterator[str]:
    # Signs are spelled out, because `3 + 4` and `3 - 4` are not the same question.
    folded = words(text.casefold().translate(_SIGNS))
    if len(folded) < _SHINGLE_WORDS:
        yield " ".join(folded) or normalised(text)
    for start in range(len(folded) - _SHINGLE_WORDS + 1):
        yield " ".join(folded[start : start + _SHINGLE_WORDS])


def _weights(rows_with: dict[str, int], rows: int) -> list[float]:
    """Each shingle's weight in [0, 1]. Few rows cannot tell what is common, so rarity is as among 1,000 at least."""
    template = max(rows * _TEMPLATE_SHARE, _TEMPLATE_ROWS - 1)
    scale = math.log(1 + max(rows, _RARITY_ROWS))
    return [0.0 if count > template else 1 - math.log(count) / scale for count in rows_with.values()]


def candidates(
    rows: Sequence[tuple[int, ...]], shingles: Sequence[str], threshold: float, seed: int
) -> Iterator[tuple[int, int]]:
    """Pairs of rows that are likely to reach `threshold`, each once."""
    from datasketch import MinHash, MinHashLSH  # it loads scipy

    # The hash is of the shingle's text, not of its number, which depends on the order of the rows.
    hashes = [zlib.crc32(shingle.encode()) for shingle in shingles]
    empty = MinHash(num_perm=_HASHES, seed=seed, hashfunc=_same, scheme="affine32")
    index = MinHashLSH(num_perm=_HASHES, params=_bands(threshold))
    for row, numbers in enumerate(rows):
        sketch = empty.copy()
        sketch.update_batch([hashes[number] for number in numbers])
        for earlier in sorted(index.query(sketch)):
            yield earlier, row
        index.insert(row, sketch)


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and hashes per band: the longest bands that miss a pair at `threshold` in at most 0.1 % of cases."""
    length = 1
    for longer in range(2, _HASHES // 2 + 1):
        if (1 - threshold**longer) ** (_HASHES // longer) > _MISSED:
            break
        length = longer
    return _HASHES // length, length


def _similarity(left: tuple[int, ...], right: tuple[int, ...], weight: Sequence[float]) -> float:
    """Weighted Jaccard index; two rows of template alone are the same when their shingles are."""
    mine, theirs = set(left), set(right)
    either = math.fsum(weight[shingle] for shingle in mine | theirs)
    if not either:
        return float(mine == theirs)
    # Rounded, so that a pair exactly at the threshold is not lost to the last bit.
    return round(math.fsum(weight[shingle] for shingle in mine & theirs) / either, _EXACT_DIGITS)


def _whole(example: Example) -> str:
    return f"{question(example)}\n{example.reference}"


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _same(value: Any) -> Any:
    return value
