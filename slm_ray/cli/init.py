"""`slm-ray init`: five answers become a track file and the configs of a first run, in one new folder.

Promises: nothing is overwritten, and nothing is written where an answer cannot be used. The configs are ordinary ones, to
be edited by hand. Reads no rows and calls no model.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slm_ray import storage
from slm_ray.config import CompareConfig, Config, EvaluateConfig, LoopConfig, PrepareConfig
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError, choices
from slm_ray.yaml_file import read_yaml_mapping

QUESTIONS = {
    "rows": "Where are your rows? A file, folder or URI, or hf:NAME",
    "track": f"What does a right answer look like? {', '.join(TRACKS)}, or the path of a track's YAML file",
    "llm": "Which LLM do you pay for? openai:MODEL, azure:DEPLOYMENT, openai:MODEL@URL, recorded:FILE",
    "slm": "Which SLM may replace it? A model such as served:NAME or openai:MODEL@URL, or the folder of a base to train",
    "out": "Which new folder shall the settings and results go to?",
}
DEFAULTS: Mapping[str, str | None] = {
    "rows": None,
    "track": "structured",
    "llm": "azure:",
    "slm": None,
    "out": "runs/first",
}
_TRACK_TEXT = """\
# What your rows ask for. Everything that is not said here is as in the track that it extends; further keys: scorers,
# primary (the metric that decides), core, guardrails, labels, answer_schema, template, prefix, strip, rubric.
name: {name}
extends: {extends}
system: {system}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a person said: rows, track, specs of the two models (`slm` may be a base to train), and the new folder."""

    rows: str
    track: str
    llm: str
    slm: str
    out: str

    @property
    def trains(self) -> bool:
        """Whether the SLM is a base to be trained: a spec of a model has a colon."""
        return ":" not in self.slm


def answers_from(path: Path | None) -> dict[str, str]:
    """The answers that a YAML file holds, none without a file; ConfigError names a key that is no question."""
    if path is None:
        return {}
    tree = read_yaml_mapping(path, what="file of answers")
    for name in tree:
        if name not in QUESTIONS:
            raise ConfigError(f"{path}: unknown key {name!r}: {choices(str(name), QUESTIONS)}")
        if not isinstance(tree[name], str):
            raise ConfigError(f"{path}: {name} = {tree[name]!r} is no text; {QUESTIONS[name]}")
    return tree


def write(answers: Answers) -> list[Path]:
    """Write the files of a first run; ConfigError before the first of them when an answer cannot be used."""
    folder = Path(answers.out)
    _check(answers)
    files = _files(answers, folder)
    if there := [path for path in files if path.exists()]:
        raise ConfigError(f"{there[0]} exists, and nothing is overwritten; give another folder, or remove it")
    for path, text in files.items():
        storage.write_text(path, text)
    return list(files)


def next_commands(answers: Answers) -> list[str]:
    """What to run now, in order."""
    steps = ("loop",) if answers.trains else ("prepare", "evaluate", "compare")
    commands = [f"slm-ray {step} {shlex.quote(str(Path(answers.out) / f'{step}.yaml'))}" for step in steps]
    if answers.trains:
        commands.append(f"slm-ray open {shlex.quote(str(Path(answers.out) / 'run'))}")
    return commands


def _check(answers: Answers) -> None:
    for name, question in QUESTIONS.items():
        if not getattr(answers, name).strip():
            raise ConfigError(f"{name} is empty; {question}")
    if ":" not in answers.llm:
        raise ConfigError(f"llm {answers.llm!r} is no model spec; {QUESTIONS['llm']}")
    if "://" not in answers.rows and not answers.rows.startswith("hf:") and not Path(answers.rows).exists():
        raise ConfigError(f"rows {answers.rows!r}: no such file or folder; {QUESTIONS['rows']}")
    if _is_file(answers.track):
        if not Path(answers.track).is_file():
            raise ConfigError(f"track {answers.track!r}: no such file; {QUESTIONS['track']}")
    elif answers.track not in TRACKS:
        raise ConfigError(f"track {answers.track!r}: {choices(answers.track, TRACKS)}, or a track's YAML file")


def _is_file(track: str) -> bool:
    return track.endswith((".yaml", ".yml"))


def _files(answers: Answers, folder: Path) -> dict[Path, str]:
    """The text of every file by its path."""
    files: dict[Path, str] = {}
    track = answers.track
    if not _is_file(track):
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.absolute().name).strip("-._") or "mine"
        system = yaml.safe_dump(TRACKS[track].system, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
        files[folder / "track.yaml"] = _TRACK_TEXT.format(name=name, extends=track, system=system)
        track = str(folder / "track.yaml")
    rows = {"track": track, "source": answers.rows}
    configs = _loop(answers, folder, rows) if answers.trains else _steps(answers, folder, rows)
    for name, (kind, comment, tree) in configs.items():
        kind.model_validate(tree)
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
        files[folder / f"{name}.yaml"] = f"# {comment}\n# Every setting: slm-ray {name} --help\n{text}"
    return files


_Configs = Mapping[str, tuple[type[Config], str, dict[str, Any]]]


def _steps(answers: Answers, folder: Path, rows: dict[str, Any]) -> _Configs:
    prepared, run = folder / "rows", folder / "run"
    return {
        "prepare": (
            PrepareConfig, "Your rows into train, validation and test rows.",
            rows | {"out_dir": str(prepared), "validation_rows": 60, "test_rows": 100, "seed": 42},
        ),
        "evaluate": (
            EvaluateConfig, "Both models on the test rows. max_cost_usd, max_calls and max_tokens_total limit the cost.",
            {
                "track": str(prepared / "track.yaml"), "examples": str(prepared / "test.jsonl"), "train": str(prepared / "train.jsonl"),
                "models": [answers.llm, answers.slm], "run_dir": str(run), "declare": {"rule": "paired", "delta": 0.02},
            },
        ),
        "compare": (
            CompareConfig, "May the SLM replace the LLM? Exit status 0: swap, 10: fine_tune, 20: inconclusive.",
            {
                "report": str(run / "report.json"), "llm": answers.llm, "slm": answers.slm,
                "train": str(prepared / "train.jsonl"), "rule": "paired", "delta": 0.02,
            },
        ),
    }  # fmt: skip


def _loop(answers: Answers, folder: Path, rows: dict[str, Any]) -> _Configs:
    base = Path(answers.slm).name or answers.slm
    return {
        "loop": (
            LoopConfig, "The whole loop. serving.config is a Ray Serve LLM file that fits your machine.",
            {
                "run_dir": str(folder / "run"), "tracks": [rows], "llm": answers.llm, "stand_in": False,
                "serving": {
                    "config": "serve_configs/cpu_tiny.yaml", "base": answers.slm, "name": base,
                    "adapters_dir": str(folder / "adapters"),
                },
                "comparison": {"rule": "paired", "delta": 0.02},
            },
        ),
    }  # fmt: skip
