"""Training rows: read, shaped as TRL wants them, and measured before any worker starts.

A row longer than `max_length` is refused, never cut: a cut answer teaches the model to stop in the middle. Needs a
tokenizer with a chat template; the template itself belongs to the base.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slm_ray.chat_template import rendered
from slm_ray.config import TrainConfig
from slm_ray.corpus import balance
from slm_ray.corpus.leakage import question_hashes, refuse_leakage
from slm_ray.corpus.read import examples
from slm_ray.corpus.retrieve import DEMONSTRATIONS
from slm_ray.errors import ConfigError, DataError
from slm_ray.storage import read_lines
from slm_ray.tasks import open_track
from slm_ray.types import Example

SPLIT_AGAIN = "split the rows again with slm-ray prepare"
NOT_LEARNED = -100  # the label of a token without loss, torch's and TRL's
_SHOWN = 5
_OR_ANSWER_ONLY = "; set learn: answer, or use a base whose template keeps earlier turns"

Learn = Literal["answer", "every_turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Examples of a file, or of several, each with its place: `FILE:LINE`."""

    path: str
    examples: tuple[Example, ...]
    places: tuple[str, ...]

    def first(self, limit: int | None) -> Rows:
        """The first `limit` rows; all of them for None."""
        return Rows(path=self.path, examples=self.examples[:limit], places=self.places[:limit])

    def chosen(self, numbers: Sequence[int]) -> Rows:
        """The rows of these `numbers`, counted from 0, in that order."""
        return Rows(
            path=self.path,
            examples=tuple(self.examples[number] for number in numbers),
            places=tuple(self.places[number] for number in numbers),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """Rows as the trainer takes them, one behind the other: 8 bytes a token, of which lists of numbers take fifty.

    `ids` and `labels` (as in `tokenised`) are of all rows; a row ends before its entry of `ends`.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    ends: NDArray[np.int64]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [int(length) for length in np.diff(self.ends, prepend=0)]

    @property
    def columns(self) -> dict[str, list[NDArray[np.int32]]]:
        """The columns of a table with one row each."""
        return {name: np.split(of, self.ends[:-1]) for name, of in (("input_ids", self.ids), ("labels", self.labels))}


def joined(rows: Iterable[Mapping[str, Sequence[int]]]) -> Tokens:
    """Rows of `tokenised`, packed as they come."""
    ids, labels, ends = array("i"), array("i"), array("q")
    for row in rows:
        ids.extend(row["input_ids"])
        labels.extend(row["labels"])
        ends.append(len(ids))
    return Tokens(ids=np.array(ids, np.int32), labels=np.array(labels, np.int32), ends=np.array(ends, np.int64))


def read(path: str, track_name: str) -> Rows:
    """The examples of a JSONL file in order; DataError with file:line for every bad row."""
    text = read_lines(path)
    found = examples(text, name=path, track=open_track(track_name, beside=path))
    return Rows(
        path=path,
        examples=tuple(found),
        places=tuple(
            f"{path}:{number}" for number, line in enumerate(text, start=1) if line.removeprefix("\ufeff").strip()
        ),
    )


def files(config: TrainConfig) -> list[tuple[str, str]]:
    """Each file of training rows and the name or file of its track."""
    return [(config.train, config.track), *((one.train, one.track) for one in config.mixture)]


def track_name(config: TrainConfig) -> str:
    """The name of the track that is trained; of several, their names with `-` between them."""
    return "-".join(open_track(track, beside=file).name for file, track in files(config))


def mixed(trained: Rows, config: TrainConfig) -> Rows:
    """`trained` and rows of `config.mixture`, in proportion to the weights, of which `trained` has 1; each for its own track.

    As many rows as the files allow, drawn and interleaved by the seed. `trained` itself where there is no mixture. ConfigError for two tracks of one name.
    """
    if not config.mixture:
        return trained
    sources = {open_track(config.track, beside=config.train).name: (trained, 1.0)}
    for one in config.mixture:
        name = open_track(one.track, beside=one.train).name
        if name in sources:
            raise ConfigError(f"mixture: two tracks are called {name!r}; put their rows into one file")
        sources[name] = (read(one.train, one.track), one.weight)
    examples, _ = balance.mix(
        {name: rows.examples for name, (rows, _) in sources.items()},
        {name: weight for name, (_, weight) in sources.items()},
        seed=config.seed,
    )
    place_of = {
        f"{name}/{example.id}": place
        for name, (rows, _) in sources.items()
        for example, place in zip(rows.examples, rows.places, strict=True)
    }
    return Rows(
        path=" + ".join(rows.path for rows, _ in sources.values()), examples=tuple(examples),
        places=tuple(place_of[example.id] for example in examples),
    )  # fmt: skip


def refuse_leaks(trained: Rows, track_name: str, *, beside: str | None = None) -> None:
    """DataError when a `validation.jsonl` or `test.jsonl` beside the training file asks what a training row asks.

    `beside` is one file of several that the rows come from.
    """
    file = Path(beside or trained.path)
    hashes = question_hashes(trained.examples)
    for name in ("validation.jsonl", "test.jsonl"):
        held = file.with_name(name)
        if not held.is_file() or held == file:
            continue
        try:
            neighbours = read(str(held), track_name).examples
        except DataError:  # a neighbour that is no file of examples of this track holds nothing out
            continue
        refuse_leakage(neighbours, hashes, rows=f"rows of {held}", trained_name=trained.path, fix=SPLIT_AGAIN)


def held_out(validation: str, trained: Rows, track_name: str, *, tokenizer: Any) -> tuple[Example, ...]:
    """The examples of the file `validation`; DataError when one asks what a training row asks, and, with file and line,
    when the base's chat template refuses one: every training would fail at it, when it is first asked."""
    checked = read(validation, track_name)
    hashes = question_hashes(trained.examples)
    refuse_leakage(checked.examples, hashes, rows=f"rows of {validation}", trained_name=trained.path, fix=SPLIT_AGAIN)
    refuse_unshown(checked, tokenizer)
    return checked.examples


def conversation(example: Example) -> dict[str, Any]:
    """The row as TRL's conversational prompt/completion, and how many demonstrations stand in front of its question.

    DataError when the row's tag `demonstrations` is no number: their answers could not be told from the chat's own.
    """
    shown = example.tags.get(DEMONSTRATIONS, "0")
    if not shown.isdecimal():
        raise DataError(
            f"the tag {DEMONSTRATIONS} of row {example.id} is {shown!r}; write how many stand in its prompt"
        )
    return {
        "prompt": example.prompt.as_dicts(),
        "completion": [{"role": "assistant", "content": example.target}],
        "demonstrations": int(shown),
    }


def tokenised(tokenizer: Any, row: Mapping[str, Any], learn: Learn = "answer") -> dict[str, list[int]]:
    """A row of `conversation` as the trainer takes it: `input_ids`, and `labels` that are -100 where nothing is learned.

    Learned is the answer, or with "every_turn" also each earlier turn of the assistant, up to where the template ends it;
    never a demonstration. The prompt's tokens are those of `token_ids`, which are the server's, also where the tokenizer
    would merge the end of the prompt with the start of the answer. ConfigError when the base's chat template renders a
    prompt or a turn differently once more follows it, because the model would then be trained on what it never meets when
    it is served; DataError when it refuses the chat.
    """
    chat = [*row["prompt"], *row["completion"]]
    turns = [len(chat) - 1] if learn == "answer" else _learned_turns(chat, row.get("demonstrations", 0))
    whole = rendered(tokenizer, chat, answer_next=False)
    starts = []
    for turn in turns:
        prompt = rendered(tokenizer, chat[:turn], answer_next=True)
        if not whole.startswith(prompt):
            raise ConfigError(
                "the base's chat template does not keep the prompt when the answer follows it; use a base whose template "
                "renders the prompt the same way in both cases" + _OR_ANSWER_ONLY * (turn < turns[-1])
            )
        starts.append(len(prompt))
    ids, *pieces = _encoded_in_pieces(tokenizer, whole, starts)
    labels = [NOT_LEARNED] * len(ids)
    for turn, start, piece in zip(turns, starts, pieces, strict=True):
        kept = len(piece) if turn == turns[-1] else _turn_length(tokenizer, chat[: turn + 1], start, piece)
        ids = ids + piece
        labels += piece[:kept] + [NOT_LEARNED] * (len(piece) - kept)
    return {"input_ids": ids, "labels": labels}


def _learned_turns(chat: Sequence[Mapping[str, str]], demonstrations: int) -> list[int]:
    """Where the assistant's turns stand that answer a user of this very chat: its demonstrations end before the question."""
    question = len(chat) - 2
    shown = range(question - 2 * demonstrations, question)
    first = next(place for place, turn in enumerate(chat) if turn["role"] == "user")
    return [
        place for place, turn in enumerate(chat)
        if turn["role"] == "assistant" and place > first and place not in shown
    ]  # fmt: skip


def _turn_length(tokenizer: Any, chat: Sequence[Mapping[str, str]], start: int, piece: Sequence[int]) -> int:
    """How many tokens of `piece`, which is the chat from its last turn on and what follows, are that turn and its end."""
    alone = _encoded(tokenizer, rendered(tokenizer, chat, answer_next=False)[start:])
    pairs = enumerate(zip(piece, alone, strict=False))
    length = next((place for place, (one, other) in pairs if one != other), min(len(piece), len(alone)))
    if _without_spaces(chat[-1]["content"]) not in _without_spaces(tokenizer.decode(piece[:length])):
        raise ConfigError(
            f"the base's chat template changes the assistant's turn {len(chat)} once more turns follow it, so that it cannot "
            f"be learned as it is written{_OR_ANSWER_ONLY}"
        )
    return length


def tokens(rows: Rows, tokenizer: Any, *, max_length: int, learn: Learn = "answer") -> Tokens:
    """Every whole row as it is trained on, template included.

    DataError, with file and line, for rows above `max_length` and for rows that the base's chat template refuses;
    ConfigError when the template does not keep a prompt or a turn (`tokenised`).
    """
    refused: list[str] = []
    found = joined(_shown(rows, tokenizer, learn, refused))
    if refused:
        raise DataError(_listed(refused))
    long = [
        f"{where}: {length} tokens, more than max_length {max_length}"
        for where, length in zip(rows.places, found.lengths, strict=True) if length > max_length
    ]  # fmt: skip
    if long:
        raise DataError(
            f"{_listed(long)}; raise max_length to {max(found.lengths)} (it costs memory) or shorten the rows"
        )
    return found


def _shown(rows: Rows, tokenizer: Any, learn: Learn, refused: list[str]) -> Iterable[dict[str, list[int]]]:
    """The rows that the template shows, as tokens; why it does not show the others goes into `refused`."""
    for where, example in zip(rows.places, rows.examples, strict=True):
        try:
            yield tokenised(tokenizer, conversation(example), learn)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        except DataError as error:
            refused.append(f"{where}: {error}")


def refuse_unshown(rows: Rows, tokenizer: Any) -> None:
    """DataError, with file and line, for rows whose prompt the base's chat template refuses."""
    refused = []
    for where, example in zip(rows.places, rows.examples, strict=True):
        try:
            rendered(tokenizer, example.prompt.as_dicts(), answer_next=True)
        except DataError as error:
            refused.append(f"{where}: {error}")
    if refused:
        raise DataError(_listed(refused))


def token_ids(tokenizer: Any, messages: Sequence[dict[str, str]], *, answer_next: bool) -> list[int]:
    """Token ids of a chat in the base's template; `answer_next` ends it where the assistant starts to write.

    The tokenizer is one of `base_model.open_tokenizer`. DataError when the template refuses the chat.
    """
    return _encoded(tokenizer, rendered(tokenizer, messages, answer_next=answer_next))


def _encoded(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a rendered text; what starts and ends a text is in the template already."""
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _encoded_in_pieces(tokenizer: Any, text: str, borders: Sequence[int]) -> list[list[int]]:
    """Tokens of a rendered text, cut at these characters; no token stands across a border."""
    whole, cuts = _encoded(tokenizer, text), [0]
    for border in borders:
        before = _encoded(tokenizer, text[:border])
        if whole[: len(before)] != before:
            spans = pairwise([0, *borders, len(text)])
            return [_encoded(tokenizer, text[start:end]) for start, end in spans]
        cuts.append(len(before))
    return [whole[start:end] for start, end in pairwise([*cuts, len(whole)])]


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _listed(problems: Sequence[str]) -> str:
    more = f" | and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return " | ".join(problems[:_SHOWN]) + more
