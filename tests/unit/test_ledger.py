"""A finished answer is on disk, once, for ever; a failed call gives way to a later answer."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm_ray.errors import DataError, ResourceError
from slm_ray.ledger import Entry, Ledger, Planned, Run, finished, key
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


ROWS = [Planned(key=f"k{n}", spec="s", example_id=f"r{n}", repeat=n % 2) for n in range(4)]


def answer(n: int, completion: Completion = FULL) -> Entry:
    return Entry(key=f"k{n}", spec="s", example_id=f"r{n}", completion=completion, answered_ns=1)


def test_a_start_without_an_answer_is_ambiguous_however_often_it_happens(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.plan("p", ROWS)
        ledger.put_all([], starts=["k0", "k1", "k2"])
        assert ledger.unanswered("p") == {"k0": 1, "k1": 1, "k2": 1}
        ledger.put_all([answer(0), answer(1, failed("error"))], starts=["k2", "k3"])
        assert ledger.unanswered("p") == {"k2": 2, "k3": 1}
        assert ledger.unanswered("another plan") == {}
        ledger.put_all([answer(2)], starts=["k1"])
        ledger.put_all([answer(1)])
        assert ledger.unanswered("p") == {"k2": 1, "k3": 1}
        assert [ledger.starts(f"k{n}") for n in range(4)] == [1, 2, 2, 1]
        assert sorted((e.key, e.completion.text or "") for e in ledger.history("p")) == [
            ("k0", FULL.text), ("k1", ""), ("k1", FULL.text), ("k2", FULL.text)
        ]  # fmt: skip


def test_answers_and_starts_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        with pytest.raises(DataError, match="NOT NULL"):
            ledger.put_all([answer(0)], starts=["k1", None])  # type: ignore[list-item]
        assert ledger.get("k0") is None
        assert ledger.starts("k1") == 0


def test_a_plan_is_written_once_and_a_run_says_how_it_ended(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.last_run() is None
        for _ in range(2):
            ledger.plan("p", ROWS)
        assert ledger.planned("p") == ROWS
        ledger.begin("p", {"rows": 4})
        run = ledger.last_run()
        assert run is not None
        assert (run.plan, run.facts, run.ended) == ("p", {"rows": 4}, None)
        ledger.end("p", "stopped")
        ended = ledger.last_run()
        assert ended is not None
        assert ended.ended == "stopped"
        ledger.begin("p", {})
        again = ledger.last_run()
        assert again is not None
        assert again.ended is None
        assert (again.last_start, again.last_answer) == (0, 0)
        ledger.put_all([answer(0)], starts=["k1", "k2"])
        ledger.begin("p", {})
        later = ledger.last_run()
        assert later is not None
        assert (later.last_start, later.last_answer) == (2, 1)


def test_a_run_has_its_last_note_of_speeds_and_a_later_run_has_none(tmp_path: Path) -> None:
    def last() -> Run:
        run = ledger.last_run()
        assert run is not None
        return run

    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.begin("p", {})
        assert last().speeds == {}
        for turned_away in (1, 2):
            ledger.note_speeds("p", {"azure:": {"turned_away": turned_away, "usd": None}})
        assert last().speeds == {"azure:": {"turned_away": 2, "usd": None}}
        assert last().ended is None
        ledger.end("p", "done")
        assert (last().ended, last().speeds["azure:"]["turned_away"]) == ("done", 2)
        ledger.begin("p", {})
        assert last().speeds == {}


def test_entries_come_in_the_order_asked_for_and_are_the_best_of_each_key(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put_all([answer(0, failed("error")), answer(0), answer(1, failed("error")), answer(0, failed("error"))])
        ledger.put_all([answer(n) for n in range(2, 1100)])
        keys = ["k1", "k0", "none", *(f"k{n}" for n in range(1099, 1, -1)), "k0"]
        found = list(ledger.entries(keys))
        assert found == [ledger.entry(key) for key in keys]
        assert (found[0], found[1], found[2]) == (answer(1, failed("error")), answer(0), None)
        assert list(ledger.entries([])) == []


def test_a_reader_sees_what_a_writer_has_committed_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as writer:
        writer.plan("p", ROWS)
        with Ledger(path, read_only=True) as reader:
            assert reader.since(0) == (0, [])
            writer.put_all([answer(0)], starts=["k1"])
            assert reader.since(0) == (1, [answer(0)])
            writer.put_all([answer(1)])
            assert reader.since(1) == (2, [answer(1)])
            assert reader.since(0, upto=1) == (1, [answer(0)])
            assert reader.started_since(0) == (1, ["k1"])
            with reader.snapshot():
                before = reader.count()
                writer.put_all([answer(2)])
                assert reader.count() == before
            assert reader.count() == before + 1
            with pytest.raises(DataError, match="readonly"):
                reader.put_all([answer(3)])
    with Ledger(path, read_only=True) as reader:  # the writer is gone, and its side files with it
        assert reader.count() == 3
    with pytest.raises(DataError, match="there is no ledger"):
        Ledger(tmp_path / "none.sqlite", read_only=True)


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put("k", "s", "r", FULL)
        pages = ledger.db.execute("PRAGMA page_count").fetchone()[0]
        ledger.db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ResourceError, match=r"nothing more is asked; free the disk"):
            ledger.put_all([answer(n, Completion(text="x" * 4000)) for n in range(100)], starts=["k7"])
        assert (ledger.count(), ledger.starts("k7")) == (1, 0)
        ledger.db.execute("PRAGMA max_page_count = 100000")
        ledger.put_all([answer(7)])
        assert ledger.count() == 2


def test_batches_are_written_at_two_thousand_answers_a_second_and_more(tmp_path: Path) -> None:
    count, batch = 4000, 32
    with Ledger(tmp_path / "l.sqlite") as ledger:
        began_s = time.perf_counter()
        for at in range(0, count, batch):
            ledger.put_all(
                [answer(n) for n in range(at, at + batch)], starts=[f"k{n}" for n in range(at + batch, at + 2 * batch)]
            )
        rate = count / (time.perf_counter() - began_s)
    assert rate > 2000, f"{rate:.0f} answers/s"


@pytest.mark.parametrize("damage", ["middle", "cut"])
def test_a_damaged_ledger_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.plan("p", ROWS)
        ledger.put_all(
            [Entry(key=f"k{n}", spec="s", example_id="r", completion=FULL, answered_ns=1) for n in range(500)]
        )
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] if damage == "cut" else whole[:4096] + b"\xff" * (len(whole) - 4096))
    with (
        pytest.raises(DataError, match=r"cannot be used as a ledger .*; move it away") as caught,
        Ledger(path) as ledger,
    ):
        ledger.planned("p")
        ledger.count()
        ledger.get("k7")
    assert "\n" not in str(caught.value)


def test_the_first_layout_is_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "l.sqlite").execute("PRAGMA user_version = 1")
    with pytest.raises(DataError, match="layout 1, this program writes 2"):
        Ledger(tmp_path / "l.sqlite")


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "l.sqlite").execute("PRAGMA user_version = 9")
    with pytest.raises(DataError, match="layout 9"):
        Ledger(tmp_path / "l.sqlite")
