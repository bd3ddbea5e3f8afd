"""The tiny base's pretraining mixture: copying, extraction and following demonstrations, in natural English.

`Mixture(lexicon, seed).sample()` gives one chat; every assistant turn with `learn` true carries loss. Deterministic by
seed, endless, pure. It teaches a very small model to copy spans, to fill formats named in the prompt and to continue a
format it is shown; it holds neither the demo task's prompt nor its answer format (`forbidden` words are checked by a
test), which is what fine-tuning is for.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SYSTEMS = (
    "You are a helpful assistant.", "Answer briefly.", "Follow the instruction exactly.", "Answer with the result only.",
    "You return exactly what is asked for.", "Be precise.", "Do not add prose.", "You turn requests into data.",
    "Return JSON only.", "You write one answer and nothing else.", "Copy values exactly as they are written.",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a pretraining chat; `learn` marks assistant turns that carry loss."""

    role: str
    content: str
    learn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A request in words with the facts behind it: an action name and (key, value) pairs, values verbatim in `text`."""

    text: str
    action: str
    facts: tuple[tuple[str, Any], ...]


Format = Callable[[Record], str]


class Mixture:
    """An endless, seeded stream of pretraining chats."""

    def __init__(self, lexicon: Mapping[str, Any], seed: int, pieces: Sequence[str] = ()) -> None:
        """`pieces` are a tokenizer's entries as text: copying them at random makes every one of them copyable."""
        self._lexicon = lexicon
        self._pieces = pieces
        self._random = random.Random(seed)
        self._forbidden = frozenset(lexicon["forbidden"])
        self._tasks: Sequence[tuple[float, Callable[[], list[Turn]]]] = (
            (0.30, self._copy), (0.24, self._extract), (0.05, self._one_field), (0.41, self._demonstrated),
        )  # fmt: skip

    def sample(self) -> list[Turn]:
        """One chat: an optional system turn, then user and assistant turns."""
        weights = [weight for weight, _ in self._tasks]
        task = self._random.choices([make for _, make in self._tasks], weights)[0]
        system = [Turn(role="system", content=self._random.choice(SYSTEMS))] if self._random.random() < 0.7 else []
        return system + task()

    # --- values -------------------------------------------------------------------------------------------------

    def _invented_word(self) -> str:
        rng = self._random
        word = "".join(rng.choices(self._lexicon["syllables"], k=rng.randint(1, 3))) + rng.choice(self._lexicon["endings"])
        return word.capitalize() if rng.random() < 0.5 else word

    def _noise(self, low: int, high: int) -> str:
        """Text of random tokenizer entries; plain words while there is no tokenizer."""
        if not self._pieces:
            return self._phrase(low, high)
        return "".join(self._random.choices(self._pieces, k=self._random.randint(low, high))).strip() or "x"

    def _phrase(self, low: int = 1, high: int = 5) -> str:
        rng = self._random
        words = [
            rng.choice(self._lexicon["words"]) if rng.random() < 0.6 else self._invented_word()
            for _ in range(rng.randint(low, high))
        ]
        text = " ".join(words)
        return text[0].upper() + text[1:] if rng.random() < 0.5 else text

    def _value(self, field: Mapping[str, Any]) -> Any:
        rng = self._random
        if rng.random() < 0.12:
            return self._noise(1, 6)
        if "pool" in field:
            return rng.choice(self._lexicon["pools"][field["pool"]]) if rng.random() < 0.6 else self._phrase(1, 2).title()
        makers: dict[str, Callable[[], Any]] = {
            "date": lambda: f"{rng.randint(2019, 2028)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
            "time": lambda: f"{rng.randint(0, 23):02d}:{rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02d}",
            "small": lambda: rng.randint(1, 60),
            "number": lambda: rng.choice((rng.randint(1, 9999), round(rng.uniform(0, 500), rng.randint(1, 2)))),
            "decimal": lambda: round(rng.uniform(-90, 90), rng.randint(1, 4)),
            "year": lambda: rng.randint(1950, 2030),
            "code": self._code,
            "email": lambda: f"{self._invented_word().lower()}@{self._site()}",
            "url": lambda: f"https://{rng.choice(('', 'www.'))}{self._site()}/{self._invented_word().lower()}",
            "path": lambda: f"/{self._invented_word().lower()}/{self._invented_word().lower()}.{rng.choice(('txt', 'csv', 'pdf', 'py', 'json', 'png'))}",
            "brand": lambda: self._phrase(1, 2).title(),
            "phrase": self._phrase,
        }
        return makers[field["kind"]]()

    def _site(self) -> str:
        return f"{self._invented_word().lower()}.{self._random.choice(self._lexicon['top_domains'])}"

    def _code(self) -> str:
        rng = self._random
        letters = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(2, 4)))
        digits = "".join(rng.choices(string.digits, k=rng.randint(1, 5)))
        return rng.choice((letters, digits, letters + digits, f"{letters}-{digits}"))

    # --- records ------------------------------------------------------------------------------------------------

    def _record(self, fields: Sequence[str] | None = None, action: str | None = None, keys: Mapping[str, str] | None = None) -> Record:
        rng, lexicon = self._random, self._lexicon
        names = list(fields or rng.sample(sorted(lexicon["fields"]), rng.choices((1, 2, 3, 4), (3, 4, 3, 1))[0]))
        verb, noun = (action.split(" ", 1) if action else (rng.choice(lexicon["verbs"]), rng.choice(lexicon["nouns"])))
        facts, phrases = [], []
        for name in names:
            field = lexicon["fields"][name]
            value = self._value(field)
            facts.append(((keys or {}).get(name) or rng.choice(field["names"]), value))
            phrases.append(rng.choice(field["phrases"]).replace("{v}", str(value)))
        rng.shuffle(phrases)
        text = self._sentence(verb, noun, phrases)
        seen = {key: value for key, value in facts}
        name = f"{verb} {noun}" if action or rng.random() < 0.6 else f"{self._key()} {rng.choice((noun, verb))}"
        return Record(text=text, action=name.replace(" ", "_"), facts=tuple(seen.items()))

    def _sentence(self, verb: str, noun: str, phrases: list[str]) -> str:
        """A request as people write it: an order, a question, a fragment; sometimes with a sentence around it."""
        rng, lexicon = self._random, self._lexicon
        joined = "".join((" " if i == 0 else rng.choice(lexicon["linkers"])) + p for i, p in enumerate(phrases))
        thing = rng.choice(("the ", "a ", "", "my ", "all ", "some ", "any ", "our ")) + noun
        if rng.random() < 0.5:
            thing = rng.choice((f"{self._invented_word()} {noun}", f"{rng.choice(lexicon['words'])} {noun}", thing))
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
            side = rng.choice(lexicon["asides"]) if rng.random() < 0.5 else self._phrase(2, 7).capitalize() + rng.choice(".?!")
            text = f"{text} {side}" if rng.random() < 0.6 else f"{side} {text}"
        return text[0].upper() + text[1:] if rng.random() < 0.85 else text

    # --- tasks --------------------------------------------------------------------------------------------------

    def _copy(self) -> list[Turn]:
        rng = self._random
        what = rng.random()
        if what < 0.30:
            text = self._noise(3, 40)
        elif what < 0.45:
            text = self._phrase(2, 24)
        elif what < 0.60:
            text = " ".join(str(self._value(rng.choice(list(self._lexicon["fields"].values())))) for _ in range(rng.randint(1, 6)))
        elif what < 0.68:
            text = "".join(rng.choices(string.ascii_letters + string.digits + "-_./:' ", k=rng.randint(4, 30))).strip() or "x"
        else:
            text = self._record().text
        shown, wanted = rng.choice((
            ("Repeat this text: {t}", "{t}"), ("Repeat: {t}", "{t}"), ("Copy the line exactly.\n{t}", "{t}"),
            ("Say \"{t}\"", "{t}"), ("Echo the following.\n\n{t}", "{t}"), ("Text: {t}\nRepeat the text.", "{t}"),
            ("Write this twice: {t}", "{t}\n{t}"), ("Put this in quotes: {t}", '"{t}"'),
            ("Wrap the text in JSON under the key {k}.\nText: {t}", "{j}"), ("Return {k} as JSON.\n{k}: {t}", "{j}"),
            ("{k}: {t}\nRepeat the {k}.", "{t}"), ("Quote what follows as a JSON string: {t}", "{s}"),
        ))  # fmt: skip
        key = self._key()
        parts = {
            "{t}": text, "{k}": key, "{j}": json.dumps({key: text}, ensure_ascii=False),
            "{s}": json.dumps(text, ensure_ascii=False),
        }  # fmt: skip
        return [Turn(role="user", content=_fill(shown, parts)), Turn(role="assistant", content=_fill(wanted, parts), learn=True)]

    def _extract(self) -> list[Turn]:
        rng = self._random
        record = self._record()
        keys = ", ".join(key for key, _ in record.facts)
        shown, write = rng.choice((
            ("Extract {k} from the request as JSON.\nRequest: {t}", _flat_json),
            ("Return a JSON object with the keys {k}.\n{t}", _flat_json),
            ("Turn the request into a call of {a} with {k}.\nRequest: {t}", _call),
            ("Write the call {a}({k}) for this: {t}", _call),
            ("List {k} as lines.\nInput: {t}", _lines),
            ("Function: {a}\nFields: {k}\nUser: {t}\nReturn sorted JSON.", _sorted_json),
            ("Text: {t}\nFunction: {a}\nReturn JSON with do and with, using {k}.", _do_with),
        ))  # fmt: skip
        prompt = shown.replace("{k}", keys).replace("{a}", record.action).replace("{t}", record.text)
        return [Turn(role="user", content=prompt), Turn(role="assistant", content=write(record), learn=True)]

    def _one_field(self) -> list[Turn]:
        record = self._record()
        key, value = self._random.choice(record.facts)
        ask = self._random.choice(("What is the {k}?\n{t}", "{t}\nGive only the {k}.", "Text: {t}\nQuestion: which {k}?"))
        prompt = ask.replace("{k}", key).replace("{t}", record.text)
        return [Turn(role="user", content=prompt), Turn(role="assistant", content=str(value), learn=True)]

    def _demonstrated(self) -> list[Turn]:
        """Two to four chats turns in one invented format; the answers after the first carry loss."""
        rng = self._random
        fields = rng.sample(sorted(self._lexicon["fields"]), rng.choices((1, 2, 3, 4), (2, 4, 3, 1))[0])
        keys = {
            name: self._key() if rng.random() < 0.4 else rng.choice(self._lexicon["fields"][name]["names"])
            for name in fields
        }
        action = f"{rng.choice(self._lexicon['verbs']).split()[0]} {rng.choice(self._lexicon['nouns'])}"
        write, show = self._invented_format(), self._invented_prompt()
        turns: list[Turn] = []
        for shot in range(rng.choices((2, 3, 4), (3, 3, 2))[0]):
            same = rng.random() < 0.8
            some = rng.sample(fields, rng.randint(max(1, len(fields) - 1), len(fields)))
            record = self._record(some if same else None, action if same else None, keys)
            turns.append(Turn(role="user", content=show(record)))
            turns.append(Turn(role="assistant", content=write(record), learn=shot > 0))
        return turns

    def _key(self) -> str:
        while True:
            rng = self._random
            word = rng.choice(self._lexicon["words"]).split()[0]
            name = rng.choice(sorted(self._lexicon["fields"]))
            noise = "".join(c for c in self._noise(1, 3) if c.isalpha()).lower() or word
            key = rng.choice((word, self._invented_word().lower(), name, noise, f"{name}_{word}", f"{noise}_{name}"))
            if key not in self._forbidden:
                return key

    def _invented_prompt(self) -> Format:
        rng = self._random
        head = rng.choice(("", "", "Write it down.\n", "Convert the request.\n", f"Task {self._invented_word()}.\n", "Return it in our format.\n", "Describe the request as data.\n", f"{self._phrase(4, 12)}.\n"))
        label = rng.choice(("", "", "Request: ", "Input: ", "User: ", f"{self._key().capitalize()}: "))
        action = rng.choice(("", "\nFunction: {a}", "\nUse {a}.", "\nSelected: {a}"))
        tail = rng.choice(("", "", f"\n{self._phrase(3, 8)}."))
        return lambda record: head + label + record.text + action.replace("{a}", record.action) + tail

    def _invented_format(self) -> Format:
        rng = self._random
        outer, inner, said = self._key(), self._key(), self._key()
        order = rng.sample(range(3), 3)

        def nested(record: Record) -> str:
            pairs: list[tuple[str, Any]] = [(outer, record.action), (f"{inner}s", dict(sorted(record.facts))), (f"{said}_text", record.text)]
            return json.dumps(dict(pairs[i] for i in order), ensure_ascii=False)

        def half(record: Record) -> str:
            return json.dumps({outer: record.action, f"{inner}s": dict(record.facts)}, ensure_ascii=False)

        def tagged(record: Record) -> str:
            return f'<{outer} {inner}="{record.action}">{_compact(record)}</{outer}>'

        def worded(record: Record) -> str:
            return f"{outer.upper()} {record.action} | " + " | ".join(f"{k} = {v}" for k, v in record.facts)

        choices = ((nested, 7), (half, 2), (tagged, 2), (worded, 1), (_flat_json, 1), (_call, 1), (_lines, 1))
        return rng.choices([write for write, _ in choices], [weight for _, weight in choices])[0]


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """Replace placeholders once each, never inside a value that was put in."""
    out, rest = "", template
    while rest:
        found = [(rest.find(mark), mark) for mark in parts if mark in rest]
        if not found:
            return out + rest
        start, mark = min(found)
        out, rest = out + rest[:start] + parts[mark], rest[start + len(mark) :]
    return out


def _flat_json(record: Record) -> str:
    return json.dumps(dict(record.facts), ensure_ascii=False)


def _sorted_json(record: Record) -> str:
    return json.dumps(dict(record.facts), ensure_ascii=False, sort_keys=True)


def _compact(record: Record) -> str:
    return json.dumps(dict(record.facts), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _do_with(record: Record) -> str:
    return json.dumps({"do": record.action, "with": dict(record.facts)}, ensure_ascii=False)


def _call(record: Record) -> str:
    return f"{record.action}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in record.facts)})"


def _lines(record: Record) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in record.facts)
