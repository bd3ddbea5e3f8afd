"""From rows to a run: means of the row metrics, and precision, recall and F1 from summed counts.

The order of rows changes nothing, to the last bit. No metric of an empty run is defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from slm_ray.errors import ConfigError, choices
from slm_ray.scoring import structured, toolcall
from slm_ray.scoring.items import ratios
from slm_ray.types import RowScore

Scorer = Callable[[str, str | None, str], RowScore]

SCORERS: dict[str, Scorer] = {"structured": structured.score, "toolcall": toolcall.score}

# In the order of a report.
METRICS: dict[str, tuple[str, ...]] = {
    "structured": (
        "json_valid", "exact_match", "field_precision", "field_recall", "field_f1",
        "tool_name_accuracy", "query_preservation", "args_keys_match", "args_partial_match",
    ),
    "toolcall": ("valid_call", "name_match", "args_exact", "args_precision", "args_recall", "args_f1"),
}  # fmt: skip
# (precision, recall, F1) from summed counts; every other metric is a mean over rows.
_MICRO = {
    "structured": ("field_precision", "field_recall", "field_f1"),
    "toolcall": ("args_precision", "args_recall", "args_f1"),
}


def scorer(name: str) -> Scorer:
    """The row scorer of that name; ConfigError lists the known ones."""
    if name not in SCORERS:
        raise ConfigError(f"unknown scorer {name!r}: {choices(name, SCORERS)}")
    return SCORERS[name]


def summarise(scorer_name: str, rows: Sequence[RowScore]) -> dict[str, float | None]:
    """Run metrics by name, each in [0, 1] or None where undefined.

    A mean is over all rows, invalid and failed answers included (they hold 0s), except rows where the metric is None
    because the *reference* lacks what it is about (for `args_partial_match`: a call without arguments); those are left
    out, the same ones for every model. Precision, recall and F1 are micro: from the summed (TP, FP, FN). Precision is
    None, not 0, when no item was predicted in the whole run.
    """
    scorer(scorer_name)
    shared, extra, missed = (sum(row.counts[i] for row in rows) for i in range(3))
    micro = dict(zip(_MICRO[scorer_name], ratios((shared, extra, missed)), strict=True))
    return {name: micro[name] if name in micro else _mean(name, rows) for name in METRICS[scorer_name]}


def _mean(name: str, rows: Sequence[RowScore]) -> float | None:
    values = [value for row in rows if (value := row.value(name)) is not None]
    return math.fsum(values) / len(values) if values else None
