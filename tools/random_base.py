"""A base of a given shape with random weights, made straight on the device in the precision that it is trained in.

One layer's matrix at a time is drawn in bf16 on the device and quantised there, so that an 8B base never lies in host
memory and nothing is downloaded. It is opened by the quantiser that transformers uses for real weights, and computes
what a real base of the shape computes, as fast and in as much memory; its answers mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers.auto import AutoHfQuantizer

from slm_ray.config import Recipe
from slm_ray.training.base_shape import BaseShape
from slm_ray.training.model import quantization

SHAPES: dict[str, dict[str, Any]] = {
    "llama31_8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False,
    },
    "llama32_3b": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 3072, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
}  # fmt: skip
_SCALE = 0.02  # the spread that Llama's weights start from


def random_base(
    shape: Mapping[str, Any], recipe: Recipe, *, device: torch.device, seed: int, between: Callable[[], None]
) -> Any:
    """A Llama of that shape, frozen, in the recipe's precision. `between` is called before each matrix, and may raise."""
    model = _empty(shape)
    quantizer = None
    if (chosen := quantization(recipe.precision)) is not None:
        quantizer = AutoHfQuantizer.from_config(chosen, pre_quantized=False)
        quantizer.preprocess_model(model=model, dtype=torch.bfloat16, device_map={"": device})
    generator = torch.Generator(device).manual_seed(seed)
    for name, empty in list(model.named_parameters()):
        between()
        place, _, parameter = name.rpartition(".")
        module = model.get_submodule(place)
        values = _drawn(module, empty, device, generator)
        if quantizer is not None and quantizer.param_needs_quantization(model, name):
            values = quantizer.get_quantize_ops().convert({name: [values]}, full_layer_name=name, model=model)[name]
        else:
            values = torch.nn.Parameter(values, requires_grad=False)
        setattr(module, parameter, values)
    with device:
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its frequencies are computed, not drawn
    model.tie_weights()
    if quantizer is not None:
        quantizer.postprocess_model(model)
        model.hf_quantizer = quantizer
    model.config.use_cache = False
    return model


def base_shape(shape: Mapping[str, Any]) -> BaseShape:
    """What the files of such a base would say."""
    return BaseShape.of(shape, {name: tuple(empty.shape) for name, empty in _empty(shape).named_parameters()})


def _empty(shape: Mapping[str, Any]) -> Any:
    config = AutoConfig.for_model("llama", **shape, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def _drawn(module: Any, empty: torch.Tensor, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """Values for one parameter in bf16: ones for a norm, normally distributed for a matrix."""
    if empty.dim() == 1:
        return torch.ones(empty.shape, dtype=torch.bfloat16, device=device)
    shape = (module.out_features, module.in_features) if hasattr(module, "out_features") else empty.shape
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, _SCALE, generator=generator)
