"""The dtype of a forward pass: as asked for, else what the device computes fast."""

import pytest
import torch

from glefld.models.precision import choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_named_precision_is_taken_on_any_device(device: torch.device) -> None:
    assert choose_precision("fp32", device) == torch.float32
    assert choose_precision("bf16", device) == torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"amx_bf16": True}, torch.bfloat16), ({"amx_bf16": False}, torch.float32), ({}, torch.float32)],
)
def test_a_cpu_takes_bf16_only_where_it_has_amx(
    capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AMX bf16 is slower than fp32; a processor of another make names no such thing."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", CPU) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_takes_bf16_where_its_hardware_has_it(
    supported: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated bf16 does not count."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert choose_precision("auto", GPU) == expected
