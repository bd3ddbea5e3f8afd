"""Settings: every mistake is one line that names file, key and fix."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.config import (
    CompareConfig,
    EvaluateConfig,
    InferConfig,
    JudgeConfig,
    LearningCurveConfig,
    LiveConfig,
    LoopConfig,
    PrecisionsConfig,
    PrepareConfig,
    RowsConfig,
    ServeConfig,
    SweepConfig,
    TraceConfig,
    TrainConfig,
    dump,
    load,
)
from slm_ray.errors import ConfigError
from tools.config import OperatingCharacteristicsConfig

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_reach_nested_keys_and_list_positions() -> None:
    overrides = ["evaluation.generation.seed=7", "tracks.1.test_rows=5", "training.lora.rank=8"]
    config = load(LoopConfig, ROOT / "jobs/loop.yaml", overrides)
    assert (config.evaluation.generation.seed, config.tracks[1].test_rows, config.training.lora.rank) == (7, 5, 8)
    assert config.tracks[0].test_rows == 100


def test_a_dumped_config_loads_to_the_same_config(tmp_path: Path) -> None:
    config = load(LoopConfig, ROOT / "jobs/loop.yaml")
    assert load(LoopConfig, write(tmp_path, dump(config))) == config


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jobs").glob("*.yaml")))
def test_every_shipped_yaml_is_a_mapping(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / "jobs" / f"{name}.yaml").read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize(
    ("kind", "text", "overrides", "said"),
    [
        (
            PrepareConfig,
            "source: a\nout_dir: b\nvalidaton_rows: 3",
            [],
            "unknown key 'validaton_rows': did you mean 'validation_rows'?",
        ),
        (PrepareConfig, "source: a", [], "'out_dir' is not set"),
        (PrepareConfig, "source: a\nout_dir: b", ["test_rows=many"], "'test_rows' = 'many'"),
        (PrepareConfig, "source: a\nout_dir: b", ["test_rows"], "write it as key=value"),
        (PrepareConfig, "source: a\nout_dir: b", ["source.x=1"], "it has no keys below it"),
        (PrepareConfig, "source: a\nout_dir: b", ["test_rows=[1"], "the value is not YAML"),
        (PrepareConfig, "- a", [], "a config is a mapping"),
        (PrepareConfig, "a: [", [], "not YAML"),
        (CompareConfig, "report: r\nllm: a\nslm: b\nrule: pointy", [], "'rule' = 'pointy'"),
        (CompareConfig, "report: r\nllm: a\nslm: b\ndelta: 2", [], "'delta' = 2"),
        (EvaluateConfig, "track: t\nexamples: e\nrun_dir: r\nmodels: []", [], "'models'"),
        (
            TrainConfig,
            "track: t\ntrain: e\nrun_dir: r\nbase: b\nadapters_dir: a\nlora: {rnk: 3}",
            [],
            "did you mean 'rank'?",
        ),
        (LoopConfig, "run_dir: r\ntracks: [{track: a, source: b, tset_rows: 3}]", [], "did you mean 'test_rows'?"),
        (
            LoopConfig,
            "run_dir: r\ntracks: [{track: a, source: b}]",
            ["tracks.3.test_rows=1"],
            "no position in a list of 1",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, kind: Any, text: str, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(kind, write(tmp_path, text), overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*nothing\.yaml"):
        load(PrepareConfig, tmp_path / "nothing.yaml")


EVALUATE = "track: t\nexamples: e\nrun_dir: r\nmodels: [m]"


@pytest.mark.parametrize(
    ("kind", "text", "override", "said"),
    [
        (EvaluateConfig, EVALUATE, "shard_resources={CPU: -1}", "CPU: -1 is no amount to reserve"),
        (EvaluateConfig, EVALUATE, "shard_resources={GPU: 0}", "GPU: 0 is no amount to reserve"),
        (EvaluateConfig, EVALUATE, "shard_resources={CPU: 1.5}", "CPU: 1.5 is above 1 and no whole number"),
        (EvaluateConfig, EVALUATE, "shard_resources={CPU: .inf}", "finite number"),
        (EvaluateConfig, EVALUATE, "shard_resources={'': 1}", "(no name): 1 is no amount"),
        (EvaluateConfig, EVALUATE, "generation.timeout_s=.nan", "finite number"),
        (EvaluateConfig, EVALUATE, r'run_dir="a\0b"', "NUL byte"),
        (EvaluateConfig, EVALUATE, r'models=["a\0b"]', "NUL byte"),
        (EvaluateConfig, EVALUATE, r'declare={rule: "pa\0ired"}', "'declare.rule'"),
        (EvaluateConfig, EVALUATE, "declare={stop: when_decided}", "which the rule paired does not allow"),
        (EvaluateConfig, EVALUATE, "declare={candidates: 0}", "'declare.candidates'"),
        (JudgeConfig, "report: r\njudge: a\nrun_dir: r", "llm=b", "name both, or neither"),
        (
            LoopConfig,
            "run_dir: r\ntracks: [{track: a, source: b}]",
            "comparison.rule=often",
            "'comparison.rule'",
        ),
        (
            CompareConfig,
            "report: r\nllm: a\nslm: b",
            "cost.hourly_usd=.inf",
            "'cost.hourly_usd' = inf: input should be a",
        ),
        (CompareConfig, "report: r\nllm: a\nslm: b", r'prices="\0"', "NUL byte"),
        (PrepareConfig, "source: a\nout_dir: b", r'source={"a\0": 1}', "NUL byte"),
        (
            LoopConfig,
            "run_dir: r\ntracks: [{track: a, source: b}]",
            "training.workers.per_worker={CPU: -1}",
            "-1 is no",
        ),
        (LoopConfig, "run_dir: r\ntracks: [{track: a, source: b}]", "comparison.delta=0.3", "force_delta: true"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, kind: Any, text: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(kind, write(tmp_path, text), [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_a_loop_searches_when_it_is_told_how_often_and_a_sweep_always() -> None:
    loop = ["run_dir=r", "tracks=[{track: a, source: b}]"]
    told: tuple[list[str], ...] = ([], ["search={ranks: [8]}"], ["search.epochs=2"], ["search.trials=3"])
    assert [load(LoopConfig, None, [*loop, *more]).search.trials for more in told] == [0, 0, 0, 3]
    with pytest.raises(ConfigError, match=r"search\.trials: 0 tries nothing; set 1 or more"):
        load(SweepConfig, ROOT / "jobs/sweep.yaml", ["search.trials=0"])


def test_what_is_given_in_part_keeps_the_rest_as_the_job_presets_it() -> None:
    given = ["judge=a", "report=r", "run_dir=r", "generation.seed=7"]
    generation = load(JudgeConfig, None, given).generation
    assert (generation.seed, generation.max_tokens) == (7, 200)
    assert load(JudgeConfig, None, [*given, "generation.max_tokens=9"]).generation.max_tokens == 9


@pytest.mark.parametrize("nothing", ["", "null", '""'])
def test_nothing_is_the_empty_text_where_a_text_may_be_left_out(tmp_path: Path, nothing: str) -> None:
    path = write(tmp_path, f"{EVALUATE}\ntrain: rows.jsonl\nslm:")
    found = load(EvaluateConfig, path, [f"train={nothing}", f"adapters_dir={nothing}"])
    assert (found.train, found.adapters_dir, found.slm) == ("", "", "")
    with pytest.raises(ConfigError, match="'run_dir' = None"):
        load(EvaluateConfig, path, ["run_dir="])


def test_resources_are_above_zero_and_parts_of_one_or_whole(tmp_path: Path) -> None:
    meant = ["shard_resources={CPU: 0.5, GPU: 2, slot: 1, memory: 1000000000}"]
    assert load(EvaluateConfig, write(tmp_path, EVALUATE), meant).shard_resources["CPU"] == 0.5
    assert load(EvaluateConfig, write(tmp_path, EVALUATE), ["shard_resources={}"]).shard_resources == {}


def test_the_loop_takes_all_that_an_evaluation_and_a_comparison_take() -> None:
    overrides = [
        "evaluation.max_cost_usd=2", "evaluation.repeats=3", "evaluation.max_calls=9", "comparison.guardrails=[json_valid]",
    ]  # fmt: skip
    config = load(LoopConfig, ROOT / "jobs/loop.yaml", overrides)
    evaluation, comparison = dict(config.evaluation), dict(config.comparison)
    asked = EvaluateConfig(track="t", examples="e", models=("m",), run_dir="r", **evaluation)
    assert (asked.max_cost_usd, asked.repeats, asked.max_calls, asked.generation.logprobs) == (2, 3, 9, True)
    compared = CompareConfig(report="r", llm="a", slm="b", **comparison)
    assert (compared.guardrails, compared.cost.hourly_usd) == (("json_valid",), 0.39)


def test_every_job_has_its_settings_in_its_file_and_they_load() -> None:
    for kind, name in ((EvaluateConfig, "evaluate"), (CompareConfig, "compare"), (PrepareConfig, "prepare"),
                       (TrainConfig, "train"), (SweepConfig, "sweep"), (LearningCurveConfig, "learning_curve"), (PrecisionsConfig, "precisions"), (ServeConfig, "serve"), (LoopConfig, "loop"),
                       (InferConfig, "infer"), (JudgeConfig, "judge"), (LiveConfig, "live"), (TraceConfig, "trace")):  # fmt: skip
        assert load(kind, ROOT / "jobs" / f"{name}.yaml")


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (RowsConfig, "differences=[2]"),
        (RowsConfig, "differences=[]"),
        (OperatingCharacteristicsConfig, "rows=[0]"),
        (RowsConfig, "discordance=2"),
        (OperatingCharacteristicsConfig, "parts=[]"),
    ],
)
def test_what_no_simulation_can_be_made_of_is_refused_by_name(kind: Any, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"'{setting.partition('=')[0]}"):
        load(kind, None, [setting])


KINDS = [
    EvaluateConfig, CompareConfig, PrepareConfig, TrainConfig, SweepConfig, ServeConfig, LoopConfig, InferConfig,
    JudgeConfig, LearningCurveConfig, LiveConfig, TraceConfig, RowsConfig,
]  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["CPU", "a\0b"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=6
)


@given(kind=st.sampled_from(KINDS), data=st.data())
def test_whatever_a_file_says_the_answer_is_a_config_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: Any, data: Any
) -> None:
    keys = st.sampled_from(sorted(kind.model_fields)) | st.sampled_from(["", 1, "sead"])
    tree = data.draw(st.dictionaries(keys, VALUES | st.dictionaries(st.sampled_from(["seed", "rule", "cost"]), VALUES)))
    path = tmp_path_factory.mktemp("fuzz") / "job.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        assert isinstance(load(kind, path), kind)
    except ConfigError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
