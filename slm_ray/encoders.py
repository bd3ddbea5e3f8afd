"""Texts into vectors by an encoder model: what BERTScore and embedding cosine compare, and what finds demonstrations.

`Encoder` gives a vector per token, from the local folder of a BERT-like encoder, for scores. `open_retriever` gives a
vector per text, as sentence-transformers makes it of a folder or a hub name (GTR-T5, MiniLM), for retrieval.
Deterministic, on CPU, in fp32, in batches of like length.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_ray.corpus.retrieve import ByBM25, ByVectors, ByWords, Retriever, Similarity, questions
from slm_ray.errors import ModelError, ResourceError
from slm_ray.parallel import BATCH_ITEMS, Executor
from slm_ray.scoring.similarity import with_similarity
from slm_ray.storage import file_digest, write_bytes
from slm_ray.types import Example, RowScore

LEXICAL: Mapping[str, Callable[[Sequence[str]], Similarity]] = {"words": ByWords, "bm25": ByBM25}
EMBEDDINGS = "embeddings"  # the folder of kept vectors, beside the file of the pool

_BATCH = 32
_CHARACTERS_PER_TOKEN = 200  # at most; ten megabytes would be cut into tokens for twenty seconds, and then be truncated

_BEGINNING = 512 * _CHARACTERS_PER_TOKEN
_LIKE_BYTES = 13_000  # of rows read in the time that one text of a paragraph takes

# Of an encoder on the hub. Layers behind the transformer (GTR-T5 has one) may be PyTorch's own files, which
# sentence-transformers reads as weights only.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*/pytorch_model.bin")

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


def similar_by(folder: str | Path, *, executor: Executor) -> Similar:
    """BERTScore and embedding cosine with the encoder in `folder`: a function of rows, predictions and references.

    Raises ModelError at once when there is no encoder. The same batches whoever works: in another batch a vector has
    other last digits.
    """
    encoder = Encoder(folder)

    def added(rows: Sequence[RowScore], predictions: Sequence[str | None], references: Sequence[str]) -> list[RowScore]:
        cuts = [slice(start, start + BATCH_ITEMS) for start in range(0, len(rows), BATCH_ITEMS)]
        batches = [(rows[cut], predictions[cut], references[cut]) for cut in cuts]
        if not executor.pays_off(len({*predictions, *references}) * _LIKE_BYTES):
            return [row for batch in batches for row in with_similarity(*batch, encoder.tokens)]
        compare = functools.partial(_compared, str(encoder.folder.absolute()))
        return [row for compared in executor.map(compare, batches, title="comparing meanings") for row in compared]

    return added


def _compared(folder: str, batch: _Batch) -> Iterator[list[RowScore]]:
    yield with_similarity(*batch, _encoder(folder).tokens)


@functools.lru_cache(maxsize=1)
def _encoder(folder: str) -> Encoder:
    """One per worker process, since loading it takes longer than a batch."""
    return Encoder(folder)


def check_retriever(name: str) -> None:
    """ModelError where `name` is neither `words` nor `bm25` nor an encoder that is here or can be had."""
    if name not in LEXICAL:
        _sentence_encoder_folder(name)


def open_retriever(name: str, pool: Sequence[Example], queries: Sequence[str], *, beside: str | Path) -> Retriever:
    """The pool as `words`, `bm25` or an encoder's folder or hub name finds in it; `queries` are all that will be asked.

    Vectors are kept in the folder `embeddings` beside the file `beside`, by encoder and texts, where it may be written:
    what is there is not embedded again. ModelError for an encoder that is none.
    """
    if name in LEXICAL:
        return Retriever(pool, LEXICAL[name](questions(pool)))
    folder, kept, texts = _sentence_encoder_folder(name), Path(beside).parent / EMBEDDINGS, questions(pool)
    vectors = _embedded(folder, texts, kept)
    known = dict(zip(texts, vectors, strict=True))
    if others := [query for query in dict.fromkeys(queries) if query not in known]:
        known |= zip(others, _embedded(folder, others, kept), strict=True)
    return Retriever(pool, ByVectors(vectors, known))


def _sentence_encoder_folder(name: str) -> Path:
    """The folder of an encoder: a folder as given, else a hub name from the local cache or the hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, allow_patterns=list(_FILES)))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"retriever {name!r} is no folder, and as a hub name: {str(error).splitlines()[0]}; set retriever to words,"
                " bm25, or the folder of a downloaded sentence encoder"
            ) from None
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"retriever {name!r} is no encoder: {folder} lacks config.json or *.safetensors; give the folder of a downloaded"
            " sentence encoder, or set retriever to words or bm25"
        )
    return folder.resolve()


def _embedded(folder: Path, texts: Sequence[str], kept: Path) -> Vectors:
    """Vectors of unit length, (texts, dim), as they are kept or made now."""
    key = hashlib.sha256(_identity(folder).encode())
    for text in texts:
        key.update(f"\0{len(text)}\0".encode() + text.encode("utf-8", "surrogatepass"))
    path = kept / f"{key.hexdigest()[:32]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        found: Vectors = np.load(path, allow_pickle=False)
        if found.ndim == 2 and len(found) == len(texts):
            return found
    vectors = np.asarray(
        _sentence_encoder(str(folder)).encode(
            [text[:_BEGINNING].encode("utf-8", "replace").decode() for text in texts], batch_size=_BATCH,
            normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True,
        ),
        dtype=np.float32,
    )  # fmt: skip
    written = io.BytesIO()
    np.save(written, vectors, allow_pickle=False)
    with contextlib.suppress(ResourceError):  # a folder that may only be read: they are made again next time
        write_bytes(path, written.getvalue())
    return vectors


@functools.lru_cache(maxsize=2)
def _identity(folder: Path) -> str:
    """An encoder by content: every file that its vectors follow from."""
    kinds = {Path(pattern).suffix for pattern in _FILES}
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in kinds]
    return "\n".join(f"{path.relative_to(folder)} {file_digest(path)}" for path in files)


@functools.lru_cache(maxsize=1)
def _sentence_encoder(folder: str) -> Any:
    """Importing and loading it takes seconds: done only for texts without vectors."""
    for name in ("sentence_transformers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        return SentenceTransformer(folder, device="cpu", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"retriever {folder} cannot be loaded by sentence-transformers ({str(error).splitlines()[0]}); give the folder of"
            " a sentence encoder"
        ) from None
