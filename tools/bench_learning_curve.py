"""How often the intervals of a learning curve hold: simulated curves, and real ones of cheap learners with sizes hidden.

Simulated: eight kinds of curve, five of which the fit does not know. Real: accuracy on labelled texts (a CSV file with the
columns text and label) of three learners that train in seconds and stand in for a fine-tuned model: naive Bayes, nearest
centroid and ridge regression on hashed n-grams. The fit sees validation rows at `sizes`; what is hidden is the accuracy on
test rows at up to four times the largest.
"""

from __future__ import annotations

import csv
import itertools
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from slm_ray.command import run
from slm_ray.verdict.learning_curve import REACH, RowsAnswer, SizeScore, Target, rows_to_target, standard_error
from tools.config import LearningCurveBenchConfig

Values = NDArray[np.float64]
Features = NDArray[np.float32]
Curve = Callable[[Values], Values]
Learner = Callable[[Features, NDArray[np.int64], Features, int], NDArray[np.int64]]

TRAINING_NOISE = 0.01  # of simulated curves: standard deviation between trainings
FEATURES = 4096
TESTED = 300  # resamples of the fit: fewer than the job takes, since thousands of curves are fitted


@dataclass
class Tally:
    """How often the intervals held, over all curves of one kind."""

    curves: int = 0
    refused: int = 0
    rows_held: int = 0
    stated: int = 0
    stated_held: int = 0
    twice_held: int = 0
    furthest_held: int = 0
    widths: float = 0.0

    def add(self, answer: RowsAnswer, true_rows: float, twice: float, furthest: float, largest: int) -> None:
        """Count one answer; `twice` and `furthest` are the true metric at two and at `REACH` times the largest size."""
        self.curves += 1
        if answer.outcome == "refused":
            self.refused += 1
            return
        low = answer.lower if answer.lower is not None else REACH * largest
        high = answer.upper if answer.upper is not None else np.inf
        held = low <= true_rows * 1.02 and true_rows <= high * 1.02  # sizes are looked at in steps of up to 1.1 %
        self.rows_held += held
        self.stated += answer.outcome == "rows"
        self.stated_held += held and answer.outcome == "rows"
        forecasts = {forecast.rows: forecast for forecast in answer.forecasts}
        self.twice_held += forecasts[2 * largest].lower <= twice <= forecasts[2 * largest].upper
        last = forecasts[REACH * largest]
        self.furthest_held += last.lower <= furthest <= last.upper
        self.widths += last.upper - last.lower

    def row(self, name: str) -> list[str]:
        """The cells of the table."""
        answered = max(self.curves - self.refused, 1)
        shares = (
            self.refused / max(self.curves, 1), self.rows_held / answered, self.stated / answered,
            self.stated_held / max(self.stated, 1), self.twice_held / answered, self.furthest_held / answered,
        )  # fmt: skip
        return [name, f"{self.curves:,}", *(f"{share:.0%}" for share in shares), f"{self.widths / answered:.2f}"]


def table(title: str, tallies: dict[str, Tally]) -> Table:
    names = (
        "curve", "curves", "refused", "rows held", "rows stated", "held where stated", "metric at 2x held",
        f"at {REACH}x held", "width there",
    )  # fmt: skip
    shown = Table(*names, title=title)
    for name, tally in tallies.items():
        shown.add_row(*tally.row(name))
    total = Tally(**{field: sum(getattr(tally, field) for tally in tallies.values()) for field in Tally().__dict__})
    shown.add_row(*total.row("all"))
    return shown


def drawn_curve(kind: str, chance: np.random.Generator) -> Curve:
    """One curve of a kind with parameters drawn at random: the metric by training rows."""
    top, start = chance.uniform(0.75, 0.98), chance.uniform(0.2, 0.5)
    half, steep, bend = chance.uniform(60, 400), chance.uniform(0.5, 1.5), chance.uniform(300, 2500)
    slow, fast = chance.uniform(0.2, 0.6), chance.uniform(0.1, 1.0)
    match kind:
        case "power law":
            return lambda n: top - (top - start) * (n / 50) ** -steep
        case "rectified":
            return lambda n: np.asarray(top * n**steep / (half**steep + n**steep))
        case "Weibull":
            return lambda n: np.asarray(top * (1 - np.exp(-((n / half) ** (0.7 * steep)))))
        case "Gompertz":
            return lambda n: np.asarray(top * np.exp(-np.exp(-steep * np.log(n / half))))
        case "log, then capped":
            return lambda n: np.asarray(-np.logaddexp(-25 * (start + fast / 9 * np.log2(n / 50)), -25 * top) / 25)
        case "1 / log":
            return lambda n: np.asarray(0.95 - (0.8 + fast) / np.log(n / 5))
        case "slope that changes":
            return lambda n: top - (top - start) * (n / 50) ** -slow * (1 + (n / bend) ** 2) ** ((slow - fast) / 2)
        case _:  # "step"
            return lambda n: np.asarray(start + (top - start) / (1 + (half / n) ** (2 * steep)))


KINDS = (
    "power law", "rectified", "Weibull", "Gompertz", "log, then capped", "1 / log", "slope that changes", "step",
)  # fmt: skip


def points(sizes: Sequence[int], shares: Sequence[float], validation: int) -> list[SizeScore]:
    return [
        SizeScore(rows=size, score=float(share), error=standard_error(float(share), validation))
        for size, share in zip(sizes, shares, strict=True)
    ]


def simulated(config: LearningCurveBenchConfig) -> dict[str, Tally]:
    """Curves with row noise and training noise; the target is the curve's own value at a size drawn log-uniformly."""
    largest, tallies = config.sizes[-1], {kind: Tally() for kind in KINDS}
    for number, kind in enumerate(KINDS):
        for seed in range(config.curves):
            chance = np.random.default_rng([config.seed, number, seed])
            curve = drawn_curve(kind, chance)
            truth = curve(np.array(config.sizes, dtype=float))
            shares = np.clip(truth + TRAINING_NOISE * chance.standard_normal(truth.size), 0, 1)
            scores = chance.binomial(config.validation_rows, shares) / config.validation_rows
            rows = float(np.exp(chance.uniform(np.log(2 * config.sizes[0]), np.log(REACH * largest))))
            target = Target(score=float(np.clip(curve(np.array(rows)), 0, 1)))
            seen = points(config.sizes, scores.tolist(), config.validation_rows)
            answer = rows_to_target(seen, target, seed=seed, resamples=TESTED)
            twice, furthest = curve(np.array([2.0 * largest, float(REACH * largest)]))
            tallies[kind].add(answer, rows, twice, furthest, largest)
    return tallies


def labelled(path: str) -> tuple[list[str], list[str]]:
    """Texts and labels: the first two columns of a CSV file with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        found = [(row[0], row[1]) for row in list(csv.reader(file))[1:]]
    return [text for text, _ in found], [label for _, label in found]


def features(texts: Sequence[str]) -> Features:
    """Words, pairs of words and letter trigrams, hashed and counted; rows of length one."""
    counts = np.zeros((len(texts), FEATURES), dtype=np.float32)
    for row, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower())
        joined = f" {' '.join(words)} "
        grams = [*words, *map(" ".join, itertools.pairwise(words))]
        grams += [joined[at : at + 3] for at in range(len(joined) - 2)]
        np.add.at(counts[row], [zlib.crc32(gram.encode()) % FEATURES for gram in grams], 1)
    weighted = np.log1p(counts)
    return np.asarray(weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-9))


def sums(train: Features, labels: NDArray[np.int64], classes: int) -> Features:
    """The features of each class, added up."""
    return np.eye(classes, dtype=np.float32)[labels].T @ train


def naive_bayes(train: Features, labels: NDArray[np.int64], test: Features, classes: int) -> NDArray[np.int64]:
    """Multinomial, with smoothing of 0.01 and the classes' shares; a text counts as twelve grams."""
    smoothed = sums(train, labels, classes) + 0.01
    likely = np.log(smoothed / smoothed.sum(axis=1, keepdims=True))
    return np.asarray((test @ likely.T * 12 + np.log(np.bincount(labels, minlength=classes) + 0.1)).argmax(axis=1))


def nearest_centroid(train: Features, labels: NDArray[np.int64], test: Features, classes: int) -> NDArray[np.int64]:
    """By cosine; a class without rows is never chosen."""
    centroids = sums(train, labels, classes)
    lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
    return np.asarray((test @ (centroids / np.maximum(lengths, 1e-9)).T).argmax(axis=1))


def ridge(train: Features, labels: NDArray[np.int64], test: Features, classes: int) -> NDArray[np.int64]:
    """Least squares on one column per class, solved over the rows."""
    kernel = train @ train.T
    kernel[np.diag_indices_from(kernel)] += 0.3
    weights = np.linalg.solve(kernel, np.eye(classes, dtype=np.float32)[labels])
    return np.asarray((test @ train.T @ weights).argmax(axis=1))


LEARNERS: dict[str, Learner] = {"naive Bayes": naive_bayes, "nearest centroid": nearest_centroid, "ridge": ridge}


def real(config: LearningCurveBenchConfig, train: str, test: str) -> dict[str, Tally]:
    """Curves of each learner over seeds that draw the nested training rows and the validation rows.

    What is true of a seed's metric is its accuracy on the test rows that are not its validation rows; what is true of the
    rows is read from the mean curve over seeds, straight in log rows between the sizes.
    """
    texts, names = labelled(train)
    test_texts, test_names = labelled(test)
    known = {name: number for number, name in enumerate(sorted({*names, *test_names}))}
    x, y = features(texts), np.array([known[name] for name in names])
    x_test, y_test = features(test_texts), np.array([known[name] for name in test_names])
    largest = config.sizes[-1]
    every = [*config.sizes, 2 * largest, REACH * largest]
    tallies = {}
    for name, learner in LEARNERS.items():
        seen, hidden = np.zeros((config.seeds, len(every))), np.zeros((config.seeds, len(every)))
        for seed in range(config.seeds):
            chance = np.random.default_rng([config.seed, seed])
            order, held = chance.permutation(y.size), chance.permutation(y_test.size)
            validation, rest = held[: config.validation_rows], held[config.validation_rows :]
            for place, size in enumerate(every):
                right = learner(x[order[:size]], y[order[:size]], x_test, len(known)) == y_test
                seen[seed, place], hidden[seed, place] = right[validation].mean(), right[rest].mean()
        tallies[name] = Tally()
        mean, log_sizes = hidden.mean(axis=0), np.log(every)
        print(f"{name}: mean accuracy " + ", ".join(f"{n:,}: {s:.1%}" for n, s in zip(every, mean, strict=True)))
        for seed in range(config.seeds):
            chance = np.random.default_rng([config.seed, seed, 1])
            for _ in range(config.targets):
                log_rows = chance.uniform(np.log(2 * config.sizes[0]), log_sizes[-1])
                target = Target(score=float(np.interp(log_rows, log_sizes, mean)))
                scores = points(config.sizes, seen[seed, : len(config.sizes)].tolist(), config.validation_rows)
                answer = rows_to_target(scores, target, seed=seed, resamples=TESTED)
                twice, furthest = hidden[seed, -2:].tolist()
                tallies[name].add(answer, float(np.exp(log_rows)), twice, furthest, largest)
    return tallies


def main(config: LearningCurveBenchConfig) -> None:
    console = Console(width=140)
    if config.curves:
        console.print(table(f"simulated, {config.validation_rows} validation rows", simulated(config)))
    if config.train and config.test:
        title = f"real, stand-in learners, {config.seeds} seeds x {config.targets} targets"
        console.print(table(title, real(config, config.train, config.test)))


if __name__ == "__main__":
    run(main, LearningCurveBenchConfig, __doc__)
