"""The base and its LoRA layers: a model folder in, a model ready for training out.

The frozen weights are held in 4, 8 or 16 bits, on CPU as on GPU; products are in bf16; LoRA weights stay in fp32. The 4-bit
weights of a small base are unpacked once on CPU: the same values, in the memory of 16 bits.
It trains nothing and saves nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from slm_ray.config import Lora, Precision, Recipe
from slm_ray.errors import ConfigError
from slm_ray.training.base_shape import is_expert
from slm_ray.training.estimate import EAGER_TOKENS, is_unpacked


def open_base(folder: Path, recipe: Recipe, *, use_gpu: bool, longest: int) -> Any:
    """The frozen base in the recipe's precision. `longest` is the longest row, in tokens."""
    # On CPU the fused attention kernel takes a third of a step on short rows; plain attention is a third faster there.
    eager = not use_gpu and longest <= EAGER_TOKENS
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=quantization(recipe.precision),
        device_map={"": torch.cuda.current_device()} if use_gpu else None,
        attn_implementation="eager" if eager else "sdpa",
        local_files_only=True,
    )
    model.config.use_cache = False
    if not use_gpu:
        parameters = 0
        for part in model.modules():
            if isinstance(part, Linear4bit):
                # Else the first answer on CPU packs the weights anew, their scales rounded, for good: a model that is
                # scored while it trains would go on with another base. Answers take no longer without.
                part.support_avx512bf16_for_cpu = False
                parameters += part.in_features * part.out_features
        if is_unpacked(parameters):
            _unpack(model)
    return model


def _unpack(model: Any) -> None:
    """Every 4-bit layer as a plain one over the values that it stands for, which else each pass works out twice."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                values = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(torch.bfloat16)
                plain.weight, plain.bias = torch.nn.Parameter(values, requires_grad=False), layer.bias
                setattr(parent, name, plain)


def quantization(precision: Precision) -> BitsAndBytesConfig | None:
    """How bitsandbytes is to hold the frozen weights; None for bf16."""
    match precision:
        case "4bit":
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        case "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        case "16bit":
            return None


def add_lora(model: Any, lora: Lora) -> Any:
    """The base with trainable LoRA layers; ConfigError when a target module is not in this architecture."""
    head = model.get_output_embeddings()
    layers = [
        name for name, part in model.named_modules() if isinstance(part, (torch.nn.Linear, Conv1D)) and part is not head
    ]
    routing = [name for name in layers if is_expert(name)]  # what chooses among experts is left as it is
    linears = {name.rsplit(".", 1)[-1] for name in layers if name not in routing}
    targets = linears if lora.target_modules == "all-linear" else set(lora.target_modules)
    if absent := sorted(targets - linears):
        raise ConfigError(
            f"lora.target_modules: the base has no {', '.join(absent)}; it has {', '.join(sorted(linears))}"
        )
    adapted = get_peft_model(
        model,
        PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=sorted(targets),
            exclude_modules=[name for name in routing if name.rsplit(".", 1)[-1] in targets] or None,
            use_rslora=lora.variant == "rslora",
            use_dora=lora.variant == "dora",
            task_type="CAUSAL_LM",
        ),
    )
    if model.device.type == "cpu":
        # PEFT looks for autocast on CUDA only, and copies every input to fp32 and back: same result, a tenth slower.
        for part in adapted.modules():
            if isinstance(part, BaseTunerLayer):
                part.cast_input_dtype_enabled = False
    return adapted


def keep_masters_in_fp32(model: Any) -> None:
    """Trainable weights back to fp32: TRL casts them to bf16, which rounds away updates below 1/256 of a weight."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
