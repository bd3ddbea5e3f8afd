"""Reports on disk into a decision: read one or two evaluations, pair them, decide, and say what both sides cost.

Two evaluations of different rows, or of rows that a model was trained on, are refused with the counts. All that can turn
the verdict of a run is declared in a file of its own before its first call; a comparison that does not keep to it decides
nothing. The same reports give the same decision and the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from slm_ray import storage
from slm_ray.config import CompareConfig, Cost
from slm_ray.cost_records import CostReport, Machine
from slm_ray.costs.cost import cost
from slm_ray.costs.prices import PriceList
from slm_ray.costs.volume import with_cascade
from slm_ray.errors import ConfigError, choices
from slm_ray.page.formatting import cost_text, partial_replacement_text
from slm_ray.records import ComparisonReport, PartialReplacement, Report, RowResult
from slm_ray.reports.candidates import candidate_of, said, turn_on_rows
from slm_ray.reports.encoding import encode
from slm_ray.reports.files import COMPARISON, declared_in, declared_rule, folder_of, load_report
from slm_ray.reports.load import measured_throughput
from slm_ray.reports.prices import name_of, open_prices
from slm_ray.tasks import open_dataset
from slm_ray.types import Decision, DeclaredRule
from slm_ray.verdict.arms import track_of
from slm_ray.verdict.candidates import ScoredRow, SlmScores, counted, figures_of
from slm_ray.verdict.compare import compare
from slm_ray.verdict.decide import decide, out_of_reach
from slm_ray.verdict.declared import departures, hold
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.partial_replacement import Prices, partial_replacement_of
from slm_ray.verdict.routing import taken
from slm_ray.verdict.stats import RESAMPLES, SEED
from slm_ray.verdict.words import earlier_text, verdict_text


def comparison_text(report: ComparisonReport) -> str:
    """What a person reads; the last line is `FINE_TUNE=0|1`."""
    partial = report.partial_replacement
    parts = [
        *earlier_text(report.decision),
        cost_text(report.cost),
        *([partial_replacement_text(partial)] if partial else []),
    ]
    return verdict_text(report.comparison, report.decision, further=parts)


def compare_reports(config: CompareConfig, *, chosen: bool = True) -> ComparisonReport:
    """Compare `config.slm` with `config.llm` by `config.rule`.

    `chosen`: whoever asks may have chosen this SLM among all in the reports by what they show; False where it was named
    before these rows were asked.

    Raises ComparisonError where the two cannot be paired, DataError where a file is missing or damaged, ConfigError for
    a price file that is none.
    """
    report, rows = load_report(config.report)
    other_report, other_rows = load_report(config.other_report) if config.other_report else (report, rows)
    joined = _joined(config, rows, other_rows)
    measured = measured_throughput(config.cost, (config.llm, config.slm))  # may refuse, which is before a turn is taken
    settings = _settings_now(config, report, declared := _declared(config))
    with ExitStack() as stack:
        opened = None
        if config.rule != "point":  # which knows no chance, so that there is no error to share
            candidate, *beside = (
                candidate_of(
                    settings, llm=config.llm, slm=slm, order=(report.order_seed, report.order_digest),
                    rows=[(row.prompt_hash, said(row.models.get(config.llm), row.models.get(slm))) for row in found],
                )
                for slm, found in [(config.slm, joined), *_seen_too(config, chosen, (report, rows), (other_report, other_rows))]
            )  # fmt: skip
            scores = _scores(joined, config.slm, track_of(report).primary)
            opened = stack.enter_context(
                turn_on_rows(candidate, config.report, planned=config.candidates, beside=beside, scores=scores)
            )
        trained = open_dataset(config.train, report.track).question_hashes if config.train else None
        comparison = compare(
            report, rows, other_report, other_rows, llm=config.llm, slm=config.slm, min_paired=config.min_paired_share,
            resamples=RESAMPLES, seed=SEED, train_prompts=trained, guardrails=config.guardrails,
            quality_floor=config.quality_floor,
            level=(opened.turn.level if opened else 0.0) or ONE_SIDED,
            sequential_delta=config.delta if config.rule == "sequential" else None,
        )  # fmt: skip
        decision = decide(comparison, rule=config.rule, delta=config.delta)
        if opened:
            decision = counted(decision, opened.turn, comparison, planned=config.candidates, caveat=opened.caveat)
            decision = dataclasses.replace(decision, earlier=opened.earlier)
        decision = _as_declared(decision, config, declared, report, other_report)
        if opened and opened.turn.level and decision.exploratory is None and not out_of_reach(comparison):
            opened.note(decision.action, figures_of(comparison, rule=decision.rule))
    evaluations = [(report, rows), *([(other_report, other_rows)] if config.other_report else [])]
    costs = cost(evaluations, llm=config.llm, slm=config.slm, prices=load_prices(config), machine=_machine(config.cost),
                 llm_price_as=config.cost.llm_price_as, requests_per_day=config.cost.requests_per_day,
                 measured=measured)  # fmt: skip
    partial = None
    if config.validation_report and _may_take_part(decision, config, left=opened is None or opened.turn.level > 0):
        partial = _partial_replacement(config, report, joined, costs, comparison.level)
    return ComparisonReport(
        comparison=comparison,
        decision=decision,
        declared=next(iter(declared.values()), None),
        cost=_with_cascade(config, costs, partial, joined),
        partial_replacement=partial,
    )


def _scores(rows: list[RowResult], slm: str, primary: str) -> SlmScores:
    """What the SLM scored; a call that failed in transport is no wrong answer but a missing one."""
    answers = ((row, row.models[slm]) for row in rows if slm in row.models)
    scored = (
        ScoredRow(prompt_hash=row.prompt_hash, id=row.id, score=None if failed else answer.scores.get(primary))
        for row, answer in answers
        for failed in [answer.failure is not None and answer.failure.in_transport]
    )
    return SlmScores(primary=primary, rows=tuple(scored))


def _declared(config: CompareConfig) -> dict[str, DeclaredRule]:
    """What was declared, by report: of the first and of the other one, where they declared anything."""
    paths = [config.report, *([config.other_report] if config.other_report else [])]
    return {path: rule for path in paths if (rule := declared_in(path)) is not None}


def _as_declared(
    decision: Decision, config: CompareConfig, declared: Mapping[str, DeclaredRule], *reports: Report
) -> Decision:
    """The decision, held to what the run of either report declared."""
    differing = []
    for path, report in zip((config.report, config.other_report), reports, strict=True):
        if path is not None and path in declared:
            where = f" in {path}" if config.other_report else ""
            now = _settings_now(config, report, declared)
            differing += [words + where for words in departures(declared[path], now)]
    kinds = {spec: model.facts.kind for report in reports for spec, model in report.models.items()}
    recorded = [spec for spec in (config.llm, config.slm) if kinds[spec] == "recorded"]
    now = _settings_now(config, reports[0], declared)
    return hold(decision, next(iter(declared.values()), None), now, differing=differing, recorded=recorded)


def _settings_now(config: CompareConfig, report: Report, declared: Mapping[str, DeclaredRule]) -> DeclaredRule:
    """What this comparison is made by; a report that does not say which file its rows are of is taken at its word."""
    first = next(iter(declared.values()), None)
    digest = report.provenance.digests.data if report.provenance else first.examples if first else ""
    baselines = [spec for spec, model in report.models.items() if model.facts.kind == "baseline"]
    return declared_rule(config, track_of(report), examples=digest, rows=report.examples.n, baselines=baselines)


def write_comparison(report: ComparisonReport, config: CompareConfig) -> Path:
    """Write it all as JSON to `config.out`, else beside the report; the path. The same reports give the same bytes."""
    path = Path(config.out) if config.out else folder_of(config.report) / COMPARISON
    storage.write_json(path, encode(report))
    return path


def load_prices(config: CompareConfig) -> PriceList:
    """The price list that the config names, which holds `llm_price_as`; ConfigError where it does not."""
    prices, price_as = open_prices(config.prices), config.cost.llm_price_as
    if price_as is not None and price_as not in prices.models:
        raise ConfigError(
            f"cost.llm_price_as: no price for {price_as!r} in {name_of(config.prices)}: {choices(price_as, prices.models)}"
        )
    return prices


def _may_take_part(decision: Decision, config: CompareConfig, *, left: bool) -> bool:
    """Whether a share is to be looked for: not beside a swap, nor by settings that were not declared, nor with nothing of
    the error left, nor on rows whose number depends on what they said."""
    stopped = config.rule == "sequential" and config.stop == "when_decided"
    return decision.action != "swap" and decision.exploratory is None and left and not stopped


def _partial_replacement(
    config: CompareConfig, report: Report, rows: list[RowResult], costs: CostReport, level: float
) -> PartialReplacement:
    llm, slm = costs.arms[config.llm], costs.arms[config.slm]
    prices = Prices(llm_usd=llm.per_request_usd, slm_usd=slm.per_request_usd)
    return partial_replacement_of(
        load_report(config.validation_report or ""), (report, rows), llm=config.llm, slm=config.slm,
        delta=config.delta, resamples=RESAMPLES, seed=SEED, guardrails=config.guardrails, prices=prices, cost_hypothetical=llm.hypothetical,
        level=level,
    )  # fmt: skip


def _with_cascade(
    config: CompareConfig, costs: CostReport, partial: PartialReplacement | None, rows: list[RowResult]
) -> CostReport:
    """With what a cascade costs and takes, where the SLM may take a part."""
    if partial is None or partial.threshold is None or not 0 < partial.share < 1:
        return costs
    by_slm = taken(rows, llm=config.llm, slm=config.slm, threshold=partial.threshold)
    return with_cascade(costs, rows, share=partial.share, taken=by_slm)


def _joined(config: CompareConfig, rows: list[RowResult], other_rows: list[RowResult]) -> list[RowResult]:
    """Rows with both models, as `compare` finds them: the LLM in the first report, the SLM in the other."""
    others = {row.id: row.models for row in other_rows}
    joined = []
    for row in rows:
        here, there = row.models, others.get(row.id, {})
        found = {
            config.llm: here.get(config.llm) or there.get(config.llm),
            config.slm: there.get(config.slm) or here.get(config.slm),
        }
        joined.append(dataclasses.replace(row, models={spec: answer for spec, answer in found.items() if answer}))
    return joined


def _seen_too(
    config: CompareConfig, chosen: bool, *evaluations: tuple[Report, list[RowResult]]
) -> list[tuple[str, list[RowResult]]]:
    """The further SLMs whose figures the reports show, each with its rows.

    None where this one was named before it was asked, as every candidate of a run under `sequential` is.
    """
    named = {spec for report, _ in evaluations if report.sequential for spec in report.sequential.candidates}
    if not chosen or config.slm in named:
        return []
    kinds = {spec: model.facts.kind for report, _ in evaluations for spec, model in report.models.items()}
    others = [spec for spec, kind in kinds.items() if kind != "baseline" and spec not in (config.llm, config.slm)]
    rows = [found for _, found in evaluations]
    return [(spec, _joined(config.model_copy(update={"slm": spec}), *rows)) for spec in others]


def _machine(config: Cost) -> Machine:
    return Machine(name=config.machine, hourly_usd=config.hourly_usd, utilisation=config.utilisation)
