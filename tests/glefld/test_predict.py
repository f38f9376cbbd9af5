"""Prediction: the answer is in the upright photo whatever the file's format, and a bad file is told from the rest."""

import dataclasses
import functools
import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageOps

from glefld import predict
from glefld.data.augmentation import NO_AUGMENTATION
from glefld.data.dataset import open_dataset
from glefld.data.loader import BatchLoader, InputPipeline
from glefld.data.photos import to_rgb
from glefld.data.picture import IMAGENET
from glefld.data.reader import SplitReader
from glefld.errors import BadAnswer, BadBox, BadPhoto
from glefld.models.calibration import Calibration
from glefld.predict import Predictor
from glefld.prediction import Crop, Prediction, open_pixels, open_upright, prepare
from glefld.schema import sample_schema
from glefld.scoring.evaluation import evaluate
from tests import dots, typed
from tests.ingested import write_dataset

WIDTH, HEIGHT = 240, 160
CPU = torch.device("cpu")
#: How the upright picture is stored for each orientation, by Pillow's names.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def grey16(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def over_white(image: Image.Image) -> Image.Image:
    """Transparent where it was grey: then white shows."""
    image = image.convert("RGBA")
    image.putalpha(
        Image.fromarray(np.where(np.asarray(image.convert("HSV"))[..., 1] > 60, 255, 0).astype(np.uint8))
    )
    return image


#: A file of each kind: what is stored, as what, and whether dots keep their colour in it.
KINDS: dict[str, tuple[Callable[[Image.Image], Image.Image], str, dict[str, object], bool]] = {
    "JPEG": (lambda i: i, "JPEG", {"quality": 92}, True),
    "JPEG, colour at full resolution": (lambda i: i, "JPEG", {"subsampling": 0}, True),
    "progressive JPEG": (lambda i: i, "JPEG", {"progressive": True}, True),
    "JPEG that stores RGB": (lambda i: i, "JPEG", {"keep_rgb": True}, True),
    "grey JPEG": (lambda i: i.convert("L"), "JPEG", {}, False),
    "CMYK JPEG": (lambda i: i.convert("CMYK"), "JPEG", {}, True),
    "two pictures in one JPEG": (lambda i: i, "MPO", {"append_images": [Image.new("RGB", (40, 30))]}, True),
    "PNG": (lambda i: i, "PNG", {}, True),
    "transparent PNG": (over_white, "PNG", {}, True),
    "palette PNG": (lambda i: i.quantize(32), "PNG", {}, True),
    "16-bit grey PNG": (grey16, "PNG", {}, False),
    "WebP": (lambda i: i, "WEBP", {"quality": 90}, True),
    "lossless transparent WebP": (over_white, "WEBP", {"lossless": True}, True),
    "TIFF": (lambda i: i, "TIFF", {}, True),
}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    url = dots.write_checkpoint(str(tmp_path_factory.mktemp("predict") / "checkpoint"))
    return Predictor(url, CPU, batch_size=8)


@functools.cache
def example(seed: int) -> tuple[np.ndarray, Image.Image]:
    points = dots.random_points(np.random.default_rng(seed), (0, 0, WIDTH, HEIGHT))
    return points, dots.photo(points, WIDTH, HEIGHT)


def stored(image: Image.Image, orientation: int, kind: str) -> bytes:
    convert, format_, options, _ = KINDS[kind]
    turned = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return dots.encoded(
        convert(image if turned is None else image.transpose(turned)), format_, exif=exif, **options
    )


def answers(predictor: Predictor, files: list[bytes]) -> list[Prediction | BadPhoto | BadBox | BadAnswer]:
    def crops() -> list[Crop | BadPhoto | BadBox]:
        found: list[Crop | BadPhoto | BadBox] = []
        for data in files:
            try:
                found.append(prepare(data, dots.SIZE))
            except (BadPhoto, BadBox) as bad:
                found.append(bad)
        return found

    return list(predictor.predict(crops()))


@pytest.mark.parametrize("kind", KINDS)
def test_any_file_in_any_orientation_is_the_same_photo(kind: str, predictor: Predictor) -> None:
    """The model sees what an upright lossless file shows it, and its answer lies on the upright photo's dots."""
    points, image = example(1)
    files = [stored(image, orientation, kind) for orientation in STORED]
    crops = [prepare(data, dots.SIZE) for data in files]
    seen = predictor.pipeline.run([crop.picture for crop in crops])
    for data, crop, pixels in zip(files, crops, seen, strict=True):
        upright = Image.open(io.BytesIO(data))
        upright.load()
        upright = to_rgb(ImageOps.exif_transpose(upright))
        assert upright.size == (WIDTH, HEIGHT)
        plain = predictor.pipeline.run([prepare(dots.encoded(upright, "PNG"), dots.SIZE).picture])[0]
        # Two levels of 255: decoders round differently.
        assert (pixels - plain).abs().max() < 2.1 / 57
        assert crop.box == (0, 0, WIDTH, HEIGHT)
    if KINDS[kind][-1]:
        for answer in predictor.predict(crops):
            assert isinstance(answer, Prediction)
            one_input_pixel = WIDTH / dots.SIZE
            np.testing.assert_allclose(answer.landmarks, points, atol=one_input_pixel)


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_box_is_in_the_upright_photo(orientation: int, predictor: Predictor) -> None:
    """Of several garments the one in the box answers; what juts out of the photo is cut off."""
    rng = np.random.default_rng(orientation)
    boxes = [(8.0, 16.0, 104.0, 144.0), (120.0, 8.0, 240.0, 120.0)]
    points = [dots.random_points(rng, box) for box in boxes]
    image = dots.photo(points[0], WIDTH, HEIGHT, boxes[0])
    other = dots.photo(points[1], WIDTH, HEIGHT, boxes[1])
    image.paste(other.crop((112, 0, WIDTH, HEIGHT)), (112, 0))
    data = stored(image, orientation, "JPEG, colour at full resolution")
    given = [boxes[0], (120.0, 8.0, 300.0, 120.0)]
    found = list(predictor.predict([prepare(data, dots.SIZE, box) for box in given]))
    for answer, box, expected in zip(found, boxes, points, strict=True):
        assert isinstance(answer, Prediction)
        assert answer.box == box
        np.testing.assert_allclose(answer.landmarks, expected, atol=120 / dots.SIZE)


def test_the_model_sees_what_it_was_trained_on(predictor: Predictor) -> None:
    """The same stored crop gives the very same input here and in training, and the same way back to the photo."""
    rng = np.random.default_rng(3)
    picture = Image.fromarray(rng.integers(0, 256, (90, 70, 3), np.uint8))
    image = dots.encoded(picture, "JPEG", quality=95, subsampling=0)
    box, crop_box = (20.5, 31.0, 70.0, 99.5), (10.0, 20.0, 80.0, 110.0)
    row = dict.fromkeys(sample_schema(dots.DOTS).names) | {
        "sample_id": "1",
        "source_uri": "photo.jpg",
        "source_width": WIDTH,
        "source_height": HEIGHT,
        "photo_hash": bytes(16),
        "box": box,
        "crop_box": crop_box,
        "image": image,
        "image_width": 70,
        "image_height": 90,
        "garment_type": 1,
        "landmarks": [20.0, 20.0, 30.0, 30.0],
        "visibility": [0, 0],
    }
    table = pa.Table.from_pylist([row], sample_schema(dots.DOTS))
    loader = BatchLoader(dots.LABELS, InputPipeline(dots.SIZE, IMAGENET, 1))
    (batch,) = loader.run([table], NO_AUGMENTATION)
    crop = prepare(image, dots.SIZE, box, crop_box[:2])
    assert torch.equal(predictor.pipeline.run([crop.picture]), batch.images)
    np.testing.assert_allclose(crop.to_photo, batch.to_photo[0])


def without_tables(jpeg: bytes) -> bytes:
    """A JPEG whose quantisation tables are gone: its header reads well, its pixels cannot be decoded."""
    position, kept = 2, jpeg[:2]
    while jpeg[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4])
        kept += jpeg[position:end] if jpeg[position + 1] != 0xDB else b""
        position = end
    return kept + jpeg[position:]


PLAIN = dots.encoded(example(1)[1], "JPEG")
BAD = {
    "nothing": (b"", "unreadable_photo"),
    "text": (b"<html>not found</html>", "unreadable_photo"),
    "another format": (dots.encoded(Image.new("RGB", (8, 8)), "PPM"), "unreadable_photo"),
    "half a JPEG": (PLAIN[: len(PLAIN) // 2], "truncated_photo"),
    "a JPEG's header": (PLAIN[:200], "truncated_photo"),
    "a JPEG without tables": (without_tables(PLAIN), "unreadable_photo"),
    "half a PNG": (dots.encoded(Image.effect_noise((64, 64), 90), "PNG")[:2000], "truncated_photo"),
    "a picture too large": (dots.encoded(Image.new("1", (20_000, 20_000)), "PNG"), "picture_too_large"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_photo_is_told_and_leaves_its_neighbours_alone(kind: str, predictor: Predictor) -> None:
    """It becomes a BadPhoto in its place; the others answer as they would without it, to the last bit."""
    data, reason = BAD[kind]
    good = [stored(example(seed)[1], 1, "JPEG") for seed in range(4)]
    alone = answers(predictor, good)
    mixed = answers(predictor, [*good[:2], data, *good[2:]])
    bad = mixed.pop(2)
    assert isinstance(bad, BadPhoto)
    assert bad.reason == reason
    assert "0x" not in bad.detail  # an address would make each run's rows differ
    for answer, expected in zip(mixed, alone, strict=True):
        assert isinstance(answer, Prediction)
        assert isinstance(expected, Prediction)
        np.testing.assert_array_equal(answer.landmarks, expected.landmarks)
        np.testing.assert_array_equal(answer.score, expected.score)


def test_an_answer_that_is_no_number_is_told_from_the_rest(tmp_path: Path) -> None:
    """Of one batch, the garments that overflow become a BadAnswer in their place; with NaN weights all do."""
    overflowing = Predictor(dots.write_checkpoint(str(tmp_path / "large"), dots.overflowing()), CPU, 8)
    plain = dots.encoded(Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)), "PNG")
    dotted = stored(example(1)[1], 1, "PNG")
    found = answers(overflowing, [plain, dotted, b"", plain])
    assert [type(answer) for answer in found] == [Prediction, BadAnswer, BadPhoto, Prediction]
    assert str(found[1]) == "not_finite: 2 of 2 heatmaps, so the model has diverged"
    nan = dots.network()
    for parameter in nan.parameters():
        parameter.data.fill_(torch.nan)
    found = answers(Predictor(dots.write_checkpoint(str(tmp_path / "nan"), nan), CPU, 8), [plain, dotted])
    assert [type(answer) for answer in found] == [BadAnswer, BadAnswer]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, 10, 50), "empty_box"),
        ((50, 10, 20, 50), "empty_box"),
        ((float("nan"), 10, 20, 50), "empty_box"),
        ((WIDTH, 10, WIDTH + 9, 50), "box_outside_photo"),
        ((-9, -9, 0, 5), "box_outside_photo"),
    ],
)
def test_a_box_that_holds_nothing(box: tuple[float, ...], reason: str) -> None:
    with pytest.raises(BadBox) as caught:
        prepare(PLAIN, dots.SIZE, box)
    assert caught.value.reason == reason


def with_thumbnail(image: Image.Image) -> bytes:
    """A JPEG with a whole small JPEG in its EXIF part, as cameras write it."""
    thumbnail = dots.encoded(image.resize((60, 40)), "JPEG")
    segment = b"Exif\0\0" + thumbnail
    return PLAIN[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment + PLAIN[2:]


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG", "WebP", "thumbnail"])
def test_a_truncated_photo_never_passes_for_a_whole_one(kind: str, predictor: Predictor) -> None:
    """Cut anywhere, a file is bad, or so little is gone that the answer stays: never a photo that turns grey."""
    seed = random.randrange(1 << 31)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    image = example(5)[1]
    data = with_thumbnail(image) if kind == "thumbnail" else stored(image, 1, kind)
    cuts = [int(cut) for cut in rng.integers(1, len(data), 30)] + [len(data) - i for i in range(1, 6)]
    whole, *found = answers(predictor, [data, *(data[:cut] for cut in cuts)])
    assert isinstance(whole, Prediction)
    for cut, answer in zip(cuts, found, strict=True):
        if isinstance(answer, Prediction):
            assert cut > len(data) - 64, f"{kind} cut at {cut} of {len(data)}"
            np.testing.assert_allclose(answer.landmarks, whole.landmarks, atol=0.1)


def test_scores_are_as_the_checkpoint_was_calibrated(predictor: Predictor, tmp_path: Path) -> None:
    file = dots.encoded(example(2)[1], "PNG")
    calibration = Calibration(0.5, 0.3)
    other = Predictor(dots.write_checkpoint(str(tmp_path / "checkpoint"), calibration=calibration), CPU)
    ((plain,), (calibrated,)) = (answers(one, [file]) for one in (predictor, other))
    assert isinstance(plain, Prediction)
    assert isinstance(calibrated, Prediction)
    torch.testing.assert_close(torch.from_numpy(calibrated.score), calibration(torch.from_numpy(plain.score)))
    np.testing.assert_array_equal(calibrated.landmarks, plain.landmarks)


def test_several_crops_of_a_photo_that_is_opened_once(predictor: Predictor) -> None:
    """Each is what ``prepare`` makes of the file, also where pixels are given in its place."""
    image = example(9)[1]
    data = stored(image, 7, "PNG")
    opened, pixels = open_upright(data), open_pixels(np.asarray(image))
    assert opened.bounds == pixels.bounds == (0, 0, WIDTH, HEIGHT)
    for box in (None, (8.0, 16.0, 104.0, 144.0)):
        expected = prepare(data, dots.SIZE, box)
        (seen,) = predictor.pipeline.run([expected.picture])
        for photo in (opened, pixels):
            crop = photo.crop(box, dots.SIZE)
            assert crop.box == expected.box
            np.testing.assert_array_equal(crop.to_photo, expected.to_photo)
            assert (predictor.pipeline.run([crop.picture])[0] - seen).abs().max() < 2.1 / 57


def test_evaluation_scores_what_the_told_type_lacks(tmp_path: Path) -> None:
    """NE is the same whatever type a model tells: all annotated landmarks count."""
    data = write_dataset(tmp_path / "data", {"val": 6})
    manifest = dataclasses.replace(open_dataset(data), landmark_set=typed.PAIR)
    reports = []
    for told in ("both", "left"):
        model = typed.network(told)
        loader = BatchLoader(typed.LABELS, InputPipeline(dots.SIZE, model.normalisation, 32))
        counters = evaluate(model, SplitReader(data, manifest, "val"), loader, 0, 1, typed.LABELS)
        reports.append(counters.report())
    assert [report.garment_type_accuracy for report in reports] == [1, 0]
    both, left = (dataclasses.replace(report, garment_type_accuracy=None) for report in reports)
    assert both == left
    assert both.counted == {"left_dot": 6, "right_dot": 6}


def test_with_mirror_images_a_photo_and_its_mirror_image_have_one_answer(tmp_path: Path) -> None:
    """Of a network that does not see its own mirror image."""
    torch.manual_seed(0)
    model = dots.network()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * weight.std() * torch.randn_like(weight) if weight.numel() > 1 else 0)
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"), model)
    image = example(3)[1]
    files = [dots.encoded(i, "PNG") for i in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
    apart = []
    for mirror in (False, True):
        own, turned = answers(Predictor(url, CPU, mirror=mirror), files)
        assert isinstance(own, Prediction)
        assert isinstance(turned, Prediction)
        back = (WIDTH, 0) + np.array([-1, 1]) * turned.landmarks[[1, 0]]
        apart.append(np.abs(own.landmarks - back).max())
    assert apart[1] < 0.01 < 0.05 < apart[0]


@pytest.mark.parametrize("pixels", [1, 2 * WIDTH * HEIGHT, predict.BATCH_PIXELS])
def test_batches_do_not_show(pixels: int, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a stream is cut, large photos apart or not, each crop has its answer in its place."""
    files = [stored(example(seed)[1], 1, "JPEG") for seed in range(11)]
    files.insert(4, b"")
    expected = answers(predictor, files)
    monkeypatch.setattr(predict, "BATCH_PIXELS", pixels)
    found = answers(predictor, files)
    assert [type(answer) for answer in found] == [type(answer) for answer in expected]
    for seed, (answer, wanted) in enumerate(zip(found, expected, strict=True)):
        if isinstance(answer, Prediction) and isinstance(wanted, Prediction):
            np.testing.assert_allclose(answer.landmarks, wanted.landmarks, atol=1e-2)
            points, _ = example(seed - (seed > 4))
            np.testing.assert_allclose(answer.landmarks, points, atol=WIDTH / dots.SIZE)
    assert list(predictor.predict([])) == []


def test_a_real_photo(shared_data: Path, predictor: Predictor) -> None:
    """Real JPEGs go to the decoder as they are: none of them needs Pillow's pixels."""
    with zipfile.ZipFile(shared_data / "clothing-cc0" / "images.zip") as archive:
        files = [archive.read(name) for name in archive.namelist()[:16]]
    crops = [prepare(data, dots.SIZE) for data in files]
    assert [crop.picture.encoded.tobytes() for crop in crops] == files
    assert all(isinstance(answer, Prediction) for answer in predictor.predict(crops))
