"""One recipe trained on its base in 4, 8 and 16 bits, side by side in one table: quality, memory, speed.

Each precision is a trial as a sweep's are: scored on the same validation rows by answers of its own model, a finished one
never trained again, no adapter published. Qualities are compared in pairs, row by row, with the highest precision that was
trained; the error is shared among the comparisons. The scores are of the base as it was trained on. What serving the
adapter on the 16-bit base changes is not measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config import PrecisionsConfig
from slm_ray.errors import ResourceError
from slm_ray.records import SCHEMA_VERSION
from slm_ray.reports.encoding import encode
from slm_ray.storage import lock, write_json
from slm_ray.tables import format_table
from slm_ray.tasks import open_track
from slm_ray.training import rows
from slm_ray.training.base_model import base_folder, open_tokenizer
from slm_ray.training.estimate import PRECISIONS
from slm_ray.training.plan import plan
from slm_ray.training.trials import Trial, run_trials
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.stats import RESAMPLES, SEED, paired_interval

RESULT = "precisions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One precision: the primary metric, how it differs from the reference's in pairs, and what its training took.

    `peak_bytes` is of one worker: of its GPU, or of its whole process on a CPU. `lower` and `upper` bound the
    `difference`, and are None for the reference itself. `failed` is the reason of a training that came to nothing.
    """

    precision: str
    score: float | None = None
    loss: float | None = None
    difference: float | None = None
    lower: float | None = None
    upper: float | None = None
    peak_bytes: int | None = None
    tokens_per_s: float | None = None
    train_s: float | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Precisions:
    """What each precision came to, the reference first; `workers` and `gpus` are what each training ran on."""

    track: str
    metric: str
    validation_rows: int
    workers: int
    gpus: float
    measured: tuple[Measured, ...]
    schema_version: int = SCHEMA_VERSION


def precisions(config: PrecisionsConfig) -> Precisions:
    """Train what is not trained yet and write RUN_DIR/precisions.json. Joins Ray once everything is checked.

    Raises as `train` does, and ResourceError when every precision failed; one that failed is a line of the table.
    """
    training = config.training
    train = rows.read(training.train, training.track)
    folder = Path(training.run_dir).absolute()
    plans = [
        plan(training.model_copy(update={"precision": one, "name": one, "run_dir": str(folder / "precisions")}), train=train)
        for one in PRECISIONS
    ]  # fmt: skip
    validation = rows.held_out(
        config.validation,
        rows.mixed(train, training),
        training.track,
        tokenizer=open_tokenizer(base_folder(training.base)),
    )
    with lock(folder / "precisions"):
        trials = run_trials(plans, validation, folder / "precisions")
        measured = compared(trials)
        if all(one.score is None for one in measured):
            raise ResourceError(f"the training in every precision failed; the first: {measured[0].failed}")
        track = open_track(training.track, beside=training.train)
        workers = training.workers
        result = Precisions(
            track=track.name, metric=track.primary, validation_rows=len(validation), workers=workers.count,
            gpus=workers.count * workers.per_worker.get("GPU", 0), measured=measured,
        )  # fmt: skip
        write_json(folder / RESULT, encode(result))
    return result


def compared(trials: Sequence[Trial]) -> tuple[Measured, ...]:
    """Each trial beside the first that has a score, in pairs over the rows that both have."""
    scored = [trial for trial in trials if trial.score is not None]
    one_sided = ONE_SIDED / max(1, len(scored) - 1)
    return tuple(_measured(trial, scored[0] if scored else trial, one_sided=one_sided) for trial in trials)


def _measured(trial: Trial, reference: Trial, *, one_sided: float) -> Measured:
    if trial.score is None:
        return Measured(precision=trial.plan.config.precision, failed=trial.error)
    bounds: dict[str, Any] = {}
    pairs = [(a, b) for a, b in zip(trial.rows, reference.rows, strict=True) if a is not None and b is not None]
    if trial is not reference and pairs:
        interval = paired_interval([a - b for a, b in pairs], resamples=RESAMPLES, seed=SEED, one_sided=one_sided)
        bounds = {"difference": interval.estimate, "lower": interval.lower, "upper": interval.upper}
    figures = {name: trial.metrics.get(name) for name in ("peak_bytes", "tokens_per_s", "train_s")}
    return Measured(precision=trial.plan.config.precision, score=trial.score, loss=trial.loss, **figures, **bounds)


def summary(result: Precisions) -> list[str]:
    """The table, and what it was measured on, as lines of text."""
    header = ("precision", result.metric, "difference", "loss", "peak GB", "tokens/s", "trained")
    lines = [header, *(_line(one) for one in result.measured)]
    device = f"{result.gpus:g} GPUs" if result.gpus else "no GPU, so memory and speed say nothing about one"
    return [
        *format_table(lines),
        f"{result.metric} on {result.validation_rows:,} validation rows; differences to the first line that has one, in pairs: the"
        f" lower bounds hold together at {1 - ONE_SIDED:.0%}, and so do the upper ones. Trained on {result.workers} workers, {device}.",
    ]


def _line(one: Measured) -> tuple[str, ...]:
    if one.failed is not None:
        return (one.precision, "failed:", one.failed, "", "", "", "")
    pairs = "" if one.difference is None else f"{one.difference:+.1%} ({one.lower:+.1%} to {one.upper:+.1%})"
    return (
        one.precision, f"{one.score:.3f}", pairs, f"{one.loss:.4f}",
        "" if one.peak_bytes is None else f"{one.peak_bytes / 1e9:.2f}",
        "" if one.tokens_per_s is None else f"{one.tokens_per_s:,.0f}",
        "" if one.train_s is None else f"{one.train_s:.0f} s",
    )  # fmt: skip
