"""The detector: places, losses that add up over workers, and boxes that it finds once it has learned them."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.data.garments import PhotoBoxes
from glefld.data.loader import Batch, BatchLoader, InputPipeline
from glefld.data.order import share
from glefld.data.picture import IMAGENET
from glefld.data.reader import SplitReader
from glefld.errors import UserError
from glefld.models import build_model, checkpoint
from glefld.models.fcos import LEVELS, FCOSConfig
from glefld.models.system import Model
from glefld.scoring.evaluation import detect_rows, evaluate, pair
from glefld.training.loop import train_step
from tests import boxed, dots
from tests.ranks import start_ranks

SIZE = boxed.SIZE
BATCH = 12
COUNTS = [(SIZE // stride) ** 2 for stride in LEVELS]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def build() -> Model:
    torch.manual_seed(0)
    return build_model("fcos", boxed.CONFIG, dots.LABELS)


def load(data: str, rows: np.ndarray) -> Batch:
    manifest = open_dataset(data)
    photos = PhotoBoxes.read(data, manifest, "train")
    loader = BatchLoader(dots.LABELS, InputPipeline(SIZE, IMAGENET, BATCH), photos)
    tables = SplitReader(data, manifest, "train").read([rows])
    (batch,) = loader.run(tables, boxed.RECIPE.augmentation, ((0, 0, int(row)) for row in rows))
    return batch


def answer(boxes: list[tuple[float, ...]]) -> Tensor:
    """What a perfect network gives for one image: each box at the place of stride 8 that is nearest its middle."""
    output = torch.zeros(1, sum(COUNTS), 6)
    output[..., :2] = -12
    for x1, y1, x2, y2 in boxes:
        column, row = (int((low + high) / 2 // 8) for low, high in ((x1, x2), (y1, y2)))
        x, y = 8 * column + 4, 8 * row + 4
        output[0, row * (SIZE // 8) + column] = torch.tensor(
            [9, 9, *((torch.tensor([x - x1, y - y1, x2 - x, y2 - y]) / 8).tolist())]
        )
    return output


def test_a_perfect_answer_is_decoded_to_its_boxes() -> None:
    boxes = [(2.5, 3.0, 25.0, 60.0), (33.0, 10.5, 64.0, 40.0)]
    (found,) = build().find_boxes(answer(boxes), SIZE)
    order = np.lexsort(found.boxes.numpy().T[::-1])
    np.testing.assert_allclose(found.boxes[order], boxes, atol=1e-4)
    assert (found.score > 0.99).all()


def test_of_two_boxes_of_one_garment_one_is_kept() -> None:
    """The one with the higher score: a place that is sure of the class but not of being in the middle has less."""
    output = answer([(4.0, 4.0, 60.0, 60.0)])
    place = int(output[0, :, 0].argmax())
    output[0, place + 1] = output[0, place]
    output[0, place + 1, 1] = 0
    output[0, place + 1, 2:] += torch.tensor([1.0, 0, -1, 0])
    (found,) = build().find_boxes(output, SIZE)
    assert len(found.boxes) == 1
    np.testing.assert_allclose(found.boxes[0], (4, 4, 60, 60), atol=1e-4)


def test_places_are_the_middles_of_their_cells() -> None:
    """So a mirrored picture has the mirrored ones: torchvision's own are the cells' corners."""
    model = build()
    joined = torch.cat(model.detector._places(torch.zeros(1, sum(COUNTS), 6), SIZE))
    middles = (joined[:, :2] + joined[:, 2:]) / 2
    for level, stride in zip(middles.split(COUNTS), LEVELS, strict=True):
        mirrored = torch.stack([SIZE - level[:, 0], level[:, 1]], dim=1)
        assert {tuple(p) for p in mirrored.tolist()} == {tuple(p) for p in level.tolist()}
        assert level.min() == stride / 2


@torch.no_grad()
def test_losses_of_shares_add_up(detector: tuple[str, str]) -> None:
    """Sums and counts of two shares are those of the whole, also if one of them has no garment at all."""
    data, _ = detector
    model = build()
    batch = load(data, np.arange(6))
    assert batch.garments is not None
    output = model(batch.images).boxes
    assert output is not None
    boxes = [*batch.garments.boxes[:5], torch.empty(0, 4)]
    whole, places = model.box_loss(output, boxes, SIZE)
    parts = [model.box_loss(output[a:b], boxes[a:b], SIZE) for a, b in ((0, 5), (5, 6))]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    assert int(parts[0][1]) == int(places) > 0 == int(parts[1][1])
    assert float(parts[1][0]) > 0  # that nothing is there is to be learned too


def test_the_loss_is_least_where_the_boxes_are_right() -> None:
    """Of two answers that differ in one place's box alone; a garment has up to nine places around its middle."""
    model = build()
    one = [torch.tensor([[2.0, 2, 30, 60]])]
    good = answer([(2.0, 2.0, 30.0, 60.0)])
    worse = good.clone()
    worse[..., 2:] *= 1.5
    (right, count), (wrong, _) = (model.box_loss(output, one, SIZE) for output in (good, worse))
    assert float(right) < float(wrong)
    assert 1 <= int(count) <= 9


def gradient(data: str, rank: int, world: int) -> Tensor:
    """All gradients of one step on the same global batch, as one vector; batch norm uses fixed statistics."""
    model = build().eval()
    parallel: nn.Module = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    first, end = share(0, BATCH, rank, world)
    batch = load(data, np.arange(BATCH)[first:end])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, parallel, optimizer, batch, boxed.RECIPE, BATCH, world, torch.float32)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def work_of_a_rank(rank: int, world: int, data: str, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    torch.set_num_threads(1)
    torch.save(gradient(data, rank, world), f"{folder}/gradient-{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_have_one_workers_gradient(detector: tuple[str, str], tmp_path: Path) -> None:
    """Their photos have different numbers of garments: the loss divides by the places of both."""
    data, _ = detector
    start_ranks(work_of_a_rank, (2, data, str(tmp_path)), 2)
    first, second = (torch.load(tmp_path / f"gradient-{rank}.pt") for rank in range(2))
    alone = gradient(data, 0, 1)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-3, atol=1e-5 * float(alone.abs().max()))


def test_it_finds_what_it_has_learned(detector: tuple[str, str]) -> None:
    """On photos that it has not seen, as its training has scored it; on any number of workers alike."""
    data, run = detector
    manifest = open_dataset(data)
    model, card = checkpoint.load(checkpoint.resolve(run))
    rows = SplitReader(data, manifest, "val")
    loader = BatchLoader(
        dots.LABELS, InputPipeline(SIZE, model.normalisation, 32), PhotoBoxes.read(data, manifest, "val")
    )
    whole = evaluate(model, rows, loader, 0, 1, dots.LABELS)
    parts = evaluate(model, rows, loader, 0, 2, dots.LABELS)
    parts += evaluate(model, rows, loader, 1, 2, dots.LABELS)
    assert torch.equal(whole.vector(), parts.vector())
    scores = whole.report().boxes
    assert scores is not None
    assert scores.garments == rows.rows
    assert scores.ap50 > 0.8
    assert scores.ap == pytest.approx(card.val["box_ap"], abs=0.01)
    assert card.least_score == model.least_score is not None
    boxes = detect_rows(model, rows, loader, 0, 1)
    assert boxes.shape == (rows.rows, 4)
    assert np.isfinite(boxes).all(axis=1).mean() > 0.8


def test_boxes_and_garments_are_matched_one_to_one() -> None:
    """A box that two garments share is the nearer one's; the other has the next best, if that overlaps enough."""
    garments = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 12], [0, 0, 10, 7], [40, 40, 52, 52]])
    assert pair(boxes, garments) == [1, 0, -1]
    assert pair(boxes[:0], garments) == [-1, -1, -1]


def test_a_stopped_run_resumes_as_if_it_had_not_stopped(detector: tuple[str, str], tmp_path: Path) -> None:
    """The weights are the same to the last bit, and so is the score that boxes need."""
    data, _ = detector
    recipe = dataclasses.replace(boxed.RECIPE, epochs=2, schedule="step")
    boxed.train_detector(data, str(tmp_path / "whole"), recipe)
    boxed.train_detector(data, str(tmp_path / "stopped"), dataclasses.replace(recipe, epochs=1))
    reports = boxed.train_detector(data, str(tmp_path / "stopped"), recipe)
    assert [report.epoch for report in reports] == [2]
    ends = []
    for name in ("whole", "stopped"):
        run = str(tmp_path / name)
        model, card = checkpoint.load(storage.join(run, str(checkpoint.pointed(run, "last"))))
        ends.append((torch.cat([p.flatten() for p in model.parameters()]), card.least_score, card.val))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 48}, "--model.width must be a multiple of 32, not 48"),
        ({"layers": 0}, "--model.layers must be"),
    ],
)
def test_wrong_options_are_told(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FCOSConfig(**options)
