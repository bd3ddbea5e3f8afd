"""Demonstrations for a prompt (Dr.ICL): the pool's most similar examples by words, put in front as chat turns.

Similarity is the Jaccard overlap of word sets, each word weighted by its rarity in the pool, so the words that every
prompt of a template shares count for little. No embeddings, no state, the same answer every time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from slm_ray.corpus.render import normalised
from slm_ray.types import Example, Message, Prompt

DEMONSTRATIONS = "demonstrations"  # the tag of a row that has some in its prompt: how many
_WORD = re.compile(r"\w+")

Floats = NDArray[np.float64]


class Retriever:
    """A pool of examples, indexed once by the words of their questions."""

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = list(pool)
        words_of = [_words(_question(example.prompt)) for example in pool]
        places_of: dict[str, list[int]] = {}
        for place, words in enumerate(words_of):
            for word in words:
                places_of.setdefault(word, []).append(place)
        self._places = {word: np.array(places, dtype=np.int32) for word, places in places_of.items()}
        self._weight = {word: math.log((1 + len(words_of)) / len(places)) for word, places in places_of.items()}
        self._total = np.array([self._weigh(words) for words in words_of], dtype=np.float64)
        self._asked = [normalised(_question(example.prompt)) for example in pool]

    def nearest(self, query: str, k: int) -> list[Example]:
        """The `k` examples whose user turn is most like `query`, best first, ties by id.

        An example that asks exactly `query` is left out: it would show the model the answer.
        """
        words, same = _words(query), normalised(query)
        shared = np.zeros(len(self._pool))
        # Sorted, because sets iterate in another order in every process and floats do not add up the same way round.
        for word in sorted(words & self._places.keys()):
            shared[self._places[word]] += self._weight[word]
        alike = _jaccard(shared, self._weigh(words), self._total)
        best: list[tuple[float, str, int]] = []
        if k > 0:
            for place in _descending(alike, at_least=k):
                # Equal ones all come before the last is taken: ids decide between them.
                if len(best) >= k and -alike[place] > best[k - 1][0]:
                    break
                if self._asked[place] != same:
                    best.append((-float(alike[place]), self._pool[place].id, int(place)))
        return [self._pool[place] for _, _, place in sorted(best)[:k]]

    def _weigh(self, words: frozenset[str]) -> float:
        return sum(self._weight.get(word, 0.0) for word in sorted(words))


def with_demonstrations(prompt: Prompt, shots: Sequence[Example]) -> Prompt:
    """`prompt` with each shot as a user and an assistant turn, in the given order, before its last user turn."""
    *before, last = prompt.messages
    turns = [turn for shot in shots for turn in (_user(shot), Message(role="assistant", content=shot.target))]
    return Prompt(messages=(*before, *turns, last))


def _user(shot: Example) -> Message:
    return Message(role="user", content=_question(shot.prompt))


def _question(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _jaccard(shared: Floats, left: float, right: Floats) -> Floats:
    """Weighted Jaccard indices in [0, 1]; a word that the pool does not know weighs nothing."""
    either = left + right - shared
    return np.divide(shared, either, out=np.zeros(len(shared)), where=either > 0)


def _descending(values: Floats, *, at_least: int) -> Iterator[int]:
    """Places by value, the highest first: the best few sorted at once, all others only when they are asked for."""
    few = min(len(values), 4 * at_least + 16)
    floor = np.partition(values, len(values) - few)[len(values) - few] if few else 0.0
    top = np.flatnonzero(values >= floor)
    yield from top[np.argsort(-values[top], kind="stable")].tolist()
    rest = np.flatnonzero(values < floor)
    yield from rest[np.argsort(-values[rest], kind="stable")].tolist()
