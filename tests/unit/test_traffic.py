"""The traffic log: nothing lost but what it says, nothing twice, nothing on the disk that was to be taken out."""

import dataclasses
import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from slm_ray.config import Traffic
from slm_ray.errors import ConfigError, DataError, ResourceError
from slm_ray.remote import StoreAway
from slm_ray.storage import write_parquet
from slm_ray.traffic import ArmAnswer, Feedback, Redaction, TrafficLog, TrafficRow, is_traffic, read_traffic
from slm_ray.traffic import place as places
from slm_ray.traffic.journal import Segment, abandoned, host, new_segment, segment_paths

NOW = datetime.now(UTC)


def row(
    name: str, *, at: float | None = None, text: str = "4", user: str | None = None, **request: object
) -> TrafficRow:
    body = {"messages": [{"role": "user", "content": f"question {name}"}], "max_tokens": 8} | request
    return TrafficRow(
        id=name, at=NOW.timestamp() if at is None else at, route="structured", serial=3, state="shadow", arm="llm",
        request=body, user=user, served="llm", audited=True,
        answers=(
            ArmAnswer(arm="llm", model="gpt-5@2026", text=text, status=200, latency_s=0.5, completion_tokens=3, valid=True),
            ArmAnswer(arm="slm", model="tiny:a@1", text=None, status=0, latency_s=1.0, reason="timeout"),
        ),
    )  # fmt: skip


def until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ids(folder: Path) -> list[str]:
    return [found.id for found in read_traffic(str(folder))]


def disk_text(folder: Path) -> str:
    """Everything under the folder, parts decoded."""
    from pyarrow import parquet

    texts = [path.read_text() for path in folder.rglob("*.json*")]
    return "".join(texts + [str(parquet.ParquetFile(path).read().to_pylist()) for path in folder.rglob("*.parquet")])


def test_what_is_appended_is_read_back_from_journal_and_from_parts(tmp_path: Path) -> None:
    with TrafficLog(str(tmp_path)) as log:
        assert log.append(row("a"))
        assert log.append(Feedback(id="a", at=NOW.timestamp(), score=0.5, answer="5"))
        assert log.flush()
        (from_journal,) = read_traffic(str(tmp_path))
        assert not list(tmp_path.rglob("*.parquet"))
    (from_part,) = read_traffic(str(tmp_path))
    assert from_part == from_journal
    assert from_part.feedback == (Feedback(id="a", at=NOW.timestamp(), score=0.5, answer="5"),)
    assert from_part.request == row("a").request
    assert from_part.answers[1] == row("a").answers[1]
    assert not list((tmp_path / "journal").iterdir())
    assert (tmp_path / f"date={NOW.date()}").is_dir() or (tmp_path / f"date={datetime.now(UTC).date()}").is_dir()
    assert is_traffic(str(tmp_path)) and not is_traffic(str(tmp_path / "journal"))


def test_rows_become_parts_when_there_are_enough_or_time_is_up(tmp_path: Path) -> None:
    with TrafficLog(str(tmp_path / "many"), roll_rows=10) as log:
        for n in range(25):
            log.append(row(str(n)))
        until(lambda: bool(list((tmp_path / "many").rglob("*.parquet"))))
    with TrafficLog(str(tmp_path / "late"), roll_s=0.3) as log:
        log.append(row("a"))
        until(lambda: bool(list((tmp_path / "late").rglob("*.parquet"))))
    assert sorted(ids(tmp_path / "many"), key=int) == [str(n) for n in range(25)]
    assert ids(tmp_path / "late") == ["a"]


_WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_traffic import TrafficLog, row
log = TrafficLog({folder!r}, roll_rows=50)
for n in range(10**6):
    log.append(row(f"{name}-{{n}}"))
    if n % 20 == 19:
        assert log.flush()
        print(n, flush=True)
"""


def test_a_writer_that_is_killed_loses_nothing_it_had_written_and_the_next_one_rolls_it(tmp_path: Path) -> None:
    code = _WRITER.format(tests=str(Path(__file__).parent), folder=str(tmp_path), name="k")
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    durable = [int(writer.stdout.readline()) for _ in range(7)][-1]
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    left = sorted((tmp_path / "journal").iterdir())
    with left[-1].open("ab") as torn:
        torn.write(b'{"schema_version":1,"kind":"request","id":"to')
    before = ids(tmp_path)
    assert {f"k-{n}" for n in range(durable + 1)} <= set(before) and len(set(before)) == len(before)
    with TrafficLog(str(tmp_path)) as log:
        log.append(row("next"))
    assert sorted(ids(tmp_path)) == sorted([*before, "next"])
    assert not list((tmp_path / "journal").iterdir())


def test_a_kill_between_the_part_and_the_end_of_its_journal_doubles_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Segment, "delete", Segment.close)
        with TrafficLog(str(tmp_path)) as log:
            log.append(row("a"))
    assert list((tmp_path / "journal").iterdir()) and list(tmp_path.rglob("*.parquet"))
    assert ids(tmp_path) == ["a"]
    TrafficLog(str(tmp_path)).close()
    assert not list((tmp_path / "journal").iterdir())
    assert len(list(tmp_path.rglob("*.parquet"))) == 1 and ids(tmp_path) == ["a"]


def test_writers_beside_each_other_do_not_collide(tmp_path: Path) -> None:
    logs = [TrafficLog(str(tmp_path), roll_rows=7) for _ in range(3)]
    for n in range(60):
        logs[n % 3].append(row(f"{n}", user="ann"))
        if n == 30:
            assert all(log.flush() for log in logs)
            assert len(set(ids(tmp_path))) == 31
    for log in logs:
        log.close()
    rows = list(read_traffic(str(tmp_path)))
    assert sorted(int(found.id) for found in rows) == list(range(60))
    assert len({found.user for found in rows}) == 1  # one salt


def test_a_segment_that_is_taken_for_abandoned_before_it_is_owned_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    taken: list[int] = []

    def late(handle: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not taken:  # another writer's roller comes between the file and its lock
            taken.append(handle)
            for found in abandoned(tmp_path):
                found.delete()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    segment = new_segment(tmp_path, f"{host()}-1-a", 1)
    segment.append([b"{}\n"])
    assert taken and segment_paths(tmp_path) == [segment.path] and segment.path.read_bytes() == b"{}\n"
    segment.close()


def test_a_full_disk_stops_no_request_and_rows_are_written_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = threading.Event()
    real = os.pwrite

    def pwrite(handle: int, data: bytes, at: int) -> int:
        if full.is_set():
            real(handle, data[:10], at)
            raise OSError(28, "No space left on device")
        return real(handle, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with caplog.at_level(logging.WARNING), TrafficLog(str(tmp_path), most_waiting=20) as log:
        log.append(row("before"))
        assert log.flush()
        full.set()
        taken = [n for n in range(100) if log.append(row(str(n)))]
        assert not log.flush(timeout_s=0.5)
        taken += [n for n in range(100, 200) if log.append(row(str(n)))]
        assert log.counts.dropped == 200 - len(taken) > 0
        assert ids(tmp_path) == ["before"]  # no half a line
        full.clear()
        assert log.flush()
    assert sorted(ids(tmp_path)) == sorted(["before", *map(str, taken)])
    assert "No space left" in caplog.text and "dropped" in caplog.text


def test_rows_that_come_faster_than_they_are_written_are_dropped_and_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow, real = threading.Event(), os.pwrite

    def pwrite(handle: int, data: bytes, at: int) -> int:
        slow.wait(20)
        return real(handle, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with caplog.at_level(logging.WARNING), TrafficLog(str(tmp_path), most_waiting=2) as log:
        until(lambda: not log.append(row("more")))
        slow.set()
        until(lambda: "more rows come in than can be kept" in caplog.text)


def test_rows_stay_in_the_journal_while_the_store_takes_no_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ResourceError("the store is away")

    with TrafficLog(str(tmp_path), roll_rows=2) as log, monkeypatch.context() as patched:
        patched.setattr(places.Place, "put", refused)
        for n in range(5):
            log.append(row(str(n)))
        assert log.flush()
        assert sorted(ids(tmp_path)) == list("01234") and not list(tmp_path.rglob("*.parquet"))
    assert sorted(ids(tmp_path)) == list("01234") and not list((tmp_path / "journal").iterdir())


def test_a_store_that_hangs_keeps_no_row_from_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    put = places.Place.put

    def slow(self: places.Place, name: str, data: bytes) -> None:
        if name.endswith(".parquet"):
            free.wait(30)
        put(self, name, data)

    monkeypatch.setattr(places.Place, "put", slow)
    with TrafficLog(str(tmp_path), roll_rows=2) as log:
        for n in range(9):
            log.append(row(str(n)))
            assert log.flush()
        assert sorted(ids(tmp_path)) == list("012345678")
        free.set()
    assert sorted(ids(tmp_path)) == list("012345678") and not list((tmp_path / "journal").iterdir())


def test_an_object_store_takes_parts_and_loses_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "s3_server.py")], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "XDG_CACHE_HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    folder = f"s3://bucket/traffic?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    old = row("old", at=(NOW - timedelta(days=40)).timestamp())
    try:
        assert not is_traffic(folder)
        with TrafficLog(folder) as log:
            log.append(old)
            log.append(row("new", user="ann"))
            assert log.flush()
            assert [found.id for found in read_traffic(folder)] == ["old", "new"]  # on the writer's own host
        assert not list((tmp_path / "slm_ray").rglob("*.jsonl"))
        with TrafficLog(folder, keep_days=30) as log:
            log.append(row("newer", user="ann"))
        rows = list(read_traffic(folder))
        assert {found.id for found in rows} == {"new", "newer"} and len({found.user for found in rows}) == 1
        httpx.put(f"http://127.0.0.1:{port}/-/away", trust_env=False)
        with pytest.raises(StoreAway, match=r"traffic\.json cannot be read .*look at the network"):
            is_traffic(folder)  # False would make plain rows of it
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_a_place_that_cannot_be_asked_is_no_folder_of_plain_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    below = [str(tmp_path / name) for name in ("none", "loop/x", "x" * 300)]
    assert not any(map(is_traffic, [*below, "~nobody-of-that-name/x", "\0", "\ud800", "gopher://x/y"]))

    def refused(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(DataError, match=r"traffic\.json cannot be looked at: Permission denied; see who"):
        is_traffic(str(tmp_path))


def test_a_row_that_cannot_be_written_is_counted_and_ends_nothing(tmp_path: Path) -> None:
    deep: object = "end"
    for _ in range(100_000):
        deep = [deep]
    with TrafficLog(str(tmp_path)) as log:
        log.append(row("deep", metadata=deep))
        log.append(row("set", metadata={1, 2}, stop={"a": object()}))
        log.append(row("surrogate", text="\ud800!", note="\udfff"))
        log.append(row("nan", temperature=float("nan")))
        log.append(row("good"))
        log.append(row("never", at=float("nan")))
        log.append(row("far", at=1e20))
        log.append(
            dataclasses.replace(row("model"), answers=(dataclasses.replace(row("m").answers[0], model="\udc80"),))
        )
        log.append(dataclasses.replace(row("wide"), serial=2**64))  # the journal takes it, a part cannot
        assert log.flush()
        assert log.counts.unwritable == 4
    assert ids(tmp_path) == ["surrogate", "nan", "good", "model"]
    assert not list((tmp_path / "journal").iterdir())


def test_a_parquet_file_of_something_else_is_no_part(tmp_path: Path) -> None:
    TrafficLog(str(tmp_path)).close()
    write_parquet(tmp_path / "date=2026-01-01" / "other.parquet", {"id": "string"}, [["a"]])
    with pytest.raises(DataError, match=r"other.parquet: it is a Parquet file, and none of a traffic log"):
        ids(tmp_path)


def test_days_that_are_over_are_deleted_whole_and_come_back_from_no_journal(tmp_path: Path) -> None:
    old = (NOW - timedelta(days=40)).timestamp()
    with TrafficLog(str(tmp_path)) as log:
        log.append(row("old", at=old))
        log.append(row("new"))
    assert ids(tmp_path) == ["old", "new"]
    with TrafficLog(str(tmp_path), keep_days=30) as log:
        log.append(row("older", at=old - 86_400))
    assert ids(tmp_path) == ["new"]
    assert len([child for child in tmp_path.iterdir() if child.is_dir()]) == 2  # today's and the journal's


@pytest.mark.parametrize("damage", [b"PAR1 no more", b""])
def test_a_damaged_part_is_named_or_left_out_and_counted(tmp_path: Path, damage: bytes) -> None:
    for name in "ab":
        with TrafficLog(str(tmp_path)) as log:
            log.append(row(name))
    part = next(iter(sorted(tmp_path.rglob("*.parquet"))))
    part.write_bytes(damage or part.read_bytes()[:-40])
    with pytest.raises(DataError, match=part.name):
        ids(tmp_path)
    bad: list[DataError] = []
    assert len(list(read_traffic(str(tmp_path), skip_bad=bad.append))) == 1 and len(bad) == 1


def test_a_line_of_another_version_is_named(tmp_path: Path) -> None:
    TrafficLog(str(tmp_path)).close()
    (tmp_path / "journal").mkdir(exist_ok=True)
    (tmp_path / "journal" / "x-1-000001.jsonl").write_text('{"schema_version": 9, "kind": "request"}\n[1]\n')
    bad: list[DataError] = []
    assert not list(read_traffic(str(tmp_path), skip_bad=bad.append))
    assert "000001.jsonl:1: schema_version is 9" in str(bad[0]) and len(bad) == 2


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no traffic log"):
        ids(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        TrafficLog(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="secret"):
        TrafficLog("s3://key:hidden@bucket/traffic")


def test_nothing_that_was_to_be_taken_out_reaches_the_disk(tmp_path: Path) -> None:
    secrets = [
        "ann.b@example.co.uk", "4111 1111 1111 1111", "sk-abcdefghijklmnop1234", "192.168.10.77", "2001:db8::ff00:42",
        "+49 151 2345678", "EMP-778812", "user-ann", "ghp_abcdefghij0123456789abcd",
    ]  # fmt: skip
    settings = Traffic(folder=str(tmp_path), patterns={"employee": r"EMP-\d+"})
    with TrafficLog.of(settings) as log:
        for name in ("a", "b"):
            text = f"mail {secrets[0]} card {secrets[1]} key {secrets[2]} from {secrets[3]}, {secrets[4]}"
            parts = [{"type": "text", "text": f"call {secrets[5]} or {secrets[6]}, {secrets[8]}"}]
            turn = {"role": "user", "content": parts}
            sent = row(
                name,
                text=text,
                user="user-ann",
                messages=[turn],
                metadata={secrets[0]: text},
                safety_identifier="user-ann",
            )
            log.append(sent)
            log.append(Feedback(id=name, at=NOW.timestamp(), answer=text))
        assert log.flush()
        assert not [secret for secret in secrets if secret in disk_text(tmp_path)]
    on_disk = disk_text(tmp_path)
    assert not [secret for secret in secrets if secret in on_disk]
    assert all(f"[{name}]" in on_disk for name in ("email", "card", "api_key", "ip", "phone", "employee"))
    assert (tmp_path / "salt").stat().st_mode & 0o777 == 0o600
    first, second = read_traffic(str(tmp_path))
    assert first.user and first.user == second.user and "safety_identifier" not in first.request


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("ask ann@b.co. Or ip:10.0.0.1.", "ask [email]. Or ip:[ip]."), ("from fe80::1, ::ffff:1.2.3.4.", "from [ip], [ip]."),
        ("1:2:3:4:5:6:7:8", "[ip]"), ("(555) 123-4567 or 0151 2345678", "[phone] or [phone]"),
        ("Authorization: BEARER abcdefghijklmnop.qrs", "Authorization: [api_key]"), ("4111-1111-1111-1111.", "[card]."),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2QT4", "[api_key]"), ("AKIAIOSFODNN7EXAMPLE", "[api_key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nx", "[api_key]\nx"),
        ("data:image/png;base64,AAAA", "[data]"),
    ],
)  # fmt: skip
def test_what_is_found_becomes_its_name(text: str, left: str) -> None:
    assert Redaction().text(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-01-05 at 12:30:45 we sold 12,500 for 3.14", "order 4111111111111112", "std::vector a::b",
        "version 10.2.3 of 1.2.3", "call get_user(id=12345678901)", "a @ b, @name", '{"total": 20240105, "n": [1, 2, 3]}',
        "0.5 0.25 0.125", "task-abcdefghijklmnopqrstuvwx", "10:15 :: 256.1.1.300", "ISBN 978-3-16-148410-0",
    ],
)  # fmt: skip
def test_what_only_looks_alike_stays(text: str) -> None:
    assert Redaction().text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000,
        "::" * 100_000,
        "a::" * 70_000,
        "1 " * 100_000,
        "a@" * 100_000,
        "-----BEGIN PRIVATE KEY-----" * 5_000,
        ":1" * 100_000,
        "sk-" * 50_000,
        "0-" * 100_000,
    ],
)
def test_no_text_holds_a_pattern_up(text: str) -> None:
    redaction, began = Redaction(), time.process_time()
    redaction.text(text)
    assert time.process_time() - began < 5


def test_a_slow_pattern_of_a_user_withholds_the_text_and_holds_nothing_up(tmp_path: Path) -> None:
    redaction = Redaction(patterns={"slow": r"(?:a|aa)+$"})
    assert redaction.text("a" * 3000 + "!") == "[withheld]" and redaction.withheld == 1
    assert redaction.text("fine") == "fine"
    with TrafficLog(str(tmp_path), redaction=redaction) as log:
        log.append(row("a", text="a" * 3000 + "!"))
        assert log.flush() and log.counts.withheld == 2
    assert next(iter(read_traffic(str(tmp_path)))).answers[0].text == "[withheld]"


@pytest.mark.parametrize(
    ("names", "patterns", "message"),
    [
        (["mail"], {}, "did you mean 'email'"), ([], {"x": "("}, "no regular expression"), ([], {"x": "a*"}, "empty text"),
        ([], {"email": "a"}, "built-in"), ([], {"A B": "a"}, "lower-case"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_used_is_refused(names: list[str], patterns: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Redaction(names, patterns)


def test_without_text_hashes_and_counts_are_all_that_is_kept(tmp_path: Path) -> None:
    with TrafficLog.of(Traffic(folder=str(tmp_path), redact=("text",))) as log:
        for name in ("a", "b"):
            asked = row(name, text="a private answer", messages=[{"role": "user", "content": "a private question"}])
            log.append(dataclasses.replace(asked, fallback="http_400: a private question is too long"))
            log.append(Feedback(id=name, at=NOW.timestamp(), score=1.0, answer="a private remark"))
    assert "private" not in disk_text(tmp_path)
    first, second = read_traffic(str(tmp_path))
    assert first.answers[0].text is None and first.answers[0].chars == 16
    assert first.answers[0].digest == second.answers[0].digest and first.request["digest"] == second.request["digest"]
    assert first.request["max_tokens"] == 8 and first.feedback[0].score == 1.0
    assert first.fallback == "http_400"


def test_parts_are_read_by_any_parquet_reader(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    with TrafficLog(str(tmp_path)) as log:
        log.append(row("a"))
        log.append(Feedback(id="a", at=NOW.timestamp(), score=1.0))
    rows = parquet.read_table(next(iter(tmp_path.rglob("*.parquet")))).to_pylist()
    assert [found["kind"] for found in rows] == ["request", "feedback"]
    assert json.loads(rows[0]["request"])["max_tokens"] == 8 and rows[0]["answers"][0]["model"] == "gpt-5@2026"
