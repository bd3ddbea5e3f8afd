"""What finds demonstrations by words, by BM25 and by given vectors; `test_encoders` has a real encoder."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from slm_ray.config import EvaluateConfig, PrepareConfig
from slm_ray.corpus.retrieve import ByBM25, ByVectors, ByWords, Retriever, questions
from slm_ray.errors import ModelError
from slm_ray.evaluation.plan import plan
from slm_ray.prepare import prepare
from slm_ray.types import Example, Message, Prompt

MEDICINE = "The patient should take the tablets twice a day with water."
PARAPHRASE = "The medicine is to be swallowed with some water two times each day"
SAME_WORDS = "The day the patient should water the plants"


def example(name: str, question: str) -> Example:
    return Example(id=name, prompt=Prompt(messages=(Message(role="user", content=question),)), target=name)


POOL = [example("a", PARAPHRASE), example("b", SAME_WORDS), example("c", "Parliament rejected the railway budget")]


@pytest.mark.parametrize("kind", [ByWords, ByBM25])
def test_lexical_retrieval_goes_by_shared_words_ties_by_id_and_never_shows_the_question(kind: type) -> None:
    def nearest(pool: list[Example], query: str, k: int) -> list[str]:
        return [found.id for found in Retriever(pool, kind(questions(pool))).nearest(query, k)]

    assert nearest(POOL, MEDICINE, 1) == ["b"]
    assert nearest(POOL[::-1], MEDICINE, 3) == nearest(POOL, MEDICINE, 3)
    assert nearest(POOL, "  the DAY the patient should water the plants", 3) == ["a", "c"]
    assert nearest(POOL, "zzz", 2) == nearest(POOL, "", 2) == nearest(POOL, "???", 2) == ["a", "b"]
    twins = [example(name, "play some jazz") for name in "dbca"]
    assert nearest(twins, "play jazz", 3) == ["a", "b", "c"]
    assert nearest([example("a", "..."), example("b", "!")], "what", 2) == ["a", "b"]
    assert nearest([], "what", 2) == []
    again = pickle.loads(pickle.dumps(Retriever(POOL, kind(questions(POOL)))))
    assert [found.id for found in again.nearest(MEDICINE, 3)] == nearest(POOL, MEDICINE, 3)


def test_bm25_prefers_the_shorter_of_two_texts_that_say_the_same_words() -> None:
    pool = [example("a", "jazz and a great many other words that are not asked for here"), example("b", "jazz")]
    assert [found.id for found in Retriever(pool, ByBM25(questions(pool))).nearest("some jazz", 2)] == ["b", "a"]


def test_vectors_that_differ_in_the_last_digits_only_are_a_tie() -> None:
    vectors = np.array([[1, 0], [1, 1e-4], [0, 1]], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pool = [example("b", "one"), example("a", "two"), example("c", "three")]
    retriever = Retriever(pool, ByVectors(vectors, {"q": np.array([1, 0], dtype=np.float32)}))
    assert [found.id for found in retriever.nearest("q", 2)] == ["a", "b"]


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"id": n, "prompt": q, "completion": f'"{n}"'}) + "\n" for n, q in rows))
    return str(path)


def test_an_encoder_that_is_not_there_is_refused_before_anything_is_asked_or_read(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [("t", MEDICINE)])
    (tmp_path / "empty").mkdir()
    for name, what in (("../nowhere", "set retriever to words, bm25"), (str(tmp_path / "empty"), "lacks config.json")):
        common = {"track": "structured", "retriever": name}
        config = EvaluateConfig(examples=rows, run_dir=str(tmp_path / "run"), models=("fake:echo+1shot",),
                                demonstrations=write(tmp_path / "train.jsonl", [("a", "b")]), **common)  # fmt: skip
        with pytest.raises(ModelError, match=what):
            plan(config, {})
        assert plan(config.model_copy(update={"models": ("fake:echo",)}), {}).arms, "nobody is shown anything"
        with pytest.raises(ModelError, match=what):
            prepare(PrepareConfig(source=str(tmp_path / "absent"), few_shot=1, out_dir=str(tmp_path / "out"), **common))
    assert not (tmp_path / "out").exists()
