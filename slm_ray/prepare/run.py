"""Ingest, curate, split, check and write: the steps of one preparation in their order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray import storage
from slm_ray.command import output_folder
from slm_ray.config import PrepareConfig
from slm_ray.corpus import formats, read
from slm_ray.corpus.filters import Step
from slm_ray.corpus.tracks import Track, definition
from slm_ray.encoders import check_retriever
from slm_ray.errors import ConfigError
from slm_ray.parallel import Executor, LocalExecutor
from slm_ray.prepare.curate import curated
from slm_ray.prepare.demonstrations import with_demonstrations
from slm_ray.prepare.ingest import Log, TokenCounter, ingest, left_out, shown_by, sources, without_long
from slm_ray.prepare.live import is_live, live_fingerprint, without_held_back
from slm_ray.prepare.splits import SPLITS, Splits, splits
from slm_ray.remote import shown_address
from slm_ray.scoring.run import check
from slm_ray.sources import fingerprint
from slm_ray.tasks import TRACK_FILE, Dataset, open_dataset, open_track, write_track

SUMMARY = "prepare.json"
_INCIDENTAL = {"out_dir"}  # where to, not what


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

    def dataset(self, split_name: str) -> Dataset:
        """The examples of one split, read again."""
        return open_dataset(self.path(split_name), self.track)

    def summary(self) -> str:
        """What was done, one line per step, then per split."""
        bad = self.bad or {}
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(bad.items()))
        lines = [f"bad rows: {sum(bad.values()):,} left out ({kinds})"] if bad else []
        lines += [str(step) for step in self.steps if step.dropped or step.note or step.name == "split"]
        lines.append(f"track {self.track}, no question in two files:")
        return "\n".join(
            lines
            + [f"  {name:<11}{rows:>9,} rows  {shown_address(self.path(name))}" for name, rows in self.rows.items()]
        )


def prepare(
    config: PrepareConfig, *, token_counter: TokenCounter | None = None, log: Log = lambda _: None,
    executor: Executor | None = None,
) -> Prepared:  # fmt: skip
    """Read, parse, curate, split, check and write; what was written before is kept when nothing has changed.

    `token_counter` gives an example's tokens, which `max_tokens` needs; `log` is told the table of bad rows; `executor`
    reads several large files at once, and counts tokens and looks for demonstrations of many rows. Raises DataError with
    file:line for rows that cannot be used, and ConfigError for settings that contradict each other and for an `out_dir`
    that cannot be written, before anything is read.
    """
    track, most, executor = open_track(config.track), config.curation.max_tokens, executor or LocalExecutor()
    formats.check(config.format, track)
    if most is not None and token_counter is None:
        raise ConfigError("curation.max_tokens needs a tokenizer; set `base` to the base model's folder")
    if config.few_shot:
        check_retriever(config.retriever)
    output_folder(config.out_dir, setting="out_dir")
    folder = Path(config.out_dir)
    digest = _digest(config, track)
    if (done := _finished(folder, digest)) is not None:
        return done
    ingested = ingest(config, track, executor)
    labelled = _labelled(track, [row.target for row in ingested.all()])
    if labelled != track:
        track, ingested = labelled, shown_by(labelled, ingested)
    if most is not None and token_counter is not None:
        ingested = without_long(ingested, most=most, token_counter=token_counter, executor=executor)
    bad, equal = left_out(ingested, config, folder=folder, log=log)
    rows, steps = curated(ingested, config, equal=equal)
    found, split_steps = splits(rows, config, ingested.trains_only)
    if ingested.held_back:
        found["train"], step = without_held_back(found["train"], ingested.held_back)
        split_steps.append(step)
    if config.few_shot:
        found["train"], step = with_demonstrations(
            found["train"], track, k=config.few_shot, retriever=config.retriever, beside=folder / "train.jsonl", most=most,
            token_counter=token_counter, executor=executor,
        )  # fmt: skip
        split_steps.append(step)
    _write(folder, found, track, _named(config))
    prepared = Prepared(
        folder=folder, track=track.name, rows={name: len(found[name]) for name in SPLITS}, digest=digest,
        steps=(*steps, *split_steps), bad=bad,
    )  # fmt: skip
    storage.write_json(folder / SUMMARY, _written(prepared, config, ingested.skipped))
    return prepared


def _write(folder: Path, found: Splits, track: Track, source: str) -> None:
    """The files of examples and the track, once all rows are seen to be read back."""
    for name in SPLITS:
        lines = (json.dumps(row.as_row(), ensure_ascii=False) for row in found[name])
        read.check(lines, name=f"{source} ({name})", track=track)
    for name in SPLITS:
        storage.write_jsonl(folder / f"{name}.jsonl", (row.as_row() for row in found[name]))
    write_track(folder, track)


def _digest(config: PrepareConfig, track: Track) -> str:
    named = [source for names in sources(config).values() for source in names]
    marks = [live_fingerprint(source) if is_live(source) else fingerprint(source) for source in named]
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
