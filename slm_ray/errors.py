"""What can be wrong with a job, said once and clearly.

Every error states what was wrong, what was given, where, and what to do, in one line. All of them pickle, since they
cross Ray, and all end a job with exit status 2. Nothing here formats tracebacks or logs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SlmRayError(Exception):
    """A problem that the person running the job can fix; `str()` is the one line to show."""


class ConfigError(SlmRayError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(SlmRayError):
    """A file or a row cannot be used; the text holds file:line, the reason and the fix."""


class ModelError(SlmRayError):
    """A model cannot be reached or refuses every call (key, deployment, base folder)."""


class TrainingError(SlmRayError):
    """A training cannot go on: its loss or gradients are no numbers, or a worker failed in a way that will come again."""


class AdapterError(SlmRayError):
    """An adapter is damaged, unknown or belongs to another base."""


class ResourceError(SlmRayError):
    """The machine or cluster lacks what was asked for: CPUs, GPUs, memory, a port, a lock."""


class ReadOnlyError(ResourceError):
    """A place that may be read and not written."""


class ComparisonError(SlmRayError):
    """Two results cannot be compared: different rows, training rows, missing models."""


def choices(unknown: str, known: Iterable[str]) -> str:
    """The tail of an unknown-name error: a "did you mean" where one is near, then the known names."""
    names = sorted(known)
    near = difflib.get_close_matches(unknown, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names)}"
