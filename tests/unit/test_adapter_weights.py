"""Every tensor of an adapter is looked at, and a hostile weights file is refused before it costs or runs anything."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slm_ray.adapters import base_shapes, check_tensors, tensors
from slm_ray.errors import AdapterError

HIDDEN, INNER, RANK = 8, 12, 2
LAYERS = {"self_attn.q_proj": (HIDDEN, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
BASE = {f"model.layers.{n}.{name}.weight": sides for n in range(2) for name, sides in LAYERS.items()} | {
    "model.embed_tokens.weight": (32, HIDDEN),
    "model.norm.weight": (HIDDEN,),
}
SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"
Arrays = dict[str, np.ndarray]


def adapter() -> Arrays:
    arrays = {}
    for name, (out_size, in_size) in LAYERS.items():
        for layer in range(2):
            key = f"base_model.model.model.layers.{layer}.{name}"
            arrays[f"{key}.lora_A.weight"] = np.ones((RANK, in_size), "<f4")
            arrays[f"{key}.lora_B.weight"] = np.ones((out_size, RANK), "<f4")
    return arrays


def saved(path: Path, arrays: Mapping[str, np.ndarray], *, dtype: str = "F32") -> Path:
    header, at = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    return written(path, json.dumps(header).encode(), b"".join(array.tobytes() for array in arrays.values()))


def written(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def check(folder: Path, arrays: Arrays, *, dtype: str = "F32", serving: bool = True, **settings: Any) -> None:
    path = saved(folder / "mine" / "adapter_model.safetensors", arrays, dtype=dtype)
    check_tensors(path, SETTINGS | settings, BASE, serving=serving)


def test_a_whole_adapter_passes_in_every_way_peft_names_its_layers(tmp_path: Path) -> None:
    check(tmp_path, adapter())
    check(tmp_path, adapter(), use_rslora=True, rank_pattern={"q_proj": RANK})
    check(tmp_path, adapter(), target_modules=[name.removesuffix(".weight") for name in BASE if "layers" in name])
    check(tmp_path, adapter(), target_modules=r".*\.(q_proj|down_proj)")
    first = {name: array for name, array in adapter().items() if ".layers.0." in name}
    check(tmp_path, first, layers_to_transform=[0])
    path = saved(tmp_path / "nested" / "adapter_model.safetensors", adapter())
    check_tensors(path, SETTINGS, {f"language_model.{name}": shape for name, shape in BASE.items()})
    check_tensors(path, SETTINGS, None)


def test_a_quantised_base_is_read_as_far_as_its_files_say(tmp_path: Path) -> None:
    """Two 4-bit weights in a byte, in one column; GPTQ's and AWQ's own packing says no shape."""
    path = saved(tmp_path / "adapter_model.safetensors", adapter())
    packed = {name: (shape[0] * shape[1] // 2, 1) if len(shape) == 2 else shape for name, shape in BASE.items()}
    check_tensors(path, SETTINGS, packed)
    check_tensors(path, SETTINGS, {name.replace(".weight", ".qweight"): shape for name, shape in BASE.items()})
    with pytest.raises(AdapterError, match="8 inputs and 8 outputs"):
        check_tensors(path, SETTINGS, packed | {"model.layers.0.self_attn.q_proj.weight": (40, 1)})


def without(*names: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name: array for name, array in arrays.items() if name not in names}


def changed(name: str, array: np.ndarray) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: array}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without(f"{FIRST}.lora_A.weight"), "q_proj lacks lora_A"),
        (without(f"{FIRST}.lora_B.weight"), "q_proj lacks lora_B"),
        (without(f"{FIRST}.lora_A.weight", f"{FIRST}.lora_B.weight"), "layers.0.self_attn.q_proj is named by target_modules"),
        (changed(f"{FIRST}.lora_A.weight", np.ones((3, HIDDEN), "<f4")), "not rank 2"),
        (changed(f"{FIRST}.lora_B.weight", np.ones((HIDDEN, 3), "<f4")), "not rank 2"),
        (changed(f"{FIRST}.lora_A.weight", np.ones((RANK, INNER), "<f4")), "12 inputs and 8 outputs, the base's has"),
        (changed(f"{FIRST}.lora_B.weight", np.ones((INNER, RANK), "<f4")), "8 inputs and 12 outputs, the base's has"),
        (changed(f"{FIRST}.lora_A.weight", np.ones(RANK * HIDDEN, "<f4")), "not rank 2"),
        (changed(f"{FIRST}.lora_B.weight", np.full((HIDDEN, RANK), np.nan, "<f4")), "q_proj.lora_B.weight is not finite"),
        (changed(f"{FIRST}.weight", np.ones((HIDDEN, HIDDEN), "<f4")), "q_proj.weight is no part of a LoRA layer"),
        (changed("base_model.model.lm_head.lora_embedding_A", np.ones((2, 8), "<f4")), "changes the embeddings"),
        (changed(f"{FIRST}.lora_magnitude_vector", np.ones(HIDDEN, "<f4")), "do not say use_dora"),
        (lambda arrays: {name.replace("layers.1", "layers.7"): array for name, array in arrays.items()}, "no layer model.layers.7"),
        (lambda arrays: {name.replace("q_proj", "o_proj"): array for name, array in arrays.items()}, "not named in target_modules"),
    ],
)  # fmt: skip
def test_one_wrong_tensor_is_named(tmp_path: Path, change: Callable[[Arrays], Arrays], reason: str) -> None:
    with pytest.raises(AdapterError, match=reason) as caught:
        check(tmp_path, change(adapter()))
    assert "the adapter mine cannot be used" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(adapter()))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_noticed_wherever_it_stands(tmp_path: Path, name: str, value: float) -> None:
    arrays = adapter()
    arrays[name][-1, -1] = value
    with pytest.raises(AdapterError, match=f"{name} is not finite"):
        check(tmp_path, arrays)


@pytest.mark.parametrize(
    ("dtype", "largest", "infinite", "not_a_number"),
    [("F16", 0x7BFF, 0x7C00, 0x7E01), ("BF16", 0x7F7F, 0x7F80, 0xFFC1), ("F32", 0x7F7FFFFF, 0xFF800000, 0x7FC00001)],
)
def test_the_bits_of_every_dtype_are_read(
    tmp_path: Path, dtype: str, largest: int, infinite: int, not_a_number: int
) -> None:
    def bits(value: int) -> Arrays:
        return {
            name: np.full(array.shape, value, "<u4" if dtype == "F32" else "<u2") for name, array in adapter().items()
        }

    check(tmp_path, bits(largest), dtype=dtype)
    for wrong in (infinite, not_a_number):
        with pytest.raises(AdapterError, match="not finite"):
            check(tmp_path, bits(wrong), dtype=dtype)
    for dtype in ("I32", "F8_E4M3"):
        arrays = {name: np.ones(array.shape, "<i4" if dtype == "I32" else "u1") for name, array in adapter().items()}
        with pytest.raises(AdapterError, match=f"is {dtype}, not one of BF16, F16, F32"):
            check(tmp_path, arrays, dtype=dtype)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "IA3"}, "'IA3' adapter, not LoRA"), ({"r": 0}, "the rank r is 0"), ({"r": True}, "the rank r is True"),
        ({"r": "8"}, "the rank r is '8'"), ({"lora_alpha": 0}, "lora_alpha is 0"), ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"), ({"lora_alpha": 5000}, "scales its layers by 2500"),
        ({"target_modules": []}, "target_modules is"), ({"target_modules": None}, "target_modules is"),
        ({"target_modules": ["q_proj", "down_proj", "nope"]}, "names nope, of which there is no tensor"),
        ({"rank_pattern": {"(a+)+$": 2}}, "name layers plainly"), ({"alpha_pattern": {"q_proj": -1}}, "name layers plainly"),
        ({"use_dora": True}, "DoRA adapter .* merge it"), ({"modules_to_save": ["lm_head"]}, "whole layers in place"),
        ({"bias": "all"}, "trained biases"), ({"lora_bias": True}, "a bias in its layers"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the base's weights"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga', which changes the base's weights"),
        ({"target_modules": ["q_proj", "down_proj", "embed_tokens"]}, "changes the embeddings"),
        ({"trainable_token_indices": [1]}, "changed token embeddings"), ({"layer_replication": [[0, 1]]}, "copies of layers"),
    ],
)  # fmt: skip
def test_settings_that_the_engine_refuses_or_ignores_are_named(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        check(tmp_path, adapter(), **settings)


def test_a_dora_adapter_is_whole_with_its_magnitudes_and_still_not_served(tmp_path: Path) -> None:
    magnitudes = {
        name.replace("lora_B.weight", "lora_magnitude_vector"): np.ones(len(array), "<f4")
        for name, array in adapter().items()
        if "lora_B" in name
    }
    check(tmp_path, adapter() | magnitudes, use_dora=True, serving=False)
    with pytest.raises(AdapterError, match="lacks lora_magnitude_vector"):
        check(tmp_path, adapter(), use_dora=True, serving=False)
    short = {name: array[:-1] for name, array in magnitudes.items()}
    with pytest.raises(AdapterError, match=r"lora_magnitude_vector is \[7\], not \[8\]"):
        check(tmp_path, adapter() | short, use_dora=True, serving=False)
    with pytest.raises(AdapterError, match="magnitudes are not served"):
        check(tmp_path, adapter() | magnitudes, use_dora=True)


def test_many_problems_are_counted_and_not_listed(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"\(and 1 more\)"):
        check(tmp_path, {name: array[:, :1] for name, array in adapter().items()})


def entry(*shape: int, offsets: tuple[int, int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b"", b"", "Expecting value"),
        (b"[" * 100_000, b"", "recursion"),
        (json.dumps({"a": entry(2, offsets=(0, 8)), "b": entry(2, offsets=(4, 12))}).encode(), b"\0" * 12, "overlap"),
        (json.dumps({"a": entry(2, offsets=(0, 8)), "b": entry(2, offsets=(0, 8))}).encode(), b"\0" * 8, "overlap"),
        (json.dumps({"a": entry(2, offsets=(4, 12))}).encode(), b"\0" * 12, "overlap or leave a gap"),
        (json.dumps({"a": entry(1 << 40, offsets=(0, 8))}).encode(), b"\0" * 8, "are not F32 of shape"),
        (json.dumps({"a": entry(-2, offsets=(0, -8))}).encode(), b"", "no number"),
        (json.dumps({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}).encode(), b"\0" * 8, "no number"),
        (json.dumps({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}).encode(), b"\0" * 8, "no number"),
        (json.dumps({"a": entry(2, offsets=(0, 8))}).encode(), b"\0" * 9, "do not end where the file ends"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4, "twice"),
        (b'{"__metadata__":{"format":"pt"}}', b"", "holds no tensor"),
    ],
)  # fmt: skip
def test_a_header_that_does_not_describe_its_file_is_refused(
    tmp_path: Path, header: bytes, data: bytes, reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        tensors(written(tmp_path / "adapter_model.safetensors", header, data))


def test_a_header_that_claims_more_than_there_is_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 40))
        file.truncate(1 << 41)  # two TiB, and no block of the disk
    with pytest.raises(AdapterError, match="claims 1099511627776 bytes"):
        tensors(path)


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterError, match=r"adapter_model.bin is a pickle.*not read"):
        check_tensors(tmp_path / "adapter_model.safetensors", SETTINGS, BASE)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "adapter_model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        check_tensors(tmp_path / "adapter_model.safetensors", SETTINGS, BASE)
    for empty in ("", "x"):
        (tmp_path / "adapter_model.safetensors").write_text(empty)
        with pytest.raises(AdapterError, match="not a whole safetensors file"):
            check_tensors(tmp_path / "adapter_model.safetensors", SETTINGS, BASE)


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing", "dangling"])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "adapter_model.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        check_tensors(path, SETTINGS, BASE)


def test_a_base_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"holds no \*\.safetensors"):
        base_shapes(tmp_path)
