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

from tools.facts import Facts, Record

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


Format = Callable[[Record], str]


class Mixture:
    """An endless, seeded stream of pretraining chats."""

    def __init__(self, lexicon: Mapping[str, Any], seed: int, pieces: Sequence[str] = ()) -> None:
        """`pieces` are a tokenizer's entries as text: copying them at random makes every one of them copyable."""
        self._lexicon = lexicon
        self._random = random.Random(seed)
        self._facts = Facts(lexicon, self._random, pieces)
        self._tasks: Sequence[tuple[float, Callable[[], list[Turn]]]] = (
            (0.30, self._copy), (0.24, self._extract), (0.05, self._one_field), (0.41, self._demonstrated),
        )  # fmt: skip

    def sample(self) -> list[Turn]:
        """One chat: an optional system turn, then user and assistant turns."""
        weights = [weight for weight, _ in self._tasks]
        task = self._random.choices([make for _, make in self._tasks], weights)[0]
        system = [Turn(role="system", content=self._random.choice(SYSTEMS))] if self._random.random() < 0.7 else []
        return system + task()

    def _copy(self) -> list[Turn]:
        rng = self._random
        what = rng.random()
        if what < 0.30:
            text = self._facts.noise(3, 40)
        elif what < 0.45:
            text = self._facts.phrase(2, 24)
        elif what < 0.60:
            text = " ".join(
                str(self._facts.value(rng.choice(list(self._lexicon["fields"].values()))))
                for _ in range(rng.randint(1, 6))
            )
        elif what < 0.68:
            text = (
                "".join(rng.choices(string.ascii_letters + string.digits + "-_./:' ", k=rng.randint(4, 30))).strip()
                or "x"
            )
        else:
            text = self._facts.record().text
        shown, wanted = rng.choice((
            ("Repeat this text: {t}", "{t}"), ("Repeat: {t}", "{t}"), ("Copy the line exactly.\n{t}", "{t}"),
            ("Say \"{t}\"", "{t}"), ("Echo the following.\n\n{t}", "{t}"), ("Text: {t}\nRepeat the text.", "{t}"),
            ("Write this twice: {t}", "{t}\n{t}"), ("Put this in quotes: {t}", '"{t}"'),
            ("Wrap the text in JSON under the key {k}.\nText: {t}", "{j}"), ("Return {k} as JSON.\n{k}: {t}", "{j}"),
            ("{k}: {t}\nRepeat the {k}.", "{t}"), ("Quote what follows as a JSON string: {t}", "{s}"),
        ))  # fmt: skip
        key = self._facts.key()
        parts = {
            "{t}": text, "{k}": key, "{j}": json.dumps({key: text}, ensure_ascii=False),
            "{s}": json.dumps(text, ensure_ascii=False),
        }  # fmt: skip
        return [
            Turn(role="user", content=_fill(shown, parts)),
            Turn(role="assistant", content=_fill(wanted, parts), learn=True),
        ]

    def _extract(self) -> list[Turn]:
        rng = self._random
        record = self._facts.record()
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
        record = self._facts.record()
        key, value = self._random.choice(record.facts)
        ask = self._random.choice(
            ("What is the {k}?\n{t}", "{t}\nGive only the {k}.", "Text: {t}\nQuestion: which {k}?")
        )
        prompt = ask.replace("{k}", key).replace("{t}", record.text)
        return [Turn(role="user", content=prompt), Turn(role="assistant", content=str(value), learn=True)]

    def _demonstrated(self) -> list[Turn]:
        """Two to four chats turns in one invented format; the answers after the first carry loss."""
        rng = self._random
        fields = rng.sample(sorted(self._lexicon["fields"]), rng.choices((1, 2, 3, 4), (2, 4, 3, 1))[0])
        keys = {
            name: self._facts.key() if rng.random() < 0.4 else rng.choice(self._lexicon["fields"][name]["names"])
            for name in fields
        }
        action = f"{rng.choice(self._lexicon['verbs']).split()[0]} {rng.choice(self._lexicon['nouns'])}"
        write, show = self._invented_format(), self._invented_prompt()
        turns: list[Turn] = []
        for shot in range(rng.choices((2, 3, 4, 5), (3, 3, 3, 1))[0]):
            same = rng.random() < 0.8
            some = rng.sample(fields, rng.randint(max(1, len(fields) - 1), len(fields)))
            record = self._facts.record(some if same else None, action if same else None, keys)
            turns.append(Turn(role="user", content=show(record)))
            turns.append(Turn(role="assistant", content=write(record), learn=shot > 0))
        return turns

    def _invented_prompt(self) -> Format:
        rng = self._random
        head = rng.choice(
            (
                "",
                "",
                "Write it down.\n",
                "Convert the request.\n",
                f"Task {self._facts.invented_word()}.\n",
                "Return it in our format.\n",
                "Describe the request as data.\n",
                f"{self._facts.phrase(4, 12)}.\n",
            )
        )
        label = rng.choice(("", "", "Request: ", "Input: ", "User: ", f"{self._facts.key().capitalize()}: "))
        action = rng.choice(
            ("", "\nFunction: {a}", "\nUse {a}.", "\nSelected: {a}", f"\n{self._facts.key().capitalize()}: {{a}}")
        )
        tail = rng.choice(("", "", f"\n{self._facts.phrase(3, 8)}."))
        return lambda record: head + label + record.text + action.replace("{a}", record.action) + tail

    def _invented_format(self) -> Format:
        rng = self._random
        key = self._facts.key
        outer = rng.choice((key(), f"{key()}_name", "function", "do", "name", "action", "call"))
        inner = rng.choice((key(), f"{key()}s", "params", "with", "values", "slots", "fields"))
        said = rng.choice((key(), key(), f"{key()}_text", "text", "message", "request", "input", "sentence"))
        order = rng.sample(range(3), 3)

        def nested(record: Record) -> str:
            pairs: list[tuple[str, Any]] = [
                (outer, record.action),
                (inner, dict(sorted(record.facts))),
                (said, record.text),
            ]
            return json.dumps(dict(pairs[i] for i in order), ensure_ascii=False)

        def half(record: Record) -> str:
            return json.dumps({outer: record.action, inner: dict(record.facts)}, ensure_ascii=False)

        def tagged(record: Record) -> str:
            return f'<{outer} {inner}="{record.action}">{_compact(record)}</{outer}>'

        def worded(record: Record) -> str:
            return f"{outer.upper()} {record.action} | " + " | ".join(f"{k} = {v}" for k, v in record.facts)

        choices = ((nested, 9), (half, 2), (tagged, 2), (worded, 1), (_flat_json, 1), (_call, 1), (_lines, 1))
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
    return (
        f"{record.action}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in record.facts)})"
    )


def _lines(record: Record) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in record.facts)
