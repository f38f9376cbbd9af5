"""What a system costs: parameters, multiply-adds, images a second."""

import dataclasses
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from glefld.models.system import Model

#: Batches timed, after as many that are not.
TIMED = 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a model, on the machine it was measured on."""

    parameters: int  # frozen ones too
    multiply_adds: int  # of one input
    images_per_second: float  # forward


def measure(model: Model, size: int, batch_size: int, dtype: torch.dtype) -> Cost:
    return Cost(
        parameters(model), multiply_adds(model, size), images_per_second(model, size, batch_size, dtype)
    )


def parameters(model: Model) -> int:
    """All of them, a frozen guide's too."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def multiply_adds(model: Model, size: int) -> int:
    """Of one input of this size, forward; a guide's Grad-CAM with its backward pass."""
    device = next(model.parameters()).device
    # The fused attention kernels of a CPU are not counted; the plain products are.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops() // 2


@torch.no_grad()
def images_per_second(model: Model, size: int, batch_size: int, dtype: torch.dtype) -> float:
    """Inputs a second, forward, in channels-last order: the median of ``TIMED`` batches."""
    device = next(model.parameters()).device
    model = model.eval().to(memory_format=torch.channels_last)
    images = torch.zeros(batch_size, 3, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    seconds = []
    for _ in range(2 * TIMED):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return batch_size / statistics.median(seconds[TIMED:])
