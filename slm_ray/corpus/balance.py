"""How many rows of each kind, and in which order: caps and balance per class, sources mixed by weight, curricula.

Rows are only left out, never repeated (ids stay unique, and a repeated row would count twice). Which rows go is decided
by a hash of seed and id, so it depends neither on the file's order nor on the rows around.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from slm_ray.corpus.filters import Row, Step
from slm_ray.corpus.unicode_text import question, words
from slm_ray.errors import ConfigError, DataError, choices
from slm_ray.types import Example

SOURCE = "source"


def cap(examples: Sequence[Row], *, most: int, tag: str | None = None, seed: int = 42) -> tuple[list[Row], Step]:
    """At most `most` rows of each class, in their order. A class is a value of `tag`, or of the answer without a tag."""
    if most < 1:
        raise ConfigError(f"at most {most} rows of each class leaves none; give 1 or more")
    classes = _classes(examples, tag)
    drawn = {
        example.id
        for members in classes.values()
        for example in sorted(members, key=lambda member: _hash(seed, member.id))[:most]
    }
    kept = [example for example in examples if example.id in drawn]
    over = sum(len(members) > most for members in classes.values())
    largest = max(map(len, classes.values()), default=0)
    note = f"{over:,} of {len(classes):,} classes had over {most:,} rows, the largest {largest:,}" if over else ""
    return kept, Step(name="cap", kept=len(kept), dropped=len(examples) - len(kept), note=note)


def balance(
    examples: Sequence[Row], *, tag: str | None = None, ratio: float = 1.0, seed: int = 42
) -> tuple[list[Row], Step]:
    """No class with more than `ratio` (1 or more) times the rows of the smallest; classes as in `cap`."""
    if ratio < 1:
        raise ConfigError(f"a ratio of {ratio:g} is below 1; the largest class cannot be below the smallest")
    if not examples:
        return [], Step(name="balance", kept=0, dropped=0)
    classes = _classes(examples, tag)
    rarest = min(classes, key=lambda name: (len(classes[name]), name))
    kept, step = cap(examples, most=int(len(classes[rarest]) * ratio), tag=tag, seed=seed)
    note = f"{len(classes):,} classes, the smallest is {rarest[:40]!r} with {len(classes[rarest]):,} rows"
    return kept, replace(step, name="balance", note=note)


def mix(
    sources: Mapping[str, Sequence[Row]], weights: Mapping[str, float], *, rows: int | None = None, seed: int = 42
) -> tuple[list[Row], Step]:
    """`rows` rows of several sources in proportion to their weights, interleaved; None: as many as the sources allow.

    Ids become `SOURCE/ID`, since two files often count alike, and each row gets the tag `source`. Raises ConfigError
    for a source without a positive weight, and DataError for one with too few rows or none.
    """
    _check_weights(sources, weights)
    total = _largest(sources, weights) if rows is None else rows
    quotas = apportion(total, weights)
    mixed: list[Row] = []
    for name, found in sources.items():
        if quotas[name] > len(found):
            raise DataError(
                f"source {name!r} has {len(found):,} rows and its weight asks for {quotas[name]:,} of {total:,}; "
                f"ask for at most {_largest(sources, weights):,} rows or lower its weight"
            )
        drawn = sorted(found, key=lambda example: _hash(seed, example.id))[: quotas[name]]
        mixed += [replace(row, id=f"{name}/{row.id}", tags={**row.tags, SOURCE: name}) for row in drawn]
    mixed.sort(key=lambda example: _hash(seed, example.id))
    note = ", ".join(f"{name}: {quotas[name]:,} of {len(found):,}" for name, found in sources.items())
    dropped = sum(map(len, sources.values())) - len(mixed)
    return mixed, Step(name="mix", kept=len(mixed), dropped=dropped, note=note)


def shortest_first(examples: Sequence[Row]) -> tuple[list[Row], Step]:
    """A curriculum by length: fewest words of question and answer first, ties by id."""
    ordered = sorted(examples, key=lambda row: (len(words(question(row))) + len(words(row.target)), row.id))
    return ordered, Step(name="order", kept=len(ordered), dropped=0, note="shortest first")


def by_source(examples: Sequence[Row], order: Sequence[str]) -> tuple[list[Row], Step]:
    """A curriculum by the tag `source`: in the order of `order`, each source in its own order.

    Raises ConfigError when `order` does not name exactly the sources there are.
    """
    there = {example.tags.get(SOURCE, "") for example in examples}
    if set(order) != there or len(order) != len(there):
        raise ConfigError(
            f"the order names the sources {', '.join(order) or 'none'}; name each of these once: "
            f"{', '.join(sorted(there)) or 'none'}"
        )
    place = {name: position for position, name in enumerate(order)}
    ordered = sorted(examples, key=lambda example: place[example.tags.get(SOURCE, "")])
    return ordered, Step(name="order", kept=len(ordered), dropped=0, note=", then ".join(order))


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`total` in whole parts proportional to `weights`: largest remainders (Hamilton's method), ties by name."""
    everything = sum(weights.values())
    exact = {name: total * weight / everything for name, weight in weights.items()}
    parts = {name: int(share) for name, share in exact.items()}
    ranked = sorted(exact, key=lambda name: (parts[name] - exact[name], name))
    for name in ranked[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


def tag_error(tag: str, tags: Counter[str]) -> DataError:
    """What to say when no row has `tag`; `tags` counts those that rows have."""
    return DataError(f"no row has the tag {tag!r}; {choices(tag, tags) if tags else 'no row has any tag'}")


def _classes(examples: Sequence[Row], tag: str | None) -> dict[str, list[Row]]:
    """Examples by class; those without the tag are a class of their own."""
    if tag is not None and examples and not any(tag in example.tags for example in examples):
        raise tag_error(tag, Counter(name for example in examples for name in example.tags))
    classes: dict[str, list[Row]] = {}
    for example in examples:
        name = example.target.strip() if tag is None else example.tags.get(tag, "")
        classes.setdefault(name, []).append(example)
    return classes


def _check_weights(sources: Mapping[str, Sequence[Example]], weights: Mapping[str, float]) -> None:
    for name in weights:
        if name not in sources:
            raise ConfigError(f"there is a weight for the unknown source {name!r}: {choices(name, sources)}")
    for name in sources:
        if not 0 < weights.get(name, 0) < math.inf:
            raise ConfigError(f"source {name!r} has the weight {weights.get(name)}; give a number above 0")
        if not sources[name]:
            raise DataError(f"source {name!r} has no rows; leave it out")


def _largest(sources: Mapping[str, Sequence[Example]], weights: Mapping[str, float]) -> int:
    """About the most rows that can be mixed before a source runs dry."""
    everything = sum(weights.values())
    total = round(min(len(found) * everything / weights[name] for name, found in sources.items()))
    while any(part > len(sources[name]) for name, part in apportion(total, weights).items()):
        total -= 1
    return total


def _hash(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
