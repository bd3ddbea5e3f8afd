"""A finished answer is in the log, once, for ever; a failed call gives way to a later answer; a torn or full file loses no line."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray.errors import DataError, ResourceError
from slm_ray.runlog import (
    LogWriter,
    PlannedRequest,
    Record,
    Response,
    RunLog,
    await_writers,
    begin_note,
    encoded,
    end_note,
    finished,
    request_key,
    throttle_note,
    write_plan,
)
from slm_ray.types import Completion, Failure, FailureKind, Usage

FULL = Completion(
    text="süß \u2028", latency_s=0.25, usage=Usage(prompt_tokens=3, completion_tokens=4), served_by="m", attempts=2
)


def failed(kind: FailureKind) -> Completion:
    return Completion(failure=Failure(kind=kind, reason="why", status=500), attempts=4)


def answer(n: int, completion: Completion = FULL, answered_ns: int = 1) -> Response:
    return Response(key=f"k{n}", spec="s", example_id=f"r{n}", completion=completion, answered_ns=answered_ns)


def write(run_dir: Path, *records: Record, file: str = "shard-a-0.jsonl") -> None:
    writer = LogWriter(run_dir / "log" / file)
    writer.append(encoded(records))
    writer.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write(tmp_path, begin_note("a", "p", {"rows": 4}), file="run.jsonl")
    return tmp_path


def test_answers_come_back_equal(run_dir: Path) -> None:
    write(run_dir, "k1", answer(1), "k2", answer(2, failed("refused")))
    with RunLog(run_dir) as log:
        assert log.response("k0") is None
        assert log.response("k1") == answer(1)
        assert log.response("k2") == answer(2, failed("refused"))
        assert log.count() == 2


@pytest.mark.parametrize("kind", ["refused", "truncated", "invalid"])
def test_what_is_finished_is_never_replaced(run_dir: Path, kind: FailureKind) -> None:
    assert finished(failed(kind))
    write(run_dir, answer(1, failed(kind), 5), answer(1, FULL, 6), answer(1, failed("error"), 7))
    with RunLog(run_dir) as log:
        assert log.response("k1") == answer(1, failed(kind), 5)
        assert log.count() == 1


def test_an_error_gives_way_to_a_later_answer_and_stays_as_history(run_dir: Path) -> None:
    assert not finished(failed("error"))
    write(run_dir, answer(1, failed("error"), 5), file="shard-z-0.jsonl")
    with RunLog(run_dir) as log:
        assert (log.response("k1"), log.count()) == (answer(1, failed("error"), 5), 0)
        write(run_dir, answer(1, FULL, 6), answer(2), file="shard-a-0.jsonl")
        log.read()
        assert (log.response("k1"), log.count()) == (answer(1, FULL, 6), 2)
        assert {one.answered_ns for one in log.responses({"k1"})} == {5, 6}
        assert len(list(log.responses())) == 3


def test_a_start_without_an_answer_is_in_doubt_however_often_it_happens(run_dir: Path) -> None:
    write(run_dir, "k0", "k1", "k2")
    keys = [f"k{n}" for n in range(4)]
    with RunLog(run_dir) as log:
        assert log.in_doubt(keys) == {"k0": 1, "k1": 1, "k2": 1}
        write(run_dir, answer(0), answer(1, failed("error")), "k2", "k3", file="shard-b-0.jsonl")
        log.read()
        assert log.in_doubt(keys) == {"k2": 2, "k3": 1}
        assert log.in_doubt(["k0"]) == {}
        write(run_dir, answer(2), "k1")
        write(run_dir, answer(1), file="shard-c-1.jsonl")
        log.read()
        assert log.in_doubt(keys) == {"k2": 1, "k3": 1}


def test_a_run_says_how_it_ended_and_what_its_shards_noted_last(run_dir: Path) -> None:
    with RunLog(run_dir) as log:
        assert (log.begun().plan, log.begun().facts, log.begun().ended) == ("p", {"rows": 4}, None)
        for rejections in (1, 2):
            write(run_dir, throttle_note("a", 0, {"azure:": {"rejections": rejections}}))
        write(run_dir, throttle_note("a", 1, {"azure:": {"rejections": 5}}), file="shard-a-1.jsonl")
        write(run_dir, end_note("stopped"), file="run.jsonl")
        log.read()
        assert log.begun().ended == "stopped"
        assert log.begun().throttle == {0: {"azure:": {"rejections": 2}}, 1: {"azure:": {"rejections": 5}}}
        write(run_dir, begin_note("b", "p", {}), file="run.jsonl")
        write(run_dir, throttle_note("a", 0, {"azure:": {"rejections": 9}}))
        log.read()
        assert (log.begun().ended, log.begun().throttle) == (None, {})


def test_records_are_of_the_run_that_began_last_or_of_an_earlier_one(run_dir: Path) -> None:
    write(run_dir, "k1", file="shard-z-0.jsonl")
    write(run_dir, "k2", file="shard-a-3.jsonl")
    log = RunLog(run_dir)
    assert dict(pair for pair in log.refresh() if isinstance(pair[0], str)) == {"k1": False, "k2": True}
    assert list(log.refresh()) == []


def test_a_plan_is_written_once(run_dir: Path) -> None:
    rows = [PlannedRequest(key=f"k{n}", spec="s", example_id=f"r{n}", repeat=n % 2) for n in range(4)]
    write_plan(run_dir / "log", "p", rows)
    write_plan(run_dir / "log", "p", rows[:1])
    with RunLog(run_dir) as log:
        assert log.planned() == rows


def test_a_folder_without_a_run_is_said_so(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log, pytest.raises(DataError, match=r"no run has begun here; start slm-ray evaluate"):
        log.begun()


def test_a_key_sees_everything_that_makes_a_call() -> None:
    same = request_key("d", "r", "m", {"b": 1, "a": "é"})
    assert same == request_key("d", "r", "m", {"a": "é", "b": 1})
    others = {
        request_key("D", "r", "m", {"b": 1, "a": "é"}), request_key("d", "R", "m", {"b": 1, "a": "é"}),
        request_key("d", "r", "M", {"b": 1, "a": "é"}), request_key("d", "r", "m", {"b": 2, "a": "é"}),
        request_key("d", "r", "m", {"b": 1, "a": "é"}, 1),
    }  # fmt: skip
    assert len(others | {same}) == 6


def test_a_line_cut_short_was_never_there_and_the_writer_goes_on_behind_the_last_whole_one(run_dir: Path) -> None:
    write(run_dir, "k0", answer(0))
    path = run_dir / "log" / "shard-a-0.jsonl"
    whole = path.read_bytes()
    for torn in (b'{"key":"k1","exam', b'"k'):
        path.write_bytes(whole + torn)
        with RunLog(run_dir) as log:
            assert (log.count(), log.in_doubt(["k0", "k1"])) == (1, {})
        write(run_dir, "k5")
        assert path.read_bytes() == whole + b'"k5"\n'


@pytest.mark.parametrize(
    "damage", [b"\xff" * 80, b'{"key": "k1"}\n', b'{"event": 1\n', b"[1]\n", b'"\xff"\n', b"\0\0\0\n"]
)
def test_a_damaged_line_is_told_with_its_place(run_dir: Path, damage: bytes) -> None:
    write(run_dir, "k0", answer(0))
    path = run_dir / "log" / "shard-a-0.jsonl"
    place = path.stat().st_size
    with path.open("ab") as file:
        file.write(damage + b'"k9"\n')
    for read in (RunLog(run_dir).read, lambda: LogWriter(path)):
        with pytest.raises(DataError, match=rf"shard-a-0\.jsonl \(byte {place}\): cannot be used as a log") as caught:
            read()
        assert "\n" not in str(caught.value)
        assert "move the file away or choose another run_dir" in str(caught.value)


def test_another_version_is_refused(run_dir: Path) -> None:
    write(run_dir, {**begin_note("a", "p", {}), "version": 9}, file="run.jsonl")
    with pytest.raises(DataError, match="a log of version 9, this program writes 1; choose another run_dir"):
        RunLog(run_dir).read()


WRITER = """
import sys, time
from pathlib import Path
from slm_ray.runlog import LogWriter, Response, encoded
from slm_ray.types import Completion
writer, n = LogWriter(Path(sys.argv[1])), 0
while True:
    answer = Response(key=f"k{n}", spec="s", example_id="r", completion=Completion(text="x" * 2000), answered_ns=1)
    writer.append(encoded([answer]))
    print(n, flush=True)
    n += 1
"""


def test_a_killed_writer_leaves_whole_lines_and_keeps_others_out_until_then(run_dir: Path) -> None:
    path = run_dir / "log" / "shard-a-0.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(30)][-1]
        writer.send_signal(signal.SIGSTOP)
        with pytest.raises(ResourceError, match=r"still being written .* run the same command again"):
            await_writers(run_dir / "log", wait_s=0.1)
        writer.send_signal(signal.SIGKILL)
        await_writers(run_dir / "log", wait_s=10)
    with RunLog(run_dir) as log:
        assert log.count() > said
        for n in range(said + 1):
            response = log.response(f"k{n}")
            assert response is not None
            assert response.completion == Completion(text="x" * 2000)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from slm_ray.errors import ResourceError
from slm_ray.runlog import LogWriter, encoded
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
writer = LogWriter(Path(sys.argv[1]))
writer.append(encoded(["k" * 50]))
try:
    writer.append(encoded(["k" * 30, "x" * 30]))
except ResourceError as error:
    print(error)
writer.append(encoded(["end"]))
"""


def test_a_full_disk_leaves_no_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{path}: cannot be written on {socket.gethostname()} (File too large); nothing more is asked; free the disk or make the folder writable, then the same command continues"  # fmt: skip
    assert path.read_bytes() == b'"' + b"k" * 50 + b'"\n"end"\n'
