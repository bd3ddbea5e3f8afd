"""Requests in words with the facts behind them: the raw material of the pretraining mixture.

`Facts(lexicon, random, pieces)` draws names, values and sentences from one random stream, so that a mixture is a
function of its seed. Values stand verbatim in the sentence, so that an answer can always be copied.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A request in words with the facts behind it: an action name and (key, value) pairs, values verbatim in `text`."""

    text: str
    action: str
    facts: tuple[tuple[str, Any], ...]


class Facts:
    """Draws words, values and requests. `pieces` are a tokenizer's entries as text, used as noise."""

    def __init__(self, lexicon: Mapping[str, Any], rng: random.Random, pieces: Sequence[str]) -> None:
        self._lexicon = lexicon
        self._random = rng
        self._pieces = pieces
        self._forbidden = frozenset(lexicon["forbidden"])

    def invented_word(self) -> str:
        """A word of one to three syllables that no dictionary has."""
        rng = self._random
        word: str = "".join(rng.choices(self._lexicon["syllables"], k=rng.randint(1, 3))) + rng.choice(
            self._lexicon["endings"]
        )
        return word.capitalize() if rng.random() < 0.5 else word

    def noise(self, low: int, high: int) -> str:
        """Text of random tokenizer entries; plain words while there is no tokenizer."""
        if not self._pieces:
            return self.phrase(low, high)
        return "".join(self._random.choices(self._pieces, k=self._random.randint(low, high))).strip() or "x"

    def key(self) -> str:
        """A name for a field or a tag; never one of the lexicon's `forbidden` words."""
        while True:
            rng = self._random
            word = rng.choice(self._lexicon["words"]).split()[0]
            name = rng.choice(sorted(self._lexicon["fields"]))
            noise = "".join(c for c in self.noise(1, 3) if c.isalpha()).lower() or word
            key = rng.choice((word, self.invented_word().lower(), name, noise, f"{name}_{word}", f"{noise}_{name}"))
            if key not in self._forbidden:
                return key

    def phrase(self, low: int = 1, high: int = 5) -> str:
        """Some words, real and invented."""
        rng = self._random
        words = [
            rng.choice(self._lexicon["words"]) if rng.random() < 0.6 else self.invented_word()
            for _ in range(rng.randint(low, high))
        ]
        text = " ".join(words)
        return text[0].upper() + text[1:] if rng.random() < 0.5 else text

    def value(self, field: Mapping[str, Any]) -> Any:
        """One value of a field: text, or a number for countable things."""
        rng = self._random
        if rng.random() < 0.12:
            return self.noise(1, 6)
        if "pool" in field:
            return (
                rng.choice(self._lexicon["pools"][field["pool"]]) if rng.random() < 0.6 else self.phrase(1, 2).title()
            )
        makers: dict[str, Callable[[], Any]] = {
            "date": lambda: f"{rng.randint(2019, 2028)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
            "time": lambda: f"{rng.randint(0, 23):02d}:{rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02d}",
            "small": lambda: rng.randint(1, 60),
            "number": lambda: rng.choice((rng.randint(1, 9999), round(rng.uniform(0, 500), rng.randint(1, 2)))),
            "decimal": lambda: round(rng.uniform(-90, 90), rng.randint(1, 4)),
            "year": lambda: rng.randint(1950, 2030),
            "code": self._code,
            "email": lambda: f"{self.invented_word().lower()}@{self._site()}",
            "url": lambda: f"https://{rng.choice(('', 'www.'))}{self._site()}/{self.invented_word().lower()}",
            "path": lambda: (
                f"/{self.invented_word().lower()}/{self.invented_word().lower()}.{rng.choice(('txt', 'csv', 'pdf', 'py', 'json', 'png'))}"
            ),
            "brand": lambda: self.phrase(1, 2).title(),
            "phrase": self.phrase,
        }
        return makers[field["kind"]]()

    def _site(self) -> str:
        return f"{self.invented_word().lower()}.{self._random.choice(self._lexicon['top_domains'])}"

    def _code(self) -> str:
        rng = self._random
        letters = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(2, 4)))
        digits = "".join(rng.choices(string.digits, k=rng.randint(1, 5)))
        return rng.choice((letters, digits, letters + digits, f"{letters}-{digits}"))

    def record(
        self, fields: Sequence[str] | None = None, action: str | None = None, keys: Mapping[str, str] | None = None
    ) -> Record:
        """A request about `fields` (drawn when not given); `keys` fixes what a field is called."""
        rng, lexicon = self._random, self._lexicon
        names = list(fields or rng.sample(sorted(lexicon["fields"]), rng.choices((1, 2, 3, 4), (3, 4, 3, 1))[0]))
        verb, noun = action.split(" ", 1) if action else (rng.choice(lexicon["verbs"]), rng.choice(lexicon["nouns"]))
        facts, phrases = [], []
        for name in names:
            field = lexicon["fields"][name]
            value = self.value(field)
            facts.append(((keys or {}).get(name) or rng.choice(field["names"]), value))
            phrases.append(rng.choice(field["phrases"]).replace("{v}", str(value)))
        rng.shuffle(phrases)
        text = self._sentence(verb, noun, phrases)
        seen = dict(facts)
        name = f"{verb} {noun}" if action or rng.random() < 0.6 else f"{self.key()} {rng.choice((noun, verb))}"
        return Record(text=text, action=name.replace(" ", "_"), facts=tuple(seen.items()))

    def _sentence(self, verb: str, noun: str, phrases: list[str]) -> str:
        """A request as people write it: an order, a question, a fragment; sometimes with a sentence around it."""
        rng, lexicon = self._random, self._lexicon
        joined = "".join((" " if i == 0 else rng.choice(lexicon["linkers"])) + p for i, p in enumerate(phrases))
        thing = rng.choice(("the ", "a ", "", "my ", "all ", "some ", "any ", "our ")) + noun
        if rng.random() < 0.5:
            thing = rng.choice((f"{self.invented_word()} {noun}", f"{rng.choice(lexicon['words'])} {noun}", thing))
        kind = rng.random()
        if kind < 0.40:
            text = rng.choice(lexicon["openers"]) + f"{verb} {thing}{joined}" + rng.choice(lexicon["closers"])
        elif kind < 0.65:
            text = rng.choice(lexicon["questions"]).replace("{n}", thing).replace("{v}", verb) + joined + "?"
        elif kind < 0.80:
            text = f"{phrases[0]}, {verb} {thing}" + "".join(" " + p for p in phrases[1:]) + rng.choice((".", "", "?"))
        else:
            text = f"{thing}{joined}" + rng.choice((".", "", "", "!"))
        if rng.random() < 0.2:
            side = (
                rng.choice(lexicon["asides"])
                if rng.random() < 0.5
                else self.phrase(2, 7).capitalize() + rng.choice(".?!")
            )
            text = f"{text} {side}" if rng.random() < 0.6 else f"{side} {text}"
        return str(text[0].upper() + text[1:] if rng.random() < 0.85 else text)
