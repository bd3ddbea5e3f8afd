"""The watch: exactly as seldom wrong as it says, at any time; and a change is seen however long all was well before it."""

from __future__ import annotations

import json
import math
import random
from itertools import product

import numpy as np
import pytest

from slm_ray.verdict.operating_characteristics.watching import STREAMS, WatchPlay, delay, false_alarms
from slm_ray.verdict.watch import LABEL_LEVEL, Watch, levels, waiting

GRADED = [-0.5, -0.25, 0.0, -1.0, 0.0, -0.125, 0.0, -0.75, 0.0, -0.5, -0.25, 0.0, 0.0, -1.0, 0.0, 0.0, -0.75, 0.0]
LABELS = [0.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, -1.0, 0.5, 0.0, 0.0, -1.0, 0.0, 0.0, -0.25, 0.0, -1.0]


def watched(differences: list[float], **settings: float | None) -> Watch:
    watch = Watch(**{"delta": 0.05, **settings})  # type: ignore[arg-type]
    for value in differences:
        watch.add(value)
    return watch


# As plain as can be, from the definition: every start time and every bet has an account of its own.
def by_definition(differences: list[float], *, delta: float, reference: float | None) -> float:
    low, high = (-1.0, 1.0) if reference is None else (-1.0, 0.0)
    least = -delta if reference is None else reference - 1 - delta
    to_unit = lambda value: (value - (low + high) / 2) / ((high - low) / 2)  # noqa: E731
    total = math.log(20) / math.log(20 + len(differences))  # not put in yet
    for start in range(len(differences)):
        put_in = math.log(20) / math.log(20 + start) - math.log(20) / math.log(21 + start)
        for expert, weight in enumerate((0.6, 0.1, 0.1, 0.06, 0.06, 0.08)):
            account = put_in * weight
            for at in range(start, len(differences)):
                spread = (1 + sum(to_unit(past) ** 2 for past in differences[:at])) / (2 + at)
                target = (1, 3, 9, 0, 0, 0)[expert] * delta
                if target:
                    bet = (-spread + math.sqrt(spread**2 + 4 * target**2)) / (2 * target)
                else:
                    bet = (0, 0, 0, 0.5, 0.95, math.sqrt(2 * math.log(20) / (spread * (at + 1) * math.log(at + 2))))[
                        expert
                    ]
                account *= 1 + min(bet, 0.95) * (to_unit(least) - to_unit(differences[at])) / (1 - to_unit(least))
            total += account
    return total


@pytest.mark.parametrize(
    ("differences", "reference"), [(GRADED, 0.9), (GRADED, 0.3), (LABELS, None), ([-1.0] * 9, 0.99)]
)
@pytest.mark.parametrize("delta", [0.02, 0.1])
def test_the_capital_is_that_of_the_definition(differences: list[float], reference: float | None, delta: float) -> None:
    for rows in (1, 2, len(differences)):
        expected = by_definition(differences[:rows], delta=delta, reference=reference)
        assert watched(differences[:rows], delta=delta, reference=reference).capital == pytest.approx(
            expected, rel=1e-9
        )


@pytest.mark.parametrize(("delta", "reference"), [(0.05, 0.95), (0.02, 0.5), (0.1, None), (0.3, None)])
@pytest.mark.parametrize("values", [(0.0, -1.0), (0.0, -0.5, -1.0)])
@pytest.mark.parametrize("slack", [0.0, 0.03])
def test_without_drift_the_capital_does_not_grow_and_seldom_passes_the_level(
    delta: float, reference: float | None, values: tuple[float, ...], slack: float
) -> None:
    """Every outcome of ten requests with its probability: exact, but for rounding. `slack`: better than the hypothesis."""
    mean = (-delta if reference is None else reference - 1 - delta) + slack
    chances = np.array([0.0, *[-mean / -sum(values)] * (len(values) - 1)])
    chances[0] = 1 - chances.sum()
    assert chances.min() >= 0 and chances @ values == pytest.approx(mean)
    play, weights, peaks = WatchPlay(1, delta=delta, reference=reference), np.ones(1), np.ones(1)
    for _ in range(10):
        paths = np.arange(len(weights)).repeat(len(values))
        play.keep(paths)
        now = play.add(np.tile(values, len(weights)))
        weights = np.outer(weights, chances).ravel()
        peaks = np.maximum(peaks[paths], now)
        grown = now @ weights
        assert grown == pytest.approx(1, abs=1e-9) if slack == 0 else grown <= 1
    for level in (0.3, 0.1, 0.05, 0.01):
        assert weights @ (peaks >= 1 / level - 1e-9) <= level


def test_a_mean_that_only_depends_on_the_past_is_no_drift_either() -> None:
    """Traffic may turn good and just good enough by what was seen: no way of doing so makes the capital grow."""
    grown = 0.0
    for outcome in product((0.0, -1.0), repeat=8):
        chance, watch = 1.0, Watch(delta=0.05, reference=0.85)
        for at, value in enumerate(outcome):
            bad = 0.2 if outcome[:at].count(-1.0) % 2 else 0.1  # the hypothesis allows 0.2
            chance *= bad if value else 1 - bad
            watch.add(value)
        grown += chance * watch.capital
    assert grown <= 1


def test_the_simulation_plays_the_watch() -> None:
    chance = np.random.default_rng(2)
    for reference, values in ((None, (-1.0, 0.0, 0.0, 1.0)), (0.9, (-1.0, -0.25, 0.0, 0.0))):
        rows = chance.choice(values, size=(3, 100))
        play = WatchPlay(3, delta=0.03, reference=reference)
        for at in range(rows.shape[1]):
            capitals = play.add(rows[:, at])
        for run, capital in zip(rows, capitals, strict=True):
            assert watched(run.tolist(), delta=0.03, reference=reference).capital == pytest.approx(capital, rel=1e-9)


def test_what_was_lost_in_a_long_good_time_does_not_hide_a_change() -> None:
    late = watched([0.0] * 5_000, reference=0.95, delta=0.02)
    assert not late.alarm and late.capital > 0.3, "what is not put in yet"
    before = late.rows
    chance = random.Random(3)
    while not late.alarm:
        late.add(-float(chance.random() < 0.3))
        assert late.rows < before + 200
    assert late.alarm_at == late.rows


def test_an_alarm_stays_and_is_where_the_capital_first_passed() -> None:
    watch = watched([-1.0] * 30, reference=0.95)
    at = watch.alarm_at or 0
    assert (
        watched([-1.0] * (at - 1), reference=0.95).capital
        < watch.threshold
        <= watched([-1.0] * at, reference=0.95).capital
    )
    for _ in range(500):
        watch.add(0.0)
    assert watch.alarm and watch.alarm_at == at and watch.capital < watch.threshold


def test_a_stricter_level_a_lower_reference_and_a_wider_margin_take_longer() -> None:
    at = [watched([-1.0] * 60, reference=0.9, level=level).alarm_at or 0 for level in (0.05, 0.01, 0.0003)]
    assert 0 < at[0] < at[1] < at[2]
    at = [watched([-1.0] * 60, reference=reference).alarm_at or 0 for reference in (0.99, 0.8, 0.6)]
    assert 0 < at[0] < at[1] < at[2]
    chance = random.Random(5)
    rows = [-float(chance.random() < 0.4) for _ in range(400)]
    at = [watched(rows, delta=delta).alarm_at or 0 for delta in (0.02, 0.1, 0.2)]
    assert 0 < at[0] < at[1] < at[2]


def test_a_reference_that_nothing_can_be_below_is_said_and_never_rings() -> None:
    watch = watched([-1.0] * 300, reference=0.01, delta=0.02)
    assert watch.blind and not watch.alarm
    assert not watched([], reference=0.5).blind and not watched([]).blind


def test_who_agreed_every_time_rings_at_the_first_disagreement() -> None:
    watch = watched([0.0] * 50, reference=1.0, delta=0.0)
    assert not watch.alarm
    watch.add(-1.0)
    assert watch.alarm and math.isfinite(watch.capital)


@pytest.mark.parametrize("bad", [0.1, -1.1, float("nan"), float("inf")])
def test_what_is_no_difference_is_refused_and_changes_nothing(bad: float) -> None:
    watch = watched(GRADED, reference=0.9)
    before = (watch.capital, watch.rows, watch.path)
    with pytest.raises(ValueError, match=r"a number in \[-1, 0\]"):
        watch.add(bad)
    assert (watch.capital, watch.rows, watch.path) == before


@pytest.mark.parametrize(
    "settings",
    [{"level": 0.0}, {"level": 1.0}, {"delta": -0.1}, {"delta": 1.0}, {"delta": float("nan")}, {"reference": 1.1}],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a watch needs level"):
        watched([], **settings)


def test_the_path_is_bounded_and_ends_now_and_so_is_the_memory() -> None:
    watch = watched([0.0, -1.0, 0.0, 0.0] * 700, reference=0.9)
    assert 100 <= len(watch.path) <= 200
    assert watch.path[-1].rows == watch.rows == 2_800 and watch.path[-1].capital == watch.capital
    assert watch.path[-1].recent == pytest.approx(-0.25, abs=0.01)
    assert [point.rows for point in watch.path] == sorted(point.rows for point in watch.path)
    assert watched([]).path == () and watched([]).capital == 1


def test_all_that_is_ever_put_in_is_the_starting_capital() -> None:
    parts = [waiting(rows) - waiting(rows + 1) for rows in range(2_000)]
    assert waiting(0) == 1 and min(parts) > 0
    assert sum(parts) + waiting(2_000) == pytest.approx(1) and waiting(10**12) < 0.11


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_false_alarms_are_rarer_than_the_level_and_a_fall_is_seen(stream: object) -> None:
    found = false_alarms(stream, delta=0.02, level=0.05, runs=300, rows=400, seed=1, at_edge=True)  # type: ignore[arg-type]
    assert found <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    late = delay(stream, shift=0.5, after=200, delta=0.02, level=0.05, runs=100, most=150, seed=1)  # type: ignore[arg-type]
    assert late.early <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)
    assert late.median is not None and late.ninety is not None and late.median <= late.ninety < 80


@pytest.mark.parametrize(("differences", "reference"), [(GRADED * 40, 0.9), (LABELS * 40, None), ([], 0.9)])
@pytest.mark.parametrize("cut", [0, 1, 250])
def test_a_watch_that_was_saved_goes_on_as_if_nothing_had_been(
    differences: list[float], reference: float | None, cut: int
) -> None:
    settings = {"level": 0.03, "delta": 0.05, "reference": reference}
    whole = watched(differences, **settings)
    before = watched(differences[:cut], **settings)
    after = Watch.restored(json.loads(json.dumps(before.saved, allow_nan=False)), **settings)  # type: ignore[arg-type]
    for value in differences[cut:]:
        after.add(value)
    assert (after.capital, after.rows, after.path, after.alarm_at) == (
        whole.capital, whole.rows, whole.path, whole.alarm_at
    )  # fmt: skip
    assert after.saved == whole.saved


@pytest.mark.parametrize(
    "damage", [{"logs": [0.0]}, {"rows": -1}, {"every": 0}, {"path": [[1]]}, {"sum": "x"}, {"now": float("nan")}]
)
def test_what_no_watch_has_saved_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Watch.restored(watched(GRADED, reference=0.9).saved | damage, level=0.03, delta=0.05, reference=0.9)


def both(runs: int, rows: int, worse: float) -> float:
    """How often either of a route's two watches rings: the LLM is right on 90 % and the SLM on `worse` less.

    Where the two differ one of them is wrong, so that agreement and labels move together, as they do in traffic.
    """
    chance = np.random.default_rng(11)
    agreement, labels = levels(0.01)
    delta, reference = 0.05, 0.9  # agreement as bad as the hypothesis allows: 85 %
    plays = WatchPlay(runs, delta=delta, reference=reference), WatchPlay(runs, delta=delta, reference=None)
    rang = np.zeros(runs, dtype=bool)
    for _ in range(rows):
        drawn = chance.random(runs)
        difference = np.where(drawn < (0.15 + worse) / 2, -1.0, np.where(drawn > 1 - (0.15 - worse) / 2, 1.0, 0.0))
        rang |= plays[0].add(-np.abs(difference)) >= 1 / agreement
        rang |= plays[1].add(difference) >= 1 / labels
    return float(rang.mean())


def test_both_watches_together_are_wrong_as_seldom_as_one_was_to_be() -> None:
    agreement, labels = levels(0.01)
    assert agreement + labels + 0.01 == pytest.approx(0.05) and labels == LABEL_LEVEL
    assert both(400, 500, worse=0.05) <= 0.04 + 3 * math.sqrt(0.04 * 0.96 / 400), "both at their edge"
    assert both(50, 500, worse=0.14) > 0.9, "the agreement is what it was; the expected answers tell"


def test_corrections_of_what_was_shown_are_no_labels() -> None:
    """Two equal models, each wrong on a tenth; people see the SLM's answer and correct it where it is wrong."""
    chance = random.Random(7)
    watch = Watch(level=LABEL_LEVEL, delta=0.05)
    asked = 0
    while not watch.alarm:
        asked += 1
        slm, llm = chance.random() < 0.9, chance.random() < 0.9
        if not slm:
            watch.add(float(slm) - float(llm))
        assert asked < 2_000
    assert watch.rows < 100, "a false alarm, and soon: the front counts answers that are said to be labels alone"
