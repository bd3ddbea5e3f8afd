"""A base's chat template as it is rendered everywhere: system turns arrive, dates stand still, refusals are explained."""

from __future__ import annotations

import datetime
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from slm_ray import chat_template
from slm_ray.chat_template import PINNED_DATE, decide, served_template
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.retrieve import DEMONSTRATIONS
from slm_ray.corpus.tracks import track
from slm_ray.errors import ConfigError, DataError, ModelError
from slm_ray.training import rows
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.parity import prompt_and_answer
from slm_ray.types import Example, Message, Prompt
from tests.bases import TINY_BASE, Family, make_base

SYSTEM, ASKED, SAID, MORE = (
    {"role": role, "content": text}
    for role, text in (("system", "Be brief.\n"), ("user", "One?"), ("assistant", "1"), ("user", "Two?"))
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: make_base(root / family, family=family) for family in get_args(Family)}


def served_ids(base: Path, messages: list[dict[str, str]]) -> list[int]:
    """What an engine sees that opens the base itself and renders with the text that it is handed."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    out = tokenizer.apply_chat_template(
        messages, chat_template=served_template(str(base)), add_generation_prompt=True, return_dict=True
    )
    return list(out["input_ids"])


def write(path: Path, chats: list[list[dict[str, str]]]) -> str:
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("family", "system"),
    [("mistral", "fold"), ("mistral_v3", "fold"), ("llama31", "own"), ("llama32", "own"), ("phi4", "own")],
)
def test_who_shows_the_system_turn_is_read_off_the_template(bases: dict[str, Path], family: str, system: str) -> None:
    decided = decide(AutoTokenizer.from_pretrained(bases[family]))
    assert decided.system == system
    assert ("first user's turn" in str(decided)) == (system == "fold")
    assert ("date" in str(decided)) == (family == "llama32")


@pytest.mark.parametrize("family", ["mistral", "mistral_v3"])
def test_a_system_turn_is_folded_into_the_first_user_s_turn_and_stays_there(
    bases: dict[str, Path], family: str
) -> None:
    tokenizer = open_tokenizer(bases[family])
    text = chat_template.rendered(tokenizer, [SYSTEM, ASKED, SAID, MORE], answer_next=True)
    assert text.count("Be brief.") == 1
    assert "[INST] Be brief.\n\nOne?" in text
    folded = [{"role": "user", "content": "Be brief.\n\nOne?"}, SAID, MORE]
    assert text == chat_template.rendered(tokenizer, folded, answer_next=True)


@pytest.mark.parametrize("family", get_args(Family))
def test_trained_tokens_are_served_tokens(bases: dict[str, Path], family: str) -> None:
    tokenizer = open_tokenizer(bases[family])
    example = Example(id="1", prompt=prompt_of(track("structured"), "Call Rome about the weather"), target='{"a": 1}')
    prompt, answer = prompt_and_answer(rows.tokenised(tokenizer, rows.conversation(example)))
    assert list(prompt) == served_ids(bases[family], example.prompt.as_dicts())
    assert list(prompt) == rows.token_ids(tokenizer, example.prompt.as_dicts(), answer_next=True)
    assert "valid JSON objects only" in tokenizer.decode(prompt)
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == example.target


def test_tokens_are_the_same_on_every_day(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for day in (datetime.datetime(2025, 3, 1), datetime.datetime(2031, 12, 24)):
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda today=day: today))
        tokenizer = open_tokenizer(bases["llama32"])
        own = AutoTokenizer.from_pretrained(bases["llama32"]).apply_chat_template([ASKED], tokenize=False)
        assert day.strftime("%d %b %Y") in own, "the clock that this test shifts is not the template's"
        ids = rows.token_ids(tokenizer, [SYSTEM, ASKED], answer_next=True)
        assert ids == served_ids(bases["llama32"], [SYSTEM, ASKED])
        assert PINNED_DATE in tokenizer.decode(ids)
        seen.append(ids)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("ask", ["%d %b %Y", "%Y-%m-%d", "%A, %B %-d, %Y %H:%M"])
def test_a_clock_asked_in_any_form_and_from_inside_a_macro_stands_still(ask: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_BASE)
    tokenizer.chat_template = (
        "{%- macro head() %}It is {{ strftime_now('" + ask + "') }}.{% endmacro %}"
        "{{ head() }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    tokenizer.chat_template = decide(tokenizer).text
    expected = datetime.datetime(2024, 7, 26).strftime(ask)
    assert chat_template.rendered(tokenizer, [ASKED], answer_next=True) == f"It is {expected}.One?"


def test_a_template_that_needs_nothing_is_left_as_it_is(bases: dict[str, Path]) -> None:
    for family in ("llama31", "phi4"):
        own = AutoTokenizer.from_pretrained(bases[family]).chat_template
        assert open_tokenizer(bases[family]).chat_template == own
        assert served_template(str(bases[family])) is None


def test_what_is_put_in_front_changes_nothing_below_it() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_BASE)
    tokenizer.chat_template = (
        "\n  start {% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}{# strftime_now #}"
    )
    own = tokenizer.apply_chat_template([ASKED], tokenize=False)
    decided = decide(tokenizer)
    assert (decided.system, decided.date_pinned) == ("fold", True)
    assert tokenizer.apply_chat_template([ASKED], chat_template=decided.text, tokenize=False) == own


def test_a_template_that_wants_a_system_turn_keeps_it_and_one_that_is_no_jinja_is_named() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_BASE)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    assert decide(tokenizer).system == "own"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}"
    with pytest.raises(ModelError, match=r"is no Jinja .*repair chat_template\.jinja"):
        decide(tokenizer)


def test_rows_that_the_template_refuses_are_named_by_line_with_a_reason_and_a_way_out(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "train.jsonl", [[ASKED, SAID], [ASKED, MORE, SAID], [MORE, ASKED, SAID]])
    with pytest.raises(DataError) as refused:
        rows.tokens(rows.read(path, "chat"), open_tokenizer(bases["mistral"]), max_length=512)
    said = str(refused.value)
    assert f"{path}:2: the base's chat template refuses this chat: turns have to alternate" in said
    assert f"{path}:3: " in said
    assert f"{path}:1" not in said
    with pytest.raises(DataError, match=r"train\.jsonl:2: the base's chat template refuses"):
        rows.refuse_unshown(rows.read(path, "chat"), open_tokenizer(bases["mistral"]))
    train = rows.read(
        write(tmp_path / "other.jsonl", [[{"role": "user", "content": "Another question"}, SAID]]), "chat"
    )
    with pytest.raises(DataError, match=r"train\.jsonl:2: the base's chat template refuses"):
        rows.held_out(path, train, "chat", tokenizer=open_tokenizer(bases["mistral"]))
    assert "its turns are system, user, user, assistant; let user and assistant alternate" in said


def test_a_token_never_stands_across_the_border_of_prompt_and_answer() -> None:
    tokenizer = open_tokenizer(TINY_BASE)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{{ '\"' if m['role'] == 'user' else eos_token }}{% endfor %}"
    )
    prompt, said = [{"role": "user", "content": "Number?"}], [{"role": "assistant", "content": ": 3"}]
    asked = rows.token_ids(tokenizer, prompt, answer_next=True)
    merged = rows.token_ids(tokenizer, prompt + said, answer_next=False)
    assert merged[: len(asked)] != asked, "this tokenizer keeps the two apart by itself"
    row = rows.tokenised(tokenizer, {"prompt": prompt, "completion": said})
    assert row["input_ids"][: len(asked)] == asked
    assert row["labels"][: len(asked)] == [rows.NOT_LEARNED] * len(asked)
    assert tokenizer.decode(row["labels"][len(asked) :]) == ": 3<|eot_id|>"


def test_a_template_that_changes_the_prompt_is_named_by_line(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(TINY_BASE)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    path = write(tmp_path / "train.jsonl", [[ASKED, SAID]])
    with pytest.raises(ConfigError, match=r"train\.jsonl:1: the base's chat template does not keep the prompt"):
        rows.tokens(rows.read(path, "chat"), tokenizer, max_length=512)


def learned(tokenizer: Any, row: dict[str, Any], learn: rows.Learn = "every_turn") -> list[str]:
    """The runs of learned tokens as text."""
    out = rows.tokenised(tokenizer, row, learn)
    assert len(out["input_ids"]) == len(out["labels"])
    assert all(label in (one, rows.NOT_LEARNED) for one, label in zip(out["input_ids"], out["labels"], strict=True))
    runs = itertools.groupby(out["labels"], key=lambda label: label != rows.NOT_LEARNED)
    return [tokenizer.decode(list(run)) for is_learned, run in runs if is_learned]


TURNS = {"prompt": [SYSTEM, ASKED, SAID, MORE], "completion": [{"role": "assistant", "content": "2, or more"}]}


@pytest.mark.parametrize(
    ("family", "first", "last"),
    [
        ("mistral", "1<|eot_id|>", "2, or more<|eot_id|>"),
        ("mistral_v3", " 1<|eot_id|>", " 2, or more<|eot_id|>"),
        ("llama32", "1<|eot_id|>", "2, or more<|eot_id|>"),
        ("phi4", "1<|end|>", "2, or more<|end|><|endoftext|>"),
    ],
)
def test_every_turn_of_the_assistant_is_learned_with_its_end_and_nothing_else(
    bases: dict[str, Path], family: str, first: str, last: str
) -> None:
    tokenizer = open_tokenizer(bases[family])
    assert learned(tokenizer, TURNS) == [first, last]
    assert learned(tokenizer, TURNS, "answer") == [last]
    both = [rows.tokenised(tokenizer, TURNS, learn)["input_ids"] for learn in get_args(rows.Learn)]
    assert both[0] == both[1]


def test_an_answer_of_many_tokens_in_front_of_a_template_with_line_breaks_is_learned_whole() -> None:
    tokenizer = open_tokenizer(TINY_BASE)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    chat = [ASKED, {"role": "assistant", "content": "one\nand two"}, MORE]
    row = {"prompt": chat, "completion": [SAID]}
    assert learned(tokenizer, row) == ["one\nand two<|eot_id|>\n", "1<|eot_id|>\n"]


def test_demonstrations_in_front_of_a_question_are_not_learned() -> None:
    tokenizer = open_tokenizer(TINY_BASE)
    shots = [
        turn
        for n in range(2)
        for turn in (Message(role="user", content=f"shot {n}?"), Message(role="assistant", content=f"shot {n}"))
    ]
    before = [Message(role="user", content="a"), Message(role="assistant", content="own turn")]
    prompt = Prompt(messages=(*before, *shots, Message(role="user", content="q")))
    example = Example(id="1", prompt=prompt, target="answer", tags={DEMONSTRATIONS: "2"})
    assert learned(tokenizer, rows.conversation(example)) == ["own turn<|eot_id|>", "answer<|eot_id|>"]
    untold = Example(id="1", prompt=prompt, target="answer", tags={DEMONSTRATIONS: "some"})
    with pytest.raises(DataError, match="tag demonstrations of row 1 is 'some'; write how many"):
        rows.conversation(untold)


def test_a_template_that_rewrites_earlier_turns_is_refused_by_line_for_every_turn_only(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(TINY_BASE)
    tokenizer.chat_template = (  # as templates of reasoning models do
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] if loop.last else m['content'].split('/think ')[-1] }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    thought = {"role": "assistant", "content": "hm /think 1"}
    path = write(tmp_path / "train.jsonl", [[ASKED, SAID, MORE, SAID], [ASKED, thought, MORE, SAID]])
    read = rows.read(path, "chat")
    assert len(rows.tokens(read, tokenizer, max_length=512).lengths) == 2
    with pytest.raises(ConfigError, match=r"train\.jsonl:2: .*changes the assistant's turn 3 once.*set learn: answer"):
        rows.tokens(read, tokenizer, max_length=512, learn="every_turn")
