"""The command line of every job: a config that may be left out, settings by name, and what is said of a wrong one."""

import sys
from pathlib import Path

import pytest

from slm_ray.command import output_folder, read
from slm_ray.config import JudgeConfig, PrepareConfig
from slm_ray.errors import ConfigError


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job whose YAML file stands beside it."""
    (tmp_path / "judge.yaml").write_text("judge: beside\nrun_dir: r\nreport: e\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "judge.py")])
    return tmp_path


def test_the_config_beside_the_job_is_read_when_none_is_named(job: Path) -> None:
    (job / "other.yaml").write_text("judge: other\nrun_dir: r\nreport: e\n", encoding="utf-8")
    assert read(JudgeConfig, "", []).judge == "beside"
    assert read(JudgeConfig, "", [str(job / "other.yaml")]).judge == "other"
    assert read(JudgeConfig, "", ["--calibrate", "human.jsonl", str(job / "other.yaml")]).calibrate == "human.jsonl"


def test_a_setting_without_a_dot_has_an_option_of_its_name(job: Path) -> None:
    given = ["--calibrate", "a=b.jsonl", "--show_target", "false", "--models", "[x, y]", "--set", "generation.seed=7"]
    found = read(JudgeConfig, "", given)
    assert (found.calibrate, found.show_target, found.models) == ("a=b.jsonl", False, ("x", "y"))
    assert found.generation.seed == 7
    assert read(JudgeConfig, "", ["--set", "max_calls=1", "--max_calls", "2", "--set", "shards=9"]).max_calls == 2


def test_an_unknown_option_is_refused_with_the_nearest_one(job: Path) -> None:
    with pytest.raises(ConfigError, match="unknown option --calibrat: did you mean '--calibrate'"):
        read(JudgeConfig, "", ["--calibrat", "x"])
    with pytest.raises(ConfigError, match="'max_calls' = 'x'"):
        read(JudgeConfig, "", ["--max_calls", "x"])


def test_help_shows_the_defaults_that_this_job_has(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, said in ((JudgeConfig, "generation.max_tokens = 200\n"), (PrepareConfig, "curation.cap = None ")):
        with pytest.raises(SystemExit):
            read(kind, "What it does.", ["--help"])
        shown = capsys.readouterr().out
        assert said in shown and "--NAME VALUE" in shown and "--set a.b=c" in shown


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file", "it is a file"), ("file/under", "file is a file"), ("/proc/self/x", "read-only"), ("a\0b", "NUL")],
)
def test_a_folder_that_can_hold_no_results_is_refused_and_nothing_is_made(
    place: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^adapters_dir .*{reason}.*; give a folder"):
        output_folder(str(tmp_path / place), setting="adapters_dir")
    assert output_folder(str(tmp_path / "new" / "run")) == tmp_path / "new" / "run"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_only_read_may_be_on_a_read_only_disk() -> None:
    assert output_folder("/proc/self/fd", is_written=False) == Path("/proc/self/fd")
