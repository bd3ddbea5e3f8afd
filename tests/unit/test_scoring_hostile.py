"""Answers that no model should give: every scorer ends in a time that grows with the length alone, and raises on none."""

import time

import pytest

from slm_ray.corpus.tracks import Track
from slm_ray.scoring import SCORERS, score

SIZE = 200_000
LIMIT_S = 12.0  # of one busy core, all texts together; a scorer with a square in it takes hours


def texts(size: int) -> list[str]:
    return [
        "[" * size, "[" * (size // 2) + "]" * (size // 2), '{"a":' * (size // 5), "9" * size, "1/" * (size // 2),
        "####" * (size // 4), "\\boxed{" * (size // 7), "\\boxed{" + "{}" * (size // 2), '"' * size, "-" * size,
        "<think>" * (size // 7), "<think>" + "</reasoning>" * (size // 12), "```\n" * (size // 4), "👩‍👩‍👧\u2028" * (size // 20),
        "{" + ",".join(f'"a":{n}' for n in range(size // 10)) + "}", "1,234," * (size // 6), "Score: 5\n" * (size // 9),
        '<tool_call name="f">' * (size // 20), "\ud800" * size, "1e400", '{"a": 1e400, "a": -1e400}', "\x00",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SCORERS)
def test_no_answer_hangs_a_scorer(name: str) -> None:
    track = Track(
        name=name, system="", scorers=(name,), primary="", core=(), strip=("fences", "reasoning"),
        labels=("a", "b") if name == "classify" else (),
        answer_schema={"type": "object", "additionalProperties": {"type": "number"}} if name == "schema" else None,
    )  # fmt: skip
    started = time.process_time()
    for text in texts(SIZE // 20 if SCORERS[name].slow else SIZE):
        found = score(track, "x", text, '{"a": 18}')
        assert all(part.value is None or 0 <= part.value <= 1 for part in found.scores)
    assert time.process_time() - started < LIMIT_S


def test_ten_megabytes_of_json_are_scored() -> None:
    track = Track(name="s", system="", scorers=("structured",), primary="", core=())
    text = "[" + ",".join(f'{{"k{n}": "{"v" * 90}"}}' for n in range(100_000)) + "]"
    assert len(text) > 10_000_000
    started = time.process_time()
    assert score(track, "x", text, text).value("exact_match") == 1.0
    assert time.process_time() - started < LIMIT_S
