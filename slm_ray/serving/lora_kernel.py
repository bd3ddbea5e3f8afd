"""A correct LoRA kernel for vLLM on CPU, loaded in every vLLM process through the `vllm.general_plugins` entry point.

vLLM's own CPU kernel reads index -1 ("no adapter") as the last slot, so base rows that share a batch with adapter rows
are answered with an adapter; it also gathers a whole A and B per token. Here: one matrix product over the range of active
slots, with the rows of other slots and of the base masked to zero. Adapter weights must be finite (the server refuses
others), for zero times infinity is not zero. Not covered: embedding, MoE and classification LoRA. Other platforms keep
vLLM's kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from slm_ray.serving.engine_process import end_with_parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The slots [first, end) that a batch uses. `mask` [rows, slots] says which row uses which; None when all use one."""

    first: int
    end: int
    mask: torch.Tensor | None


def plan(indices: torch.Tensor) -> Plan | None:
    """What a batch needs, from its rows' slot indices (-1: no adapter); None when no row has an adapter."""
    found = torch.unique(indices).tolist()
    used = [slot for slot in found if slot >= 0]
    if not used:
        return None
    first, end = used[0], used[-1] + 1
    mask = None if len(found) == 1 else indices.unsqueeze(1) == torch.arange(first, end)
    return Plan(first=first, end=end, mask=mask)


def add_adapters(
    batch: Plan, out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
) -> None:
    """out += scale · (x Aᵀ) Bᵀ in place, each row with its own adapter.

    out [rows, wide], x [rows, in], a [slots, 1, rank, in], b [slots, 1, wide, rank].
    """
    slots, rank = batch.end - batch.first, a.shape[2]
    shrunk = torch.nn.functional.linear(x, a[batch.first : batch.end].reshape(slots * rank, -1).to(x.dtype))
    if scale != 1.0:
        shrunk = shrunk * scale
    if batch.mask is not None:
        shrunk = (shrunk.view(-1, slots, rank) * batch.mask.unsqueeze(-1)).view(-1, slots * rank)
    wide = b[batch.first : batch.end, 0].transpose(0, 1).reshape(b.shape[2], slots * rank)
    out += torch.nn.functional.linear(shrunk.to(out.dtype), wide.to(out.dtype))[:, : out.shape[1]]


def wrapper(stock: type) -> type:
    """`stock` (vLLM's PunicaWrapperCPU) with this kernel for linear layers and logits."""

    class MaskedPunicaCPU(stock):  # type: ignore[misc]
        _tokens: Plan | None = None
        _sampled: Plan | None = None

        def update_metadata(self, *args: Any, **options: Any) -> None:
            super().update_metadata(*args, **options)
            self._tokens = plan(self.token_lora_indices)
            self._sampled = plan(self.sampler_indices)

        def add_lora_linear(
            self, y: Any, x: Any, lora_a_stacked: Any, lora_b_stacked: Any, scale: float, output_slices: Any, **_: Any
        ) -> None:
            if self._tokens is None:
                return
            out, rows, start = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), 0
            for a, b, wide in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                add_adapters(self._tokens, out[:, start : start + wide], rows, a, b, scale)
                start += wide

        def add_lora_logits(
            self, y: Any, x: Any, lora_a_stacked: Any, lora_b_stacked: Any, scale: float, **_: Any
        ) -> None:
            if self._sampled is not None:
                out, rows = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
                add_adapters(self._sampled, out, rows, lora_a_stacked, lora_b_stacked, scale)

    return MaskedPunicaCPU


def register() -> None:
    """vLLM calls this once per process, maybe again; it puts the kernel in place on CPU, and an engine ends with its replica."""
    from vllm.platforms import current_platform

    end_with_parent()
    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    if punica_cpu.PunicaWrapperCPU.__name__ != "MaskedPunicaCPU":
        punica_cpu.PunicaWrapperCPU = wrapper(punica_cpu.PunicaWrapperCPU)
