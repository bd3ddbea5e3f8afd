"""How long the watch takes when traffic turns to what the adapter never saw: two tool domains are left out of its training.

One process, neither Ray nor vLLM: rows are generated from the catalogue, the tiny base is trained on those of the other
domains (`tools.tiny_adapter`, in parts that are continued) and answers by greedy decoding. The LLM is a stand-in that always
gives the expected answer, so that agreement is being right. The test rows of the known domains are cut in two, again and
again: of one half the lower bound is the watch's reference, from the other live traffic is drawn, and from some point on
from the domains that were left out, wholly or for a share of the requests. With `run` nothing is trained: the scores are
those of a finished evaluation, and traffic turns from the arm `slm` to the arm `becomes` (an adapter lost, a wrong one
served).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from slm_ray.command import run
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError, choices
from slm_ray.reports.files import load_report
from slm_ray.rollout.grants import AGREEMENT_LEVEL, agreement
from slm_ray.types import Example
from slm_ray.verdict.operating_characteristics.watching import alarms
from slm_ray.verdict.stats import RESAMPLES, SEED, paired_interval
from slm_ray.verdict.watch import levels
from slm_ray.yaml_file import read_yaml
from tools.config import DriftBenchConfig
from tools.synthesize import domain_of, examples_of
from tools.tiny_adapter import Recipe, adapter_answers

TRACK = TRACKS["toolcall"]
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
LEVEL = levels(AGREEMENT_LEVEL)[0]  # a route's
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Agreement on rows of the kind that the adapter knows, and on those that traffic turns to, which are `called` so."""

    known: Scores
    new: Scores
    called: str


def rows_by_domain(config: DriftBenchConfig) -> dict[str, list[Example]]:
    """The generated examples of every domain of the catalogue, shuffled."""
    catalogue = read_yaml(config.catalogue, what="catalogue")
    domains = domain_of(catalogue, config.held_out, setting="held_out")
    found: dict[str, list[Example]] = {}
    for example in examples_of(catalogue, TRACK, config.rows, config.seed):
        found.setdefault(domains[example.tags["tool"]], []).append(example)
    for rows in found.values():
        random.Random(config.seed).shuffle(rows)
    return found


def measured(config: DriftBenchConfig) -> Scored:
    """Train and ask, or take up what an earlier call left in `out_dir`."""
    domains = rows_by_domain(config)
    left_out = {name: domains.pop(name) for name in config.held_out}
    known, new = (_shuffled(some, config.seed) for some in (domains, left_out))
    test, train, new = known[: config.test_rows], known[config.test_rows :], new[: config.test_rows]
    recipe = Recipe(base=config.base, steps=config.steps, batch=config.batch, seed=config.seed)
    answers = adapter_answers(recipe, train, [*test, *new], Path(config.out_dir))
    scores = np.array(
        [agreement(TRACK, text, row.target) or 0.0 for text, row in zip(answers, [*test, *new], strict=True)]
    )
    print(f"{len(train):,} training rows of {', '.join(sorted(domains))}; {config.steps:,} steps of {config.batch}")
    return Scored(known=scores[: len(test)], new=scores[len(test) :], called=f"rows of {', '.join(left_out)}")


def recorded(config: DriftBenchConfig, run_dir: str) -> Scored:
    """The same of a finished evaluation: traffic turns to what `becomes` answered to the same rows."""
    report, rows = load_report(run_dir)
    for spec in (config.slm, config.becomes):
        if spec not in report.models:
            raise ConfigError(f"{spec!r} is not in {run_dir}: {choices(str(spec), report.models)}")
    primary = str(report.track_definition["primary"])
    slm, becomes = (
        np.array([row.models[spec].scores[primary] or 0.0 for row in rows])
        for spec in (str(config.slm), str(config.becomes))
    )
    return Scored(known=slm, new=becomes, called=f"rows of {config.becomes}")


def replayed(scored: Scored, config: DriftBenchConfig, *, after: int, share: float, most: int) -> Scores:
    """The observation, from 1, at which each replay rang (0: never): `after` of known traffic, then `most` of the other.

    The known rows are cut anew for every `splits`-th part of the replays, since verdict and traffic are chance both.
    """
    chance = np.random.default_rng((config.seed, after, most, round(1000 * share)))
    rang: list[NDArray[np.int64]] = []
    for part in range(config.splits):
        runs = len(range(part, config.runs, config.splits))
        rows = chance.permutation(scored.known)
        verdict, live = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        drawn = _traffic(chance, live, scored.new, runs=runs, after=after, share=share, most=most)
        rang.append(alarms(drawn, runs, delta=config.delta, reference=_shown(verdict), level=LEVEL))
    return np.concatenate(rang)


def _traffic(
    chance: np.random.Generator, known: Scores, new: Scores, *, runs: int, after: int, share: float, most: int
) -> Iterator[Scores]:
    """Differences of all runs, observation by observation: of known rows, then for a `share` of the requests of new ones."""
    for at in range(after + most):
        values = chance.choice(known, runs)
        if at >= after:
            values = np.where(chance.random(runs) < share, chance.choice(new, runs), values)
        yield values - 1.0


def _shown(verdict: Scores) -> float:
    """The agreement that the verdict's rows show at least."""
    bound = paired_interval((verdict - 1).tolist(), resamples=RESAMPLES, seed=SEED, one_sided=AGREEMENT_LEVEL)
    return 1 + bound.lower


def _shuffled(domains: dict[str, list[Example]], seed: int) -> Sequence[Example]:
    rows = [row for of_domain in domains.values() for row in of_domain]
    random.Random(seed).shuffle(rows)
    return rows


def main(config: DriftBenchConfig) -> None:
    console, started = Console(width=110), time.perf_counter()
    scored = recorded(config, config.run) if config.run else measured(config)
    print(
        f"agreement on {len(scored.known)} rows of the known kind {scored.known.mean():.3f} (half of them show at least"
        f" {_shown(scored.known[::2]):.3f} or so), on {len(scored.new)} {scored.called} {scored.new.mean():.3f}; delta"
        f" {config.delta:g}; {config.runs:,} replays over {config.splits} cuts",
        flush=True,
    )
    table = Table(
        "turns after", "share of requests", "rang before", *(f"{part:.0%}" for part in QUANTILES), "not within",
        title="audited requests from the change to the alarm (quantiles over the replays)",
    )  # fmt: skip
    for share in config.shares:
        for after in config.after:
            rang = replayed(scored, config, after=after, share=share, most=config.most)
            early = (rang > 0) & (rang <= after)
            waited = np.where(rang == 0, config.most + 1, rang - after)[~early]
            delays = (int(np.quantile(waited, part, method="higher")) for part in QUANTILES)
            table.add_row(
                f"{after:,}", f"{share:.0%}", f"{early.mean():.1%}",
                *(f"{n:,}" if n <= config.most else f"> {config.most:,}" for n in delays),
                f"{(waited > config.most).mean():.1%}",
            )  # fmt: skip
    console.print(table)
    false = (replayed(scored, config, after=config.well, share=0.0, most=0) > 0).mean()
    print(f"without a change: {false:.1%} of {config.runs:,} replays rang in {config.well:,} audited requests")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    run(main, DriftBenchConfig, __doc__)
