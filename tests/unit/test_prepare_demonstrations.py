"""Training rows with demonstrations: similar training rows, never the row itself, never a held-out one, still seen by leak checks."""

import json
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import PrepareConfig
from slm_ray.corpus.leakage import leaks, question_hash
from slm_ray.corpus.render import prompt_hash
from slm_ray.corpus.retrieve import Retriever, with_demonstrations
from slm_ray.errors import DataError
from slm_ray.prepare import Prepared, prepare
from slm_ray.types import Example

TOPICS = ("weather in Oslo", "price of tea", "train to Rome")


def run(tmp_path: Path, name: str, **settings: Any) -> Prepared:
    rows: list[dict[str, Any]] = [
        {"prompt": f"{TOPICS[n % 3]} on day {n}", "completion": f"answer {n}"} for n in range(40)
    ]
    rows.append({"messages": [{"role": "system", "content": "Own rules."}, {"role": "user", "content": "hello"},
                              {"role": "assistant", "content": "hi"}, {"role": "user", "content": "price of tea on Monday"},
                              {"role": "assistant", "content": "two"}]})  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = {"track": "chat", "validation_rows": 5, "test_rows": 5, "source": str(tmp_path / "rows.jsonl")} | settings
    return prepare(PrepareConfig(out_dir=str(tmp_path / name), **given), token_counter=len_in_words)


def len_in_words(example: Example) -> int:
    return sum(len(turn.content.split()) for turn in example.prompt.messages)


def test_they_are_what_retrieval_over_the_training_rows_gives(tmp_path: Path) -> None:
    plain, shown = run(tmp_path, "plain"), run(tmp_path, "shown", few_shot=2)
    before, after = (found.dataset("train").examples for found in (plain, shown))
    pool = Retriever(before)
    for row, with_shots in zip(before, after, strict=True):
        shots = pool.nearest(row.prompt.messages[-1].content, 2)
        assert with_shots.prompt == with_demonstrations(row.prompt, shots)
        assert (with_shots.target, with_shots.tags["demonstrations"]) == (row.target, "2")
    held = {row.prompt.messages[-1].content for name in ("validation", "test") for row in shown.dataset(name).examples}
    for row in after:
        questions = [turn.content for turn in row.prompt.messages if turn.role == "user"]
        assert len(set(questions)) == len(questions)
        assert not held & set(questions)
    for name in ("validation", "test"):
        assert Path(plain.path(name)).read_bytes() == Path(shown.path(name)).read_bytes()
    assert "demonstrations: up to 2 similar training rows in front of each" in shown.summary()


def test_leak_checks_see_the_row_behind_its_demonstrations(tmp_path: Path) -> None:
    before = run(tmp_path, "plain").dataset("train").examples
    after = run(tmp_path, "shown", few_shot=3).dataset("train").examples
    assert [question_hash(row) for row in after] == [prompt_hash(row.prompt) for row in before]
    assert [leak.row for leak in leaks(after, before)] == [row.id for row in before]
    assert question_hash(before[0]) == prompt_hash(before[0].prompt)


def test_a_row_too_long_with_them_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training rows have more than max_tokens 20 with their 3 demonstrations"):
        run(tmp_path, "out", few_shot=3, curation={"max_tokens": 20})
    assert not (tmp_path / "out" / "train.jsonl").exists()
