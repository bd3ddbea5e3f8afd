"""Files read in parts give what one reader of them all gives: rows, order, bad rows, repeated ids, errors."""

import gzip
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import Curation, PrepareConfig
from slm_ray.errors import DataError
from slm_ray.prepare import prepare
from slm_ray.prepare.shards import Shard
from slm_ray.types import Example

FILES: dict[str, list[Any]] = {
    "a.jsonl": [
        {"prompt": "grüße\u2028 und 👩‍👩‍👧", "completion": "ok", "id": 2**63 - 1, "tags": {"tool": "a"}},
        {"messages": [{"role": "user", "content": "m"}, {"role": "assistant", "content": "n"}], "group": 7},
        *({"prompt": f"p{n}", "completion": f"c{n}"} for n in range(30)),
    ],
    "b.json": [{"instruction": "i", "output": "o"}, 3, {"prompt": "p3", "completion": "c3"}],
    "c.jsonl.gz": [{"prompt": "x", "completion": "y", "id": 2**63 - 1}, {"prompt": None, "completion": "y"}],
    "d.jsonl": [],
    "e.jsonl": [{"prompt": f"q{n}", "completion": f"c{n}"} for n in range(5000)],
}


class Here:
    """An executor that stays in this process and remembers how it was called."""

    def __init__(self, threshold_bytes: int | None) -> None:
        self.threshold_bytes = threshold_bytes
        self.parts: list[str] = []
        self.titles: list[str] = []

    def pays_off(self, like_bytes: int) -> bool:
        return self.threshold_bytes is not None and like_bytes >= self.threshold_bytes

    def map(self, function: Callable[[Any], Iterable[Any]], items: Sequence[Any], *, title: str) -> Iterator[Any]:
        self.titles += [title] * len(items)
        self.parts += [Path(item.file.name).name for item in items if isinstance(item, Shard)]
        return itertools.chain.from_iterable(map(function, items))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, rows in FILES.items():
        text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder


def made(
    tmp_path: Path, source: Any, name: str, least: int | None = 0, **settings: Any
) -> tuple[dict[str, bytes], Here]:
    given = {"track": "chat", "validation_rows": 5, "test_rows": 5, "max_bad_share": 0.01} | settings
    config = PrepareConfig(source=source, out_dir=str(tmp_path / name), **given)
    here = Here(least)
    prepare(config, executor=here)
    return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}, here


def test_the_same_bytes_whichever_way_the_files_are_read(tmp_path: Path, source: Path) -> None:
    apart, here = made(tmp_path, str(source), "apart")
    whole, nobody = made(tmp_path, str(source), "whole", least=None)
    assert (here.parts, nobody.parts) == (list(FILES), [])
    assert apart == whole
    kinds = [(Path(row["file"]).name, row["kind"]) for row in map(json.loads, apart["bad_rows.jsonl"].splitlines())]
    assert kinds == [("b.json", "not_object"), ("b.json", "duplicate_content"), ("c.jsonl.gz", "duplicate_id"), ("c.jsonl.gz", "null")]  # fmt: skip


def test_several_sources_with_weights_and_a_test_source(tmp_path: Path, source: Path) -> None:
    sources = {str(source / "a.jsonl"): 1.0, str(source / "e.jsonl"): 2.0}
    test = tmp_path / "held.jsonl"
    test.write_text('{"prompt": "p1", "completion": "c"}\n{"prompt": "held", "completion": "c"}\n', encoding="utf-8")
    settings: dict[str, Any] = {"test_source": str(test), "test_rows": None}
    apart, here = made(tmp_path, sources, "apart", **settings)
    assert here.parts == ["a.jsonl", "e.jsonl", "held.jsonl"]
    assert apart == made(tmp_path, sources, "whole", least=None, **settings)[0]


def test_small_or_single_files_are_read_here(tmp_path: Path, source: Path) -> None:
    assert made(tmp_path, str(source), "small", least=10**9)[1].parts == []
    assert made(tmp_path, str(source / "e.jsonl"), "one")[1].parts == []


def test_the_first_broken_file_is_the_error_either_way(tmp_path: Path, source: Path) -> None:
    (source / "b.json").write_text('[{"prompt": "p"', encoding="utf-8")
    (source / "c.jsonl.gz").write_bytes(b"no gzip")
    said = []
    for name, least in (("apart", 0), ("whole", None)):
        with pytest.raises(DataError) as caught:
            made(tmp_path, str(source), name, least=least)
        said.append(str(caught.value))
        assert not (tmp_path / name).exists()
    assert said[0] == said[1]
    assert "b.json:1: this is not JSON" in said[0]


def test_the_way_of_reading_is_no_other_preparation(tmp_path: Path, source: Path) -> None:
    made(tmp_path, str(source), "out")
    before = (tmp_path / "out/train.jsonl").stat().st_mtime_ns
    assert made(tmp_path, str(source), "out", least=None)[1].parts == []
    assert (tmp_path / "out/train.jsonl").stat().st_mtime_ns == before


def test_tokens_and_demonstrations_are_the_same_whoever_works(tmp_path: Path) -> None:
    rows = [{"prompt": f"row {n} about topic {n % 7}", "completion": "word " * (1 + n % 30)} for n in range(1300)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def count(example: Example) -> int:
        return len(example.prompt.messages[-1].content.split()) + len(example.target.split())

    found = {}
    for name, least in (("apart", 0), ("alone", None), ("small", 10**12)):
        here = Here(least)
        config = PrepareConfig(
            source=str(source), track="chat", out_dir=str(tmp_path / name), validation_rows=5, test_rows=5,
            few_shot=2, max_bad_share=0.5, curation=Curation(max_tokens=32),
        )  # fmt: skip
        done = prepare(config, token_counter=count, executor=here)
        assert done.bad == {"too_long": 129}
        files = {
            path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir()) if path.name != "prepare.json"
        }
        found[name] = files, Counter(here.titles)
    assert found["apart"][0] == found["alone"][0] == found["small"][0]
    assert [found[name][1] for name in found] == [{"counting tokens": 6, "demonstrations": 3}, {}, {}]
