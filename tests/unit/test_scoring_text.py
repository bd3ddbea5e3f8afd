"""Free text: every figure equal to its reference implementation, by hand where there is none, and under properties."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF  # type: ignore[attr-defined]

from slm_ray.corpus.tracks import Track
from slm_ray.scoring import metrics, score, summarise
from slm_ray.scoring.text import ROW_METRICS

CHAT = Track(name="chat", system="", scorers=("text",), primary="rouge_l", core=("rouge_1", "rouge_2", "rouge_l"))
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
WORDS = st.sampled_from(
    ["the", "cat", "Cat", "sat.", "on", "a", "mat,", "3.5", "it's", "naïve", "—", "天气", "&amp;", "x-y", "\n"]
)
SENTENCES = st.lists(WORDS, max_size=25).map(" ".join) | st.text(alphabet=st.characters(codec="utf-8"), max_size=60)


@settings(max_examples=300, deadline=None)
@given(SENTENCES, SENTENCES)
def test_a_row_has_the_figures_of_rouge_score_and_sacrebleu(prediction: str, reference: str) -> None:
    row = score(CHAT, "r", prediction, reference)
    theirs = RougeScorer(list(ROUGE.values())).score(reference, prediction)
    for name, theirs_name in ROUGE.items():
        # None is where the reference has no (pair of) words; the package says 0 there.
        assert (row.value(name) or 0.0) == theirs[theirs_name].fmeasure
    bleu = BLEU(effective_order=True).sentence_score(prediction, [reference]).score / 100
    assert (row.value("bleu") or 0.0) == min(1.0, bleu)
    assert (row.value("chrf") or 0.0) == pytest.approx(
        CHRF().sentence_score(prediction, [reference]).score / 100, abs=1e-15
    )


@settings(deadline=None)
@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=12))
def test_a_run_has_the_corpus_figures_of_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    assume(any(len(reference.split()) >= 4 for _, reference in pairs))  # else a run has no BLEU
    found = summarise(CHAT, [score(CHAT, str(i), *pair) for i, pair in enumerate(pairs)])
    predictions, references = [text for text, _ in pairs], [[text for _, text in pairs]]
    assert found["bleu"] == min(1.0, BLEU().corpus_score(predictions, references).score / 100)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(predictions, references).score / 100, abs=1e-15)


def test_a_row_by_hand() -> None:
    row = score(CHAT, "r", "The Cat sat.", "a cat sat down")
    assert row.value("rouge_1") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert row.value("rouge_2") == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert row.value("token_f1") == pytest.approx(2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3))  # articles do not count
    assert row.value("edit_similarity") == 1 - 9 / 14  # The→a, C→c, .→" down"
    assert (row.value("exact_text"), row.value("normalised_text")) == (0.0, 0.0)
    assert (row.facts["prediction_words"], row.facts["reference_words"]) == (3.0, 4.0)


def test_normalised_is_not_exact() -> None:
    row = score(CHAT, "r", "The cat!", "cat")
    assert (row.value("exact_text"), row.value("normalised_text"), row.value("token_f1")) == (0.0, 1.0, 1.0)


def test_no_stemming() -> None:
    assert score(CHAT, "r", "cats", "cat").value("rouge_1") == 0.0


def test_a_failed_call_shares_nothing_even_with_nothing() -> None:
    for reference in ("a reference", ""):
        row = score(CHAT, "r", None, reference)
        assert {score.value for score in row.scores} <= {0.0, None}
        assert row.issues == ("empty_answer",)
        assert "prediction_words" not in row.facts
    assert score(CHAT, "r", "", "").value("exact_text") == 1.0


def test_undefined_where_the_reference_has_nothing_to_count() -> None:
    one_word = score(CHAT, "r", "yes", "yes")
    assert (one_word.value("rouge_1"), one_word.value("rouge_2"), one_word.value("bleu")) == (1.0, None, 1.0)
    other_script = score(CHAT, "r", "yes", "是的")
    assert [other_script.value(name) for name in ROUGE] == [None] * 3
    assert (other_script.value("bleu"), other_script.value("chrf")) == (0.0, 0.0)
    blank = score(CHAT, "r", "yes", " ")
    assert (blank.value("bleu"), blank.value("chrf")) == (None, None)


def test_lengths_in_words() -> None:
    texts = ["one two three", "one", "", None]
    rows = [score(CHAT, str(i), text, "one two") for i, text in enumerate(texts)]
    found = summarise(CHAT, rows)
    assert (found["prediction_words_mean"], found["prediction_words_median"]) == (4 / 3, 1.0)
    assert (found["reference_words_mean"], found["reference_words_median"]) == (2.0, 2.0)
    assert summarise(CHAT, rows[3:])["prediction_words_mean"] is None


def test_length_issues() -> None:
    short, long = "one", "one two three four five"
    assert score(CHAT, "r", long, "one two").issues == ("answer_much_longer",)
    assert score(CHAT, "r", short, "one two three").issues == ("answer_much_shorter",)
    assert score(CHAT, "r", "one two three four", "one two").issues == ()
    assert score(CHAT, "r", " \n", "one two").issues == ("empty_answer",)


def test_every_metric_is_declared_in_order() -> None:
    row = score(CHAT, "r", "a", "b")
    assert tuple(metric.name for metric in row.scores) == ROW_METRICS
    assert tuple(summarise(CHAT, [row])) == metrics(CHAT)
    assert tuple(summarise(CHAT, [])) == metrics(CHAT)


def test_long_answers_are_quick() -> None:
    text = " ".join(f"word{i % 977}" for i in range(20_000))
    started = time.monotonic()
    assert score(CHAT, "r", text, text[::-1]).value("rouge_l") is not None
    assert time.monotonic() - started < 20
