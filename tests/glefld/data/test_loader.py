"""The loader's geometry against rendered dots: pictures and landmarks land together, mirrored ones on swapped names."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from glefld.data.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    box_to_input,
    compose,
    draw_augmentation,
    invert,
    transform,
)
from glefld.data.dataset import open_dataset
from glefld.data.loader import Batch, BatchLoader, InputPipeline, to_photo
from glefld.data.picture import IMAGENET, Picture
from glefld.data.reader import SplitReader
from glefld.errors import UserError
from glefld.schema import NO_LANDMARKS, Labels, sample_schema
from tests.blots import COLOURS, HEIGHT, WIDTH, blot
from tests.dots import LABELS
from tests.ingested import write_dataset

SIZE = 64
ROWS = 24


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    url = write_dataset(tmp_path_factory.mktemp("data"), {"train": ROWS})
    return SplitReader(url, open_dataset(url), "train")


@pytest.fixture(scope="module")
def loader() -> BatchLoader:
    return BatchLoader(LABELS, InputPipeline(SIZE, IMAGENET, 16))


def load(loader: BatchLoader, reader: SplitReader, augmentation: Augmentation, epoch: int = 0) -> list[Batch]:
    batches = [
        np.arange(0, 10),
        np.arange(10, 23),
        np.arange(23, ROWS),
    ]  # of different sizes, one of a single row
    seeds = ((0, epoch, row) for row in range(ROWS))
    return list(loader.run(reader.read(batches), augmentation, seeds))


def dots(image: torch.Tensor) -> np.ndarray:
    """Centres [2, 2] of what is red and what is blue in one normalised image [3, S, S]."""
    rgb = image * torch.tensor(IMAGENET.std)[:, None, None] + torch.tensor(IMAGENET.mean)[:, None, None]
    centre = torch.arange(SIZE) + 0.5
    found = []
    for channel, other in ((0, 2), (2, 0)):
        weight = (rgb[channel] - rgb[other] - 60).clamp(min=0)
        assert weight.sum() > 0, "the dot is not in the picture"
        found.append(
            [(weight.sum(0) * centre).sum() / weight.sum(), (weight.sum(1) * centre).sum() / weight.sum()]
        )
    return np.array(found)


AUGMENTATIONS = {
    "none": NO_AUGMENTATION,
    "mirror": Augmentation(mirror=1, rotate=0, scale=0, shift=0, colour=0),
    "rotate": Augmentation(mirror=0, rotate=25, scale=0, shift=0, colour=0),
    "scale and shift": Augmentation(mirror=0, rotate=0, scale=0.2, shift=0.05, colour=0),
    "stretch": Augmentation(mirror=0, rotate=0, scale=0, shift=0, stretch=0.3, colour=0),
    "all": Augmentation(mirror=0.5, rotate=15, scale=0.2, shift=0.05, stretch=0.2, colour=0.1),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_landmarks_land_on_their_dots(name: str, loader: BatchLoader, reader: SplitReader) -> None:
    """In every input each landmark lies on its dot to 0.35 px; in a mirror image left and right have changed names."""
    mirrored = 0
    for batch in load(loader, reader, AUGMENTATIONS[name]):
        for image, landmarks, affine in zip(
            batch.images, batch.landmarks.numpy(), batch.to_photo, strict=True
        ):
            is_mirror = bool(torch.linalg.det(affine[:, :2]) < 0)
            mirrored += is_mirror
            red_and_blue = landmarks[::-1] if is_mirror else landmarks
            assert np.linalg.norm(dots(image) - red_and_blue, axis=-1).max() < 0.35
    assert mirrored == {"mirror": ROWS, "all": mirrored}.get(name, 0)
    if name == "all":
        assert 0 < mirrored < ROWS


def test_to_photo_undoes_the_augmentation(loader: BatchLoader, reader: SplitReader) -> None:
    """A landmark of the input maps back to the photo's annotation, of its mirror partner where it was mirrored."""
    for batch in load(loader, reader, AUGMENTATIONS["all"]):
        back = to_photo(batch.landmarks, batch.to_photo)
        mirrored = torch.linalg.det(batch.to_photo[..., :2]) < 0
        expected = torch.where(mirrored[:, None, None], batch.truth.points.flip(1), batch.truth.points)
        torch.testing.assert_close(back, expected, atol=1e-3, rtol=0)


def test_a_sample_looks_the_same_whoever_loads_it(loader: BatchLoader, reader: SplitReader) -> None:
    """The augmentation is drawn from seed, epoch and row: batches and workers do not change it, another epoch does."""
    whole = torch.cat([batch.images for batch in load(loader, reader, AUGMENTATIONS["all"])])
    seeds = ((0, 0, row) for row in range(1, ROWS, 2))
    parts = [np.arange(1, ROWS, 2)]
    (odd,) = loader.run(reader.read(parts), AUGMENTATIONS["all"], seeds)
    assert torch.equal(odd.images, whole[1::2])
    other = torch.cat([batch.images for batch in load(loader, reader, AUGMENTATIONS["all"], epoch=1)])
    assert not torch.equal(other, whole)


def test_only_visible_landmarks_within_the_input_count(tmp_path: Path, loader: BatchLoader) -> None:
    """Occluded ones and those that the augmentation pushed out have weight 0."""
    url = write_dataset(tmp_path, {"train": 12}, hide=5)
    rows = SplitReader(url, open_dataset(url), "train")
    (batch,) = loader.run(rows.read([np.arange(12)]), NO_AUGMENTATION)
    assert batch.weight("visible").tolist() == [[1, 0]] * 5 + [[1, 1]] * 7
    assert batch.weight("annotated").tolist() == [[1, 1]] * 12
    batch.landmarks[6, 1, 0] = SIZE + 0.5
    batch.landmarks[7, 0, 1] = float("nan")
    assert batch.weight("visible")[6:8].tolist() == [[1, 0], [0, 1]]


def test_an_undecodable_picture_is_an_error() -> None:
    """RuntimeError: no grey square trains a network."""
    box = np.array([0, 0, 10, 10])
    broken = Picture(np.frombuffer(b"not a picture at all", np.uint8), 10, 10, box_to_input(box, 8))
    with pytest.raises(RuntimeError):
        InputPipeline(8, IMAGENET, 1).run([broken])


def test_affine_algebra() -> None:
    """compose and invert are those of maps on points; the box's corners become the input's."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 3))
    points = rng.normal(size=(5, 2))
    np.testing.assert_allclose(transform(transform(points, a), b), transform(points, compose(b, a)))
    np.testing.assert_allclose(transform(transform(points, a), invert(a)), points)
    squash = box_to_input(np.array([3.0, 5.0, 23.0, 45.0]), 100)
    np.testing.assert_allclose(transform(np.array([[3.0, 5], [23, 45]]), squash), [[0, 0], [100, 100]])


def test_draws_stay_within_their_ranges() -> None:
    """Scale, stretch and colour of a thousand draws stay within what was asked for, and use it; area is scale alone."""
    rng = np.random.default_rng(0)
    augmentation = Augmentation(mirror=0.25, rotate=20, scale=0.5, shift=0, stretch=0.6, colour=0.4)
    draws = [draw_augmentation(augmentation, 100, rng) for _ in range(1000)]
    scales = np.array([abs(np.linalg.det(d.affine[:, :2])) ** 0.5 for d in draws])
    assert 1 / 1.5 <= scales.min() < 0.7
    assert 1.45 < scales.max() <= 1.5
    wide, high = np.moveaxis([np.linalg.norm(d.affine[:, :2], axis=0) for d in draws], -1, 0)
    assert 1 / 1.6 <= (wide / high).min() < 0.63
    assert 1.58 < (wide / high).max() <= 1.6
    assert 0.2 < np.mean([d.mirrored for d in draws]) < 0.3
    factors = np.array([d.colour[:3] for d in draws])
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4


@pytest.mark.parametrize(
    "wrong", [{"mirror": 1.5}, {"scale": 1.0}, {"colour": -0.1}, {"rotate": -1}, {"stretch": 4}]
)
def test_wrong_ranges_end_in_one_line(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="augmentation"):
        Augmentation(**wrong)


def test_photos_without_landmarks(loader: BatchLoader) -> None:
    """A data set of classes alone is loaded, and mirrored, like any other: K is 0."""
    rng = np.random.default_rng(0)
    whole = [0, 0, WIDTH, HEIGHT]
    row = {
        **{"sample_id": "a", "source_uri": "a", "source_width": WIDTH, "source_height": HEIGHT},
        **{"photo_hash": bytes(16), "image_width": WIDTH, "image_height": HEIGHT},
        **{"box": whole, "crop_box": whole, "landmarks": [], "visibility": []},
    }
    rows = [row | {"category": i, "image": blot(c, rng)} for i, c in enumerate(COLOURS.values(), 1)]
    table = pa.Table.from_pylist(rows, sample_schema(NO_LANDMARKS))
    classes = BatchLoader(Labels(NO_LANDMARKS, tuple(COLOURS)), loader.pipeline)
    (plain,), (mirrored,) = (
        classes.run([table], augmentation, [(0,)] * 3)
        for augmentation in (NO_AUGMENTATION, AUGMENTATIONS["mirror"])
    )
    assert plain.landmarks.shape == (3, 0, 2)
    assert plain.visibility.shape == plain.weight("visible").shape == (3, 0)
    assert plain.truth.category.tolist() == [0, 1, 2]
    torch.testing.assert_close(mirrored.images, plain.images.flip(3), atol=0.1, rtol=0)
