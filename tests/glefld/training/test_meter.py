"""The learning rate over a run."""

import dataclasses

import pytest

from glefld.recipe import Recipe
from glefld.training.meter import learning_rate


def test_learning_rates_follow_the_schedule() -> None:
    """GLE's: 1e-4, times 0.1 every five epochs. The cosine warms up, peaks at the given rate and ends near 0."""
    paper = Recipe()
    rates = [learning_rate(paper, epoch * 7, 7) for epoch in range(30)]
    assert rates[:5] == [1e-4] * 5
    assert rates[5] == pytest.approx(1e-5)
    assert rates[29] == pytest.approx(1e-9)
    cosine = dataclasses.replace(paper, schedule="cosine", epochs=10, warmup_epochs=2)
    rates = [learning_rate(cosine, step, 10) for step in range(100)]
    assert max(rates) == pytest.approx(1e-4, rel=1e-3)
    assert rates.index(max(rates)) in (19, 20)
    assert rates[0] < 1e-5
    assert rates[-1] < 1e-7
    assert rates[20:] == sorted(rates[20:], reverse=True)
