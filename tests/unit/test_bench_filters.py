"""The benchmark of the live filters: the faults are those that are said, and the filters meet them."""

from pathlib import Path

from slm_ray.traffic.snapshot import write_snapshot
from tools.bench_filters import PROSE, arrangements, difference, in_words, question_of, questions, raw_rows, traffic
from tools.config import FilterBenchConfig

CONFIG = FilterBenchConfig(questions=200, test_rows=40)


def test_a_log_has_the_faults_that_are_said_and_the_filters_leave_fewer(tmp_path: Path) -> None:
    asked, test = questions(CONFIG)
    assert not {question_of(row) for row in asked} & {question_of(row) for row in test}
    requests = traffic(CONFIG, asked)
    assert requests == traffic(CONFIG, asked) and len(requests) > 350
    write_snapshot(tmp_path / "log", requests)
    truth = {question_of(row): row.target for row in asked}
    raw = raw_rows(requests, asked, truth)
    formless = sum(row.target == PROSE for row in raw.rows)
    assert len(raw.rows) == len(requests) and abs(raw.wrong / len(raw.rows) - 0.25) < 0.07
    left = {one.name: one for one in arrangements(str(tmp_path / "log"), truth)}
    form = left["form alone"]
    assert len(form.rows) == len(raw.rows) - formless and form.wrong == raw.wrong - formless
    assert len(left["duplicates: exact"].rows) < len(form.rows)
    shares = {name: one.wrong / len(one.rows) for name, one in left.items()}
    assert shares["disagreement: drop"] < shares["self_agreement: 0.6"] < shares["form alone"] and shares["both"] < 0.02


def test_a_difference_is_said_only_where_its_interval_shows_it() -> None:
    raw, same, more = [True, False] * 50, [False, True] * 50, [True] * 100
    assert in_words(difference(raw, same, 5)) == "no difference shown"
    assert in_words(difference(raw, more, 5)) == "better" and in_words(difference(more, raw, 5)) == "worse"
