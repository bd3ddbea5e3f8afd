"""Settings: every mistake is one line that names file, key and fix."""

from pathlib import Path

import pytest
import yaml

from slm_ray.config import CompareConfig, EvaluateConfig, LoopConfig, PrepareConfig, TrainingConfig, dump, load
from slm_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_reach_nested_keys_and_list_positions() -> None:
    config = load(LoopConfig, ROOT / "jobs/loop.yaml", ["generation.seed=7", "tracks.1.test=5", "training.lora.rank=8"])
    assert (config.generation.seed, config.tracks[1].test, config.training.lora.rank) == (7, 5, 8)
    assert config.tracks[0].test == 100


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
            "source: a\nout_dir: b\nvalidaton: 3",
            [],
            "unknown key 'validaton': did you mean 'validation'?",
        ),
        (PrepareConfig, "source: a", [], "'out_dir' is not set"),
        (PrepareConfig, "source: a\nout_dir: b", ["test=many"], "'test' = 'many'"),
        (PrepareConfig, "source: a\nout_dir: b", ["test"], "write it as key=value"),
        (PrepareConfig, "source: a\nout_dir: b", ["source.x=1"], "it has no keys below it"),
        (PrepareConfig, "source: a\nout_dir: b", ["test=[1"], "the value is not YAML"),
        (PrepareConfig, "- a", [], "a config is a mapping"),
        (PrepareConfig, "a: [", [], "not YAML"),
        (CompareConfig, "report: r\nllm: a\nslm: b\nrule: pointy", [], "'rule' = 'pointy'"),
        (CompareConfig, "report: r\nllm: a\nslm: b\ndelta: 2", [], "'delta' = 2"),
        (EvaluateConfig, "track: t\nexamples: e\nrun_dir: r\nmodels: []", [], "'models'"),
        (
            TrainingConfig,
            "track: t\ntrain: e\nrun_dir: r\nbase: b\nadapters_dir: a\nlora: {rnk: 3}",
            [],
            "did you mean 'rank'?",
        ),
        (LoopConfig, "run_dir: r\ntracks: [{track: a, source: b, tset: 3}]", [], "did you mean 'test'?"),
        (LoopConfig, "run_dir: r\ntracks: [{track: a, source: b}]", ["tracks.3.test=1"], "no position in a list of 1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, kind, text: str, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(kind, write(tmp_path, text), overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*nothing\.yaml"):
        load(PrepareConfig, tmp_path / "nothing.yaml")
