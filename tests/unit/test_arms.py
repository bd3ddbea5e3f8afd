"""Six arms: which there are, what is refused before anything starts, every pair at one error, the table and the page."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plain_records import build, plain, record

from slm_ray.config import ArmsConfig, TrainConfig, load
from slm_ray.corpus.leakage import question_hashes
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError, ModelError
from slm_ray.loop.arms import Arms, TrackArms, arms, arms_of, icl_training
from slm_ray.loop.track import TrackRun
from slm_ray.loop.train import training_config
from slm_ray.page.arms import NO_DIFFERENCE, arms_page, arms_text
from slm_ray.page.data import ArmsReport, ArmsTrack
from slm_ray.prepare import Prepared
from slm_ray.providers import parse
from slm_ray.reports.adapter_results import results_by_adapter
from slm_ray.reports.files import write_report
from slm_ray.training import rows
from slm_ray.training.plan import plan
from slm_ray.types import Completion, Decision, Example
from slm_ray.verdict.pairwise import pairwise

ROOT = Path(__file__).parents[2]
NAMES = ["base", "base+ICL", "base+QLoRA", "base+ICL+QLoRA", "ICL-trained+QLoRA", "LLM"]
PLAIN, ICL = (
    SimpleNamespace(id="structured-0123456789ab"), SimpleNamespace(id="structured-icl-0123456789ab"),
)  # fmt: skip


def found(llm: str | None = "azure:big") -> list[Any]:
    return arms_of("served:tiny-base", 3, plain=PLAIN, icl=ICL, llm=llm)  # type: ignore[arg-type]


def test_the_arms_are_those_of_dr_icl() -> None:
    assert [arm.name for arm in found()] == NAMES
    assert [arm.name for arm in found(None)] == NAMES[:-1]
    asked = [parse(arm.spec) for arm in found()]
    assert [(model.provider.adapter, model.demonstrations) for model in asked] == [
        (None, 0), (None, 3), (PLAIN.id, 0), (PLAIN.id, 3), (ICL.id, 3), (None, 0),
    ]  # fmt: skip
    assert [bool(arm.trained_on) for arm in found()] == [False, False, True, True, True, False]
    assert found()[4].trained_on != found()[3].trained_on


def settings(*overrides: str) -> ArmsConfig:
    return load(ArmsConfig, ROOT / "jobs/arms.yaml", overrides)


def test_an_arm_that_would_be_another_or_an_order_that_favours_one_is_refused() -> None:
    for override, reason in (
        ("tracks.0.few_shot=0", "four of the arms differ by their demonstrations"),
        ("comparison.rule=sequential", "set rule: paired"),
        ("evaluation.retriever=some/encoder", "set only the track's"),
    ):
        with pytest.raises(ConfigError, match=reason):
            settings(override)


def test_the_llm_is_the_real_one_the_stand_in_or_left_out_in_words() -> None:
    keys = {"AZURE_ENDPOINT": "https://x", "AZURE_DEPLOYMENT": "gpt", "AZURE_API_KEY": "k"}
    real, stand_in, nobody = (
        Arms(settings(), keys), Arms(settings(), {}), Arms(settings("stand_in=false"), {}),
    )  # fmt: skip
    assert (real.asked_llm, real.uses_stand_in, real.left_out) == ("azure:gpt", False, ())
    assert (stand_in.asked_llm, stand_in.uses_stand_in) == ("azure:stand-in", True)
    assert nobody.asked_llm is None and "AZURE_API_KEY" in nobody.left_out[0]
    assert Arms(settings("stand_in=false", "llm=openai:m"), {}).asked_llm == "openai:m"
    assert stand_in.comparison().candidates == 5, "every arm but the LLM is a candidate"
    assert Arms(settings("comparison.candidates=9"), {}).comparison().candidates == 9


def test_the_arm_that_learns_from_demonstrations_is_chosen_by_rows_that_have_some_and_costs_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = Arms(
        settings(
            f"run_dir={tmp_path}/run", "tracks.0.train_rows=12", "tracks.0.validation_rows=4", "tracks.0.test_rows=4",
            f"tracks.0.source={ROOT}/data/tools/rows.json", f"serving.base={ROOT}/data/tiny_base",
            "training.early_stopping=2", "comparison.cost.hourly_usd=1.5",
        ), {},
    )  # fmt: skip
    (prepared,) = this.prepare()
    asked: dict[str, Any] = {}

    def train_many(configs: list[TrainConfig], **how: Any) -> list[Any]:
        asked.update(how, configs=configs)
        return [SimpleNamespace(id=config.name) for config in configs]

    monkeypatch.setattr("slm_ray.loop.arms.train_many", train_many)
    this.prove_on = "nothing"
    this._train([prepared.plain, prepared.icl], lambda: None)
    plain, icl = asked["configs"]
    assert asked["hourly_usd"] == 1.5
    assert (plain.name, icl.name) == ("structured", "structured-icl")
    before, shown = (rows.read(str(config.validation), "structured") for config in (plain, icl))
    assert question_hashes(before.examples) == question_hashes(shown.examples)
    train = {example.target for example in prepared.plain.prepared.dataset("train").examples}
    for row, with_some in zip(before.examples, shown.examples, strict=True):
        assert with_some.prompt.messages[-1] == row.prompt.messages[-1] and with_some.target == row.target
        turns = [turn for turn in with_some.prompt.messages if turn.role == "assistant"]
        assert len(turns) == 2 and all(turn.content in train for turn in turns)
    # The plan of the training takes them: none of its rows asks what a validation row asks.
    assert len(plan(icl).validation) == 4


def test_without_early_stopping_no_rows_choose_a_checkpoint_of_either_adapter(tmp_path: Path) -> None:
    config = settings(f"run_dir={tmp_path}/run")
    prepared = Prepared(folder=tmp_path / "rows", track="structured", rows={}, digest="")
    run = TrackRun(config=config.tracks[0], prepared=prepared, folder=tmp_path / "structured")
    plain_training = training_config(config, run, prove_on="nothing")
    shown = icl_training(plain_training, run)
    assert (plain_training.validation, shown.validation) == ("", "")
    assert shown == plain_training.model_copy(update={"name": "structured-icl"})


def test_what_is_missing_is_said_before_anything_starts(tmp_path: Path) -> None:
    folder = f"run_dir={tmp_path}/run"
    with pytest.raises(ModelError, match="no folder, and as a hub name"):
        arms(settings(folder, "tracks.0.retriever=../nowhere"), {})
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        arms(settings(folder, "llm=openai:m"), {})
    twice = json.dumps([{"track": "structured", "source": "a", "few_shot": 1}] * 2)
    with pytest.raises(ConfigError, match="two of one name"):
        arms(settings(folder, f"tracks={twice}"), {})
    assert not (tmp_path / "run").exists()


def evaluated(shares: dict[str, float], rows: int, seed: int = 0) -> Any:
    """A report in which each arm is right on about such a share of the rows, and its rows."""
    chance = random.Random(seed)
    asked = [Example(id=f"e{n:03}", prompt=prompt_of(TRACKS["gsm8k"], f"q {n}"), target="#### 1") for n in range(rows)]
    answers = {
        spec: {row.id: Completion(text=f"#### {int(chance.random() < share)}", latency_s=0.1) for row in asked}
        for spec, share in shares.items()
    }
    report, results = build(TRACKS["gsm8k"], asked, answers)
    return report, list(results)


def test_every_pair_is_read_in_its_direction_at_a_level_that_all_bounds_share() -> None:
    shares = {"served:a": 0.1, "served:b": 0.1, "served:c": 0.9}
    report, rows = evaluated(shares, 80)
    level, pairs = pairwise(report, rows, list(shares), min_paired=0.95)
    assert level == 0.05 / 6
    assert [(pair.first[-1], pair.second[-1], pair.better and pair.better[-1]) for pair in pairs] == [
        ("a", "b", None), ("a", "c", "c"), ("b", "c", "c"),
    ]  # fmt: skip
    _, back = pairwise(report, rows, list(shares)[::-1], min_paired=0.95)
    assert {frozenset((pair.first, pair.second)): pair.better for pair in back} == {
        frozenset((pair.first, pair.second)): pair.better for pair in pairs
    }
    first = pairs[1]
    assert first.interval.estimate == pytest.approx((first.second_only_right - first.first_only_right) / first.n)
    assert pairwise(report, rows, ["served:a"], min_paired=0.95) == (0.05, ())


def test_arms_that_do_not_differ_are_rarely_said_to() -> None:
    """With 5 % for each bound 13 of these 20 tables show a difference; at the shared level 5 % of all tables may."""
    shares = {f"served:{name}": 0.5 for name in "abcdef"}
    reports = [evaluated(shares, 60, seed) for seed in range(20)]
    tables = [pairwise(report, rows, list(shares), min_paired=0.95)[1] for report, rows in reports]
    assert len(tables[0]) == 15
    assert sum(any(pair.better for pair in pairs) for pairs in tables) <= 3


def test_an_adapter_s_verdicts_are_found_from_its_own_side(tmp_path: Path) -> None:
    """`slm-ray adapters show` and the model card look for them by the name that every run gives a comparison."""
    there = found("azure:stand-in")
    report, rows = evaluated(dict.fromkeys([arm.spec for arm in there], 0.5), 40)
    write_report(tmp_path / "gsm8k" / "test", report, rows)
    prepared = Prepared(folder=tmp_path, track="gsm8k", rows={}, digest="")
    (tmp_path / "train.jsonl").write_text('{"prompt": "another question", "completion": "#### 1"}\n', encoding="utf-8")
    this = Arms(settings(f"run_dir={tmp_path / 'run'}", "tracks.0.few_shot=3"), {})
    plain_rows, icl_rows = (
        TrackRun(config=this.config.tracks[0], prepared=prepared, folder=tmp_path / "gsm8k", adapter=adapter)  # type: ignore[arg-type]
        for adapter in (PLAIN, ICL)
    )
    track = TrackArms(plain=plain_rows, icl=icl_rows)
    with this.log:
        this.compare(track)
    assert list(track.verdicts) == [arm.spec for arm in there[:-1]]
    judged = results_by_adapter(tmp_path)
    assert {name: len(judged[name].comparisons) for name in (PLAIN.id, ICL.id)} == {PLAIN.id: 2, ICL.id: 1}
    asked = [one.comparison.slm for one in judged[PLAIN.id].comparisons.values()]
    assert asked == [there[3].spec, there[2].spec], "the last, which counts, is without demonstrations"
    (counted,) = judged[PLAIN.id].reports.values()
    assert list(counted.models) == [there[2].spec]
    assert judged.keys() == {PLAIN.id, ICL.id}


@pytest.fixture(scope="module")
def report() -> ArmsReport:
    arms_there = found()
    result, rows = evaluated(dict(zip([arm.spec for arm in arms_there], (0, 0.1, 0.6, 0.5, 0.7, 0.9), strict=True)), 60)
    level, pairs = pairwise(result, rows, [arm.spec for arm in arms_there], min_paired=0.95)
    decided = Decision(action="fine_tune", rule="paired", delta=0.02, because=("it trails by <0.3>",))
    shown = [
        record(type(arm), {**plain(arm), "decision": None if arm.name == "LLM" else plain(decided)})
        for arm in arms_there
    ]
    track = ArmsTrack(
        track="gsm8k", arms=tuple(shown), report=result, pairs=pairs, level=level, delta=0.02, retriever="bm25",
        train_rows=300, left_out=("nobody, <really>",), adapters=({"id": PLAIN.id}, {"id": ICL.id}),
    )  # fmt: skip
    return ArmsReport(
        title="Six arms", run_dir="run", tracks=(track,), stand_in_note="a <stand-in> answered",
        timings_s={"train": 12.0}, reproduce=("slm-ray arms run/config.yaml",),
    )  # fmt: skip


def test_the_page_shows_every_arm_and_every_pair_and_runs_nothing(report: ArmsReport) -> None:
    html = arms_page(report)
    assert html == arms_page(record(ArmsReport, plain(report))), "what is written is what is read"
    for name in NAMES:
        assert f"<th>{name}</th>" in html
    assert html.count("is better</td>") == sum(bool(pair.better) for pair in report.tracks[0].pairs) > 0
    assert html.count(f"<td>{NO_DIFFERENCE}</td>") == sum(not pair.better for pair in report.tracks[0].pairs) > 0
    assert "<script" not in html and "http:" not in html and "https:" not in html
    for raw, shown in (("<stand-in>", "&lt;stand-in&gt;"), ("<really>", "&lt;really&gt;"), ("by <0.3>", "&lt;0.3&gt;")):
        assert raw not in html and shown in html
    assert "15 pairs share 5 % (Bonferroni: each of their 30 bounds errs with 0.17 % at most)" in html


def test_a_verdict_against_a_stand_in_is_called_a_demonstration(report: ArmsReport) -> None:
    value = plain(report)
    value["tracks"][0]["report"]["models"]["azure:big"]["facts"]["stand_in"] = True
    stand_in = record(ArmsReport, value)
    for shown in (arms_page, arms_text):
        assert shown(report).count("fine_tune (a demonstration)") == 0
        assert shown(stand_in).count("fine_tune (a demonstration)") == 5
        assert shown(stand_in).count("LLM [STAND-IN]") > 5, "in every pair too"


def test_the_text_says_the_same(report: ArmsReport) -> None:
    lines = arms_text(report).splitlines()
    assert lines[0] == "a <stand-in> answered"
    assert lines[1].split()[3:] == NAMES
    assert sum(line.endswith("is better") for line in lines) == sum(
        bool(pair.better) for pair in report.tracks[0].pairs
    )
    assert "left out: nobody, <really>" in lines
    assert next(line for line in lines if line.startswith("number_match")).split()[1] == "0.000"
    assert sum("against the LLM: fine_tune" in line for line in lines) == 5
