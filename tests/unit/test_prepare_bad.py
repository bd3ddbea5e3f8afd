"""Bad rows of a source: all of them are listed, one refuses the source, `max_bad_share` leaves a few out and counts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray.config import PrepareConfig
from slm_ray.errors import ConfigError, DataError
from slm_ray.prepare import prepare
from slm_ray.training.base_model import token_counter
from slm_ray.types import Example
from tests.bases import make_base

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "validation", "test")


def rows(count: int) -> list[str]:
    return [json.dumps({"prompt": f"p{number}", "completion": f"c{number}"}) for number in range(count)]


def config(folder: Path, lines: list[str] | None = None, **settings: object) -> PrepareConfig:
    source = folder / "rows.jsonl"
    if lines is not None:
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = {
        "source": str(source),
        "track": "chat",
        "out_dir": str(folder / "out"),
        "validation_rows": 2,
        "test_rows": 2,
    }
    return PrepareConfig.model_validate({**given, **settings})


def bad_rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "out/bad_rows.jsonl").read_text(encoding="utf-8").splitlines()]


def test_one_bad_row_refuses_the_source_and_all_of_them_are_listed(tmp_path: Path) -> None:
    lines = [*rows(20), '{"prompt": "p"}', *['{"prompt": null, "completion": "c"}'] * 6]
    said: list[str] = []
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path, lines), log=said.append)
    source = str(tmp_path / "rows.jsonl")
    assert str(caught.value).startswith(f"{source}:21: there is no 'completion'")
    assert "and 2 more bad rows" in str(caught.value) and "bad_rows.jsonl" in str(caught.value)
    found = bad_rows(tmp_path)
    assert [(row["file"], row["line"], row["kind"]) for row in found] == [
        (source, 21, "missing_key"), *((source, line, "null") for line in range(22, 28)),
    ]  # fmt: skip
    assert all(row.keys() == {"file", "line", "kind", "reason", "fix"} and all(row.values()) for row in found)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bad_rows.jsonl"]
    table = [line.split()[:3] for line in said[-1].splitlines()[1:]]
    assert table == [["6", "null", f"{source}:22"], ["1", "missing_key", f"{source}:21"]]


def test_the_good_rows_stay_as_they_would_be_without_the_bad_ones(tmp_path: Path) -> None:
    lines = rows(199)
    prepared = prepare(config(tmp_path, [*lines[:50], "nope", *lines[50:]], max_bad_share=0.01))
    assert dict(prepared.rows) == {"train": 195, "validation": 2, "test": 2}
    assert json.loads((tmp_path / "out/prepare.json").read_text())["bad"] == {"not_json": 1}
    assert "not_json 1" in prepared.summary()
    assert [(row["line"], row["kind"]) for row in bad_rows(tmp_path)] == [(51, "not_json")]
    clean = prepare(config(tmp_path, lines, out_dir=str(tmp_path / "clean")))
    for name in SPLITS:
        assert Path(prepared.path(name)).read_bytes() == Path(clean.path(name)).read_bytes()
    assert not (tmp_path / "clean/bad_rows.jsonl").exists()


@pytest.mark.parametrize(("good", "share", "refused"), [(99, 0.01, False), (98, 0.01, True), (98, 0.02, False)])
def test_a_source_is_refused_above_the_share_and_not_at_it(
    tmp_path: Path, good: int, share: float, refused: bool
) -> None:
    given = config(tmp_path, [*rows(good), "nope"], max_bad_share=share)
    if refused:
        with pytest.raises(DataError, match=rf"1 of {good + 1} rows are bad .* more than max_bad_share"):
            prepare(given)
        assert not (tmp_path / "out/train.jsonl").exists()
    else:
        assert sum(prepare(given).rows.values()) == good
    assert len(bad_rows(tmp_path)) == 1


def test_nothing_but_bad_rows_is_refused_whatever_the_share(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        prepare(config(tmp_path, ["nope", "[]x"], max_bad_share=1.0))


def test_the_list_goes_away_with_the_bad_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        prepare(config(tmp_path, [*rows(9), "nope"]))
    assert len(bad_rows(tmp_path)) == 1
    prepare(config(tmp_path, rows(9)))
    assert not (tmp_path / "out/bad_rows.jsonl").exists()


def test_a_preparation_that_stands_still_says_what_it_left_out(tmp_path: Path) -> None:
    given = config(tmp_path, [*rows(150), "nope"], max_bad_share=0.01)
    first, second = prepare(given), prepare(given)
    assert first.summary() == second.summary() and "not_json 1" in second.summary()


def test_a_chat_that_the_base_s_template_refuses_is_a_bad_row(tmp_path: Path) -> None:
    count = token_counter(str(make_base(tmp_path / "base", family="mistral")))
    turns = [{"role": role, "content": role} for role in ("user", "user", "assistant")]
    prepared = prepare(
        config(
            tmp_path, [*rows(120), json.dumps({"messages": turns})], max_bad_share=0.01, curation={"max_tokens": 200}
        ),
        token_counter=count,
    )
    (bad,) = bad_rows(tmp_path)
    assert (bad["line"], bad["kind"]) == (121, "refused_chat")
    assert "let user and assistant alternate" in str(bad["reason"])
    assert sum(prepared.rows.values()) == 120


def test_a_row_that_is_too_long_is_refused_and_never_cut(tmp_path: Path) -> None:
    def count(example: Example) -> int:
        return len(example.prompt.messages[-1].content) + len(example.target)

    long = json.dumps({"prompt": "q", "completion": "x" * 100})
    given = config(tmp_path, [*rows(120), long], max_bad_share=0.01, curation={"max_tokens": 100})
    prepared = prepare(given, token_counter=count)
    assert [(row["line"], row["kind"]) for row in bad_rows(tmp_path)] == [(121, "too_long")]
    assert "101 tokens" in str(bad_rows(tmp_path)[0]["reason"])
    kept = [example.target for name in SPLITS for example in prepared.dataset(name).examples]
    assert sorted(kept) == sorted(f"c{number}" for number in range(120))
    exact = config(tmp_path, curation={"max_tokens": 101}, out_dir=str(tmp_path / "exact"))
    assert sum(prepare(exact, token_counter=count).rows.values()) == 121
    with pytest.raises(ConfigError, match="max_tokens needs a tokenizer"):
        prepare(given)


def test_a_line_that_is_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(
        b"".join(line.encode() + b"\r\n" for line in rows(9)) + b'{"prompt": "\xff"}\n'
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:10: the line is not UTF-8"):
        prepare(config(tmp_path))
    assert [(row["line"], row["kind"]) for row in bad_rows(tmp_path)] == [(10, "not_utf8")]


def test_a_csv_line_with_a_field_too_many_is_one_bad_row(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text(
        "\ufefftext,label\r\n" + "".join(f"t{n},glad\r\n" for n in range(9)) + "a,b,sad\r\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"rows\.csv:11: it has 3 fields, the header has 2"):
        prepare(config(tmp_path, source=str(source), track="classify"))
    assert [row["kind"] for row in bad_rows(tmp_path)] == ["columns"]


def test_the_job_prints_the_table_and_ends_with_status_2(tmp_path: Path) -> None:
    given = config(tmp_path, [*rows(9), '{"prompt": "p"}', "nope"])
    settings = [
        f"{name}={getattr(given, name)}" for name in ("source", "track", "out_dir", "validation_rows", "test_rows")
    ]
    found = subprocess.run(
        [sys.executable, "jobs/prepare.py", "jobs/prepare.yaml", *(p for s in settings for p in ("--set", s))],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert found.returncode == 2
    assert "2 of 11 rows are bad (18.18%)" in found.stdout and "missing_key" in found.stdout
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert "rows.jsonl:10:" in found.stderr and "max_bad_share" in found.stderr


@pytest.mark.parametrize(
    ("track", "good", "bad", "says"),
    [
        ("structured", '{"a": 1}', "card_arrival", "its answer is not strict JSON, which track structured scores"),
        (
            "toolcall",
            '<tool_call name="f">{}</tool_call>',
            '{"name": "f"}',
            'not one <tool_call name="…">{…}</tool_call>',
        ),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "f()", "not one <tool_call>{"),
        ("gsm8k", "It is #### 4", "It is four.", "not an answer with a number"),
    ],
)
def test_an_answer_that_nothing_could_match_is_a_bad_row(
    tmp_path: Path, track: str, good: str, bad: str, says: str
) -> None:
    lines = [json.dumps({"prompt": f"p{number}", "completion": good}) for number in range(9)]
    with pytest.raises(DataError):
        prepare(config(tmp_path, [*lines, json.dumps({"prompt": "x", "completion": bad})], track=track))
    (row,) = bad_rows(tmp_path)
    assert (row["line"], row["kind"]) == (10, "unscorable") and says in str(row["reason"])
    prepare(config(tmp_path, lines, track=track))


def test_bad_rows_are_listed_by_place_whoever_found_them(tmp_path: Path) -> None:
    lines = [*rows(3), json.dumps({"prompt": "long " * 90, "completion": "c"}), "nope"]
    with pytest.raises(DataError):
        prepare(
            config(tmp_path, lines, curation={"max_tokens": 50}),
            token_counter=lambda e: len(e.prompt.messages[-1].content),
        )
    assert [(row["line"], row["kind"]) for row in bad_rows(tmp_path)] == [(4, "too_long"), (5, "not_json")]
