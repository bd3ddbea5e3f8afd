"""The benchmark of the watch on real scores: domains are told apart, and a finished evaluation is replayed."""

import re
from pathlib import Path

import pytest
from plain_records import build

from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError
from slm_ray.reports.files import write_report
from slm_ray.types import Completion, Example
from tools.bench_drift import main, recorded, rows_by_domain
from tools.config import DriftBenchConfig


def run(folder: Path) -> DriftBenchConfig:
    """Two arms on forty rows: `good` is wrong on every tenth, `bad` on all but every tenth."""
    track = TRACKS["structured"]
    rows = [Example(id=f"e{i}", prompt=prompt_of(track, f"q {i}"), target=f'{{"a": {i}}}') for i in range(40)]
    answers = {
        spec: {row.id: Completion(text=row.target if (i % 10 == 0) != right else "{}") for i, row in enumerate(rows)}
        for spec, right in (("served:good", True), ("served:bad", False))
    }
    write_report(folder, *build(track, rows, answers))
    return DriftBenchConfig(
        run=str(folder), slm="served:good", becomes="served:bad", runs=50, after=(0, 20), most=100, well=50
    )


def test_a_finished_evaluation_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run(tmp_path)
    verdict, live, after, _ = recorded(config, str(tmp_path))
    assert len(verdict) == len(live) == 20 and verdict.sum() + live.sum() == 36 and after.sum() == 4
    main(config)
    said = capsys.readouterr().out
    assert "on 40 rows of served:bad 0.100" in said
    median = re.search(r"│ 20 +│ +[\d.]+% +│ (\d+)", said)
    assert median is not None and 0 < int(median[1]) < 60
    with pytest.raises(ConfigError, match="known: served:bad, served:good"):
        recorded(config.model_copy(update={"becomes": "served:none"}), str(tmp_path))


def test_every_row_has_the_domain_of_its_tool() -> None:
    domains = rows_by_domain(DriftBenchConfig())
    assert len(domains) == 9 and sum(map(len, domains.values())) == 3360
    assert {row.tags["tool"] for row in domains["finance"]}.isdisjoint(row.tags["tool"] for row in domains["media"])
    assert domains == rows_by_domain(DriftBenchConfig()), "the same every time"
