"""The stand-in: the base model shown worked examples, answering as the LLM where there is no LLM to call.

It exists so that the whole loop runs without a key or a network. It is no large model, and every answer says so: the
response's `model` is `stand-in:BASE+K demonstrations`. Its demonstrations are training rows, never the question's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from slm_ray.corpus.retrieve import Retriever, with_demonstrations
from slm_ray.errors import DataError
from slm_ray.remote import fetched, is_remote
from slm_ray.tasks import open_dataset
from slm_ray.types import Example, Message, Prompt


class StandIn:
    """Prompts with the `demonstrations` nearest rows of `pools` (track name to JSONL path or URI) in front of the question.

    A pool's file is read when it is first needed and again when it changes.
    """

    def __init__(self, *, base: str, deployment: str, demonstrations: int, pools: Mapping[str, str]) -> None:
        self.base = base
        self.deployment = deployment
        self._demonstrations = demonstrations
        self._pools = dict(pools)
        self._read: dict[str, tuple[tuple[int, int], list[Example]]] = {}
        self._indexed: dict[Message | None, tuple[list[Example], Retriever]] = {}

    @property
    def label(self) -> str:
        """What answers are signed with."""
        return f"stand-in:{self.base}+{self._demonstrations} demonstrations"

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """The chat to send to the base model; DataError when the chat is not text or a pool cannot be read."""
        asked = Prompt(messages=tuple(_message(message) for message in messages))
        if not asked.messages or asked.messages[-1].role != "user":
            raise DataError("the last message is not the user's; the stand-in answers questions only")
        shots = self._pool(asked.messages[0]).nearest(asked.messages[-1].content, self._demonstrations)
        return with_demonstrations(asked, shots)

    def _pool(self, system: Message) -> Retriever:
        """Rows of the track whose system message the chat has; all rows when it has another."""
        rows = [row for name in sorted(self._pools) for row in self._rows(name)]
        same = [row for row in rows if row.prompt.messages[0] == system]
        rows = same or rows
        known = self._indexed.get(system if same else None)
        if known is None or known[0] != rows:
            known = self._indexed[system if same else None] = rows, Retriever(rows)
        return known[1]

    def _rows(self, name: str) -> list[Example]:
        path = self._pools[name]
        if is_remote(path):  # what a run has prepared stays as it is
            path = self._pools[name] = str(fetched(path, setting="the stand-in's pool"))
        try:
            found = os.stat(path)
        except OSError as error:
            raise DataError(
                f"the stand-in's pool {path} cannot be read: {error.strerror}; deploy with the right path"
            ) from None
        version = (found.st_mtime_ns, found.st_size)
        known = self._read.get(name)
        if known is None or known[0] != version:
            known = self._read[name] = version, list(open_dataset(path, name).examples)
        return known[1]


def _message(message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise DataError(f"the stand-in takes system, user and assistant turns of plain text, not {str(message)[:80]}")
    return Message(role=role, content=content)
