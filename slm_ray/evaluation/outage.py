"""Whether a finished evaluation is one: a model whose calls failed on many rows was not measured there.

Reads a report and says so in one line per model; a refusal, a cut or an invalid answer is an answer and counts as one.
"""

from __future__ import annotations

from slm_ray.records import ModelReport, Report

_ROUNDING = 1e-12


def outages(report: Report, most: float) -> list[str]:
    """A line for every model whose calls failed on more than the share `most` of its rows: how many, why, what to do."""
    return [
        f"{spec}: calls failed on {failed} of {model.n} rows ({failed / model.n:.1%}, more than {most:.0%};"
        f" {_why(model)}); these answers are missing, not wrong: mend the endpoint and run the same command again,"
        " which asks only the failed rows again"
        for spec, model in report.models.items()
        if (failed := model.failures.get("error", 0)) / model.n > most + _ROUNDING
    ]


def _why(model: ModelReport) -> str:
    """The commonest reasons with their counts."""
    return ", ".join(f"{count} times {reason}" for reason, count in model.error_reasons.items()) or "no reason kept"
