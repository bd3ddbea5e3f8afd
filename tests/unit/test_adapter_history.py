"""Aliases and their history: what clients get by which name, whoever writes, dies or damages what and when."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from adapter_files import publish, trained
from typer.testing import CliRunner

from slm_ray import adapters
from slm_ray.adapters.history import HISTORY
from slm_ray.cli.app import app
from slm_ray.errors import AdapterError, ConfigError, DataError, ResourceError, SlmRayError
from slm_ray.serving.adapter_cache import ServedNames


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


def published(root: Path, fill: int, *, name: str = "structured", **changed: Any) -> str:
    source = root.parent / f"out-{name}-{fill}"
    if not source.is_dir():
        trained(source, fill=fill)
    return publish(source, root, "f" * 32, name=name, **changed).id


def aliases(root: Path) -> dict[str, str]:
    return adapters.promotions(root).aliases


def test_a_name_stands_for_what_was_promoted_last_and_a_roll_back_for_what_it_was_before(root: Path) -> None:
    first, second, third = (published(root, fill) for fill in (2, 3, 4))
    adapters.promote(root, first)
    assert aliases(root) == {"structured": first}, "its track's name when none is given"
    entry = adapters.promote(root, second, alias="structured", reason="better on 200 rows")
    assert (entry.before, entry.adapter, entry.reason) == (first, second, "better on 200 rows")
    assert "@" in entry.by and entry.at.endswith("+00:00")
    adapters.promote(root, third)
    adapters.promote(root, "structured", alias="live")  # by alias, too
    assert aliases(root) == {"live": third, "structured": third}
    assert adapters.roll_back(root, "structured").adapter == second
    assert adapters.roll_back(root, "structured").adapter == first
    adapters.promote(root, third)
    assert adapters.roll_back(root, "structured").adapter == first
    withdrawn = adapters.roll_back(root, "structured")
    assert (withdrawn.adapter, withdrawn.before) == (None, first)
    assert aliases(root) == {"live": third}
    with pytest.raises(AdapterError, match=r"nothing is promoted as 'structured'; aliases: live"):
        adapters.roll_back(root, "structured")


def test_the_history_is_only_ever_appended_to(root: Path) -> None:
    first, second = published(root, 2), published(root, 3)
    lines: list[str] = []
    for step in (
        lambda: adapters.promote(root, first), lambda: adapters.promote(root, second), lambda: adapters.roll_back(root, "structured"),
        lambda: adapters.delete(root, second),
    ):  # fmt: skip
        step()
        now = (root / HISTORY).read_text().splitlines()
        assert now[:-1] == lines
        lines = now
    adapters.promote(root, first)  # what it stands for already
    assert (root / HISTORY).read_text().splitlines() == lines
    assert [entry.action for entry in adapters.promotions(root).entries] == ["promote", "promote", "rollback", "delete"]


@pytest.mark.parametrize("alias", ["", "a b", "../x", "a/b", "a:b", "a@b", ".hidden", "new\nline", "é", "x" * 81, "-x"])
def test_a_name_that_no_client_can_ask_for_is_refused(root: Path, alias: str) -> None:
    with pytest.raises(ConfigError, match="is no name that a client can ask for"):
        adapters.promote(root, published(root, 2), alias=alias)
    assert not (root / HISTORY).exists()


def test_an_alias_never_hides_an_adapter(root: Path) -> None:
    first, second = published(root, 2), published(root, 3)
    for taken, reason in (
        (second, "looks like an adapter's id"),
        ("by-hand", "name of a folder"),
        ("linked", "folder"),
    ):
        (root / "by-hand").mkdir(exist_ok=True)
        if not os.path.lexists(root / "linked"):
            (root / "linked").symlink_to("nowhere")
        with pytest.raises(ConfigError, match=reason):
            adapters.promote(root, first, alias=taken)
    adapters.promote(root, first, alias="later")
    names = ServedNames(root)
    assert names.resolve("later") == first
    (root / "later").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (root / "later" / file).write_bytes((root / first / file).read_bytes())
    assert names.resolve("later").startswith("later@"), "a folder that is put there answers to its own name"
    assert names.listed()["later"].startswith("later@")


def test_the_endpoint_sees_every_change_at_the_next_request(root: Path) -> None:
    first, second = published(root, 2), published(root, 3)
    names = ServedNames(root)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        names.resolve("live")
    adapters.promote(root, first, alias="live")
    assert names.resolve("live") == first == names.resolve(first)
    adapters.promote(root, second, alias="live")
    assert names.resolve("live") == second
    assert names.listed() == {first: first, second: second, "live": second}
    adapters.roll_back(root, "live")
    assert names.resolve("live") == first
    for absent in ("live@01234567", "LIVE", "structured", "live/", "../live", ""):
        with pytest.raises(FileNotFoundError):
            names.resolve(absent)
    adapters.delete(root, first, force=True)
    with pytest.raises(FileNotFoundError, match=f"stands for {first}, which was deleted"):
        names.resolve("live")
    assert names.listed() == {second: second}


def test_a_damaged_history_is_named_and_adapters_go_on(root: Path) -> None:
    first = published(root, 2)
    adapters.promote(root, first, alias="live")
    names = ServedNames(root)
    (root / HISTORY).write_text('{"action": "promote"}\n' + (root / HISTORY).read_text())
    with pytest.raises(DataError, match=rf"{HISTORY}:1: at: Field required; mend the line"):
        names.resolve("live")
    assert names.resolve(first) == first
    assert names.listed() == {first: first}
    for step in (lambda: adapters.promote(root, first), lambda: adapters.roll_back(root, "live")):
        with pytest.raises(DataError, match=f"{HISTORY}:1"):
            step()
    (root / HISTORY).write_text("null\n")
    with pytest.raises(DataError, match=f"{HISTORY}:1: NoneType instead of an object"):
        adapters.promotions(root)


def test_a_line_that_was_cut_short_at_any_byte_is_not_there(root: Path) -> None:
    first, second = published(root, 2), published(root, 3)
    adapters.promote(root, first)
    whole = (root / HISTORY).read_bytes()
    adapters.promote(root, second)
    both = (root / HISTORY).read_bytes()
    for cut in range(len(whole), len(both)):
        (root / HISTORY).write_bytes(both[:cut])
        assert aliases(root) == {"structured": first}
    adapters.promote(root, second)
    assert aliases(root) == {"structured": second}
    assert adapters.promotions(root).before("structured") == [first]


def test_a_promoter_killed_at_any_moment_leaves_the_old_or_the_new(root: Path) -> None:
    first, second = published(root, 2), published(root, 3)
    adapters.promote(root, first)
    script = (
        "import os, sys\nfrom slm_ray import adapters, storage\n"
        "step = 0\n"
        "def dying(call):\n"
        "    def dies(*arguments):\n"
        "        global step\n"
        "        step += 1\n"
        "        if step == int(sys.argv[1]): os.kill(os.getpid(), 9)\n"
        "        return call(*arguments)\n"
        "    return dies\n"
        "for name in ('ftruncate', 'pwrite', 'fsync'): setattr(os, name, dying(getattr(os, name)))\n"
        f"adapters.promote({str(root)!r}, sys.argv[2])\n"
    )
    seen = []
    for moment in range(1, 6):
        done = subprocess.run(
            [sys.executable, "-c", script, str(moment), second], capture_output=True, text=True, check=False
        )
        seen.append(aliases(root)["structured"])
        assert seen[-1] in (first, second)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert seen[-1] == second


def test_many_promoters_at_once_are_all_in_the_history(root: Path) -> None:
    ids = [published(root, fill) for fill in range(2, 10)]
    threads = [threading.Thread(target=adapters.promote, args=(root, adapter)) for adapter in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = adapters.promotions(root).entries
    assert sorted(entry.adapter or "" for entry in entries) == sorted(ids)
    assert [entry.before for entry in entries] == [None, *(entry.adapter for entry in entries[:-1])]


def test_what_is_promoted_or_led_back_to_is_not_deleted_unless_forced(root: Path) -> None:
    first, second, third = (published(root, fill) for fill in (2, 3, 4))
    for adapter in (first, second, third):
        adapters.promote(root, adapter)
    with pytest.raises(
        AdapterError, match=r"it is promoted as 'structured'; promote another one, roll back, or add --force"
    ):
        adapters.delete(root, third)
    with pytest.raises(AdapterError, match="a roll-back of 'structured' leads to it"):
        adapters.delete(root, second)
    adapters.delete(root, first)
    adapters.delete(root, second, force=True)
    assert adapters.adapter_ids(root) == [third]
    assert sorted(path.name for path in root.iterdir()) == [HISTORY, third]
    assert adapters.roll_back(root, "structured").adapter is None, "what was deleted is passed over"
    adapters.delete(root, third)
    with pytest.raises(AdapterError, match=f"no adapter '{third}'.*known: none"):
        adapters.delete(root, third)
    assert published(root, 4) == third, "the same content may be published again"


def test_a_roll_back_always_leads_to_something_else_and_that_is_not_deleted(root: Path) -> None:
    oldest, first, second = (published(root, fill) for fill in (2, 3, 4))
    for adapter in (oldest, first, second, first):
        adapters.promote(root, adapter)
    adapters.delete(root, second, force=True)
    with pytest.raises(AdapterError, match="a roll-back of 'structured' leads to it"):
        adapters.delete(root, oldest)
    assert adapters.roll_back(root, "structured").adapter == oldest, "what it stands for already is no way back"
    assert aliases(root) == {"structured": oldest}
    assert adapters.roll_back(root, "structured").adapter is None


def test_a_damaged_adapter_hides_none_of_the_newest(root: Path) -> None:
    whole, damaged = published(root, 2), published(root, 3, name="other")
    path = root / damaged / "manifest.json"
    path.chmod(0o644)
    path.write_text("{", encoding="utf-8")
    assert adapters.newest(root) == [whole]


def test_a_damaged_adapter_is_not_promoted_and_may_be_deleted(root: Path) -> None:
    first, second = published(root, 2), published(root, 3)
    for adapter, name in ((first, "adapter_model.safetensors"), (second, "manifest.json")):
        path = root / adapter / name
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(AdapterError, match=f"{name} is damaged"):
            adapters.promote(root, adapter)
        adapters.delete(root, adapter)
    assert not [entry for entry in adapters.promotions(root).entries if entry.action == "promote"]


def test_a_full_disk_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = published(root, 2), published(root, 3)
    adapters.promote(root, first)
    before = (root / HISTORY).read_bytes()
    monkeypatch.setattr(os, "pwrite", lambda handle, line, at: 1)
    for step in (lambda: adapters.promote(root, second), lambda: adapters.roll_back(root, "structured")):
        with pytest.raises(ResourceError, match="No space left on device; nothing was changed"):
            step()
    assert (root / HISTORY).read_bytes() == before
    assert adapters.adapter_ids(root) == sorted([first, second])
    assert aliases(root) == {"structured": first}


def test_a_full_disk_does_not_keep_from_deleting(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line does not fit; without the adapter it does."""
    first, second = published(root, 2), published(root, 3)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *line: write(*line) if not list(root.glob(".deleted-*")) else 1)
    adapters.delete(root, first)
    assert [entry.adapter for entry in adapters.promotions(root).entries] == [first]
    monkeypatch.setattr(os, "pwrite", lambda *line: 1)
    with pytest.raises(ResourceError, match=f"{second} is deleted, but the history does not say so"):
        adapters.delete(root, second)
    assert [path.name for path in root.iterdir()] == [HISTORY]


def test_what_a_killed_deletion_left_goes_with_the_next(root: Path) -> None:
    first, second = published(root, 2), published(root, 3)
    (root / first).rename(root / f".deleted-{first}")
    adapters.delete(root, second)
    assert [path.name for path in root.iterdir()] == [HISTORY]


def run(*arguments: str, root: Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["adapters", *arguments, "--adapters_dir", str(root)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_commands_do_and_say_it(root: Path) -> None:
    assert run("list", root=root)[2] == f"nothing is published in {root}; slm-ray train does it\n"
    first, second = published(root, 2, metrics={"loss_last": 0.25}, recipe={"learning_rate": 2e-4}), published(root, 3)
    assert f"structured is {first} (before: nothing)" in run("promote", first, root=root)[1]
    status, said, _ = run("promote", second, "--as", "live", "--reason", "canary went well", root=root)
    assert status == 0 and said.endswith(": canary went well\n")
    table = run("list", root=root)[1].splitlines()
    assert table[0].split("  ")[0] == "id" and len(table) == 3
    assert {line.split()[0]: line.split()[-1] for line in table[1:]} == {first: "structured", second: "live"}
    lines = [json.loads(line) for line in run("list", "--json", root=root)[1].splitlines()]
    assert [line["promoted_as"] for line in lines if line["id"] == first] == [["structured"]]
    shown = run("show", "structured", root=root)[1]
    for part in (first, "learning_rate 0.0002", "loss_last 0.25", "promoted as structured", "promote: structured is"):
        assert part in shown
    assert run("check", "all", root=root)[1].count("ok: files, tensors; its base tiny is not here") == 2
    assert run("delete", second, root=root)[0] == 2
    status, _, warned = run("delete", second, "--force", root=root)
    assert status == 0 and "'live' stands for it still" in warned
    assert f"'live' stands for {second}, which is not there" in run("list", root=root)[2]
    assert f"live is nothing (before: {second})" in run("rollback", "live", root=root)[1]


def test_a_check_tells_the_damaged_from_the_whole(root: Path, tmp_path: Path) -> None:
    first, second = published(root, 2), published(root, 3)
    path = root / first / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-9])
    status, said, wrong = run("check", "all", root=root)
    assert status == 2 and second in said and first not in said
    assert wrong == f"error: {path} is damaged (not the bytes that were published); delete {first} and publish again\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "structured-000000000000"), "known: structured-"), (("show", "nope"), "no adapter 'nope'"),
        (("promote", "nope"), "no adapter 'nope'"), (("rollback", "nope"), "slm-ray adapters promote ID --as NAME"),
        (("delete", "nope"), "no adapter id"), (("check", "../up"), "no adapter '../up'"),
        (("promote", "{id}", "--as", "a\nb"), r"the alias 'a\nb'"),
    ],
)  # fmt: skip
def test_what_a_person_can_mend_is_one_line(root: Path, arguments: tuple[str, ...], said: str) -> None:
    adapter = published(root, 2)
    status, _, error = run(*(argument.format(id=adapter) for argument in arguments), root=root)
    assert status == 2 and error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (root / HISTORY).exists()


def test_ten_thousand_adapters_are_listed_and_one_that_is_damaged_hides_none(root: Path) -> None:
    whole = adapters.load_manifest(root, published(root, 2))
    for n in range(10_000):
        home = root / f"many-{n:012x}"
        home.mkdir()
        plain = dataclasses.asdict(whole) | {"id": home.name, "created": f"2026-01-01T00:00:{n % 60:02}+00:00"}
        (home / "manifest.json").write_text(json.dumps(plain) if n else "{")
    status, said, warned = run("list", root=root)
    assert status == 0 and len(said.splitlines()) == 1 + 10_000
    assert warned.count("\n") == 1 and "many-000000000000/manifest.json is damaged" in warned
    with pytest.raises(SlmRayError) as caught:
        adapters.load_manifest(root, "many-ffffffffffff")
    assert len(str(caught.value)) < 1500 and "more (slm-ray adapters list)" in str(caught.value)
