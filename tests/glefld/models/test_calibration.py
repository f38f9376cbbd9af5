"""Calibration: what scores were worth on one half of the answers is what they are worth on the other."""

import numpy as np
import pytest
import torch

from glefld.models.calibration import Calibration, fit
from glefld.scoring.confidence import centres

SCORES = centres()
#: How likely an answer of each score is right.
TRUTHS = {
    "as the score says": SCORES,
    "more confident than the score": torch.sigmoid(2 * SCORES.logit() - 0.5),
    "less confident than the score": torch.sigmoid(0.3 * SCORES.logit() + 0.2),
    "nearly whatever the score": torch.sigmoid(0.05 * SCORES.logit() + 0.2),
}


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_fit_finds_what_scores_are_worth(truth: str) -> None:
    count = torch.full_like(SCORES, 500)
    found = fit(SCORES, count, count * TRUTHS[truth])
    torch.testing.assert_close(found(SCORES), TRUTHS[truth], atol=1e-3, rtol=0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_answers_that_are_all_alike_give_finite_calibrations(share: float) -> None:
    count = torch.ones_like(SCORES)
    found = fit(SCORES, count, count * share)
    assert np.isfinite([found.scale, found.offset]).all()
    torch.testing.assert_close(found(SCORES), torch.full_like(SCORES, share), atol=5e-2, rtol=0)


FEW = {
    "one right answer": ([0.5], [1]),
    "one wrong answer": ([0.5], [0]),
    "the confident one wrong, the others right": ([0.9, 0.85, 0.3, 0.2], [0, 1, 1, 1]),
}


@pytest.mark.parametrize("case", FEW)
def test_few_answers_change_little_and_never_the_order(case: str) -> None:
    scores, right = (torch.tensor(values, dtype=torch.float64) for values in FEW[case])
    found = fit(scores, torch.ones_like(scores), right)
    assert (found(SCORES).diff() > 0).all()
    assert (found(SCORES) - SCORES).abs().max() < 0.5
    assert abs(found(torch.tensor(0.5)).item() - 0.5) < 0.3


def test_without_answers_scores_stay_as_they_are() -> None:
    assert fit(SCORES, torch.zeros_like(SCORES), torch.zeros_like(SCORES)) == Calibration()


def test_a_score_that_is_no_number_stays_none() -> None:
    assert Calibration()(torch.tensor([float("nan"), 0.5])).isnan().tolist() == [True, False]
