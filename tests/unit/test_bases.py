"""The tiny bases of other families: they open, and their templates do what the public ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.bases import Family, make_base

SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: make_base(root / family, family=family) for family in get_args(Family)}


def rendered(folder: Path, messages: list[dict[str, str]], **options: Any) -> str:
    text: str = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False, **options)
    return text


@pytest.mark.parametrize("family", get_args(Family))
def test_a_base_of_each_family_opens_and_holds_its_tokenizer(bases: dict[str, Path], family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(bases[family])
    tokenizer = AutoTokenizer.from_pretrained(bases[family])
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert max(ids) < model.config.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id
    fused = {"qkv_proj", "gate_up_proj"} <= {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert fused == (family == "phi4")


def test_mistral_refuses_a_system_turn_and_turns_that_do_not_alternate(bases: dict[str, Path]) -> None:
    assert rendered(bases["mistral"], CHAT).endswith("[INST] One? [/INST]1<|eot_id|>[INST] Two? [/INST]")
    with pytest.raises(TemplateError, match="alternate"):
        rendered(bases["mistral"], [SYSTEM, *CHAT])
    with pytest.raises(TemplateError, match="alternate"):
        rendered(bases["mistral"], [CHAT[0], CHAT[2]])


def test_the_later_mistral_loses_its_system_turn_once_an_answer_follows(bases: dict[str, Path]) -> None:
    assert "Be brief." in rendered(bases["mistral_v3"], [SYSTEM, CHAT[0]])
    assert "Be brief." not in rendered(bases["mistral_v3"], [SYSTEM, *CHAT[:2]])


def test_phi_4_ends_a_chat_that_asks_for_no_answer(bases: dict[str, Path]) -> None:
    assert rendered(bases["phi4"], CHAT[:2]).endswith("1<|end|><|endoftext|>")
    assert rendered(bases["phi4"], CHAT, add_generation_prompt=True).endswith("Two?<|end|><|assistant|>")


def test_the_llamas_write_a_date(bases: dict[str, Path]) -> None:
    assert "Today is: 26 Jul 2024" in rendered(bases["llama31"], CHAT)
    assert "Today is: 01 Jan 2031" in rendered(bases["llama32"], CHAT, date_string="01 Jan 2031")
    assert "26 Jul 2024" not in rendered(bases["llama32"], CHAT)
