"""Landmarks as distributions: the target's own landmark is decoded, and of two places the likelier one's side."""

import pytest
import torch

from glefld.models.distribution import Distribution

CODEC = Distribution()


@pytest.mark.parametrize(("size", "stride"), [(64, 4), (112, 4), (224, 4), (64, 8), (160, 8), (224, 8)])
def test_round_trip(size: int, stride: int) -> None:
    """A target's logarithm decodes to its landmark, within a twentieth of a map pixel where no border cuts it."""
    seed = int(torch.randint(1 << 31, ()))
    print("seed", seed)
    torch.manual_seed(seed)
    landmarks = torch.rand(40, 8, 2) * size * 0.6 + size * 0.2
    codec = Distribution(stride=stride)
    points, _ = codec.decode(codec.encode(landmarks, size // stride).clamp(min=1e-12).log())
    assert (points - landmarks).abs().max() < 0.05 * stride


def test_targets_are_distributions_up_to_the_border() -> None:
    landmarks = torch.tensor([[0.0, 0.0], [64.0, 32.0], [31.9, 64.0]])
    target = CODEC.encode(landmarks, 16)
    torch.testing.assert_close(target.sum(dim=(-1, -2)), torch.ones(3))
    points, _ = CODEC.decode(target.clamp(min=1e-12).log()[None])
    assert ((points >= 0) & (points <= 64)).all()
    assert (points[0] - landmarks).norm(dim=-1).max() < 4  # a map pixel: the border cuts half of the target


def test_of_two_places_the_likelier_is_answered_with_its_probability() -> None:
    """Unlike the mean, which lies between them, where the landmark is not."""
    two = CODEC.encode(torch.tensor([[16.0, 16.0], [96.0, 96.0]]), 28)
    points, score = CODEC.decode((0.7 * two[0] + 0.3 * two[1]).clamp(min=1e-12).log()[None, None])
    assert (points[0, 0] - 16).abs().max() < 3
    assert score.item() == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize(
    ("size", "stride", "least"), [(64, 4, 0.85), (224, 4, 0.95), (64, 8, 0.4), (160, 8, 0.9)]
)
def test_the_score_is_the_probability_near_the_point(size: int, stride: int, least: float) -> None:
    """A target's is great, and does not jump as the landmark moves: a circle of few pixels counts parts of them."""
    codec = Distribution(stride=stride)
    landmarks = torch.linspace(0.4, 0.6, 1001)[:, None] * size * torch.tensor([1.0, 0.7])
    _, score = codec.decode(codec.encode(landmarks, size // stride).clamp(min=1e-12).log()[:, None])
    assert score.min() > least
    assert score[:, 0].diff().abs().max() < 0.01


def test_no_point_has_a_lower_expected_distance() -> None:
    """Of maps with several peaks; the mean, which lies between them, fails this."""
    seed = int(torch.randint(1 << 31, ()))
    print("seed", seed)
    torch.manual_seed(seed)
    peaks = CODEC.encode(torch.rand(40, 3, 2) * 64, 16)
    p = (peaks * torch.rand(40, 3).softmax(1)[..., None, None]).sum(1)
    points, _ = CODEC.decode(p.clamp(min=1e-12).log()[None])
    pixels, grid = (
        torch.cartesian_prod(axis, axis).flip(-1)
        for axis in ((torch.arange(16) + 0.5) * CODEC.stride, torch.arange(129) / 2)
    )

    def expected(at: torch.Tensor) -> torch.Tensor:
        return torch.cdist(at, pixels) @ p.flatten(1).T  # [grid, 40]

    least = expected(grid).min(0).values
    found = torch.stack([expected(points[0])[i, i] for i in range(40)])
    mean = torch.stack([expected(p.flatten(1) @ pixels)[i, i] for i in range(40)])
    assert (found - least).max() < 0.06 * CODEC.stride  # pixels nearer than one pull as if it were one
    assert (mean - least).max() > 0.2 * CODEC.stride


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_that_is_no_number_has_no_answer(value: float) -> None:
    logits = torch.zeros(1, 2, 8, 8)
    logits[0, 1, 3, 3] = value
    points, score = CODEC.decode(logits)
    assert points.isnan().all(dim=-1)[0].tolist() == [False, True]
    assert score.isnan()[0].tolist() == [False, True]


def test_the_loss_is_least_for_the_target_and_ignores_what_weighs_nothing() -> None:
    """Losses of a batch's shares add up to the batch's."""
    torch.manual_seed(0)
    landmarks = torch.rand(4, 3, 2) * 64
    landmarks[1, 2] = float("nan")
    weight = torch.ones(4, 3)
    weight[1, 2] = 0
    right = CODEC.encode(landmarks.nan_to_num(), 16).clamp(min=1e-30).log()
    least = CODEC.loss(right, landmarks, weight, 4)
    assert least < CODEC.loss(right + 0.3 * torch.randn_like(right), landmarks, weight, 4)
    shares = [CODEC.loss(right[i : i + 2], landmarks[i : i + 2], weight[i : i + 2], 4) for i in (0, 2)]
    torch.testing.assert_close(shares[0] + shares[1], least)
