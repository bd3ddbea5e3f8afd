"""The truth of a run on disk: what was planned, what was asked, what was answered. `Ledger` is the file."""

from slm_ray.ledger.file import Ledger
from slm_ray.ledger.records import Entry, Planned, Run, finished, key, outcome

__all__ = ["Entry", "Ledger", "Planned", "Run", "finished", "key", "outcome"]
