"""What Ray may call twice, since it repeats a call whose answer was lost on the way, does its work once. No Ray is started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from slm_ray.errors import ModelError
from slm_ray.evaluation.shards import LogKeeper, Shard


def test_lines_that_are_sent_again_stand_once_in_the_log(tmp_path: Path) -> None:
    keeper = LogKeeper(tmp_path)
    for number in (0, 1, 0, 1, 2):
        keeper.append("shard-0.jsonl", b"%d\n" % number, "first", number)
    keeper.append("shard-0.jsonl", b"started again\n", "second", 0)
    assert keeper.answered("shard-0.jsonl") == b"0\n1\n2\nstarted again\n"


def test_a_shard_that_is_asked_to_run_again_waits_for_the_work_in_hand() -> None:
    begun = []

    class Slow(Shard):
        async def _run(self, *_: Any) -> Any:
            begun.append(1)
            await asyncio.sleep(0.05)
            if len(begun) == 1:
                raise ModelError("refused")

    async def both() -> list[Any]:
        shard: Any = Slow()
        return list(await asyncio.gather(shard.run(None), shard.run(None), return_exceptions=True))

    told = asyncio.run(both())
    assert begun == [1]
    assert [type(each) for each in told] == [ModelError, ModelError]


def test_a_shard_that_runs_alone_says_what_ends_it() -> None:
    class Refused(Shard):
        async def _run(self, *_: Any) -> Any:
            raise ModelError("refused")

    with pytest.raises(ModelError, match="refused"):
        asyncio.run(Refused().run(None))  # type: ignore[arg-type]
