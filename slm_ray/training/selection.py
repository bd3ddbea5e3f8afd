"""Which checkpoint of a run is the best one, and when to stop: by the task's own metric on validation rows.

With every checkpoint the adapter so far answers the rows, each rank its share, and every rank gets the same figures, so that
all stop at the same step. What was measured stands in the trainer's own log and so in every checkpoint: a resumed run
knows it. The rows choose among checkpoints; they are not those that decide whether the model is good enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from slm_ray.corpus.tracks import Track
from slm_ray.training.validation_score import row_scores, summary, target_loss
from slm_ray.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The validation rows at one step: `score` is the track's primary metric, `loss` nats per token of the targets."""

    step: int
    score: float
    loss: float


class Selection:
    """Evaluates a model that is being trained; every rank calls it at the same steps."""

    def __init__(self, examples: Sequence[Example], track: Track, tokenizer: Any, *, patience: int | None) -> None:
        self._examples, self._track, self._tokenizer, self._patience = examples, track, tokenizer, patience

    def evaluate(self, model: Any) -> dict[str, float]:
        """`validation_score` and `validation_loss` over all rows, the same on every rank; the model trains on after it."""
        rank, ranks = 0, 1
        if torch.distributed.is_initialized():
            rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        share = self._examples[rank::ranks]
        mine = (row_scores(model, self._tokenizer, share, self._track), *target_loss(model, self._tokenizer, share))
        shares: list[Any] = [mine]
        if ranks > 1:
            shares = [None] * ranks
            torch.distributed.all_gather_object(shares, mine)
        score = summary(self._track, [row for rows, _, _ in shares for row in rows])["validation_score"]
        tokens = sum(count for _, _, count in shares)
        return {"validation_score": score, "validation_loss": sum(total for _, total, _ in shares) / tokens}

    def is_over(self, log: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the last `patience` evaluations have not bettered the task metric."""
        return self._patience is not None and since_best(history(log)) >= self._patience


def history(log: Sequence[Mapping[str, Any]]) -> list[Evaluation]:
    """The evaluations that stand in a trainer's log, in order."""
    return [
        Evaluation(step=entry["step"], score=entry["validation_score"], loss=entry["validation_loss"])
        for entry in log
        if "validation_score" in entry
    ]


def best(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The highest score; among equal ones the lower loss, then the earlier."""
    return min(evaluations, key=lambda one: (-one.score, one.loss, one.step))


def since_best(evaluations: Sequence[Evaluation]) -> int:
    """How many evaluations came after the first of the highest score: a lower loss at the same score is no better metric."""
    scores = [one.score for one in evaluations]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def rank(log: Sequence[Mapping[str, Any]], step: int) -> int:
    """The checkpoint of the highest rank is the one to keep: one that is the best so far ranks above all before it."""
    evaluations = history(log)
    return len(evaluations) if evaluations and best(evaluations).step == step else 0


def figures(log: Sequence[Mapping[str, Any]], *, steps: int) -> dict[str, Any]:
    """For the manifest: which step is published and why; nothing where no rows chose. `steps` is the whole run's number."""
    evaluations = history(log)
    if not evaluations:
        return {}
    chosen = best(evaluations)
    return {
        "best_step": chosen.step, "validation_score": chosen.score, "validation_loss": chosen.loss,
        "stopped_early": evaluations[-1].step < steps, "evaluations": [asdict(one) for one in evaluations],
    }  # fmt: skip
