"""What a page and a report say to type gives the configs that were used, in any folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from slm_ray.cli.commands import COMMANDS
from slm_ray.command import Usage, command_line, read
from slm_ray.config import (
    CompareConfig,
    Cost,
    EvaluateConfig,
    FlywheelConfig,
    Live,
    LoopConfig,
    Search,
    ServeConfig,
    Source,
    dump,
)
from slm_ray.evaluation.provenance import commands as evaluation_commands
from slm_ray.loop.page import commands, serve_command
from slm_ray.loop.track import TrackRun


def parsed(line: str) -> Any:
    """The config that the console script would run with."""
    program, name, *words = shlex.split(line)
    assert program == "slm-ray"
    command = COMMANDS[name]
    return read(command.config, command.doc, words, Usage(program=f"slm-ray {name}", folder=command.folder))


def test_what_gives_the_same_result_runs_and_asks_for_just_that(tmp_path: Path) -> None:
    run_dir = tmp_path / "my runs" / "demo"
    run_dir.mkdir(parents=True)
    config = LoopConfig(run_dir=str(run_dir), tracks=(Source(track="structured", source="rows.json"),), seed=7)
    (run_dir / "config.yaml").write_text(dump(config), encoding="utf-8")
    compared = CompareConfig(
        report=str(run_dir / "structured/test"), llm="azure:", slm="served:tiny-base:structured-0a1b",
        train=str(run_dir / "train.jsonl"), guardrails=("json_valid", "field_f1"), delta=0.05, min_paired_share=0.9,
        cost=Cost(hourly_usd=1.5, machine='a "big" one, 80 GB'),
    )  # fmt: skip
    run = TrackRun(config=config.tracks[0], prepared=None, folder=run_dir / "structured")
    run.compare_configs["test"] = compared
    again, comparison = commands(config, [run])
    assert parsed(again) == config.model_copy(update={"run_dir": f"{run_dir}-again"})
    assert parsed(comparison) == compared


def test_a_flywheel_is_made_again_by_its_own_command(tmp_path: Path) -> None:
    track = Source(track="structured", source="log", live=Live(route="r"))
    config = FlywheelConfig(run_dir=str(tmp_path), tracks=(track,), routes_dir="/shared/routes", relabel=True)
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    (again,) = commands(config, [])
    assert parsed(again) == config.model_copy(update={"run_dir": f"{tmp_path}-again"})


def test_the_commands_of_a_report_make_its_run_again_and_go_on_with_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "my runs" / "test"
    run_dir.mkdir(parents=True)
    config = EvaluateConfig(track="chat", examples="rows.jsonl", models=("fake:a", "fake:b c"), run_dir=str(run_dir))
    (run_dir / "config.yaml").write_text(dump(config), encoding="utf-8")
    lines = evaluation_commands(config)
    assert parsed(lines.reproduce) == config.model_copy(update={"run_dir": f"{run_dir}-again"})
    assert parsed(lines.resume) == config


def test_the_command_that_serves_serves_the_loops_adapters() -> None:
    config = LoopConfig(run_dir="runs/x", tracks=(Source(track="structured", source="rows.json"),))
    config = config.model_copy(
        update={"serving": config.serving.model_copy(update={"adapters_dir": "/data/my adapters"})}
    )
    assert parsed(serve_command(config)) == ServeConfig(adapters_dir="/data/my adapters")


def test_a_command_line_reads_as_the_config_that_it_was_written_from() -> None:
    for odd in (
        "azure:",
        "1e5",
        "null",
        "no",
        "~",
        "a b",
        "it's",
        '"',
        "{x}",
        "é\u2028",
        "-",
        "@x",
        "# c",
        "2026-01-01",
        "$HOME",
    ):
        config = CompareConfig(report=odd, llm=odd, slm="openai:m@http://h:1/v1", out=odd)
        assert parsed(command_line("compare", config)) == config, odd
    tracks = (Source(track="structured", source="rows.json"),)
    for search in (Search(trials=0, ranks=(8,)), Search(trials=0), Search(), Search(epochs=2.0)):
        asked = LoopConfig(run_dir="r", tracks=tracks, search=search)
        assert parsed(command_line("loop", asked)) == asked, search
    assert (
        command_line("compare", CompareConfig(report="r", llm="l", slm="s"))
        == "slm-ray compare --set report=r --set llm=l --set slm=s"
    )
