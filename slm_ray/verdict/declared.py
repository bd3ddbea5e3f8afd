"""Whether a verdict is the test that was declared: the settings then and now, where they differ, and what follows.

A verdict under other settings than the declared ones is *exploratory*: its action is inconclusive, and what the settings
would say is said beside it. What no setting can move (level, resamples, seeds, the share of failed calls) is a constant of
the code and needs no declaring. Without any declaration the action stands, and the sentence says that it may have been
chosen after the answers were seen. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from slm_ray.types import Decision, DeclaredRule

_LATER = ("examples", "rows", "stop")  # more rows or fewer are a fault only where the rule allows one look
_WORDS = {
    "rule": "rule", "delta": "delta", "primary": "primary metric", "track": "the track's definition",
    "examples": "the file of rows", "rows": "rows",
}  # fmt: skip
_DIGESTS = ("track", "examples")


def departures(declared: DeclaredRule, now: DeclaredRule) -> list[str]:
    """The settings that differ, each in words; empty where `now` is what was declared.

    Rows may be more than were asked for at first, of the same file, but not fewer.
    """
    found = []
    for field in dataclasses.fields(DeclaredRule):
        name, then, value = field.name, getattr(declared, field.name), getattr(now, field.name)
        if name == "answers_before" or then == value:
            continue
        if name in _LATER and declared.rule == "sequential":
            continue
        if name == "rows" and value > then:
            continue
        word = _WORDS.get(name, name)
        found.append(f"{word} is another" if name in _DIGESTS else f"{word} is {_text(value)} and was {_text(then)}")
    return found


def hold(
    decision: Decision, declared: DeclaredRule | None, now: DeclaredRule, *, differing: Sequence[str],
    recorded: Sequence[str] = (),
) -> Decision:  # fmt: skip
    """The decision with a last sentence on what was declared; exploratory where settings are `differing`.

    `recorded` are the models whose answers are older than the evaluation.
    """
    settings = _settings(declared or now)
    late = (
        f"the answers of {' and '.join(recorded)} were recorded before this evaluation, so that no declaration can have"
        " come before them."
    )
    if declared is None:
        kept = (
            f"no rule was declared before the first call: {settings} may have been chosen after the answers were seen."
        )
    elif declared.answers_before:
        kept = f"{settings} were declared when {declared.answers_before} answers were already there."
    else:
        kept = f"declared before the first call: {settings}."
    because = (*decision.because, *([late] if recorded else []))
    if not differing:
        return dataclasses.replace(decision, because=(*because, kept))
    said = (
        f"exploratory: {'; '.join(differing)}. Under these settings the rows say {decision.action}, but it is not the test"
        " that was declared, and so it decides nothing: compare as declared, or declare these settings in an evaluation of"
        " fresh rows."
    )
    return dataclasses.replace(
        decision, action="inconclusive", exploratory=decision.action, because=(*because, kept, said), advice=None
    )


def _settings(rule: DeclaredRule) -> str:
    """The settings in one line, those that are not set left out."""
    parts = [f"rule {rule.rule}, delta {rule.delta:g} on {rule.primary}"]
    shown = ("candidates", "guardrails", "min_paired_share", "quality_floor", "baselines", "stratify")
    parts += [f"{name} {_text(value)}" for name in shown if (value := getattr(rule, name)) not in (None, ())]
    return ", ".join(parts)


def _text(value: object) -> str:
    if value is None or value == ():
        return "not set"
    if isinstance(value, tuple):
        return " and ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
