"""The pretraining mixture: seeded, copyable, and free of the demo task's own prompt and answer format."""

import json
from pathlib import Path

import pytest
import yaml

from slm_ray.corpus.formats import parse
from slm_ray.corpus.tracks import TRACKS
from tools.mixture import Mixture, Turn

ROOT = Path(__file__).parents[2]
CHATS = 3000


@pytest.fixture(scope="module")
def lexicon() -> dict:
    return yaml.safe_load((ROOT / "data/pretrain/lexicon.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def chats(lexicon: dict) -> list[list[Turn]]:
    mixture = Mixture(lexicon, seed=1)
    return [mixture.sample() for _ in range(CHATS)]


def test_the_same_seed_gives_the_same_chats(lexicon: dict, chats: list[list[Turn]]) -> None:
    again = Mixture(lexicon, seed=1)
    assert [again.sample() for _ in range(200)] == chats[:200]
    other = Mixture(lexicon, seed=2)
    assert [other.sample() for _ in range(200)] != chats[:200]


def test_every_chat_ends_with_an_answer_that_is_learned(chats: list[list[Turn]]) -> None:
    for chat in chats:
        assert chat[-1].role == "assistant"
        assert chat[-1].learn
        assert all(turn.role == "assistant" for turn in chat if turn.learn)


def test_some_chats_show_demonstrations(chats: list[list[Turn]]) -> None:
    shown = [chat for chat in chats if sum(turn.role == "assistant" for turn in chat) > 1]
    assert 0.3 < len(shown) / CHATS < 0.6


def test_the_demo_tasks_format_is_not_in_the_mixture(chats: list[list[Turn]], lexicon: dict) -> None:
    text = "\n".join(turn.content for chat in chats for turn in chat)
    for word in lexicon["forbidden"]:
        assert f'"{word}"' not in text
        assert f"<{word}" not in text
    first = json.loads((ROOT / "data/tools/rows.json").read_text(encoding="utf-8"))[0]
    for track in ("structured", "toolcall"):
        parsed = parse(first, TRACKS[track])
        assert parsed is not None
        first_line = parsed.turns[-1].content.split("\n")[0]
        assert first_line not in text


def test_no_tool_of_the_demo_is_named_as_its_own_call(chats: list[list[Turn]]) -> None:
    """Names are drawn from verbs and nouns, so a few may coincide; the demo's set as a whole must stay unseen."""
    tools = {
        json.loads(row["answers"])[0]["name"]
        for row in json.loads((ROOT / "data/tools/rows.json").read_text(encoding="utf-8"))
    }
    text = "\n".join(turn.content for chat in chats for turn in chat)
    seen = {tool for tool in tools if tool in text}
    assert len(seen) / len(tools) < 0.2, sorted(seen)
