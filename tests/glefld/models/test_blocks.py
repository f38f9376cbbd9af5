"""Attention by plain products and by PyTorch's fused kernel."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glefld.models import blocks
from glefld.models.blocks import NonLocal, Products


class Largest(TorchDispatchMode):
    """Notes the most bytes that any tensor which an operation returns is held in."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("products", get_args(Products))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.bfloat16, 0.05)])
def test_both_ways_are_one_function(
    attention: bool, products: Products, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients agree, also under autocast."""
    torch.manual_seed(0)
    block = NonLocal(16, products).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(2, 16, 6, 7, dtype=block.w.weight.dtype, requires_grad=True)
    weight = torch.rand(2, 1, 6, 7, dtype=x.dtype) if attention else None
    found = []
    for positions in (blocks.PLAIN_POSITIONS, 0):
        monkeypatch.setattr(blocks, "PLAIN_POSITIONS", positions)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            y = block(x, weight)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        found.append((y.detach(), gradient))
    for plain, fused in zip(*found, strict=True):
        assert (plain - fused).abs().max() <= tolerance * fused.abs().max()


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_grows_linearly_with_positions(attention: bool, layout: torch.memory_format) -> None:
    """For 64 x 64 positions no operation returns more bytes than the input has, forward or backward."""
    block = NonLocal(16).to(memory_format=layout)  # type: ignore[call-overload]
    side = 64
    assert side**2 > blocks.PLAIN_POSITIONS
    x = torch.randn(1, 16, side, side).contiguous(memory_format=layout).requires_grad_()
    weight = torch.rand(1, 1, side, side) if attention else None
    with Largest() as largest:
        block(x, weight).square().sum().backward()
    assert largest.bytes <= x.nbytes
