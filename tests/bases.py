"""Tiny bases with random weights in the shape of the public ones, for tests: architecture, chat template, tokenizer.

`make_base(folder, family="mistral")` writes a folder that transformers, PEFT and vLLM open. The templates are ours: they do
what the public model's template does where that matters here (system turns, dates, turn order, what follows an answer), in
our own words. The tokenizer is that of data/tiny_base, with the family's role tokens added where the public model has them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

TINY_BASE = Path(__file__).parents[1] / "data" / "tiny_base"
Family = Literal["mistral", "mistral_v3", "llama31", "llama32", "phi4"]

# Mistral-7B-Instruct v0.1 and v0.2 as first published: no system turn, strict alternation, no generation prompt.
_MISTRAL = """{{ bos_token }}
{%- for turn in messages %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('turns have to alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- if turn['role'] == 'user' %}
        {{- '[INST] ' + turn['content'] + ' [/INST]' }}
    {%- elif turn['role'] == 'assistant' %}
        {{- turn['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('there are user and assistant turns only') }}
    {%- endif %}
{%- endfor %}"""

# Mistral-7B-Instruct v0.3: shows a system turn only while the user's turn below it is the last of the chat.
_MISTRAL_V3 = """{%- if messages[0]['role'] == 'system' %}
    {%- set instruction = messages[0]['content'] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('behind a system turn, turns have to alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- if turn['role'] == 'user' and loop.last and instruction is defined %}
        {{- '[INST] ' + instruction + '\\n\\n' + turn['content'] + '[/INST]' }}
    {%- elif turn['role'] == 'user' %}
        {{- '[INST] ' + turn['content'] + '[/INST]' }}
    {%- else %}
        {{- ' ' + turn['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""

# Llama 3.1 and 3.2 Instruct: a system block with a date always stands in front; 3.2 asks the clock for the date.
_LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    CLOCK
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set instruction = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set instruction = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nKnowledge ends: December 2023\\nToday is: ' + date_string + '\\n\\n' }}
{{- instruction + '<|eot_id|>' }}
{%- for turn in messages %}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
_FIXED_DATE = "{%- set date_string = '26 Jul 2024' %}"
_ASKS_THE_CLOCK = """{%- if strftime_now is defined %}
        {%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}
        {%- set date_string = '26 Jul 2024' %}
    {%- endif %}"""

# Phi-4-mini: role tokens, nothing trimmed, an end-of-text token behind a chat that asks for no answer.
_PHI4 = """{%- for turn in messages %}
    {{- '<|' + turn['role'] + '|>' + turn['content'] + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- else %}
    {{- eos_token }}
{%- endif %}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What sets a family apart from the others."""

    template: str
    config: str
    extra: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    eos: str | None = None
    stops: tuple[str, ...] = ()


_SHAPES: dict[str, _Shape] = {
    "mistral": _Shape(template=_MISTRAL, config="MistralConfig", extra={"sliding_window": None}),
    "mistral_v3": _Shape(template=_MISTRAL_V3, config="MistralConfig", extra={"sliding_window": None}),
    "llama31": _Shape(template=_LLAMA.replace("CLOCK", _FIXED_DATE), config="LlamaConfig"),
    "llama32": _Shape(
        template=_LLAMA.replace("CLOCK", _ASKS_THE_CLOCK), config="LlamaConfig", extra={"tie_word_embeddings": True}
    ),
    # Fused qkv_proj and gate_up_proj, as Phi3 has them.
    "phi4": _Shape(
        template=_PHI4, config="Phi3Config", extra={"tie_word_embeddings": True},
        tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), eos="<|endoftext|>",
        stops=("<|end|>", "<|endoftext|>"),
    ),
}  # fmt: skip


def make_base(
    folder: Path, *, family: Family, hidden_size: int = 64, layers: int = 2, heads: int = 2, key_value_heads: int = 1,
    intermediate_size: int = 128, positions: int = 2048, spread: float = 0.02, seed: int = 0,
) -> Path:  # fmt: skip
    """A base of that family in `folder` (made), bf16; the same bytes for the same arguments.

    `spread` is the standard deviation of the weights: larger ones give answers that depend more on the prompt. The width of
    a head, `hidden_size / heads`, has to be a multiple of 32 for vLLM's CPU kernels.
    """
    import torch
    import transformers

    shape = _SHAPES[family]
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_BASE)
    tokenizer.add_special_tokens({"additional_special_tokens": list(shape.tokens)} if shape.tokens else {})
    if shape.eos:
        tokenizer.eos_token = shape.eos
    tokenizer.chat_template = shape.template
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, shape.config)(
        vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=hidden_size, intermediate_size=intermediate_size,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_value_heads,
        max_position_embeddings=positions, initializer_range=spread, pad_token_id=tokenizer.pad_token_id, **ids,
        **shape.extra,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in shape.stops] or [ids["eos_token_id"]]
    generation = {**ids, "eos_token_id": stops, "pad_token_id": tokenizer.pad_token_id, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2), encoding="utf-8")
    return folder
