"""Few-shot demonstrations: training rows shown in front of a question.

The `K` training rows most like a question stand in front of it as chat turns, the most similar one next to it. A training
row that asks what a row of the evaluation asks is never shown, whoever's row it is. What "most like" means is a setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slm_ray.corpus.leakage import question_hash, question_hashes
from slm_ray.corpus.retrieve import questions, with_demonstrations
from slm_ray.encoders import check_retriever, open_retriever
from slm_ray.errors import ConfigError
from slm_ray.providers import ModelSpec, TrainingRows
from slm_ray.tasks import open_dataset
from slm_ray.types import Example, Prompt


class Demonstrations:
    """The training rows of an evaluation, without those that it asks itself; `left_out` counts these.

    `files` says where they are, for whoever reads them in another process.
    """

    def __init__(self, path: str, track: str, asked: Sequence[Example], retriever: str) -> None:
        local = Path(track).suffix in (".yaml", ".yml")
        track_anywhere = str(Path(track).absolute()) if local else track
        self.files = TrainingRows(path=str(Path(path).absolute()), track=track_anywhere)
        rows = open_dataset(path, track).examples
        taken = question_hashes(asked)
        self.rows = [row for row in rows if question_hash(row) not in taken]
        self.left_out = len(rows) - len(self.rows)
        if not self.rows:
            raise ConfigError(f"{path}: all {len(rows)} rows are rows of the evaluation; give the training rows")
        self._retriever = retriever
        self._shown: dict[tuple[int, tuple[str, ...]], dict[str, Prompt]] = {}

    def prompts(self, rows: Sequence[Example], k: int) -> dict[str, Prompt]:
        """The prompt of each row, by id, behind its `k` demonstrations; the same rows every time."""
        if k < 1:
            return {}
        place = k, tuple(row.id for row in rows)
        if place not in self._shown:
            asked = questions(rows)
            retriever = open_retriever(self._retriever, self.rows, asked, beside=self.files.path)
            self._shown[place] = {
                row.id: with_demonstrations(row.prompt, retriever.nearest(question, k))
                for row, question in zip(rows, asked, strict=True)
            }
        return self._shown[place]


def open_demonstrations(
    path: str | None, models: Sequence[ModelSpec], track: str, asked: Sequence[Example], *, retriever: str
) -> Demonstrations | None:
    """The training rows where one of the models needs them; ConfigError when it does and no file is named.

    ModelError where `retriever` names an encoder that is none, and a model is shown what it finds.
    """
    needing = [model.spec for model in models if model.needs_training_rows]
    if not needing:
        return None
    if not path:
        raise ConfigError(f"{needing[0]} takes training rows; set demonstrations to their JSONL")
    if any(model.demonstrations for model in models):
        check_retriever(retriever)
    return Demonstrations(path, track, asked, retriever)
