"""Safetensors files without torch: what their headers claim, and whether every tensor of a LoRA adapter is what it should be.

A header is believed only once it describes the whole file: each tensor as long as its shape says, one behind the other, no
gap, no overlap. `check_tensors` looks at every tensor of an adapter against its own settings and the layers of the base.
Nothing here runs code out of a file: pickles are refused unread. Whether an adapter is any good is not known here.
"""

from __future__ import annotations

import json
import math
import re
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slm_ray.errors import AdapterError

_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4,
    "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
# A float is NaN or infinite when all bits of its exponent are set.
_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_HEADER_BYTES = 100_000_000  # as much as the format allows
_BLOCK_WORDS = 16 << 20
_NAMED = 3  # problems that an error names; it counts the others
_LARGEST_SCALE = 256.0
_KEY = re.compile(
    r"base_model\.model\.(?P<layer>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)"
)
_PLAIN = re.compile(r"[\w.]+")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_out")
# What changes the base's own weights when PEFT loads the adapter, and what the engine has no code for.
_UNSERVED = {
    "modules_to_save": "whole layers in place of the base's", "lora_bias": "a bias in its layers",
    "layer_replication": "copies of layers", "alora_invocation_tokens": "an activation by tokens (aLoRA)",
    "use_bdlora": "block-diagonal layers", "use_qalora": "quantised groups (QALoRA)",
    "trainable_token_indices": "changed token embeddings", "target_parameters": "layers that are no modules",
    "arrow_config": "a choice among adapters (Arrow)", "kasa_config": "singular values (KaSA)",
}  # fmt: skip
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a safetensors file; `begin` and `end` are bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a safetensors file; AdapterError when it is cut short or not that format."""
    return {name: tensor.shape for name, tensor in header(path).items()}


def header(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds, by its header; AdapterError unless that describes every byte of the file once."""
    try:
        size = _regular_size(path)  # before it is opened: a pipe would make us wait for a writer
        with path.open("rb") as source:
            (length,) = struct.unpack("<Q", source.read(8))
            if length > min(size - 8, _HEADER_BYTES):
                raise ValueError(f"its header claims {length} bytes")
            entries = json.loads(source.read(length), object_pairs_hook=_without_twins)
        entries.pop("__metadata__", None)
        found = {str(name): _tensor(entry, 8 + length) for name, entry in entries.items()}
        _check_layout(found, 8 + length, size)
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}; publish or download it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise AdapterError(f"{path} is not a whole safetensors file ({error}); publish or download it again") from None
    return found


def base_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a base's tensors, from the headers of all its files; AdapterError when it has none."""
    shards = sorted(Path(folder).glob("*.safetensors"))
    if not shards:
        raise AdapterError(f"{folder} holds no *.safetensors weights; give the folder of a base saved in that format")
    return {name: shape for shard in shards for name, shape in tensors(shard).items()}


def check_tensors(
    weights: str | Path,
    settings: Mapping[str, Any],
    base_shapes: Mapping[str, tuple[int, ...]] | None,
    *,
    serving: bool = True,
) -> None:
    """AdapterError unless `weights` is the LoRA adapter that `settings` (adapter_config.json) describe, for this base.

    Looks at every tensor: names, complete pairs, shapes by rank and by the base's layers (out, in), dtype, NaN and
    infinity; and that every layer which `target_modules` names has its pair. Without `base_shapes` the base's part is left
    out. `serving` also refuses what the engine has no code for: DoRA, whole layers, biases, embeddings.
    """
    path = Path(weights)
    if not path.is_file() and (pickle := path.with_suffix(".bin")).exists():
        raise AdapterError(
            f"{pickle} is a pickle, which runs code when it is loaded, and is not read; save the adapter as {path.name} (PEFT's"
            " save_pretrained does)"
        )
    problems = _settings_problems(settings, serving=serving)
    if not problems:
        found = header(path)
        problems = _tensor_problems(found, settings, base_shapes)
        problems = problems or _values_problems(path, found)
    if problems:
        more = f" (and {len(problems) - _NAMED} more)" if len(problems) > _NAMED else ""
        raise AdapterError(
            f"the adapter {path.parent.name} cannot be used: {'; '.join(problems[:_NAMED])}{more}; train or save it again, for"
            " this base"
        )


def _regular_size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file")
    return status.st_size


def _without_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header holds a name twice")
    return found


def _tensor(entry: Mapping[str, Any], start: int) -> Tensor:
    shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(dtype, str) or any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError("a shape or an offset is no number")
    if dtype in _BYTES and end - begin != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"{end - begin} bytes are not {dtype} of shape {list(shape)}")
    return Tensor(dtype=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


def _check_layout(found: Mapping[str, Tensor], start: int, size: int) -> None:
    if not found:
        raise ValueError("it holds no tensor")
    for tensor in sorted(found.values(), key=lambda one: (one.begin, one.end)):
        if tensor.begin != start:
            raise ValueError("its tensors overlap or leave a gap")
        start = tensor.end
    if start != size:
        raise ValueError("its tensors do not end where the file ends")


def _settings_problems(settings: Mapping[str, Any], *, serving: bool) -> list[str]:
    if settings.get("peft_type", "LORA") != "LORA":
        return [f"it is a {settings['peft_type']!r} adapter, not LoRA"]
    rank, alpha, targets = settings.get("r"), settings.get("lora_alpha"), settings.get("target_modules")
    if type(rank) is not int or rank < 1:
        return [f"the rank r is {rank!r}, no whole number above 0"]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        return [f"lora_alpha is {alpha!r}, no number above 0"]
    named = isinstance(targets, list) and targets and all(isinstance(name, str) and name for name in targets)
    if not named and not (isinstance(targets, str) and targets):
        return [f"target_modules is {targets!r}, and names no layer"]
    problems = []
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if scale > _LARGEST_SCALE:
        problems.append(f"lora_alpha {alpha:g} over rank {rank} scales its layers by {scale:g}, which is no training's")
    for pattern in ("rank_pattern", "alpha_pattern"):
        own = settings.get(pattern) or {}
        kinds = int if pattern == "rank_pattern" else int | float
        if not isinstance(own, dict) or any(
            not _PLAIN.fullmatch(name) or isinstance(one, bool) or not isinstance(one, kinds) or not 0 < one < math.inf
            for name, one in own.items()
        ):
            problems.append(f"{pattern} is {own!r}: name layers plainly, each with a number above 0")
    return problems + (unserved(settings) if serving else [])


def unserved(settings: Mapping[str, Any]) -> list[str]:
    """Why a LoRA adapter of these settings is not served: what the engine would refuse or, worse, ignore."""
    problems = [
        f"it has {what} ({name}), which is not served" for name, what in _UNSERVED.items() if settings.get(name)
    ]
    if settings.get("use_dora"):
        problems.append(
            "it is a DoRA adapter (use_dora), whose magnitudes are not served: merge it into its base, or train LoRA"
        )
    if settings.get("bias", "none") != "none":
        problems.append(f"it trained biases (bias: {settings['bias']!r}), which are not served")
    start = settings.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        problems.append(
            f"it was started by {start!r}, which changes the base's weights: convert it to plain LoRA with PEFT"
        )
    targets = settings["target_modules"]
    if embeddings := [name for name in _EMBEDDINGS if not isinstance(targets, str) and _is_target(name, targets)]:
        problems.append(
            f"it changes the embeddings ({', '.join(embeddings)}), which is not served: train linear layers only"
        )
    return problems


def _tensor_problems(
    found: Mapping[str, Tensor], settings: Mapping[str, Any], base_shapes: Mapping[str, tuple[int, ...]] | None
) -> list[str]:
    problems, layers = [], dict[str, dict[str, Tensor]]()
    for name, tensor in found.items():
        if "lora_embedding_" in name:
            problems.append(f"{name} changes the embeddings, which is not served: train linear layers only")
        elif (key := _KEY.fullmatch(name)) is None:
            problems.append(f"{name} is no part of a LoRA layer")
        elif tensor.dtype not in _EXPONENT:
            problems.append(f"{name} is {tensor.dtype}, not one of {', '.join(sorted(_EXPONENT))}")
        else:
            layers.setdefault(key["layer"], {})[key["part"].removesuffix(".weight")] = tensor
    targets = settings["target_modules"]
    base = None if base_shapes is None else _BaseLayers(base_shapes, layers)
    for layer, parts in layers.items():
        if not isinstance(targets, str) and not _is_target(layer, targets):
            problems.append(f"{layer} is trained, but not named in target_modules")
        problems += _layer_problems(layer, parts, settings, base)
    return problems + _missing_layers(layers, settings, base)


def _layer_problems(
    layer: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], base: _BaseLayers | None
) -> list[str]:
    wanted = ["lora_A", "lora_B", *(["lora_magnitude_vector"] if settings.get("use_dora") else [])]
    if absent := [part for part in wanted if part not in parts]:
        return [f"{layer} lacks {' and '.join(absent)}"]
    if extra := sorted(set(parts) - set(wanted)):
        return [f"{layer} has {extra[0]}, but the settings do not say use_dora"]
    (down, up), rank = (parts["lora_A"].shape, parts["lora_B"].shape), _rank_of(layer, settings)
    if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank:
        return [f"{layer}: lora_A is {list(down)} and lora_B {list(up)}, which is not rank {rank}"]
    sides = (up[0], down[1])  # as the base's weight: (out, in)
    magnitudes = parts.get("lora_magnitude_vector")
    if magnitudes is not None and magnitudes.shape != (up[0],):
        return [f"{layer}: lora_magnitude_vector is {list(magnitudes.shape)}, not [{up[0]}]"]
    return base.problems(layer, sides, transposed=bool(settings.get("fan_in_fan_out"))) if base else []


def _missing_layers(layers: Mapping[str, Any], settings: Mapping[str, Any], base: _BaseLayers | None) -> list[str]:
    targets = settings["target_modules"]
    if isinstance(targets, str):  # a pattern, which only PEFT reads
        return []
    if unused := [target for target in targets if not any(_is_target(layer, [target]) for layer in layers)]:
        return [f"target_modules names {', '.join(unused)}, of which there is no tensor"]
    if base is None or settings.get("layers_to_transform") is not None or settings.get("exclude_modules"):
        return []
    return [f"{layer} is named by target_modules and has no tensor" for layer in base.without(layers, targets)]


class _BaseLayers:
    """The base's linear layers by name; shape (out, in), or None where a quantised file does not say.

    An adapter may name layers by another beginning than the base's files (`model.language_model.` for `language_model.model.`):
    then only what follows `layers.` counts.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, Any]) -> None:
        found: dict[str, tuple[int, ...] | None] = {
            name.removesuffix(".weight"): shape
            for name, shape in shapes.items()
            if name.endswith(".weight") and len(shape) == 2
        }
        found |= {name.removesuffix(".qweight"): None for name in shapes if name.endswith(".qweight")}
        self._by_end = not any(layer in found for layer in layers)
        self._layers: dict[str, list[tuple[int, ...] | None]] = {}
        for name, shape in found.items():
            self._layers.setdefault(self._name(name), []).append(shape)

    def _name(self, layer: str) -> str:
        _, mark, after = layer.partition("layers.")
        return mark + after if self._by_end and mark else layer

    def problems(self, layer: str, sides: tuple[int, int], *, transposed: bool) -> list[str]:
        shapes = self._layers.get(self._name(layer))
        if shapes is None:
            return [f"the base has no layer {layer}"]
        if any(_fits(sides[::-1] if transposed else sides, shape) for shape in shapes):
            return []
        return [
            f"{layer} is trained for {sides[1]} inputs and {sides[0]} outputs, the base's has {shapes[0]} (outputs, inputs)"
        ]

    def without(self, layers: Mapping[str, Any], targets: Sequence[str]) -> list[str]:
        trained = {self._name(layer) for layer in layers}
        return [
            name
            for name in self._layers
            # The experts of a mixture stand one by one in the files and are one tensor in the model, which LoRA here leaves.
            if _is_target(name, targets) and name not in trained and ".experts." not in name
        ]


def _fits(sides: tuple[int, int], shape: tuple[int, ...] | None) -> bool:
    # A 4-bit file packs two weights into a byte, in one column.
    return shape is None or sides == shape or (shape[1] == 1 and math.prod(sides) == 2 * shape[0])


def _is_target(layer: str, targets: Sequence[str]) -> bool:
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def _rank_of(layer: str, settings: Mapping[str, Any]) -> int:
    ranks = settings.get("rank_pattern") or {}
    return int(next((rank for name, rank in ranks.items() if _is_target(layer, [name])), settings["r"]))


def _values_problems(path: Path, found: Mapping[str, Tensor]) -> list[str]:
    with path.open("rb") as source:
        return [
            f"{name} is not finite, so its training diverged"
            for name, tensor in found.items()
            if not _is_finite(source, tensor)
        ]


def _is_finite(source: IO[bytes], tensor: Tensor) -> bool:
    import numpy  # the command line loads without it

    kind, exponent = _EXPONENT[tensor.dtype]
    source.seek(tensor.begin)
    left = math.prod(tensor.shape)
    while left > 0:
        words = numpy.fromfile(source, dtype=kind, count=min(left, _BLOCK_WORDS))
        if not words.size or bool(((words & exponent) == exponent).any()):
            return False
        left -= words.size
    return True
