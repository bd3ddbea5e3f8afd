"""Ninety-five rows in the repository give the metrics that stand beside them, per row and per run, by `==` on floats.

`tests/data/golden` holds them. The same figures come from a second implementation, written below from the definitions
alone and sharing no line with `slm_ray.scoring`: slow, plain, and only good for well-behaved JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm_ray.corpus.tracks import TRACKS
from slm_ray.scoring import score, summarise

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TRACK_NAMES = ("structured", "toolcall")
Item = tuple[str, str]
Row = dict[str, Any]


def read(track: str) -> list[Row]:
    return [json.loads(line) for line in (GOLDEN / f"{track}.jsonl").read_text(encoding="utf-8").splitlines()]


def strict_json(text: str | None) -> tuple[bool, Any]:
    """Whether the text is one JSON value, and which."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return True, json.loads(text or "", parse_constant=refuse)
    except ValueError:
        return False, None


def items(value: Any, path: str = "") -> list[Item]:
    """Leaf paths `a.b[0]`, each with the JSON text of the leaf; none of an empty object or list."""
    if isinstance(value, dict):
        return [item for key in value for item in items(value[key], f"{path}.{key}" if path else key)]
    if isinstance(value, list):
        return [item for i in range(len(value)) for item in items(value[i], f"{path}[{i}]")]
    return [(path, json.dumps(value))]


def counted(predicted: list[Item], expected: list[Item]) -> tuple[int, int, int]:
    """How many items both have, only the prediction has, and only the expectation has."""
    both = [item for item in predicted if item in expected]
    only_predicted = [item for item in predicted if item not in expected]
    only_expected = [item for item in expected if item not in predicted]
    return len(both), len(only_predicted), len(only_expected)


def rates(tp: int, fp: int, fn: int) -> tuple[float, float, float]:
    precision = tp / (tp + fp) if tp + fp > 0 else 0.0
    recall = tp / (tp + fn) if tp + fn > 0 else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return precision, recall, f1


def structured(row: Row) -> tuple[Row, list[str], tuple[int, int, int]]:
    """Metrics, issues and counts of a structured row."""
    valid, predicted = strict_json(row["prediction"])
    _, expected = strict_json(row["reference"])
    found, wanted = (items(predicted) if valid else []), items(expected)
    counts = counted(found, wanted)
    fields = predicted if isinstance(predicted, dict) else {}
    arguments, wanted_arguments = fields.get("arguments"), expected["arguments"]
    given = arguments if isinstance(arguments, dict) else {}
    as_text: Callable[[Any], str] = lambda value: (value if isinstance(value, str) else json.dumps(value)).lower()  # noqa: E731
    equal = [
        name for name in wanted_arguments if name in given and as_text(given[name]) == as_text(wanted_arguments[name])
    ]
    metrics = {
        "json_valid": float(valid),
        "exact_match": float(valid and predicted == expected),
        **dict(zip(("field_precision", "field_recall", "field_f1"), rates(*counts), strict=True)),
        "tool_name_accuracy": float("tool_name" in fields and fields["tool_name"] == expected["tool_name"]),
        "query_preservation": float("query" in fields and fields["query"] == expected["query"]),
        "args_keys_match": float(isinstance(arguments, dict) and set(arguments) == set(wanted_arguments)),
        "args_partial_match": len(equal) / len(wanted_arguments) if wanted_arguments else 0.0,
    }
    missing, extra = [i for i in wanted if i not in found], [i for i in found if i not in wanted]
    issues = {
        "missing_fields": missing != [],
        "extra_fields": extra != [],
        "value_mismatch": any(path == other for path, _ in missing for other, _ in extra),
    }
    said = [name for name, holds in issues.items() if holds] if valid else ["prediction_not_valid_json"]
    return metrics, said, counts


def call(text: str | None) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the one tool call that the stripped text is."""
    stripped = (text or "").strip()
    head, tag = '<tool_call name="', "</tool_call>"
    if stripped[: len(head)] != head or stripped[-len(tag) :] != tag or '">' not in stripped:
        return None
    name, body = stripped[len(head) : -len(tag)].split('">', 1)
    valid, arguments = strict_json(body.strip())
    return (name, arguments) if name and '"' not in name and valid and isinstance(arguments, dict) else None


def toolcall(row: Row) -> tuple[Row, list[str], tuple[int, int, int]]:
    """Metrics, issues and counts of a tool-call row."""
    predicted, expected = call(row["prediction"]), call(row["reference"])
    assert expected is not None
    counts = counted(items(predicted[1]) if predicted else [], items(expected[1]))
    name_match = predicted is not None and predicted[0] == expected[0]
    args_exact = predicted is not None and predicted[1] == expected[1]
    metrics: Row = {
        "valid_call": float(predicted is not None),
        "name_match": float(name_match),
        "args_exact": float(args_exact),
        **dict(zip(("args_precision", "args_recall", "args_f1"), rates(*counts), strict=True)),
    }
    if predicted is None:
        return metrics, ["invalid_tool_call_format"], counts
    issues = {"tool_name_mismatch": not name_match, "arguments_mismatch": not args_exact}
    return metrics, [name for name, holds in issues.items() if holds], counts


BY_DEFINITION = {"structured": structured, "toolcall": toolcall}
MICRO = {
    "structured": ("field_precision", "field_recall", "field_f1"),
    "toolcall": ("args_precision", "args_recall", "args_f1"),
}


def run_metrics(track: str, rows: list[Row]) -> Row:
    """Means over the rows that have a value, and precision, recall and F1 of the summed counts."""
    judged = [BY_DEFINITION[track](row) for row in rows]
    means = {}
    for name in judged[0][0]:
        values = [metrics[name] for metrics, _, _ in judged if metrics[name] is not None]
        means[name] = sum(values) / len(values)
    summed = [sum(counts[i] for _, _, counts in judged) for i in range(3)]
    return means | dict(zip(MICRO[track], rates(*summed), strict=True))


@pytest.mark.parametrize("track", TRACK_NAMES)
def test_every_row_scores_as_it_stands_in_the_file(track: str) -> None:
    for number, row in enumerate(read(track), start=1):
        scored = score(TRACKS[track], str(number), row["prediction"], row["reference"])
        assert {name: scored.value(name) for name in row["metrics"]} == row["metrics"], f"{track}.jsonl:{number}"
        assert list(scored.issues) == row["issues"], f"{track}.jsonl:{number}"


@pytest.mark.parametrize("track", TRACK_NAMES)
def test_a_second_implementation_of_the_definitions_gives_the_same_rows(track: str) -> None:
    for number, row in enumerate(read(track), start=1):
        metrics, issues, _ = BY_DEFINITION[track](row)
        assert (metrics, issues) == (row["metrics"], row["issues"]), f"{track}.jsonl:{number}"


@pytest.mark.parametrize("track", TRACK_NAMES)
def test_the_run_has_the_figures_of_the_file_and_of_the_definitions(track: str) -> None:
    rows = read(track)
    figures = json.loads((GOLDEN / f"{track}_metrics.json").read_text(encoding="utf-8"))
    scored = [score(TRACKS[track], str(i), row["prediction"], row["reference"]) for i, row in enumerate(rows)]
    ours = summarise(TRACKS[track], scored)
    assert {name: ours[name] for name in figures} == figures
    assert run_metrics(track, rows) == figures


def test_the_rows_meet_every_kind_of_answer() -> None:
    """A fixture in which every answer is right would prove nothing."""
    structured_rows, toolcall_rows = read("structured"), read("toolcall")
    assert (len(structured_rows), len(toolcall_rows)) == (55, 40)
    rows = structured_rows + toolcall_rows
    assert {issue for row in rows for issue in row["issues"]} == {
        "prediction_not_valid_json", "missing_fields", "extra_fields", "value_mismatch",
        "invalid_tool_call_format", "tool_name_mismatch", "arguments_mismatch",
    }  # fmt: skip
    assert sum(row["issues"] == [] for row in rows) >= 10
    assert any(row["prediction"] is None for row in rows)
    assert any(not row["reference"].isascii() for row in rows) or any("\\u" in row["reference"] for row in rows)
    for name in {name for row in rows for name in row["metrics"]}:
        assert len({row["metrics"][name] for row in rows if name in row["metrics"]}) > 1, f"{name} is always the same"
