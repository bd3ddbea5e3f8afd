"""Texts into vectors by a local encoder model: what BERTScore and embedding cosine compare.

Offline: the folder holds config, tokenizer and safetensors weights of a BERT-like encoder. Deterministic, on CPU, in
fp32, in batches of like length. Compares nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_ray.errors import ModelError

_BATCH = 32
_CHARACTERS_PER_TOKEN = 200  # at most; ten megabytes would be cut into tokens for twenty seconds, and then be truncated

Vectors = npt.NDArray[np.float32]


class Encoder:
    """An encoder model of a local folder, loaded on first use."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / "config.json").is_file():
            raise ModelError(f"no encoder in {folder}: it has no config.json; give the folder of a downloaded encoder")
        self._parts: tuple[Any, Any] | None = None

    def tokens(self, texts: Sequence[str]) -> list[Vectors]:
        """Per text the last hidden states of its tokens, (tokens, dim), without special tokens; cut at the model's length.

        A text of no tokens gives an array of no rows.
        """
        import torch

        tokenizer, model = self._load()
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found: dict[int, Vectors] = {}
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = tokenizer(
                [self._beginning(texts[place]) for place in places], return_tensors="pt", padding=True, truncation=True,
                return_special_tokens_mask=True,
            )  # fmt: skip
            kept = (batch.pop("special_tokens_mask") == 0) & (batch["attention_mask"] == 1)
            with torch.inference_mode():
                states = model(**batch).last_hidden_state
            for place, state, keep in zip(places, states, kept, strict=True):
                found[place] = state[keep].float().numpy()
        return [found[place] for place in range(len(texts))]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Per text the ids of the tokens that `tokens` has vectors of."""
        tokenizer, _ = self._load()
        cut = [self._beginning(text) for text in texts]
        found = tokenizer(cut, truncation=True, return_special_tokens_mask=True) if texts else {"input_ids": []}
        masks = found.get("special_tokens_mask", [])
        return [
            [token for token, special in zip(ids, mask, strict=True) if not special]
            for ids, mask in zip(found["input_ids"], masks, strict=True)
        ]

    def _beginning(self, text: str) -> str:
        tokenizer, _ = self._load()
        return text[: tokenizer.model_max_length * _CHARACTERS_PER_TOKEN]

    def _load(self) -> tuple[Any, Any]:
        if self._parts is None:
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging

            logging.disable_progress_bar()
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            model = AutoModel.from_pretrained(self.folder, local_files_only=True).eval()
            limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
            tokenizer.model_max_length = limit
            self._parts = tokenizer, model
        return self._parts
