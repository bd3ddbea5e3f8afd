"""The rules at their borders, the sentences, the exit statuses and what a person reads."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.config.shared import WIDEST_DELTA
from slm_ray.errors import ConfigError
from slm_ray.types import Comparison, Interval, Slice
from slm_ray.verdict.decide import EXIT, decide, rows_advised
from slm_ray.verdict.non_inferiority import FEWEST_ROWS, shows
from slm_ray.verdict.words import verdict_text


def comparison(
    gap: float = 0.0,
    lower: float = -0.01,
    upper: float = 0.01,
    llm: dict[str, float | None] | None = None,
    slm: dict[str, float | None] | None = None,
    stand_ins: tuple[str, ...] = (),
) -> Comparison:
    left: dict[str, float | None] = llm or {"json_valid": 1.0, "exact_match": 0.5}
    right: dict[str, float | None] = slm or {"json_valid": 1.0, "exact_match": 0.5 + gap}
    return Comparison(
        track="structured", llm="azure:big", slm="served:small", n=100, digest="abc", primary="exact_match",
        llm_metrics=left, slm_metrics=right, interval=Interval(estimate=gap, lower=lower, upper=upper),
        gaps={k: b - a for k in left if (a := left[k]) is not None and (b := right[k]) is not None},
        slm_only_right=4, llm_only_right=6, level=0.05, stand_ins=stand_ins,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lower", "upper", "action"),
    [
        (-0.01, 0.05, "swap"),
        (0.01, 0.05, "swap"),
        (-0.02, 0.05, "inconclusive"),  # a bound exactly at -delta shows neither
        (-0.05, 0.05, "inconclusive"),
        (-0.05, -0.02, "inconclusive"),
        (-0.05, -0.03, "fine_tune"),
    ],
)
def test_paired_rule(lower: float, upper: float, action: str) -> None:
    decision = decide(comparison((lower + upper) / 2, lower, upper), rule="paired", delta=0.02)
    assert (decision.action, decision.rule, decision.delta) == (action, "paired", 0.02)
    assert f"{lower:+.4f}" in decision.because[0] and f"{upper:+.4f}" in decision.because[0]
    assert "exact_match" in decision.because[0] and "100 paired rows" in decision.because[0]
    assert any("superior" in sentence for sentence in decision.because) == (lower > 0)


@pytest.mark.parametrize(
    ("llm", "slm", "action"),
    [
        (0.50, 0.48, "swap"),  # exactly delta, though 0.48 - 0.50 < -0.02 in binary
        (0.50, 0.4799, "fine_tune"),
        (0.50, 0.90, "swap"),
    ],
)
def test_point_rule(llm: float, slm: float, action: str) -> None:
    found = comparison(llm={"json_valid": 1.0, "exact_match": llm}, slm={"json_valid": 1.0, "exact_match": slm})
    decision = decide(found, rule="point", delta=0.02)
    assert decision.action == action
    assert any("no interval" in sentence for sentence in decision.because)


def test_point_rule_looks_at_every_core_metric_and_names_the_trailing_ones() -> None:
    found = comparison(llm={"json_valid": 1.0, "exact_match": 0.2}, slm={"json_valid": 0.88, "exact_match": 0.4})
    decision = decide(found, rule="point", delta=0.05)
    assert decision.action == "fine_tune"
    assert decision.because[0].startswith("json_valid: the LLM leads by 0.1200, more than 0.05 (LLM 1.0000, SLM 0.8800")
    assert not any(sentence.startswith("exact_match") for sentence in decision.because)


def test_an_undefined_metric_has_no_say_and_is_said() -> None:
    silent: dict[str, float | None] = {"json_valid": 1.0, "field_precision": None}
    found = comparison(llm={"json_valid": 1.0, "field_precision": 0.9}, slm=silent)
    decision = decide(found, rule="point", delta=0.02)
    assert decision.action == "swap"
    assert "undefined for the SLM and left out: field_precision." in decision.because
    nothing = comparison(llm={"json_valid": None}, slm={"json_valid": None})
    neither = decide(nothing, rule="point", delta=0.02)
    assert neither.action == "inconclusive"
    assert neither.because[-1] == "undefined for both models and left out: json_valid."
    assert "field_precision  0.9000       -        -" in verdict_text(found, decision)


def test_a_stand_in_is_named_in_words() -> None:
    found = comparison(stand_ins=("azure:big",))
    for rule in ("paired", "point"):
        decision = decide(found, rule=rule, delta=0.02)
        assert any("the LLM here is a stand-in (azure:big)" in sentence for sentence in decision.because)
    assert "LLM: azure:big  [stand-in]" in verdict_text(found, decision)
    assert not any("stand-in" in sentence for sentence in decide(comparison(), rule="paired", delta=0.02).because)


def test_exit_statuses_and_the_last_line() -> None:
    assert EXIT == {"swap": 0, "fine_tune": 10, "inconclusive": 20}
    for lower, upper, last in ((-0.01, 0.01, 0), (-0.5, -0.4, 1), (-0.5, 0.5, 0)):
        found = comparison((lower + upper) / 2, lower, upper)
        decision = decide(found, rule="paired", delta=0.02)
        text = verdict_text(found, decision)
        assert text.splitlines()[-1] == f"FINE_TUNE={last}"
        assert f"verdict: {decision.action}" in text and "exact_match" in text
        assert all(sentence in text for sentence in decision.because)


def test_unknown_rule_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown rule 'pared': did you mean 'paired'\? known: paired, point, sequential"
    ):
        decide(comparison(), rule="pared", delta=0.02)


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_margin_never_asks_for_more_training(gap: float, below: float, above: float, delta: float) -> None:
    found = comparison(gap, max(-1.0, gap - below), min(1.0, gap + above))
    order = ["fine_tune", "inconclusive", "swap"]
    for rule in ("paired", "point"):
        small, large = (decide(found, rule=rule, delta=d).action for d in (delta / 2, delta))
        assert order.index(small) <= order.index(large)


GOOD = Interval(estimate=0.05, lower=0.01, upper=0.09, method="score")
UNSURE = Interval(estimate=0.0, lower=-0.1, upper=0.1, method="score")
BAD = Interval(estimate=-0.4, lower=-0.5, upper=-0.3, method="score")


@pytest.mark.parametrize(
    ("guardrails", "action", "said"),
    [
        ({"name_match": GOOD}, "swap", "the guardrail name_match: +0.0500"),
        ({"name_match": UNSURE}, "inconclusive", "not shown to be within 0.02, which blocks the swap"),
        ({"name_match": UNSURE, "valid": BAD}, "fine_tune", "the guardrail valid: -0.4000"),
    ],
)
def test_every_guardrail_has_to_hold(guardrails: dict[str, Interval], action: str, said: str) -> None:
    found = replace(comparison(), interval=GOOD, guardrails=guardrails)
    decision = decide(found, rule="paired", delta=0.02)
    assert decision.action == action
    assert any(said in sentence for sentence in decision.because)


def test_a_guardrail_that_is_not_sure_says_how_many_rows_would_make_it_so() -> None:
    """100 rows whose bounds are 0.2 apart: the spread of their differences is (0.1 / 1.645)^2 a hundredfold."""
    found = replace(comparison(), interval=GOOD, guardrails={"name_match": UNSURE})
    said = " ".join(decide(found, rule="paired", delta=0.02).sentences)
    assert "were both equally good on name_match, 5,713 fresh held-out rows would show it" in said
    assert "fresh held-out rows" not in " ".join(decide(found, rule="paired", delta=0.0).sentences)


def test_a_guardrail_that_more_rows_would_not_save_says_so() -> None:
    near = Interval(estimate=-0.019, lower=-0.028, upper=-0.010, method="score")
    found = replace(comparison(), interval=GOOD, guardrails={"name_match": near})
    said = decide(found, rule="paired", delta=0.02).sentences
    assert any(
        "equally good on name_match to be so with more than 80 % power: these are probably not" in s for s in said
    )
    worse = decide(replace(found, guardrails={"valid": BAD}), rule="paired", delta=0.02)
    assert any("worse by more than 0.02, which blocks the swap" in sentence for sentence in worse.sentences)


def test_rows_groups_and_effective_rows_are_said_and_advised() -> None:
    grouped = replace(comparison(), interval=UNSURE, groups=25, largest_group=4, effective_n=50.0)
    decision = decide(grouped, rule="paired", delta=0.02)
    words = "100 paired rows in 25 groups, the largest of 4 (50 effective rows)"
    assert words in decision.because[0] and words in verdict_text(grouped, decision)
    alone, doubled = (rows_advised(found, 0.02, level=0.05) for found in (comparison(), grouped))
    assert alone is not None and doubled == 2 * alone
    ones = replace(comparison(), groups=100, effective_n=100.0)
    assert "groups" not in verdict_text(ones, decide(ones, rule="paired", delta=0.02))


@pytest.mark.parametrize(("groups", "action"), [(9, "inconclusive"), (10, "swap")])
def test_rows_of_few_groups_decide_nothing(groups: int, action: str) -> None:
    found = replace(comparison(), interval=GOOD, groups=groups, largest_group=20, effective_n=12.0)
    decision = decide(found, rule="paired", delta=0.02)
    assert decision.action == action
    refused = [sentence for sentence in decision.sentences if "fewer than 10" in sentence]
    assert len(refused) == (action == "inconclusive")
    assert all("the 100 rows come from 9 groups" in sentence for sentence in refused)


def test_rows_without_a_primary_metric_are_counted_apart() -> None:
    found = decide(replace(comparison(), undefined=900), rule="paired", delta=0.02)
    assert "over 100 paired rows" in found.because[0]
    assert any("exact_match is undefined on 900 more paired rows" in sentence for sentence in found.sentences)


def test_a_slice_that_is_clearly_worse_blocks_the_swap_and_is_named() -> None:
    slices = (
        Slice(tag="tool", value="pay", n=40, interval=BAD),
        Slice(tag="tool", value="play", n=60, interval=UNSURE),
    )
    decision = decide(replace(comparison(), interval=GOOD, slices=slices), rule="paired", delta=0.02)
    assert decision.action == "fine_tune"
    assert [sentence for sentence in decision.sentences if "tool is 'pay'" in sentence and "blocks" in sentence]
    assert not [sentence for sentence in decision.sentences if "'play'" in sentence]
    untouched = decide(replace(comparison(), interval=GOOD, slices=slices[1:]), rule="paired", delta=0.02)
    assert untouched.action == "swap"


def test_inconclusive_says_how_many_rows_would_do() -> None:
    found = replace(comparison(), interval=UNSURE)
    advice = [sentence for sentence in decide(found, rule="paired", delta=0.02).sentences if "80 % power" in sentence]
    assert len(advice) == 1
    assert "rows would show it" in advice[0] and "discordance (0.108)" in advice[0]
    assert re.search(r"evaluate [\d,]+ fresh held-out rows, none of these 100 among them", advice[0])
    assert " more" not in advice[0]
    wide = [
        sentence for sentence in decide(found, rule="paired", delta=0.2).sentences if "probably not equal" in sentence
    ]
    assert decide(found, rule="paired", delta=0.2).action == "swap" and wide == []
    near = decide(replace(found, n=5000), rule="paired", delta=0.02)
    assert any("probably not equal" in sentence for sentence in near.sentences)
    assert any("wider margin" in sentence for sentence in decide(found, rule="paired", delta=0.0).sentences)


def test_both_readings_of_failed_calls_are_said() -> None:
    found = replace(comparison(), interval=GOOD, answered=BAD, answered_n=93)
    assert any(
        "over the 93 rows that both answered it is -0.4000" in s for s in decide(found, rule="paired", delta=0).because
    )


WELL = Interval(estimate=0.0, lower=-0.01, upper=0.01, method="score")
RULES = ("paired", "point")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("llm_failed", "slm_failed", "said"),
    [
        (3, 0, "the calls of the LLM (azure:big) failed on 3 of 100 rows (3.0%, more than 2%)"),
        (0, 100, "the calls of the SLM (served:small) failed on 100 of 100 rows"),
    ],
)
@pytest.mark.parametrize("gap", [0.3, -0.4])
def test_an_outage_of_either_model_decides_nothing(
    gap: float, llm_failed: int, slm_failed: int, said: str, rule: str
) -> None:
    found = comparison(gap, gap - 0.05, gap + 0.05)
    assert decide(found, rule=rule, delta=0.02).action == ("swap" if gap > 0 else "fine_tune")
    out = replace(found, llm_failed=llm_failed, slm_failed=slm_failed, readings={"reached": replace(found, n=97)})
    decision = decide(out, rule=rule, delta=0.02)
    assert decision.action == "inconclusive"
    assert said in decision.because[0]
    assert "Mend its endpoint and run the evaluation's command again, which asks only the failed" in decision.because[0]
    assert f"over the 97 rows on which no call failed exact_match is {gap:+.4f}" in decision.because[1]
    assert "verdict: inconclusive" in verdict_text(out, decision)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("counted", "without", "name", "action"),
    [
        (0.3, 0.3, "reached", "swap"),
        (0.3, -0.4, "reached", "inconclusive"),
        (-0.4, -0.4, "reached", "fine_tune"),
        (-0.4, 0.3, "reached", "inconclusive"),
        (0.3, -0.4, "answered", "inconclusive"),  # the LLM refuses, and is better where it does not
        (0.3, None, "answered", "inconclusive"),  # nothing was answered by both
        (-0.4, 0.3, "answered", "fine_tune"),  # a refusal of the SLM is a wrong answer
    ],
)
def test_both_readings_of_a_few_failures_have_to_agree(
    counted: float, without: float | None, name: str, action: str, rule: str
) -> None:
    left = None if without is None else replace(comparison(without, without - 0.05, without + 0.05), n=98)
    found = replace(comparison(counted, counted - 0.05, counted + 0.05), llm_failed=2, readings={name: left})
    decision = decide(found, rule=rule, delta=0.02)
    assert decision.action == action
    assert any("failures decide here" in sentence for sentence in decision.because) == (action == "inconclusive")


@pytest.mark.parametrize("rule", RULES)
def test_two_models_that_get_nothing_right_are_no_swap(rule: str) -> None:
    nothing: dict[str, float | None] = {"json_valid": 1.0, "exact_match": 0.0}
    decision = decide(comparison(llm=nothing, slm=nothing), rule=rule, delta=0.02)
    assert decision.action == "inconclusive"
    assert "both models are at 0 on exact_match" in decision.because[-1]
    little: dict[str, float | None] = {"json_valid": 1.0, "exact_match": 0.01}
    assert decide(comparison(llm=nothing, slm=little), rule=rule, delta=0.02).action == "swap"


@pytest.mark.parametrize(
    ("floor", "rule", "action"),
    [
        (GOOD, "paired", "swap"),
        (GOOD, "point", "swap"),
        (UNSURE, "paired", "inconclusive"),
        (Interval(estimate=0.1, lower=-0.1, upper=0.3), "point", "swap"),  # it knows no chance
        (BAD, "paired", "inconclusive"),
        (BAD, "point", "inconclusive"),
    ],
)
def test_a_swap_needs_more_than_a_trivial_baseline(floor: Interval, rule: str, action: str) -> None:
    found = replace(comparison(), interval=GOOD, floors={"baseline:majority": floor})
    decision = decide(found, rule=rule, delta=0.02)
    assert decision.action == action
    said = [sentence for sentence in decision.because if "baseline:majority" in sentence]
    assert bool(said) == (action != "swap") and all("not shown to be better" in sentence for sentence in said)


def test_a_floor_asks_nothing_of_a_model_that_is_to_be_trained() -> None:
    found = replace(comparison(), interval=BAD, floors={"baseline:majority": BAD})
    assert decide(found, rule="paired", delta=0.02).action == "fine_tune"


def test_a_forced_margin_does_not_swap_on_one_row() -> None:
    one = Interval(estimate=0.0, lower=-0.95, upper=0.95, method="score")
    decision = decide(replace(comparison(), interval=one, n=1), rule="paired", delta=0.96)
    assert decision.action == "inconclusive" and any("1 pairs are too few" in s for s in decision.because)


def test_no_swap_is_lost_to_the_fewest_rows_at_a_margin_that_is_not_forced() -> None:
    """With all pairs equal one row fewer cannot show a difference within the widest margin, whatever the fewest says."""
    assert not shows(0, 0, FEWEST_ROWS - 1, WIDEST_DELTA) and shows(0, 0, FEWEST_ROWS, WIDEST_DELTA)
