"""Light and folds: they change a photo's look and never its extremes beyond recognition."""

import numpy as np
import pytest

from glefld.synthetic.render.scene import COLOURS, _tone_curve, creases, dye


@pytest.mark.parametrize("seed", range(20))
def test_tone_curves_keep_black_white_and_the_order(seed: int) -> None:
    """Or a white background would turn grey, and a dark print on dark cloth could change places with it."""
    curve = _tone_curve(np.random.default_rng(seed))
    assert len(curve) == 256
    assert (curve[0], curve[255]) == (0, 255)
    assert (np.diff(curve) >= 0).all()


def test_creases_darken_as_much_as_they_lighten() -> None:
    """Over many photos; within one they neither reach black nor stay flat."""
    reliefs = [creases(np.random.default_rng(seed), 80, 120, 30.0) for seed in range(40)]
    assert {relief.shape for relief in reliefs} == {(120, 80)}
    assert max(np.abs(relief).max() for relief in reliefs) <= 0.6
    assert abs(np.mean([relief.mean() for relief in reliefs])) < 0.01
    assert min(relief.std() for relief in reliefs) > 0.002


def test_dyed_cloth_is_paler_than_the_palette() -> None:
    """Or as colourful, give or take its brightness."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        dyed = dye(rng, name)
        assert all(0 <= value <= 255 for value in dyed)
        assert max(dyed) - min(dyed) <= 1.15 * (max(colour) - min(colour)) + 2, name
