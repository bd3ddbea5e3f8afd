"""Files are whole or untouched, reads say what is wrong, a folder has one owner."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slm_ray import storage
from slm_ray.errors import DataError, ResourceError


def test_text_and_json_come_back_as_written(tmp_path: Path) -> None:
    storage.write_text(tmp_path / "deep" / "a.txt", "süß\n")
    assert storage.read_text(tmp_path / "deep" / "a.txt") == "süß\n"
    storage.write_json(tmp_path / "a.json", {"b": [1, None], "a": "é"})
    assert storage.read_json(tmp_path / "a.json") == {"b": [1, None], "a": "é"}
    storage.write_jsonl(tmp_path / "a.jsonl", [{"a": "x\u2028y"}, {"b": 2}])
    assert storage.read_jsonl(tmp_path / "a.jsonl") == [{"a": "x\u2028y"}, {"b": 2}]


def test_same_value_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        storage.write_json(tmp_path / name, {"b": 1.5, "a": [True]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert storage.file_digest(tmp_path / "one") == storage.file_digest(tmp_path / "two")


def test_a_byte_order_mark_and_crlf_are_tolerated(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert storage.read_lines(tmp_path / "a") == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"", "is empty"), (b" \n\n", "is empty"), (b"ok\n\xff\xfe\n", ":2: not UTF-8")],
)
def test_unreadable_text_is_one_clear_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        storage.read_text(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"), [("{", ":2: not JSON"), ("[1]", ":2: list instead"), ("[" * 100_000, ":2: not JSON")]
)
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(DataError, match=says):
        storage.read_jsonl(tmp_path / "a.jsonl")


def test_a_folder_or_a_bad_json_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is a directory"):
        storage.read_text(tmp_path)
    (tmp_path / "a.json").write_text('{\n"a": }')
    with pytest.raises(DataError, match=r"a\.json:2: not JSON"):
        storage.read_json(tmp_path / "a.json")


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a.json", {"v": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "a.json", {"v": float("nan")})
    assert storage.read_json(tmp_path / "a.json") == {"v": 1}


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    """A file-size limit is the kernel's own way to fail in the middle of a write."""
    storage.write_text(tmp_path / "a.txt", "old")
    program = f"""
import resource, signal
from slm_ray import storage
from slm_ray.errors import ResourceError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    storage.write_text({str(tmp_path / "a.txt")!r}, "x" * 100_000)
except ResourceError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_writer_killed_in_the_middle_never_shows_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    program = f"""
from slm_ray import storage
n = 0
while True:
    n += 1
    storage.write_json({str(path)!r}, {{"rows": [n] * 20_000}})
"""
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", program])
        deadline = time.monotonic() + 20
        before = path.stat().st_mtime_ns if path.exists() else 0
        while (not path.exists() or path.stat().st_mtime_ns == before) and time.monotonic() < deadline:
            time.sleep(0.01)
        writer.kill()
        writer.wait()
        rows = json.loads(path.read_text())["rows"]
        assert len(rows) == 20_000
        assert len(set(rows)) == 1


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    storage.write_text(tmp_path / "a", "x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_second_owner_is_told_at_once_who_holds_the_folder(tmp_path: Path) -> None:
    program = f"""
import time
from slm_ray import storage
with storage.lock({str(tmp_path / "run")!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        started = time.monotonic()
        with (
            pytest.raises(ResourceError, match=f"in use by process {holder.pid}") as caught,
            storage.lock(tmp_path / "run"),
        ):
            pass
        assert time.monotonic() - started < 20  # the holder sleeps for 60
        assert str(tmp_path / "run") in str(caught.value)
    finally:
        holder.kill()
        holder.wait()
    with storage.lock(tmp_path / "run"):  # a killed holder leaves nothing locked
        pass
    with storage.lock(tmp_path / "run"), pytest.raises(ResourceError), storage.lock(tmp_path / "run"):
        pass


def test_importing_floors_below_ray_loads_nothing_heavy() -> None:
    program = (
        "import sys; import slm_ray.storage, slm_ray.runlog, slm_ray.providers; "
        "print([m for m in ('ray', 'torch', 'vllm', 'openai', 'aiohttp', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_whoever_waits_for_a_growing_file_adds_to_the_one_that_replaced_it(tmp_path: Path) -> None:
    path, waiting = tmp_path / "a.jsonl", threading.Event()

    def other() -> None:
        waiting.set()
        with storage.growing_jsonl(path) as file:
            assert [row for _, row in file.rows] == [{"a": "short"}, {"a": 3}]
            file.append({"a": "other"})

    thread = threading.Thread(target=other)
    with storage.growing_jsonl(path) as file:
        file.append({"a": 1}, {"a": 2})
        thread.start()
        assert waiting.wait(10)
        time.sleep(0.1)
        file.replace([{"a": "short"}])
        file.append({"a": 3})
        with pytest.raises(ResourceError), storage.growing_jsonl(path, waits=False):
            pass
    thread.join(10)
    assert storage.read_jsonl(path) == [{"a": "short"}, {"a": 3}, {"a": "other"}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_file_of_lines_that_may_not_be_read_is_said_to_be_its_owner_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(DataError, match="Permission denied; have its owner let you read it"):
        storage.grown_rows(tmp_path / "rows.jsonl")
