"""The one leak check: does a held-out row ask what a training row asks?

Every job that trains, evaluates or compares asks it here. Two rows ask the same when their question hashes are equal:
system turns, demonstrations in front, spacing and case do not count. `leaks` also finds near-duplicates, which needs the
rows themselves; everything else works on hashes, so that an adapter need only keep those of its training rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from slm_ray.corpus import duplicates
from slm_ray.corpus.render import prompt_hash
from slm_ray.corpus.retrieve import DEMONSTRATIONS
from slm_ray.errors import DataError
from slm_ray.types import Example, Prompt

_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A held-out example, by id, the training example that asks the same, and how alike the two are."""

    row: str
    train: str
    why: Literal["same prompt", "near-duplicate"]


def question_hash(example: Example) -> str:
    """The prompt hash of what the example itself asks, without the demonstrations that its tag says are in front."""
    said = example.tags.get(DEMONSTRATIONS, "")
    turns = 2 * int(said) if said.isascii() and said.isdigit() else 0
    *before, last = example.prompt.messages
    if not turns or len(before) < turns:
        return prompt_hash(example.prompt)
    return prompt_hash(Prompt(messages=(*before[: len(before) - turns], last)))


def question_hashes(examples: Iterable[Example]) -> frozenset[str]:
    """The question hashes of all the examples."""
    return frozenset(map(question_hash, examples))


def leaked(held_out: Mapping[str, str], trained: Set[str]) -> list[str]:
    """The ids of the held-out rows (hash by id) whose question hash is among `trained`, in order."""
    return [row for row, value in held_out.items() if value in trained]


def leaked_examples(held_out: Iterable[Example], trained: Set[str]) -> list[str]:
    """The ids of the held-out examples whose question hash is among `trained`, in order; no hash is taken for none."""
    return leaked({row.id: question_hash(row) for row in held_out}, trained) if trained else []


def leakage_text(ids: Sequence[str], total: int, *, rows: str, trained: str = "", fix: str) -> str:
    """What is said of leaked rows: how many of how many `rows`, where they were trained on, the first ids and the fix."""
    of = f" of {trained}" if trained else ""
    first = ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
    return f"{len(ids)} of {total} {rows} are training rows{of} ({first}); {fix}"


def refuse_leakage(
    held_out: Sequence[Example],
    trained: Set[str],
    *,
    rows: str,
    trained_name: str,
    fix: str = "evaluate on held-out rows",
) -> None:
    """DataError when a held-out example asks what a training row asks."""
    ids = leaked_examples(held_out, trained)
    if ids:
        raise DataError(leakage_text(ids, len(held_out), rows=rows, trained=trained_name, fix=fix))


def leaks(
    train: Sequence[Example], other: Sequence[Example], *, threshold: float | None = None, seed: int = 42
) -> list[Leak]:
    """The examples of `other` that ask what an example of `train` asks, in order, each once.

    With a `threshold`, near-duplicates (see `duplicates.groups`) count too. That depends on all rows given, so a split
    of a larger set may show a few.
    """
    by_hash: dict[str, str] = {}
    for example in train:
        by_hash.setdefault(question_hash(example), example.id)
    near: dict[int, str] = {}
    roots = [] if threshold is None else duplicates.groups([*train, *other], threshold=threshold, seed=seed)
    for example, root in zip(train, roots, strict=False):
        near.setdefault(root, example.id)
    found = []
    for place, example in enumerate(other):
        same = by_hash.get(question_hash(example))
        alike = near.get(roots[len(train) + place]) if roots else None
        if same is not None:
            found.append(Leak(row=example.id, train=same, why="same prompt"))
        elif alike is not None:
            found.append(Leak(row=example.id, train=alike, why="near-duplicate"))
    return found
