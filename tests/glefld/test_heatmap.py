"""Heatmaps: what is encoded comes back, at every preset's size and up to the border."""

import random

import pytest
import torch

from glefld import heatmap
from glefld.presets import PAPER_RECIPE, SMALL_RECIPE

SIZES = sorted({PAPER_RECIPE.input_size, SMALL_RECIPE.input_size, 64})


@pytest.mark.parametrize("size", SIZES)
def test_round_trip_up_to_the_border(size: int) -> None:
    """Decoding an encoded landmark errs by less than 0.1 px, as close as 1 px to the border."""
    seed = random.randrange(2**31)
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    points = 1 + torch.rand(32, 8, 2, generator=generator) * (size - 2)
    points[0, :4] = torch.tensor([[1, 1], [size - 1, 1], [1, size - 1], [size - 1, size - 1]])
    r = heatmap.radius(size)
    decoded, score = heatmap.decode(heatmap.encode(points, size, r), r)
    assert (decoded - points).norm(dim=-1).max() < 0.1
    assert score.min() > 0.8


@pytest.mark.parametrize("scale", [0.3, 0.6, 1.0])
def test_a_weaker_peak_is_found_as_well(scale: float) -> None:
    """A network's peaks are lower than the target's: their place must not depend on their height by much."""
    points = torch.tensor([[[40.3, 51.8], [20.5, 20.5], [33.0, 70.1]]])
    decoded, _ = heatmap.decode(scale * heatmap.encode(points, 112, 4.0), 4.0)
    assert (decoded - points).norm(dim=-1).max() < 0.25


def test_decode_stays_in_the_map() -> None:
    """Noise, constants and negative maps give finite points within the map."""
    for maps in (torch.randn(2, 8, 32, 32), torch.zeros(2, 8, 32, 32), -torch.ones(2, 8, 32, 32)):
        decoded, _ = heatmap.decode(maps, 2.0)
        assert decoded.isfinite().all()
        assert (decoded >= 0).all()
        assert (decoded <= 32).all()


def test_target_is_the_papers() -> None:
    """exp(-d / 2R) with R = 8 at 224: at the landmark's own pixel centre 1, at 16 pixels exp(-1)."""
    assert heatmap.radius(224) == 8
    target = heatmap.encode(torch.tensor([[[100.5, 100.5]]]), 224, 8.0)[0, 0]
    assert target[100, 100] == 1
    assert target[100, 116].item() == pytest.approx(0.36787944)
    assert target[84, 100].item() == pytest.approx(0.36787944)


def test_loss_by_hand() -> None:
    """Mean over rows x K x H x W; what has weight 0 adds nothing, though its coordinates are NaN."""
    landmarks = torch.tensor([[[4.5, 4.5], [float("nan"), float("nan")]]])
    predicted = torch.zeros(1, 2, 8, 8, requires_grad=True)
    target = heatmap.encode(landmarks[:, :1], 8, 1.0)
    value = heatmap.loss(predicted, landmarks, torch.tensor([[1.0, 0.0]]), 1.0, rows=3)
    assert value.item() == pytest.approx(target.square().sum().item() / (3 * 2 * 8 * 8))
    (gradient,) = torch.autograd.grad(value, predicted)
    assert gradient.isfinite().all()
    assert gradient[:, 1].abs().max() == 0
