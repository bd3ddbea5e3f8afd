"""One step of curation, counted: what stayed, what went and why, for the summary that a person reads.

`sift` is how the filters are built: a row goes when a reason is given for it. No row is changed here, and the order
stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slm_ray.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step did: its name, the rows that stayed, those that went, and a note for people."""

    name: str
    kept: int
    dropped: int
    note: str = ""

    def __str__(self) -> str:
        if not self.dropped:
            return f"{self.name}: {self.note or 'nothing dropped'}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}: {self.dropped:,} of {self.kept + self.dropped:,} rows dropped{note}"


def sift(name: str, examples: Sequence[Example], reason: Callable[[Example], str | None]) -> tuple[list[Example], Step]:
    """The examples that `reason` has nothing against; the note counts each reason, the commonest first."""
    kept: list[Example] = []
    reasons: Counter[str] = Counter()
    for example in examples:
        why = reason(example)
        if why is None:
            kept.append(example)
        else:
            reasons[why] += 1
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    note = ", ".join(f"{why}: {count:,}" for why, count in ranked)
    return kept, Step(name=name, kept=len(kept), dropped=len(examples) - len(kept), note=note)
