"""Rows of a Google Cloud Storage bucket and of the Hugging Face hub, prepared by the job itself from a server of their
routes on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from slm_ray import storage
from tests.stores import Store, serving

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]
ROWS = [{"prompt": f"ü question {n}", "completion": f"answer {n}"} for n in range(12)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, str]]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def prepared(source: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    job = [sys.executable, "jobs/prepare.py", "jobs/prepare.yaml", "--source", source, "--track", "chat"]
    return subprocess.run(
        [*job, "--out_dir", str(folder / "out"), "--validation_rows", "2", "--test_rows", "3"],
        cwd=ROOT, env={**os.environ, "HF_HOME": str(folder / "hf"), **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def prepared_at_once(sources: list[str], folder: Path, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """Each into a folder of its own, named by its place."""
    folders = [folder / str(place) for place in range(len(sources))]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda source, own: prepared(source, own, **environment), sources, folders))


def questions(folder: Path) -> set[str]:
    sides = ("train", "validation", "test")
    return {row["prompt"] for side in sides for row in storage.read_jsonl(str(folder / "out" / f"{side}.jsonl"))}


@pytest.fixture
def bucket() -> Store:
    # A list is paged, and the name of a file and of a folder may begin alike.
    files = {
        "rows/a.jsonl": lines(ROWS[:5]),
        "rows/b.parquet": parquet(ROWS[5:]),
        "rows/note.md": b"no",
        "rows2/c.jsonl": b"x",
    }
    return Store(name="mine", files=files, failing=1)


def test_a_folder_of_a_bucket_is_prepared(bucket: Store, tmp_path: Path) -> None:
    with serving(bucket):
        place = f"gs://anonymous@mine/rows?scheme=http&endpoint_override=127.0.0.1:{bucket.port}"
        done = prepared(place, tmp_path)
        assert done.returncode == 0, done.stderr
        assert questions(tmp_path) == {row["prompt"] for row in ROWS}
        bucket.files = {"rows/a.jsonl": b"nope\n"}
        done = prepared(place, tmp_path)
    assert done.returncode == 2 and "gs://mine/rows/a.jsonl:1: this is not JSON" in done.stderr, done.stderr
    assert not bucket.failing and any("range" in path or "alt=media" in path for path in bucket.paths)


def test_what_is_not_in_a_bucket_and_a_bucket_that_nobody_serves_are_refused_soon(
    bucket: Store, tmp_path: Path
) -> None:
    with serving(bucket):
        place = f"?scheme=http&endpoint_override=127.0.0.1:{bucket.port}"
        missing = prepared(f"gs://anonymous@mine/none.jsonl{place}", tmp_path)
    started = time.monotonic()
    unserved = prepared(f"gs://anonymous@mine/rows{place}&retry_limit_seconds=1", tmp_path)
    assert time.monotonic() - started < 60
    for done in (missing, unserved):
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "cannot read gs://mine/none.jsonl" in missing.stderr, missing.stderr
    # What is asked first: whether the folder is a log of traffic.
    assert "gs://mine/rows/traffic.json cannot be read" in unserved.stderr, unserved.stderr


def test_a_data_set_of_the_hub_is_prepared(tmp_path: Path) -> None:
    card = b"---\nconfigs:\n- config_name: first\n  data_files: one.jsonl\n- config_name: all\n  data_files:\n"
    card += b"  - {split: train, path: one.jsonl}\n  - {split: held, path: two.jsonl}\n---\n"
    files = {"README.md": card, "one.jsonl": lines(ROWS[:7]), "two.jsonl": lines(ROWS)}
    with serving(Store(name="me/mine", files=files)) as hub:
        at = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.port}"}
        sources = ["hf:me/mine@all:held", "hf:me/mine@first", "hf:me/mine@all:none", "hf:me/other"]
        held, first, *refused = prepared_at_once(sources, tmp_path, **at)
    assert (held.returncode, first.returncode) == (0, 0), held.stderr + first.stderr
    assert questions(tmp_path / "0") == {row["prompt"] for row in ROWS}
    assert questions(tmp_path / "1") == {row["prompt"] for row in ROWS[:7]}
    for done, said in zip(refused, ("Unknown split", "cannot load hf:me/other"), strict=True):
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
