"""Whether a finished evaluation is one: a model whose calls failed on many rows was not measured there.

Reads a report and says so in one line per model; a refusal, a cut or an invalid answer is an answer and counts as one.
"""

from __future__ import annotations

from slm_ray.records import ModelReport, Report
from slm_ray.verdict.decide import MOST_FAILED, too_many_failed


def outages(report: Report) -> list[str]:
    """A line for every model whose calls failed on more rows than a verdict allows: how many, why, what to do."""
    return [
        f"{spec}: calls failed on {failed} of {model.n} rows ({failed / model.n:.1%}, more than {MOST_FAILED:.0%};"
        f" {_why(model)}); these answers are missing, not wrong: mend the endpoint and run the same command again,"
        " which asks only the failed rows again"
        for spec, model in report.models.items()
        if too_many_failed(failed := model.failures.get("error", 0), model.n)
    ]


def _why(model: ModelReport) -> str:
    """The commonest reasons with their counts."""
    return ", ".join(f"{count} times {reason}" for reason, count in model.error_reasons.items()) or "no reason kept"
