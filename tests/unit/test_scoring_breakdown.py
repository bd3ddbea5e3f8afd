"""What a report says of a model's errors: worst slices first, labels beside each other, bounded whatever the rows."""

from __future__ import annotations

import dataclasses
import json
import random

from slm_ray.corpus.tracks import TRACKS
from slm_ray.records import Breakdown, LabelFigures
from slm_ray.reports.encoding import encode
from slm_ray.scoring import score, summarise
from slm_ray.scoring.breakdown import LABELS, LENGTH, SLICES_PER_TAG, TAGS, breakdown
from slm_ray.scoring.labels import OUTSIDE

CLASSIFY = dataclasses.replace(TRACKS["classify"], labels=("ale", "stout", "wine"))
TOOLCALL = TRACKS["toolcall"]


def call(name: str, value: int) -> str:
    return f'<tool_call name="{name}">{{"a":{value}}}</tool_call>'


def test_slices_are_by_tag_and_by_length_the_worst_first() -> None:
    rows = [score(TOOLCALL, f"r{n}", call("f", n % 3 % 2), call("f", 0)) for n in range(60)]
    tags = {f"r{n}": {"tool": f"t{n % 3}", "row": str(n)} for n in range(60)}
    words = {f"r{n}": 1 + n // 30 * 10 for n in range(60)}
    found = breakdown(TOOLCALL, rows, tags, words)
    tool, length = found.slices
    assert (tool.tag, tool.values, [part.value for part in tool.worst]) == ("tool", 3, ["t1", "t0", "t2"])
    assert [part.n for part in tool.worst] == [20, 20, 20]
    assert tool.worst[0].metrics["args_exact"] == 0.0
    wrong = [row for row in rows if tags[row.example_id]["tool"] == "t1"]
    assert tool.worst[0].metrics == {name: summarise(TOOLCALL, wrong)[name] for name in ("args_exact", *TOOLCALL.core)}
    assert (length.tag, [(part.value, part.n) for part in length.worst]) == (
        LENGTH,
        [("1 to 1", 30), ("11 to 11", 30)],
    )
    assert [(group.issue, group.tag, group.value, group.n) for group in found.errors] == [
        ("arguments_mismatch", "", "", 20), ("arguments_mismatch", "tool", "t1", 20),
    ]  # fmt: skip
    assert [row.id for row in found.worst] == sorted(row.example_id for row in wrong)[:10]
    assert found.stripped == {}
    assert found.labels is None


def test_labels_have_figures_and_a_matrix_without_zeros() -> None:
    answers = [("ale", "ale"), ("stout", "ale"), ("mead", "ale"), (None, "stout"), ("stout", "stout")]
    rows = [score(CLASSIFY, str(n), given, wanted) for n, (given, wanted) in enumerate(answers)]
    found = breakdown(CLASSIFY, rows, {}, dict.fromkeys("01234", 3)).labels
    assert (found.count, found.outside) == (3, 2)
    assert found.confusion == {
        "ale": {"ale": 1, "stout": 1, OUTSIDE: 1},
        "stout": {"stout": 1, OUTSIDE: 1},
        "wine": {},
    }
    assert found.classes[0] == LabelFigures(label="ale", precision=1.0, recall=1 / 3, f1=0.5, support=3)


def test_what_was_stripped_is_counted_and_no_error() -> None:
    track = dataclasses.replace(CLASSIFY, strip=("fences",))
    rows = [score(track, "a", "```\nale\n```", "ale"), score(track, "b", "ale", "ale")]
    found = breakdown(track, rows, {}, {"a": 1, "b": 1})
    assert (found.stripped, found.errors, found.worst) == ({"stripped_fences": 1}, (), ())


def test_the_size_is_bounded_and_the_order_of_rows_is_nothing() -> None:
    labels = tuple(f"label {n}" for n in range(300))
    track = dataclasses.replace(CLASSIFY, labels=labels)
    chance = random.Random(3)
    rows = [score(track, f"r{n}", chance.choice(labels), labels[n % 300]) for n in range(6000)]
    tags = {f"r{n}": {f"tag {t}": f"v{chance.randrange(1000)}" for t in range(30)} for n in range(6000)}
    words = {f"r{n}": chance.randrange(200) for n in range(6000)}
    found = breakdown(track, rows, tags, words)
    assert len(found.slices) == TAGS + 1
    assert all(len(part.worst) <= SLICES_PER_TAG for part in found.slices)
    assert (found.labels.count, len(found.labels.classes), len(found.labels.confusion)) == (
        300,
        LABELS,
        LABELS,
    )
    assert len(json.dumps(encode(found))) < 120_000
    chance.shuffle(rows)
    assert breakdown(track, rows, tags, words) == found


def test_nothing_wrong_and_nothing_at_all() -> None:
    rows = [score(TOOLCALL, "a", call("f", 0), call("f", 0))]
    assert breakdown(TOOLCALL, rows, {}, {"a": 4}) == Breakdown()
    assert breakdown(CLASSIFY, [], {}, {}).labels.outside == 0
