"""A finished answer is on disk, once, for ever; a failed call gives way to a later answer."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray.errors import DataError
from slm_ray.ledger import Entry, Ledger, finished, key
from slm_ray.types import Completion, Failure, FailureKind, Usage

FULL = Completion(
    text="süß \u2028", latency_s=0.25, usage=Usage(prompt_tokens=3, completion_tokens=4), served_by="m", attempts=2
)


def failed(kind: FailureKind) -> Completion:
    return Completion(failure=Failure(kind=kind, reason="why", status=500), attempts=4)


def test_answers_come_back_equal(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put("k1", "served:a", "row", FULL)
        ledger.put("k2", "served:a", "row", failed("refused"))
        assert ledger.get("k0") is None
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.get("k1") == FULL
        assert ledger.get("k2") == failed("refused")
        assert ledger.count() == 2
        entry = ledger.entry("k1")
        assert entry is not None
        assert (entry.spec, entry.example_id) == ("served:a", "row")
        assert entry.answered_ns > 1_600_000_000_000_000_000


@pytest.mark.parametrize("kind", ["refused", "truncated", "invalid"])
def test_what_is_finished_is_never_replaced(tmp_path: Path, kind: FailureKind) -> None:
    assert finished(failed(kind))
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put("k", "s", "r", failed(kind))
        ledger.put("k", "s", "r", FULL)
        ledger.put("k", "s", "r", failed("error"))
        assert ledger.get("k") == failed(kind)
        assert ledger.count() == 1


def test_an_error_gives_way_to_a_later_answer_and_stays_as_history(tmp_path: Path) -> None:
    assert not finished(failed("error"))
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put("k", "s", "r", failed("error"))
        assert ledger.get("k") == failed("error")
        assert ledger.count() == 0
        ledger.put("k", "s", "r", FULL)
        assert ledger.get("k") == FULL
    rows = sqlite3.connect(tmp_path / "l.sqlite").execute("SELECT finished FROM answers").fetchall()
    assert rows == [(0,), (1,)]


def test_rows_cannot_be_changed_or_removed(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put("k", "s", "r", FULL)
    database = sqlite3.connect(tmp_path / "l.sqlite")
    for statement in ("UPDATE answers SET spec = 'x'", "DELETE FROM answers"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(statement)


def test_a_batch_is_all_or_nothing(tmp_path: Path) -> None:
    good = Entry(key="k", spec="s", example_id="r", completion=FULL, answered_ns=1)
    bad = Entry(key="k2", spec="s", example_id=None, completion=FULL, answered_ns=1)  # type: ignore[arg-type]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        with pytest.raises(DataError, match="NOT NULL"):
            ledger.put_all([good, bad])
        assert ledger.get("k") is None
        ledger.put_all([])
        ledger.put_all([good, good])
        assert ledger.get("k") == FULL
        assert ledger.count() == 1


def test_a_killed_writer_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    program = f"""
from slm_ray.ledger import Ledger
from slm_ray.types import Completion
with Ledger({str(path)!r}) as ledger:
    n = 0
    while True:
        ledger.put(f"k{{n}}", "s", f"r{{n}}", Completion(text="x" * 2000))
        print(n, flush=True)
        n += 1
"""
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    said = [int(writer.stdout.readline()) for _ in range(30)][-1]
    writer.kill()
    writer.wait()
    with Ledger(path) as ledger:
        assert ledger.count() > said
        assert all(ledger.get(f"k{n}") == Completion(text="x" * 2000) for n in range(said + 1))


def test_a_key_sees_everything_that_makes_a_call(tmp_path: Path) -> None:
    same = key("d", "r", "m", {"b": 1, "a": "é"})
    assert same == key("d", "r", "m", {"a": "é", "b": 1})
    others = {key("D", "r", "m", {"b": 1, "a": "é"}), key("d", "R", "m", {"b": 1, "a": "é"}),
              key("d", "r", "M", {"b": 1, "a": "é"}), key("d", "r", "m", {"b": 2, "a": "é"})}  # fmt: skip
    assert len(others | {same}) == 5


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 30, b""])
def test_another_file_is_refused_and_an_empty_one_is_new(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l.sqlite"
    path.write_bytes(content)
    if content:
        with pytest.raises(DataError, match="cannot be used as a ledger"):
            Ledger(path)
        assert path.read_bytes() == content
    else:
        with Ledger(path) as ledger:
            assert ledger.count() == 0


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "l.sqlite").execute("PRAGMA user_version = 9")
    with pytest.raises(DataError, match="layout 9"):
        Ledger(tmp_path / "l.sqlite")
