"""Scores of scores: calibration error and sparsification, against their definitions on single answers."""

import numpy as np
import pytest
import torch

from glefld.scoring.confidence import BINS, bins, expected_calibration_error, sparsification


def binned(score: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins(score), value.double())


def test_calibration_error_is_the_gap_between_scores_and_shares() -> None:
    """Half of the answers with .8 are right: the error is .3. Of those with .5 half are: it is 0."""
    score = torch.tensor([0.8] * 10 + [0.5] * 10)
    count = binned(score, torch.ones(20))
    right = binned(score, torch.tensor([1.0, 0.0] * 10))
    found = expected_calibration_error(count, right)
    assert found == pytest.approx(0.15, abs=1e-3)


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
    found = sparsification(binned(told, torch.ones(BINS)), binned(told, torch.from_numpy(error)))
    assert found == pytest.approx(expected)
    assert found < 0.95


def test_scores_without_meaning_gain_nothing() -> None:
    score = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    assert sparsification(binned(score, torch.ones(20_000)), binned(score, torch.full((20_000,), 0.3))) == 1


def test_without_answers_there_is_no_score() -> None:
    nothing = torch.zeros(BINS, dtype=torch.float64)
    assert expected_calibration_error(nothing, nothing) is None
    assert sparsification(nothing, nothing) is None


def test_scores_out_of_range_are_put_to_the_ends() -> None:
    assert bins(torch.tensor([-1.0, 0.0, 1.0, 7.0, float("nan")])).tolist() == [0, 0, BINS - 1, BINS - 1, 0]
