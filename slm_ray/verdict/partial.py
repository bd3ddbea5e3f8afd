"""How much of the traffic the SLM may take when it may not take all: rows it is sure of go to it, the rest to the LLM.

How sure the SLM is of an answer is told without the expected one: the answer has to be in the right form (valid JSON, a
valid call, the track's schema) and is then ranked by its mean token log-probability, where rows carry one. The mixture
is judged by the same paired rule and margin as a whole swap; a row that the LLM answers differs by nothing. The
threshold is the one with the largest share that passes on validation rows and that so many test rows would confirm with
90 % power. Trying many thresholds makes that choice lucky, so it is checked once, as it stands, on test rows: that one
check has the error of one test, whatever was done on validation rows. Pure; asks nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from slm_ray.types import Interval
from slm_ray.verdict.binary import ONE_SIDED, shows
from slm_ray.verdict.decide import not_worse
from slm_ray.verdict.stats import paired_interval

FORMS = ("json_valid", "valid_call", "schema_valid")
MOST_THRESHOLDS = 50
CONFIRMED = 0.9
_DRAWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """One row that both models have a score for; `sure` is None where the SLM's answer is not in the right form."""

    sure: float | None
    llm: float
    slm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The rows at or above `threshold` answered by the SLM, the others by the LLM."""

    threshold: float
    share: float
    quality: float
    interval: Interval
    differences: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """USD per request of either model; None where unknown."""

    llm_usd: float | None = None
    slm_usd: float | None = None

    def of(self, share: float) -> float | None:
        """USD per request of a mixture: the SLM is asked first every time, since its answer says how sure it is."""
        if self.llm_usd is None or self.slm_usd is None:
            return None
        return self.slm_usd + (1 - share) * self.llm_usd


def ranked(rows: Sequence[Mapping[str, Any]], *, llm: str, slm: str, primary: str) -> tuple[list[Routed], str]:
    """The rows as `Routed`, and in words what ranks them."""
    both = [row["models"] for row in rows if {llm, slm} <= row["models"].keys()]
    logprobs = any(models[slm].get("logprob") is not None for models in both)
    forms = [name for name in FORMS if any(models[slm]["scores"].get(name) is not None for models in both)]
    found = [
        Routed(sure=_sure(models[slm], forms, logprobs), llm=float(a), slm=float(b))
        for models in both
        if (a := models[llm]["scores"].get(primary)) is not None
        and (b := models[slm]["scores"].get(primary)) is not None
    ]
    form = " and ".join(forms) or "an answer at all"
    return (
        found,
        f"{form}, then mean token log-probability" if logprobs else f"{form} only (rows carry no log-probability)",
    )


def partial(
    validation: tuple[Sequence[Routed], str],
    test: tuple[Sequence[Routed], str],
    *,
    primary: str,
    delta: float,
    resamples: int,
    seed: int,
    prices: Prices | None = None,
) -> dict[str, Any]:
    """The partial part of a report: `line`, `because`, shares on both stages, the chosen threshold and the curve.

    Both stages come from `ranked` and share no row, which is the caller's to see to. With the same rows it gives the
    same figures. No share is accepted that the test rows do not confirm, and none where the two stages rank otherwise.
    """

    def judge(rows: Sequence[Routed], threshold: float) -> Mixture:
        return mixture(rows, threshold, resamples=resamples, seed=seed)

    (rows, by), (test_rows, test_by) = validation, test
    base: dict[str, Any] = {
        "delta": delta, "primary": primary, "confidence": by, "share": 0.0, "validation_share": None,
        "test_share": None, "threshold": None, "test": None, "validation_rows": len(rows), "test_rows": len(test_rows),
        "curve": [],
    }  # fmt: skip
    if by != test_by:
        return base | _nothing(
            delta, f"validation rows are ranked by {by}, test rows by {test_by}; evaluate both alike."
        )
    points = [judge(rows, threshold) for threshold in thresholds(rows)]
    base["curve"] = [_point(point, delta, prices or Prices()) for point in points]
    passing = [point for point in points if not_worse(point.interval, delta)]
    chosen = choose(passing, len(test_rows), delta=delta, seed=seed)
    if chosen is None:
        return base | _nothing(delta, _none_passes(points, len(rows), delta), f"ranked by {by}.")
    checked = judge(test_rows, chosen.threshold) if test_rows else None
    said = [
        f"ranked by {by}; the threshold {chosen.threshold:.4f} is that of the largest share that passes on"
        f" {len(rows)} validation rows and that {len(test_rows)} test rows would confirm with 90 % power ({_percent(chosen.share)}, {_bounds(chosen.interval)}).",
    ]
    base |= {"validation_share": chosen.share, "threshold": chosen.threshold}
    if checked is None or not not_worse(checked.interval, delta):
        where = (
            "there are no test rows"
            if checked is None
            else f"on {len(test_rows)} test rows it is {_bounds(checked.interval)}"
        )
        base |= {
            "test_share": checked and checked.share,
            "test": checked and _point(checked, delta, prices or Prices()),
        }
        return base | _nothing(delta, f"what passed on validation rows was not confirmed: {where}.", *said)
    return base | {
        "share": checked.share,
        "test_share": checked.share,
        "test": _point(checked, delta, prices or Prices()),
        "line": f"SLM can take {_percent(checked.share)} at delta {delta:g} ({_percent(chosen.share)} of validation rows; test rows:"
        f" {primary} {_bounds(checked.interval)})",
        "because": [
            *said,
            f"checked once on {len(test_rows)} test rows, which had no part in choosing it: the error of this check is"
            " that of one test.",
        ],
    }


def mixture(rows: Sequence[Routed], threshold: float, *, resamples: int, seed: int) -> Mixture:
    """The mixture at one threshold, with the interval of its difference to the LLM alone."""
    taken = [row.sure is not None and row.sure >= threshold for row in rows]
    answered = [row.slm if own else row.llm for row, own in zip(rows, taken, strict=True)]
    differences = [value - row.llm for value, row in zip(answered, rows, strict=True)]
    return Mixture(
        threshold=threshold,
        share=sum(taken) / len(rows),
        quality=math.fsum(answered) / len(rows),
        interval=paired_interval(differences, resamples=resamples, seed=seed),
        differences=np.asarray(differences),
    )


def thresholds(rows: Sequence[Routed], most: int = MOST_THRESHOLDS) -> list[float]:
    """How sure the SLM has to be, from the strictest on: every value met, or `most` of them evenly spread."""
    values = sorted({row.sure for row in rows if row.sure is not None}, reverse=True)
    if len(values) <= most:
        return values
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


def choose(passing: Sequence[Mixture], test_rows: int, *, delta: float, seed: int) -> Mixture | None:
    """The largest share that `test_rows` rows like these would confirm with 90 % power, else the likeliest one.

    The largest passing share alone would be one that just passes, which other rows confirm about every second time.
    """
    chances = [_confirmed(point.differences, test_rows, delta=delta, seed=seed) for point in passing]
    best = max(
        zip(chances, passing, strict=True), key=lambda pair: (min(pair[0], CONFIRMED), pair[1].share), default=None
    )
    return best and best[1]


def _confirmed(differences: NDArray[np.float64], n: int, *, delta: float, seed: int) -> float:
    """The share of draws of `n` rows from `differences` that pass the rule (graded ones by their normal bound)."""
    if n == 0:
        return 0.0
    chance = np.random.default_rng(seed)
    if bool(np.isin(differences, (-1.0, 0.0, 1.0)).all()):
        shares = [float((differences == value).mean()) for value in (1.0, -1.0)]
        drawn = chance.multinomial(n, [*shares, max(0.0, 1.0 - sum(shares))], size=_DRAWS)
        return float(np.mean(shows(drawn[:, 0], drawn[:, 1], n, delta)))
    drawn_rows = chance.choice(differences, size=(_DRAWS, n))
    z = float(stats.norm.ppf(1 - ONE_SIDED))
    return float(np.mean(drawn_rows.mean(axis=1) - z * drawn_rows.std(axis=1, ddof=1) / math.sqrt(n) > -delta))


def _sure(answer: Mapping[str, Any], forms: Sequence[str], logprobs: bool) -> float | None:
    if answer.get("failure") or any(answer["scores"].get(name) == 0 for name in forms):
        return None
    if not logprobs:
        return 0.0
    found = answer.get("logprob")
    return None if found is None else float(found)


def _nothing(delta: float, *because: str) -> dict[str, Any]:
    return {"line": f"SLM can take 0 % at delta {delta:g}: {because[0]}", "because": list(because[1:])}


def _none_passes(points: Sequence[Mixture], n: int, delta: float) -> str:
    if not points:
        return f"on none of {n} validation rows is its answer in the right form."
    unseen = -float(1.0 - 0.05 ** (1.0 / n))
    if unseen <= -delta:
        return (
            f"{n} validation rows are too few: even with no row lost or gained the lower bound would be {unseen:+.4f}."
        )
    best = max(points, key=lambda point: point.interval.lower)
    return f"no share passes on {n} validation rows; the nearest, {_percent(best.share)}, is {_bounds(best.interval)}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _bounds(interval: Interval) -> str:
    return f"{interval.estimate:+.4f}, lower bound {interval.lower:+.4f}"


def _point(point: Mixture, delta: float, prices: Prices) -> dict[str, Any]:
    return {
        "share": point.share, "threshold": point.threshold, "quality": point.quality,
        "difference": point.interval.estimate, "lower": point.interval.lower,
        "passes": not_worse(point.interval, delta), "per_request_usd": prices.of(point.share),
    }  # fmt: skip
