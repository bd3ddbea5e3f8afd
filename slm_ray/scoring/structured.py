"""The structured track: one JSON text against one JSON text, per row.

Gives the earlier system's numbers to the last digit. Knows nothing of models, prompts or runs, and raises on no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm_ray.scoring.items import Document, fields, leaf_text, overlap, parse, ratios
from slm_ray.types import RowScore, Score


def score(example_id: str, prediction: str | None, target: str) -> RowScore:
    """Score one answer; `prediction` None is a failed call and scores like invalid JSON.

    `exact_match` is equality of the parsed values as the earlier system had it, Python's `==`: key order is nothing,
    and `1`, `1.0` and `true` are equal (no recorded row turns on it). Items compare by JSON text, where those three
    differ. Of a key that an object holds twice the last value counts, as Python's parser and the earlier system have it:
    the first one is neither an item nor an error. Any JSON value is valid, a list or a scalar too; it then shares no
    item with an object. A target that is not JSON matches nothing.
    """
    predicted, expected = parse(prediction), parse(target)
    counts = overlap(predicted, expected)
    precision, recall, f1 = ratios(counts)
    exact = predicted is not None and expected is not None and bool(predicted.value == expected.value)
    scores = {
        "json_valid": float(predicted is not None),
        "exact_match": float(exact),
        "field_precision": precision or 0.0,
        "field_recall": recall or 0.0,
        "field_f1": f1 or 0.0,
        **_call_scores(fields(predicted), fields(expected)),
    }
    return RowScore(
        example_id=example_id,
        scores=tuple(Score(name=name, value=value) for name, value in scores.items()),
        issues=_issues(predicted, expected),
        counts=counts,
    )


def _call_scores(predicted: Mapping[str, Any] | None, expected: Mapping[str, Any] | None) -> dict[str, float | None]:
    """The further metrics, about a described API call.

    Each is None where the *target* lacks what it is about (no `tool_name`, no `query`, no `arguments` object), whatever
    was predicted: so a run's mean has the same denominator for every model. Where the target has it and the prediction
    does not, or is no object, the value is 0. `args_partial_match` is 0 as well where a call expects no argument: the
    earlier system took its mean over all rows.
    """
    found, wanted = predicted or {}, expected or {}
    return {
        "tool_name_accuracy": _same("tool_name", found, wanted),
        "query_preservation": _same("query", found, wanted),
        **_argument_scores(found.get("arguments"), wanted.get("arguments")),
    }


def _same(key: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float | None:
    return float(key in found and bool(found[key] == wanted[key])) if key in wanted else None


def _argument_scores(found: Any, wanted: Any) -> dict[str, float | None]:
    if not isinstance(wanted, dict):
        return {"args_keys_match": None, "args_partial_match": None}
    keys_match = float(isinstance(found, dict) and found.keys() == wanted.keys())
    if not wanted:
        return {"args_keys_match": keys_match, "args_partial_match": 0.0}
    given = found if isinstance(found, dict) else {}
    equal = sum(key in given and _lowered(given[key]) == _lowered(value) for key, value in wanted.items())
    return {"args_keys_match": keys_match, "args_partial_match": equal / len(wanted)}


def _lowered(value: Any) -> str:
    """Lower-cased text of an argument: `920001` and `"920001"` are the same, `true` and `"True"` too."""
    return (value if isinstance(value, str) else leaf_text(value)).lower()


def _issues(predicted: Document | None, expected: Document | None) -> tuple[str, ...]:
    """Issue categories in the recorded order.

    Missing and extra are about items, as recorded: a leaf with a wrong value is missing *and* extra, and is a
    `value_mismatch` besides, because its path is on both sides.
    """
    if predicted is None:
        return ("prediction_not_valid_json",)
    wanted = expected.items if expected is not None else frozenset()
    missing, extra = wanted - predicted.items, predicted.items - wanted
    found = {
        "missing_fields": bool(missing),
        "extra_fields": bool(extra),
        "value_mismatch": not {path for path, _ in missing}.isdisjoint(path for path, _ in extra),
    }
    return tuple(issue for issue, present in found.items() if present)
