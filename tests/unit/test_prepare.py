"""Preparation end to end: what goes in, what is left out and counted, and what stands on which side."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import PrepareConfig
from slm_ray.errors import ConfigError, DataError
from slm_ray.prepare import SPLITS, Prepared, prepare
from slm_ray.tasks import open_track


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_unicode_line_separators_inside_a_row_do_not_end_it(tmp_path: Path, end: str, mark: str) -> None:
    odd = "one\u2028two\u0085three\x0cfour"
    rows = [{"prompt": f"{odd} {number}", "completion": f'{{"query": "{number}"}}'} for number in range(6)]
    source = tmp_path / "rows.jsonl"
    source.write_bytes((mark + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)).encode())
    prepared = prepare(
        PrepareConfig(
            source=str(source), track="structured", out_dir=str(tmp_path / "out"), validation_rows=1, test_rows=1
        )
    )
    assert dict(prepared.rows) == {"train": 4, "validation": 1, "test": 1}
    found = [
        example.prompt.messages[-1].content for split in prepared.rows for example in prepared.dataset(split).examples
    ]
    assert sorted(found) == sorted(row["prompt"] for row in rows)


DATA = Path(__file__).parents[3] / "shared" / "data"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(count: int, word: str = "question", start: int = 0) -> list[dict]:
    return [
        {"prompt": f"{word} number {n} about {n * 7}", "completion": f"answer {n}"} for n in range(start, start + count)
    ]


def run(tmp_path: Path, source: str | dict[str, float], **settings: Any) -> Prepared:
    given = {"track": "chat", "validation_rows": 2, "test_rows": 3} | settings
    return prepare(PrepareConfig(source=source, out_dir=str(tmp_path / "out"), **given))


def rows_of(prepared: Prepared, name: str) -> list[dict]:
    return [json.loads(line) for line in Path(prepared.path(name)).read_text(encoding="utf-8").splitlines()]


def steps(prepared: Prepared) -> dict[str, int]:
    return {step.name: step.dropped for step in prepared.steps}


def test_the_same_settings_are_done_once_and_a_changed_source_again(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", pairs(10))
    first = run(tmp_path, source)
    before = (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns
    assert run(tmp_path, source) == first
    assert (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns == before
    write(tmp_path / "rows.jsonl", pairs(11))
    assert run(tmp_path, source).rows["train"] == 6


def test_sources_of_their_own_keep_their_rows_and_what_leaks_leaves_training(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.jsonl", [*pairs(10), {"prompt": " QUESTION number 100 about 700", "completion": "x"}]
    )
    test = write(tmp_path / "test.jsonl", pairs(5, start=100))
    found = run(tmp_path, train, test_source=test, test_rows=None)
    assert dict(found.rows) == {"train": 8, "validation": 2, "test": 5}
    assert [row["prompt"] for row in rows_of(found, "test")] == [row["prompt"] for row in pairs(5, start=100)]
    assert steps(found)["leaks"] == 1
    assert dict(run(tmp_path, train, test_source=test, test_rows=2).rows)["test"] == 2
    both = run(tmp_path, train, test_source=test, validation_source=test, test_rows=2, validation_rows=None)
    assert dict(both.rows) == {"train": 10, "validation": 3, "test": 2}


def test_a_folder_of_shards_gives_the_same_splits_as_one_file(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    write(tmp_path / "shards" / "b.jsonl", pairs(6))
    write(tmp_path / "shards" / "a.jsonl", pairs(6, start=6))
    whole = run(tmp_path, write(tmp_path / "rows.jsonl", pairs(12)))
    one = {name: rows_of(whole, name) for name in whole.rows}
    assert {name: rows_of(run(tmp_path, str(tmp_path / "shards")), name) for name in one} == one


def test_a_classification_finds_its_labels_and_its_folder_says_them(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "".join(f"beer {n},{'ale' if n % 2 else 'stout'}\n" for n in range(12))
    )
    found = run(tmp_path, str(tmp_path / "rows.csv"), track="classify", stratify="label", test_rows=4)
    (first, *_) = found.dataset("test").examples
    assert first.prompt.messages[0].content.endswith("\nLabels: ale, stout")
    assert open_track("classify", beside=found.path("test")).labels == ("ale", "stout")
    assert sorted(row["completion"] for row in rows_of(found, "test")) == ["ale", "ale", "stout", "stout"]


def test_each_step_of_curation_is_counted(tmp_path: Path) -> None:
    long = "word " * 40
    rows = [
        *pairs(20),
        pairs(1)[0],
        {"id": "again", **pairs(1)[0]},
        {"prompt": "refuse please now", "completion": "I'm sorry, but I can't help with that."},
        {"prompt": "cut this off", "completion": '{"a": [1, 2'},
        {"prompt": "long", "completion": long},
        {"prompt": "Почему небо синее", "completion": "Потому что так"},
    ]
    found = run(
        tmp_path, write(tmp_path / "rows.jsonl", rows),
        curation={
            "duplicates": "exact", "drop": ["cut", "refusals"], "target_words": (1, 30),
            "scripts": ["latin"], "order": "shortest_first",
        },
    )  # fmt: skip
    assert steps(found) == {
        "equal rows": 1, "exact duplicates": 1, "length": 1, "cut answers": 1, "refusals": 1, "script": 1, "split": 0,
        "order": 0,
    }  # fmt: skip
    assert sum(found.rows.values()) == 20
    summary = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert {step["name"]: step["dropped"] for step in summary["steps"]} == steps(found)
    lengths = [len(f"{row['prompt']} {row['completion']}".split()) for row in rows_of(found, "train")]
    assert lengths == sorted(lengths)


def test_sources_are_mixed_by_weight_and_told_apart(tmp_path: Path) -> None:
    sources = {write(tmp_path / "a.jsonl", pairs(30)): 2.0, write(tmp_path / "b.jsonl", pairs(30, "other")): 1.0}
    found = run(tmp_path, sources, curation={"order": "by_source"})
    everything = [row for name in found.rows for row in rows_of(found, name)]
    counts = Counter(row["tags"]["source"] for row in everything)
    assert counts == {"a": 30, "b": 15}
    train = [row["tags"]["source"] for row in rows_of(found, "train")]
    assert train == sorted(train) and set(train) == {"a", "b"}
    assert all(row["id"].startswith(f"{row['tags']['source']}/") for row in everything)


def test_near_duplicates_stand_on_one_side_when_asked(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(400)]
    rows = [
        {"prompt": " ".join(words[20 * n : 20 * n + 20]) + end, "completion": "x"}
        for n in range(20)
        for end in ("", " now")
    ]
    found = run(tmp_path, write(tmp_path / "rows.jsonl", rows), separate_near=True, test_rows=6, validation_rows=6)
    side_of = {row["prompt"]: name for name in found.rows for row in rows_of(found, name)}
    assert len(side_of) == 40
    assert all(side_of[prompt] == side_of[f"{prompt} now"] for prompt in side_of if not prompt.endswith(" now"))
    groups = Counter(row["group"] for name in ("validation", "test") for row in rows_of(found, name))
    assert list(groups.values()) == [2] * 6


def test_a_row_of_too_many_tokens_is_a_bad_row_and_never_cut(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [*pairs(9), {"prompt": "p", "completion": "word " * 50}])
    config = PrepareConfig(
        source=source, track="chat", out_dir=str(tmp_path / "out"), validation_rows=2, test_rows=3,
        curation={"max_tokens": 30}, max_bad_share=0.2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="max_tokens needs a tokenizer; set `base`"):
        prepare(config)
    found = prepare(config, token_counter=lambda example: len(example.target.split()))
    assert (found.bad, found.rows["train"]) == ({"too_long": 1}, 4)
    (bad,) = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert (bad["line"], bad["kind"], bad["reason"]) == (10, "too_long", "it has 50 tokens, more than max_tokens 30")


def test_a_group_is_split_together_written_and_read_back(tmp_path: Path) -> None:
    rows = [{**row, "group": n // 4} for n, row in enumerate(pairs(24))]
    found = run(tmp_path, write(tmp_path / "rows.jsonl", rows), test_rows=4, validation_rows=4)
    groups = [{example.group for example in found.dataset(name).examples} for name in SPLITS]
    assert [len(names) for names in groups] == [4, 1, 1]
    assert set.union(*groups) == {str(n) for n in range(6)}
    assert {row["group"] for row in rows_of(found, "train")} == groups[0]


def test_held_out_rows_of_one_question_are_written_as_one_group(tmp_path: Path) -> None:
    other = {"prompt": "Question  A?", "completion": "another answer"}
    rows = [{"prompt": "question a?", "completion": "an answer"}, other, *pairs(4, "alone")]
    rows += [{"prompt": "question b?", "completion": str(n), "group": name} for n, name in enumerate("yx")]
    test, train = write(tmp_path / "test.jsonl", rows), write(tmp_path / "rows.jsonl", pairs(20, start=100))
    found = run(tmp_path, train, test_source=test, test_rows=None)
    groups = [example.group for example in found.dataset("test").examples]
    assert groups[0] is not None and groups[0] == groups[1]
    assert groups[2:] == [None] * 4 + ["x", "x"]
    assert all("group" not in row for row in rows_of(found, "test")[2:6] + rows_of(found, "train"))


def test_rows_of_tools_they_do_not_list_are_counted_and_alone_refused(tmp_path: Path) -> None:
    tools = [{"name": "add", "description": "Adds.", "parameters": {}}]
    rows = [{"query": f"q{n}", "tools": tools, "answers": [{"name": "add", "arguments": {}}]} for n in range(9)]
    gone = {"query": "gone", "tools": tools, "answers": [{"name": "other", "arguments": {}}]}
    found = run(tmp_path, write(tmp_path / "rows.jsonl", [*rows, gone]), track="toolcall")
    assert steps(found)["no task row"] == 1
    with pytest.raises(DataError, match="all of its 1 rows are left out by their format"):
        run(tmp_path, write(tmp_path / "gone.jsonl", [gone]), track="toolcall")


@pytest.mark.parametrize("below", ["", "sub", "sub/deeper"])
def test_an_out_dir_that_is_a_file_or_lies_under_one_is_refused_before_anything_is_read(
    tmp_path: Path, below: str
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"out_dir '.*' can be no folder of results: .*is a file; give a folder"
    ) as caught:
        prepare(PrepareConfig(source=str(tmp_path / "nowhere"), track="chat", out_dir=str(tmp_path / "out" / below)))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out").read_text() == "mine"


def test_an_out_dir_without_access_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # what a read-only disk says, even to root
    with pytest.raises(ConfigError, match=r"out_dir '.*' can be no folder of results: .* is read-only for this user"):
        prepare(PrepareConfig(source=str(tmp_path / "nowhere"), track="chat", out_dir=str(tmp_path / "out" / "a")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"validation_rows": None}, "validation_rows is null; set a number"),
        ({"keep_split": True, "test_source": "x"}, "keep_split takes test rows from `source`"),
        ({"source": {}}, "source is empty"),
        ({"track": "chat", "format": "template"}, "has no template and target"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, settings: dict, says: str) -> None:
    source = write(tmp_path / "rows.jsonl", pairs(10))
    settings = {key: source if value == "x" else value for key, value in settings.items()}
    with pytest.raises(ConfigError, match=says):
        run(tmp_path, settings.pop("source", source), **settings)


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not here")
@pytest.mark.parametrize("track", ["structured", "toolcall"])
def test_the_earlier_systems_folders_are_reproduced_by_prepare(tmp_path: Path, track: str) -> None:
    source = str(DATA / "slm_swap" / "xlam_rows.json")
    found = run(tmp_path, source, track=track, keep_split=True, validation_rows=60, test_rows=50)
    assert dict(found.rows) == {"train": 300, "validation": 60, "test": 50}
    for name, was in {"train": "train", "validation": "val", "test": "test"}.items():
        lines = [json.dumps({"prompt": row["prompt"], "completion": row["completion"]}) for row in rows_of(found, name)]
        assert ("\n".join(lines) + "\n").encode() == (DATA / "slm_swap" / track / f"{was}.jsonl").read_bytes()


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not here")
def test_banking77_and_gsm8k_keep_their_own_test_rows(tmp_path: Path) -> None:
    bank = run(
        tmp_path, str(DATA / "banking77" / "train.csv"), track="classify", validation_rows=60, test_rows=None,
        test_source=str(DATA / "banking77" / "test.csv"),
    )  # fmt: skip
    assert sum(bank.rows.values()) + steps(bank)["leaks"] == 10_003 + 3_080
    assert bank.rows["test"] == 3_080 and len(open_track("classify", beside=bank.path("test")).labels) == 77
    maths = run(
        tmp_path, str(DATA / "gsm8k" / "train.jsonl"), track="gsm8k", validation_rows=60, test_rows=None,
        test_source=str(DATA / "gsm8k" / "test.jsonl"),
    )  # fmt: skip
    assert dict(maths.rows) == {"train": 7_413, "validation": 60, "test": 1_319}
