"""A judge over a finished evaluation: its questions are one more evaluation, so they resume, are paid for once and traced.

Grades every model's answers (1 to 7), or two models' answers against each other in both orders, or a file of answers that
people have graded (calibration). What makes an answer good is the config's rubric, else that of the track, else a
general one. A judge that has not been calibrated on at least `ENOUGH` rows with a kappa of at least
`AGREES`, under the same rubric, is marked advisory wherever its score is written. A failed call gets the lowest grade
unasked; a judgement that cannot be read is unscored and counted, never 0. A pair comes with a queue of answers for people
to label; their labels and the judge's sayings together give a verdict (`judging.verdict`), the judge alone none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slm_ray import storage
from slm_ray.config import EvaluateConfig, JudgeConfig, Requests
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, DataError, choices
from slm_ray.evaluation import evaluate
from slm_ray.judging.labels import Labels, read_labels
from slm_ray.judging.queue import PAGE, Queue, kept_queue, write_page
from slm_ray.judging.verdict import JudgedVerdict, judged_verdict
from slm_ray.judging.verdict import lines as verdict_lines
from slm_ray.judging.verdict import note as label_note
from slm_ray.records import SCHEMA_VERSION, Report, RowResult
from slm_ray.reports.candidates import said, turn_on_rows
from slm_ray.reports.encoding import decode, encode
from slm_ray.reports.files import declared_in, load_report
from slm_ray.scoring.judge import (
    HIGHEST,
    LOWEST,
    SYSTEM,
    Agreement,
    agreement,
    both_orders,
    grade,
    grade_prompt,
    pair_prompt,
    score_grade,
)
from slm_ray.tasks import open_track, write_track
from slm_ray.types import CandidateFigures, Interval, Prompt
from slm_ray.verdict.arms import track_of
from slm_ray.verdict.candidates import Candidate, turn_text
from slm_ray.verdict.stats import RESAMPLES, SEED, paired_interval

RESULT = "judge.json"
JUDGED = "judged"  # the rule and, in the record of candidates, what stands in the place of a metric
ENOUGH = 30
GENERAL = "Is the answer correct, complete and in the form that the task asks for?"
AGREES = 0.6
_NO_TARGET = "-"
_TRACKS = {
    name: Track(name=name, system=SYSTEM, scorers=(name,), primary=metric, core=(metric,))
    for name, metric in {"grade": "grade", "preference": "first_wins"}.items()
}

Question = dict[str, Any]  # a row of the evaluation that the judge is asked in


@dataclass(frozen=True, slots=True, kw_only=True)
class Grades:
    """One model's grades: their mean in [0, 1] over the rows with a readable one, and the paired gap to the first model."""

    n: int
    unread: int
    mean: float | None
    minus_first: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """How often the second model wins against the first, each pair asked in both orders; a tie is one half.

    `same_place_twice` counts the pairs that their order decided.
    """

    first: str
    second: str
    n: int
    both_answered: int
    unread: int
    second_wins: float | None
    same_place_twice: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge said: grades by model and perhaps a pair, or how far it agrees with people (`calibration`, `key`).

    `verdict` is that of judge and people together, where labels were given.
    """

    judge: str
    rubric: str
    advisory: bool
    grades: Mapping[str, Grades] = field(default_factory=dict)
    pair: Preference | None = None
    calibration: Agreement | None = None
    key: str | None = None
    verdict: JudgedVerdict | None = None
    schema_version: int = SCHEMA_VERSION


def judge(config: JudgeConfig, environment: Mapping[str, str] | None = None) -> Judgement:
    """Ask the judge and write `run_dir/judge.json`; the result. Raises as `evaluate` does."""
    if config.calibrate:
        # Of the report that the judge is to grade, where it is there: another rubric is another judge.
        graded = load_report(config.report)[0] if config.report and not config.track and not config.rubric else None
        config = config.model_copy(update={"rubric": _rubric(config, graded)})
        result = _calibrated(config, environment)
    else:
        report, rows = load_report(config.report)
        config = config.model_copy(update={"rubric": _rubric(config, report)})
        models = _models(config, report)
        # A candidate whose asking ended with a decision has answers to the first rows only.
        rows = [row for row in rows if row.models.keys() >= {*models, *config.pair}]
        result = Judgement(judge=config.judge, rubric=config.rubric, advisory=_advisory(config))
        if config.pair:
            # Drawn before anything is asked: nobody has seen a judgement when the order and the margin are fixed.
            queue = kept_queue(config, rows, asked=_key(config))
            write_page(config, queue, rows)
            labels = read_labels(config.labels, queue, rows)
            pair, shares = _pair(config, rows, environment)
            verdict = _verdict(config, report, rows, queue, shares, labels) if config.labels else None
            if verdict:
                write_page(config, queue, rows, note=label_note(verdict))
            result = replace(result, pair=pair, verdict=verdict)
        result = replace(result, grades=_grades(config, rows, models, environment))
    storage.write_json(Path(config.run_dir) / RESULT, encode(result))
    return result


def _verdict(
    config: JudgeConfig, report: Report, rows: Sequence[RowResult], queue: Queue, shares: Mapping[str, float | None],
    labels: Labels,
) -> JudgedVerdict:  # fmt: skip
    """The verdict of judge and people, as one of the candidates on these rows: by scores or by judgement, each is a try."""
    declared = declared_in(config.report)
    planned = declared.candidates if declared else None
    settings = hashlib.sha256(repr([queue.judge, queue.asked, queue.delta, queue.looks]).encode()).hexdigest()
    answers = [(row.prompt_hash, said(row.models[queue.llm], row.models[queue.slm])) for row in rows]
    candidate = Candidate.of(answers, llm=queue.llm, slm=queue.slm, rule=JUDGED, settings=settings)
    with turn_on_rows(candidate, config.report, planned=planned) as opened:
        verdict = judged_verdict(report, rows, queue, shares, labels, level=opened.turn.level)
        because = (*verdict.decision.because, turn_text(opened.turn, planned=planned), *filter(None, [opened.caveat]))
        if opened.turn.level and verdict.seen is not None:
            figures = CandidateFigures(
                llm=queue.llm, primary=JUDGED, n=len(rows), llm_metric=None, slm_metric=None,
                interval=verdict.seen.interval,
            )  # fmt: skip
            opened.note(verdict.decision.action, figures)
    return replace(
        verdict,
        decision=replace(verdict.decision, because=because, candidate=opened.turn.number, earlier=opened.earlier),
    )


def _rubric(config: JudgeConfig, report: Report | None) -> str:
    """The config's, else the named track's, else the report's track's, else one that fits any task."""
    if config.rubric:
        return config.rubric
    if config.track:
        return open_track(config.track).rubric or GENERAL
    return (track_of(report).rubric if report else "") or GENERAL


def _grades(
    config: JudgeConfig, rows: list[RowResult], models: list[str], environment: Mapping[str, str] | None
) -> dict[str, Grades]:
    """Per model the mean grade in [0, 1] over scored rows, and for the first model against each other the paired gap."""
    questions = [
        _question(f"{model}|{row.id}", grade_prompt(_asked(row), text, _target(config, row), config.rubric))
        for model in models
        for row in rows
        if (text := row.models[model].text) is not None
    ]
    said = _ask(config, "grade", questions, environment)
    found: dict[str, Grades] = {}
    values = {model: {row.id: _grade_of(model, row, said) for row in rows} for model in models}
    for model, given in values.items():
        read = [value for value in given.values() if value is not None]
        found[model] = Grades(
            n=len(given),
            unread=len(given) - len(read),
            mean=_mean(read),
            minus_first=minus_first(rows, values[models[0]], given) if model != models[0] else None,
        )
    return found


def minus_first(
    rows: list[RowResult], first: Mapping[str, float | None], other: Mapping[str, float | None]
) -> Interval | None:
    """The paired gap of two models' grades by row id, rows of one group counted as what they are; None without a pair."""
    gaps = [
        (grade - from_first, row.group)
        for row in rows
        if (from_first := first[row.id]) is not None and (grade := other[row.id]) is not None
    ]
    if not gaps:
        return None
    return paired_interval(
        [gap for gap, _ in gaps], resamples=RESAMPLES, seed=SEED, groups=[group for _, group in gaps]
    )


def _pair(
    config: JudgeConfig, rows: list[RowResult], environment: Mapping[str, str] | None
) -> tuple[Preference, dict[str, float | None]]:
    """The second model's win share against the first, each pair asked in both orders; a tie is one half. And by row id."""
    one, two = config.pair
    pairs = [
        (row.id, row, second, first)
        for row in rows
        if (second := row.models[two].text) is not None and (first := row.models[one].text) is not None
    ]
    questions = [
        _question(f"{order}|{key}", pair_prompt(_asked(row), a, b, _target(config, row), config.rubric))
        for key, row, second, first in pairs
        for order, a, b in (("ab", second, first), ("ba", first, second))
    ]
    said = _ask(config, "preference", questions, environment)
    shares = {key: both_orders(said[f"ab|{key}"], said[f"ba|{key}"]) for key, *_ in pairs}
    read = [share for share in shares.values() if share is not None]
    swayed = sum(said[f"ab|{key}"] == said[f"ba|{key}"] != 0.5 for key, *_ in pairs if said[f"ab|{key}"] is not None)
    preference = Preference(
        first=one, second=two, n=len(rows), both_answered=len(pairs), unread=len(shares) - len(read),
        second_wins=_mean(read), same_place_twice=swayed,
    )  # fmt: skip
    return preference, shares


def _calibrated(config: JudgeConfig, environment: Mapping[str, str] | None) -> Judgement:
    questions, people = [], {}
    for line, row in storage.numbered_jsonl(str(config.calibrate)):
        where = f"{config.calibrate}:{line}"
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("prediction"), str):
            raise DataError(
                f"{where}: needs 'prompt', 'prediction' (texts) and 'human' ({LOWEST} to {HIGHEST}); add them"
            )
        if grade(str(row.get("human"))) is None:
            raise DataError(
                f"{where}: 'human' is {row.get('human')!r}; write a whole number from {LOWEST} to {HIGHEST}"
            )
        target = row.get("target") if config.show_target else None
        key = f"line {line}"
        people[key] = str(row["human"])
        questions.append(_question(key, grade_prompt(row["prompt"], row["prediction"], target, config.rubric)))
    texts = _texts(config, "grade", questions, environment)
    found = agreement([score_grade(key, texts[key], people[key]) for key in people])
    return Judgement(
        judge=config.judge, rubric=config.rubric, advisory=not _good(found), calibration=found, key=_key(config)
    )


def _ask(
    config: JudgeConfig, track: str, questions: list[Question], environment: Mapping[str, str] | None
) -> dict[str, float | None]:
    """The value of each judgement by question id: the one metric of the track."""
    if not questions:
        return {}
    folder = Path(config.run_dir) / track
    write_track(folder, _TRACKS[track])
    storage.write_jsonl(folder / "questions.jsonl", questions)
    evaluate(
        EvaluateConfig(
            track=str(folder / "track.yaml"), examples=str(folder / "questions.jsonl"), models=(config.judge,), run_dir=str(folder),
            endpoint=config.endpoint, prices=config.prices, **{name: getattr(config, name) for name in Requests.model_fields},
        ),
        environment=environment,
    )  # fmt: skip
    _, rows = load_report(folder)
    return {row.id: next(iter(row.models[config.judge].scores.values())) for row in rows}


def _texts(
    config: JudgeConfig, track: str, questions: list[Question], environment: Mapping[str, str] | None
) -> dict[str, str | None]:
    _ask(config, track, questions, environment)
    _, rows = load_report(Path(config.run_dir) / track)
    return {row.id: row.models[config.judge].text for row in rows}


def _question(key: str, prompt: Prompt) -> Question:
    return {"id": key, "prompt": prompt.as_dicts(), "target": _NO_TARGET}


def _grade_of(model: str, row: RowResult, said: Mapping[str, float | None]) -> float | None:
    return 0.0 if row.models[model].text is None else said[f"{model}|{row.id}"]


def _asked(row: RowResult) -> str:
    return "\n".join(turn.content for turn in row.prompt if turn.role != "system")


def _target(config: JudgeConfig, row: RowResult) -> str | None:
    return row.target if config.show_target else None


def _models(config: JudgeConfig, report: Report) -> list[str]:
    wanted = list(config.models) or list(report.models)
    for model in (*wanted, *config.pair):
        if model not in report.models:
            raise ConfigError(f"{model!r} is not in the report {config.report}: {choices(model, report.models)}")
    if config.labels and not config.pair:
        raise ConfigError("labels are of two models' answers; name both, as llm and slm")
    if len(set(config.pair)) == 1:
        raise ConfigError(f"llm and slm are both {config.llm!r}, which agrees with itself; name two models")
    return wanted


def _advisory(config: JudgeConfig) -> bool:
    """False only for a judge whose calibration, with this rubric, was good enough."""
    if not config.calibration:
        return True
    path = Path(config.calibration)
    path = path / RESULT if path.is_dir() else path
    found = decode(storage.read_json(path), Judgement, where=str(path), fix="calibrate this judge (--calibrate FILE)")
    if found.calibration is None or found.key != _key(config):
        raise ConfigError(
            f"{path}: is the calibration of another judge, rubric or generation setting; calibrate this one (--calibrate FILE)"
        )
    return not _good(found.calibration)


def _good(found: Agreement) -> bool:
    return found.n >= ENOUGH and found.kappa is not None and found.kappa >= AGREES


def _key(config: JudgeConfig) -> str:
    parts = [config.judge, config.rubric, config.show_target, config.generation.model_dump_json()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def lines(result: Judgement) -> Iterator[str]:
    """The result as a person reads it."""
    mark = "  [advisory: not calibrated]" if result.advisory else ""
    if found := result.calibration:
        kappa, spearman = _number(found.kappa), _number(found.spearman)
        yield f"{result.judge}: kappa {kappa}, Spearman {spearman} over {found.n} rows, {found.unread} unread"
        yield "good enough to count" if not result.advisory else f"advisory: needs {ENOUGH} rows and kappa {AGREES}"
    for model, grades in result.grades.items():
        read = grades.n - grades.unread
        yield f"{model}: grade {_number(grades.mean)} over {read} of {grades.n} rows{mark}"
    if pair := result.pair:
        wins = "-" if pair.second_wins is None else f"{pair.second_wins:.1%}"
        yield (
            f"{pair.second} wins {wins} against {pair.first} ({pair.both_answered} pairs in both orders, "
            f"{pair.unread} unread, {pair.same_place_twice} decided by place){mark}"
        )
        if not result.verdict:
            yield f"no verdict by the judge alone: label the pairs in {PAGE} beside {RESULT}, then give them as labels"
    if result.verdict:
        yield from verdict_lines(result.verdict)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
