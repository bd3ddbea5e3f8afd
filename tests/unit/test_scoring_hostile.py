"""Answers that no model should give: every scorer ends in a time that grows with the length alone, and raises on none."""

import json
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


def long_answers(size: int) -> dict[str, str]:
    """What a model that does not stop may say, and an answer that is right in form."""
    flat = "{" + ",".join(f'"k{n}":{n}' for n in range(size // 15)) + "}"
    return {
        "prose": " ".join(f"word{n * n % 9973}" for n in range(size // 9)), "one character": "a" * size,
        "brackets": "[" * size, "digits": "7" * size, "numbers": "1 " * (size // 2), "quotes": '"' * size,
        "full stops": "." * size, "fractions": "\u00bd" * size, "flat JSON": flat,
        "JSON": json.dumps([{f"k{n}": "v" * 90} for n in range(size // 104)]),
        "call": f'<tool_call name="f">{flat}</tool_call>',
        "hermes": f'<tool_call>{{"name": "f", "arguments": {flat}}}</tool_call>',
    }  # fmt: skip


def of(name: str) -> Track:
    return Track(
        name=name, system="", scorers=(name,), primary="", core=(), strip=("fences", "reasoning"),
        labels=("a", "b") if name == "classify" else (),
        answer_schema={"type": "object", "additionalProperties": {"type": "number"}} if name == "schema" else None,
    )  # fmt: skip


@pytest.mark.parametrize("name", SCORERS)
def test_no_answer_hangs_a_scorer(name: str) -> None:
    track = of(name)
    started = time.process_time()
    for text in texts(SIZE):
        found = score(track, "x", text, '{"a": 18}')
        assert all(part.value is None or 0 <= part.value <= 1 for part in found.scores)
    assert time.process_time() - started < LIMIT_S


@pytest.mark.parametrize("name", SCORERS)
def test_a_megabyte_is_scored_in_seconds_and_leaves_little(name: str) -> None:
    track = of(name)
    score(track, "x", "1", '{"a": 18}')  # what is loaded once
    for kind, text in long_answers(1_000_000).items():
        started = time.process_time()
        row = score(track, "x", text, '{"a": 18}')
        took_s = time.process_time() - started
        assert took_s < 5, f"{kind}: {took_s:.1f} s"
        assert sum(len(str(fact)) for fact in row.facts.values()) < 5000, kind


def test_an_answer_beyond_a_million_characters_is_compared_by_its_beginning() -> None:
    track = of("text")
    answer = "the cat sat on the mat " * 20
    short, long = (score(track, "x", answer + "." * dots, answer) for dots in (999_000, 3_000_000))
    for name in ("rouge_1", "rouge_2", "rouge_l"):
        assert short.value(name) == long.value(name) == 1.0
    assert 0 < (long.value("chrf") or 0) < 0.1
    whole = score(track, "x", "a" * 1_100_000, "a" * 1_100_000)
    assert whole.value("chrf") == whole.value("edit_similarity") == whole.value("rouge_l") == 1.0
    again = score(track, "x", answer + " " * 2_000_000 + "dog", answer)
    assert (again.value("exact_text"), again.value("normalised_text")) == (0.0, 0.0)
    assert (again.value("token_f1") or 0) < 1 and again.facts["prediction_words"] == 121


def test_ten_megabytes_of_json_are_scored() -> None:
    track = Track(name="s", system="", scorers=("structured",), primary="", core=())
    text = "[" + ",".join(f'{{"k{n}": "{"v" * 90}"}}' for n in range(100_000)) + "]"
    assert len(text) > 10_000_000
    started = time.process_time()
    assert score(track, "x", text, text).value("exact_match") == 1.0
    assert time.process_time() - started < LIMIT_S
