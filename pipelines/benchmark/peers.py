"""What a user would otherwise write with PyTorch and torchvision: a DataLoader, a step, an inference script."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from glefld.data.augmentation import NO_AUGMENTATION, Augmentation
from glefld.data.loader import Batch
from glefld.data.picture import IMAGENET
from glefld.models.system import Model
from glefld.recipe import Recipe
from glefld.training.losses import total_loss

#: An encoded picture, the box in it to take (None: all of it), and landmarks [K, 2] in its pixels.
Sample = tuple[bytes, tuple[float, float, float, float] | None, np.ndarray]


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Pictures in memory, without end: decoded by Pillow, cropped to the box, augmented and normalised by torchvision.

    An item is an image [3, S, S] and landmarks [K, 2] in its pixels.
    """

    def __init__(self, samples: list[Sample], size: int, augmentation: Augmentation) -> None:
        assert not augmentation.stretch, "torchvision's random affine map keeps the shape"
        self.samples = samples
        steps: list[Any] = [v2.ToImage(), v2.Resize((size, size), antialias=True)]
        if augmentation.mirror:
            steps.append(v2.RandomHorizontalFlip(augmentation.mirror))
        if augmentation.rotate or augmentation.scale or augmentation.shift:
            most = 1 + augmentation.scale
            steps.append(
                v2.RandomAffine(augmentation.rotate, (augmentation.shift,) * 2, (1 / most, most), fill=116)
            )
        if augmentation.colour:
            # Hue is a share of the circle here: up to 30 degrees times the strength.
            steps.append(v2.ColorJitter(*(augmentation.colour,) * 3, augmentation.colour / 12))
        mean, std = ([value / 255 for value in values] for values in (IMAGENET.mean, IMAGENET.std))
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        data, box, points = self.samples[index % len(self.samples)]
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
        x, y = 0, 0
        if box is not None:
            x, y = max(0, int(box[0])), max(0, int(box[1]))
            corner = max(x + 1, min(int(box[2]), picture.width)), max(y + 1, min(int(box[3]), picture.height))
            picture = picture.crop((x, y, *corner))
        moved = np.nan_to_num(points - [x, y]).astype(np.float32)
        landmarks = tv_tensors.KeyPoints(moved, canvas_size=picture.size[::-1])
        images, where = self.transform(picture, landmarks)
        return images, where.as_subclass(Tensor)


def batches(
    samples: list[Sample], size: int, augmentation: Augmentation, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end from a DataLoader of so many processes."""
    loader = DataLoader(
        Pictures(samples, size, augmentation),
        batch_size,
        num_workers=workers,
        multiprocessing_context="forkserver",
        worker_init_fn=_one_thread,
    )
    return iter(loader)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


#: Batches that a DataLoader makes ahead, for each worker.
AHEAD = 2


def plain_step(model: Model, recipe: Recipe, batch: Batch, layout: torch.memory_format) -> Callable[[], None]:
    """Return a training step as tutorials have it: fp32, AdamW, no autocast. The model takes the memory layout."""
    model.to(memory_format=layout)
    images = batch.images.contiguous(memory_format=layout)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=recipe.learning_rate
    )

    def step() -> None:
        optimizer.zero_grad()
        loss = total_loss(model, model(images), batch, recipe, len(images), 1)
        loss.backward()
        optimizer.step()

    return step


def predictions(
    model: nn.Module, samples: list[Sample], size: int, batch_size: int, workers: int
) -> Iterator[int]:
    """Yield the number of predictions of each batch, without end: a DataLoader, an eager model in fp32, the maxima."""
    device = next(model.parameters()).device
    for images, _ in batches(samples, size, NO_AUGMENTATION, batch_size, workers):
        with torch.no_grad():
            heatmaps = model(images.to(device)).heatmaps
        heatmaps.flatten(2).max(dim=2).values.cpu()
        yield len(images)
