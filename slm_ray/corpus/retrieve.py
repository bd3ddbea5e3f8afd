"""Demonstrations for a prompt (Dr.ICL): the pool's most similar examples, put in front as chat turns.

What "similar" means is a `Similarity`: by shared words or by BM25 here, by the cosine of embeddings with vectors that were
made elsewhere (`slm_ray.encoders`). Who is taken is decided here, the same way for all of them: best first, ties by id,
never an example that asks the question itself. The same answer every time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slm_ray.corpus.render import normalised
from slm_ray.types import Example, Message, Prompt

DEMONSTRATIONS = "demonstrations"  # the tag of a row that has some in its prompt: how many
_WORD = re.compile(r"\w+")
_DECIMALS = 5  # of a cosine; what lies beyond depends on the machine and on who was embedded beside whom

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]


class Similarity(Protocol):
    """How alike texts are to those of a pool."""

    def scores(self, query: str) -> Floats:
        """One number for each text of the pool, in its order; the higher, the more alike."""
        ...


class Retriever:
    """A pool of examples, and what makes one of them similar to a question; by words where nothing else is given."""

    def __init__(self, pool: Sequence[Example], similarity: Similarity | None = None) -> None:
        self._pool = list(pool)
        self._similarity = similarity or ByWords(questions(pool))
        self._asked = [normalised(question) for question in questions(pool)]

    def nearest(self, query: str, k: int) -> list[Example]:
        """The `k` examples whose user turn is most like `query`, best first, ties by id.

        An example that asks exactly `query` is left out: it would show the model the answer.
        """
        if k < 1 or not self._pool:
            return []
        same, alike = normalised(query), self._similarity.scores(query)
        best: list[tuple[float, str, int]] = []
        for place in _descending(alike, at_least=k):
            # Equal ones all come before the last is taken: ids decide between them.
            if len(best) >= k and -alike[place] > best[k - 1][0]:
                break
            if self._asked[place] != same:
                best.append((-float(alike[place]), self._pool[place].id, int(place)))
        return [self._pool[place] for _, _, place in sorted(best)[:k]]


class ByWords:
    """The Jaccard overlap of word sets, each word weighted by its rarity in the pool.

    So the words that every prompt of a template shares count for little.
    """

    def __init__(self, pool: Sequence[str]) -> None:
        words_of = [frozenset(_words(text)) for text in pool]
        places_of: dict[str, list[int]] = {}
        for place, words in enumerate(words_of):
            for word in words:
                places_of.setdefault(word, []).append(place)
        self._places = {word: np.array(places, dtype=np.int32) for word, places in places_of.items()}
        self._weight = {word: math.log((1 + len(words_of)) / len(places)) for word, places in places_of.items()}
        self._total = np.array([self._weigh(words) for words in words_of], dtype=np.float64)

    def scores(self, query: str) -> Floats:
        """Weighted Jaccard indices in [0, 1]; a word that the pool does not know weighs nothing."""
        words, shared = frozenset(_words(query)), np.zeros(len(self._total))
        # Sorted, because sets iterate in another order in every process and floats do not add up the same way round.
        for word in sorted(words & self._places.keys()):
            shared[self._places[word]] += self._weight[word]
        either = self._weigh(words) + self._total - shared
        return np.divide(shared, either, out=np.zeros(len(shared)), where=either > 0)

    def _weigh(self, words: frozenset[str]) -> float:
        return sum(self._weight.get(word, 0.0) for word in sorted(words))


class ByBM25:
    """Okapi BM25 over words, in Lucene's form (k1 1.5, b 0.75): a text that says a rare word often and little else wins."""

    def __init__(self, pool: Sequence[str]) -> None:
        import bm25s  # brings numba with it where that is there, which takes a second

        self._index = bm25s.BM25(backend="numpy")
        # A text without a word would leave the index without any: it has one that no text holds.
        self._index.index([_words(text) or [""] for text in pool], create_empty_token=False, show_progress=False)
        self._size = len(pool)

    def scores(self, query: str) -> Floats:
        """Sums over the words of the query, 0 and more; a word counts as often as the query says it."""
        known = self._index.get_tokens_ids(_words(query))
        if not known:
            return np.zeros(self._size)
        return np.asarray(self._index.get_scores(known), dtype=np.float64)


class ByVectors:
    """The cosine of embeddings: `pool` (n, dim) and one vector for every query that will be asked, all of unit length."""

    def __init__(self, pool: Vectors, queries: Mapping[str, Vectors]) -> None:
        self._pool = pool
        self._queries = queries

    def scores(self, query: str) -> Floats:
        """Cosines in [-1, 1], rounded; KeyError for a query without a vector."""
        cosines: Floats = (self._pool @ self._queries[query]).astype(np.float64)
        return cosines.round(_DECIMALS)


def questions(examples: Sequence[Example]) -> list[str]:
    """What each of them asks: its last user turn."""
    return [_question(example.prompt) for example in examples]


def with_demonstrations(prompt: Prompt, shots: Sequence[Example]) -> Prompt:
    """`prompt` with `shots` (best first) as turns before its last user turn; the best one stands next to the question."""
    *before, last = prompt.messages
    turns = [turn for shot in reversed(shots) for turn in (_user(shot), Message(role="assistant", content=shot.target))]
    return Prompt(messages=(*before, *turns, last))


def _user(shot: Example) -> Message:
    return Message(role="user", content=_question(shot.prompt))


def _question(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _descending(values: Floats, *, at_least: int) -> Iterator[int]:
    """Places by value, the highest first: the best few sorted at once, all others only when they are asked for."""
    few = min(len(values), 4 * at_least + 16)
    floor = np.partition(values, len(values) - few)[len(values) - few] if few else 0.0
    top = np.flatnonzero(values >= floor)
    yield from top[np.argsort(-values[top], kind="stable")].tolist()
    rest = np.flatnonzero(values < floor)
    yield from rest[np.argsort(-values[rest], kind="stable")].tolist()
