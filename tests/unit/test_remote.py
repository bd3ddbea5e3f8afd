"""Folders in object storage: a working copy that ships what is written, one owner at a time, and what happens when the store,
the host or the process goes away. Over HTTP from a server of S3's routes, or a folder where the store's manners do not matter."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm_ray import storage
from slm_ray.cli.commands import COMMANDS
from slm_ray.config import CompareConfig, EvaluateConfig, PrepareConfig
from slm_ray.errors import ConfigError, ResourceError
from slm_ray.remote import (
    StoreAway,
    address,
    at_hand,
    fetched,
    lease,
    one_file,
    open_store,
    shipping,
    shown_address,
    working_copy,
)
from slm_ray.remote import store as remote_store
from slm_ray.remote.lease import Lease
from slm_ray.remote.shipping import Shipper, whole_and_parts
from slm_ray.remote.store import Object, ObjectStore
from slm_ray.reports.candidates import turn_on_rows
from slm_ray.signals import SignalGuard
from slm_ray.verdict.candidates import Candidate
from tests.waiting import wait_for

SERVER = Path(__file__).parent / "s3_server.py"
SECRET = "hidden-0123"


class Server:
    """The bucket, in a process of its own, and how it answers."""

    def __init__(self, port: int) -> None:
        self.port = port

    def uri(self, prefix: str, bucket: str = "bucket") -> str:
        return f"s3://{bucket}/{prefix}?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{self.port}"

    def store(self, prefix: str) -> ObjectStore:
        return open_store(self.uri(prefix), setting="run_dir")

    def becomes(self, state: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("PUT", f"/-/{state}")
        connection.getresponse().read()
        connection.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    process = subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Server(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield running
    running.becomes("well")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Work as if on the host of that name: its disk is another one."""

    def on(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    on("first")
    return on


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "SHIPPED_EVERY_S", 0.1)
    monkeypatch.setattr(shipping, "_AGAIN_S", 0.1)
    monkeypatch.setattr(shipping, "_SETTLES_S", 0.0)
    monkeypatch.setattr(lease, "_LOOKS_EVERY_S", 0.1)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


# Opening


@pytest.mark.parametrize(
    ("uri", "says"),
    [("s3://key:hidden-0123@bucket/x", "holds a secret"), ("s3://bucket/x?secret_key=hidden-0123", "holds a secret"),
     ("s3:///x", "names no bucket"), ("s3://bucket/x?retries=3", "unknown options retries"),
     ("s3://bucket/x?aws_secret=hidden-0123", "unknown options aws_secret"),
     ("gopher://bucket/x", "no address of a store"), ("s3://[bucket/x", "no address of a store")],
)  # fmt: skip
def test_addresses_that_cannot_be_are_refused_and_show_no_secret(uri: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        open_store(uri, setting="run_dir")
    assert SECRET not in str(caught.value) and str(caught.value).startswith("run_dir")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environment_names_the_store_and_an_address_that_names_one_comes_first(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    open_store.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
    open_store("s3://bucket/named", setting="run_dir").write("x", b"here")
    assert server.store("named").read("x") == b"here"
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert server.store("named").read("x") == b"here"
    open_store.cache_clear()
    for bad in (f"127.0.0.1:{server.port}", f"http://user:{SECRET}@127.0.0.1:{server.port}"):
        monkeypatch.setenv(name, bad)
        with pytest.raises(ConfigError, match=f"{name} is '127.0.0.1:{server.port}', which is not http://") as caught:
            open_store("s3://bucket/named", setting="run_dir")
        assert SECRET not in str(caught.value)


def test_what_cannot_work_is_refused_before_the_block(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(uri: str, says: str) -> None:
        with pytest.raises((ConfigError, ResourceError), match=says) as caught, working_copy(uri, setting="run_dir"):
            pytest.fail("it must not begin")
        assert SECRET not in str(caught.value) and "\n" not in str(caught.value)

    refused(server.uri("run", bucket="none"), "there is no bucket 'none'; make it")
    server.becomes("full")
    refused(server.uri("full"), "cannot be written .* refuses these credentials")
    server.becomes("away")
    refused(server.uri("away"), "look at the network")
    server.becomes("well")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    refused(server.uri("wrong").replace("us-east-1", "eu-west-1"), "refuses these credentials: set AWS_ACCESS_KEY_ID")
    refused("s3://bucket/x?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:9", "look at the network")


# Working copies


def test_what_one_host_writes_another_one_goes_on_with(server: Server, host: Callable[[str], None]) -> None:
    uri, store = server.uri("both"), server.store("both")
    with working_copy(uri, setting="run_dir") as first:
        storage.write_json(first / "report.json", {"n": 1})
        (first / "log").mkdir()
        append(first / "log" / "run.jsonl", "1\n")
        (first / "log" / ".mark").touch()
        storage.write_text(first / "gone.json", "{}")
        wait_for(lambda: {"report.json", "log/run.jsonl", "gone.json"} <= store.listing().keys(), within_s=30)
        assert address(first / "log" / "run.jsonl") == uri.replace("both?", "both/log/run.jsonl?")
        assert shown_address(first) == "s3://bucket/both"
        (first / "gone.json").unlink()
    host("second")
    with working_copy(uri, setting="run_dir") as second:
        assert second != first and (second / "log" / "run.jsonl").read_text() == "1\n"
        append(second / "log" / "run.jsonl", "2\n")
        storage.write_json(second / "report.json", {"n": 2})
    host("first")
    with working_copy(uri, setting="run_dir") as again:
        assert again == first and (again / "log" / "run.jsonl").read_text() == "1\n2\n"
        assert storage.read_json(again / "report.json") == {"n": 2}
    assert {name for name in store.listing() if not name.startswith(".")} == {"report.json", "log/run.jsonl"}
    assert address("/tmp/elsewhere/x") == "/tmp/elsewhere/x"


class Cut(Exception):
    """The process ends here."""


@contextlib.contextmanager
def killed(uri: str) -> Iterator[tuple[Path, Shipper]]:
    """A working copy whose process ends without another word at the end of the block: no last files, no claim given up."""
    known: list[Shipper] = []
    enter = Shipper.__enter__

    def entered(self: Shipper) -> Shipper:
        known.append(self)
        return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shipper, "__enter__", entered)
        patch.setattr(Shipper, "__exit__", lambda *_: None)
        patch.setattr(Lease, "release", lambda _: None)
        with working_copy(uri, setting="run_dir") as files:
            yield files, known[0]
    assert Shipper.__enter__ is enter


def test_a_killed_host_loses_what_it_had_not_shipped_and_brings_it_back_when_it_lives_again(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "_WHOLE_BYTES", 8)
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 1.0)
    uri, store = server.uri("killed"), server.store("killed")
    with killed(uri) as (files, shipper):
        log = files / "shard-1.jsonl"
        for n in range(4):
            append(log, f"line {n}\nhal")
            shipper.ship()
            append(log, "f\n")
        append(log, "never shipped\n")
    assert len([name for name in store.listing() if ".parts/" in name]) == 3
    host("second")
    with working_copy(uri, setting="run_dir") as other:
        kept = (other / "shard-1.jsonl").read_text()
        assert kept == "line 0\nhalf\nline 1\nhalf\nline 2\nhalf\nline 3\n", "whole lines, none of them twice"
        append(other / "shard-2.jsonl", "another run\n")
    assert not [name for name in store.listing() if ".parts/" in name], "one object for each file at the end"
    host("first")
    with working_copy(uri, setting="run_dir") as again:
        assert (again / "shard-1.jsonl").read_text() == f"{kept}half\nnever shipped\n", "an answer that was paid for"
        assert (again / "shard-2.jsonl").read_text() == "another run\n"
    assert store.read("shard-1.jsonl").decode() == f"{kept}half\nnever shipped\n"


def test_the_same_host_goes_on_at_once_after_a_kill(
    server: Server, host: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    uri = server.uri("same")
    with killed(uri) as (files, _):
        append(files / "shard-1.jsonl", "a\n")
    with working_copy(uri, setting="run_dir") as files:
        assert (files / "shard-1.jsonl").read_text() == "a\n"
    assert "looking whether" not in capsys.readouterr().err
    assert server.store("same").read("shard-1.jsonl") == b"a\n"


def test_two_runs_at_once_are_refused(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWED_EVERY_S", 0.2)
    uri = server.uri("two")
    with working_copy(uri, setting="run_dir") as files:
        with pytest.raises(ResourceError, match="in use by process"), working_copy(uri, setting="run_dir"):
            pytest.fail("the same host")
        host("second")
        with (
            pytest.raises(ResourceError, match=r"s3://bucket/two is in use by process \d+ on"),
            working_copy(uri, setting="run_dir"),
        ):
            pytest.fail("another host")
        append(files / "a.jsonl", "1\n")
    with working_copy(uri, setting="run_dir") as files:
        assert (files / "a.jsonl").read_text() == "1\n"


def test_of_many_that_ask_at_once_at_most_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_LOOKS_EVERY_S", 0.01)
    monkeypatch.setattr(lease, "RENEWED_EVERY_S", 0.05)
    store = open_store(f"file://{tmp_path}/place", setting="run_dir")
    for _ in range(5):
        got: list[str] = []
        ready, over = threading.Barrier(6), threading.Barrier(6)

        def ask(got: list[str] = got, ready: threading.Barrier = ready, over: threading.Barrier = over) -> None:
            one = Lease(store, copy=str(threading.get_ident()))
            ready.wait()
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(ResourceError):
                    one.acquire(lambda line: None)
                    stack.enter_context(one.held(lambda error: got.append("lost")))
                    got.append("owner")
                over.wait()

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got in ([], ["owner"])
    assert not store.listing(lease.FOLDER)


def test_a_run_that_was_taken_for_dead_ends_and_writes_nothing_more(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 0.3)  # never renewed by then
    uri = server.uri("replaced")
    late = threading.Event()
    slept = threading.Timer(30, late.set)
    slept.daemon = True
    slept.start()
    with (
        SignalGuard(),  # as every command has: whoever starts one in the background may have SIGINT ignored
        pytest.raises(ResourceError, match=r"was taken over.* it lies in"),
        working_copy(uri, setting="run_dir") as files,
    ):
        storage.write_text(files / "who.json", "1")
        time.sleep(1.2)
        host("second")
        with working_copy(uri, setting="run_dir") as other:
            storage.write_text(other / "who.json", "2")
        storage.write_text(files / "who.json", "1 again")
        time.sleep(60)
    slept.cancel()
    assert not late.is_set(), "who sleeps is woken"
    assert server.store("replaced").read("who.json") == b"2"


def test_while_the_store_is_away_the_run_goes_on_and_catches_up(
    server: Server, host: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    uri, said = server.uri("gap"), ""

    def is_said(text: str) -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return text in said

    with working_copy(uri, setting="run_dir") as files:
        append(files / "a.jsonl", "1\n")
        wait_for(lambda: server.store("gap").about("a.jsonl"), within_s=30)
        for state in ("away", "torn"):
            server.becomes(state)
            append(files / "a.jsonl", f"{state}\n")
            wait_for(lambda: is_said("the run goes on from its copy"), within_s=30)
            server.becomes("well")
            wait_for(lambda: is_said("takes files again after"), within_s=30)
            assert said.count("goes on from its copy") == 1, "said once"
            said = ""
    assert server.store("gap").read("a.jsonl") == b"1\naway\ntorn\n"


def test_a_store_that_stays_away_loses_nothing_and_the_same_command_ships_it(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "_END_WAITS_S", 0.1)
    uri = server.uri("end")
    with (
        pytest.raises(
            ResourceError, match="lacks the last of what this run wrote; nothing is lost: it lies in"
        ) as caught,
        working_copy(uri, setting="run_dir") as files,
    ):
        append(files / "a.jsonl", "paid\n")
        server.becomes("away")
    assert str(files) in str(caught.value) and SECRET not in str(caught.value)
    server.becomes("well")
    with working_copy(uri, setting="run_dir"):
        pass
    assert server.store("end").read("a.jsonl") == b"paid\n"


def test_a_folder_is_sent_as_soon_as_the_store_takes_it_and_given_up_in_the_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "_AGAIN_S", 0.05)
    storage.write_text(tmp_path / "checkpoint" / "sub" / "a.bin", "a")
    store = server.store("sent")
    server.becomes("full")
    with pytest.raises(ResourceError, match="refuses these credentials"):
        store.send_all(tmp_path / "checkpoint", "one", within_s=0.1)
    back = threading.Timer(0.3, server.becomes, ["well"])
    back.start()
    store.send_all(tmp_path / "checkpoint", "one", within_s=60)
    back.join()
    assert store.read("one/sub/a.bin") == b"a"


def test_what_cannot_be_removed_is_said_and_what_is_not_there_is_removed(server: Server) -> None:
    store = server.store("rest")
    store.delete("none.json")
    store.delete_folder("none")
    store.write("a/one.json", b"{}")
    server.becomes("away")
    for remove, name in ((store.delete, "a/one.json"), (store.delete_folder, "a")):
        with pytest.raises(StoreAway, match=rf"rest/{name} cannot be .* look at the network"):
            remove(name)
    server.becomes("well")
    store.delete("a/one.json")
    assert store.about("a/one.json") is None


def test_an_error_of_the_job_is_not_hidden_by_one_of_the_store(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipping, "_STOPPED_WAITS_S", 0.1)
    with pytest.raises(ZeroDivisionError), working_copy(server.uri("error"), setting="run_dir") as files:
        storage.write_text(files / "a.json", "{}")
        server.becomes("away")
        raise ZeroDivisionError
    assert "warning:" in (said := capsys.readouterr().err) and str(files) in said


def test_a_disk_that_fails_ends_neither_the_shipping_nor_the_claim(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "RENEWED_EVERY_S", 0.05)
    send, fails = ObjectStore.send, threading.Event()

    def failing(self: ObjectStore, source: Path, name: str) -> None:
        if fails.is_set():
            raise OSError(5, "Input/output error")
        send(self, source, name)

    monkeypatch.setattr(ObjectStore, "send", failing)
    uri, store = server.uri("disk"), server.store("disk")

    def renewed() -> int:
        (claim,) = store.listing(lease.FOLDER)
        while not (body := store.read(claim)):
            time.sleep(0.01)  # this server is replacing it
        return int(json.loads(body)["renewed"])

    with working_copy(uri, setting="run_dir") as files:
        fails.set()
        append(files / "a.jsonl", "1\n")
        wait_for(lambda: "Input/output error" in capsys.readouterr().err, within_s=30)
        fails.clear()
        wait_for(lambda: store.about("a.jsonl"), within_s=30)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tempfile.TemporaryDirectory", lambda: (_ for _ in ()).throw(OSError(28, "full")))
            with pytest.raises(ResourceError, match=r"cannot read s3://bucket/disk/a\.jsonl by way of .*free the disk"):
                store.read("a.jsonl")
            time.sleep(0.3)
        before = renewed()
        wait_for(lambda: renewed() > before, within_s=30)


def test_half_of_a_line_that_its_writer_took_back_is_not_kept(server: Server, host: Callable[[str], None]) -> None:
    store = server.store("half")
    store.write("a.jsonl", b"one\nhal")
    store.write(f"a.jsonl.parts/{4:020d}", b"other\n")
    store.write(f"a.jsonl.parts/{10:020d}", b"more\n")
    with working_copy(server.uri("half"), setting="run_dir") as files:
        assert (files / "a.jsonl").read_text() == "one\nother\nmore\n"


def test_a_store_that_goes_away_ends_a_fetch_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def away(self: ObjectStore, name: str, target: Path) -> None:
        asked.append(name)
        time.sleep(0.01)
        raise StoreAway("away")

    monkeypatch.setattr(ObjectStore, "fetch", away)
    with pytest.raises(StoreAway):
        open_store(f"file://{tmp_path}/x", setting="run_dir").fetch_all(map(str, range(500)), tmp_path)
    assert len(asked) < 250


def test_no_object_is_fetched_to_a_place_outside_the_copy(server: Server, host: Callable[[str], None]) -> None:
    outside = {"/etc/x", "a//b", "../x", "a/../../x", "", "."}
    listing = dict.fromkeys({*outside, "a/b.json"}, Object(size_bytes=1, written_ns=1))
    assert whole_and_parts(listing)[0].keys() == {"a/b.json"}


def test_a_copy_that_was_cloned_to_another_host_is_another_copy(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = server.uri("clone")
    with killed(uri) as (files, _):
        append(files / "a.jsonl", "1\n")
    monkeypatch.setattr("socket.gethostname", lambda: "clone")
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 3.0)
    said: list[str] = []
    monkeypatch.setattr("slm_ray.remote.folder.say", said.append)
    with working_copy(uri, setting="run_dir") as files:
        assert (files / "a.jsonl").read_text() == "1\n", "lines that were never shipped are kept"
    assert any("looking whether that run lives" in line for line in said), "it is not taken for dead by its name"


def test_a_folder_that_is_called_files_is_no_copy_for_that(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "address.json", {"street": "Elm"})
    assert address(tmp_path / "files" / "x") == str(tmp_path / "files" / "x")


def test_a_relative_cache_folder_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert remote_store.cache_folder() == Path.home() / ".cache" / "slm_ray"


def test_a_missing_part_is_named_and_nothing_is_made_up(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "_WHOLE_BYTES", 1)
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 0.0)
    uri, store = server.uri("hole"), server.store("hole")
    with killed(uri) as (files, shipper):
        for line in ("a\n", "b\n", "c\n"):
            append(files / "a.jsonl", line)
            shipper.ship()
    store.delete(f"a.jsonl.parts/{2:020d}")
    host("second")
    time.sleep(0.01)
    with (
        pytest.raises(ResourceError, match=r"a\.jsonl\.parts: the bytes from 2 to 4 are not there"),
        working_copy(uri, setting="run_dir"),
    ):
        pytest.fail("it must not begin")


STEP = st.one_of(
    st.tuples(st.just("append"), st.sampled_from(["a\n", "bb\nhalf", "\n", "x" * 30 + "\n"])),
    st.tuples(st.just("replace"), st.sampled_from(["", "new\n", "other\nlines\n" * 5])),
    st.tuples(st.just("ship"), st.integers(0, 4)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=1, max_size=14))
def test_what_the_store_has_is_the_file_up_to_a_line_whatever_was_cut_where(
    steps: list[tuple[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`ship` with a number is cut after so many writes. The lines that a host would fetch then are the beginning of what the
    file was at one of the shippings; of one that was not cut, of the last."""
    folder = tmp_path_factory.mktemp("steps")
    store, files = open_store(f"file://{folder}/store", setting="run_dir"), folder / "files"
    files.mkdir()
    path, history, writes_left = files / "a.jsonl", [""], 10**9

    def counted(method: Callable[..., None]) -> Callable[..., None]:
        def call(self: ObjectStore, *arguments: object) -> None:
            nonlocal writes_left
            if not writes_left:
                raise Cut
            writes_left -= 1
            method(self, *arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipping, "_WHOLE_BYTES", 4)
        patch.setattr(ObjectStore, "send", counted(ObjectStore.send))
        patch.setattr(ObjectStore, "write", counted(ObjectStore.write))
        patch.setattr(ObjectStore, "delete", counted(ObjectStore.delete))
        owner = Lease(store, copy="c")
        owner.acquire(lambda line: None)
        shipper = Shipper(store, files, folder / "state.json", owner)
        for kind, what in steps:
            if kind == "append":
                append(path, str(what))
            elif kind == "replace":
                storage.write_text(path, str(what))
            else:
                history.append(path.read_text() if path.exists() else "")
                writes_left, is_cut = int(str(what)) or 10**9, True
                with contextlib.suppress(Cut):
                    shipper.ship()
                    is_cut = False
                has = whole_lines(assembled(store, folder))
                assert any(one.startswith(has) for one in history), (has, history)
                assert is_cut or has == whole_lines(history[-1])
        writes_left = 10**9
        shipper.ship(everything=True)
    if path.exists():
        assert assembled(store, folder) == path.read_text() and not whole_and_parts(store.listing())[1]


def whole_lines(text: str) -> str:
    return text[: text.rfind("\n") + 1]


def assembled(store: ObjectStore, folder: Path) -> str:
    from slm_ray.remote.folder import _assemble

    target = folder / "fetched"
    parts = whole_and_parts(store.listing())[1].get("a.jsonl", {})
    if not parts and store.about("a.jsonl") is None:
        return ""
    _assemble(store, "a.jsonl", parts, target)
    return (target / "a.jsonl").read_text()


# Reading


def test_what_is_read_is_fetched_with_what_lies_beside_it_and_again_when_it_changes(
    server: Server, host: Callable[[str], None]
) -> None:
    store = server.store("rows")
    for name, text in {
        "test.jsonl": b"1\n",
        "track.yaml": b"a",
        "deeper/x.jsonl": b"no",
        "huge.parquet": b"no",
    }.items():
        store.write(name, text)
    path = fetched(server.uri("rows/test.jsonl"), setting="examples")
    assert not (path.parent / "huge.parquet").exists()
    assert path.read_bytes() == b"1\n" and (path.parent / "track.yaml").read_bytes() == b"a"
    assert not (path.parent / "deeper").exists()
    store.write("test.jsonl", b"1\n2\n")
    store.delete("track.yaml")
    assert fetched(server.uri("rows/test.jsonl"), setting="examples").read_bytes() == b"1\n2\n"
    assert not (path.parent / "track.yaml").exists()
    with pytest.raises(ResourceError, match=r"examples s3://bucket/rows/none.jsonl: nothing is there"):
        fetched(server.uri("rows/none.jsonl"), setting="examples")


def test_files_of_one_folder_that_are_read_in_turn_are_fetched_once_each(
    server: Server, host: Callable[[str], None]
) -> None:
    store = server.store("sources")
    for name in ("train.parquet", "test.parquet"):
        store.write(name, b"1")
    path, other = (server.uri(f"sources/{name}.parquet") for name in ("train", "test"))
    copy = fetched(path, setting="source")
    number = copy.stat().st_ino  # a file that is fetched again is another one
    fetched(other, setting="test_source")
    assert fetched(path, setting="source") == copy and copy.stat().st_ino == number
    store.write("train.parquet", b"1, and more")
    fetched(other, setting="test_source")
    assert fetched(path, setting="source").read_bytes() == b"1, and more"


def test_lines_that_many_hosts_add_to_one_file_are_all_there(server: Server, host: Callable[[str], None]) -> None:
    server.store("shared").write("test.jsonl", b"1\n")
    for n, name in enumerate(("first", "second", "first")):
        host(name)
        path = fetched(server.uri("shared/test.jsonl"), setting="examples")
        with one_file(f"{path}.candidates.jsonl") as record, storage.growing_jsonl(record) as file:
            assert len(file.rows) == n
            file.append({"n": n})
    assert server.store("shared").read("test.jsonl.candidates.jsonl") == b'{"n": 0}\n{"n": 1}\n{"n": 2}\n'
    assert not server.store("shared").listing(".owner-test.jsonl.candidates.jsonl")


def test_a_line_that_the_store_did_not_take_is_nowhere(
    server: Server, host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 1.0)  # the claim could not be given up either
    uri = server.uri("line/test.jsonl")
    server.store("line").write("test.jsonl", b"1\n")
    path = fetched(uri, setting="examples")
    beside = Path(f"{path}.candidates.jsonl")
    with pytest.raises(StoreAway), one_file(beside) as record, storage.growing_jsonl(record) as file:
        file.append({"n": 0})
        server.becomes("full")
    server.becomes("well")
    assert not beside.exists() and not list(path.parent.glob(".*/*"))
    with one_file(beside) as record, storage.growing_jsonl(record) as file:
        assert not file.rows
        file.append({"n": 1})
        fetched(uri, setting="examples")  # another process looks meanwhile
        beside.unlink(missing_ok=True)
    assert server.store("line").read(beside.name) == b'{"n": 1}\n' == beside.read_bytes()


@pytest.mark.parametrize("state", ["away", "refuse", "full"])
def test_a_store_that_is_away_is_not_one_that_may_only_be_read(
    server: Server, host: Callable[[str], None], tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count of candidates that began anew in the run directory would give the next one the error of the first."""
    monkeypatch.setattr(remote_store, "_ATTEMPTS", 1)
    server.store(f"tried-{state}").write("test.jsonl", b"1\n")
    uri = server.uri(f"tried-{state}/test.jsonl")
    storage.write_text(tmp_path / "config.yaml", f"examples: {json.dumps(uri)}\n")
    rows, answers = ("00000001", "00000002"), ("x", "y")
    one = Candidate(llm="azure:big", slm="served:a", rule="paired", settings="s", rows=rows, answers=answers)
    with turn_on_rows(one, str(tmp_path), planned=None) as opened:
        opened.note("inconclusive", None)
        assert not opened.caveat
    server.becomes(state)
    other = dataclasses.replace(one, slm="served:b")
    refused = contextlib.nullcontext() if state == "full" else pytest.raises(StoreAway)  # full: it takes nothing
    with refused, turn_on_rows(other, str(tmp_path), planned=None) as opened:
        assert "may only be read" in opened.caveat and opened.turn.number == 2
    server.becomes("well")
    with turn_on_rows(other, str(tmp_path), planned=None) as opened:
        assert opened.turn.number == 2


# Commands


def rows(path: Path) -> str:
    path.write_text(
        "".join(
            json.dumps({"prompt": f"question {n}", "completion": json.dumps({"n": n % 4})}) + "\n" for n in range(60)
        )
    )
    return str(path)


def test_prepare_evaluate_and_compare_with_everything_in_a_bucket(
    server: Server, host: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = rows(tmp_path / "rows.jsonl"), server.uri("prepared")
    prepare = PrepareConfig(track="structured", source=source, out_dir=folder, validation_rows=10, test_rows=20)
    COMMANDS["prepare"].run(prepare)
    examples, train = (server.uri(f"prepared/{split}.jsonl") for split in ("test", "train"))
    arms = ("baseline:majority", "baseline:nearest")
    evaluation = EvaluateConfig(
        track="structured", examples=examples, models=arms, run_dir=server.uri("run"), train=train,
        declare={"rule": "paired", "delta": 0.02},
    )  # fmt: skip
    assert COMMANDS["evaluate"].run(evaluation) == 0
    host("second")
    compared = CompareConfig(report=server.uri("run"), llm=arms[0], slm=arms[1], rule="paired", delta=0.02)
    COMMANDS["compare"].run(compared)
    store = server.store("run")
    assert {
        "report.json",
        "comparison.json",
        "config.yaml",
        "answers.parquet",
        "declared.json",
    } <= store.listing().keys()
    assert "test.jsonl.candidates.jsonl" in server.store("prepared").listing(), "the candidates stand beside the rows"
    said = capsys.readouterr()
    assert "report: s3://bucket/run/report.json" in said.out and "s3://bucket/prepared/test.jsonl" in said.out
    written = b"".join(store.read(name) for name in store.listing()).decode("utf-8", "replace") + said.out
    assert SECRET not in written + said.err
    assert str(tmp_path) not in store.read("config.yaml").decode() + store.read("report.json").decode()
    host("third")
    with at_hand(compared.model_copy(update={"report": server.uri("run/report.json")}), writes=("report",)) as here:
        assert Path(here.report).name == "report.json" and Path(here.report).is_file(), "a file is no folder"
    assert COMMANDS["evaluate"].run(evaluation) == 0
    assert server.store("run").read("log/run.jsonl").count(b'"begin"') == 1, "nothing is asked again"


def test_a_bucket_that_is_not_there_is_refused_before_anything_is_asked(
    server: Server, host: Callable[[str], None], tmp_path: Path
) -> None:
    evaluation = EvaluateConfig(
        track="structured", examples=rows(tmp_path / "rows.jsonl"), models=("baseline:majority",),
        run_dir=server.uri("run", bucket="none"), train=rows(tmp_path / "train.jsonl"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"run_dir s3://none/run: there is no bucket"):
        COMMANDS["evaluate"].run(evaluation)


def test_a_run_that_is_terminated_ships_what_it_has(
    server: Server, host: Callable[[str], None], tmp_path: Path
) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from slm_ray.remote import working_copy\n"
        "from slm_ray.signals import SignalGuard\n"
        "with SignalGuard(), working_copy(sys.argv[1], setting='run_dir') as files:\n"
        "    (files / 'a.jsonl').write_text('1\\n')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", code, server.uri("term")], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGTERM)
    job.wait(timeout=60)
    job.stdout.close()
    assert server.store("term").read("a.jsonl") == b"1\n"
    assert not server.store("term").listing(lease.FOLDER), "its place is free"
