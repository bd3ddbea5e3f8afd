"""A base that is no model: said in one line, with the folder, what is missing and the fix, before anything heavy starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm_ray.adapters import check_base
from slm_ray.errors import ModelError

ROOT = Path(__file__).parents[2]
BASE = ROOT / "data/tiny_base"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "base"))


def refused(base: Path, *said: str) -> None:
    with pytest.raises(ModelError) as raised:
        check_base(str(base), setting="serving.base")
    for text in (str(base), "set serving.base", *said):
        assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_folder_that_lacks_a_file_is_refused(base: Path, lacking: str) -> None:
    assert check_base(str(base), setting="base") == str(base)
    (base / lacking).unlink()
    refused(base, "it lacks", "*.safetensors" if "safetensors" in lacking else lacking)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model_type": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_broken_config_json_is_refused(base: Path, content: bytes) -> None:
    (base / "config.json").write_bytes(content)
    refused(base, str(base / "config.json"))


def test_damaged_weights_and_missing_shards_are_refused(base: Path) -> None:
    shards = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    refused(base, "lacks model-00002-of-00002.safetensors, 1 of the 2 files")
    (base / "model.safetensors.index.json").write_text("[]", encoding="utf-8")
    refused(base, "weight_map")
    (base / "model.safetensors.index.json").unlink()
    (base / "model.safetensors").write_bytes(b"not weights")
    refused(base, "not a whole safetensors file")


def test_an_empty_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "config.json", "weights", "tokenizer", "chat template")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    refused(file, "is a file")
    with pytest.raises(ModelError, match="no base model folder"):
        check_base(f"{file}/under", setting="base")
    with pytest.raises(ModelError, match=r"a\\x00b"):
        check_base("a\0b", setting="base")


def test_base_names() -> None:
    assert check_base("meta-llama/Llama-3.1-8B-Instruct", setting="base") == "meta-llama/Llama-3.1-8B-Instruct"
    for wrong in ("data/no_such_base", "no_such_base", "/no/such/base"):
        with pytest.raises(ModelError, match=r"set serving\.base"):
            check_base(wrong, setting="serving.base")


@pytest.mark.parametrize(
    ("job", "setting"),
    [
        ("train", "base"), ("serve", "base"), ("sweep", "training.base"), ("learning_curve", "training.base"),
        ("precisions", "training.base"),
        ("loop", "serving.base"),
    ],
)  # fmt: skip
def test_a_job_says_so_before_it_loads_ray(job: str, setting: str, tmp_path: Path) -> None:
    started_s = time.process_time()
    found = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "jobs" / f"{job}.py"), "--set", f"{setting}={tmp_path}"],
        cwd=ROOT, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    said = [line for line in found.stderr.splitlines() if not line.startswith("import time:")]
    assert (found.returncode, len(said)) == (2, 1), said
    assert said[0].startswith(f"error: {tmp_path} is no base model") and f"set {setting}" in said[0]
    loaded = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert not {"ray", "torch", "transformers", "vllm"} & loaded
    assert time.process_time() - started_s < 5


@pytest.mark.parametrize(
    ("job", "setting", "place"),
    [
        ("train", "run_dir", "file"), ("train", "adapters_dir", "/proc/self/read_only"),
        ("serve", "adapters_dir", "file/under"), ("sweep", "training.run_dir", "file/under"),
        ("learning_curve", "training.run_dir", "file/under"),
        ("loop", "serving.adapters_dir", "file"),
    ],
)  # fmt: skip
def test_a_job_refuses_a_folder_that_cannot_be_written(job: str, setting: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    found = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--set", f"{setting}={tmp_path / place}"],
        cwd=ROOT, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: {setting} ") and found.stderr.count("\n") == 1, found.stderr
    assert str(tmp_path / place) in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
