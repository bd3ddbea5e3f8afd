"""Whether a learning curve of real QLoRA trainings tells what a larger one will reach: the largest size is hidden from the fit.

Nested sizes of each task are trained with one recipe for several seeds, each of which draws the rows anew, and scored by
greedy answers on the same validation rows, as `slm-ray learning-curve` does it. Resident workers hold the base and take
one training after another. What is trained is never trained again: a run that was cut goes on, one training at a time.

Says of every curve what the fit expected of the hidden size, what was measured there, and whether the interval of rows for
that metric holds the hidden size. Few curves are no coverage to the point; `bench_learning_curve` has the many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slm_ray.command import output_folder, run
from slm_ray.config import LearningCurveConfig, PrepareConfig, TrainConfig
from slm_ray.corpus.tracks import Track
from slm_ray.learning_curve import plans_of
from slm_ray.prepare import prepare
from slm_ray.tasks import write_track
from slm_ray.training import rows
from slm_ray.training.base_model import base_folder, open_tokenizer
from slm_ray.training.trials import run_trials
from slm_ray.verdict.learning_curve import (
    Forecast,
    RowsAnswer,
    SizeScore,
    Target,
    in_words,
    rows_to_target,
    standard_error,
)
from tools.config import CurveSource, TrainingCurveBenchConfig

# Labels as plain answers: to list all of them in each prompt, as the track `classify` does, is most of the training time.
LABELLED = Track(
    name="labelled",
    system="Answer with the label of the text.",
    scorers=("text",),
    primary="normalised_text",
    core=("normalised_text",),
    template="{text}",
    target="{category}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One seed of one task: its points, what was measured at the hidden size, and what the fit of the others said.

    `hidden` and `answer` are None where a training failed.
    """

    name: str
    seed: int
    points: tuple[SizeScore, ...]
    hidden: SizeScore | None
    answer: RowsAnswer | None

    @property
    def forecast(self) -> Forecast | None:
        """What was expected of the hidden size; None where no curve was fitted."""
        if self.answer is None or self.hidden is None:
            return None
        return next((one for one in self.answer.forecasts if one.rows == self.hidden.rows), None)

    @property
    def metric_held(self) -> bool | None:
        """Whether the metric that was measured at the hidden size lies in its interval."""
        if self.forecast is None or self.hidden is None:
            return None
        return self.forecast.lower <= self.hidden.score <= self.forecast.upper

    @property
    def rows_held(self) -> bool | None:
        """Whether the interval of rows for that metric holds the hidden size; None where no interval was stated."""
        if self.answer is None or self.hidden is None or self.answer.lower is None or self.answer.upper is None:
            return None
        return self.answer.lower <= self.hidden.rows <= self.answer.upper


def curve(name: str, seed: int, trained: Sequence[tuple[int, float | None]], validation_rows: int) -> Curve:
    """The curve of one seed by its trainings' rows and scores (None: it failed); the last one is the hidden one."""
    points = tuple(
        SizeScore(rows=size, score=score, error=standard_error(score, validation_rows))
        for size, score in trained
        if score is not None
    )
    if len(points) < len(trained):
        return Curve(name=name, seed=seed, points=points, hidden=None, answer=None)
    *seen, hidden = points
    answer = rows_to_target(seen, Target(score=hidden.score), seed=seed)
    return Curve(name=name, seed=seed, points=points, hidden=hidden, answer=answer)


def curves(config: TrainingCurveBenchConfig, source: CurveSource) -> Iterator[Curve]:
    """Train what is not trained yet of one task, all seeds of it by the same workers."""
    folder = Path(output_folder(config.out_dir)).absolute() / source.name
    track = source.track
    if track == LABELLED.name:
        write_track(folder, LABELLED)
        track = str(folder / "track.yaml")
    prepared = prepare(
        PrepareConfig(
            track=track, source=source.source, out_dir=str(folder / "rows"), test_rows=1,
            validation_rows=config.validation_rows,
        )
    )  # fmt: skip
    train = rows.read(prepared.path("train"), prepared.track)
    validation = rows.held_out(
        prepared.path("validation"), train, prepared.track, tokenizer=open_tokenizer(base_folder(config.base))
    )
    asked = [
        LearningCurveConfig(
            training=TrainConfig(
                **config.recipe.model_copy(update={"seed": seed}).model_dump(), track=prepared.track,
                train=prepared.path("train"), base=config.base, run_dir=str(folder / f"seed{seed}"),
                adapters_dir=str(folder / "adapters"), prove_on="nothing",
            ),
            validation=prepared.path("validation"), sizes=(*config.sizes, config.hidden), target=0.5,
        )
        for seed in config.seeds
    ]  # fmt: skip
    plans = [plans_of(one, train) for one in asked]
    trials = run_trials([planned for each in plans for planned in each], validation, folder / "workers")
    scores = iter([(len(trial.plan.examples), trial.score) for trial in trials])
    for seed, each in zip(config.seeds, plans, strict=True):
        yield curve(source.name, seed, [next(scores) for _ in each], len(validation))


def table(found: Sequence[Curve]) -> Table:
    """A line for each curve and one for all."""
    shown = Table(
        "task", "seed", "metric by rows", "expected at the hidden size", "measured", "held", "rows for it", "held"
    )
    for one in found:
        expected, answer = one.forecast, one.answer
        shown.add_row(
            one.name, str(one.seed),
            ", ".join(f"{point.rows:,}: {point.score:.1%}" for point in one.points if point is not one.hidden),
            f"{expected.score:.1%} ({expected.lower:.1%} to {expected.upper:.1%})" if expected else "–",
            f"{one.hidden.score:.1%}" if one.hidden else "a training failed", _word(one.metric_held),
            in_words(answer).partition(":")[0] if answer and answer.outcome == "rows" else _why(answer),
            _word(one.rows_held),
        )  # fmt: skip
    metric = [held for one in found if (held := one.metric_held) is not None]
    counted = [held for one in found if (held := one.rows_held) is not None]
    shown.add_row(
        "all", "", f"{len(metric)} of {len(found)} fitted", "", "", f"{sum(metric)} of {len(metric)}", "",
        f"{sum(counted)} of {len(counted)}",
    )  # fmt: skip
    return shown


def _word(held: bool | None) -> str:
    return "–" if held is None else "yes" if held else "no"


def _why(answer: RowsAnswer | None) -> str:
    if answer is None:
        return "–"
    return f"refused: {answer.because}" if answer.outcome == "refused" else "not promised"


def main(config: TrainingCurveBenchConfig) -> None:
    """The table so far after every task."""
    found: list[Curve] = []
    for source in config.sources:
        found += curves(config, source)
        Console(width=200).print(table(found))


if __name__ == "__main__":
    run(main, TrainingCurveBenchConfig, __doc__)
