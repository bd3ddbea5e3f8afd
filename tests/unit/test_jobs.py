"""Jobs as a person runs them: `--help`, exit statuses, one-line errors, nothing half-written."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray.cluster import noted_address

ROOT = Path(__file__).parents[2]


def job(
    name: str, *arguments: str, cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AZURE_", "RAY_ADDRESS"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments],
        capture_output=True, text=True, cwd=cwd, env=kept | (environment or {}), timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["prepare", "compare", "infer", "trace", "live", "evaluate"])
def test_help_lists_the_settings(name: str) -> None:
    found = job(name, "--help")
    assert found.returncode == 0
    assert "--set" in found.stdout
    assert "settings:" in found.stdout


def refused(found: subprocess.CompletedProcess[str], *said: str) -> None:
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1, found.stderr
    for text in said:
        assert text in found.stderr


def prepare(folder: Path, source: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    settings = [f"source={source}", f"out_dir={folder}/out", *overrides]
    return job("prepare", "jobs/prepare.yaml", *(part for setting in settings for part in ("--set", setting)))


def test_prepare_writes_three_disjoint_splits_and_does_not_redo_them(tmp_path: Path) -> None:
    found = prepare(tmp_path, ROOT / "data/tools/rows.json")
    assert found.returncode == 0, found.stderr
    rows = {
        name: [
            json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for name in ("train", "validation", "test")
    }
    assert {name: len(found) for name, found in rows.items()} == {"train": 3200, "validation": 60, "test": 100}
    prompts = {name: {row["prompt"] for row in found} for name, found in rows.items()}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]
    before = (tmp_path / "out/test.jsonl").stat().st_mtime_ns
    assert prepare(tmp_path, ROOT / "data/tools/rows.json").returncode == 0
    assert (tmp_path / "out/test.jsonl").stat().st_mtime_ns == before


def test_prepare_refuses_and_writes_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', encoding="utf-8")
    small = tmp_path / "small.jsonl"
    small.write_text(
        "".join(json.dumps({"prompt": f"question {n}", "completion": "{}"}) + "\n" for n in range(9)), encoding="utf-8"
    )
    refused(prepare(tmp_path, tmp_path / "missing.json"), "missing.json")
    refused(prepare(tmp_path, empty), "empty")
    refused(prepare(tmp_path, bad), "bad.jsonl:2", "completion")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bad_rows.jsonl"]
    refused(prepare(tmp_path, small), "asked for", "9 rows")
    refused(prepare(tmp_path, small, "track=structurd"), "did you mean 'structured'?")
    assert not list((tmp_path / "out").iterdir())


def test_a_relative_output_in_a_submitted_job_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "runtime_resources" / "working_dir_files" / "x"
    inside.mkdir(parents=True)
    source = ROOT / "data/tools/rows.json"
    found = job(
        "prepare", str(ROOT / "jobs/prepare.yaml"), "--set", "out_dir=runs/x", "--set", f"source={source}", cwd=inside
    )
    refused(found, "give an absolute path")


def test_a_loop_with_half_an_azure_key_fails_before_anything_starts(tmp_path: Path) -> None:
    found = job(
        "loop", "jobs/loop.yaml", "--set", f"run_dir={tmp_path}/run",
        environment={"AZURE_ENDPOINT": "https://example.openai.azure.com", "AZURE_DEPLOYMENT": "gpt"},
    )  # fmt: skip
    refused(found, "AZURE_API_KEY")
    assert not (tmp_path / "run").exists()


def test_infer_shows_demonstrations_tokens_the_reading_and_the_score(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"id": f"r{n}", "prompt": f"set lamp {n}", "completion": f'{{"n": {n}}}'}) + "\n"
            for n in range(3)
        )
    )
    settings = ["model=baseline:nearest", f"examples={rows}", "example=r1", f"demonstrations={rows}"]
    found = job("infer", "jobs/infer.yaml", *(part for setting in settings for part in ("--set", setting)))
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[1:4] == ["[user] set lamp 1", '[baseline:nearest] {"n": 0}', 'parsed  {"n": 0}']
    assert "json_valid 1.0, exact_match 0.0" in found.stdout
    assert "value_mismatch" in found.stdout

    settings = ["model=fake:{}+2shot", "text=set lamp 9", f"demonstrations={rows}", "show_tokens=true", "target='{}'"]
    found = job("infer", "jobs/infer.yaml", *(part for setting in settings for part in ("--set", setting)))
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert [line.partition("]")[0][1:] for line in lines[:6]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    tokens = next(line for line in lines if line.startswith("tokens"))
    assert int(tokens.split()[1]) == len(tokens.partition(":")[2].split()) > 20
    assert "exact_match 1.0" in found.stdout

    refused(
        job("infer", "jobs/infer.yaml", "--set", f"examples={rows}", "--set", "example=r9", "--set", "model=fake:x"),
        "'r9'",
    )
    refused(job("infer", "jobs/infer.yaml", "--set", "model=fake:x", "--set", "text=null"), "text is not set")


def test_a_killed_ray_that_left_its_address_behind_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert noted_address() is None
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        note.write_text(address, encoding="utf-8")
        assert noted_address() is None  # bound, and nobody listens
        listening.listen()
        assert noted_address() == address
