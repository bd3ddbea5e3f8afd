"""A verdict in words: what a person reads on the terminal, from a comparison and its decision. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from slm_ray.tables import format_table
from slm_ray.types import Action, Comparison, Decision, EarlierCandidate

_MEANING: dict[Action, str] = {
    "swap": "the SLM can take the LLM's place on this task",
    "fine_tune": "fine-tune the SLM before it takes the LLM's place",
    "inconclusive": "these rows cannot tell, see below",
}


def verdict_text(comparison: Comparison, decision: Decision, *, further: Sequence[str] = ()) -> str:
    """What a person reads: the metrics (* the primary one), the action and why, then `further` parts.

    The last line is `FINE_TUNE=0|1`.
    """
    llm, slm = (f"{spec}{_mark(comparison, spec)}" for spec in (comparison.llm, comparison.slm))
    lines = [
        f"track {comparison.track}, {rows_text(comparison)}, examples {comparison.digest}",
        f"LLM: {llm}",
        f"SLM: {slm}",
        "",
        *format_table(
            [["metric", "LLM", "SLM", "SLM-LLM", ""], *(_line(comparison, name) for name in comparison.llm_metrics)],
            left=(0, 4),
        ),
        "",
        f"verdict: {decision.action} ({_meaning(decision)}); rule {decision.rule}, delta {decision.delta:g}",
        *(f"- {sentence}" for sentence in decision.sentences),
        *(f"\n{part}" for part in further),
        *([""] if further else []),
        f"FINE_TUNE={int(decision.action == 'fine_tune')}",
    ]
    return "\n".join(lines)


def earlier_text(decision: Decision) -> list[str]:
    """A part on who was tried on these rows before, a line each; empty where nobody was."""
    if not decision.earlier:
        return []
    return ["\n".join(["tried on these rows before", *(f"- {_earlier(one)}" for one in decision.earlier)])]


def _earlier(one: EarlierCandidate) -> str:
    said = f"candidate {one.number}, {one.slm}: {one.action} ({one.rule} at {100 * one.level:.2g} %, {one.date})"
    figures = one.figures
    if figures is None:
        return f"{said}; no figures: it was noted when it was asked, and never compared"
    interval = figures.interval
    said += (
        f"; {figures.primary} {number(figures.slm_metric)} against {number(figures.llm_metric)} of {figures.llm}, SLM minus"
        f" LLM {interval.estimate:+.4f} ({interval.lower:+.4f} to {interval.upper:+.4f}) over {figures.n} rows"
    )
    changes = one.changes
    if changes is None:
        return said
    return f"{said}; of {changes.rows} rows scored both times this SLM is lower on {changes.lower}, higher on {changes.higher}"


def rows_text(comparison: Comparison) -> str:
    """How much a verdict stands on: rows and, where rows are in groups, groups and how many independent rows they equal."""
    effective = comparison.effective_n
    if comparison.largest_group == 1 or effective is None:
        return f"{comparison.n} paired rows"
    return (
        f"{comparison.n} paired rows in {comparison.groups} groups, the largest of {comparison.largest_group}"
        f" ({effective:.0f} effective rows)"
    )


def _meaning(decision: Decision) -> str:
    if decision.exploratory is not None:
        return f"exploratory: {decision.exploratory} under settings that were not declared, see below"
    return _MEANING[decision.action]


def _mark(comparison: Comparison, spec: str) -> str:
    return "  [stand-in]" if spec in comparison.stand_ins else ""


def _line(comparison: Comparison, name: str) -> list[str]:
    llm, slm = comparison.llm_metrics[name], comparison.slm_metrics.get(name)
    gap = f"{slm - llm:+.4f}" if llm is not None and slm is not None else "-"
    return [name, number(llm), number(slm), gap, "*" if name == comparison.primary else ""]


def number(value: float | None) -> str:
    """Four places, or - where it is undefined."""
    return "-" if value is None else f"{value:.4f}"
