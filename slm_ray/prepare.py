"""Task rows in, three files of examples out: `train.jsonl`, `validation.jsonl`, `test.jsonl` and `prepare.json`.

The splits share no prompt, the same source and settings give the same bytes, and nothing is written before every row is
known to be good. Reads xLAM (`query`, `tools`, `answers`; JSON array or JSONL) and JSONL of `prompt`/`completion` or
`messages`. It does not filter or rebalance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray import storage
from slm_ray.config import PrepareConfig
from slm_ray.corpus import read, split, tracks, xlam
from slm_ray.errors import DataError
from slm_ray.types import Example

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What `prepare` wrote: the folder, rows per split and the digest of source and settings."""

    folder: Path
    rows: Mapping[str, int]
    digest: str

    def path(self, split_name: str) -> str:
        """The file of one split."""
        return str(self.folder / f"{split_name}.jsonl")


def prepare(config: PrepareConfig) -> Prepared:
    """Read, convert, split, check and write. Raises DataError with file:line for rows that cannot be used."""
    track = tracks.track(config.track)
    folder = Path(config.out_dir)
    text = storage.read_text(config.source)
    digest = hashlib.sha256((text + config.model_dump_json(exclude={"out_dir"})).encode()).hexdigest()
    done = _finished(folder, digest)
    if done is not None:
        return done
    rows = _rows(text, config, track)
    parts = _kept(rows, config) if config.keep_split else split.split(
        rows, validation=config.validation, test=config.test, train=config.train, seed=config.seed
    )  # fmt: skip
    for name in SPLITS:
        lines = [json.dumps(row, ensure_ascii=False) for row in parts[name]]
        read.examples(lines, name=f"{config.source} ({name})", track=track)
    for name in SPLITS:
        storage.write_jsonl(folder / f"{name}.jsonl", [{k: row[k] for k in row if k != "split"} for row in parts[name]])
    counts = {name: len(parts[name]) for name in SPLITS}
    storage.write_json(
        folder / "prepare.json",
        {"digest": digest, "rows": counts, "source": Path(config.source).name, "track": track.name},
    )
    return Prepared(folder=folder, rows=counts, digest=digest)


def examples_in(path: str | Path, track_name: str) -> list[Example]:
    """The examples of one prepared (or hand-made) JSONL file."""
    lines = storage.read_lines(path)
    return read.examples(lines, name=str(path), track=tracks.track(track_name))


def _finished(folder: Path, digest: str) -> Prepared | None:
    summary = folder / "prepare.json"
    if not summary.exists():
        return None
    found = storage.read_json(summary)
    if found.get("digest") != digest or not all((folder / f"{name}.jsonl").exists() for name in SPLITS):
        return None
    return Prepared(folder=folder, rows=found["rows"], digest=digest)


def _rows(text: str, config: PrepareConfig, track: Any) -> list[dict[str, Any]]:
    lines = storage.split_lines(text)
    if text.lstrip().startswith("[") or _is_xlam(lines):
        return xlam.rows_to_pairs(text, name=config.source, track=track.name)
    read.examples(lines, name=config.source, track=track)
    return [json.loads(line) for line in lines if line.strip()]


def _is_xlam(lines: list[str]) -> bool:
    first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and {"query", "tools", "answers"} <= row.keys()


def _kept(rows: list[dict[str, Any]], config: PrepareConfig) -> dict[str, list[dict[str, Any]]]:
    parts = split.keep(rows, name=config.source)
    asked = {"train": config.train, "validation": config.validation, "test": config.test}
    for name, wanted in asked.items():
        if wanted is not None and len(parts[name]) < wanted:
            raise DataError(
                f"{config.source}: asked for {wanted} {name} rows, the file has {len(parts[name])}; set `{name}` lower"
            )
    return {name: parts[name][: asked[name]] for name in SPLITS}
