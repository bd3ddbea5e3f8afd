"""What stripping takes off, what it leaves alone, and that it happens only when the track says so."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.tracks import TRACKS
from slm_ray.scoring import score
from slm_ray.scoring.strip import strip

BOTH = ("reasoning", "fences")
JSON = '{"a": 1}'


@pytest.mark.parametrize(
    ("text", "left", "notes"),
    [
        (JSON, JSON, ()),
        (f" {JSON}\n", f" {JSON}\n", ()),
        (f"```json\n{JSON}\n```", JSON, ("stripped_fences",)),
        (f"\n```\n{JSON}\n```\n", JSON, ("stripped_fences",)),
        (f"~~~~json\n{JSON}\n~~~~", JSON, ("stripped_fences",)),
        ("```\na\n\nb\n```", "a\n\nb", ("stripped_fences",)),
        ("```\n```", "", ("stripped_fences",)),
        ("```\na\n`````", "a", ("stripped_fences",)),
        ("````\n```\na\n```\n````", "```\na\n```", ("stripped_fences",)),
        ("````\na\n```", "````\na\n```", ()),
        ("```\na```", "```\na```", ()),
        ("```json `\na\n```", "```json `\na\n```", ()),
        ("```\na\n```\nand\n```\nb\n```", "```\na\n```\nand\n```\nb\n```", ()),
        (f"Here it is:\n```json\n{JSON}\n```", f"Here it is:\n```json\n{JSON}\n```", ()),
        (f"```json\n{JSON}\n```\nDone.", f"```json\n{JSON}\n```\nDone.", ()),
        (f"```json {JSON} ```", f"```json {JSON} ```", ()),
        (f"```json\n{JSON}", f"```json\n{JSON}", ()),
        (f"<think>hm\n\nno</think>\n\n{JSON}", JSON, ("stripped_reasoning",)),
        (f"<THINK></THINK>{JSON}", JSON, ("stripped_reasoning",)),
        (f"<reasoning>a</reasoning><think>b</think>{JSON}", JSON, ("stripped_reasoning",)),
        (f"<think>a</reasoning>b</think>{JSON}", JSON, ("stripped_reasoning",)),
        (f"template began</think>{JSON}", JSON, ("stripped_reasoning",)),
        ("<think>never ends, 18", "", ("stripped_reasoning",)),
        ('{"a": "<think>x</think>"}', '{"a": "<think>x</think>"}', ()),
        (f"<think>a</think>\n```json\n{JSON}\n```", JSON, ("stripped_reasoning", "stripped_fences")),
        (f"```\n<think>a</think>{JSON}\n```", f"<think>a</think>{JSON}", ("stripped_fences",)),
        ("<thinking>aloud</thinking>", "<thinking>aloud</thinking>", ()),
        (None, None, ()),
    ],
)
def test_what_is_taken_off(text: str | None, left: str | None, notes: tuple[str, ...]) -> None:
    assert strip(text, BOTH) == (left, notes)
    assert strip(text, BOTH[::-1]) == (left, notes)
    assert strip(text, ()) == (text, ())


def test_only_the_named_thing_is_taken_off() -> None:
    text = f"<think>a</think>```\n{JSON}\n```"
    assert strip(text, ("reasoning",)) == (f"```\n{JSON}\n```", ("stripped_reasoning",))
    assert strip(text, ("fences",)) == (text, ())


def test_a_track_strips_predictions_and_never_references() -> None:
    plain = TRACKS["structured"]
    lenient = dataclasses.replace(plain, strip=("fences",))
    fenced = f"```json\n{JSON}\n```"
    assert score(plain, "r", fenced, JSON).issues == ("prediction_not_valid_json",)
    row = score(lenient, "r", fenced, JSON)
    assert (row.value("exact_match"), row.issues) == (1.0, ("stripped_fences",))
    assert score(lenient, "r", JSON, fenced).value("exact_match") == 0.0
    assert score(lenient, "r", None, JSON).value("exact_match") == 0.0


PIECES = ("<think>", "</think>", "<reasoning>", "</reasoning>", "```", "\n", "a", " ")


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_reasoning_leaves_the_tail_of_the_text_and_says_so(text: str) -> None:
    left, notes = strip(text, ("reasoning",))
    assert left is not None
    assert text.endswith(left)
    assert notes == (("stripped_reasoning",) if left != text else ())
    assert left == "" or left == text or text.removesuffix(left).rstrip().endswith(("</think>", "</reasoning>"))


@given(st.text(alphabet=st.characters(codec=None)) | st.lists(st.sampled_from(PIECES)).map("".join))
def test_a_fence_around_a_text_without_one_is_undone(text: str) -> None:
    assert strip(text, BOTH[1:])[0] in (text, "\n".join(text.strip().split("\n")[1:-1]))
    if "```" not in text:
        assert strip(f"```json\n{text}\n```", ("fences",)) == (text, ("stripped_fences",))


HOSTILE = {
    "spaces": "```\n" + " " * 1_000_000 + "x",
    "lines": "```\n" * 300_000 + "x",
    "marks": "`" * 1_000_000 + "\n" + "`" * 999_999,
    "blocks": "<think></think>" * 100_000 + "x",
    "openings": "<think>" * 300_000,
    "other closings": "<think>" + "</reasoning>" * 300_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_quick(name: str) -> None:
    started = time.monotonic()
    left, _ = strip(HOSTILE[name], BOTH)
    assert left in (HOSTILE[name], "x", "")
    assert time.monotonic() - started < 10
