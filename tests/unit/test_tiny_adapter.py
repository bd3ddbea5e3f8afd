"""Adapters for benchmarks: a training that was cut off goes on where it was, to the same answers."""

from pathlib import Path

import pytest

from slm_ray.types import Example
from tools import tiny_adapter
from tools.bench_drift import rows_by_domain
from tools.config import DriftBenchConfig
from tools.tiny_adapter import Recipe, adapter_answers

ROOT = Path(__file__).parents[2]


def rows() -> list[Example]:
    return [row for of_domain in rows_by_domain(DriftBenchConfig(rows=100)).values() for row in of_domain][:40]


def test_a_training_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(base=str(ROOT / "data/tiny_base"), steps=4, batch=4)
    monkeypatch.setattr(tiny_adapter, "_SAVE_EVERY", 2)
    monkeypatch.setattr(tiny_adapter, "MOST_TOKENS", 12)
    train, asked = rows()[:32], rows()[32:]
    whole = adapter_answers(recipe, train, asked, tmp_path / "whole")
    saved, save = 0, tiny_adapter._save

    def cut_off(path: Path, state: object) -> None:
        nonlocal saved
        save(path, state)  # type: ignore[arg-type]
        saved += 1
        if saved == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(tiny_adapter, "_save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        adapter_answers(recipe, train, asked, tmp_path / "cut")
    assert adapter_answers(recipe, train, asked, tmp_path / "cut") == whole and saved == 2
    assert adapter_answers(recipe, train, asked, tmp_path / "cut") == whole and saved == 2, "nothing is done again"
