"""Garments and answers that are wrong in known ways, for what is computed of errors."""

import numpy as np
import torch

from glefld.data.truth import Truth
from glefld.schema import FASHION8, VIEWS, Labels, Visibility

LABELS = Labels(FASHION8)
K, TYPES = len(FASHION8), len(FASHION8.garment_types)


def garments(
    rng: np.random.Generator, number: int, *, exchanged: int = 5, visible: bool = False
) -> tuple[torch.Tensor, Truth, torch.Tensor]:
    """Predictions [B, K, 2] off by 3 pixels of boxes of 60 to 360, truth, and logits of the type [B, T].

    The answers of every so many have left and right exchanged. The first garment shows no landmark. visible: all others
    show all of theirs.
    """
    corner, size = rng.uniform(0, 50, (number, 1, 2)), rng.uniform(60, 300, (number, 1, 2))
    points = corner + rng.uniform(0, 1, (number, K, 2)) * size
    predicted = points + rng.normal(0, 3, points.shape)
    predicted[::exchanged] = predicted[::exchanged][:, list(FASHION8.mirror)]
    visibility = np.zeros((number, K), int) if visible else rng.integers(0, 4, (number, K))
    points[visibility >= Visibility.CUT_OFF] = np.nan
    visibility[0], points[0] = Visibility.ABSENT, np.nan
    truth = Truth(
        torch.from_numpy(points),
        torch.from_numpy(visibility),
        torch.from_numpy(np.concatenate([corner, corner + size], axis=2)[:, 0]),
        torch.from_numpy(rng.integers(0, TYPES + 1, number)),  # 0 is no code: unknown
        torch.from_numpy(rng.integers(-1, len(VIEWS), number)),
        torch.full((number,), -1),
        torch.zeros(number, 0),
    )
    return torch.from_numpy(predicted), truth, torch.from_numpy(rng.normal(0, 1, (number, TYPES)))
