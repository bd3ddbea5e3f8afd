"""Serving without Ray or an engine: files, settings, keys and the stand-in's prompts."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from slm_ray.adapters import base_fingerprint, base_shapes, promote, publish, roll_back
from slm_ray.config import Serving
from slm_ray.errors import AdapterError, ConfigError, DataError, ModelError, ResourceError
from slm_ray.serving.adapter_cache import NodeLocalCache, ServedNames, served_name, served_names
from slm_ray.serving.app import engine_options
from slm_ray.serving.keys import add_key
from slm_ray.serving.settings import app_settings, bundles, read_serve_file, room
from slm_ray.serving.stand_in import StandIn

ROOT = Path(__file__).parents[2]
BASE = ROOT / "data/tiny_base"
CPU, GPU = (str(ROOT / "serve_configs" / name) for name in ("cpu_tiny.yaml", "rtx3090_llama31_8b.yaml"))


def adapter_folder(home: Path, value: float = 1.0, hidden: int | None = None) -> Path:
    hidden = hidden or json.loads((BASE / "config.json").read_text())["hidden_size"]
    home.mkdir(parents=True, exist_ok=True)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.full((2, hidden), value), f"{name}.lora_B.weight": torch.ones(hidden, 2)}
    save_file(tensors, home / "adapter_model.safetensors")
    (home / "adapter_config.json").write_text(
        json.dumps({"r": 2, "lora_alpha": 4, "target_modules": ["layers.0.self_attn.q_proj"]})
    )
    return home


def published(tmp_path: Path, fingerprint: str | None = None, data_digest: str = "d") -> str:
    made = adapter_folder(tmp_path / "made")
    return publish(
        made, tmp_path / "adapters", name="run", track="structured", base="b", config_digest="c", data_digest=data_digest,
        metrics={}, base_fingerprint=fingerprint or base_fingerprint(BASE), train_prompts=[], recipe={}, base_shapes=base_shapes(BASE),
    ).id  # fmt: skip


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../adapters", "/etc", "a/b", "a:b", "a@b", "%2e%2e", "a\0b", ".hidden", "x" * 200]
)
def test_only_plain_names_reach_the_disk(tmp_path: Path, name: str) -> None:
    adapter_folder(tmp_path / "adapters/a")
    assert served_name(tmp_path / "adapters", name) is None


def test_published_ids_are_their_own_name_and_hand_placed_ones_carry_a_version(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    assert served_names(folder) == {}
    adapter = published(tmp_path)
    adapter_folder(folder / "by-hand")
    adapter_folder(folder / "looks-0123456789ab")  # no manifest: nothing vouches for it
    (folder / "not-one").mkdir()
    names = served_names(folder)
    assert set(names) == {adapter, "by-hand", "looks-0123456789ab"}
    assert names[adapter] == adapter
    assert names["looks-0123456789ab"].startswith("looks-0123456789ab@")
    adapter_folder(folder / "by-hand", value=2.0)
    assert served_name(folder, "by-hand") != names["by-hand"]


def test_a_candidate_has_a_name_of_its_own_and_is_listed_nowhere(tmp_path: Path) -> None:
    adapter = published(tmp_path)
    folder = tmp_path / "served"
    assert served_name(folder, f"{adapter}@candidate") is None
    shutil.copytree(tmp_path / "adapters", folder / ".candidates")
    assert served_name(folder, f"{adapter}@candidate") == f"{adapter}@candidate"
    assert served_name(folder, adapter) is None
    assert served_names(folder) == {}
    assert ServedNames(folder).resolve(f"{adapter}@candidate") == f"{adapter}@candidate"
    adapter_folder(folder / ".candidates/by-hand")
    for name in (
        "by-hand@candidate",
        "../.candidates/by-hand@candidate",
        "@candidate",
        f"{adapter}@candidate@candidate",
    ):
        assert served_name(folder, name) is None
    copies = NodeLocalCache()
    assert copies.fetch(folder, f"{adapter}@candidate", BASE).name == f"{adapter}@candidate"
    with pytest.raises(FileNotFoundError):
        copies.fetch(folder, adapter, BASE)
    copies.close()


def test_every_replica_follows_a_promotion_at_once_and_no_request_falls_between(tmp_path: Path) -> None:
    """Each replica has a table of its own, and asks all the time while the alias moves there and back."""
    folder = tmp_path / "adapters"
    first, second = published(tmp_path), published(tmp_path, data_digest="e")
    promote(folder, first, alias="live")
    replicas, seen, done = [ServedNames(folder) for _ in range(3)], [set[str]() for _ in range(3)], threading.Event()

    def ask(place: int) -> None:
        while not done.is_set():
            seen[place].add(replicas[place].resolve("live"))

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask, place) for place in range(3)]
        try:
            for move, stands_for in (
                (lambda: promote(folder, second, alias="live"), second), (lambda: roll_back(folder, "live"), first),
            ):  # fmt: skip
                move()
                began = time.monotonic()
                while {replica.resolve("live") for replica in replicas} != {stands_for}:
                    assert time.monotonic() - began < 2
        finally:
            done.set()
        for one in asking:
            one.result()  # nothing was raised: there was always an adapter that it stood for
    assert all(one <= {first, second} for one in seen)


def test_a_copy_outlives_the_shared_folder_and_ends_with_its_owner(tmp_path: Path) -> None:
    adapter = published(tmp_path)
    copies = NodeLocalCache()
    copy = copies.fetch(tmp_path / "adapters", adapter, BASE)
    shutil.rmtree(tmp_path / "adapters")
    assert copies.fetch(tmp_path / "adapters", adapter, BASE) == copy
    assert (copy / "adapter_model.safetensors").is_file()
    with pytest.raises(FileNotFoundError):
        copies.fetch(tmp_path / "adapters", "run-000000000000", BASE)
    NodeLocalCache().close()  # a second process leaves the folder of a living one alone
    assert copy.is_dir()
    copies.close()
    assert not copy.exists()


def test_an_adapter_as_training_saves_it_is_served_with_its_chat_template(tmp_path: Path) -> None:
    adapter_folder(tmp_path / "made")
    (tmp_path / "made" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    adapter, copies = published(tmp_path), NodeLocalCache()
    copy = copies.fetch(tmp_path / "adapters", adapter, BASE)
    assert (copy / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}"
    copies.close()


def test_folders_of_dead_processes_are_removed() -> None:
    code = "import os; from slm_ray.serving.adapter_cache import NodeLocalCache; print(NodeLocalCache().folder, flush=True); os._exit(9)"
    left = Path(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    )
    assert left.is_dir()
    NodeLocalCache().close()
    assert not left.exists()


def placed(folder: Path, *names: str) -> tuple[list[str], int]:
    """Adapters placed by hand: what each is served as, and the bytes of one."""
    homes = [adapter_folder(folder / name) for name in names]
    served = [served_name(folder, name) or "" for name in names]
    return served, sum(file.stat().st_size for file in homes[0].iterdir())


def held_copies(copies: NodeLocalCache) -> set[str]:
    return {home.name.partition("@")[0] for home in copies.folder.iterdir() if home.is_dir()}


def test_the_least_recently_used_copies_go_first_and_one_that_is_held_stays(tmp_path: Path) -> None:
    (a, b, c, d), size = placed(tmp_path, "a", "b", "c", "d")
    copies = NodeLocalCache(max_bytes=2 * size)
    for name in (a, b, a, c):
        copies.fetch(tmp_path, name, BASE)
    assert held_copies(copies) == {"a", "c"}
    with copies.hold(a), copies.hold(c), copies.hold(d):
        for name in (b, d):
            copies.fetch(tmp_path, name, BASE)
        assert held_copies(copies) == {"a", "c", "d"}, "held: more than the limit, and nobody's file gone"
    assert held_copies(copies) == {"a", "c"}, "d was let go first, when the others were still held"
    assert not copies.touch(d) and copies.touch(c)
    assert (copies.fetch(tmp_path, d, BASE) / "adapter_model.safetensors").is_file(), "what left comes back"
    copies.close()


def test_an_adapter_above_the_limit_is_served_while_it_is_held(tmp_path: Path) -> None:
    (a,), size = placed(tmp_path, "a")
    copies = NodeLocalCache(max_bytes=size - 1)
    with copies.hold(a):
        assert (copies.fetch(tmp_path, a, BASE) / "adapter_model.safetensors").is_file()
    assert not held_copies(copies)
    copies.close()


def test_many_threads_over_a_small_cache_never_miss_a_file_that_they_hold(tmp_path: Path) -> None:
    names, size = placed(tmp_path, *"abcde")
    copies = NodeLocalCache(max_bytes=2 * size)

    def use(turn: int) -> bool:
        name = names[turn * 7 % len(names)]
        with copies.hold(name):
            copy = copies.fetch(tmp_path, name, BASE)
            return all((copy / file).read_bytes() for file in ("adapter_config.json", "adapter_model.safetensors"))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(120)))
    assert len(held_copies(copies)) <= 2 and not list(copies.folder.glob(".copy-*"))
    copies.close()


def test_a_full_disk_costs_the_copies_that_nobody_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (a, b, c), size = placed(tmp_path, "a", "b", "c")
    copies, whole, full = NodeLocalCache(max_bytes=9 * size), shutil.copyfile, [True]

    def copyfile(source: Path, target: Path) -> Path:
        if full:
            full.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        return Path(whole(source, target))

    with copies.hold(a):
        for name in (a, b):
            copies.fetch(tmp_path, name, BASE)
        monkeypatch.setattr(shutil, "copyfile", copyfile)
        assert copies.fetch(tmp_path, c, BASE).is_dir()
        assert held_copies(copies) == {"a", "c"}
        full.extend([True] * 9)
        with pytest.raises(ResourceError, match="No space left"):
            copies.fetch(tmp_path, b, BASE)
        assert (copies.folder / a).is_dir() and not list(copies.folder.glob(".copy-*"))
    copies.close()


def test_a_version_that_is_not_there_any_more_is_not_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    adapter_folder(folder / "by-hand")
    name = served_name(folder, "by-hand")
    assert name is not None
    adapter_folder(folder / "by-hand", value=2.0)
    copies = NodeLocalCache()
    with pytest.raises(FileNotFoundError, match="replaced"):
        copies.fetch(folder, name, BASE)
    assert not list(copies.folder.glob(".copy-*"))
    copies.close()


@pytest.mark.parametrize("name", ["", ".", "../../etc", "/etc", "a/b", "..", ".copy-x", "a@../b", "a@0123", "a\0b"])
def test_only_plain_names_are_fetched(tmp_path: Path, name: str) -> None:
    copies = NodeLocalCache()
    (copies.folder / ".copy-x").mkdir()
    (copies.folder / "a@0123").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no adapter"):
        copies.fetch(tmp_path, name, BASE)
    copies.close()


@pytest.mark.parametrize("linked", [".", "adapter_config.json", "adapter_model.safetensors"])
def test_a_link_out_of_the_folder_is_no_adapter_and_one_within_it_is(tmp_path: Path, linked: str) -> None:
    folder, copies = tmp_path / "adapters", NodeLocalCache()
    adapter_folder(folder / "own")
    (folder / "latest").symlink_to("own")
    outside = adapter_folder(tmp_path / "elsewhere")
    if linked == ".":
        (folder / "out").symlink_to(outside)
    else:
        (adapter_folder(folder / "out") / linked).unlink()
        (folder / "out" / linked).symlink_to(outside / linked)
    names = served_names(folder)
    assert set(names) == {"own", "latest"}
    assert (copies.fetch(folder, names["latest"], BASE) / "adapter_model.safetensors").is_file()
    with pytest.raises(FileNotFoundError):
        copies.fetch(folder, "out", BASE)
    copies.close()


def test_a_manifest_that_links_out_of_the_folder_is_not_copied(tmp_path: Path) -> None:
    folder, copies = tmp_path / "adapters", NodeLocalCache()
    secret = tmp_path / "secret.json"
    secret.write_text('{"base_fingerprint": "secret"}', encoding="utf-8")
    (adapter_folder(folder / "own") / "manifest.json").symlink_to(secret)
    with pytest.raises(FileNotFoundError):
        copies.fetch(folder, "own", BASE)  # not the name it has
    copy = copies.fetch(folder, served_name(folder, "own") or "", BASE)
    assert not (copy / "manifest.json").exists()
    copies.close()


def test_damaged_and_foreign_adapters_are_refused(tmp_path: Path) -> None:
    folder, copies = tmp_path / "adapters", NodeLocalCache()

    def refused(adapter: str, reason: str) -> None:
        with pytest.raises((AdapterError, DataError), match=reason):
            copies.fetch(folder, served_name(folder, adapter) or "", BASE)

    foreign = published(tmp_path, fingerprint="f" * 32)
    refused(foreign, "was trained on base")
    shutil.copytree(folder / foreign, folder / "renamed-0123456789ab")
    refused("renamed-0123456789ab", "give the folder that name")
    own = published(tmp_path)
    shutil.copytree(folder / own, folder / "renamed-ba9876543210")
    refused("renamed-ba9876543210", "give the folder that name")
    (adapter_folder(folder / "labelled") / "manifest.json").write_text('{"base_fingerprint": "0"}')
    refused("labelled", "another base")
    adapter_folder(folder / "wide", hidden=64)
    refused("wide", "64 inputs and 64 outputs, the base's has \\(192, 192\\)")
    (adapter_folder(folder / "empty") / "adapter_config.json").write_text("[]")
    refused("empty", "PEFT")
    weights = adapter_folder(folder / "cut") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    refused("cut", "not a whole safetensors file")
    copies.close()


def test_settings_fill_the_file_in_and_hold_no_secret(tmp_path: Path) -> None:
    config = Serving(config=CPU, base=str(BASE), name="tiny", adapters_dir="some/adapters")
    stand_in = {"deployment": "stand-in", "demonstrations": 3, "pools": {"structured": "rows.jsonl"}}
    settings = app_settings(config, stand_in=stand_in, environment={"SLM_RAY_API_KEY": "s3cret"})
    (model,) = settings.serving["llm_configs"]
    assert model["model_loading_config"] == {"model_id": "tiny", "model_source": str(BASE)}
    assert model["experimental_configs"]["adapters_dir"] == str(Path("some/adapters").absolute())
    assert Path(settings.stand_in["pools"]["structured"]).is_absolute() if settings.stand_in else False
    assert "s3cret" not in repr(settings)
    again = app_settings(config, stand_in=stand_in, environment={"SLM_RAY_API_KEY": "s3cret"})
    other = app_settings(config, stand_in=None, environment={})
    assert settings.digest == again.digest != other.digest


def test_the_base_is_read_as_training_reads_it_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    def engine(path: str) -> dict[str, Any]:
        settings = app_settings(Serving(config=path, base=str(BASE)), stand_in=None, environment={})
        return dict(settings.serving["llm_configs"][0]["engine_kwargs"])

    read_as = {"tokenizer_mode": "hf", "config_format": "hf", "load_format": "safetensors"}
    assert read_as.items() <= engine(CPU).items()
    assert engine(CPU)["max_loras"] == 4, "what the file says stays"
    own = Path(CPU).read_text(encoding="utf-8").replace(" dtype:", " load_format: dummy\n            dtype:")
    (tmp_path / "own.yaml").write_text(own, encoding="utf-8")
    assert {**read_as, "load_format": "dummy"}.items() <= engine(str(tmp_path / "own.yaml")).items()


def test_schemas_of_tracks_are_read_and_what_would_stall_the_engine_is_refused(tmp_path: Path) -> None:
    def schemas(*tracks: str) -> dict[str, Any]:
        config = Serving(config=CPU, base=str(BASE), tracks=list(tracks))
        return app_settings(config, stand_in=None, environment={}).schemas

    def track(name: str, schema: str) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            f"name: city\nextends: structured\nscorers: [structured, schema]\nanswer_schema: {schema}\n",
            encoding="utf-8",
        )
        return str(path)

    right = track("right", "{type: object, required: [city]}")
    assert schemas(right) == {"city": {"type": "object", "required": ["city"]}}
    for tracks, reason in (
        (["structured"], "has no answer_schema"), ([track("wide", "{type: string, pattern: 'a{900}'}")], "stall the engine"),
        ([right, track("again", "{type: object}")], "two tracks"), (["nobody"], "unknown track"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=reason):
            schemas(*tracks)


def test_only_what_changed_is_started_anew() -> None:
    def versions(**changes: Any) -> tuple[str, str, str]:
        settings = app_settings(Serving(**{"config": CPU, "base": str(BASE), **changes}), stand_in=None, environment={})
        return settings.digest, settings.front_version, settings.engine_version

    stand_in = {"deployment": "s", "demonstrations": 1, "pools": {}}
    plain, front, engine = versions()
    shown = app_settings(Serving(config=CPU, base=str(BASE)), stand_in=stand_in, environment={})
    assert (shown.front_version, shown.engine_version) == (front, engine) and shown.digest != plain
    keyed = app_settings(Serving(config=CPU, base=str(BASE)), stand_in=None, environment={"SLM_RAY_API_KEY": "k"})
    assert keyed.front_version != front and keyed.engine_version == engine
    assert versions(config=GPU)[2] != engine
    other = replace(shown, fingerprint="another base in the same folder")
    assert (other.front_version != front) and (other.engine_version != engine), "its context may be another"
    assert replace(other, fingerprint=shown.fingerprint).front_version == front
    upgraded = replace(shown, package="another")
    assert upgraded.front_version != front and upgraded.engine_version != engine and upgraded.digest != shown.digest


def test_an_engine_gets_the_environment_of_its_file_and_the_packages_of_its_job() -> None:
    """Serve hands a job's own on to a deployment that has none, and an empty one is one."""
    model = {"model_loading_config": {"model_id": "base"}, "accelerator_config": {"kind": "cpu"}}
    job = {"py_modules": ["gcs://x.zip"], "uv": ["b"], "env_vars": {"SECRET": "s"}, "working_dir": "gcs://y.zip"}
    assert "runtime_env" not in engine_options(model, job=job)["ray_actor_options"]
    named = {**model, "runtime_env": {"env_vars": {"A": "1"}}}
    assert engine_options(named, job={})["ray_actor_options"]["runtime_env"] == {"env_vars": {"A": "1"}}
    brought = {"py_modules": ["gcs://x.zip"], "uv": ["b"]}
    assert engine_options(named, job=job)["ray_actor_options"]["runtime_env"] == {**brought, "env_vars": {"A": "1"}}
    own = {**named, "deployment_config": {"ray_actor_options": {"runtime_env": {"pip": ["a"]}}}}
    assert engine_options(own, job=job)["ray_actor_options"]["runtime_env"] == {
        "py_modules": ["gcs://x.zip"], "pip": ["a"], "env_vars": {"A": "1"},
    }, "one kind of package list is all that Ray takes"  # fmt: skip


def test_a_bucket_takes_the_folder_s_place_as_it_is_named() -> None:
    config = Serving(config=CPU, base=str(BASE), adapters_dir="s3://bucket/prefix/?region=eu-central-1")
    assert app_settings(config, stand_in=None, environment={}).adapters_dir == config.adapters_dir


def test_what_the_endpoint_holds_of_the_cluster() -> None:
    def held(path: str) -> list[dict[str, float]]:
        config = Serving(config=path, base=str(BASE))
        return bundles(app_settings(config, stand_in=None, environment={}).serving)

    assert held(CPU) == [{"CPU": pytest.approx(0.3)}, {"CPU": 0.1}]
    assert held(GPU) == [{"GPU": 1, "CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], "two fronts"


def test_a_base_with_damaged_weights_is_refused(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    (tmp_path / "base/model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="is no base model"):
        app_settings(Serving(config=CPU, base=str(tmp_path / "base")), stand_in=None, environment={})


def test_files_and_names_that_cannot_be_served_are_config_errors(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("applications: [{args: {llm_configs: [{}, {}]}}]")
    (tmp_path / "old.yaml").write_text("llm_configs: [{}]")
    (tmp_path / "list.yaml").write_text("- 1")
    for changes in ({"config": "none.yaml"}, {"config": str(tmp_path / "two.yaml")}, {"config": str(tmp_path / "list.yaml")}, {"config": str(tmp_path / "old.yaml")},
                    {"name": "a:b"}, {"name": "a@b"}):  # fmt: skip
        config = Serving(**{"config": CPU, "base": str(BASE), **changes})
        with pytest.raises(ConfigError):
            app_settings(config, stand_in=None, environment={})
    with pytest.raises(ConfigError, match="a stand-in has"):
        app_settings(Serving(config=CPU, base=str(BASE)), stand_in={"pools": {}}, environment={})


def rows(path: Path, *cities: str) -> str:
    path.write_text("".join(json.dumps({"prompt": f"weather in {city}", "completion": city}) + "\n" for city in cities))
    return str(path)


def test_the_stand_in_shows_the_nearest_rows_of_the_same_track(tmp_path: Path) -> None:
    from slm_ray.corpus.tracks import track

    pools = {
        "structured": rows(tmp_path / "s", "Rome", "Oslo", "Lima"),
        "toolcall": rows(tmp_path / "t", "Kyiv", "Rome"),
    }
    stand_in = StandIn(base="tiny", deployment="stand-in", demonstrations=2, pools=pools)
    assert stand_in.label == "stand-in:tiny+2 demonstrations"
    asked = [{"role": "system", "content": track("structured").system}, {"role": "user", "content": "weather in Oslo"}]
    shown = stand_in.prompt(asked).messages
    assert [message.role for message in shown] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert {shown[2].content, shown[4].content} == {"Rome", "Lima"}  # its own row would be the answer
    rows(tmp_path / "s", "Paris")
    assert [message.content for message in stand_in.prompt(asked).messages[1:3]] == ["weather in Paris", "Paris"]
    assert len(stand_in.prompt(asked[1:]).messages) == 5  # no system message: all pools


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "assistant", "content": "x"}], [{"role": "user", "content": [{"text": "x"}]}], [{"role": "tool"}]],
)
def test_the_stand_in_refuses_what_is_no_question(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError):
        StandIn(base="tiny", deployment="stand-in", demonstrations=2, pools={}).prompt(messages)


def test_a_lost_pool_is_named() -> None:
    stand_in = StandIn(base="tiny", deployment="stand-in", demonstrations=2, pools={"structured": "/no/such/rows"})
    with pytest.raises(DataError, match="/no/such/rows"):
        stand_in.prompt([{"role": "user", "content": "x"}])
    assert (
        StandIn(base="tiny", deployment="d", demonstrations=2, pools={})
        .prompt([{"role": "user", "content": "x"}])
        .messages
    )


def test_the_kernel_comes_without_ray() -> None:
    code = "import sys, slm_ray.serving.lora_kernel; print(any(name in sys.modules for name in ('ray', 'vllm')))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gpu1.example"])
def test_an_endpoint_that_others_can_reach_wants_a_key(host: str) -> None:
    config = Serving(config=CPU, base=str(BASE), host=host)
    with pytest.raises(ConfigError, match=r"set SLM_RAY_API_KEY in the environment, or serving\.host"):
        app_settings(config, stand_in=None, environment={})
    assert app_settings(config, stand_in=None, environment={"SLM_RAY_API_KEY": "s3cret"}).api_key_digest


def test_a_file_of_keys_is_read_before_anything_starts_and_wants_the_deployer_s_own_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    config, own = Serving(config=CPU, base=str(BASE), keys_file=str(file)), {"SLM_RAY_API_KEY": "s3cret"}
    with pytest.raises(ConfigError, match="slm-ray keys add"):
        app_settings(config, stand_in=None, environment=own)
    secret = add_key(file, "team")
    with pytest.raises(ConfigError, match="set SLM_RAY_API_KEY too"):
        app_settings(config, stand_in=None, environment={})
    settings = app_settings(config, stand_in=None, environment=own)
    assert settings.keys_file == str(file) and secret not in repr(settings)
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        app_settings(config, stand_in=None, environment=own)


@pytest.mark.parametrize(
    ("told", "instead", "words"),
    [
        ("min_replicas: 1", "min_replicas: 0", "min_replicas is 0"),
        ("num_replicas: 2", "num_replicas: auto", "is 'auto'"),
    ],
)
def test_an_engine_that_could_scale_to_none_and_a_number_left_to_ray_are_refused(
    tmp_path: Path, told: str, instead: str, words: str
) -> None:
    """Without an engine every request is a 503 at once: none would wait for one, and none would start."""
    file = tmp_path / "none.yaml"
    file.write_text(Path(GPU).read_text().replace(told, instead))
    with pytest.raises(ConfigError, match=words):
        app_settings(Serving(config=str(file), base=str(BASE)), stand_in=None, environment={})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_none_is_needed(host: str) -> None:
    config = Serving(config=CPU, base=str(BASE), host=host)
    assert app_settings(config, stand_in=None, environment={}).api_key_digest is None


def test_no_answer_is_longer_than_the_context_of_the_file_or_else_of_the_base() -> None:
    serving = app_settings(Serving(config=CPU, base=str(BASE)), stand_in=None, environment={}).serving
    assert room(serving).context == json.loads((BASE / "config.json").read_text())["max_position_embeddings"]
    assert room(read_serve_file(GPU)).context == 8192
    assert room(read_serve_file(CPU)).context is None, "no base is known"


@pytest.mark.parametrize(("file", "limit"), [(CPU, 67), (GPU, 134)])
def test_hardly_more_than_the_engines_batch_may_be_in_flight(file: str, limit: int) -> None:
    serving = read_serve_file(file)
    assert room(serving).answers == limit
    assert serving["ingress_deployment_config"]["max_ongoing_requests"] >= 4 * limit, "a refusal must not wait"


@pytest.mark.parametrize(
    ("scaling", "ingresses"),
    [
        ({"num_replicas": 1}, 1),
        ({"num_replicas": 2}, 2),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 4}}, 4),
    ],
)
def test_however_many_ingresses_are_up_they_let_in_what_one_would(scaling: dict[str, Any], ingresses: int) -> None:
    serving = read_serve_file(GPU)
    one = room({**serving, "ingress_deployment_config": {"num_replicas": 1}})
    each = room({**serving, "ingress_deployment_config": scaling})
    assert each.ingresses == ingresses  # a key's tokens per minute are shared among so many
    assert (each.answers * ingresses, each.tokens * ingresses) == (one.answers, one.tokens)
