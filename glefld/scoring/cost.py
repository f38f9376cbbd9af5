"""The cost of a system: parameters, multiply-adds, images per second."""

import dataclasses
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from glefld.models.system import Model

#: Batches timed, after as many warm-up batches.
TIMED = 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """A model's cost, on the machine it was measured on."""

    parameters: int  # including frozen ones
    multiply_adds: int  # per input, forward
    images_per_second: float  # forward pass


def measure(model: Model, size: int, batch_size: int, dtype: torch.dtype) -> Cost:
    """Measure a model's cost for inputs of ``size`` pixels, on the device the model is on."""
    return Cost(
        parameters(model), multiply_adds(model, size), images_per_second(model, size, batch_size, dtype)
    )


def parameters(model: Model) -> int:
    """Return the number of parameters, a frozen guide's included."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def multiply_adds(model: Model, size: int) -> int:
    """Return the multiply-adds of one input's forward pass, including the backward pass of a guide's Grad-CAM."""
    device = next(model.parameters()).device
    # The counter does not see the CPU's fused attention kernels, so use the plain ones.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops() // 2


@torch.no_grad()
def images_per_second(model: Model, size: int, batch_size: int, dtype: torch.dtype) -> float:
    """Return inputs per second of the forward pass, channels-last: the median over ``TIMED`` batches."""
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
