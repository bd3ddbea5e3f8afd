"""A teacher's answers as training rows: what is kept, what is left out and why, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plain_records import build

from slm_ray.config import DistilConfig
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError, DataError
from slm_ray.reports.distil import distil
from slm_ray.reports.files import write_report
from slm_ray.storage import read_json, read_jsonl
from slm_ray.tasks import open_dataset
from slm_ray.types import Completion, Failure

TEACHER = "azure:large"
# GSM8K: a teacher's own reasoning is worth learning from when its number is right.
TARGET = "Two and two. #### 4"
ANSWERS = {
    "right": "Twice two is four.\n#### 4",
    "same": TARGET,
    "wrong": "It is five. #### 5",
    "unreadable": "I cannot say.",
    "failed": None,
}


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """A file of rows, the last of which the teacher was not asked, and an evaluation of the others."""
    path = tmp_path / "train.jsonl"
    rows = [
        {"id": name, "prompt": f"What is 2 + 2, {name}?", "completion": TARGET, "tags": {"kind": "sum"}, "group": "g"}
        for name in [*ANSWERS, "later"]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    track = TRACKS["gsm8k"]
    examples = [example for example in open_dataset(path, "gsm8k").examples if example.id != "later"]
    answers = {
        name: Completion(text=text)
        if text is not None
        else Completion(text=None, failure=Failure(kind="error", reason="120 s"))
        for name, text in ANSWERS.items()
    }
    report, results = build(track, examples, {TEACHER: answers})
    write_report(tmp_path / "teacher", report, results)
    return {
        "report": str(tmp_path / "teacher"), "teacher": TEACHER, "examples": str(path),
        "out": str(tmp_path / "distilled.jsonl"),
    }  # fmt: skip


def test_readable_answers_at_the_floor_take_the_target_s_place_and_the_rest_is_counted(asked: dict[str, Any]) -> None:
    done = distil(DistilConfig(**asked))
    rows = open_dataset(asked["out"], "gsm8k").examples
    assert {row.id: row.target for row in rows} == {"right": ANSWERS["right"], "same": TARGET}
    assert (done.kept, done.same_as_target) == (2, 1)
    assert done.dropped == {"below the floor": 1, "unreadable": 1, "no answer": 1, "not asked": 1}
    assert "kept              2 rows" in done.summary() and "unreadable 1" in done.summary()


def test_what_a_row_has_besides_its_answer_stays(asked: dict[str, Any]) -> None:
    distil(DistilConfig(**asked))
    before = {row["id"]: row for row in read_jsonl(asked["examples"])}
    for row in read_jsonl(asked["out"]):
        assert {**row, "completion": TARGET} == before[row["id"]]


def test_the_record_beside_the_rows_names_the_teacher_and_what_was_asked_of_it(asked: dict[str, Any]) -> None:
    distil(DistilConfig(**asked))
    record = read_json(Path(asked["out"]).with_suffix(".distil.json"))
    assert (record["teacher"], record["floor"], record["kept"], record["stand_in"]) == (TEACHER, 1.0, 2, False)


def test_an_unknown_teacher_and_another_question_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"teacher: .* has no 'azure:larg'; .*azure:large"):
        distil(DistilConfig(**{**asked, "teacher": "azure:larg"}))
    path = Path(asked["examples"])
    path.write_text(path.read_text(encoding="utf-8").replace("2 + 2, same", "3 + 3, same"), encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.jsonl:2: .* another question under the id 'same'"):
        distil(DistilConfig(**asked))


def test_the_expected_answers_are_not_written_over(asked: dict[str, Any]) -> None:
    before = Path(asked["examples"]).read_bytes()
    beside = Path(asked["examples"]).parent / "x" / ".." / "train.jsonl"
    with pytest.raises(ConfigError, match="whose own answers would be lost; name another"):
        distil(DistilConfig(**{**asked, "out": str(beside)}))
    assert Path(asked["examples"]).read_bytes() == before


def test_a_teacher_without_one_good_answer_writes_nothing(asked: dict[str, Any]) -> None:
    path = Path(asked["examples"])
    text = [line for line in path.read_text(encoding="utf-8").splitlines() if '"wrong"' in line]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no answer of azure:large is kept at floor 1 \(below the floor 1\)"):
        distil(DistilConfig(**asked))
    assert not Path(asked["out"]).exists()
