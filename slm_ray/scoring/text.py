"""The text scorer: free text against a reference, by words and characters, per row.

ROUGE, BLEU and chrF are those of `ngrams`. `edit_similarity` is 1 - Levenshtein distance / length of the longer text.
`token_f1` and `normalised_text` are SQuAD's: lower case, without ASCII punctuation and the articles a, an, the;
`exact_text` is equality to the last character. They see words and not meaning: a right answer in other words scores low.
ROUGE, BLEU, chrF and `edit_similarity` compare the first million characters of an answer (twice its reference, if that is
longer): no usable answer has more, and ten million would take ten seconds. The time also grows with the reference, since
every word or character of one text is held against those of the other.
Run metrics are means over rows, but BLEU and chrF, which are those of the whole run, and the answers' lengths in words.
"""

from __future__ import annotations

import re
import statistics
import string
from collections import Counter
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

from slm_ray.corpus.tracks import Track
from slm_ray.scoring import ngrams
from slm_ray.scoring.scorer import Metrics, as_scores, means
from slm_ray.types import RowScore

ROW_METRICS = (
    "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf", "edit_similarity", "token_f1", "exact_text", "normalised_text",
)  # fmt: skip
_LENGTHS = ("prediction_words", "reference_words")
_AVERAGES: dict[str, Callable[[Sequence[float]], float]] = {"mean": statistics.fmean, "median": statistics.median}
METRICS = (*ROW_METRICS, *(f"{length}_{average}" for length in _LENGTHS for average in _AVERAGES))

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
COMPARED_CHARACTERS = 1_000_000
_FAR = 2  # an answer of more than twice the words of its reference, or fewer than half, is an issue


def score(example_id: str, prediction: str | None, reference: str) -> RowScore:
    """Score one answer; `prediction` None is a failed call and shares nothing with any reference.

    ROUGE, BLEU and chrF are None where the reference has nothing that they count. Facts: both lengths in words (a
    failed call has none), and the counts that BLEU and chrF of a run are made of.
    """
    text = prediction or ""
    seen = text[: max(COMPARED_CHARACTERS, 2 * len(reference))]
    bleu, chrf = ngrams.bleu_counts(seen, reference), ngrams.chrf_counts(seen, reference)
    plain, plain_reference = normalised(text), normalised(reference)
    values: Metrics = {
        **ngrams.rouge(seen, reference),
        "bleu": ngrams.bleu(bleu, sentence=True),
        "chrf": ngrams.chrf(chrf),
        "edit_similarity": Levenshtein.normalized_similarity(seen, reference),
        "token_f1": _token_f1(plain, plain_reference),
        "exact_text": float(text == reference),
        "normalised_text": float(plain == plain_reference),
    }
    if prediction is None:
        values |= dict.fromkeys(("edit_similarity", "token_f1", "exact_text", "normalised_text"), 0.0)
    given, wanted = len(text.split()), len(reference.split())
    facts: dict[str, str | float] = {"bleu_counts": _packed(bleu), "chrf_counts": _packed(chrf)}
    facts |= {"reference_words": float(wanted)} | ({} if prediction is None else {"prediction_words": float(given)})
    issues = () if prediction == reference else _issues(given, wanted)
    return RowScore(example_id=example_id, scores=as_scores(values), issues=issues, facts=facts)


def summarise(rows: Sequence[RowScore], track: Track) -> Metrics:
    """Run metrics; the mean and median lengths are in words, over the rows that have an answer, and may exceed 1."""
    found = means(*ROW_METRICS)(rows, track)
    if rows:
        bleu, chrf = ([_unpacked(row, name) for row in rows] for name in ("bleu_counts", "chrf_counts"))
        found |= {"bleu": ngrams.run_bleu(bleu), "chrf": ngrams.chrf(ngrams.total(chrf))}
    for length in _LENGTHS:
        words = [float(row.facts[length]) for row in rows if length in row.facts]
        found |= {f"{length}_{name}": average(words) if words else None for name, average in _AVERAGES.items()}
    return found


def normalised(text: str) -> str:
    """The text as SQuAD compares answers (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _token_f1(text: str, reference: str) -> float:
    """F1 of the bags of words; where one has no word, 1 if both have none (SQuAD 2.0)."""
    given, wanted = text.split(), reference.split()
    if not given or not wanted:
        return float(given == wanted)
    shared = (Counter(given) & Counter(wanted)).total()
    return 2 * shared / (len(given) + len(wanted))


def _issues(given: int, wanted: int) -> tuple[str, ...]:
    if not given:
        return ("empty_answer",)
    found = {"answer_much_longer": given > _FAR * wanted, "answer_much_shorter": given * _FAR < wanted}
    return tuple(issue for issue, present in found.items() if present)


def _packed(counts: ngrams.Counts) -> str:
    return " ".join(map(str, counts))


def _unpacked(row: RowScore, name: str) -> ngrams.Counts:
    return tuple(map(int, str(row.facts[name]).split()))
