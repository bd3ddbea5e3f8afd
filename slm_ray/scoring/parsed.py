"""An answer as a track's scorers read it, for people to look at: the call, the number or the JSON that they find in it."""

from __future__ import annotations

from slm_ray.corpus.tracks import Track
from slm_ray.scoring.run import scorers
from slm_ray.scoring.strip import strip


def parsed(track: Track, text: str | None) -> str:
    """The answer in one line, with notes on what was taken off it; `unreadable` where the scorers find nothing in it."""
    value, notes = _read(track, text)
    shown = "unreadable" if value is None else str(value)
    return f"{shown} ({', '.join(notes)})" if notes else shown


def is_readable(track: Track, text: str | None) -> bool:
    """Whether the track's scorers find in the answer what they look for; of free text, whether there is any."""
    return _read(track, text)[0] is not None


def _read(track: Track, text: str | None) -> tuple[object, tuple[str, ...]]:
    stripped, notes = strip(text, track.strip)
    read = next((scorer.read for scorer in scorers(track) if scorer.read is not None), None)
    return (read(stripped) if read else stripped), notes
