"""Choosing the dtype of the forward pass: as asked for, or the one that this model is faster in on this device.

What a processor multiplies fast does not say it: bf16 is twice as fast as fp32 for a VGG and half as fast for depthwise
convolutions on the same CPU. So a few steps of the model itself are timed in both.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from glefld.models.system import Model
from glefld.recipe import Precision

Named = Literal["fp32", "bf16"]
DTYPES: dict[Named, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: bf16 is chosen if its step takes at most this part of fp32's: noise must not cost digits.
WORTH = 0.9
#: Steps are repeated for so long, and the batch grows until the two steps take at least ``LEAST_SECONDS``.
SECONDS, LEAST_SECONDS = 1.0, 0.25
#: Of a few steps, other work may have slowed all that are in one precision: 0.6 was measured where 2 is true.
LEAST_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Choice:
    """A precision, and why it was chosen."""

    precision: Named
    why: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


def choose_precision(precision: Precision, model: Model, size: int, rows: int, *, training: bool) -> Choice:
    """Take a named precision as it is; for ``auto`` time the model's step on at most ``rows`` inputs of ``size``.

    training: a step is forward and backward, else forward alone. The model is on the device that counts, and is left as
    it was. On a GPU fp32 is what PyTorch makes of it, with TF32 in convolutions.
    """
    if precision != "auto":
        return Choice(precision, "as asked for")
    return faster(measure(model, size, rows, training=training))


def faster(seconds: dict[Named, float]) -> Choice:
    """Choose by the seconds that a step takes in each precision."""
    ratio = seconds["fp32"] / seconds["bf16"]
    return Choice(
        "bf16" if seconds["bf16"] <= WORTH * seconds["fp32"] else "fp32",
        f"a step in bf16 is {ratio:.2f} times as fast as in fp32",
    )


def measure(model: Model, size: int, rows: int, *, training: bool) -> dict[Named, float]:
    """Time the model's step in each precision, in turn: seconds of the fastest, as other work only makes it slower.

    Takes a second or two; on the slowest machines five steps of each.
    """
    device = next(model.parameters()).device
    with _left_as_it_was(model, device):
        model.train(training)
        count = min(2, rows)
        while True:
            images = torch.randn(count, 3, size, size, device=device)
            images = images.contiguous(memory_format=torch.channels_last)
            _steps(model, images, training)  # the first step of a shape looks for its kernels
            until = time.perf_counter() + SECONDS
            found = [_steps(model, images, training)]
            if count == rows or sum(found[0].values()) >= LEAST_SECONDS:
                break
            count = min(2 * count, rows)
        while len(found) < LEAST_STEPS or time.perf_counter() < until:
            found.append(_steps(model, images, training))
    return {name: min(seconds[name] for seconds in found) for name in DTYPES}


def _steps(model: Model, images: Tensor, training: bool) -> dict[Named, float]:
    """Take one step in each precision, and return the seconds of each."""
    seconds: dict[Named, float] = {}
    for name, dtype in DTYPES.items():
        _wait(images.device)
        start = time.perf_counter()
        with (
            torch.set_grad_enabled(training),
            torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32),
        ):
            output = model(images)
        if training:
            torch.stack([p.float().square().mean() for p in output if p is not None]).sum().backward()
            model.zero_grad(set_to_none=True)
        _wait(images.device)
        seconds[name] = time.perf_counter() - start
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _left_as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore the model's mode, its buffers (batch norm's statistics) and the random generators afterwards."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    for module, mode in modes.items():
        module.training = mode
