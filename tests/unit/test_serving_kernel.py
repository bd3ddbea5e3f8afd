"""The CPU LoRA kernel against a row-by-row reference; index -1 is the base and takes nothing from any adapter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.serving.lora_kernel import add_adapters, plan, wrapper

SLOTS, RANK, IN, OUT = 4, 3, 5, 6


def weights(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(SLOTS, 1, RANK, IN, generator=random), torch.randn(SLOTS, 1, OUT, RANK, generator=random)


def by_row(
    out: torch.Tensor, x: torch.Tensor, slots: list[int], a: torch.Tensor, b: torch.Tensor, scale: float
) -> torch.Tensor:
    expected = out.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[row] += scale * (b[slot, 0] @ (a[slot, 0] @ x[row]))
    return expected


@settings(deadline=None)
@given(st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=12), st.sampled_from([1.0, 0.5]), st.integers(0, 9))
def test_each_row_gets_its_own_adapter_and_base_rows_none(slots: list[int], scale: float, seed: int) -> None:
    a, b = weights(seed)
    x, out = torch.randn(len(slots), IN), torch.randn(len(slots), OUT)
    expected = by_row(out, x, slots, a, b, scale)
    batch = plan(torch.tensor(slots))
    if batch is None:
        assert set(slots) == {-1}
    else:
        add_adapters(batch, out, x, a, b, scale)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_base_rows_are_untouched_to_the_last_bit() -> None:
    a, b = weights(1)
    x, out = torch.randn(4, IN).bfloat16(), torch.randn(4, OUT).bfloat16()
    before = out.clone()
    batch = plan(torch.tensor([-1, 3, -1, 0]))
    assert batch is not None
    add_adapters(batch, out, x, a.bfloat16(), b.bfloat16(), 1.0)
    assert torch.equal(out[[0, 2]], before[[0, 2]])
    assert not torch.equal(out[[1, 3]], before[[1, 3]])


def test_wrapper_adds_to_packed_outputs_and_leaves_base_batches_alone() -> None:
    class Stock:
        def __init__(self, slots: list[int]) -> None:
            self.token_lora_indices = self.sampler_indices = torch.tensor(slots)

        def update_metadata(self) -> None:
            pass

    a, b = weights(2)
    x, y = torch.randn(3, IN), torch.zeros(3, 2 * OUT)
    kernel = wrapper(Stock)([2, -1, 0])
    kernel.add_lora_linear(y, x, (a, a), (b, b), 1.0, (OUT, OUT))
    assert not y.any()  # no batch was announced yet
    kernel.update_metadata()
    kernel.add_lora_linear(y, x, (a, a), (b, b), 1.0, (OUT, OUT), add_inputs=True)
    expected = by_row(torch.zeros(3, OUT), x, [2, -1, 0], a, b, 1.0)
    torch.testing.assert_close(y, torch.cat([expected, expected], dim=1))
    logits = torch.zeros(3, OUT)
    kernel.add_lora_logits(logits, x, a, b, 1.0, buffer=None)
    torch.testing.assert_close(logits, expected)
    base = wrapper(Stock)([-1, -1])
    base.update_metadata()
    base.add_lora_linear(y, x, (a,), (b,), 1.0, (OUT,))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(y, torch.zeros_like(y))
