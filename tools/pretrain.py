"""Make the tiny base model that the repository ships: tokenizer, Llama weights, chat template, in one folder.

One process, CPU, plain PyTorch: batches of equal-length chats, loss on the answers only, Muon for the matrices and AdamW
for the embedding. Deterministic by seed up to the order of floating-point sums. Not a general pretrainer: it exists so
that anyone can rebuild `data/tiny_base` and see where its weights come from.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.config import PretrainConfig
from tools.mixture import Mixture, Turn

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>")
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
LONGEST = 800
Batch = tuple[torch.Tensor, torch.Tensor]


def train_tokenizer(mixture: Mixture, vocabulary: int, chats: int = 40_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single-digit numbers, Llama 3's special tokens and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ("\n".join(["system", "user", "assistant"] + [t.content for t in mixture.sample()]) for _ in range(chats)),
        trainer,
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pieces(tokenizer: Any) -> list[str]:
    """The tokenizer's entries as printable text, special tokens and broken UTF-8 left out."""
    texts = (tokenizer.decode([index]) for index in range(len(SPECIAL), len(tokenizer)))
    return [text for text in texts if text.isprintable() and "\ufffd" not in text]


def encode(tokenizer: Any, turns: list[Turn]) -> tuple[list[int], list[bool]]:
    """Token ids of one chat in the template above, and which of them are answers to learn."""
    ids, learn = [tokenizer.bos_token_id], [False]
    for turn in turns:
        head = tokenizer.encode(f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n", add_special_tokens=False)
        body = tokenizer.encode(turn.content.strip() + "<|eot_id|>", add_special_tokens=False)
        ids += head + body
        learn += [False] * len(head) + [turn.learn] * len(body)
    return ids, learn


def batches(tokenizer: Any, mixture: Mixture, batch_tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Endless (ids, labels) batches of shape (rows, length), chats of like length together, -100 where no loss is."""
    while True:
        chats = [encode(tokenizer, mixture.sample()) for _ in range(3000)]
        chats = sorted((c for c in chats if len(c[0]) <= LONGEST), key=lambda chat: len(chat[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for chat in chats:
            if (len(groups[-1]) + 1) * len(chat[0]) > batch_tokens:
                groups.append([])
            groups[-1].append(chat)
        rng.shuffle(groups)
        for group in groups:
            yield _pad(group, tokenizer.pad_token_id)


def _pad(group: list[tuple[list[int], list[bool]]], pad: int) -> Batch:
    length = max(len(ids) for ids, _ in group)
    ids = torch.full((len(group), length), pad)
    labels = torch.full((len(group), length), -100)
    for row, (tokens, learn) in enumerate(group):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, : len(tokens)] = torch.where(torch.tensor(learn), torch.tensor(tokens), -100)
    return ids, labels


def new_model(config: PretrainConfig, tokenizer: Any) -> Any:
    """A Llama with tied embeddings, fp32, of the configured shape."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=config.hidden, intermediate_size=config.intermediate,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
            max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5, attention_bias=False,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def loss_of(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Mean cross-entropy over answer tokens, and the share of them predicted right. Logits only where loss is."""
    # Right padding under a causal mask is harmless, so no attention mask is built.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = labels[:, 1:]
    keep = wanted != -100
    logits = model.lm_head(hidden[:, :-1][keep]).float()
    right = (logits.argmax(-1) == wanted[keep]).float().mean().item()
    return torch.nn.functional.cross_entropy(logits, wanted[keep]), right


def pretrain(config: PretrainConfig, lexicon: dict[str, Any], report: Callable[[dict[str, float]], None]) -> None:
    """Train and save to `config.out_dir`; `report` gets step, tokens, loss, accuracy and seconds every 50 steps."""
    tokenizer = train_tokenizer(Mixture(lexicon, config.seed + 1), config.vocabulary)
    model = new_model(config, tokenizer)
    save(model, tokenizer, Path(config.out_dir))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    seen, started, step = 0, time.monotonic(), 0
    losses: list[float] = []
    rights: list[float] = []
    for ids, labels in batches(
        tokenizer, Mixture(lexicon, config.seed, pieces(tokenizer)), config.batch_tokens, random.Random(config.seed)
    ):
        progress = seen / config.tokens
        if progress >= 1:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = (
                    config.learning_rate
                    * min(1.0, (step + 1) / 50)
                    * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
                )
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = loss_of(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen, step = seen + ids.numel(), step + 1
        losses.append(loss.item())
        rights.append(right)
        if step % 50 == 0:
            report(
                {
                    "step": step,
                    "tokens": seen,
                    "loss": sum(losses[-50:]) / 50,
                    "accuracy": sum(rights[-50:]) / 50,
                    "elapsed_s": time.monotonic() - started,
                }
            )
        if step % 500 == 0:
            save(model, tokenizer, Path(config.out_dir))
    save(model, tokenizer, Path(config.out_dir))


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the model in bf16 safetensors beside its tokenizer; the model in memory stays fp32."""
    state = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(state, strict=False)
    copy.tie_weights()
    copy.generation_config.do_sample = False
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
