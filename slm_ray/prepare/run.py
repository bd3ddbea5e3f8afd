"""Gather, curate, split, check and write: the steps of one preparation in their order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray import storage
from slm_ray.config import PrepareConfig
from slm_ray.corpus import formats, read
from slm_ray.corpus.step import Step
from slm_ray.corpus.tracks import Track, definition
from slm_ray.errors import ConfigError
from slm_ray.prepare.curate import curated
from slm_ray.prepare.demonstrations import shown
from slm_ray.prepare.gather import Count, Say, gather, judged, shown_as, sources
from slm_ray.prepare.sides import SPLITS, sides
from slm_ray.prepare.spread import FanOut, Spread
from slm_ray.scoring.run import check
from slm_ray.sources import fingerprint
from slm_ray.trackfile import TRACK_FILE, open_track, write_track
from slm_ray.types import Example

SUMMARY = "prepare.json"
_INCIDENTAL = {"out_dir", "parallel_threshold_bytes"}  # where to and how, not what


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What `prepare` wrote: the folder, the track's name, rows per split, the steps and the digest of sources and settings."""

    folder: Path
    track: str
    rows: Mapping[str, int]
    digest: str
    steps: tuple[Step, ...] = ()
    bad: Mapping[str, int] | None = None

    def path(self, split_name: str) -> str:
        """The file of one split."""
        return str(self.folder / f"{split_name}.jsonl")

    def summary(self) -> str:
        """What was done, one line per step, then per split."""
        bad = self.bad or {}
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(bad.items()))
        lines = [f"bad rows: {sum(bad.values()):,} left out ({kinds})"] if bad else []
        lines += [str(step) for step in self.steps if step.dropped or step.note or step.name == "split"]
        lines.append(f"track {self.track}, no question in two files:")
        return "\n".join(
            lines + [f"  {name:<11}{rows:>9,} rows  {self.path(name)}" for name, rows in self.rows.items()]
        )


def prepare(
    config: PrepareConfig, *, count: Count | None = None, say: Say = lambda _: None, fan_out: FanOut | None = None
) -> Prepared:
    """Read, convert, curate, split, check and write; what was written before is kept when nothing has changed.

    `count` gives an example's tokens, which `max_tokens` needs; `say` hears the table of bad rows; `fan_out` reads several
    large files at once, and counts tokens and looks for demonstrations of many rows (`slm_ray.fanout.in_order`). Raises DataError with file:line for rows that cannot be used, and
    ConfigError for settings that contradict each other.
    """
    track = open_track(config.track)
    formats.check(config.format, track)
    if config.curation.max_tokens is not None and count is None:
        raise ConfigError("curation.max_tokens needs a tokenizer; set `base` to the base model's folder")
    folder = Path(config.out_dir)
    digest = _digest(config, track)
    done = _finished(folder, digest)
    if done is not None:
        return done
    spread = Spread(fan_out=fan_out, least_bytes=config.parallel_threshold_bytes)
    found = gather(config, track, fan_out=fan_out)
    labelled = _labelled(track, [row.pair.answer for row in found.all()])
    if labelled != track or config.curation.max_tokens is not None:
        found = shown_as(found, labelled, most=config.curation.max_tokens, count=count, spread=spread)
    track = labelled
    bad, equal = judged(found, config, folder=folder, say=say)
    rows, steps = curated(found, config, equal=equal)
    parts, split_steps = sides(rows, config)
    if config.few_shot:
        parts["train"], step = shown(
            parts["train"], track, k=config.few_shot, most=config.curation.max_tokens, count=count, spread=spread
        )
        split_steps.append(step)
    for name in SPLITS:
        lines = (json.dumps(row, ensure_ascii=False) for row in parts[name])
        read.check(lines, name=f"{_named(config)} ({name})", track=track)
    for name in SPLITS:
        storage.write_jsonl(folder / f"{name}.jsonl", ({k: row[k] for k in row if k != "split"} for row in parts[name]))
    write_track(folder, track)
    prepared = Prepared(
        folder=folder, track=track.name, rows={name: len(parts[name]) for name in SPLITS}, digest=digest,
        steps=(*steps, *split_steps), bad=bad,
    )  # fmt: skip
    storage.write_json(folder / SUMMARY, _written(prepared, config, found.skipped))
    return prepared


def examples_in(path: str | Path, track_name: str) -> list[Example]:
    """The examples of one prepared (or hand-made) JSONL file."""
    lines = storage.read_lines(path)
    return read.examples(lines, name=str(path), track=open_track(track_name, beside=path))


def _digest(config: PrepareConfig, track: Track) -> str:
    marks = [fingerprint(source) for names in sources(config).values() for source in names]
    settings = json.dumps(
        [config.model_dump(mode="json", exclude=_INCIDENTAL), definition(track), marks], sort_keys=True
    )
    return hashlib.sha256(settings.encode()).hexdigest()


def _finished(folder: Path, digest: str) -> Prepared | None:
    summary = folder / SUMMARY
    if not summary.exists():
        return None
    found = storage.read_json(summary)
    files = [TRACK_FILE, *(f"{name}.jsonl" for name in SPLITS)]
    if found.get("digest") != digest or not all((folder / name).exists() for name in files):
        return None
    steps = tuple(Step(**step) for step in found["steps"])
    return Prepared(
        folder=folder, track=found["track"], rows=found["rows"], digest=digest, steps=steps, bad=found["bad"]
    )


def _labelled(track: Track, answers: Sequence[str]) -> Track:
    """The track with the labels of its rows, where it classifies and does not say which labels there are."""
    if track.labels or "classify" not in track.scorers:
        return track
    found = dataclasses.replace(track, labels=tuple(sorted(set(answers))))
    check(found)
    return found


def _written(prepared: Prepared, config: PrepareConfig, skipped: int) -> dict[str, Any]:
    return {
        "digest": prepared.digest,
        "rows": dict(prepared.rows),
        "source": _named(config),
        "track": prepared.track,
        "steps": [{"name": s.name, "kept": s.kept, "dropped": s.dropped, "note": s.note} for s in prepared.steps],
        "bad": dict(prepared.bad or {}),
        "skipped": skipped,
    }


def _named(config: PrepareConfig) -> str:
    names = [source for names in sources(config).values() for source in names]
    return ", ".join(Path(name).name if "://" not in name else name for name in names)
