"""A file of examples with the track that says what they mean: what every job that reads rows opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slm_ray.corpus import leakage, read, render
from slm_ray.corpus.tracks import Track
from slm_ray.errors import DataError, choices
from slm_ray.storage import read_lines
from slm_ray.tasks.track_file import open_track
from slm_ray.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The examples of one JSONL file, in order, as its track shows them; ids are unique."""

    path: str
    track: Track
    examples: tuple[Example, ...]

    @property
    def digest(self) -> str:
        """64 hex digits that name the data set by ids, prompts and targets; see `render.digest`."""
        return render.digest(self.examples)

    @property
    def question_hashes(self) -> frozenset[str]:
        """What the examples ask, for leak checks against held-out rows."""
        return leakage.question_hashes(self.examples)

    def example(self, example_id: str) -> Example:
        """One example by its id; DataError with the nearest ids when there is none."""
        for example in self.examples:
            if example.id == example_id:
                return example
        known = (example.id for example in self.examples)
        raise DataError(f"{self.path}: no row has the id {example_id!r}; {choices(example_id, known)}")


def open_dataset(path: str | Path, track: str) -> Dataset:
    """The examples in the file, read for the track of that name or file; the `track.yaml` beside them comes first.

    DataError with file:line for every bad row, and for a file that cannot be read; ConfigError for an unknown track.
    """
    opened = open_track(track, beside=path)
    examples = read.examples(read_lines(path), name=str(path), track=opened)
    return Dataset(path=str(path), track=opened, examples=tuple(examples))
