"""Six arms on the same rows, as one offline page and as aligned text: figures, every pair, the verdict against the LLM.

Pure: same data, same bytes; computes nothing. The page loads nothing and runs no script. What is not known is a dash.
"""

from __future__ import annotations

from typing import Any

from slm_ray.corpus.tracks import defined
from slm_ray.page import formatting
from slm_ray.page.charts import Difference, differences
from slm_ray.page.data import ArmResult, ArmsReport, ArmsTrack
from slm_ray.page.template import encodable, environment
from slm_ray.tables import format_table
from slm_ray.types import Usage
from slm_ray.verdict.candidates import percent
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.pairwise import Pair

NO_DIFFERENCE = "no difference shown"


def arms_page(data: ArmsReport) -> str:
    """The page."""
    templates = environment(
        csp_hash=formatting.csp_hash, points=formatting.points, half_width=formatting.half_width, count=formatting.count,
        seconds=formatting.seconds, sentence=formatting.sentence, in_points=formatting.in_points,
        percent=formatting.percent, level=percent,
    )  # fmt: skip
    tracks = [_track(track) for track in data.tracks]
    html = templates.get_template("arms.html.j2").render(data=data, tracks=tracks, error=ONE_SIDED)
    return encodable(html)


def arms_text(data: ArmsReport) -> str:
    """What a person reads in a terminal, track by track."""
    lines = [data.stand_in_note] if data.stand_in_note else []
    for track in data.tracks:
        names = {arm.spec: _title(track, arm) for arm in track.arms}
        models = track.report.models
        lines += format_table(
            [
                [f"{track.track}, {track.report.examples.n} rows", *(_title(track, arm) for arm in track.arms)],
                *([name, *(_number(models[arm.spec].metrics.get(name)) for arm in track.arms)] for name in _metrics(track)),
                ["failed calls", *(str(sum(models[arm.spec].failures.values())) for arm in track.arms)],
                ["latency p50, s", *(_number(models[arm.spec].latency_s.p50) for arm in track.arms)],
            ]
        )  # fmt: skip
        lines += [f"{arm.name} against the LLM: {_verdict(track, arm)}" for arm in track.arms if arm.decision]
        lines += [f"left out: {said}" for said in track.left_out]
        lines.append(f"all pairs on {_primary(track)}, {_stated(track)}:")
        lines += format_table(
            [
                [
                    f"{names[pair.second]} − {names[pair.first]}", formatting.points(pair.interval.estimate),
                    f"{formatting.points(pair.interval.lower)} to {formatting.points(pair.interval.upper)}",
                    _reading(pair, names),
                ]
                for pair in track.pairs
            ],
            left=(0, 3),
        )  # fmt: skip
    return "\n".join(lines)


def _track(track: ArmsTrack) -> dict[str, Any]:
    """One track as the template wants it."""
    names = {arm.spec: _title(track, arm) for arm in track.arms}
    models = track.report.models
    return {
        "name": track.track, "arms": track.arms, "rows": track.report.examples.n, "train_rows": track.train_rows,
        "retriever": track.retriever, "left_out": track.left_out, "adapters": track.adapters,
        "titles": [_title(track, arm) for arm in track.arms],
        "primary": _primary(track), "core": defined(track.report.track_definition).core,
        "lines": [
            (name, [_number(models[arm.spec].metrics.get(name)) for arm in track.arms]) for name in _metrics(track)
        ],
        "verdicts": [_verdict(track, arm) for arm in track.arms],
        "failed": [sum(models[arm.spec].failures.values()) for arm in track.arms],
        "latency": [models[arm.spec].latency_s.p50 for arm in track.arms],
        "prompt": [_per_row(models[arm.spec].usage, models[arm.spec].n) for arm in track.arms],
        "stated": _stated(track),
        "pairs": [(pair, names[pair.first], names[pair.second], _reading(pair, names)) for pair in track.pairs],
        "chart": differences(
            [
                Difference(
                    title=f"{names[pair.second]} − {names[pair.first]}", sub=_reading(pair, names), interval=pair.interval,
                    delta=track.delta, tone="swap" if pair.better else "inconclusive",
                )
                for pair in track.pairs
            ]
        ),
    }  # fmt: skip


def _stated(track: ArmsTrack) -> str:
    return (
        f"second minus first in points; {len(track.pairs)} pairs share {percent(ONE_SIDED)} (Bonferroni: each of their"
        f" {2 * len(track.pairs)} bounds errs with {percent(track.level)} at most), so that all bounds hold at once"
        f" with {percent(1 - ONE_SIDED)}"
    )


def _reading(pair: Pair, names: dict[str, str]) -> str:
    return f"{names[pair.better]} is better" if pair.better else NO_DIFFERENCE


def _title(track: ArmsTrack, arm: ArmResult) -> str:
    return f"{arm.name} [STAND-IN]" if track.report.models[arm.spec].stand_in else arm.name


def _verdict(track: ArmsTrack, arm: ArmResult) -> str:
    """The action; nothing is decided against a stand-in."""
    if arm.decision is None:
        return formatting.DASH
    stand_in = any(model.stand_in for model in track.report.models.values())
    return f"{arm.decision.action} (a demonstration)" if stand_in else arm.decision.action


def _metrics(track: ArmsTrack) -> list[str]:
    """Core metrics first, then all others that a model has."""
    every = dict.fromkeys(name for model in track.report.models.values() for name in model.metrics)
    return list(dict.fromkeys([*defined(track.report.track_definition).core, *every]))


def _primary(track: ArmsTrack) -> str:
    return defined(track.report.track_definition).primary


def _number(value: float | None) -> str:
    return formatting.DASH if formatting.undefined(value) else f"{value:.3f}"


def _per_row(usage: Usage, n: int) -> float | None:
    return usage.prompt_tokens / n if n and usage != Usage() else None
