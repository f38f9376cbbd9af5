"""The input graph gives the same batches on a GPU as on a CPU, and each batch keeps its values."""

import dataclasses
import os
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from glefld.data.augmentation import Augmentation, compose, draw_augmentation
from glefld.data.loader import InputPipeline
from glefld.data.picture import IMAGENET, Picture
from tests.natural import ENCODINGS, picture

SIZE = 224


def levels(images: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation's scale: [b, 3, S, S] in steps of 1/255."""
    return images.cpu() * torch.tensor(IMAGENET.std)[:, None, None]


def augmented(plain: Picture, seed: int) -> Picture:
    draw = draw_augmentation(Augmentation(), SIZE, np.random.default_rng(seed))
    return dataclasses.replace(plain, to_input=compose(draw.affine, plain.to_input), colour=draw.colour)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("change", ["plain", "augmented"])
def test_a_gpu_loads_what_a_cpu_loads(
    encoding: str, change: str, device: torch.device, tell: Callable[[str], None]
) -> None:
    """Decoders and warps round differently, 4:2:0 chroma by half a level; no picture is moved, turned or tinted."""
    pictures = [picture(seed, SIZE, encoding, 200 + 37 * seed, 411 - 29 * seed) for seed in range(8)]
    if change == "augmented":
        pictures = [augmented(plain, seed) for seed, plain in enumerate(pictures)]
    here = levels(InputPipeline(SIZE, IMAGENET, 8).run(pictures))
    there = levels(InputPipeline(SIZE, IMAGENET, 8, device.index).run(pictures))
    apart = (here - there).abs()
    tell(
        f"{encoding}, {change}: from the CPU's by {apart.mean():.3f} of 255 levels, at most {apart.max():.1f}, "
        f"bias {(there - here).mean():+.3f}"
    )
    assert apart.mean() < 0.8
    assert apart.max() < 8


def test_a_batch_keeps_its_values_while_the_next_are_loaded(device: torch.device) -> None:
    """DALI reuses its buffers: what was handed out must not change, whatever the streams do."""
    pipeline = InputPipeline(SIZE, IMAGENET, 32, device.index)
    batches = [[picture(32 * i + j, SIZE) for j in range(32 if i else 5)] for i in range(3)]
    alone = [pipeline.run(batch).cpu() for batch in batches]
    kept = []
    busy = torch.randn(4096, 4096, device=device)
    for _ in range(4):
        for batch in batches:
            busy = busy @ busy.clamp(-1, 1) / 64  # the default stream is behind while the next is loaded
            kept.append(pipeline.run(batch))
    for i, images in enumerate(kept):
        assert torch.equal(images.cpu(), alone[i % 3]), f"batch {i} has changed"


def test_a_picture_that_cannot_be_decoded_is_an_error(device: torch.device) -> None:
    whole = picture(0, SIZE)
    broken = dataclasses.replace(whole, encoded=whole.encoded[:40])
    with pytest.raises(RuntimeError):
        InputPipeline(SIZE, IMAGENET, 2, device.index).run([whole, broken])


def test_how_many_pictures_a_second_are_loaded(device: torch.device, tell: Callable[[str], None]) -> None:
    """Tells what the graph loads a second, all augmentations on."""
    threads = os.cpu_count() or 1
    pictures = [augmented(picture(seed, SIZE), seed) for seed in range(128)]
    for name, pipeline in {
        f"CPU, {threads} threads": InputPipeline(SIZE, IMAGENET, 128, None, threads),
        "GPU, 1 thread": InputPipeline(SIZE, IMAGENET, 128, device.index, 1),
        f"GPU, {threads} threads": InputPipeline(SIZE, IMAGENET, 128, device.index, threads),
    }.items():
        rates = []
        for _ in range(6):
            begun = time.perf_counter()
            for _, loaded in pipeline.load([(None, pictures)] * 8):
                images = loaded.images
            torch.cuda.synchronize()
            rates.append(8 * len(images) / (time.perf_counter() - begun))
        low, middle, high = np.quantile(rates[1:], (0, 0.5, 1))
        tell(f"loader at {SIZE}, {name}: {middle:.0f} pictures/s ({low:.0f} to {high:.0f})")
