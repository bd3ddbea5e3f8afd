"""The benchmark of the watch on real scores: domains are told apart, and a finished evaluation is replayed."""

import re
from pathlib import Path

import pytest
from plain_records import build

from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError
from slm_ray.reports.files import write_report
from slm_ray.rollout.grants import AGREEMENT_LEVEL
from slm_ray.rollout.states import Grant, Route, created
from slm_ray.rollout.watched import _key
from slm_ray.types import Completion, Example
from tools.bench_drift import LEVEL, main, recorded, replayed, rows_by_domain
from tools.config import DriftBenchConfig
from tools.tiny_adapter import Recipe, _batches


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
        run=str(folder), slm="served:good", becomes="served:bad", runs=50, splits=5, after=(0, 20), shares=(1.0, 0.5),
        most=400, well=50,
    )  # fmt: skip


def test_a_finished_evaluation_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run(tmp_path)
    scored = recorded(config, str(tmp_path))
    assert (len(scored.known), scored.known.sum(), scored.new.sum()) == (40, 36, 4)
    main(config)
    said = capsys.readouterr().out
    assert "on 40 rows of served:bad 0.100" in said
    medians = [int(found) for found in re.findall(r"│ 20 +│ +\d+% +│ +[\d.]+% +│ +\d+ +│ +\d+ +│ +(\d+)", said)]
    assert len(medians) == 2 and 0 < medians[0] < medians[1] < 400, "half of the requests take longer to tell"
    with pytest.raises(ConfigError, match="known: served:bad, served:good"):
        recorded(config.model_copy(update={"becomes": "served:none"}), str(tmp_path))


def test_the_rows_of_a_verdict_are_cut_anew_and_every_replay_is_played(tmp_path: Path) -> None:
    config = run(tmp_path)
    rang = replayed(recorded(config, str(tmp_path)), config, after=20, share=1.0, most=100)
    assert len(rang) == config.runs and (rang > 20).mean() > 0.9
    assert (replayed(recorded(config, str(tmp_path)), config, after=20, share=0.0, most=0) == 0).all()


def test_replays_ring_where_a_route_rings() -> None:
    route = Route(name="r", llm="openai:m", slm="served:tiny:a-1", track="structured", base="tiny")
    grant = Grant(most="live", because="a swap", agreement_lower=0.9, agreement_level=AGREEMENT_LEVEL)
    state = created(route, adapter="a-1", grant=grant, at="now", by="t", reason="t")
    assert pytest.approx(_key(state)["level"]) == LEVEL


def test_every_row_has_the_domain_of_its_tool() -> None:
    config = DriftBenchConfig(rows=340)
    domains = rows_by_domain(config)
    assert len(domains) == 9 and sum(map(len, domains.values())) == 340
    assert {row.tags["tool"] for row in domains["finance"]}.isdisjoint(row.tags["tool"] for row in domains["media"])
    assert domains == rows_by_domain(config), "the same every time"
    with pytest.raises(ConfigError, match="did you mean 'finance'"):
        rows_by_domain(config.model_copy(update={"held_out": ("finances",)}))


def test_batches_are_the_same_wherever_a_training_goes_on() -> None:
    parts = [1 + n % 7 for n in range(30)]
    recipe = Recipe(base="none", steps=10, batch=8)
    taken = list(_batches(recipe, parts))
    assert taken == list(_batches(recipe, parts)) and len(taken) == 10
    rows = [len(some) for some in taken]
    assert sum(rows[:4]) == sum(rows[4:8]) == 30, "every round takes all rows once"
