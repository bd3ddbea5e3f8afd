"""What holds of the text scorer for any text at all, and that failed calls and SQuAD's figures are as declared."""

from __future__ import annotations

import random

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

from slm_ray.corpus.tracks import Track
from slm_ray.scoring import score, summarise
from slm_ray.scoring.text import ROW_METRICS
from slm_ray.types import RowScore

CHAT = Track(name="chat", system="", scorers=("text",), primary="rouge_l", core=("rouge_1", "rouge_2", "rouge_l"))
ALWAYS_DEFINED = ("edit_similarity", "token_f1", "exact_text", "normalised_text")

WORDS = st.sampled_from(
    [
        "the", "a", "an", "cat", "cats", "Cat", "sat", "on", "mat,", "mat.", "the-mat", "3.5", "$1,000", "don't", "e.g.",
        "_x_", "&quot;", "&amp;", "größe", "猫", "18", "—", "\n", "I",
    ]
)  # fmt: skip
SENTENCES = st.lists(WORDS, max_size=14).map(" ".join)
ANY_TEXT = st.text(st.characters())  # lone surrogates too: a JSON answer can hold them
PAIRS = st.lists(st.tuples(st.none() | SENTENCES, SENTENCES), min_size=1, max_size=8)


def judged(prediction: str | None, reference: str, example_id: str = "1") -> RowScore:
    return score(CHAT, example_id, prediction, reference)


@settings(max_examples=300, deadline=None)
@given(st.none() | ANY_TEXT | SENTENCES, ANY_TEXT | SENTENCES)
def test_no_text_raises_and_scores_stay_in_their_range(prediction: str | None, reference: str) -> None:
    row = judged(prediction, reference)
    assert all(found.value is None or 0 <= found.value <= 1 for found in row.scores)
    # Whether a metric is defined is the reference's matter, so that all models are judged on the same rows.
    undefined = {found.name for found in judged(reference, reference).scores if found.value is None}
    assert {found.name for found in row.scores if found.value is None} == undefined
    if prediction is None:
        assert {found.value for found in row.scores} <= {0.0, None}


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT | SENTENCES)
def test_a_text_against_itself_is_1(text: str) -> None:
    row = judged(text, text)
    assert {found.value for found in row.scores} <= {1.0, None}
    assert [row.value(name) for name in ALWAYS_DEFINED] == [1.0] * len(ALWAYS_DEFINED)
    assert row.issues == ()
    run = summarise(CHAT, [row])
    assert {run[name] for name in ROW_METRICS} <= {1.0, None}


@settings(deadline=None)
@given(PAIRS, st.integers())
def test_order_changes_nothing(pairs: list[tuple[str | None, str]], seed: int) -> None:
    rows = [judged(text, reference, str(place)) for place, (text, reference) in enumerate(pairs)]
    assert summarise(CHAT, random.Random(seed).sample(rows, len(rows))) == summarise(CHAT, rows)


@settings(deadline=None)
@given(PAIRS)
def test_a_failed_call_counts_as_an_empty_answer_in_the_corpus_figures(pairs: list[tuple[str | None, str]]) -> None:
    run = summarise(CHAT, [judged(text, reference, str(place)) for place, (text, reference) in enumerate(pairs)])
    texts, references = [text or "" for text, _ in pairs], [reference for _, reference in pairs]
    has_four_words = any(sacrebleu.sentence_bleu(text, [text]).totals[3] for text in references)
    bleu = sacrebleu.corpus_bleu(texts, [references], force=True).score / 100
    chrf = sacrebleu.corpus_chrf(texts, [references]).score / 100
    assert run["bleu"] == (pytest.approx(bleu, abs=1e-12) if has_four_words else None)
    assert run["chrf"] == (pytest.approx(chrf, abs=1e-12) if any(text.split() for text in references) else None)


@settings(deadline=None)
@given(SENTENCES, SENTENCES)
def test_token_f1_and_normalised_text_are_those_of_squad(prediction: str, reference: str) -> None:
    row = judged(prediction, reference)
    assert row.value("token_f1") == pytest.approx(compute_f1(reference, prediction), abs=1e-12)
    assert row.value("normalised_text") == compute_exact(reference, prediction)
