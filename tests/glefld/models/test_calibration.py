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
    "whatever the score": torch.full_like(SCORES, 0.55),
}


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_fit_finds_what_scores_are_worth(truth: str) -> None:
    count = torch.full_like(SCORES, 50)
    found = fit(SCORES, count, count * TRUTHS[truth])
    torch.testing.assert_close(found(SCORES), TRUTHS[truth], atol=1e-3, rtol=0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_answers_that_are_all_alike_give_finite_calibrations(share: float) -> None:
    count = torch.ones_like(SCORES)
    found = fit(SCORES, count, count * share)
    assert np.isfinite([found.scale, found.offset]).all()
    torch.testing.assert_close(found(SCORES), torch.full_like(SCORES, share), atol=1e-2, rtol=0)


def test_without_answers_scores_stay_as_they_are() -> None:
    assert fit(SCORES, torch.zeros_like(SCORES), torch.zeros_like(SCORES)) == Calibration()


def test_a_score_that_is_no_number_stays_none() -> None:
    assert Calibration()(torch.tensor([float("nan"), 0.5])).isnan().tolist() == [True, False]
