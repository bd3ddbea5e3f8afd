"""Reports on disk into a decision: read one or two evaluations, pair them, decide, and say what both sides cost.

Two evaluations of different rows, or of rows that a model was trained on, are refused with the counts. The rule and the
margin of a run are declared in a file of their own before its first call; a comparison says whether it kept to them. The
same reports give the same decision and the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray import storage
from slm_ray.config import CompareConfig, Cost, Declaration
from slm_ray.errors import ConfigError, DataError, choices
from slm_ray.tasks import open_dataset
from slm_ray.types import Comparison, Decision
from slm_ray.verdict.compare import compare
from slm_ray.verdict.cost import Asked, Machine, cost
from slm_ray.verdict.decide import decide, declared_words, verdict_text
from slm_ray.verdict.partial import Prices, partial_of
from slm_ray.verdict.prices import PriceList, price_list
from slm_ray.verdict.words import cost_text, partial_text
from slm_ray.yaml_file import read_yaml

REPORT = "report.json"
SCORES = "scores.jsonl"
DECLARED = "declared.json"
COMPARISON = "comparison.json"
CONFIG = "config.yaml"
RESAMPLES, SEED = 9999, 42  # of the bootstrap: fixed, so that nobody draws until an interval suits


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """All that is known of two models on the same rows; `partial` is None without validation rows."""

    comparison: Comparison
    decision: Decision
    declared: Mapping[str, Any] | None
    cost: Mapping[str, Any]
    partial: Mapping[str, Any] | None

    def text(self) -> str:
        """What a person reads; the last line is `FINE_TUNE=0|1`."""
        parts = [cost_text(self.cost), *([partial_text(self.partial)] if self.partial else [])]
        return verdict_text(self.comparison, self.decision, further=parts)


def compare_reports(config: CompareConfig, *, urls: Mapping[str, str] | None = None) -> Compared:
    """Compare `config.slm` with `config.llm` by `config.rule`.

    `urls` say where models answer, by kind (`azure`), where a run's own config does not. Raises ComparisonError where the
    two cannot be paired, DataError where a file is missing or damaged, ConfigError for a price file that is none.
    """
    report, rows = load_report(config.report)
    other_report, other_rows = load_report(config.other_report) if config.other_report else (report, rows)
    trained = training_prompts(config.train, report["track"]) if config.train else None
    comparison = compare(
        report, rows, other_report, other_rows, llm=config.llm, slm=config.slm, min_paired=config.min_paired_share,
        resamples=RESAMPLES, seed=SEED, train_prompts=trained, gates=config.guardrails,
        slice_rows=config.slice_rows,
    )  # fmt: skip
    decision = decide(comparison, rule=config.rule, delta=config.delta)
    declared = _declared(config.report)
    kept = declared_words(declared, decision, comparison.primary)
    asked = [_asked(config.report, report, rows, urls or {})]
    if config.other_report:
        asked.append(_asked(config.other_report, other_report, other_rows, urls or {}))
    costs = cost(asked, llm=config.llm, slm=config.slm, prices=load_prices(config.cost), machine=_machine(config.cost),
                 llm_price_as=config.cost.llm_price_as)  # fmt: skip
    return Compared(
        comparison=comparison,
        decision=dataclasses.replace(decision, because=(*decision.because, kept)),
        declared=declared,
        cost=costs,
        partial=_partial(config, report, _joined(config, rows, other_rows), costs)
        if config.validation_report
        else None,
    )


def write_comparison(found: Compared, config: CompareConfig) -> Path:
    """Write it all as JSON to `config.out`, else beside the report; the path. The same reports give the same bytes."""
    path = Path(config.out) if config.out else _folder(config.report) / COMPARISON
    storage.write_json(path, dataclasses.asdict(found))
    return path


def declare(run_dir: str | Path, declared: Declaration | None, *, primary: str, answers_before: int) -> None:
    """Write down rule, margin and metric of a run before its first call; what was declared first stays."""
    path = Path(run_dir) / DECLARED
    if declared is not None and not path.exists():
        storage.write_json(
            path, {"rule": declared.rule, "delta": declared.delta, "primary": primary, "answers_before": answers_before}
        )


def load_report(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A report and its score rows; `path` is the run directory or its report.json."""
    file = Path(path)
    file = file / REPORT if file.is_dir() else file
    report = storage.read_json(file)
    missing = {"track", "examples", "models"} - set(report if isinstance(report, dict) else ())
    if missing:
        raise DataError(
            f"{file}: not an evaluation report (no {', '.join(sorted(missing))}); give a report.json that jobs/evaluate.py wrote"
        )
    return report, storage.read_jsonl(file.with_name(SCORES))


def load_prices(config: Cost) -> PriceList:
    """The price list that the config names, which holds `llm_price_as`; ConfigError where it does not.

    The shipped list may be out of reach (a job that runs in another folder): then nothing has a price, and that is said.
    """
    if config.prices == Cost().prices and not Path(config.prices).exists():
        prices = PriceList(as_of=f"never: no {config.prices} here", models={})
    else:
        prices = price_list(read_yaml(config.prices, what="prices"), where=config.prices)
    if config.llm_price_as is not None and config.llm_price_as not in prices.models:
        raise ConfigError(
            f"cost.llm_price_as: no price for {config.llm_price_as!r} in {config.prices}:"
            f" {choices(config.llm_price_as, prices.models)}"
        )
    return prices


def training_prompts(path: str | Path, track_name: str) -> frozenset[str]:
    """The prompt hashes of a training file, to find evaluation rows that were trained on."""
    return open_dataset(path, track_name).question_hashes


def _partial(
    config: CompareConfig, report: Mapping[str, Any], rows: list[dict[str, Any]], costs: Mapping[str, Any]
) -> dict[str, Any]:
    arms = costs["arms"]
    prices = Prices(llm_usd=arms[config.llm]["per_request_usd"], slm_usd=arms[config.slm]["per_request_usd"])
    found = partial_of(
        load_report(config.validation_report or ""), (report, rows), llm=config.llm, slm=config.slm,
        delta=config.delta, resamples=RESAMPLES, seed=SEED, gates=config.guardrails, prices=prices,
    )  # fmt: skip
    return {**found, "cost_hypothetical": arms[config.llm]["hypothetical"]}


def _joined(
    config: CompareConfig, rows: list[dict[str, Any]], other_rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows with both models, as `compare` finds them: the LLM in the first report, the SLM in the other."""
    others = {row["id"]: row["models"] for row in other_rows}
    joined = []
    for row in rows:
        here, there = row["models"], others.get(row["id"], {})
        found = {
            config.llm: here.get(config.llm) or there.get(config.llm),
            config.slm: there.get(config.slm) or here.get(config.slm),
        }
        joined.append({**row, "models": {spec: answer for spec, answer in found.items() if answer}})
    return joined


def _asked(path: str, report: Mapping[str, Any], rows: list[dict[str, Any]], urls: Mapping[str, str]) -> Asked:
    """The evaluation with what the run's own config, where there is one, says of how it was asked."""
    file = _folder(path) / CONFIG
    plain: Any = read_yaml(file, what="config") if file.is_file() else {}
    concurrency = (plain.get("generation") or {}).get("concurrency")
    served = {"served": plain["endpoint"]} if "endpoint" in plain else {}
    return Asked(report=report, rows=rows, concurrency=concurrency, urls={**served, **urls})


def _declared(path: str) -> dict[str, Any] | None:
    file = _folder(path) / DECLARED
    found: dict[str, Any] | None = storage.read_json(file) if file.is_file() else None
    return found


def _folder(path: str) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _machine(config: Cost) -> Machine:
    return Machine(name=config.machine, hourly_usd=config.hourly_usd, utilisation=config.utilisation)
