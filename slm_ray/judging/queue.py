"""Which answers people label, in which order and on which side, drawn and written down before anybody has labelled one.

The queue is the declaration of a judged verdict: it fixes the two models, the margin and at how many labels one may look.
Labels name the queue that they were given to, so that another margin, another order or other answers want fresh labels.
Every prefix of it is a random sample of the units (groups, or rows that have none); what was labelled out of order waits
until the rows before it are labelled. Which model stands on which side is drawn for each row and not in the page.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_ray import storage
from slm_ray.config import JudgeConfig
from slm_ray.errors import ConfigError
from slm_ray.page.labelling import PairToLabel, label_page
from slm_ray.records import SCHEMA_VERSION, RowResult
from slm_ray.reports.encoding import check_version, decode, encode
from slm_ray.verdict.prediction_powered import LEAST_LABELS

QUEUE, PAGE = "queue.json", "label.html"
_FRESH = "judge into another run_dir and label there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What was fixed before the first label. `units` are the ids of each unit's rows in their order.

    `looks` are the numbers of labelled units at which the verdict is made. `answers` is the digest of what both models
    said, `asked` that of how the judge is asked: to try judges until one suits would be to test many times.
    """

    llm: str
    slm: str
    judge: str
    asked: str
    delta: float
    looks: tuple[int, ...]
    seed: int
    answers: str
    units: tuple[tuple[str, ...], ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """What labels name it by."""
        return hashlib.sha256(repr(encode(self)).encode()).hexdigest()[:16]

    def slm_first(self, row_id: str) -> bool:
        """Whether answer A of the row is the SLM's."""
        return random.Random(f"side {self.seed} {self.answers} {row_id}").random() < 0.5


def kept_queue(config: JudgeConfig, rows: Sequence[RowResult], *, asked: str = "") -> Queue:
    """The queue of the run directory, drawn now where there is none; ConfigError when it was drawn for something else."""
    if config.looks[0] < LEAST_LABELS:
        raise ConfigError(
            f"looks: {config.looks[0]} labels are too few for bounds that hold; look from {LEAST_LABELS} on"
        )
    drawn = _drawn(config, rows, asked)
    path = Path(config.run_dir) / QUEUE
    if not path.exists():
        storage.write_json(path, encode(drawn))
        return drawn
    plain = storage.read_json(path)
    check_version(plain, where=str(path), fix=_FRESH)
    kept = decode(plain, Queue, where=str(path), fix=_FRESH)
    for name in ("llm", "slm", "judge", "delta", "looks", "seed"):
        before, now = getattr(kept, name), getattr(drawn, name)
        if before != now:
            raise ConfigError(
                f"{path}: {name} was declared as {before!r} before the first label and is {now!r} now; set it back, or"
                f" {_FRESH}"
            )
    if kept.asked != drawn.asked:
        raise ConfigError(
            f"{path}: rubric, show_target or a generation setting is another than before the first label; set it back, or"
            f" {_FRESH}"
        )
    if kept != drawn:
        raise ConfigError(f"{path}: was drawn for other answers than those of {config.report}; {_FRESH}")
    return kept


def write_page(config: JudgeConfig, queue: Queue, rows: Sequence[RowResult], *, note: str = "") -> Path:
    """The page on which people label, as far as the last look goes; its path. `note` says how far the labels are."""
    known = {row.id: row for row in rows}
    pairs: list[PairToLabel] = []
    looks = []
    for place, unit in enumerate(queue.units[: queue.looks[-1]], start=1):
        pairs += [pair for key in unit if (pair := _pair(config, queue, known[key])) is not None]
        if place in queue.looks:
            looks.append(len(pairs))
    path = Path(config.run_dir) / PAGE
    storage.write_text(path, label_page(pairs, queue=queue.key, rubric=config.rubric, looks=looks, note=note))
    return path


def _pair(config: JudgeConfig, queue: Queue, row: RowResult) -> PairToLabel | None:
    """What a person is shown of a row; None where an answer is missing, which has lost without being asked."""
    llm, slm = (row.models[spec].text for spec in (queue.llm, queue.slm))
    if llm is None or slm is None:
        return None
    first, second = (slm, llm) if queue.slm_first(row.id) else (llm, slm)
    prompt = "\n\n".join(turn.content for turn in row.prompt if turn.role != "system")
    return PairToLabel(
        id=row.id, prompt=prompt, target=row.target if config.show_target else None, first=first, second=second
    )


def _drawn(config: JudgeConfig, rows: Sequence[RowResult], asked: str) -> Queue:
    llm, slm = config.pair
    units: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row.id):
        units.setdefault(f"row {row.id}" if row.group is None else f"group {row.group}", []).append(row.id)
    said = [(row.id, row.prompt_hash, row.models[llm].text, row.models[slm].text) for row in rows]
    answers = hashlib.sha256(repr(sorted(said, key=lambda one: one[0])).encode()).hexdigest()[:16]
    order = [tuple(ids) for ids in units.values()]
    seed = config.generation.seed
    random.Random(f"order {seed} {answers}").shuffle(order)
    return Queue(
        llm=llm, slm=slm, judge=config.judge, asked=asked, delta=config.delta, looks=tuple(dict.fromkeys(min(look, len(order)) for look in config.looks)),
        seed=seed, answers=answers, units=tuple(order),
    )  # fmt: skip
