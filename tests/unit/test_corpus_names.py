"""Tracks, prompts, hashes and demonstrations."""

import hashlib
import json
import random
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.render import content_id, digest, prompt_hash, prompt_of
from slm_ray.corpus.retrieve import Retriever, with_demonstrations
from slm_ray.corpus.tracks import TRACKS, track
from slm_ray.errors import ConfigError
from slm_ray.types import Example, Message, Prompt

TOOLCALL = track("toolcall")


def example(text: Any, reference: Any = "r", name: Any = None) -> Any:
    prompt = prompt_of(TOOLCALL, text)
    return Example(id=name or content_id(prompt, reference), prompt=prompt, target=reference)


def test_the_tracks_of_the_house() -> None:
    assert {name: (found.primary, len(found.core)) for name, found in TRACKS.items()} == {
        "structured": ("exact_match", 5),
        "toolcall": ("args_exact", 6),
        "hermes": ("args_exact", 6),
        "gsm8k": ("number_match", 1),
        "classify": ("accuracy", 2),
        "chat": ("rouge_l", 3),
    }
    assert all(name == found.name and found.primary in found.core for name, found in TRACKS.items())
    with pytest.raises(ConfigError, match="unknown track 'structred': did you mean 'structured'"):
        track("structred")


def test_a_prompt_hash_forgets_system_spacing_and_case_only() -> None:
    prompt = prompt_of(TOOLCALL, "Add 2\nand  3")
    bare = Prompt(messages=prompt.messages[1:])
    assert prompt_hash(prompt) == prompt_hash(bare) == prompt_hash(prompt_of(TOOLCALL, " add 2 AND 3"))
    assert prompt_hash(prompt) != prompt_hash(prompt_of(TOOLCALL, "Add 2 and 4"))
    assert len(prompt_hash(prompt)) == 16


def test_content_ids_and_digests_see_every_character() -> None:
    assert content_id(prompt_of(TOOLCALL, "a"), "b") != content_id(prompt_of(TOOLCALL, "A"), "b")
    rows = [example(str(number)) for number in range(20)]
    whole = digest(rows)
    assert len(whole) == 64
    random.Random(1).shuffle(rows)
    assert digest(rows) == whole
    assert digest(rows[1:]) != whole != digest([*rows, rows[0]])
    assert digest([*rows[1:], example(rows[0].prompt.messages[-1].content, "other", rows[0].id)]) != whole


POOL = [
    example("Request: book a flight from Paris to Rome", "flight"),
    example("Request: weather in Paris tomorrow", "weather"),
    example("Request: play some jazz", "music"),
]


def test_nearest_goes_by_rare_shared_words() -> None:
    assert [shot.target for shot in Retriever(POOL).nearest("Request: weather in Oslo", 1)] == ["weather"]
    assert [shot.target for shot in Retriever(POOL).nearest("Request: a flight to Paris", 2)] == [
        "flight",
        "weather",
    ]
    assert Retriever(POOL[::-1]).nearest("Request: a flight to Paris", 3) == Retriever(POOL).nearest(
        "Request: a flight to Paris", 3
    )


def test_nearest_never_shows_the_question_itself_and_survives_the_edges() -> None:
    assert "weather" not in [shot.target for shot in Retriever(POOL).nearest("request: WEATHER in paris  tomorrow", 3)]
    assert Retriever([]).nearest("x", 3) == []
    assert Retriever(POOL).nearest("x", 0) == []
    assert len(Retriever(POOL).nearest("???", 9)) == 3


def test_demonstrations_stand_before_the_last_user_turn() -> None:
    prompt = with_demonstrations(prompt_of(TOOLCALL, "Q"), POOL[:2])
    assert [turn.role for turn in prompt.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [turn.content for turn in prompt.messages[2::2]] == ["weather", "flight"], "the best one is not next to it"
    assert prompt.messages[-1].content == "Q"
    assert with_demonstrations(prompt_of(TOOLCALL, "Q"), []) == prompt_of(TOOLCALL, "Q")


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT, TEXT)
def test_a_content_id_is_the_hash_of_compact_json(text: Any, reference: Any) -> None:
    prompt = prompt_of(TOOLCALL, text)
    plain = json.dumps([prompt.as_dicts(), reference], ensure_ascii=False, separators=(",", ":"))
    assert content_id(prompt, reference) == hashlib.sha256(plain.encode()).hexdigest()[:16]


def test_naming_a_text_leaves_no_second_copy_of_it() -> None:
    text = "ü" * 10_000
    before = sys.getsizeof(text)
    content_id(Prompt(messages=(Message(role="user", content=text),)), text)
    assert sys.getsizeof(text) == before
