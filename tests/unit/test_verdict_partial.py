"""Partial replacement: what is routed, which threshold is chosen, that test rows have the last word, and honesty."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.page.formatting import partial_replacement_text
from slm_ray.records import AnswerResult, PartialReplacement, RowResult
from slm_ray.reports.encoding import encode
from slm_ray.types import Failure, FailureKind
from slm_ray.verdict.partial_replacement import Prices, partial_replacement
from slm_ray.verdict.routing import Routed, mixture, ranked, thresholds

LLM, SLM = "azure:big", "served:small"


def answer(scores: dict[str, float], logprob: float | None = None, failure: FailureKind | None = None) -> AnswerResult:
    return AnswerResult(
        text=None if failure else "{}",
        failure=Failure(kind=failure, reason="") if failure else None,
        scores=scores,
        logprob=logprob,
    )


def row(
    slm: float, llm: float, logprob: float | None = -0.1, valid: float = 1.0, failure: FailureKind | None = None,
    **further: tuple[float, float],
) -> RowResult:  # fmt: skip
    """`further` metrics are (LLM, SLM)."""
    return RowResult(
        id="", prompt_hash="", prompt=(), target="", tags={},
        models={
            LLM: answer({"json_valid": 1.0, "exact_match": llm, **{name: pair[0] for name, pair in further.items()}}),
            SLM: answer(
                {"json_valid": valid, "exact_match": slm, **{name: pair[1] for name, pair in further.items()}},
                logprob, failure,
            ),
        },
    )  # fmt: skip


def rank(rows: list[RowResult]) -> tuple[list[Routed], str]:
    return ranked(rows, llm=LLM, slm=SLM, primary="exact_match")


def run(validation: list[RowResult], test: list[RowResult], **options: Any) -> PartialReplacement:
    settings = {"primary": "exact_match", "delta": 0.02, "resamples": 199, "seed": 0, **options}
    return partial_replacement(rank(validation), rank(test), **settings)


def test_form_comes_first_and_then_the_log_probability() -> None:
    rows = [
        row(1, 1, -0.5),
        row(0, 1, -0.01, valid=0.0),
        row(1, 0, -0.2),
        row(0, 1, None),
        row(0, 1, -0.1, failure="error"),
    ]
    found, by = rank(rows)
    assert [one.confidence for one in found] == [-0.5, None, -0.2, None, None]
    assert [(one.llm, one.slm) for one in found] == [(1, 1), (1, 0), (0, 1), (1, 0), (1, 0)]
    assert by == "json_valid, then mean token log-probability"
    plain, by = rank([row(1, 1, None), row(0, 1, None, valid=0.0)])
    assert [one.confidence for one in plain] == [0.0, None]
    assert by == "json_valid only (rows carry no log-probability)"


def test_a_row_without_a_score_of_either_model_is_left_out() -> None:
    whole = row(1, 1)
    alone = replace(whole, models={LLM: whole.models[LLM]})
    undefined = replace(whole, models={**whole.models, SLM: replace(whole.models[SLM], scores={"exact_match": None})})
    assert len(rank([row(1, 1), undefined, alone])[0]) == 1


def test_a_mixture_by_hand() -> None:
    rows = [
        Routed(confidence=-0.1, llm=0, slm=1),
        Routed(confidence=-0.3, llm=1, slm=0),
        Routed(confidence=None, llm=1, slm=0),
    ] * 20
    half = mixture(rows, -0.2, resamples=99, seed=0)
    assert (half.share, half.quality, half.interval.estimate) == pytest.approx((1 / 3, 1.0, 1 / 3))
    every = mixture(rows, -0.3, resamples=99, seed=0)
    assert (every.share, every.quality, every.interval.estimate) == pytest.approx((2 / 3, 2 / 3, 0.0))


def test_a_mixture_of_grouped_rows_is_as_sure_as_its_groups_are() -> None:
    rows = [
        row(float(at // 5 % 4 != 1), float(at // 5 % 4 != 2), name_match=(1.0, float(at // 5 % 4 != 3)))
        for at in range(300)
    ]
    grouped = [replace(one, group=f"g{at // 5}") for at, one in enumerate(rows)]
    alone, fives = (
        mixture(
            ranked(of, llm=LLM, slm=SLM, primary="exact_match", guardrails=["name_match"])[0],
            -1.0,
            resamples=99,
            seed=0,
        )
        for of in (rows, grouped)
    )
    for narrow, wide in (
        (alone.interval, fives.interval),
        (alone.guardrails["name_match"], fives.guardrails["name_match"]),
    ):
        assert wide.estimate == narrow.estimate
        assert wide.upper - wide.lower > 1.8 * (narrow.upper - narrow.lower)


def test_the_slm_is_asked_every_time_and_the_llm_for_the_rest() -> None:
    prices = Prices(llm_usd=0.01, slm_usd=0.001)
    assert prices.of(0.75) == pytest.approx(0.001 + 0.25 * 0.01)
    assert Prices(llm_usd=0.01).of(0.5) is None and Prices(slm_usd=0.01).of(0.5) is None


def drawn(n: int, seed: int, *, informative: bool) -> list[RowResult]:
    """The LLM is right 9 times in 10; the SLM always where it is sure (60 % of rows) and rarely elsewhere."""
    chance = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        easy = chance.random() < 0.6
        sure = -0.1 * chance.random() - (0.0 if easy else 1.0) if informative else -chance.random()
        rows.append(row(float(easy or chance.random() < 0.1), float(chance.random() < 0.9), float(sure)))
    return rows


def test_the_slm_takes_what_it_is_sure_of() -> None:
    found = run(
        drawn(400, 3, informative=True), drawn(400, 103, informative=True), prices=Prices(llm_usd=0.01, slm_usd=0.001)
    )
    assert 0.55 <= found.share <= 0.8
    assert found.share == found.test_share and found.test.passes and found.test.lower > -0.02
    assert found.line.startswith(f"SLM can take {100 * found.share:.0f} % at delta 0.02 (")
    assert "lower bound" in found.line and "of validation rows" in found.line
    assert [point.share for point in found.curve] == sorted(point.share for point in found.curve)
    assert found.test.per_request_usd == pytest.approx(0.001 + (1 - found.share) * 0.01)
    text = partial_replacement_text(found)
    assert text.startswith("partial: SLM can take") and "share" in text and "USD/1,000 req" in text


def test_a_random_confidence_gives_about_nothing() -> None:
    """The SLM is a third worse, so at random it may take delta over that third at most: 6 % of the rows."""
    shares = [
        run(drawn(400, seed, informative=False), drawn(400, seed + 50, informative=False)).share for seed in range(12)
    ]
    assert max(shares) <= 0.10
    assert sum(shares) / len(shares) <= 0.03


def test_nearly_every_run_finds_a_share_and_none_a_false_one() -> None:
    """Taking the rows that are easy for it, six of ten and a few besides, is right; it is not far below either."""
    found = [run(drawn(400, seed, informative=True), drawn(400, 100 + seed, informative=True)) for seed in range(12)]
    assert sum(one.share > 0 for one in found) >= 11
    assert all(0.5 <= one.share <= 0.75 for one in found if one.share)


def test_the_first_threshold_that_fails_ends_it_whatever_lies_beyond() -> None:
    """The SLM loses the middle rows and gains the least sure ones: all together would pass, but nobody gets there."""

    def built() -> list[RowResult]:
        sure, middle, gained = [row(1, 1)] * 200, [row(0, 1)] * 40, [row(1, 0)] * 160
        return [
            replace(one, models={**one.models, SLM: replace(one.models[SLM], logprob=-at / 1000)})
            for at, one in enumerate([*sure, *middle, *gained])
        ]

    found = run(built(), built())
    assert 0.4 <= found.share <= 0.51
    assert mixture(rank(built())[0], -1.0, resamples=99, seed=0).passes(0.02)
    assert "does not" in found.because[-1]


def test_test_rows_have_the_last_word() -> None:
    lucky, unlucky = [row(1, 1, -0.1)] * 200, [row(1, 1, -0.1)] * 180 + [row(0, 1, -0.1)] * 20
    found = run(lucky, unlucky)
    assert (found.share, found.validation_share, found.test_share) == (0.0, 1.0, 1.0)
    assert found.line.startswith("SLM can take 0 % at delta 0.02: the most cautious share tested, 100 %, is -0.1000")
    assert not found.test.passes
    assert run(lucky, lucky).share == 1.0
    assert run(unlucky, lucky).share == 1.0  # validation rows only say in which order to look


def test_a_slice_that_is_clearly_worse_stops_a_mixture_too() -> None:
    """Nine of ten rows are won; those of one customer are lost, and it is not to be paid for by the others."""

    def tagged() -> list[RowResult]:
        rows = [row(0, 1) if at % 10 == 0 else row(1, float(at % 3 > 0)) for at in range(400)]
        return [
            replace(one, tags={"customer": "a" if at % 10 == 0 else "b"},
                    models={**one.models, SLM: replace(one.models[SLM], logprob=-at / 1000)})
            for at, one in enumerate(rows)
        ]  # fmt: skip

    free = run(tagged(), tagged(), slice_rows=1000)
    assert free.share == 1.0
    held = run(tagged(), tagged())
    assert held.share < 0.5 and "customer 'a'" in held.because[-1]


def test_failed_calls_of_the_llm_win_nothing_for_the_slm() -> None:
    """Counted as wrong they would outweigh the rows that the SLM loses; where both answered it loses one in ten."""

    def outage(count: int) -> list[RowResult]:
        rows = [row(float(at % 10 > 0), 1) for at in range(400)]
        return [
            replace(one, models={**one.models, LLM: answer({"json_valid": 0.0, "exact_match": 0.0}, failure="refused")})
            if at % 10 in range(1, 1 + count)
            else one
            for at, one in enumerate(rows)
        ]

    rows = rank(outage(3))[0]
    point = mixture(rows, -1.0, resamples=99, seed=0)
    assert point.interval.estimate > 0.15 and point.readings["answered"].estimate < -0.1
    assert run(outage(3), outage(3)).share == 0.0


def test_a_stricter_level_takes_less() -> None:
    stages = drawn(400, 3, informative=True), drawn(400, 103, informative=True)
    assert run(*stages, level=0.0005).share < run(*stages).share


def test_guardrails_have_to_hold_for_a_mixture_too() -> None:
    """Every answer is right by the primary metric; on the less sure half the guardrail is lost."""

    def gated(start: int) -> list[RowResult]:
        return [
            row(1, 1, -0.1 - 0.001 * (i % 300), name_match=(1.0, float(i % 300 < 150)))
            for i in range(start, start + 300)
        ]

    stages = [
        ranked(gated(start), llm=LLM, slm=SLM, primary="exact_match", guardrails=["name_match"]) for start in (0, 300)
    ]
    found = partial_replacement(*stages, primary="exact_match", delta=0.02, resamples=199, seed=0)
    assert 0.4 <= found.share <= 0.51
    assert found.test.guardrails_lower["name_match"] > -0.02
    free = partial_replacement(
        rank(gated(0)), rank(gated(300)), primary="exact_match", delta=0.02, resamples=199, seed=0
    )
    assert free.share == 1.0
    whole = mixture(stages[0][0], -1.0, resamples=199, seed=0)
    assert not whole.passes(0.02) and whole.interval.estimate == 0.0 and whole.guardrails["name_match"].estimate == -0.5


def test_no_share_says_why() -> None:
    few = run([row(1, 1)] * 60, [row(1, 1)] * 60)
    assert few.share == 0.0 and "60 test rows are too few" in few.line and "-0.0487" in few.line
    worse = run([row(0, 1)] * 200, [row(0, 1)] * 200)
    assert "the most cautious share tested, 100 %, is -1.0000" in worse.line and worse.curve
    wrong = run([row(0, 1, valid=0.0)] * 200, [row(0, 1)] * 200)
    assert "on none of 200 validation rows is its answer in the right form" in wrong.line and wrong.curve == ()
    assert partial_replacement_text(wrong).startswith("partial: SLM can take 0 %")
    unlike = run([row(1, 1)] * 200, [row(1, 1, None)] * 200)
    assert unlike.share == 0.0 and "evaluate both alike" in unlike.line
    rows, by = rank([row(1, 1)] * 200)
    untested = partial_replacement((rows, by), ([], by), primary="exact_match", delta=0.02, resamples=199, seed=0)
    assert untested.share == 0.0 and "there are no test rows" in untested.line


def test_many_values_are_thinned_and_the_ends_stay() -> None:
    rows = [Routed(confidence=-i / 1000, llm=1, slm=1) for i in range(1000)]
    found = thresholds(rows)
    assert len(found) == 50 and found[0] == 0 and found[-1] == -0.999
    assert thresholds([Routed(confidence=None, llm=1, slm=1)]) == []


rows_of = st.lists(
    st.builds(
        row, st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]),
        st.one_of(st.none(), st.floats(-5, 0)), st.sampled_from([0.0, 1.0]),
    ),
    min_size=1, max_size=30,
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(rows_of, rows_of, st.sampled_from([0.02, 0.3]))
def test_whatever_the_rows_the_answer_is_whole(
    validation: list[RowResult], test: list[RowResult], delta: float
) -> None:
    found = run(validation, test, delta=delta)
    json.dumps(encode(found), allow_nan=False)
    assert 0 <= found.share <= 1 and found.line.startswith("SLM can take ")
    assert (found.share > 0) <= bool(found.test and found.test.passes)
    assert found == run(validation, test, delta=delta)
    partial_replacement_text(found)
