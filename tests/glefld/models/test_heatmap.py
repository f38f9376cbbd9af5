"""Heatmaps: what is encoded comes back, at every preset's size and up to the border."""

import random

import pytest
import torch

from glefld.models import sanl
from glefld.models.baseline import Baseline
from glefld.models.heatmap import Codec
from glefld.recipe import BEST, Recipe

SIZES = sorted({Recipe().input_size, BEST.input_size, 64})
CODECS = {"papers": Codec(), "coarse": sanl.COARSE, "fine": sanl.FINE, "baseline": Baseline.codec}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", SIZES)
def test_round_trip_up_to_the_border(size: int, codec: str) -> None:
    """Decoding an encoded landmark errs by less than 0.1 px of the input, as close as 1 px to its border."""
    seed = random.randrange(2**31)
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    points = 1 + torch.rand(32, 8, 2, generator=generator) * (size - 2)
    points[0, :4] = torch.tensor([[1, 1], [size - 1, 1], [1, size - 1], [size - 1, size - 1]])
    chosen = CODECS[codec]
    decoded, score = chosen.decode(chosen.encode(points, size // chosen.stride))
    assert (decoded - points).norm(dim=-1).max() < 0.1
    assert score.min() > 0.3


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("scale", [0.3, 0.6, 1.0])
def test_a_weaker_peak_is_found_as_well(scale: float, codec: str) -> None:
    """A network's peaks are lower than the target's: their place must not depend on their height by much."""
    points = torch.tensor([[[40.3, 51.8], [20.5, 20.5], [33.0, 70.1]]])
    chosen = CODECS[codec]
    decoded, _ = chosen.decode(scale * chosen.encode(points, 112 // chosen.stride))
    assert (decoded - points).norm(dim=-1).max() < 0.25


@pytest.mark.parametrize("codec", CODECS)
def test_decode_stays_in_the_map(codec: str) -> None:
    """Noise, constants and negative maps give finite points within the input."""
    for maps in (torch.randn(2, 8, 32, 32), torch.zeros(2, 8, 32, 32), -torch.ones(2, 8, 32, 32)):
        decoded, _ = CODECS[codec].decode(maps)
        assert decoded.isfinite().all()
        assert (decoded >= 0).all()
        assert (decoded <= 32 * CODECS[codec].stride).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_map_that_is_no_number_has_no_peak(value: float, codec: str) -> None:
    """Wherever the value is, place and height are NaN; the other maps decode as they would without it."""
    chosen = CODECS[codec]
    points = torch.tensor([[[40.3, 51.8], [20.5, 20.5], [33.0, 70.1]]]).repeat(3, 1, 1)
    maps = chosen.encode(points, 112 // chosen.stride)
    expected = chosen.decode(maps)
    maps[0, 0] = value
    maps[1, 1, -1, -1] = value
    maps[2, 2].view(-1)[maps[2, 2].argmax()] = value
    wrong = torch.eye(3, dtype=torch.bool)
    for found, whole in zip(chosen.decode(maps), expected, strict=True):
        assert found[wrong].isnan().all()
        assert torch.equal(found[~wrong], whole[~wrong])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-9])
def test_a_map_of_one_value_is_its_first_pixels_centre(value: float, codec: str) -> None:
    """A map without a peak says nothing of where between the pixels it lies."""
    chosen = CODECS[codec]
    decoded, score = chosen.decode(torch.full((1, 2, 28, 28), value))
    assert torch.equal(decoded, torch.full((1, 2, 2), chosen.stride / 2))
    assert torch.equal(score, torch.full((1, 2), value))


def test_target_is_the_papers() -> None:
    """exp(-d / 2R) with R = 8 at 224: at the landmark's own pixel centre 1, at 16 pixels exp(-1)."""
    target = Codec().encode(torch.tensor([[[100.5, 100.5]]]), 224)[0, 0]
    assert target[100, 100] == 1
    assert target[100, 116].item() == pytest.approx(0.36787944)
    assert target[84, 100].item() == pytest.approx(0.36787944)


def test_loss_by_hand() -> None:
    """Mean over rows x K x H x W; what has weight 0 adds nothing, though its coordinates are NaN."""
    landmarks = torch.tensor([[[4.5, 4.5], [float("nan"), float("nan")]]])
    predicted = torch.zeros(1, 2, 8, 8, requires_grad=True)
    codec = Codec(width=28.0)
    target = codec.encode(landmarks[:, :1], 8)
    value = codec.loss(predicted, landmarks, torch.tensor([[1.0, 0.0]]), rows=3)
    assert value.item() == pytest.approx(target.square().sum().item() / (3 * 2 * 8 * 8))
    (gradient,) = torch.autograd.grad(value, predicted)
    assert gradient.isfinite().all()
    assert gradient[:, 1].abs().max() == 0


def test_a_share_without_landmarks_has_a_gradient_of_zero() -> None:
    """A rank whose rows show none takes part in the step like the others: a loss, and a gradient, of 0."""
    predicted = torch.rand(2, 3, 8, 8, requires_grad=True)
    value = Codec().loss(predicted, torch.full((2, 3, 2), torch.nan), torch.zeros(2, 3), rows=5)
    assert value == 0
    (gradient,) = torch.autograd.grad(value, predicted)
    assert gradient.abs().max() == 0


def test_a_map_of_stride_4_is_the_means_of_the_full_one() -> None:
    """A smaller map shows the same places: its pixels lie in the middle of the input's they stand for."""
    points = torch.tensor([[[21.7, 40.2]]])
    full = Codec("gaussian", width=20, stride=1).encode(points, 64)
    small = Codec("gaussian", width=20, stride=4).encode(points, 16)
    pooled = torch.nn.functional.avg_pool2d(full, 4)
    assert (small - pooled).abs().max() < 0.05
    shifted = Codec("gaussian", width=20, stride=4).encode(points + 2, 16)
    assert (shifted - pooled).abs().max() > 0.1
