"""The recipes of CONTRIBUTING, tried: one line in a dict makes a scorer, a kind of model and a row format known everywhere."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from slm_ray.config import Generation, PrepareConfig
from slm_ray.corpus.formats import FORMATS
from slm_ray.corpus.parsed_row import Exchange, asked
from slm_ray.corpus.tracks import Track
from slm_ray.prepare import prepare
from slm_ray.providers import parse
from slm_ray.providers.limiter import RateLimiter
from slm_ray.providers.provider import Provider, identity_of
from slm_ray.providers.spec import PROVIDERS
from slm_ray.records import AnswerResult, RowResult
from slm_ray.scoring.parsed import parsed
from slm_ray.scoring.run import SCORERS, score, unreadable
from slm_ray.scoring.scorer import Scorer, as_scores, means
from slm_ray.tasks import open_track
from slm_ray.types import Completion, Message, Model, ModelFacts, Prompt, RowScore
from slm_ray.verdict.routing import taken


def same_length(example_id: str, prediction: str | None, target: str, track: Track) -> RowScore:
    values = {
        "same_length": prediction is not None and len(prediction) == len(target),
        "one_word": one_word(prediction) is not None,
    }
    return RowScore(example_id=example_id, scores=as_scores({name: float(value) for name, value in values.items()}))


def one_word(text: str | None) -> str | None:
    words = (text or "").split()
    return words[0] if len(words) == 1 else None


def test_a_scorer_is_one_entry_of_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(
        metrics=("same_length", "one_word"), score=same_length, summarise=means("same_length", "one_word"), read=one_word,
        form="a single word", form_metrics=("one_word",),
    )  # fmt: skip
    monkeypatch.setitem(SCORERS, "length", scorer)
    file = tmp_path / "track.yaml"
    file.write_text("name: mine\nsystem: Answer.\nscorers: [length]\nprimary: same_length\n", encoding="utf-8")
    track = open_track(str(file))
    assert score(track, "r1", "abc", "xyz").value("same_length") == 1
    assert score(track, "r1", None, "xyz").value("same_length") == 0
    assert unreadable(track, "two words") == "a single word" and unreadable(track, "word") is None
    assert [parsed(track, text) for text in ("two words", " word\n")] == ["unreadable", "word"]
    answers = {
        "r1": AnswerResult(text="word", failure=None, scores={"one_word": 1.0}),
        "r2": AnswerResult(text="two words", failure=None, scores={"one_word": 0.0}),
    }
    rows = [
        RowResult(id=name, prompt_hash=name, prompt=(), target="xyz", tags={}, models={"llm": answer, "slm": answer})
        for name, answer in answers.items()
    ]
    assert taken(rows, llm="llm", slm="slm", threshold=-1.0) == {"r1": True, "r2": False}, (
        "only what is in form is routed"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shout(Provider):
    kind = "shout"
    example = "TEXT"

    text: str

    @classmethod
    def parse(cls, rest: str) -> Self:
        return cls(spec=f"shout:{rest}", text=rest)

    def open(
        self, *, endpoint: str, generation: Generation, environment: Mapping[str, str],
        limiter: RateLimiter | None = None,
    ) -> Model:  # fmt: skip
        return ShoutModel(self.spec, self.text)

    def identity(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        return identity_of(kind=self.kind, text=self.text)

    def facts(self, *, endpoint: str, environment: Mapping[str, str]) -> ModelFacts:
        return ModelFacts(spec=self.spec, kind=self.kind, model=None, host=None, billing="none")


class ShoutModel:
    def __init__(self, spec: str, text: str) -> None:
        self.spec, self.text = spec, text

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        return Completion(text=self.text.upper())

    async def close(self) -> None:
        return


def test_a_provider_is_one_entry_of_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROVIDERS, "shout", Shout)
    arm = parse("shout:hey+2shot")
    assert arm.demonstrations == 2
    assert arm.facts(endpoint="", environment={}).billing == "none"
    model = arm.provider.open(endpoint="", generation=Generation(), environment={})
    prompt = Prompt(messages=(Message(role="user", content="?"),))
    assert asyncio.run(model.complete("r1", prompt)).text == "HEY"


def from_quiz(row: Mapping[str, Any], track: Track) -> Exchange:
    return Exchange(turns=asked(row["quiz"]), target=row["solution"])


def test_a_row_format_is_one_entry_of_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "quiz", from_quiz)
    rows = tmp_path / "rows.csv"
    rows.write_text("id,quiz,solution\n" + "".join(f"q{n},what is {n}?,{n}\n" for n in range(9)), encoding="utf-8")
    config = PrepareConfig(track="chat", source=str(rows), out_dir=str(tmp_path), validation_rows=2, test_rows=2)
    prepared = prepare(config.model_copy(update={"format": "quiz"}))
    assert prepared.rows == {"train": 5, "validation": 2, "test": 2}
