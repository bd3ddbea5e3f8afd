"""How many training rows until the SLM reaches the LLM: one recipe trained on nested sizes side by side, scored, and extrapolated.

Each size contains the smaller ones, in an order drawn from the recipe's seed. The sizes are trials as a sweep's are: as
many at once as there is room for, a finished one never trained again, no adapter published. The answer is
`verdict.learning_curve`'s, on validation rows; it decides nothing, since only an evaluation on test rows does.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config import LearningCurveConfig
from slm_ray.corpus.balance import tag_error
from slm_ray.errors import ConfigError, DataError, ResourceError, choices
from slm_ray.records import SCHEMA_VERSION, ComparisonReport
from slm_ray.reports.encoding import decode, encode
from slm_ray.reports.files import COMPARISON, folder_of, load_report
from slm_ray.storage import lock, read_json, write_json
from slm_ray.tasks import open_track
from slm_ray.training import rows
from slm_ray.training.base_model import base_folder, open_tokenizer
from slm_ray.training.plan import Plan, plan
from slm_ray.training.trials import Trial, run_trials
from slm_ray.types import Example
from slm_ray.verdict.learning_curve import (
    FEWEST_SIZES,
    Labelling,
    RowsAnswer,
    SizeScore,
    Target,
    in_words,
    labelling,
    rows_to_target,
    standard_error,
)

RESULT = "learning_curve.json"
_SIZES = 5  # when none are named: each half of the next
_FEWEST_ROWS = 4  # of the smallest of those


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedSize:
    """One size: the metric on the validation rows with its standard error, or the `failed` trial's reason."""

    rows: int
    score: float | None = None
    error: float | None = None
    train_s: float | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningCurve:
    """The sizes as trained, what was to be reached, and the answer; `labelled` counts the training rows that there are."""

    track: str
    metric: str
    validation_rows: int
    labelled: int
    target: Target
    sizes: tuple[TrainedSize, ...]
    answer: RowsAnswer
    labelling: Labelling | None = None
    schema_version: int = SCHEMA_VERSION


def learning_curve(config: LearningCurveConfig) -> LearningCurve:
    """Train what is not trained yet, fit, and write RUN_DIR/learning_curve.json. Joins Ray once all rows are checked.

    Raises as `train` does, DataError for too few rows and for validation rows that are training rows, and ResourceError
    when every size failed; one that failed is left out of the fit and said.
    """
    training = config.training
    train = rows.read(training.train, training.track)
    track = open_track(training.track, beside=training.train)
    target = target_of(config, track.name, track.primary)
    plans = plans_of(config, train)
    validation = rows.held_out(
        config.validation,
        rows.mixed(train, training),
        training.track,
        tokenizer=open_tokenizer(base_folder(training.base)),
    )
    folder = Path(training.run_dir).absolute()
    with lock(folder / "learning_curve"):
        trials = run_trials(plans, validation, folder / "learning_curve")
        sizes = tuple(_trained(trial, len(validation)) for trial in trials)
        if all(size.score is None for size in sizes):
            raise ResourceError(f"the training of every size failed; the first: {sizes[0].failed}")
        points = [
            SizeScore(rows=size.rows, score=size.score, error=size.error)
            for size in sizes
            if size.score is not None and size.error is not None
        ]
        answer = rows_to_target(points, target, seed=training.seed)
        cost = None
        if config.usd_per_label is not None:
            cost = labelling(
                answer, labelled=len(train.examples), usd_per_row=config.usd_per_label,
                saved_per_request_usd=_saved_usd(config),
            )  # fmt: skip
        result = LearningCurve(
            track=track.name, metric=track.primary, validation_rows=len(validation), labelled=len(train.examples),
            target=target, sizes=sizes, answer=answer, labelling=cost,
        )  # fmt: skip
        write_json(folder / RESULT, encode(result))
    return result


def plans_of(config: LearningCurveConfig, train: rows.Rows) -> list[Plan]:
    """One training run for each size, on rows that contain those of the smaller sizes."""
    training = config.training
    order = nested_order(train.examples, seed=training.seed, stratify=config.stratify)
    plans = []
    for size in sizes_of(config, len(order)):
        run = {"name": f"rows{size}", "run_dir": str(Path(training.run_dir) / "learning_curve")}
        plans.append(plan(training.model_copy(update=run), train=train.chosen(order[:size])))
    return plans


def sizes_of(config: LearningCurveConfig, available: int) -> list[int]:
    """The sizes that were asked for, or five that double up to all `available` rows (four where those are few)."""
    if config.sizes:
        if config.sizes[-1] > available:
            raise ConfigError(
                f"sizes: {config.sizes[-1]:,} rows are asked for, and {config.training.train} has {available:,}; "
                "lower the sizes or prepare more rows"
            )
        return list(config.sizes)
    sizes = [available // 2**halvings for halvings in reversed(range(_SIZES))]
    sizes = [size for size in sizes if size >= _FEWEST_ROWS]
    if len(sizes) < FEWEST_SIZES:
        raise DataError(
            f"{config.training.train}: {available} training rows are too few for {FEWEST_SIZES} sizes; prepare at least "
            f"{_FEWEST_ROWS * 2 ** (FEWEST_SIZES - 1)}"
        )
    return sizes


def nested_order(examples: Sequence[Example], *, seed: int, stratify: str | None = None) -> list[int]:
    """Places of the examples in an order drawn from `seed`, every beginning of which is one training size.

    It does not depend on the order of the file. With `stratify`, every value of that tag is spread evenly over the order,
    so that each size has its share of it to within one row. DataError when no row has the tag.
    """
    if stratify is not None and not any(stratify in example.tags for example in examples):
        raise tag_error(stratify, Counter(name for example in examples for name in example.tags))
    drawn = sorted(range(len(examples)), key=lambda place: _drawn(seed, examples[place].id))
    if stratify is None:
        return drawn
    values = [example.tags.get(stratify, "") for example in examples]
    counts, seen = Counter(values), Counter[str]()
    position: dict[int, float] = {}
    for place in drawn:
        value = values[place]
        # Where a class starts is drawn too: else all rare classes would come at the same point of the order.
        position[place] = (seen[value] + _drawn(seed, f"class {value}")) / counts[value]
        seen[value] += 1
    return sorted(drawn, key=position.__getitem__)


def summary(result: LearningCurve) -> list[str]:
    """The table of sizes, the target and the answer, as lines of text."""
    lines = [f"{'rows':>8}  {result.metric} on {result.validation_rows:,} validation rows, and the curve (90 %)"]
    expected = {forecast.rows: forecast for forecast in result.answer.forecasts}
    measured = {size.rows: size for size in result.sizes}
    for size in sorted({*expected, *measured}):
        trained, forecast = measured.get(size), expected.get(size)
        text = "not trained" if trained is None else f"failed: {trained.failed}"
        if trained is not None and trained.score is not None and trained.error is not None:
            text = f"{trained.score:.1%} ± {1.645 * trained.error:.1%}"
        band = f"{forecast.lower:.1%} to {forecast.upper:.1%}" if forecast else ""
        lines.append(f"{size:>8,}  {text:<18}  {band}".rstrip())
    target, unsure = result.target, ""
    if target.error:
        unsure = f" ± {1.645 * target.error:.1%}"
    lines.append(f"target: {target.score:.1%}{unsure}")
    lines.append(f"training rows to reach it: {in_words(result.answer)}")
    if (cost := result.labelling) is not None:
        low, middle, high = cost.further_rows
        lines.append(
            f"labelling: {middle:,} further rows ({low:,} to {high:,}) beside the {result.labelled:,} that there are, "
            f"{cost.usd[1]:,.0f} USD ({cost.usd[0]:,.0f} to {cost.usd[2]:,.0f})"
        )
        if cost.payback_requests is not None:
            first, _, last = cost.payback_requests
            lines.append(f"  paid back by what a swap saves after {first:,.0f} to {last:,.0f} requests")
    return lines


def _trained(trial: Trial, validation_rows: int) -> TrainedSize:
    size = len(trial.plan.examples)
    if trial.score is None:
        return TrainedSize(rows=size, failed=trial.error)
    error = standard_error(trial.score, validation_rows)
    return TrainedSize(rows=size, score=trial.score, error=error, train_s=trial.metrics.get("train_s"))


def target_of(config: LearningCurveConfig, track: str, metric: str) -> Target:
    """The metric to reach: set, or the LLM's of an evaluation less delta, with what that is uncertain by."""
    if not config.report:
        assert config.target is not None  # the config holds one of the two
        return Target(score=config.target)
    report, _ = load_report(config.report)
    if report.track != track:
        raise ConfigError(f"report: {config.report} is of the track {report.track!r}, and training.track is {track!r}")
    if config.llm not in report.models:
        raise ConfigError(f"llm: {config.report} has no {config.llm!r}: {choices(config.llm, report.models)}")
    model = report.models[config.llm]
    score = model.metrics.get(metric)
    if score is None:
        raise DataError(f"{config.report}: {config.llm} has no {metric}; evaluate it on rows that have one")
    return Target(score=max(0.0, score - config.delta), error=standard_error(score, model.n))


def _saved_usd(config: LearningCurveConfig) -> float | None:
    """What a swap saves per request, by the comparison beside `report`; None where there is none or it has no cost."""
    path = folder_of(config.report) / COMPARISON if config.report else None
    if path is None or not path.is_file():
        return None
    cost = decode(read_json(path), ComparisonReport, where=str(path), fix="compare again").cost
    llm, slm = cost.arms[cost.llm].per_request_usd, cost.arms[cost.slm].per_request_usd
    return None if cost.llm != config.llm or llm is None or slm is None else llm - slm


def _drawn(seed: int, text: str) -> float:
    """A number in [0, 1) that seed and text decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8]) / 2**64
