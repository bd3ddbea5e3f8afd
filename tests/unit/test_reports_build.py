"""The report: every model over every example, failures in the denominator, same inputs same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_records import build, plain

from slm_ray.corpus.render import digest, prompt_hash, prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.records import Attempts, ExampleSet, Noise
from slm_ray.reports.encoding import encode
from slm_ray.reports.files import load_report, write_report
from slm_ray.types import Completion, Example, Failure, Percentiles, Usage

TRACK = TRACKS["structured"]
EXAMPLES = [
    Example(
        id=f"e{i}",
        prompt=prompt_of(TRACK, f"question {i}"),
        target=f'{{"answer": {i}}}',
        tags={"b": "2", "a": "1"},
    )
    for i in range(4)
]
ANSWERS: Mapping[str, Completion] = {
    "e0": Completion(
        text='{"answer": 0}', latency_s=1.0, usage=Usage(prompt_tokens=9, completion_tokens=5), served_by="m"
    ),
    "e1": Completion(text="nonsense", latency_s=2.0, usage=Usage(prompt_tokens=11, completion_tokens=7), served_by="m"),
    "e2": Completion(failure=Failure(kind="refused", reason="filtered", status=400), latency_s=9.0),
    "e3": Completion(
        failure=Failure(kind="truncated", reason="length"),
        latency_s=8.0,
        usage=Usage(completion_tokens=64),
        served_by="n",
    ),
}


def test_report_by_hand() -> None:
    report, rows = build(TRACK, EXAMPLES, {"fake:m": ANSWERS}, trained_on={})
    assert report.track == "structured"
    assert report.examples == ExampleSet(n=4, digest=digest(EXAMPLES))
    model = report.models["fake:m"]
    assert model.n == 4
    # failed calls count: 1 of 4, not 1 of 2
    assert model.metrics["json_valid"] == model.metrics["exact_match"] == model.metrics["field_recall"] == 0.25
    assert model.metrics["field_precision"] == 1.0
    times = model.latency_s
    assert (times.p50, times.p95, times.p99) == pytest.approx((1.5, 1.95, 1.99))  # answered rows only
    assert model.usage == Usage(prompt_tokens=20, completion_tokens=76)  # billed failures too
    assert model.failures == {"refused": 1, "truncated": 1}
    assert model.issues == {"prediction_not_valid_json": 3}
    assert (model.served_by, model.stand_in, model.trained_on) == (("m", "n"), False, 0)
    assert [row.id for row in rows] == ["e0", "e1", "e2", "e3"]
    assert plain(rows[2]) == {
        "id": "e2",
        "group": None,
        "prompt_hash": prompt_hash(EXAMPLES[2].prompt),
        "prompt": EXAMPLES[2].prompt.as_dicts(),
        "target": '{"answer": 2}',
        "tags": {"a": "1", "b": "2"},
        "models": {
            "fake:m": {
                "text": None,
                "failure": {"kind": "refused", "reason": "filtered", "status": 400},
                "scores": rows[2].models["fake:m"].scores,
                "counts": [0, 0, 1],
                "issues": ["prediction_not_valid_json"],
                "facts": {},
                "latency_s": 9.0,
                "first_token_s": None,
                "logprob": None,
                "usage": None,
                "attempts": 1,
            }
        },
    }
    assert rows[2].models["fake:m"].scores["exact_match"] == 0.0
    json.dumps(encode([report, list(rows)]), allow_nan=False)


def test_a_stand_in_and_a_trained_model_are_named() -> None:
    answers = {e.id: Completion(text="{}", served_by="stand-in:tiny-base") for e in EXAMPLES}
    report, _ = build(TRACK, EXAMPLES, {"azure:gpt": answers, "fake:m": ANSWERS}, trained_on={"fake:m": 3})
    assert report.models["azure:gpt"].stand_in is True
    assert report.models["azure:gpt"].latency_s == Percentiles()
    assert report.models["fake:m"].trained_on == 3


def test_a_missing_answer_is_no_report() -> None:
    partial = {key: answer for key, answer in ANSWERS.items() if key != "e1"}
    with pytest.raises(ValueError, match=r"fake:m: 1 of 4 examples have no answer, first 'e1'"):
        build(TRACK, EXAMPLES, {"fake:m": partial}, trained_on={})
    with pytest.raises(ValueError, match="at least one"):
        build(TRACK, [], {}, trained_on={})


def test_attempts_first_tokens_and_cached_tokens_are_summed_and_absent_where_unknown() -> None:
    streamed = {
        e.id: Completion(
            text="{}", latency_s=1.0, first_token_s=0.1 * n, logprob=-0.5, attempts=n + 1, possibly_billed=min(n, 2),
            usage=Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=8),
        )
        for n, e in enumerate(EXAMPLES)
    }  # fmt: skip
    report, rows = build(TRACK, EXAMPLES, {"a": streamed, "b": ANSWERS}, trained_on={})
    model = report.models["a"]
    assert model.attempts == Attempts(calls=10, retried=6, possibly_billed=5)
    assert (model.first_token_s.p50, model.first_token_s.p95) == pytest.approx((0.15, 0.285))
    assert model.first_token_s.p99 is None
    assert model.usage == Usage(prompt_tokens=40, completion_tokens=8, cached_tokens=32)
    assert rows[3].models["a"].usage == Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=8)
    assert (rows[3].models["a"].attempts, rows[3].models["a"].logprob) == (4, -0.5)
    assert report.models["b"].first_token_s is None
    assert model.noise is None


def test_repeats_give_the_noise_of_a_model_and_change_no_other_figure() -> None:
    second = {**ANSWERS, "e0": Completion(text="{}"), "e1": Completion(text="other nonsense")}
    once, rows = build(TRACK, EXAMPLES, {"m": ANSWERS}, trained_on={})
    twice, same_rows = build(TRACK, EXAMPLES, {"m": ANSWERS}, trained_on={}, again={"m": [second]})
    noisy = twice.models["m"]
    assert ({**twice.models, "m": replace(noisy, noise=None)}, list(same_rows)) == (once.models, list(rows))
    assert noisy.noise == Noise(repeats=2, agreement=0.75, same_text=0.5, primary=(0.25, 0.0))


def test_other_answers_are_ignored() -> None:
    more = {**ANSWERS, "other": Completion(text="{}", latency_s=99.0)}
    (report, rows), (same, same_rows) = (
        build(TRACK, EXAMPLES, {"m": given}, trained_on={}) for given in (ANSWERS, more)
    )
    assert (report, list(rows)) == (same, list(same_rows))


@given(st.permutations(range(4)))
def test_order_of_rows_changes_no_number_and_no_byte_of_the_report(order: list[int]) -> None:
    given_order, _ = build(TRACK, EXAMPLES, {"m": ANSWERS}, trained_on={})
    answers = {f"e{i}": ANSWERS[f"e{i}"] for i in order}
    permuted, _ = build(TRACK, [EXAMPLES[i] for i in order], {"m": answers}, trained_on={})
    assert json.dumps(encode(permuted)) == json.dumps(encode(given_order))


def test_the_same_text_scores_the_same_whoever_said_it() -> None:
    other = {key: Completion(text=a.text, failure=a.failure, served_by="big") for key, a in ANSWERS.items()}
    report, rows = build(TRACK, EXAMPLES, {"small": ANSWERS, "big": other}, trained_on={})
    assert report.models["small"].metrics == report.models["big"].metrics
    assert all(row.models["small"].scores == row.models["big"].scores for row in rows)


@settings(deadline=None, max_examples=40)  # scikit-learn takes a second to import
@given(st.lists(st.none() | st.text(st.characters()), min_size=4, max_size=4), st.sampled_from(sorted(TRACKS)))
def test_a_text_scores_the_same_whichever_model_said_it(texts: list[str | None], name: str) -> None:
    said = {
        row.id: Completion(text=text) if text is not None else Completion(failure=Failure(kind="error", reason="x"))
        for row, text in zip(EXAMPLES, texts, strict=True)
    }
    report, rows = build(TRACKS[name], EXAMPLES, {"azure:big": said, "served:small": said}, trained_on={})
    one, other = report.models.values()
    assert replace(one, facts=other.facts) == other
    assert one.analysis is not None
    assert all(row.models["azure:big"] == row.models["served:small"] for row in rows)


def test_a_rows_group_goes_from_the_example_to_the_file_and_back(tmp_path: Path) -> None:
    rows = [replace(row, group=name) for row, name in zip(EXAMPLES[:2], ("dialogue 7", None), strict=True)]
    report, scored = build(TRACK, rows, {"fake:m": {row.id: ANSWERS[row.id] for row in rows}}, trained_on={})
    write_report(tmp_path, report, scored)
    assert [row.group for row in load_report(tmp_path)[1]] == ["dialogue 7", None]


def test_unicode_goes_from_the_answer_to_the_file_as_it_is(tmp_path: Path) -> None:
    odd = "ü\u2028\u0085\x00👩‍👩‍👧 \ufeff İ"
    said = {row.id: Completion(text=odd) for row in EXAMPLES}
    report, rows = build(TRACK, EXAMPLES, {"fake:m": said}, trained_on={})
    write_report(tmp_path, report, rows)
    assert [row.models["fake:m"].text for row in load_report(tmp_path)[1]] == [odd] * 4
