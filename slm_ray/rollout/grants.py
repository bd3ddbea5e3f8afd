"""What a verdict's files grant a route, and the agreement of both models on its rows, which live traffic is held to.

`comparison.json` says what was decided and about whom; the rows of the report beside it say how often the SLM's answer
agrees with the LLM's. The lower bound of that agreement is what the watch starts from, since live requests have no expected
answer: the LLM's stands for it. Rows on which the LLM gave nothing that could be agreed with have no say. Reads files,
grants nothing by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slm_ray import storage
from slm_ray.corpus.tracks import Track
from slm_ray.errors import DataError
from slm_ray.providers import parse
from slm_ray.records import ComparisonReport, RowResult
from slm_ray.reports.encoding import check_version, decode
from slm_ray.reports.files import COMPARISON, CONFIG, load_report
from slm_ray.rollout.states import Grant
from slm_ray.scoring.run import score, unreadable
from slm_ray.types import Comparison
from slm_ray.verdict.arms import track_of
from slm_ray.verdict.stats import RESAMPLES, SEED, paired_interval
from slm_ray.yaml_file import read_yaml

AGREEMENT_LEVEL = 0.01  # of the 5 % by which an alarm may be false; the rest is the watch's
_FIX = "give the run directory of slm-ray compare, or a comparison.json that it wrote"


def read_grant(path: str | Path, *, other_report: str | Path | None = None) -> Grant:
    """The grant of a comparison; `path` is its run directory or its comparison.json.

    `other_report` is where the SLM's rows are, when it was evaluated apart from the LLM. DataError names a file that is
    missing or damaged.
    """
    file, report = _read(path)
    grant = replace(granted(report), comparison=str(file.absolute()), digest=storage.file_digest(file))
    if grant.most == "shadow":
        return grant
    rows, track = _rows(file.parent, other_report, report.comparison)
    values, groups = _agreements(track, rows, llm=report.comparison.llm, slm=report.comparison.slm)
    if not values:
        return grant
    bound = paired_interval(
        [value - 1.0 for value in values], resamples=RESAMPLES, seed=SEED, one_sided=AGREEMENT_LEVEL, groups=groups
    )
    return replace(
        grant, agreement=1 + bound.estimate, agreement_lower=1 + bound.lower, agreement_level=AGREEMENT_LEVEL
    )


def track_of_verdict(path: str | Path) -> str:
    """The name of the track that a comparison is about; its file where the run was given one."""
    file, report = _read(path)
    config = file.with_name(CONFIG)
    named = read_yaml(config, what="config").get("track") if config.is_file() else None
    return named if isinstance(named, str) else report.comparison.track


def granted(report: ComparisonReport) -> Grant:
    """What the decision itself grants, without its file and without the agreement on its rows.

    Shadow alone for whatever is no swap and no partial replacement, for settings that were not declared, and for an SLM
    that was shown demonstrations or an LLM that was: a route passes on what the client sent.
    """
    compared, decision, partial = report.comparison, report.decision, report.partial_replacement
    grant = Grant(
        most="shadow", because=f"the verdict is {decision.action}", llm=compared.llm, slm=compared.slm,
        adapter=parse(compared.slm).provider.adapter, rule=decision.rule, delta=decision.delta,
        stand_ins=compared.stand_ins, track=compared.track,
    )  # fmt: skip
    if decision.exploratory is not None:
        return replace(
            grant, because="the verdict is exploratory: its settings were not declared before the first call"
        )
    shown = [spec for spec in (compared.slm, compared.llm) if parse(spec).demonstrations]
    if shown:
        return replace(grant, because=f"the verdict is about {shown[0]}, and a route puts no demonstrations in front")
    if decision.action == "swap":
        return replace(grant, most="live", because="the verdict is swap")
    if partial is not None and partial.share > 0 and partial.threshold is not None:
        return replace(
            grant, most="cascade", threshold=partial.threshold,
            because=f"the verdict is {decision.action}, with {partial.share:.0%} of the rows by confidence",
        )  # fmt: skip
    return grant


def agreement(track: Track, slm: str | None, llm: str | None) -> float | None:
    """The track's primary metric of the SLM's answer (None: it gave none) against the LLM's, in [0, 1].

    None where the LLM's answer is none that the track's scorers can read, or where the metric is undefined.
    """
    if llm is None or unreadable(track, llm) is not None:
        return None
    return next((found.value for found in score(track, "", slm, llm).scores if found.name == track.primary), None)


def _read(path: str | Path) -> tuple[Path, ComparisonReport]:
    file = Path(path)
    file = file / COMPARISON if file.is_dir() else file
    plain = storage.read_json(file)
    check_version(plain, where=str(file), fix=_FIX)
    return file, decode(plain, ComparisonReport, where=str(file), fix=_FIX)


def _rows(folder: Path, other: str | Path | None, compared: Comparison) -> tuple[list[RowResult], Track]:
    """The rows with both models' answers."""
    evaluation, rows = load_report(folder)
    models = set(evaluation.models)
    if other is not None:
        further = {row.id: row.models for row in load_report(other)[1]}
        rows = [replace(row, models={**further.get(row.id, {}), **row.models}) for row in rows]
        models |= {spec for found in further.values() for spec in found}
    if missing := {compared.llm, compared.slm} - models:
        raise DataError(
            f"{folder}: the report has no answers of {', '.join(sorted(missing))}, which live traffic is held to; give the"
            " other report of the comparison too (--other-report)"
        )
    return rows, track_of(evaluation)


def _agreements(track: Track, rows: Sequence[RowResult], *, llm: str, slm: str) -> tuple[list[float], list[str | None]]:
    values, groups = [], []
    for row in rows:
        left, right = row.models.get(llm), row.models.get(slm)
        if left is None or right is None or (right.failure is not None and right.failure.in_transport):
            continue
        if (value := agreement(track, right.text, left.text)) is not None:
            values.append(value)
            groups.append(row.group)
    return values, groups if any(groups) else []
