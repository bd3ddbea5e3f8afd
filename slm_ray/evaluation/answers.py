"""An arm's answers as a mapping that reads the log as it goes: a report of any size holds none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from slm_ray.errors import DataError
from slm_ray.runlog import Response, RunLog

Value = TypeVar("Value")


class Answers(Mapping[str, Value], Generic[Value]):
    """`value` of the answer to each example; DataError where one is asked for that the log does not have."""

    def __init__(self, log: RunLog, spec: str, keys: Mapping[str, str], value: Callable[[Response], Value]) -> None:
        self._log = log
        self._spec = spec
        self._keys = keys
        self._value = value

    def __getitem__(self, example_id: str) -> Value:
        response = self._log.response(self._keys[example_id])
        if response is None:
            raise DataError(
                f"{self._spec} has no answer to example {example_id!r} in the log; run the same command again"
            )
        return self._value(response)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
