"""The record of candidates beside a file of rows: appended, read past a torn end, shared by processes, kept elsewhere if need be."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slm_ray import storage
from slm_ray.errors import ComparisonError, DataError, ResourceError
from slm_ray.reports.candidates import reserve, said, turn_on_rows
from slm_ray.types import CandidateFigures, Completion, Failure, Interval
from slm_ray.verdict.candidates import Candidate, ScoredRow, SlmScores

ROWS = ("00000001", "00000002")


def candidate(name: str) -> Candidate:
    return Candidate(llm="azure:big", slm=f"served:{name}", rule="paired", settings="s", rows=ROWS, answers=(name, ""))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose rows lie in another folder."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/test.jsonl").write_text("{}\n")
    storage.write_text(tmp_path / "run/config.yaml", f"examples: {tmp_path}/rows/test.jsonl\n")
    return tmp_path / "run"


def record(run_dir: Path) -> Path:
    return run_dir.parent / "rows/test.jsonl.candidates.jsonl"


def take(run_dir: Path, name: str) -> int:
    with turn_on_rows(candidate(name), str(run_dir), planned=None) as opened:
        opened.note("inconclusive", None)
        return opened.turn.number


def test_every_run_on_the_rows_adds_to_one_record(run_dir: Path) -> None:
    assert [take(run_dir, name) for name in ("a", "b", "a")] == [1, 2, 1]
    lines = [json.loads(line) for line in record(run_dir).read_text().splitlines()]
    assert [line["candidate"]["slm"] for line in lines] == ["served:a", "served:b"]
    assert [line["candidate"]["rows"] for line in lines] == [list(ROWS), []]  # written once
    assert {"number", "level", "action", "date", "rows_digest"} <= lines[0].keys()
    another = run_dir.parent / "another"
    storage.write_text(another / "config.yaml", (run_dir / "config.yaml").read_text())
    assert take(another, "c") == 3


def test_a_turn_knows_who_was_tried_on_its_rows_before_and_what_came_of_it(run_dir: Path) -> None:
    for name in ("a", "b"):
        take(run_dir, name)
    for name, before in (("c", ["a", "b"]), ("a", []), ("b", ["a"])):
        with turn_on_rows(candidate(name), str(run_dir), planned=None) as opened:
            assert [one.slm for one in opened.earlier] == [f"served:{one}" for one in before]
            assert {one.action for one in opened.earlier} <= {"inconclusive"}
    elsewhere = replace(candidate("d"), rows=("00000009",), answers=("x",))
    with turn_on_rows(elsewhere, str(run_dir), planned=None) as opened:
        assert opened.earlier == ()


FIGURES = CandidateFigures(
    llm="azure:big", primary="exact_match", n=2, llm_metric=1.0, slm_metric=0.5,
    interval=Interval(estimate=-0.5, lower=-1.0, upper=0.25, method="score"),
)  # fmt: skip


def scored(*values: float | None) -> SlmScores:
    rows = [ScoredRow(prompt_hash=digits + "0" * 56, id=f"row {digits}", score=value) for digits, value in zip(ROWS, values, strict=True)]  # fmt: skip
    return SlmScores(primary="exact_match", rows=tuple(rows))


def test_the_next_candidate_finds_the_figures_and_scores_of_the_one_before_wherever_its_run_has_gone(
    run_dir: Path,
) -> None:
    for _ in range(2):  # the same comparison again adds nothing
        with turn_on_rows(candidate("a"), str(run_dir), planned=None, scores=scored(1.0, 0.0)) as opened:
            opened.note("inconclusive", FIGURES)
    assert [json.loads(line)["scores"] for line in record(run_dir).read_text().splitlines()] == [[1.0, 0.0]]
    another = run_dir.parent / "another"
    (run_dir / "config.yaml").rename(another.with_suffix(".yaml"))
    storage.write_text(another / "config.yaml", another.with_suffix(".yaml").read_text())
    with turn_on_rows(candidate("b"), str(another), planned=None, scores=scored(0.0, 0.0)) as opened:
        (before,) = opened.earlier
    assert before.figures == FIGURES and before.changes is not None
    assert (before.changes.rows, before.changes.lower, before.changes.lower_ids) == (2, 1, ("row 00000001",))


def test_a_candidate_that_was_reserved_has_its_figures_once_it_is_compared(run_dir: Path) -> None:
    one = replace(candidate("a"), rule="sequential", answers=("x", "y"))
    reserve([one], run_dir, examples=str(run_dir.parent / "rows/test.jsonl"), planned=None)
    with turn_on_rows(one, str(run_dir), planned=None, scores=scored(1.0, None)) as opened:
        opened.note("inconclusive", FIGURES)  # the outcome that the reservation has too
    with turn_on_rows(candidate("b"), str(run_dir), planned=None, scores=scored(0.0, 1.0)) as opened:
        assert opened.earlier[0].figures == FIGURES and opened.earlier[0].changes is not None
        assert opened.earlier[0].changes.rows == 1


def test_scores_of_other_rows_than_the_line_has_are_named(run_dir: Path) -> None:
    take(run_dir, "a")
    line = json.loads(record(run_dir).read_text())
    record(run_dir).write_text(json.dumps({**line, "scores": [1.0]}) + "\n")
    with pytest.raises(DataError, match=r"candidates\.jsonl:1: 1 scores of 2 rows; remove the line"):
        take(run_dir, "b")


def test_a_turn_that_is_not_noted_was_not_taken(run_dir: Path) -> None:
    with turn_on_rows(candidate("a"), str(run_dir), planned=None) as opened:
        assert opened.turn.number == 1 and opened.caveat == ""
    assert take(run_dir, "b") == 1


def test_a_line_that_was_cut_short_was_never_written_and_a_damaged_one_is_named(run_dir: Path) -> None:
    take(run_dir, "a")
    whole = record(run_dir).read_bytes()
    record(run_dir).write_bytes(whole + whole[:40])
    assert take(run_dir, "b") == 2
    assert [json.loads(line)["number"] for line in record(run_dir).read_text().splitlines()] == [1, 2]
    record(run_dir).write_bytes(b'{"candidate": 3, "schema_version": 1}\n' + whole)
    with pytest.raises(DataError, match=r"candidates\.jsonl:1: no candidate; remove the line"):
        take(run_dir, "c")


def test_a_line_whose_rows_went_with_another_is_not_forgotten_in_silence(run_dir: Path) -> None:
    take(run_dir, "a")
    take(run_dir, "b")
    record(run_dir).write_bytes(record(run_dir).read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(DataError, match=r"candidates\.jsonl:1: the line that holds the rows of this one is not there"):
        take(run_dir, "c")


def test_comparisons_at_once_get_a_level_each(run_dir: Path) -> None:
    """Each waits for the one before: two that read the same record would both be the first."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=take, args=(run_dir, f"m{i}")) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    numbers = [json.loads(line)["number"] for line in record(run_dir).read_text().splitlines()]
    assert sorted(numbers) == list(range(1, 9))


def grown(run_dir: Path, *further: str) -> tuple[Path, Candidate]:
    """A run on another file of the folder, which has the first rows and further ones, and its candidate."""
    (run_dir.parent / "rows/grown.jsonl").write_text("{}\n{}\n")
    at = run_dir.parent / "on-grown"
    storage.write_text(at / "config.yaml", f"examples: {run_dir.parent}/rows/grown.jsonl\n")
    rows = (*ROWS, *further)
    return at, replace(candidate("a"), rows=rows, answers=("a",) * len(rows))


def test_rows_that_were_added_in_a_file_beside_the_first_are_a_second_look(run_dir: Path) -> None:
    """`cat rows.jsonl more.jsonl > grown.jsonl` is how people add rows; a count that began anew would give 5 % again."""
    take(run_dir, "a")
    at, again = grown(run_dir, "00000003")
    refused = pytest.raises(ComparisonError, match="2 of these 3 rows were already compared for served:a")
    with refused, turn_on_rows(again, str(at), planned=None):
        pass
    other = replace(again, slm="served:b")
    with turn_on_rows(other, str(at), planned=None) as opened:
        opened.note("swap", None)
        assert (opened.turn.number, [one.slm for one in opened.earlier]) == (2, ["served:a"])
    assert take(run_dir, "c") == 3, "and the first file knows of the second"
    beside = run_dir.parent / "rows/grown.jsonl.candidates.jsonl"
    beside.write_bytes(beside.read_bytes() + b'{"cut sho')
    assert take(run_dir, "d") == 4


def test_a_copy_of_the_rows_beside_them_charges_the_same_comparison_once_and_each_record_stands_alone(
    run_dir: Path,
) -> None:
    take(run_dir, "a")
    at, _ = grown(run_dir)
    with turn_on_rows(candidate("a"), str(at), planned=None) as opened:
        assert (opened.turn.number, opened.turn.again) == (1, True)
    with turn_on_rows(candidate("b"), str(at), planned=None) as opened:
        opened.note("swap", None)
    record(run_dir).unlink()
    with turn_on_rows(candidate("c"), str(at), planned=None) as opened:
        assert [one.slm for one in opened.earlier] == ["served:b"]


def test_without_the_rows_the_record_is_in_the_run_directory_and_that_is_said(run_dir: Path) -> None:
    (run_dir.parent / "rows/test.jsonl").unlink()
    with turn_on_rows(candidate("a"), str(run_dir), planned=None) as opened:
        opened.note("swap", None)
        assert "knows of this run alone" in opened.caveat
    assert (run_dir / "candidates.jsonl").is_file() and not record(run_dir).exists()


@pytest.mark.parametrize(
    "damage",
    [{"level": -5.0}, {"level": 0.9}, {"level": float("nan")}, {"number": -3}, {"rows_digest": [1], "level": -1}],
)
def test_a_line_that_no_comparison_wrote_is_named(run_dir: Path, damage: dict[str, object]) -> None:
    take(run_dir, "a")
    record(run_dir).write_text(json.dumps({**json.loads(record(run_dir).read_text()), **damage}) + "\n")
    with pytest.raises(DataError, match=r"candidates\.jsonl:1: candidate number -?\d+ at level .*; remove the line"):
        take(run_dir, "a")


def test_a_folder_in_the_place_of_the_record_does_not_start_the_count_anew(run_dir: Path) -> None:
    record(run_dir).mkdir()
    with pytest.raises(DataError, match=r"candidates\.jsonl is a folder.*move it away"):
        take(run_dir, "a")


def refusing(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """The operating system refuses to open the record, as it does in a folder that may only be read; root may write anywhere."""
    opened_before = os.open

    def refused(opened: str | Path, *rest: Any) -> int:
        if Path(opened) == path:
            raise OSError(number, os.strerror(number))
        return opened_before(opened, *rest)

    monkeypatch.setattr(os, "open", refused)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_may_only_be_read_is_no_hindrance(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refusing(monkeypatch, record(run_dir), number)
    with turn_on_rows(candidate("a"), str(run_dir), planned=None) as opened:
        assert "may only be read" in opened.caveat


def test_a_record_that_may_only_be_read_is_counted_on_in_the_run_directory(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's file in a folder that many write to: a count that began anew would give out the error a second time."""
    take(run_dir, "a")
    at, _ = grown(run_dir)
    with turn_on_rows(candidate("b"), str(at), planned=None) as opened:
        opened.note("inconclusive", None)
    before = record(run_dir).read_bytes()
    refusing(monkeypatch, record(run_dir), errno.EACCES)
    with turn_on_rows(candidate("c"), str(run_dir), planned=None) as opened:
        opened.note("swap", None)
        assert opened.turn.number == 3 and [one.slm for one in opened.earlier] == ["served:a", "served:b"]
        assert "may only be read" in opened.caveat
    reserved = replace(candidate("d"), rule="sequential")
    reserve([reserved], run_dir, examples=str(run_dir.parent / "rows/test.jsonl"), planned=None)
    lines = [json.loads(line) for line in (run_dir / "candidates.jsonl").read_text().splitlines()]
    assert [(line["number"], line["candidate"]["slm"]) for line in lines] == [(3, "served:c"), (4, "served:d")]
    assert lines[0]["candidate"]["rows"] == list(ROWS), "which stand in no other line of this file"
    assert take(run_dir, "a") == 1 and record(run_dir).read_bytes() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_record_that_is_out_of_reach_for_now_does_not_start_the_count_anew(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The next candidate would get the error of the first one."""
    take(run_dir, "a")
    refusing(monkeypatch, record(run_dir), number)
    with pytest.raises(ResourceError, match=r"cannot write .*test\.jsonl\.candidates\.jsonl"):
        take(run_dir, "b")
    assert not (run_dir / "candidates.jsonl").exists()


def test_whoever_saw_several_slms_pays_for_choosing_among_them(run_dir: Path) -> None:
    """The best of three that were asked in one run, compared alone, is not the only one that was tried."""
    beside = [candidate("b"), candidate("c")]
    with turn_on_rows(candidate("a"), str(run_dir), planned=None, beside=beside) as opened:
        opened.note("swap", None)
        shared = 0.05 * 6 / math.pi**2 * (1 + 1 / 4 + 1 / 9) / 3
        assert opened.turn.level == pytest.approx(shared) and "3 SLMs were asked on these rows" in opened.caveat
    with turn_on_rows(candidate("c"), str(run_dir), planned=None, beside=[candidate("a"), candidate("b")]) as opened:
        assert (opened.turn.number, opened.turn.again) == (3, True)
        assert opened.turn.level == pytest.approx(shared) and "3 SLMs were asked on these rows" in opened.caveat
    said = []
    for _ in range(2):  # the same comparison says the same, word for word
        with turn_on_rows(candidate("a"), str(run_dir), planned=None, beside=beside) as opened:
            said.append(opened.caveat)
    assert said[0] == said[1] != ""
    assert take(run_dir, "d") == 4


def test_slms_that_were_seen_together_are_all_noted_though_a_kill_left_some_out(run_dir: Path) -> None:
    beside = [candidate("b"), candidate("c")]
    with turn_on_rows(candidate("a"), str(run_dir), planned=None, beside=beside) as opened:
        opened.note("swap", None)
    first, second, _ = record(run_dir).read_bytes().splitlines(keepends=True)
    record(run_dir).write_bytes(first + second[:50])
    for _ in range(2):  # once more adds nothing
        with turn_on_rows(candidate("a"), str(run_dir), planned=None, beside=beside) as opened:
            opened.note("swap", None)
    lines = [json.loads(line) for line in record(run_dir).read_text().splitlines()]
    assert [line["candidate"]["slm"] for line in lines] == ["served:a", "served:b", "served:c"]
    assert math.fsum(line["level"] for line in lines) <= 0.05
    assert take(run_dir, "d") == 4


def test_slms_that_share_their_error_are_noted_in_one_write(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    pwrite = os.pwrite

    def counted(handle: int, data: bytes, at: int) -> int:
        writes.append(data.count(b"\n"))
        return pwrite(handle, data, at)

    monkeypatch.setattr(os, "pwrite", counted)
    both = [replace(candidate(name), rule="sequential", answers=("", "")) for name in ("base", "adapter")]
    reserve(both, run_dir, examples=str(run_dir.parent / "rows/test.jsonl"), planned=None)
    with turn_on_rows(candidate("a"), str(run_dir), planned=None, beside=[candidate("b")]) as opened:
        opened.note("swap", None)
    assert writes == [2, 2]


def test_an_slm_for_which_nothing_is_left_shares_nothing(run_dir: Path) -> None:
    with turn_on_rows(candidate("a"), str(run_dir), planned=1) as opened:
        opened.note("swap", None)
    with turn_on_rows(candidate("b"), str(run_dir), planned=1, beside=[candidate("a")]) as opened:
        assert (opened.turn.level, opened.caveat) == (0, "")


def test_a_plan_of_fewer_than_were_asked_is_no_plan(run_dir: Path) -> None:
    with turn_on_rows(candidate("a"), str(run_dir), planned=1, beside=[candidate("b")]) as opened:
        assert opened.turn.level == 0.025


def test_what_was_said_tells_answers_apart_and_leaves_open_what_may_be_asked_again() -> None:
    right, other, failed, refused = (
        Completion(text="yes"),
        Completion(text="no"),
        Completion(failure=Failure(kind="error", reason="500")),
        Completion(failure=Failure(kind="refused", reason="filter")),
    )
    assert len({said(right, right), said(right, other), said(other, right), said(right, refused)}) == 4
    assert said(right, failed) == said(failed, right) == said(right, None) == ""


def test_a_reservation_is_noted_with_the_answers_once_they_are_there(run_dir: Path) -> None:
    """A model that was asked anew under its old name, in a run of its own, is another candidate even before it answers."""
    unknown = replace(candidate("a"), rule="sequential", answers=("", ""))
    answered = replace(unknown, answers=("x", "y"))
    at = partial(reserve, run_dir=run_dir, examples=str(run_dir.parent / "rows/test.jsonl"), planned=None)
    first = [at([one])["served:a"] for one in (unknown, unknown, answered, answered)]
    assert len(set(first)) == 1 and len(record(run_dir).read_text().splitlines()) == 2
    assert at([unknown])["served:a"] == pytest.approx(first[0] / 4)
    assert at([answered])["served:a"] == first[0]


def test_slms_that_are_asked_together_share_equally_even_where_one_was_planned(run_dir: Path) -> None:
    """As the loop's base and its adapter are: the second is not sent away after training."""
    both = [replace(candidate(name), rule="sequential", answers=("", "")) for name in ("base", "adapter")]
    levels = reserve(both, run_dir, examples=str(run_dir.parent / "rows/test.jsonl"), planned=1)
    assert levels == {"served:base": 0.025, "served:adapter": 0.025}
