"""Scores of scores: calibration error and sparsification, against their definitions on single answers."""

import numpy as np
import pytest
import torch

from glefld.scoring.confidence import BINS, bins, confidence


def binned(score: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins(score), value.double())


def test_calibration_error_is_the_gap_between_scores_and_shares() -> None:
    """Half of the answers with .8 are right: the error is .3. Of those with .5 half are: it is 0."""
    score = torch.tensor([0.8] * 10 + [0.5] * 10)
    count = binned(score, torch.ones(20))
    right = binned(score, torch.tensor([1.0, 0.0] * 10))
    found = confidence(count, right, count)
    assert found is not None
    assert found.calibration_error == pytest.approx(0.15, abs=1e-3)
    assert [number for _, _, number in found.reliability] == [10, 10]
    assert [share for _, share, _ in found.reliability] == [0.5, 0.5]


def test_sparsification_is_the_area_under_the_curve_of_single_answers() -> None:
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    score = rng.permutation(BINS).astype(np.float64) / BINS + 0.5 / BINS  # each in a bin of its own
    error = rng.exponential(1.5 - score)
    best = error[np.argsort(-score)]
    mean = best.cumsum() / np.arange(1, BINS + 1)
    expected = np.trapezoid(np.r_[mean[0], mean], np.arange(BINS + 1) / BINS) / mean[-1]
    told = torch.from_numpy(score)
    count = binned(told, torch.ones(BINS))
    found = confidence(count, count, binned(told, torch.from_numpy(error)))
    assert found is not None
    assert found.sparsification == pytest.approx(expected)
    assert found.sparsification < 0.95
    assert found.sparsified[-1] == [1, 1]


def test_scores_without_meaning_gain_nothing() -> None:
    score = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    count = binned(score, torch.ones(20_000))
    for error in (0.3, 0.0):
        found = confidence(count, count, binned(score, torch.full((20_000,), error)))
        assert found is not None
        assert found.sparsification == pytest.approx(1)


def test_without_answers_there_is_no_score() -> None:
    nothing = torch.zeros(BINS, dtype=torch.float64)
    assert confidence(nothing, nothing, nothing) is None


def test_scores_out_of_range_are_put_to_the_ends() -> None:
    assert bins(torch.tensor([-1.0, 0.0, 1.0, 7.0, float("nan")])).tolist() == [0, 0, BINS - 1, BINS - 1, 0]
