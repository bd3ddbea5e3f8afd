"""How often the bounds of a judged verdict are wrong, and how many labels a swap takes, by simulation.

`python -m tools.simulate_judged` prints both tables of the documents; a minute or two on one core. The worst error is
over shapes of differences, kinds of judges and both bounds, at the one-sided level 5 %, beside that of normal bounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from slm_ray.tables import format_table
from slm_ray.verdict import prediction_powered as room
from slm_ray.verdict.prediction_powered import JudgedUnit, prediction_powered

Values = NDArray[np.float64]
GRADES = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
Z = 1.6449
SHAPES = {
    "5 % losses, else ties": (0.05, 0.0, 0.95, 0.0, 0.0),
    "12 % losses, else ties": (0.12, 0.0, 0.88, 0.0, 0.0),
    "6 % losses, else wins": (0.06, 0.0, 0.0, 0.0, 0.94),
    "losses and small wins": (0.1, 0.05, 0.3, 0.5, 0.05),
    "even": (0.25, 0.1, 0.25, 0.1, 0.3),
    "half and half": (0.5, 0.0, 0.0, 0.0, 0.5),
}


def overlooks(chance: np.random.Generator, people: Values) -> Values:
    """Takes every other loss for a win."""
    return np.where((people < 0) & (chance.random(people.size) < 0.5), 1.0, people)


def flatters(chance: np.random.Generator, people: Values) -> Values:
    """Likes the SLM half a point more on most rows."""
    return np.clip(people + 0.5 * (chance.random(people.size) < 0.6), -1, 1)


def guesses(chance: np.random.Generator, people: Values) -> Values:
    """Knows nothing."""
    return chance.choice(GRADES, size=people.size)


def four_of_five(chance: np.random.Generator, people: Values) -> Values:
    """Right on four rows of five, a guess on the fifth."""
    return np.where(chance.random(people.size) < 0.8, people, guesses(chance, people))


JUDGES: tuple[Callable[[np.random.Generator, Values], Values], ...] = (overlooks, flatters, guesses)


def units(people: Values, judge: Values, labels: int) -> list[JudgedUnit]:
    """The first `labels` rows with what people said."""
    said = [(float(value), float(guess)) for value, guess in zip(people, judge, strict=True)]
    return [
        JudgedUnit(judge=guess, people=value if place < labels else None) for place, (value, guess) in enumerate(said)
    ]


def worst_errors(labels: int, rows: int, runs: int) -> tuple[float, float]:
    """The highest share of wrong bounds over all cells: ours, and normal ones of the same estimate."""
    worst = np.zeros(2)
    for shares in SHAPES.values():
        truth = float(np.dot(shares, GRADES))
        for judge in JUDGES:
            chance, wrong = np.random.default_rng(1), np.zeros((2, 2))
            for _ in range(runs):
                people = chance.choice(GRADES, size=rows, p=shares)
                seen = prediction_powered(units(people, judge(chance, people), labels))
                bounds = seen.interval
                half = Z * float(np.sqrt(seen.moments.people / seen.effective_labels))
                wrong[0] += bounds.lower > truth, bounds.upper < truth
                wrong[1] += bounds.estimate - half > truth, bounds.estimate + half < truth
            worst = np.maximum(worst, wrong.max(axis=1) / runs)
    return float(worst[0]), float(worst[1])


def swaps(labels: int, delta: float, runs: int, level: float) -> tuple[float, float]:
    """How often equally good models are shown to be so: by people alone, and with a judge that is right on four of five."""
    chance, shown = np.random.default_rng(2), np.zeros(2)
    for _ in range(runs):
        people = chance.choice(GRADES, size=1000, p=(0.2, 0.0, 0.6, 0.0, 0.2))
        for place, judge in enumerate((np.zeros(1000), four_of_five(chance, people))):
            shown[place] += prediction_powered(units(people, judge, labels), level=level).interval.lower > -delta
    alone, both = shown / runs
    return float(alone), float(both)


def main() -> None:
    """Print both tables."""
    room._DRAWS = 1000  # coarser quantiles, no other bias: a simulation asks often
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    errors = [(labels, worst_errors(labels, 300, runs)) for labels in (30, 100)]
    lines = [["labels", "worst error", "of normal bounds"]]
    lines += [[str(labels), f"{ours:.1%}", f"{normal:.1%}"] for labels, (ours, normal) in errors]
    print(*format_table(lines), "", sep="\n")
    lines = [["labels", "delta", "people alone", "with the judge"]]
    for labels, delta in ((100, 0.1), (200, 0.1), (400, 0.1), (200, 0.05), (400, 0.05)):
        alone, both = swaps(labels, delta, max(runs // 4, 50), 0.05 / 3)
        lines.append([str(labels), f"{delta:g}", f"{alone:.0%}", f"{both:.0%}"])
    print(*format_table(lines), sep="\n", flush=True)


if __name__ == "__main__":
    main()
