"""The labelling queue and the judged verdict: blind, in a drawn order, strict about labels, and never by the judge alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from judged_pairs import LLM, OUTAGE, REFUSED, SLM, config, row
from plain_records import facts

from slm_ray.errors import ComparisonError, ConfigError, DataError
from slm_ray.judging.ask import minus_first
from slm_ray.judging.labels import Labels, read_labels
from slm_ray.judging.queue import Queue, kept_queue, write_page
from slm_ray.judging.verdict import JudgedVerdict, judged_verdict, lines, note
from slm_ray.records import ExampleSet, ModelReport, Report, RowResult
from slm_ray.types import Percentiles, Usage


def label(queue: Queue, row_id: str, better: str, labeller: str = "ann", **more: Any) -> dict[str, Any]:
    """A label by what the person means: `SLM`, `LLM` or `tie`."""
    side = "tie" if better == "tie" else "A" if (better == "SLM") == queue.slm_first(row_id) else "B"
    return {"queue": queue.key, "id": row_id, "labeller": labeller, "prefers": side, **more}


def written(folder: Path, labels: list[dict[str, Any]], name: str = "labels.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in labels), encoding="utf-8")
    return str(path)


def verdict(
    rows: list[RowResult], queue: Queue, people: Mapping[str, float], judge: Mapping[str, float | None], **report: Any
) -> JudgedVerdict:
    labels = Labels(differences=dict(people), labellers=("ann",), by_people=len(people))
    return judged_verdict(report_of(rows, **report), rows, queue, judge, labels)


def test_the_level_of_a_candidate_is_shared_by_its_looks_and_without_one_nothing_is_decided(tmp_path: Path) -> None:
    rows = [row(number) for number in range(100)]
    queue = kept_queue(config(tmp_path), rows)
    people = {key: 1.0 for unit in queue.units[:80] for key in unit}
    labels = Labels(differences=people, labellers=("ann",), by_people=len(people))
    judge = {one.id: 1.0 for one in rows}
    third, spent = (judged_verdict(report_of(rows), rows, queue, judge, labels, level=level) for level in (0.004, 0.0))
    assert third.decision.action == "swap" and third.level == 0.002
    assert spent.decision.action == "inconclusive" and "nothing is left of the error" in spent.decision.because[0]


def test_the_gap_of_grades_counts_a_group_as_one() -> None:
    first = {row(number).id: 0.5 for number in range(60)}
    other = {row(number).id: 1.0 if number < 30 else 0.0 for number in range(60)}
    alone = minus_first([row(number) for number in range(60)], first, other)
    grouped = minus_first([row(number, group=f"g{number // 5}") for number in range(60)], first, other)
    assert alone and grouped and grouped.estimate == alone.estimate == 0
    assert grouped.upper - grouped.lower > 1.5 * (alone.upper - alone.lower)
    assert minus_first([row(0)], {row(0).id: None}, {row(0).id: 1.0}) is None


def test_the_order_is_drawn_once_and_kept(tmp_path: Path) -> None:
    rows = [row(number) for number in range(100)]
    queue = kept_queue(config(tmp_path), rows)
    order = [key for unit in queue.units for key in unit]
    assert sorted(order) == [one.id for one in rows] != order
    assert kept_queue(config(tmp_path), list(reversed(rows))) == queue
    sides = [queue.slm_first(key) for key in order]
    assert 30 < sum(sides) < 70


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"delta": 0.1}, "delta was declared as 0.05 before the first label and is 0.1 now"),
        ({"looks": (40,)}, r"looks was declared as \(40, 80\)"),
        ({"llm": SLM, "slm": LLM}, "llm was declared as"),
        ({"judge": "fake:y"}, "judge was declared as 'fake:x' before the first label and is 'fake:y'"),
    ],
)
def test_what_was_declared_by_the_queue_stays(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    rows = [row(number) for number in range(100)]
    kept_queue(config(tmp_path), rows)
    with pytest.raises(ConfigError, match=why):
        kept_queue(config(tmp_path, **settings), rows)


def test_other_answers_want_another_queue(tmp_path: Path) -> None:
    kept_queue(config(tmp_path), [row(number) for number in range(100)])
    with pytest.raises(ConfigError, match="drawn for other answers"):
        kept_queue(config(tmp_path), [row(number, slm="retrained") for number in range(100)])


def test_a_judge_who_is_asked_otherwise_wants_another_queue(tmp_path: Path) -> None:
    rows = [row(number) for number in range(100)]
    kept_queue(config(tmp_path), rows, asked="one rubric")
    with pytest.raises(ConfigError, match="rubric, show_target or a generation setting is another"):
        kept_queue(config(tmp_path), rows, asked="another rubric")


def test_nothing_to_judge_is_said_by_the_settings_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give a finished evaluation as `report`, or answers .* as `calibrate`"):
        config(tmp_path, report="")


def test_looks_at_too_few_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="29 labels are too few"):
        kept_queue(config(tmp_path, looks=(29, 60)), [row(number) for number in range(100)])


def test_rows_of_a_group_stand_together_and_looks_go_no_further_than_the_units(tmp_path: Path) -> None:
    queue = kept_queue(config(tmp_path), [row(number, group=f"g{number % 50}") for number in range(100)])
    assert len(queue.units) == 50 and all(len(unit) == 2 for unit in queue.units)
    assert all(int(one[1:]) % 50 == int(other[1:]) % 50 for one, other in queue.units)
    assert queue.looks == (40, 50)


def test_the_page_names_no_model_and_hostile_text_stays_text(tmp_path: Path) -> None:
    rows = [row(number, slm="</script><script>alert(1)</script><!--") for number in range(50)]
    rows[0] = row(0, llm=REFUSED)
    queue = kept_queue(config(tmp_path), rows)
    page = write_page(config(tmp_path, rubric="Is it <b>right</b>?"), queue, rows).read_text(encoding="utf-8")
    assert LLM not in page and SLM not in page and queue.answers not in page
    assert "alert(1)" in page and "<script>alert" not in page and "<!--" not in page and "&lt;b&gt;right" in page
    assert page.count("</script>") == 2
    assert "q000" not in page  # one side is missing: nobody is asked
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [one["id"] for one in shown["rows"]] == [key for (key,) in queue.units if key != "q000"]
    for one in shown["rows"]:
        assert ("small" in one["A"] or "alert" in one["A"]) is queue.slm_first(one["id"])


def test_labels_are_told_apart_again_and_people_are_averaged(tmp_path: Path) -> None:
    rows = [row(number) for number in range(40)]
    rows[3], rows[4], rows[5] = row(3, slm=REFUSED), row(4, llm=OUTAGE), row(5, llm=REFUSED, slm=REFUSED)
    queue = kept_queue(config(tmp_path, looks=(30,)), rows)
    first = written(tmp_path, [label(queue, f"q{n:03}", "SLM" if n % 2 else "LLM") for n in range(10, 20)])
    second = written(
        tmp_path, [label(queue, "q010", "SLM", "bob"), label(queue, "q011", "tie", "bob"), label(queue, "q010", "SLM", "bob")],
        "more.jsonl",
    )  # fmt: skip
    found = read_labels([first, second], queue, rows)
    assert found.labellers == ("ann", "bob") and found.by_people == 10
    assert (found.differences["q012"], found.differences["q013"]) == (-1, 1)
    assert (found.differences["q010"], found.differences["q011"]) == (0, 0.5)
    assert [found.differences[f"q00{n}"] for n in (3, 4, 5)] == [-1, 1, 0]


def test_grades_are_a_difference_too(tmp_path: Path) -> None:
    rows = [row(number) for number in range(40)]
    queue = kept_queue(config(tmp_path, looks=(30,)), rows)
    graded = {**label(queue, "q001", "tie"), "grades": {"A": 7, "B": 4}}
    del graded["prefers"]
    found = read_labels([written(tmp_path, [graded])], queue, rows)
    assert found.differences == {"q001": 0.5 if queue.slm_first("q001") else -0.5}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"queue": "other"}, "was given to the queue 'other'"),
        ({"id": "q999"}, "no row 'q999' in the report"),
        ({"id": ["q001"]}, "no row"),
        ({"id": "q000"}, "no two answers to choose from"),
        ({"prefers": "C"}, '\'prefers\' is \'C\'; write "A", "B" or "tie"'),
        ({"prefers": ["A"]}, "'prefers' is"),
        ({"grades": {"A": 1, "B": 2}}, "has both 'prefers' and 'grades'; remove one"),
        ({"labeller": " "}, "'labeller' is ' '; write who labelled"),
        ({"A": "something else"}, "answer A of 'q001' is not what was shown"),
        ({"preference": "A"}, "unknown key 'preference'"),
    ],
)
def test_a_label_that_cannot_count_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    rows = [row(0, slm=REFUSED), *(row(number) for number in range(1, 40))]
    queue = kept_queue(config(tmp_path, looks=(30,)), rows)
    path = written(tmp_path, [label(queue, "q002", "SLM"), {**label(queue, "q001", "SLM"), **change}])
    with pytest.raises(DataError, match=why) as caught:
        read_labels([path], queue, rows)
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("grades", [{"A": 0, "B": 3}, {"A": True, "B": 3}, {"A": 3.5, "B": 3}, {"A": 3}, 5])
def test_a_grade_that_is_none_is_refused(tmp_path: Path, grades: Any) -> None:
    rows = [row(number) for number in range(40)]
    queue = kept_queue(config(tmp_path, looks=(30,)), rows)
    path = written(tmp_path, [{"queue": queue.key, "id": "q001", "labeller": "ann", "grades": grades}])
    with pytest.raises(DataError, match="whole numbers from 1 to 7"):
        read_labels([path], queue, rows)


def test_one_person_says_one_thing_and_all_label_in_one_way(tmp_path: Path) -> None:
    rows = [row(number) for number in range(40)]
    queue = kept_queue(config(tmp_path, looks=(30,)), rows)
    twice = written(tmp_path, [label(queue, "q001", "SLM"), label(queue, "q001", "LLM")])
    with pytest.raises(DataError, match=r":2: ann labelled 'q001' otherwise at .*:1"):
        read_labels([twice], queue, rows)
    graded = {"queue": queue.key, "id": "q002", "labeller": "ann", "grades": {"A": 1, "B": 2}}
    mixed = written(tmp_path, [label(queue, "q001", "SLM"), graded], "mixed.jsonl")
    with pytest.raises(DataError, match=r":2: has 'grades' and .*:1 has 'prefers'"):
        read_labels([mixed], queue, rows)


def report_of(rows: list[RowResult], *, trained_on: int = 0, stand_in: bool = False) -> Report:
    """The report of an LLM, perhaps a stand-in, and an SLM that was perhaps trained on some of the rows."""
    models = {
        spec: ModelReport(
            facts=facts(spec, stand_in=stand_in and spec == LLM), n=len(rows), metrics={}, latency_s=Percentiles(),
            usage=Usage(), failures={}, served_by=(), trained_on=trained_on if spec == SLM else 0,
        )
        for spec in (LLM, SLM)
    }  # fmt: skip
    return Report(track="chat", track_definition={}, examples=ExampleSet(n=len(rows), digest="d"), models=models)


def people_of(queue: Queue, labelled: int, losses: int) -> dict[str, float]:
    """Ties but for every `losses`-th unit of the queue, which the SLM loses."""
    units = queue.units[:labelled]
    return {key: -float(place % losses == 0) for place, unit in enumerate(units) for key in unit}


def kind(rows: list[RowResult]) -> dict[str, float | None]:
    """A judge who likes the SLM best everywhere."""
    return {one.id: 1.0 for one in rows}


def test_a_judge_alone_never_gives_a_swap_and_says_how_many_labels_are_missing(tmp_path: Path) -> None:
    rows = [row(number) for number in range(100)]
    queue = kept_queue(config(tmp_path), rows)
    for labelled, missing in ((0, 40), (39, 1)):
        found = verdict(rows, queue, people_of(queue, labelled, 1000), kind(rows))
        assert (found.decision.action, found.missing, found.seen) == ("inconclusive", missing, None)
        assert any(f"{missing} labels are missing to the look at 40" in reason for reason in found.decision.because)
        assert note(found) == f"{labelled} of 40 labels for the first verdict have been read."


def test_people_who_find_no_difference_let_the_slm_pass(tmp_path: Path) -> None:
    rows = [row(number) for number in range(300)]
    queue = kept_queue(config(tmp_path, looks=(100,)), rows)
    found = verdict(rows, queue, people_of(queue, 100, 1000) | {queue.units[0][0]: 0.0}, kind(rows))
    assert found.decision.action == "swap" and found.seen is not None and found.seen.interval.lower > -0.05
    assert list(lines(found))[-1] == "FINE_TUNE=0" and found.missing == 0


def test_a_flattering_judge_does_not_hide_what_people_see(tmp_path: Path) -> None:
    rows = [row(number) for number in range(300)]
    queue = kept_queue(config(tmp_path, looks=(100,)), rows)
    found = verdict(rows, queue, people_of(queue, 100, 3), kind(rows))
    assert found.decision.action == "fine_tune" and found.seen is not None
    assert found.seen.judge_all == 1.0 and found.seen.bias == pytest.approx(1.34)
    said = "\n".join(lines(found))
    assert "judge alone, on all rows: +1.0000" in said and "its bias is +1.3400" in said
    assert said.endswith("FINE_TUNE=1")


def test_labels_behind_a_gap_wait_and_more_labels_than_a_look_change_nothing(tmp_path: Path) -> None:
    rows = [row(number) for number in range(300)]
    queue = kept_queue(config(tmp_path, looks=(40, 200)), rows)
    at_the_look = verdict(rows, queue, people_of(queue, 40, 8), kind(rows))
    people = people_of(queue, 150, 8)
    del people[queue.units[60][0]]
    later = verdict(rows, queue, people, kind(rows))
    assert (later.labelled, later.aside, later.missing) == (60, 89, 140)
    assert later.seen == at_the_look.seen and later.seen is not None and later.seen.labels == 40
    assert "89 more wait" in "\n".join(lines(later))


def test_an_open_look_says_how_many_labels_would_do_but_not_to_whom_they_point(tmp_path: Path) -> None:
    rows = [row(number) for number in range(300)]
    queue = kept_queue(config(tmp_path, looks=(40, 200)), rows)
    found = verdict(rows, queue, people_of(queue, 40, 6), {one.id: 0.5 for one in rows})
    assert found.needed is not None and 40 < found.needed < 200
    assert any(f"about {found.needed} labels would decide" in reason for reason in found.decision.because)
    assert any("labels would bring it to 0.05" in reason for reason in found.decision.because)
    assert note(found) == f"40 labels did not decide; about {found.needed} would do."
    even = verdict(rows, queue, people_of(queue, 40, 20), {one.id: 0.5 for one in rows})
    assert even.needed is None and note(even) == "40 labels did not decide; more rows are needed than these."
    page = write_page(config(tmp_path), queue, rows, note=note(found)).read_text(encoding="utf-8")
    assert note(found) in page


def test_the_first_look_that_decides_stands_and_looks_share_the_error(tmp_path: Path) -> None:
    rows = [row(number) for number in range(300)]
    queue = kept_queue(config(tmp_path, looks=(100, 200)), rows)
    people = people_of(queue, 100, 2) | {key: 1.0 for unit in queue.units[100:200] for key in unit}
    found = verdict(rows, queue, people, {one.id: 0.5 for one in rows})
    assert found.decision.action == "fine_tune" and found.seen is not None and found.seen.labels == 100
    assert found.level == pytest.approx(0.025) and found.seen.level == found.level


def test_an_undecided_last_look_asks_for_fresh_rows(tmp_path: Path) -> None:
    rows = [row(number) for number in range(100)]
    queue = kept_queue(config(tmp_path, looks=(40,)), rows)
    found = verdict(rows, queue, people_of(queue, 60, 8), kind(rows))
    assert found.decision.action == "inconclusive" and found.missing == 0
    assert any("that was the last look" in reason for reason in found.decision.because)


def test_an_outage_gives_no_verdict_and_refusals_may_not_decide(tmp_path: Path) -> None:
    broken = [row(number, llm=OUTAGE if number % 20 == 0 else "x") for number in range(200)]
    queue = kept_queue(config(tmp_path / "a", looks=(100,)), broken)
    found = verdict(broken, queue, people_of(queue, 100, 1000) | {queue.units[0][0]: 0.0}, kind(broken))
    assert found.decision.action == "inconclusive" and "failed on 10 of 200 rows" in found.decision.because[0]

    refusing = [row(number, llm=REFUSED if number % 3 == 0 else "x") for number in range(400)]
    queue = kept_queue(config(tmp_path / "b", looks=(200,)), refusing)
    people = {key: 1.0 if int(key[1:]) % 3 == 0 else -float(int(key[1:]) % 8 == 1) for (key,) in queue.units[:200]}
    found = verdict(refusing, queue, people, {one.id: 0.5 for one in refusing})
    assert found.decision.action == "inconclusive"
    assert any("of the rows that both answered they say" in reason for reason in found.decision.because)


def test_a_judgement_that_cannot_be_read_is_a_guess_of_a_tie(tmp_path: Path) -> None:
    rows = [row(number) for number in range(100)]
    queue = kept_queue(config(tmp_path, looks=(40,)), rows)
    people = people_of(queue, 40, 4)
    unread, ties = (verdict(rows, queue, people, {one.id: share for one in rows}) for share in (None, 0.5))
    assert unread == ties


def test_a_model_that_was_trained_on_the_rows_is_refused_and_a_stand_in_is_said(tmp_path: Path) -> None:
    rows = [row(number) for number in range(100)]
    queue = kept_queue(config(tmp_path, looks=(40,)), rows)
    with pytest.raises(ComparisonError, match="was trained on 7 of the 100 rows"):
        verdict(rows, queue, {}, kind(rows), trained_on=7)
    found = verdict(rows, queue, {}, kind(rows), stand_in=True)
    assert any("the LLM here is a stand-in" in reason for reason in found.decision.because)
