"""Adapters in a bucket, over HTTP from a server of S3's routes: found, promoted, copied, and what happens while it is away."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slm_ray import adapters
from slm_ray.errors import AdapterError, ConfigError, ResourceError
from slm_ray.serving import object_storage
from slm_ray.serving.adapter_cache import NodeLocalCache, ServedNames, served_name, served_names
from tests.stores import Store, serving
from tests.waiting import wait_for

BASE = Path(__file__).parents[2] / "data/tiny_base"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials of this machine, and every look is a new listing."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(object_storage, "LISTED_FOR_S", 0.0)


def publish(folder: Path, name: str) -> str:
    made = folder / "made"
    made.mkdir(exist_ok=True)
    hidden = json.loads((BASE / "config.json").read_text())["hidden_size"]
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, hidden), f"{layer}.lora_B.weight": torch.ones(hidden, 2)}
    save_file(tensors, made / "adapter_model.safetensors")
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["layers.0.self_attn.q_proj"]}
    (made / "adapter_config.json").write_text(json.dumps(settings))
    return adapters.publish(
        made, folder / "adapters", name=name, track="structured", base="b", config_digest=name, data_digest="d", metrics={},
        base_fingerprint=adapters.base_fingerprint(BASE), train_prompts=[], recipe={}, base_shapes=adapters.base_shapes(BASE),
    ).id  # fmt: skip


def uploaded(folder: Path) -> dict[str, bytes]:
    """What the folder of adapters is as objects under a prefix."""
    root = folder / "adapters"
    return {f"slm/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def store() -> Iterator[Store]:
    with serving(Store(name="mine", files={})) as running:
        yield running


def uri(store: Store, prefix: str = "slm", scheme: str = "s3") -> str:
    if scheme == "gs":
        return f"gs://anonymous@mine/{prefix}?scheme=http&endpoint_override=127.0.0.1:{store.port}"
    return f"s3://anonymous@mine/{prefix}?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{store.port}"


def changed(store: Store, files: Mapping[str, bytes]) -> None:
    store.files = dict(files)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_what_is_uploaded_is_served_promoted_and_gone_again(store: Store, tmp_path: Path, scheme: str) -> None:
    place, copies = uri(store, scheme=scheme), NodeLocalCache()
    names = ServedNames(place)
    assert served_names(place) == {} == names.listed()
    first, second = publish(tmp_path, "one"), publish(tmp_path, "two")
    adapters.promote(tmp_path / "adapters", first, alias="live")
    changed(store, uploaded(tmp_path))
    assert names.resolve(first) == first
    assert names.listed() == {first: first, second: second, "live": first}
    assert names.resolve("live") == first
    copy = copies.fetch(place, first, BASE)
    assert (copy / "adapter_model.safetensors").read_bytes() == store.files[f"slm/{first}/adapter_model.safetensors"]
    adapters.promote(tmp_path / "adapters", second, alias="live")
    changed(store, uploaded(tmp_path))
    names.listed()  # starts a listing beside the answer
    wait_for(lambda: names.resolve("live") == second, within_s=20)
    changed(store, {name: body for name, body in store.files.items() if first not in name})
    wait_for(lambda: served_name(place, first) is None, within_s=20)
    with pytest.raises(FileNotFoundError):
        names.resolve(first)
    assert copies.fetch(place, first, BASE) == copy, "a copy outlives the object"
    copies.close()


def test_an_adapter_that_is_being_proved_answers_under_its_own_name_and_is_listed_nowhere(
    store: Store, tmp_path: Path
) -> None:
    adapter = publish(tmp_path, "one")
    changed(store, {name.replace("slm/", "slm/.candidates/", 1): body for name, body in uploaded(tmp_path).items()})
    place, copies = uri(store), NodeLocalCache()
    assert ServedNames(place).resolve(f"{adapter}@candidate") == f"{adapter}@candidate"
    assert ServedNames(place).listed() == {} and served_name(place, adapter) is None
    assert (copies.fetch(place, f"{adapter}@candidate", BASE) / "adapter_model.safetensors").is_file()
    copies.close()


def test_half_an_upload_is_no_adapter_and_a_damaged_one_is_refused(store: Store, tmp_path: Path) -> None:
    adapter = publish(tmp_path, "one")
    whole = uploaded(tmp_path)
    changed(store, {name: body for name, body in whole.items() if "manifest" not in name} | {"slm/by-hand/x": b""})
    assert served_names(uri(store)) == {}
    weights = f"slm/{adapter}/adapter_model.safetensors"
    changed(store, whole | {weights: whole[weights][:-4]})
    copies = NodeLocalCache()
    wait_for(lambda: served_names(uri(store)) == {adapter: adapter}, within_s=20)
    with pytest.raises(AdapterError, match="damaged"):
        copies.fetch(uri(store), adapter, BASE)
    assert not list(copies.folder.glob("*one*")) and not list(copies.folder.glob(".copy-*"))
    copies.close()


def test_while_the_store_is_away_known_adapters_answer_and_others_are_told_so(store: Store, tmp_path: Path) -> None:
    place, copies = uri(store), NodeLocalCache()
    names = ServedNames(place)
    first, second = publish(tmp_path, "one"), publish(tmp_path, "two")
    changed(store, uploaded(tmp_path))
    assert names.resolve(first) == first
    copy = copies.fetch(place, first, BASE)
    store.failing = 10_000
    assert names.resolve(first) == first and copies.fetch(place, first, BASE) == copy
    assert set(names.listed()) == {first, second}
    with pytest.raises(ResourceError, match="gives no list of adapters"):
        names.resolve("run-0123456789ab")
    with pytest.raises(ResourceError, match="cannot be read"):
        copies.fetch(place, second, BASE)
    store.failing = 0
    wait_for(lambda: copies.fetch(place, second, BASE).is_dir(), within_s=20)
    copies.close()


def test_a_store_that_never_answered_lists_nothing_and_says_so_to_who_asks(tmp_path: Path) -> None:
    place = "s3://anonymous@mine/slm?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:9"
    names = ServedNames(place)
    assert names.listed() == {}
    with pytest.raises(ResourceError, match=r"s3://mine/slm gives no list"):
        names.resolve("run-0123456789ab")


@pytest.mark.parametrize("name", ["..", "../x-0123456789ab", "a/b-0123456789ab", "", "../run-0123456789ab@candidate"])
def test_only_plain_names_reach_the_store(store: Store, name: str) -> None:
    assert served_name(uri(store), name) is None
    assert not store.paths


def test_a_damaged_history_is_no_alias_and_keeps_the_adapters(store: Store, tmp_path: Path) -> None:
    adapter = publish(tmp_path, "one")
    changed(store, uploaded(tmp_path) | {"slm/promotions.jsonl": b"nonsense\n"})
    names = ServedNames(uri(store))
    assert names.listed() == {adapter: adapter}
    with pytest.raises(Exception, match=r"promotions\.jsonl:1"):
        names.resolve("live")


@pytest.mark.parametrize(
    ("address", "reason"),
    [("s3://key:secret@mine/x", "holds a secret"), ("s3://mine/x?token=1", "unknown options token"),
     ("nope://mine/x", "no address of a store")],
)  # fmt: skip
def test_addresses_that_cannot_be_are_refused_before_anything_starts(address: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        object_storage.root(address)
    assert "secret@" not in str(caught.value)


def test_a_full_disk_under_the_history_is_told_as_a_store_that_is_away_is(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_id = publish(tmp_path, "structured")
    store.files = uploaded(tmp_path)
    bucket = object_storage.Bucket(uri(store))

    def full(self: object) -> object:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(object_storage.Bucket, "_list", full)
        with pytest.raises(ResourceError, match="No space left on device"):
            bucket.ids()
    assert bucket.ids() == [adapter_id]
