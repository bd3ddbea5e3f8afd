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
from slm_ray.scoring.run import SCORERS, score
from slm_ray.scoring.scorer import Scorer, means
from slm_ray.tasks import open_track
from slm_ray.types import Completion, Message, Model, ModelFacts, Prompt, RowScore, Score


def same_length(example_id: str, prediction: str | None, target: str, track: Track) -> RowScore:
    value = float(prediction is not None and len(prediction) == len(target))
    return RowScore(example_id=example_id, scores=(Score(name="same_length", value=value),))


def test_a_scorer_is_one_entry_of_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(metrics=("same_length",), score=same_length, summarise=means("same_length"))
    monkeypatch.setitem(SCORERS, "length", scorer)
    file = tmp_path / "track.yaml"
    file.write_text("name: mine\nsystem: Answer.\nscorers: [length]\nprimary: same_length\n", encoding="utf-8")
    track = open_track(str(file))
    assert score(track, "r1", "abc", "xyz").value("same_length") == 1
    assert score(track, "r1", None, "xyz").value("same_length") == 0


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
