"""Rows of different kinds (strata) in an asking order that keeps their shares, simulated at a true difference of -delta.

A run is a file of rows: a share of each stratum is right for one model only, so that strata differ in their mean and all
together are worse by exactly delta. It is asked in the order that `evaluation.asking_order` draws, in rounds of one row from
each of equal parts of the file laid out by stratum, and judged by the bets of the real test, after each round.

Beside it stand a plain order, which needs no shares to be known, and what an order does that says more of the next row
than its share: one stratum after the other, with a look after every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm_ray.verdict.sequential_runs import played

Signs = NDArray[np.int8]
_CHUNK = 2000  # runs at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Strata:
    """Shares of the rows by stratum, and of each stratum's rows those that the SLM alone and the LLM alone gets right."""

    shares: tuple[float, ...]
    gained: tuple[float, ...]
    lost: tuple[float, ...]


def populations(delta: float) -> Mapping[str, Strata]:
    """By name, from strata that are alike to strata within which no row differs from another."""
    return {
        "three alike": Strata(shares=(0.5, 0.3, 0.2), gained=(0.1,) * 3, lost=(0.1 + delta,) * 3),
        "one better, one worse": Strata(shares=(0.5, 0.5), gained=(0.3, 0.0), lost=(0.0, 0.3 + 2 * delta)),
        "one right throughout, one wrong": Strata(
            shares=((1 - delta) / 2, (1 + delta) / 2), gained=(1.0, 0.0), lost=(0.0, 1.0)
        ),
        "a rare one wrong throughout": Strata(shares=(1 - delta, delta), gained=(0.0, 0.0), lost=(0.0, 1.0)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """Shares of runs that ended in a swap and in a fine_tune, both false, by how the rows were ordered and looked at."""

    population: str
    order: str
    false_swap: float
    false_fine_tune: float


def ordered(name: str, delta: float, *, runs: int, rows: int, in_round: int, seed: int) -> list[Ordered]:
    """Each order over the same population; `rows` is a multiple of `in_round`."""
    strata = populations(delta)[name]
    ways = {
        "plain": ("plain", 1),
        "stratified, shares as given": ("given", in_round),
        "stratified, a file drawn by chance": ("chance", in_round),
        "one stratum after the other": ("sorted", 1),
    }
    wrong = {way: np.zeros(2) for way in ways}
    for start in range(0, runs, _CHUNK):
        chance = np.random.default_rng((seed, start, list(populations(delta)).index(name)))
        drawn = {
            shares: differences(strata, shares, min(_CHUNK, runs - start), rows, in_round, chance)
            for shares in ("plain", "given", "chance", "sorted")
        }
        for way, (shares, groups) in ways.items():
            bets = played(drawn[shares], delta=delta, in_round=groups)
            swap, fine_tune = (np.where(at == 0, rows + 1, at) for at in (bets.swap, bets.fine_tune))
            wrong[way] += (swap < fine_tune).sum(), (fine_tune < swap).sum()
    return [
        Ordered(population=name, order=way, false_swap=float(swap) / runs, false_fine_tune=float(fine_tune) / runs)
        for way, (swap, fine_tune) in wrong.items()
    ]


def differences(strata: Strata, shares: str, runs: int, rows: int, in_round: int, chance: np.random.Generator) -> Signs:
    """runs x rows of 1, -1 and 0 in asking order.

    `shares`: `plain` rows are each of any stratum; stratified are those of files with exactly the shares (`given`) and of
    files whose rows were drawn one by one (`chance`); `sorted` rows come stratum by stratum.
    """
    many = len(strata.shares)
    if shares in ("given", "sorted"):
        counts = np.diff(np.round(np.cumsum([0.0, *strata.shares]) * rows).astype(int))
        labels = np.tile(np.repeat(np.arange(many), counts), (runs, 1))
    else:
        labels = chance.choice(many, size=(runs, rows), p=strata.shares)
    if shares in ("given", "chance"):
        parts = np.sort(labels, axis=1).reshape(runs, in_round, rows // in_round)
        labels = chance.permuted(parts, axis=2).transpose(0, 2, 1).reshape(runs, rows)
    uniform = chance.random((runs, rows), dtype=np.float32)
    gained, lost = (np.array(share, dtype=np.float32)[labels] for share in (strata.gained, strata.lost))
    signs: Signs = (uniform < gained).astype(np.int8) - (uniform >= 1 - lost).astype(np.int8)
    return signs
