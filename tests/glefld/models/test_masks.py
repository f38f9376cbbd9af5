"""Every system on DeepFashion2's labels: a garment trains its own category's landmarks and no other's."""

import pytest
import torch

from glefld.data.loader import Batch
from glefld.data.truth import Truth
from glefld.datasets.deepfashion2 import LABELS
from glefld.datasets.deepfashion2_landmarks import DEEPFASHION2
from glefld.recipe import Recipe
from glefld.schema import Visibility
from glefld.training.loop import train_step
from glefld.training.losses import total_loss
from tests.glefld.models.test_every_model import EACH_SYSTEM, SIZE, build

CODES = (9, 1)  # a skirt and a short sleeve top
OCCLUDED, CUT_OFF = 183, 184  # of the skirt


def batch() -> Batch:
    points = torch.full((2, 294, 2), torch.nan)
    visibility = torch.full((2, 294), int(Visibility.ABSENT))
    for row, code in enumerate(CODES):
        slots = list(DEEPFASHION2.garment_type(code).landmarks)
        points[row, slots] = torch.rand(len(slots), 2) * SIZE
        visibility[row, slots] = Visibility.VISIBLE
    visibility[0, OCCLUDED], visibility[0, CUT_OFF] = Visibility.OCCLUDED, Visibility.CUT_OFF
    points[0, CUT_OFF] = torch.nan
    codes = torch.tensor(CODES)
    box = torch.tensor([[0.0, 0, SIZE, SIZE]] * 2).double()
    truth = Truth(
        points.double(),
        visibility,
        box,
        codes,
        torch.full((2,), -1),
        codes - 1,
        torch.full((2, 0), torch.nan),
    )
    return Batch(torch.randn(2, 3, SIZE, SIZE), points, visibility, torch.zeros(2, 2, 3).double(), truth)


@pytest.mark.parametrize(
    "case", [case for case in EACH_SYSTEM if "attributes" not in case and not case.startswith("fcos")]
)
def test_only_labelled_slots_of_the_category_train(case: str) -> None:
    """The heatmaps of visible landmarks have a gradient, all others of the 294 none; a step leaves numbers."""
    torch.manual_seed(1)
    model = build(case, LABELS)
    samples = batch()
    output = model(samples.images)
    if output.heatmaps is not None:
        # Taken out of the graph: Liu & Lu's classes look at all maps through their maximum.
        maps = output.heatmaps.detach().requires_grad_()
        total_loss(model, output._replace(heatmaps=maps), samples, Recipe(), 2, 1).backward()
        assert maps.grad is not None
        trained = maps.grad.abs().amax(dim=(2, 3)) > 0
        assert torch.equal(trained, samples.visibility == Visibility.VISIBLE)
    else:
        assert output.classes is not None
        assert output.classes.shape == (2, len(LABELS.classes(model.label))) == (2, 13)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    loss = train_step(model, model, optimizer, samples, Recipe(), 2, 1, torch.float32)
    assert loss.isfinite()
    assert all(p.isfinite().all() for p in model.parameters())
