"""Labels: the matching rule, answers outside the set, and every figure equal to scikit-learn's."""

from __future__ import annotations

import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix

from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError
from slm_ray.scoring import check, score, summarise
from slm_ray.scoring.labels import MAX_LABEL, class_table, normalise

NAMES = ("Ale", "Pale Lager", "stout.", "rye")


def track(*labels: str) -> Track:
    return Track(
        name="beer", system="", scorers=("classify",), primary="accuracy", core=("accuracy", "macro_f1"), labels=labels
    )


@pytest.mark.parametrize(
    "text",
    ["Pale Lager", "pale  lager", " PALE\nLAGER ", '"Pale Lager"', "Pale lager.", '"pale lager."', "“Pale Lager”."],
)
def test_a_label_survives_case_space_quotes_and_a_full_stop(text: str) -> None:
    row = score(track(*NAMES), "r", text, "Pale Lager")
    assert (row.value("accuracy"), row.value("in_labels"), row.issues) == (1.0, 1.0, ())
    assert row.facts == {"predicted_label": "Pale Lager", "expected_label": "Pale Lager"}


@pytest.mark.parametrize("text", ["It is a pale lager", "pale-lager", "Lager", "**ale**", '"ale', "", '""', ".", None])
def test_anything_else_is_outside_and_wrong(text: str | None) -> None:
    row = score(track(*NAMES), "r", text, "Ale")
    assert (row.value("accuracy"), row.value("in_labels"), row.issues) == (0.0, 0.0, ("outside_labels",))
    assert "predicted_label" not in row.facts


def test_another_label_is_wrong_and_inside() -> None:
    row = score(track(*NAMES), "r", "Stout", "ale")
    assert (row.value("accuracy"), row.value("in_labels"), row.issues) == (0.0, 1.0, ("wrong_label",))


def test_a_reference_outside_the_set_scores_nobody() -> None:
    row = score(track(*NAMES), "r", "porter", "porter")
    assert (row.value("accuracy"), row.value("in_labels")) == (None, None)
    assert row.issues == ("reference_outside_labels", "outside_labels")
    assert set(summarise(track(*NAMES), [row]).values()) == {None}


def test_labels_that_are_the_same_to_the_scorer_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"track beer: labels 'Yes' and 'yes\.' are the same"):
        check(track("Yes", "no", "yes."))
    with pytest.raises(ConfigError, match="drop one"):
        score(track("Yes", "yes."), "r", "a", "a")
    check(track(*NAMES))


def texts_of(seed: int, rows: int) -> list[tuple[str | None, str]]:
    """(answer, reference) pairs; "rye" is never expected, some answers are outside or failed."""
    draw = random.Random(seed)
    return [(draw.choice([*NAMES, "STOUT", "porter", None]), draw.choice(NAMES[:3])) for _ in range(rows)]


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    pairs = texts_of(seed, 200)
    rows = [score(track(*NAMES), str(i), text, reference) for i, (text, reference) in enumerate(pairs)]
    expected = [reference for _, reference in pairs]
    given_labels = [{"STOUT": "stout.", "porter": "outside", None: "outside"}.get(text, text) for text, _ in pairs]
    report = classification_report(expected, given_labels, labels=NAMES, output_dict=True, zero_division=0)
    found = summarise(track(*NAMES), rows)
    assert found["accuracy"] == pytest.approx(accuracy_score(expected, given_labels), abs=1e-15)
    assert found["micro_recall"] == pytest.approx(found["accuracy"], abs=1e-15)
    assert found["in_labels"] == sum(label != "outside" for label in given_labels) / 200
    for average in ("macro", "micro", "weighted"):
        for figure, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert found[f"{average}_{figure}"] == report[f"{average} avg"][name]
    table = class_table(rows, NAMES)
    for line in table.classes:
        assert report[line.label] == {
            "precision": line.precision, "recall": line.recall, "f1-score": line.f1, "support": line.support,
        }  # fmt: skip
    matrix = confusion_matrix(expected, given_labels, labels=[*NAMES, "outside"])
    assert [list(line) for line in table.confusion] == matrix[:-1].tolist()
    assert matrix[-1].sum() == 0
    assert sum(map(sum, table.confusion)) == 200


def test_a_label_that_nobody_expects_counts_as_0_and_warns_nobody() -> None:
    rows = [score(track(*NAMES), "1", "Ale", "Ale"), score(track(*NAMES), "2", None, "Ale")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, table = summarise(track(*NAMES), rows), class_table(rows, NAMES)
    assert (found["macro_recall"], found["macro_precision"]) == (0.5 / 4, 1 / 4)
    assert (table.classes[3].precision, table.classes[3].recall, table.classes[3].support) == (0.0, 0.0, 0)
    assert table.confusion[0] == (1, 0, 0, 0, 1)


def test_without_labels_the_set_is_that_of_the_references() -> None:
    pairs = [("Ale.", "ale"), ("porter", "stout"), ("STOUT", "stout"), (None, "ale"), ("x" * (MAX_LABEL + 1), "ale")]
    rows = [score(track(), str(i), text, reference) for i, (text, reference) in enumerate(pairs)]
    assert [row.value("accuracy") for row in rows] == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert {row.value("in_labels") for row in rows} == {None}
    assert [row.issues for row in rows[1:]] == [("wrong_label",), (), ("outside_labels",), ("outside_labels",)]
    found = summarise(track(), rows)
    assert (found["accuracy"], found["in_labels"]) == (2 / 5, 2 / 5)
    table = class_table(rows, ())
    assert [line.label for line in table.classes] == ["ale", "stout"]
    assert table.confusion == ((1, 0, 2), (0, 1, 1))


def test_a_table_of_no_rows() -> None:
    table = class_table([], NAMES)
    assert [line.support for line in table.classes] == [0, 0, 0, 0]
    assert table.confusion == ((0,) * 5,) * 4


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec=None)), st.sampled_from(["{}", " {} ", "{}.", '"{}"', "‘{}’."]))
def test_a_normalised_text_is_left_alone_by_what_normalising_takes_off(text: str, around: str) -> None:
    plain = normalise(text)
    if plain and plain[0] not in "\"'`“‘«" and not plain.endswith("."):
        assert normalise(around.format(plain)) == normalise(plain)
