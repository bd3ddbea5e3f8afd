"""A judge over a finished evaluation, through the real evaluation: resumed, paid once, advisory until calibrated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import ChatServer, Reply, Request, answer

from slm_ray import storage
from slm_ray.cli.commands import judge as judge_command
from slm_ray.config import EvaluateConfig, JudgeConfig
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError
from slm_ray.evaluation import evaluate
from slm_ray.judging import judge, lines

pytestmark = pytest.mark.heavy
LLM, SLM = "fake:big answer", "fake:small answer"


def written(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def recorded_judge(folder: Path, says: dict[str, str]) -> str:
    """A judge whose judgements are logged by question id."""
    return "recorded:" + written(
        folder / "judge.jsonl", [{"id": key, "prediction": text} for key, text in says.items()]
    )


def test_grades_pairs_and_calibration(ray_cluster: None, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": f"q{i}", "prompt": f"question {i}", "completion": "the answer"} for i in range(4)
    ]
    examples = written(tmp_path / "rows.jsonl", rows)
    report = str(tmp_path / "run")
    evaluate(EvaluateConfig(track="chat", examples=examples, models=(LLM, SLM), run_dir=report), environment={})

    says = {f"{LLM}|q{i}": "Score: 7" for i in range(4)} | {f"{SLM}|q{i}": "Score: 4" for i in range(3)}
    says |= {f"{SLM}|q3": "no idea"}
    says |= {f"ab|q{i}": "Verdict: A" for i in range(4)} | {f"ba|q{i}": "Verdict: A" for i in range(2)}
    says |= {f"ba|q{i}": "Verdict: B" for i in range(2, 4)}
    config = JudgeConfig(
        report=report, judge=recorded_judge(tmp_path, says), llm=LLM, slm=SLM, run_dir=str(tmp_path / "judge")
    )
    found = judge(config, {})
    assert found.advisory is True
    assert found.grades[LLM].mean == 1.0
    grades = found.grades[SLM]
    assert (grades.n, grades.unread, grades.mean) == (4, 1, 0.5)
    assert grades.minus_first is not None and grades.minus_first.estimate == -0.5
    assert found.pair is not None and (found.pair.second_wins, found.pair.same_place_twice) == (0.75, 2)
    *figures, last = lines(found)
    assert all("advisory" in line for line in figures) and "no verdict by the judge alone" in last
    assert judge(config, {}) == found

    people = [{"prompt": f"p{i}", "prediction": "x", "human": 1 + i % 7} for i in range(35)]
    human = written(tmp_path / "human.jsonl", [dict(row) for row in people])
    good = recorded_judge(tmp_path, {f"line {i + 1}": f"Score: {1 + i % 7}" for i in range(35)} | says)
    calibrated = judge(
        config.model_copy(update={"judge": good, "calibrate": human, "run_dir": str(tmp_path / "c")}), {}
    )
    assert calibrated.calibration is not None
    assert (calibrated.calibration.kappa, calibrated.advisory) == (1.0, False)
    trusted = config.model_copy(
        update={"judge": good, "calibration": str(tmp_path / "c"), "run_dir": str(tmp_path / "t")}
    )
    assert judge(trusted, {}).advisory is False
    with pytest.raises(ConfigError, match="calibration of another judge"):
        judge(trusted.model_copy(update={"rubric": "another"}), {})


ANSWERS = {
    "structured": '{"query": "q", "tool_name": "f", "arguments": {"a": 1}}', "toolcall": '<tool_call name="f">{"a": 1}</tool_call>',
    "hermes": '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "gsm8k": "#### 18", "classify": "yes",
    "chat": "the answer",
}  # fmt: skip


def asked_of_the_judge(folder: Path, name: str, answer: str, **settings: str) -> str:
    """What the judge is shown of the one answer of an evaluation of that track."""
    folder.mkdir(exist_ok=True)
    examples = written(folder / "rows.jsonl", [{"id": "q", "prompt": "question", "completion": answer}])
    report = str(folder / "run")
    evaluate(EvaluateConfig(track=name, examples=examples, models=(LLM,), run_dir=report), environment={})
    says = recorded_judge(folder, {f"{LLM}|q": "Score: 7"})
    assert judge(JudgeConfig(report=report, judge=says, run_dir=str(folder / "judge"), **settings), {}).grades
    (row,) = storage.read_jsonl(str(folder / "judge" / "grade" / "questions.jsonl"))
    return str(row["prompt"][-1]["content"])


@pytest.mark.parametrize("name", TRACKS)
def test_the_judge_is_told_what_makes_an_answer_of_the_track_good(ray_cluster: None, tmp_path: Path, name: str) -> None:
    assert TRACKS[name].rubric
    assert f"Rubric: {TRACKS[name].rubric}\n" in asked_of_the_judge(tmp_path, name, ANSWERS[name])


def test_a_track_file_and_a_config_have_the_word(ray_cluster: None, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nextends: chat\nrubric: Is it in verse?\n", encoding="utf-8")
    other = tmp_path / "other.yaml"
    other.write_text("name: other\nextends: chat\nrubric: Is it in prose?\n", encoding="utf-8")
    found = [
        asked_of_the_judge(tmp_path / str(turn), str(own), "the answer", **settings)
        for turn, settings in enumerate(({}, {"track": str(other)}, {"track": str(other), "rubric": "Does it rhyme?"}))
    ]
    for text, rubric in zip(found, ("Is it in verse?", "Is it in prose?", "Does it rhyme?"), strict=True):
        assert f"Rubric: {rubric}\n" in text and TRACKS["chat"].rubric not in text


def labelled(page: Path, labels: int, better: str) -> list[dict[str, object]]:
    """What a person who sees only the page says of its first pairs: the answer with the word in it is better."""
    shown = json.loads(page.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])
    return [
        {"queue": shown["queue"], "id": row["id"], "labeller": "ann", "prefers": "A" if better in row["A"] else "B"}
        for row in shown["rows"][:labels]
    ]


def test_a_judge_who_flatters_the_slm_is_overruled_by_the_people(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"id": f"q{i}", "prompt": f"question {i}", "completion": "the answer"} for i in range(60)
    ]
    examples, report = written(tmp_path / "rows.jsonl", rows), str(tmp_path / "run")
    evaluate(EvaluateConfig(track="chat", examples=examples, models=(LLM, SLM), run_dir=report), environment={})

    def flatter(request: Request) -> Reply:
        if "Answer A:" not in request.text:
            return answer("Score: 5")
        return answer("Verdict: A" if "Answer A:\nsmall" in request.text else "Verdict: B")

    with ChatServer(flatter, models=("judge",)) as server:
        config = JudgeConfig(
            report=report, judge="served:judge", endpoint=server.url, models=(SLM,), llm=LLM, slm=SLM, looks=(40,),
            run_dir=str(tmp_path / "judge"),
        )  # fmt: skip
        page = tmp_path / "judge" / "label.html"
        assert judge_command(config) == 0
        said = capsys.readouterr().out
        assert f"{SLM} wins 100.0% against {LLM}" in said and "no verdict by the judge alone" in said
        paid = len(server.requests)
        assert paid == 60 + 2 * 60

        labels = tmp_path / "labels.jsonl"
        with_labels = config.model_copy(update={"labels": (str(labels),)})
        written(labels, labelled(page, 10, "big"))
        assert judge_command(with_labels) == 20
        assert "30 labels are missing to the look at 40" in capsys.readouterr().out

        written(labels, labelled(page, 40, "big"))
        assert judge_command(with_labels) == 10
        said = capsys.readouterr().out
        assert "verdict: fine_tune; rule paired, delta 0.05 on wins minus losses" in said
        assert "judge alone, on all rows: +1.0000" in said and "its bias is +2.0000" in said
        assert said.endswith("FINE_TUNE=1\n")
        assert len(server.requests) == paid, "labels cost no call"
    record = storage.read_json(tmp_path / "judge" / "judge.json")["verdict"]
    assert record["decision"]["action"] == "fine_tune" and record["seen"]["labels"] == 40
    (noted,) = storage.read_jsonl(f"{examples}.candidates.jsonl")
    assert (noted["candidate"]["rule"], noted["action"], noted["number"]) == ("judged", "fine_tune", 1)
    assert record["level"] == noted["level"] < 0.05, "the next try on these rows needs what is left"
