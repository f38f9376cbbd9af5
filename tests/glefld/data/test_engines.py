"""The CPU's input pipeline and DALI's graph: the same inputs, bad pictures told apart, batches in order and ahead."""

import dataclasses
import itertools
from collections.abc import Generator, Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from glefld.data import host
from glefld.data.augmentation import Augmentation, compose, draw_augmentation
from glefld.data.gpu import DaliEngine
from glefld.data.host import HostEngine, Loaded
from glefld.data.picture import IMAGENET, Decoding, Normalisation, Picture
from tests.dots import encoded
from tests.natural import ENCODINGS, picture

SIZE = 96
ENGINES = {"host": HostEngine(SIZE, IMAGENET, 2), "DALI": DaliEngine(SIZE, IMAGENET, 8, None, 2)}
Engine = HostEngine | DaliEngine


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


def load(engine: Engine, pictures: list[Picture]) -> Loaded:
    ((item, loaded),) = engine.load([("item", pictures)])
    assert item == "item"
    return loaded


def levels_apart(pictures: list[Picture]) -> torch.Tensor:
    """By how many of 255 levels the engines differ, [b, 3, S, S]."""
    here, there = (load(engine, pictures) for engine in ENGINES.values())
    assert not here.bad
    assert not there.bad
    assert here.images.shape == there.images.shape == (len(pictures), 3, SIZE, SIZE)
    return (here.images - there.images).abs() * torch.tensor(IMAGENET.std)[:, None, None]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("change", ["plain", "augmented"])
def test_both_engines_load_the_same(encoding: str, change: str) -> None:
    """Shrunk and enlarged, turned, mirrored, moved beyond the edge and coloured: to rounding."""
    pictures = [picture(seed, SIZE, encoding, 60 + 47 * seed, 311 - 29 * seed) for seed in range(8)]
    if change == "augmented":
        strong = Augmentation(rotate=90, scale=0.5, shift=0.3, colour=0.5)
        draws = [draw_augmentation(strong, SIZE, np.random.default_rng(seed)) for seed in range(8)]
        pictures = [
            dataclasses.replace(p, to_input=compose(d.affine, p.to_input), colour=d.colour)
            for p, d in zip(pictures, draws, strict=True)
        ]
    apart = levels_apart(pictures)
    assert apart.mean() < 0.3
    assert apart.max() < 3.5


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_a_turned_picture_gives_the_upright_ones_input(swap: bool, flip_x: bool, flip_y: bool) -> None:
    """All eight ways of EXIF, but for pixels where OpenCV's map rounds otherwise: whoever turns first agrees."""
    upright = np.random.default_rng(3).integers(0, 256, (211, 157, 3), np.uint8)
    linear, offset = np.diag([1.0 - 2 * flip_x, 1.0 - 2 * flip_y]), np.array([[157 * flip_x], [211 * flip_y]])
    stored = upright[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    if swap:
        stored, linear = stored.swapaxes(0, 1), linear[:, ::-1]
    box = np.array([[SIZE / 120, 0, -9.5], [0, SIZE / 190, -3.25]])
    turned = compose(box, np.concatenate([linear, offset], axis=1))
    inputs = [
        host.paint(Picture(np.ascontiguousarray(pixels), *pixels.shape[1::-1], affine), SIZE, 0).astype(int)
        for pixels, affine in ((upright, box), (stored, turned))
    ]
    assert np.abs(inputs[0] - inputs[1]).max() <= 1
    assert (inputs[0] != inputs[1]).mean() < 0.001


OTHER = Normalisation((10.0, 100.0, 190.0), (2.0, 50.0, 400.0))
OTHERS = {"host": lambda: HostEngine(SIZE, OTHER, 2), "DALI": lambda: DaliEngine(SIZE, OTHER, 8, None, 2)}


@pytest.mark.parametrize("name", OTHERS)
def test_inputs_are_normalised_as_the_network_asks(name: str) -> None:
    """Each channel is (pixel - mean) / std, and outside of the picture all three are the mean of the means."""
    colour, half = np.array([60, 120, 230], np.uint8), np.array([[1.0, 0, SIZE / 2], [0, 1, 0]])
    plain = Picture(np.full((SIZE, SIZE, 3), colour), SIZE, SIZE, half)
    (image,) = load(OTHERS[name](), [plain]).images
    pixels = image.permute(1, 2, 0) * torch.tensor(OTHER.std) + torch.tensor(OTHER.mean)
    assert OTHER.fill == 100
    torch.testing.assert_close(
        pixels[:, SIZE // 2 + 1 :], torch.tensor(colour).expand(SIZE, SIZE // 2 - 1, 3).float()
    )
    torch.testing.assert_close(pixels[:, : SIZE // 2 - 1], torch.full((SIZE, SIZE // 2 - 1, 3), 100.0))


@pytest.mark.parametrize(("width", "height"), [(431, 900), (1203, 797), (1999, 2001)])
def test_a_large_jpeg_is_decoded_at_reduced_size(width: int, height: int) -> None:
    """Whatever the rest of its last block: nothing moves, and little is blurred that the antialiasing would not."""
    large = picture(0, SIZE, "4:2:0", width, height)
    pixels, reduced = host.decode(large, (SIZE / width, SIZE / height))
    assert reduced == {431: 2, 1203: 4, 1999: 8}[width]
    assert pixels.shape == (-(-height // reduced), -(-width // reduced), 3)
    apart = levels_apart([large])
    assert apart.mean() < 1
    assert apart.max() < 7


def test_a_picture_keeps_its_size_where_reducing_would_cost_detail() -> None:
    for shrink, expected in (((1, 1), 1), ((0.26, 0.1), 1), ((0.24, 0.1), 2), ((0.01, 0.01), 4)):
        assert host.decode(picture(0, SIZE, "4:2:0", 300, 400), shrink)[1] == expected


def broken(whole: Picture, decoding: Decoding) -> Picture:
    """Cut in its header, so that nobody can decode it."""
    return dataclasses.replace(whole, encoded=whole.encoded[:40], decoding=decoding)


@pytest.mark.parametrize("decoding", ["stored", "strict", "lenient"])
def test_a_bad_picture_leaves_the_others_alone(decoding: Decoding, engine: Engine) -> None:
    """It is told by its position, also where nothing checks it before DALI breaks; the next batches are whole."""
    good = [picture(seed, SIZE) for seed in range(4)]
    alone = load(engine, good).images
    mixed = [good[0], broken(good[0], decoding), *good[1:], broken(good[1], decoding)]
    found = dict(engine.load(enumerate([good, mixed, good, [mixed[1]], good])))
    assert list(found) == [0, 1, 2, 3, 4]
    assert sorted(found[1].bad) == [1, 5]
    assert all(bad.reason in ("truncated_photo", "unreadable_photo") for bad in found[1].bad.values())
    assert list(found[3].bad) == [0]
    assert found[3].images.shape == (0, 3, SIZE, SIZE)
    for i in (0, 1, 2, 4):
        assert torch.equal(found[i].images, alone), i


def test_damage_is_bad_or_guessed(engine: Engine) -> None:
    whole = picture(0, SIZE)
    cut = dataclasses.replace(whole, encoded=whole.encoded[: len(whole.encoded) // 2])
    cases: dict[Decoding, list[str]] = {
        "strict": ["truncated_photo"],
        "stored": ["truncated_photo"],
        "lenient": [],
    }
    for decoding, bad in cases.items():
        loaded = load(engine, [dataclasses.replace(cut, decoding=decoding)])
        assert [b.reason for b in loaded.bad.values()] == bad
        assert len(loaded.images) == 1 - len(bad)


def test_a_jpeg_that_dali_refuses_is_decoded_by_pillow() -> None:
    """As any file that ingest never stores: a PNG in a JPEG's place."""
    whole = picture(0, SIZE, "pixels")
    png = np.frombuffer(encoded(Image.fromarray(whole.encoded), "PNG"), np.uint8)
    mislabelled = dataclasses.replace(whole, encoded=png)
    for engine in ENGINES.values():
        assert torch.equal(load(engine, [mislabelled]).images, load(engine, [whole]).images)


def test_batches_stay_as_they_were_handed_out(engine: Engine) -> None:
    """Memory is used again, but not while somebody holds it; sizes may change from batch to batch."""
    batches = [[picture(8 * i + j, SIZE) for j in range(count)] for i, count in enumerate((8, 3, 5, 1, 8))]
    alone = [load(engine, batch).images.clone() for batch in batches]
    kept = [loaded.images for _ in range(3) for _, loaded in engine.load((None, batch) for batch in batches)]
    rows = [loaded.images[0] for _, loaded in engine.load((None, batch) for batch in batches)]
    for i, images in enumerate(kept):
        assert torch.equal(images, alone[i % len(batches)])
    for row, images in zip(rows, alone, strict=True):
        assert torch.equal(row, images[0])


def test_the_next_batch_is_begun_before_one_is_handed_out(engine: Engine) -> None:
    begun = []

    def batches() -> Iterator[tuple[int, list[Picture]]]:
        for i in range(5):
            begun.append(i)
            yield i, [picture(i, SIZE)]

    for i, _ in engine.load(batches()):
        assert max(begun) == min(i + 1, 4)


def test_whoever_stops_early_leaves_nothing_behind(engine: Engine) -> None:
    """The batches that were begun do not come out as the next stream's, nor after an error of the source."""
    pictures = [picture(seed, SIZE) for seed in range(6)]
    (alone,) = (loaded.images for _, loaded in engine.load([(0, pictures[5:])]))
    stream = engine.load((i, [p]) for i, p in enumerate(pictures[:5]))
    next(stream)
    assert isinstance(stream, Generator)
    stream.close()
    assert torch.equal(load(engine, pictures[5:]).images, alone)

    def failing() -> Iterator[tuple[int, list[Picture]]]:
        yield 0, pictures[:1]
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        list(engine.load(failing()))
    assert torch.equal(load(engine, pictures[5:]).images, alone)


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    buffers = host.Buffers()
    first = buffers.get((2, 3))
    address = first.ctypes.data
    tensor = torch.from_numpy(first)
    del first
    assert buffers.get((2, 3)).ctypes.data != address, "a tensor still holds it"
    del tensor
    addresses = {buffers.get((2, count)).ctypes.data for count in itertools.chain(range(4), range(2))}
    assert address in addresses
