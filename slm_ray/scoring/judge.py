"""A model as judge: what it is asked, what its verdict is worth, and how far it agrees with people.

A grade is 1 to 7, mapped to [0, 1]. A judgement that cannot be read is unscored, never 0. Pairs are asked in both orders
(judges favour a place), a tie is one half. Nothing here calls a model: a judge is asked like any other, its answers come
back as texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slm_ray.types import Message, Prompt, RowScore, Score

LOWEST, HIGHEST = 1, 7
UNREADABLE = "unreadable_judgement"

SYSTEM = "You are a strict and fair judge of answers. You never answer the task yourself."
# What surrounds a saying stays on its line and is never tried again: a megabyte of quotes or line ends would take hours.
_GRADE = re.compile(
    r"^[^\w\n]*+(?:score|grade|rating)\W*+([1-7])(?:\s*+/\s*+7)?[^\w\n]*+$", re.IGNORECASE | re.MULTILINE
)
_BARE = re.compile(r"\s*+([1-7])(?:\s*+/\s*+7)?\s*+\.?\s*+")
_CHOICE = re.compile(r"^[^\w\n]*+(?:verdict|winner|better)\W*+(A|B|tie)[^\w\n]*+$", re.IGNORECASE | re.MULTILINE)
_BARE_CHOICE = re.compile(r"\s*+(A|B|tie)\s*+\.?\s*+", re.IGNORECASE)
_FIRST_WINS = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A judge beside people on the rows that both graded.

    `spearman` is the rank correlation, `kappa` Cohen's kappa with quadratic weights over the seven grades; None where
    undefined (fewer than two rows, or one side always says the same). `unread` rows had no readable judgement.
    """

    n: int
    unread: int
    spearman: float | None
    kappa: float | None


def grade_prompt(question: str, answer: str, reference: str | None, rubric: str) -> Prompt:
    """Asks for a grade of one answer, the last line to be `Score: N`."""
    parts = [f"Task:\n{question}", f"Answer to judge:\n{answer}"]
    if reference is not None:
        parts.insert(1, f"Reference answer:\n{reference}")
    parts.append(
        f"Rubric: {rubric}\nGrade the answer from {LOWEST} (useless) to {HIGHEST} (perfect). "
        "Give one sentence of reason, then a last line `Score: N`."
    )
    return _asked("\n\n".join(parts))


def pair_prompt(question: str, first: str, second: str, reference: str | None, rubric: str) -> Prompt:
    """Asks which of two answers is better, the last line to be `Verdict: A`, `B` or `tie`."""
    parts = [f"Task:\n{question}", f"Answer A:\n{first}", f"Answer B:\n{second}"]
    if reference is not None:
        parts.insert(1, f"Reference answer:\n{reference}")
    parts.append(
        f"Rubric: {rubric}\nWhich answer is better? Give one sentence of reason, then a last line "
        "`Verdict: A`, `Verdict: B` or `Verdict: tie`."
    )
    return _asked("\n\n".join(parts))


def grade(text: str | None) -> int | None:
    """The grade that a judgement gives, 1 to 7; None when it gives none, or two that differ."""
    found = _found(text, _GRADE, _BARE)
    return int(found) if found is not None else None


def preference(text: str | None) -> float | None:
    """The first answer's share of the win: 1 for A, 0 for B, one half for a tie; None when there is no one verdict."""
    found = _found(text, _CHOICE, _BARE_CHOICE)
    return _FIRST_WINS[found] if found is not None else None


def both_orders(forward: float | None, backward: float | None) -> float | None:
    """The win share of the answer shown first in `forward` and second in `backward`; None unless both were read."""
    return None if forward is None or backward is None else (forward + (1 - backward)) / 2


def score_grade(example_id: str, prediction: str | None, reference: str) -> RowScore:
    """A judgement as a row: `grade` in [0, 1] or None. A `reference` of 1 to 7 is what a person gave the same answer."""
    given, human = grade(prediction), grade(reference)
    facts = {name: float(value) for name, value in (("judge", given), ("human", human)) if value is not None}
    value = None if given is None else (given - LOWEST) / (HIGHEST - LOWEST)
    return _row(example_id, "grade", value, facts)


def score_preference(example_id: str, prediction: str | None, reference: str) -> RowScore:
    """A pairwise judgement as a row: `first_wins` in [0, 1] or None."""
    return _row(example_id, "first_wins", preference(prediction), {})


def agreement(rows: Sequence[RowScore]) -> Agreement:
    """How far the judge agrees with people over rows of `score_grade` that have a human grade."""
    from scipy.stats import spearmanr
    from sklearn.metrics import cohen_kappa_score  # takes a second to import

    asked = [row for row in rows if "human" in row.facts]
    read = [(int(row.facts["judge"]), int(row.facts["human"])) for row in asked if "judge" in row.facts]
    judge, human = [pair[0] for pair in read], [pair[1] for pair in read]
    spearman = kappa = None
    if len(set(judge)) > 1 and len(set(human)) > 1:
        spearman = float(spearmanr(judge, human).statistic)
        kappa = float(cohen_kappa_score(judge, human, weights="quadratic", labels=list(range(LOWEST, HIGHEST + 1))))
    return Agreement(n=len(read), unread=len(asked) - len(read), spearman=spearman, kappa=kappa)


def preference_agreement(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
    """Judge and people on pairs of answers, differences in [-1, 1]: the share of equal signs, and Cohen's kappa over three.

    None where undefined: no pair, or one side that always says the same.
    """
    from sklearn.metrics import cohen_kappa_score

    signs = [((judge > 0) - (judge < 0), (people > 0) - (people < 0)) for judge, people in pairs]
    if not signs:
        return None, None
    judge, people = [one for one, _ in signs], [one for _, one in signs]
    kappa = None
    if len(set(judge)) > 1 and len(set(people)) > 1:
        kappa = float(cohen_kappa_score(judge, people, labels=[-1, 0, 1]))
    return sum(one == other for one, other in signs) / len(signs), kappa


def _asked(text: str) -> Prompt:
    return Prompt(messages=(Message(role="system", content=SYSTEM), Message(role="user", content=text)))


def _found(text: str | None, named: re.Pattern[str], bare: re.Pattern[str]) -> str | None:
    """What the judgement says on a line of its own, or is as a whole; two different sayings are none."""
    said = {match.lower() for match in named.findall(text or "")}
    if not said and (whole := bare.fullmatch(text or "")):
        said = {whole[1].lower()}
    return said.pop() if len(said) == 1 else None


def _row(example_id: str, name: str, value: float | None, facts: Mapping[str, str | float]) -> RowScore:
    return RowScore(
        example_id=example_id, scores=(Score(name=name, value=value),), issues=() if value is not None else (UNREADABLE,),
        facts=facts,
    )  # fmt: skip
