"""ROUGE, BLEU and chrF of two texts, and of a run from the counts of its rows.

ROUGE is that of the package rouge-score without stemming, BLEU (13a tokens, smoothing `exp`) and chrF (six orders,
beta 2) are those of sacrebleu, all to the last digit and all in [0, 1]. A metric is None where the reference has nothing
that it counts: ROUGE knows the letters a to z and digits only, so a reference in another script has no ROUGE.
Counts are what a run is summed from, since a mean of BLEU scores is not the BLEU of a run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from rapidfuzz.distance import LCSseq
from sacrebleu.metrics.bleu import BLEU

from slm_ray.scoring.shared import characters, shared, tokens

ORDERS = 6
_BLEU_ORDERS = 4
_BETA_SQUARED = 4
_KEPT_CHARACTERS = 100_000
_WORD = re.compile(r"[a-z0-9]+")

Counts = tuple[int, ...]


def rouge(prediction: str, reference: str) -> dict[str, float | None]:
    """F-measures of shared words, shared pairs of words and the longest common subsequence of words.

    The subsequence is found by bits and not in a table, so that long answers take no longer than they must.
    """
    # Numbers, since words would be compared by hashes, which may clash and are others in every process.
    given, wanted = tokens(_WORD.findall(prediction.lower()), _WORD.findall(reference.lower()))
    words, pairs = shared(given, wanted, 2)
    longest = LCSseq.similarity(given.tolist(), wanted.tolist())
    return {
        "rouge_1": _f_measure(words, len(given), len(wanted)),
        "rouge_2": _f_measure(pairs, len(given) - 1, len(wanted) - 1),
        "rouge_l": _f_measure(longest, len(given), len(wanted)),
    }


def bleu_counts(prediction: str, reference: str) -> Counts:
    """Words of both, then shared and given n-grams of orders 1 to 4."""
    given, wanted = tokens(_bleu_words(prediction), _bleu_words(reference))
    totals = (max(0, len(given) - order) for order in range(_BLEU_ORDERS))
    return (len(given), len(wanted), *shared(given, wanted, _BLEU_ORDERS), *totals)


def bleu(counts: Counts, *, sentence: bool) -> float | None:
    """BLEU of (summed) counts. A `sentence` has the orders that its words allow, a run has all four."""
    given, wanted, *rest = counts
    if not wanted:
        return None
    found = BLEU.compute_bleu(rest[:4], rest[4:], given, wanted, smooth_method="exp", effective_order=sentence)
    # exp(log(100)) is a hair above 100.
    return min(1.0, float(found.score) / 100)


def run_bleu(rows: Sequence[Counts]) -> float | None:
    """BLEU of a run from the counts of its rows, as sacrebleu's of a corpus.

    None when no reference has four words: identical answers would else score 0 for want of a 4-gram.
    """
    return bleu(total(rows), sentence=False) if any(row[1] >= _BLEU_ORDERS for row in rows) else None


def chrf_counts(prediction: str, reference: str) -> Counts:
    """Per order 1 to 6 the given, expected and shared n-grams of characters that are no white space.

    The given ones count only where the reference has any of that order, as in sacrebleu.
    """
    given, wanted = (characters("".join(text.split())) for text in (prediction, reference))
    found: list[int] = []
    for place, both in enumerate(shared(given, wanted, ORDERS)):
        left, right = max(0, len(given) - place), max(0, len(wanted) - place)
        found += (left if right else 0, right, both)
    return tuple(found)


def chrf(counts: Counts) -> float | None:
    """chrF of (summed) counts: F2 of the mean precision and recall over the orders that both sides have (Popović 2015)."""
    orders = [counts[place : place + 3] for place in range(0, len(counts), 3)]
    if not orders[0][1]:
        return None
    both = [(shared / given, shared / wanted) for given, wanted, shared in orders if given and wanted]
    precision, recall = (sum(part) / len(both) for part in zip(*both, strict=True)) if both else (0.0, 0.0)
    if not precision + recall:
        return 0.0
    return (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)


def total(counts: Sequence[Counts]) -> Counts:
    """The counts of a run; at least one row."""
    return tuple(map(sum, zip(*counts, strict=True)))


def _f_measure(shared: int, given: int, wanted: int) -> float | None:
    if wanted <= 0:
        return None
    precision, recall = shared / max(given, 1), shared / wanted
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def _bleu_words(text: str) -> list[str]:
    """The text's words as sacrebleu cuts them."""
    cut = _tokenizer()
    found: list[str] = cut(text.rstrip()).split()
    if len(text) > _KEPT_CHARACTERS:  # it keeps the last 65,536 texts, twice
        for kept in (cut, cut._post_tokenizer):
            vars(type(kept))["__call__"].cache_clear()
    return found


@cache
def _tokenizer() -> Any:
    return BLEU(tokenize="13a").tokenizer
