"""Adapters: published whole or not at all, named by content, refused over another base or when damaged."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from adapter_files import base, base_shapes, publish, safetensors, trained

from slm_ray import adapters
from slm_ray.errors import AdapterError
from slm_ray.records import TrainingEffort


@pytest.fixture
def shelf(tmp_path: Path) -> tuple[Path, Path, Path, str]:
    """(source, adapters folder, base folder, base fingerprint)."""
    home = base(tmp_path / "base")
    return trained(tmp_path / "out"), tmp_path / "adapters", home, adapters.base_fingerprint(home)


def test_publishing_shows_the_manifest_and_keeps_every_file_read_only(shelf: tuple[Path, Path, Path, str]) -> None:
    source, root, home, fingerprint = shelf
    manifest = publish(source, root, fingerprint)
    assert (manifest.rank, manifest.alpha, manifest.hidden_size, manifest.train_prompts) == (4, 8, 16, 2)
    assert manifest.created.endswith("+00:00")
    assert adapters.verify(root, manifest.id, home) == manifest == adapters.load_manifest(root, manifest.id)
    assert adapters.train_prompts(root, manifest.id) == {"a", "b"}
    folder = root / manifest.id
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "train_prompts.json", "manifest.json", "README.md",
    }  # fmt: skip
    assert all(path.stat().st_mode & 0o222 == 0 for path in folder.iterdir())


def test_the_same_content_is_one_adapter_whenever_and_wherever_it_is_published(
    shelf: tuple[Path, Path, Path, str], tmp_path: Path
) -> None:
    source, root, _, fingerprint = shelf
    first = publish(source, root, fingerprint)
    time.sleep(1.1)
    reordered = trained(tmp_path / "again", modules=("v_proj", "q_proj"))
    second = publish(
        reordered, root, fingerprint, base="/elsewhere/tiny", metrics={"loss": 0.6}, train_prompts=["a", "b"]
    )
    assert second == first
    assert [manifest.id for manifest in adapters.list_adapters(root)] == [first.id]


def test_a_manifest_states_what_its_training_took(shelf: tuple[Path, Path, Path, str]) -> None:
    """One hour for the last 100 of 400 steps is four for all of them, on two workers with a GPU each."""
    source, root, _, fingerprint = shelf
    timed = {"train_s": 3600.0, "steps": 400, "steps_run": 100, "workers": 2, "gpus": 2.0}
    known = publish(source, root, fingerprint, metrics=timed, name="timed")
    assert adapters.training_effort(known) == TrainingEffort(hours=4.0, workers=2, gpus=2.0)
    for at, lacking in enumerate([{"loss": 0.5}, {**timed, "gpus": None}, {**timed, "steps_run": 0}]):
        assert adapters.training_effort(publish(source, root, fingerprint, metrics=lacking, name=f"n{at}")) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"base_fingerprint": "other"},
        {"config_digest": "x"},
        {"data_digest": "x"},
        {"train_prompts": ["a"]},
        {"name": "n"},
    ],
)
def test_other_content_is_another_adapter(shelf: tuple[Path, Path, Path, str], changed: dict[str, Any]) -> None:
    source, root, _, fingerprint = shelf
    arguments = {"base_fingerprint": fingerprint, **changed}
    assert (
        publish(source, root, fingerprint).id
        != publish(source, root, arguments.pop("base_fingerprint"), **arguments).id
    )


def test_other_weights_are_another_adapter(shelf: tuple[Path, Path, Path, str], tmp_path: Path) -> None:
    source, root, _, fingerprint = shelf
    assert publish(source, root, fingerprint).id != publish(trained(tmp_path / "b", fill=3), root, fingerprint).id


def test_many_publishers_at_once_make_one_adapter(shelf: tuple[Path, Path, Path, str]) -> None:
    source, root, home, fingerprint = shelf
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(publish(source, root, fingerprint).id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    adapters.verify(root, found[0], home)
    assert [path.name for path in root.iterdir()] == found[:1]


def test_a_publisher_killed_at_any_moment_leaves_nothing_half_visible(shelf: tuple[Path, Path, Path, str]) -> None:
    source, root, home, fingerprint = shelf
    script = (
        "import os, sys\nfrom slm_ray import adapters\n"
        "seen = 0\n"
        "def stop(event, arguments):\n"
        "    global seen\n"
        "    if event in ('open', 'os.rename', 'os.chmod') and '.publishing-' in str(arguments[0]):\n"
        "        seen += 1\n"
        "        if seen == int(sys.argv[1]): os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(stop)\n"
        f"adapters.publish({str(source)!r}, {str(root)!r}, name='structured', track='structured', base='tiny',"
        f" base_fingerprint={fingerprint!r}, config_digest='c', data_digest='d', metrics={{'loss': 0.5}},"
        f" train_prompts=['b', 'a', 'a'], recipe={{}}, base_shapes={base_shapes()!r})\n"
    )
    killed = 0
    for moment in range(1, 60, 7):
        result = subprocess.run(
            [sys.executable, "-c", script, str(moment)], capture_output=True, text=True, check=False
        )
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
        killed += 1
        assert adapters.list_adapters(root) == []
        assert not [path for path in root.iterdir() if not path.name.startswith(".")]
    assert killed >= 3
    manifest = publish(source, root, fingerprint)
    assert adapters.verify(root, manifest.id, home).id == manifest.id


def test_what_a_publisher_killed_long_ago_left_goes_and_that_of_a_living_one_stays(
    shelf: tuple[Path, Path, Path, str],
) -> None:
    source, root, _, fingerprint = shelf
    for name, age_s in ((".publishing-dead", 25 * 3600), (".publishing-alive", 3600)):
        (root / name).mkdir(parents=True)
        os.utime(root / name, (time.time() - age_s,) * 2)
    publish(source, root, fingerprint)
    assert [path.name for path in root.glob(".*")] == [".publishing-alive"]


def test_another_base_is_refused_with_both_named(shelf: tuple[Path, Path, Path, str], tmp_path: Path) -> None:
    source, root, _, fingerprint = shelf
    manifest = publish(source, root, fingerprint)
    other = base(tmp_path / "other", hidden=24)
    with pytest.raises(AdapterError, match=r"hidden size 16.*hidden size 24") as caught:
        adapters.verify(root, manifest.id, other)
    assert fingerprint[:12] in str(caught.value) and adapters.base_fingerprint(other)[:12] in str(caught.value)
    with pytest.raises(AdapterError, match="was trained on base"):
        adapters.verify(root, manifest.id, base(tmp_path / "same-shape", fill=9))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "train_prompts.json"])
def test_damage_names_the_file_and_the_fix(shelf: tuple[Path, Path, Path, str], name: str) -> None:
    source, root, home, fingerprint = shelf
    path = root / publish(source, root, fingerprint).id / name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match=rf"{name} is damaged.*publish again"):
        adapters.verify(root, path.parent.name, home)
    path.unlink()
    with pytest.raises(AdapterError, match=rf"{name} is missing.*publish again"):
        adapters.verify(root, path.parent.name, home)


@pytest.mark.parametrize("leads", ["elsewhere", "in a circle"])
def test_a_file_that_is_a_link_is_missing(shelf: tuple[Path, Path, Path, str], tmp_path: Path, leads: str) -> None:
    """The same bytes elsewhere are not what was published: whoever owns that place can change them."""
    source, root, home, fingerprint = shelf
    path = root / publish(source, root, fingerprint).id / "adapter_model.safetensors"
    (tmp_path / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere" if leads == "elsewhere" else path)
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is missing"):
        adapters.verify(root, path.parent.name, home)


def test_a_damaged_manifest_is_named(shelf: tuple[Path, Path, Path, str]) -> None:
    source, root, _, fingerprint = shelf
    path = root / publish(source, root, fingerprint).id / "manifest.json"
    path.chmod(0o644)
    path.write_text('{"id": 1}')
    with pytest.raises(AdapterError, match=r"manifest.json is damaged"):
        adapters.load_manifest(root, path.parent.name)


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"\xff" * 64, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}"]
)
def test_weights_cut_short_are_never_published(shelf: tuple[Path, Path, Path, str], content: bytes) -> None:
    source, root, _, fingerprint = shelf
    (source / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        publish(source, root, fingerprint)
    assert adapters.list_adapters(root) == []


@pytest.mark.parametrize("adapter_id", ["../x", "..", "a/b-0123456789ab", "x", "-0123456789ab", "n-0123456789AB", ""])
def test_ids_that_are_no_ids_never_reach_the_disk(tmp_path: Path, adapter_id: str) -> None:
    with pytest.raises(AdapterError, match="no adapter id"):
        adapters.load_manifest(tmp_path, adapter_id)


def test_an_unknown_id_lists_the_known_ones(shelf: tuple[Path, Path, Path, str]) -> None:
    source, root, _, fingerprint = shelf
    known = publish(source, root, fingerprint).id
    with pytest.raises(AdapterError, match=known):
        adapters.load_manifest(root, "structured-000000000000")


@pytest.mark.parametrize("name", ["", "../up", "a b", "é", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(shelf: tuple[Path, Path, Path, str], name: str) -> None:
    source, root, _, fingerprint = shelf
    with pytest.raises(AdapterError, match="adapter name"):
        publish(source, root, fingerprint, name=name)


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    one = adapters.base_fingerprint(base(tmp_path / "a"))
    assert one == adapters.base_fingerprint(base(tmp_path / "b"))
    assert one != adapters.base_fingerprint(base(tmp_path / "c", tokenizer="[]"))
    assert one != adapters.base_fingerprint(base(tmp_path / "d", fill=7))


def test_a_chat_template_in_the_tokenizer_s_settings_counts_where_there_is_no_file_of_its_own(tmp_path: Path) -> None:
    def fingerprint(name: str, template: str, *, file: str | None = None) -> str:
        home = base(tmp_path / name)
        (home / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
        if file is not None:
            (home / "chat_template.jinja").write_text(file, encoding="utf-8")
        return adapters.base_fingerprint(home)

    assert fingerprint("a", "one") == fingerprint("b", "one") != fingerprint("c", "two")
    assert fingerprint("d", "one", file="its own") == fingerprint("e", "two", file="its own"), "the file goes first"


def test_large_weights_are_sampled_at_both_ends_and_between(tmp_path: Path) -> None:
    home = base(tmp_path / "large")
    path = safetensors(home / "model.safetensors", {"w": (20 << 20,)})
    before = adapters.base_fingerprint(home)
    for place in (path.stat().st_size - 1, 200, path.stat().st_size // 255 + 100_000 - 100_000 % 4):
        with path.open("r+b") as weights:
            weights.seek(place)
            weights.write(b"\x05")
    assert adapters.base_fingerprint(home) != before


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not a base model folder"):
        adapters.base_fingerprint(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"r": 4}', "[]", '{"r": 4, "lora_alpha": NaN}', "{"])
def test_settings_that_are_none_are_named(shelf: tuple[Path, Path, Path, str], text: str) -> None:
    source, root, _, fingerprint = shelf
    (source / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match=r"adapter_config.json is not a PEFT LoRA configuration"):
        publish(source, root, fingerprint)


def test_a_list_of_settings_whose_order_means_something_keeps_it(shelf: tuple[Path, Path, Path, str]) -> None:
    source, root, _, fingerprint = shelf
    path = source / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_replication": [[3, 4], [0, 2]]}))
    settings = root / publish(source, root, fingerprint).id / "adapter_config.json"
    assert json.loads(settings.read_text())["layer_replication"] == [[3, 4], [0, 2]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_whose_figures_are_not_finite_is_not_published(
    shelf: tuple[Path, Path, Path, str], value: float
) -> None:
    source, root, _, fingerprint = shelf
    with pytest.raises(AdapterError, match="the training's loss_last is no finite number"):
        publish(source, root, fingerprint, metrics={"loss_first": 1.0, "loss_last": value})
    assert not root.exists()
