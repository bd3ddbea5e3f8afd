"""Texts into vectors by a local encoder model: what BERTScore and embedding cosine compare.

Offline: the folder holds config, tokenizer and safetensors weights of a BERT-like encoder. Deterministic, on CPU, in
fp32, in batches of like length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_ray.errors import ModelError
from slm_ray.parallel import BATCH_ITEMS, Executor
from slm_ray.scoring.similarity import Idf, idf_of, with_similarity
from slm_ray.types import RowScore

_BATCH = 32
_CHARACTERS_PER_TOKEN = 200  # at most; ten megabytes would be cut into tokens for twenty seconds, and then be truncated

_LIKE_BYTES = 13_000  # of rows read in the time that one text of a paragraph takes

Vectors = npt.NDArray[np.float32]
Similar = Callable[[Sequence[RowScore], Sequence[str | None], Sequence[str]], list[RowScore]]
_Batch = tuple[Sequence[RowScore], Sequence[str | None], Sequence[str]]


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


def similar_by(folder: str | Path, *, idf: bool, executor: Executor) -> Similar:
    """BERTScore and embedding cosine with the encoder in `folder`: a function of rows, predictions and references.

    Raises ModelError at once when there is no encoder. The same batches whoever works: in another batch a vector has
    other last digits.
    """
    encoder = Encoder(folder)

    def added(rows: Sequence[RowScore], predictions: Sequence[str | None], references: Sequence[str]) -> list[RowScore]:
        weights = idf_of(references, encoder.token_ids) if idf else None
        cuts = [slice(start, start + BATCH_ITEMS) for start in range(0, len(rows), BATCH_ITEMS)]
        batches = [(rows[cut], predictions[cut], references[cut]) for cut in cuts]
        if not executor.pays_off(len({*predictions, *references}) * _LIKE_BYTES):
            return [row for batch in batches for row in with_similarity(*batch, encoder.tokens, weights)]
        table = (weights.table, weights.references) if weights else None
        compare = functools.partial(_compared, str(encoder.folder.absolute()), table)
        return [row for compared in executor.map(compare, batches, title="comparing meanings") for row in compared]

    return added


def _compared(folder: str, weights: tuple[Any, int] | None, batch: _Batch) -> Iterator[list[RowScore]]:
    encoder = _encoder(folder)
    idf = Idf(token_ids=encoder.token_ids, table=weights[0], references=weights[1]) if weights else None
    yield with_similarity(*batch, encoder.tokens, idf)


@functools.lru_cache(maxsize=1)
def _encoder(folder: str) -> Encoder:
    """One per worker process, since loading it takes longer than a batch."""
    return Encoder(folder)
