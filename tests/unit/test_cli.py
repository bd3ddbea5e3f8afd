"""`slm-ray` as a person runs it: the jobs' options and errors, five questions, a page, completion, and a fast `--help`."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from slm_ray.cli.app import app
from slm_ray.cli.commands import COMMANDS
from slm_ray.cli.init import Answers, next_commands
from slm_ray.config import CompareConfig, EvaluateConfig, LoopConfig, PrepareConfig, load
from slm_ray.tasks import open_track

ROOT = Path(__file__).parents[2]
MODELS = ("--llm", "fake:{}", "--slm", "fake:echo")


def slm_ray(
    *arguments: str, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own, outside the repository."""
    return subprocess.run(
        [sys.executable, "-m", "slm_ray.cli.app", *arguments], cwd=folder, text=True, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | (environment or {}), timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command that has ended leaves both signals ignored, which is right for its own process and not for this one."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = (json.dumps({"prompt": f"set lamp {n}", "completion": json.dumps({"n": n})}) for n in range(300))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_every_command_of_the_table_has_a_job_and_every_job_a_command() -> None:
    scripts = {path.stem.replace("_", "-") for path in (ROOT / "jobs").glob("*.py")}
    assert scripts == set(COMMANDS)
    for name, command in COMMANDS.items():
        assert len(command.doc) > 20, f"{name} does not say what it does"
        assert command.folder is None or command.folder in command.config.model_fields


def test_help_names_every_command_and_is_there_at_once(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = slm_ray("--help", folder=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0, shown.stderr
    for name in (*COMMANDS, "init", "open"):
        assert f" {name} " in shown.stdout
    # Of the processor, not of the clock: that one says more of what else the machine does.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 2.0  # torch alone takes more


def test_the_script_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, slm_ray.cli.app\n"
        "print([m for m in ('ray', 'torch', 'transformers', 'openai', 'datasets', 'numpy', 'scipy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_lists_its_settings(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert f"usage: slm-ray {name} " in shown.stdout and "--set a.b=c" in shown.stdout
    for setting in COMMANDS[name].config.model_fields:
        assert f"  {setting} = " in shown.stdout or f"  {setting}." in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prepare",), "the settings: 'source' is not set"),
        (("prepare", "absent.yaml"), "cannot read the config absent.yaml"),
        (("judge", "--calibrat", "x"), "unknown option --calibrat: did you mean '--calibrate'?"),
        (("prepare", "--source", "x", "--out_dir", "y", "--seed", "one"), "'seed' = 'one'"),
        (("open", "nowhere"), "nowhere: no report.html here"),
        (("init", "--rows", "absent.csv", *MODELS), "rows 'absent.csv': no such file"),
    ],
)
def test_what_a_person_can_mend_is_one_line_and_status_2(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, list(arguments))
    assert ended.exit_code == 2, ended.output
    assert ended.stderr.startswith("error: ") and said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_status_2() -> None:
    assert CliRunner().invoke(app, ["evalute"]).exit_code == 2


def test_a_command_runs_on_options_alone_in_any_folder(tmp_path: Path, rows: Path) -> None:
    ended = slm_ray(
        "prepare", "--source", str(rows), "--out_dir", "out", "--set", "validation_rows=20", "--test_rows", "30",
        folder=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert len((tmp_path / "out/test.jsonl").read_text(encoding="utf-8").splitlines()) == 30


def test_a_folder_in_place_of_the_config_is_the_run(tmp_path: Path) -> None:
    ended = slm_ray("live", str(tmp_path), folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {tmp_path}")


def test_init_writes_a_track_and_configs_that_load_and_says_what_comes_next(tmp_path: Path, rows: Path) -> None:
    out = tmp_path / "runs" / "first"
    ended = CliRunner().invoke(app, ["init", "--rows", str(rows), "--track", "toolcall", *MODELS, "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    track = open_track(str(out / "track.yaml"))
    assert (track.name, track.scorers) == ("first", ("toolcall",))
    prepare = load(PrepareConfig, out / "prepare.yaml")
    assert (prepare.source, prepare.track) == (str(rows), str(out / "track.yaml"))
    assert load(EvaluateConfig, out / "evaluate.yaml").models == ("fake:{}", "fake:echo")
    assert load(CompareConfig, out / "compare.yaml").slm == "fake:echo"
    told = ended.stdout.partition("next:\n")[2].split("\n")
    assert [line.split() for line in told if line] == [
        ["slm-ray", step, str(out / f"{step}.yaml")] for step in ("prepare", "evaluate", "compare")
    ]


def test_init_overwrites_nothing(tmp_path: Path, rows: Path) -> None:
    (tmp_path / "evaluate.yaml").write_text("mine", encoding="utf-8")
    ended = CliRunner().invoke(app, ["init", "--rows", str(rows), *MODELS, "--out", str(tmp_path)], input="\n")
    assert ended.exit_code == 2
    assert "evaluate.yaml exists, and nothing is overwritten" in ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"evaluate.yaml", "rows.jsonl"}
    assert (tmp_path / "evaluate.yaml").read_text(encoding="utf-8") == "mine"


def test_init_asks_what_was_not_said(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["init", "--llm", "fake:{}"], input=f"{rows}\nclassify\nserved:small\n\n")
    assert ended.exit_code == 0, ended.output
    assert [question in ended.stdout for question in ("Where are your rows?", "Which LLM", "Which SLM")] == [
        True,
        False,
        True,
    ]
    assert load(EvaluateConfig, tmp_path / "runs/first/evaluate.yaml").models == ("fake:{}", "served:small")
    assert open_track(str(tmp_path / "runs/first/track.yaml")).scorers == ("classify",)


def test_init_takes_a_file_of_answers_and_options_before_it(tmp_path: Path, rows: Path) -> None:
    own = tmp_path / "beer.yaml"
    own.write_text("name: beer\nextends: chat\n", encoding="utf-8")
    answers = {
        "rows": str(rows),
        "track": str(own),
        "llm": "azure:gpt",
        "slm": "served:x",
        "out": str(tmp_path / "new"),
    }
    file = tmp_path / "answers.yaml"
    file.write_text(yaml.safe_dump(answers), encoding="utf-8")
    ended = CliRunner().invoke(app, ["init", "--answers", str(file), "--llm", "fake:{}"])
    assert ended.exit_code == 0, ended.output
    assert load(PrepareConfig, tmp_path / "new/prepare.yaml").track == str(own)
    assert not (tmp_path / "new/track.yaml").exists()
    assert load(EvaluateConfig, tmp_path / "new/evaluate.yaml").models == ("fake:{}", "served:x")
    file.write_text("row: x\n", encoding="utf-8")
    refused = CliRunner().invoke(app, ["init", "--answers", str(file)])
    assert refused.exit_code == 2 and "unknown key 'row': did you mean 'rows'?" in refused.stderr


def test_init_with_a_base_to_train_makes_a_loop(tmp_path: Path, rows: Path) -> None:
    out = tmp_path / "new"
    base = str(ROOT / "data/tiny_base")
    ended = CliRunner().invoke(app, ["init", "--rows", str(rows), "--track", "structured", "--llm", "fake:{}", "--slm", base, "--out", str(out)])  # fmt: skip
    assert ended.exit_code == 0, ended.output
    config = load(LoopConfig, out / "loop.yaml")
    assert (config.serving.base, config.serving.name, config.stand_in) == (base, "tiny_base", False)
    answers = Answers(rows=str(rows), track="structured", llm="fake:{}", slm=base, out=str(out))
    assert next_commands(answers) == [f"slm-ray loop {out}/loop.yaml", f"slm-ray open {out}/run"]


def test_open_says_where_the_page_is_and_opens_it_where_there_is_a_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    page = tmp_path / "report.html"
    page.write_text("<html></html>", encoding="utf-8")
    shown = CliRunner().invoke(app, ["open", str(tmp_path)])
    assert (shown.exit_code, shown.stdout.strip(), opened) == (0, str(page), [])
    monkeypatch.setenv("DISPLAY", ":0")
    shown = CliRunner().invoke(app, ["open", str(page)])
    assert (shown.exit_code, shown.stdout.strip(), opened) == (0, str(page), [page.as_uri()])


@pytest.mark.parametrize(
    ("typed", "expected", "not_expected"),
    [
        ("slm-ray ", {"prepare", "evaluate", "open", "init"}, set()),
        ("slm-ray evaluate --ma", {"--max_cost_usd", "--max_calls", "--max_tokens_total"}, {"--models", "--set"}),
        ("slm-ray compare --s", {"--set", "--slm"}, {"--llm"}),
    ],
)  # fmt: skip
def test_the_shell_completes_commands_and_settings(
    typed: str, expected: set[str], not_expected: set[str], tmp_path: Path
) -> None:
    words = typed.split(" ")
    asked = {"_SLM_RAY_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    code = "import sys; sys.argv[0] = 'slm-ray'; from slm_ray.cli.app import app; app(prog_name='slm-ray')"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, check=False, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | asked,
    )  # fmt: skip
    offered = set(shown.stdout.split())
    assert expected <= offered, shown.stderr
    assert not not_expected & offered
