"""The truth of a run on disk: what was planned, what was asked, what was answered. `Ledger` is the file, `Journal` an actor's way into it."""

from slm_ray.ledger.file import Ledger, bring_in
from slm_ray.ledger.journal import Answer, Journal, Part, given_up, parts
from slm_ray.ledger.records import Entry, Planned, Run, finished, key, outcome

__all__ = [
    "Answer", "Entry", "Journal", "Ledger", "Part", "Planned", "Run", "bring_in", "finished", "given_up", "key", "outcome", "parts",
]  # fmt: skip
