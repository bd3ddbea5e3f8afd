"""Demonstrations for a prompt (Dr.ICL): the pool's most similar examples by words, put in front as chat turns.

Similarity is the Jaccard overlap of word sets, each word weighted by its rarity in the pool, so the words that every
prompt of a template shares count for little. No embeddings, no state, the same answer every time.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Sequence

from slm_ray.corpus.render import normalised, prompt_hash
from slm_ray.types import Example, Message, Prompt

DEMONSTRATIONS = "demonstrations"  # the tag of a row that has some in its prompt: how many
_WORD = re.compile(r"\w+")


class Retriever:
    """A pool of examples, indexed once by the words of their questions."""

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = list(pool)
        words_of = [_words(_question(example.prompt)) for example in pool]
        self._places: dict[str, list[int]] = {}
        for place, words in enumerate(words_of):
            for word in words:
                self._places.setdefault(word, []).append(place)
        self._weight = {word: math.log((1 + len(words_of)) / len(places)) for word, places in self._places.items()}
        self._total = [self._weigh(words) for words in words_of]
        self._asked = [normalised(_question(example.prompt)) for example in pool]

    def nearest(self, query: str, k: int) -> list[Example]:
        """The `k` examples whose user turn is most like `query`, best first, ties by id.

        An example that asks exactly `query` is left out: it would show the model the answer.
        """
        words, same = _words(query), normalised(query)
        shared, total = [0.0] * len(self._pool), self._weigh(words)
        # Sorted, because sets iterate in another order in every process and floats do not add up the same way round.
        for word in sorted(words & self._places.keys()):
            for place in self._places[word]:
                shared[place] += self._weight[word]
        ranked = heapq.nsmallest(
            max(k, 0),
            (
                (-_jaccard(shared[place], total, self._total[place]), example.id, place)
                for place, example in enumerate(self._pool)
                if self._asked[place] != same
            ),
        )
        return [self._pool[place] for _, _, place in ranked]

    def _weigh(self, words: frozenset[str]) -> float:
        return sum(self._weight.get(word, 0.0) for word in sorted(words))


def with_demonstrations(prompt: Prompt, shots: Sequence[Example]) -> Prompt:
    """`prompt` with each shot as a user and an assistant turn, in the given order, before its last user turn."""
    *before, last = prompt.messages
    turns = [turn for shot in shots for turn in (_user(shot), Message(role="assistant", content=shot.reference))]
    return Prompt(messages=(*before, *turns, last))


def question_hash(example: Example) -> str:
    """The prompt hash of what the example itself asks, without the demonstrations that its tag says are in front."""
    said = example.tags.get(DEMONSTRATIONS, "")
    turns = 2 * int(said) if said.isascii() and said.isdigit() else 0
    *before, last = example.prompt.messages
    if not turns or len(before) < turns:
        return prompt_hash(example.prompt)
    return prompt_hash(Prompt(messages=(*before[: len(before) - turns], last)))


def _user(shot: Example) -> Message:
    return Message(role="user", content=_question(shot.prompt))


def _question(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _jaccard(shared: float, left: float, right: float) -> float:
    """Weighted Jaccard index in [0, 1]; a word that the pool does not know weighs nothing."""
    either = left + right - shared
    return shared / either if either > 0 else 0.0
