"""Demonstrations for a prompt (Dr.ICL): the pool's most similar examples by words, put in front as chat turns.

Similarity is the Jaccard overlap of word sets, each word weighted by its rarity in the pool, so the words that every
prompt of a template shares count for little. No embeddings, no state, the same answer every time.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from slm_ray.corpus.render import normalised
from slm_ray.types import Example, Message, Prompt

_WORD = re.compile(r"\w+")


def nearest(query: str, pool: Sequence[Example], k: int) -> list[Example]:
    """The `k` examples of `pool` whose user turn is most like `query`, best first, ties by id.

    An example that asks exactly `query` is left out: it would show the model the answer.
    """
    words_of = [_words(_question(example.prompt)) for example in pool]
    frequency = Counter(word for words in words_of for word in words)
    weight = {word: math.log((1 + len(pool)) / count) for word, count in frequency.items()}
    wanted, same = _words(query), normalised(query)
    ranked = sorted(
        (-_overlap(wanted, words, weight), example.id, position)
        for position, (words, example) in enumerate(zip(words_of, pool, strict=True))
        if normalised(_question(example.prompt)) != same
    )
    return [pool[position] for _, _, position in ranked[: max(k, 0)]]


def with_demonstrations(prompt: Prompt, shots: Sequence[Example]) -> Prompt:
    """`prompt` with each shot as a user and an assistant turn, in the given order, before its last user turn."""
    *before, last = prompt.messages
    turns = [turn for shot in shots for turn in (_user(shot), Message(role="assistant", content=shot.reference))]
    return Prompt(messages=(*before, *turns, last))


def _user(shot: Example) -> Message:
    return Message(role="user", content=_question(shot.prompt))


def _question(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _overlap(left: frozenset[str], right: frozenset[str], weight: dict[str, float]) -> float:
    """Weighted Jaccard index in [0, 1]; a word that the pool does not know weighs nothing."""
    # Sorted, because sets iterate in another order in every process and floats do not add up the same way round.
    shared = sum(weight.get(word, 0.0) for word in sorted(left & right))
    either = sum(weight.get(word, 0.0) for word in sorted(left | right))
    return shared / either if either else 0.0
