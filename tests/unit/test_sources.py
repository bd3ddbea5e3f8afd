"""The same rows come out of every kind of file, folder, URI and data set, with the place they stand at."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.row_errors import BadRow
from slm_ray.errors import ConfigError, DataError
from slm_ray.sources import fingerprint, raw_rows

BANKING77 = Path(__file__).parents[3] / "shared" / "data" / "banking77"
ROWS = [{"text": 'one, "two"\nthree\u2028', "label": "é"}, {"text": "four", "label": "b"}]


def values(source: Any) -> Any:
    """The rows as objects, JSON texts parsed."""
    return [json.loads(row) if isinstance(row, str) else row for _, _, row in raw_rows(str(source))]


def places(source: Any) -> Any:
    return [(Path(file).name, line) for file, line, _ in raw_rows(str(source))]


def lines_of(rows: Any) -> Any:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_csv(path: Any, rows: Any, delimiter: Any = ",", mark: Any = "") -> Any:
    with path.open("w", encoding="utf-8", newline="") as sink:
        sink.write(mark)
        writer = csv.DictWriter(sink, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "rows"])
def test_lines_with_marks_and_any_line_end(tmp_path: Path, name: Any, end: Any, mark: Any) -> None:
    path = tmp_path / name
    path.write_bytes((mark + end.join(["", *[json.dumps(row, ensure_ascii=False) for row in ROWS], ""])).encode())
    assert values(path) == ROWS
    assert places(path) == [(name, 2), (name, 3)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_array_is_read_whatever_the_name(tmp_path: Path, name: Any) -> None:
    (tmp_path / name).write_text("\ufeff\n[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]", encoding="utf-8")
    assert values(tmp_path / name) == ROWS
    assert places(tmp_path / name) == [(name, 3), (name, 4)]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_tables_with_quotes_and_line_ends_inside(tmp_path: Path, name: Any, delimiter: Any, mark: Any) -> None:
    path = write_csv(tmp_path / name, ROWS, delimiter, mark)
    assert values(path) == ROWS
    assert places(path) == [(name, 2), (name, 4)]


def test_gzip_of_every_text_kind(tmp_path: Path) -> None:
    for name, data in (("a.jsonl.gz", lines_of(ROWS)), ("b.csv.gz", write_csv(tmp_path / "b.csv", ROWS).read_bytes())):
        (tmp_path / name).write_bytes(gzip.compress(data))
        assert values(tmp_path / name) == ROWS


def test_parquet_leaves_empty_cells_out(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.Table.from_pylist([*ROWS, {"text": "x", "label": None}]), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [*ROWS, {"text": "x"}]
    assert places(tmp_path / "a.parquet")[-1] == ("a.parquet", 3)


def test_a_call_in_a_table_has_its_own_arguments_and_not_those_of_other_rows(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [
        {"query": "a", "answers": [{"name": "f", "arguments": {"city": "Oslo"}}]},
        {"query": "b", "answers": [{"name": "g", "arguments": {"days": 3}}, {"name": "h", "arguments": {"city": "x"}}]},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == rows
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    assert values(tmp_path / "saved") == rows


def test_a_folder_is_its_files_by_name_and_a_uri_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines_of(ROWS[:1]))
    write_csv(tmp_path / "a.csv", ROWS[1:])
    (tmp_path / "README.md").write_text("no rows")
    (tmp_path / ".hidden.jsonl").write_bytes(lines_of(ROWS))
    assert values(tmp_path) == ROWS[::-1]
    assert values(tmp_path.as_uri()) == ROWS[::-1]
    assert places(tmp_path.as_uri()) == places(tmp_path) == [("a.csv", 2), ("b.jsonl", 1)]
    assert fingerprint(str(tmp_path)) == fingerprint(tmp_path.as_uri())


def test_data_sets_on_disk_and_by_name_give_class_labels_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["a", "b"]))
    data = datasets.Dataset.from_list([{"text": "x", "label": 1}, {"text": "y", "label": None}], features=features)
    data.save_to_disk(str(tmp_path / "one"))
    assert values(tmp_path / "one") == [{"text": "x", "label": "b"}, {"text": "y"}]
    datasets.DatasetDict(train=data).save_to_disk(str(tmp_path / "many"))
    assert values(tmp_path / "many" / "train") == values(tmp_path / "one")
    with pytest.raises(DataError, match=r"holds the splits train; give .*many/train"):
        values(tmp_path / "many")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "rows.jsonl").write_bytes(lines_of(ROWS))
    assert values(f"hf:{tmp_path / 'hub'}") == values(f"hf:{tmp_path / 'hub'}:train") == ROWS
    with pytest.raises(DataError, match=r"cannot load hf:.*:tset"):
        values(f"hf:{tmp_path / 'hub'}:tset")


def test_single_bad_rows_are_passed_on_as_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of(ROWS[:1]) + b'{"text": "\xff"}\n' + lines_of(ROWS[1:]))
    write_csv(tmp_path / "a.csv", ROWS[1:]).open("a").write("too,many,fields\nfew\n")
    (tmp_path / "a.json").write_text('[{"a": 1}, 3]')
    found = {name: list(raw_rows(str(tmp_path / name))) for name in ("a.jsonl", "a.csv", "a.json")}
    kinds = {
        name: [(line, row.kind) for _, line, row in rows if isinstance(row, BadRow)] for name, rows in found.items()
    }
    assert kinds == {
        "a.jsonl": [(2, "not_utf8")],
        "a.csv": [(3, "columns"), (4, "columns")],
        "a.json": [(1, "not_object")],
    }
    assert [len(rows) for rows in found.values()] == [3, 3, 2]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("gone.jsonl", None, "cannot read .*gone.jsonl: No such file"),
        ("a.jsonl.gz", gzip.compress(lines_of(ROWS), mtime=0)[:-9], "whole file"),
        ("a.jsonl.gz", b"plain", "Not a gzipped file"),
        ("a.parquet", b"PAR1 no", "not Parquet"),
        ("a.csv", b'text,label\n"open', ":2: not CSV"),
        ("a.csv", b"text,text\na,b\n", ":1: the header is 'text', 'text'; give every column its own name"),
        ("a.csv", b"text,label\na,\xff\n", "bytes that are not UTF-8"),
        ("a.json", b"[{]", ":1: this is not JSON"),
        ("a.json", b'[{"a": "\n\xff"}]', ":2: not UTF-8"),
        ("folder/", None, "no file in it is of a known kind"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line(tmp_path: Path, name: Any, data: Any, says: Any) -> None:
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    elif data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=says) as caught:
        list(raw_rows(str(tmp_path / name)))
    assert name.strip("/") in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_uri_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"source 'gopher://x/y' is no address of a store"):
        list(raw_rows("gopher://x/y"))
    with pytest.raises(ConfigError, match=r"the s3:// address holds a secret") as caught:
        list(raw_rows("s3://key:hidden@bucket/rows.jsonl"))
    assert "hidden" not in str(caught.value)


def test_a_fingerprint_sees_every_byte_and_file_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of(ROWS))
    before = fingerprint(str(tmp_path))
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    renamed = fingerprint(str(tmp_path))
    (tmp_path / "b.jsonl").write_bytes(lines_of(ROWS) + b"\n")
    assert len({before, renamed, fingerprint(str(tmp_path))}) == 3


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1)


@given(st.lists(st.fixed_dictionaries({"text": CELLS, "label": CELLS}), min_size=1, max_size=5))
def test_any_text_survives_csv_and_json_lines(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_bytes(lines_of(rows))
    assert values(write_csv(folder / "a.csv", rows)) == values(folder / "a.jsonl") == rows


@pytest.mark.skipif(not BANKING77.is_dir(), reason="banking77 (shared/data/banking77) is not here")
def test_all_of_banking77_is_read() -> None:
    found = {name: values(BANKING77 / f"{name}.csv") for name in ("train", "test")}
    assert {name: len(rows) for name, rows in found.items()} == {"train": 10_003, "test": 3_080}
    assert len({row["category"] for row in found["train"]}) == 77


@pytest.mark.parametrize("source", ["hf:", "hf:@x", "hf:@x:train", "hf::train"])
def test_a_data_set_without_a_name_is_refused_with_the_form(source: str) -> None:
    with pytest.raises(DataError, match=r"names no data set; write hf:NAME, hf:NAME@CONFIG or hf:NAME@CONFIG:SPLIT"):
        fingerprint(source)


@pytest.mark.parametrize("source", ["rows\0.jsonl", "hf:na\0me", "s3://bucket/ro\0ws.jsonl", "\0"])
def test_a_name_with_a_nul_is_refused_in_one_line(source: str) -> None:
    for read in (fingerprint, lambda name: list(raw_rows(name))):
        with pytest.raises(DataError, match="the name holds a NUL character") as caught:
            read(source)
        assert "\0" not in str(caught.value)
