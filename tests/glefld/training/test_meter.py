"""The learning rate over a run, and what is logged of its steps."""

import dataclasses

import pytest
import torch

from glefld.recipe import Recipe
from glefld.training.meter import Meter, Seen, learning_rate


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


def test_the_means_of_so_many_steps_are_logged_as_the_last_of_them() -> None:
    """Those of an epoch that was resumed at its third step too: the same steps are in a mean, and none is left out."""
    recipe = Recipe(log_steps=4)
    for begun, expected in ((0, {13: 1.5, 17: 5.5, 19: 8.5}), (2, {13: 2.5, 17: 5.5, 19: 8.5})):
        entries: list[tuple[dict[str, float], int]] = []
        seen: list[Seen] = []
        meter = Meter(recipe, 10, 10, lambda *entry, entries=entries: entries.append(entry), seen.append)  # type: ignore[misc]
        for step in range(begun, 10):
            meter.add(step, torch.tensor(float(step)), 8, waited=step / 10)
        meter.flush()
        logged = {step: metrics for metrics, step in entries}
        assert len(logged) == len(entries)
        assert {step: metrics["loss"] for step, metrics in logged.items()} == expected
        assert logged[17]["data_wait_seconds"] == pytest.approx(0.55)
        assert logged[17]["learning_rate"] == learning_rate(recipe, 17, 10)
        assert min(metrics["images_per_second"] for metrics in logged.values()) > 0
        assert [found.loss for found in seen] == list(expected.values())
        assert sum(found.images for found in seen) == 8 * (10 - begun)
        assert sum(found.waited for found in seen) == pytest.approx(sum(range(begun, 10)) / 10)
