"""The Python API: every kind of photo has the same answer, what is bad stays in its place, and the exports load."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import glefld
from glefld import Landmarks, storage
from glefld.errors import BadBox, BadPhoto, UserError
from glefld.landmarks import Request, Result, default_checkpoint, to_coco
from glefld.models import build_model, checkpoint
from glefld.schema import FASHION8, Labels, Visibility
from tests import dots, typed

WIDTH, HEIGHT = 240, 160


def example(seed: int = 0) -> tuple[np.ndarray, Image.Image]:
    points = dots.random_points(np.random.default_rng(seed), (0, 0, WIDTH, HEIGHT))
    return points, dots.photo(points, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Landmarks:
    url = dots.write_checkpoint(str(tmp_path_factory.mktemp("landmarks") / "checkpoint"))
    return Landmarks.load(url, device="cpu", threads=1, batch_size=4)


def same(one: Result, other: Result) -> None:
    assert len(one.answers) == len(other.answers)
    for ours, theirs in zip(one.garments, other.garments, strict=True):
        assert ours.box == theirs.box
        np.testing.assert_array_equal(ours.landmarks, theirs.landmarks)
        np.testing.assert_array_equal(ours.score, theirs.score)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "path": str,
    "path of pathlib": lambda path: path,
    "URL": lambda path: f"file://{path}",
    "bytes": Path.read_bytes,
    "Pillow": Image.open,
    "NumPy": lambda path: np.asarray(Image.open(path)),
    "NumPy that is turned": lambda path: np.asarray(Image.open(path))[::-1, ::-1].copy()[::-1, ::-1],
    "PyTorch": lambda path: torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_photo_has_one_answer_whatever_it_is_given_as(kind: str, model: Landmarks, tmp_path: Path) -> None:
    points, image = example()
    image.save(tmp_path / "photo.png")
    result = model(SOURCES[kind](tmp_path / "photo.png"))
    same(result, model(str(tmp_path / "photo.png")))
    assert result.size == (WIDTH, HEIGHT)
    assert result.picture().tobytes() == image.tobytes()
    garment = result.garment
    np.testing.assert_allclose(garment.landmarks, points, atol=WIDTH / dots.SIZE)
    assert garment.landmarks.dtype == garment.score.dtype == np.float32
    assert (garment.landmarks.shape, garment.score.shape) == ((2, 2), (2,))
    assert garment.visibility is None
    # A set of a single type needs no model to tell it.
    assert (garment.garment_type, garment.garment_type_score) == ("dots", 1.0)
    assert result.names == model.names == dots.DOTS.landmarks


def test_pictures_of_pillow_are_turned_upright(model: Landmarks) -> None:
    """A JPEG with an EXIF orientation, opened by the caller, answers as its file does."""
    points, image = example(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = dots.encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, subsampling=0)
    for photo in (data, Image.open(io.BytesIO(data))):
        result = model(photo)
        assert result.size == result.picture().size == (WIDTH, HEIGHT)
        np.testing.assert_allclose(result.garment.landmarks, points, atol=WIDTH / dots.SIZE)


def test_one_opened_picture_may_be_given_many_times(model: Landmarks, tmp_path: Path) -> None:
    """Pillow reads its file in the first thread that asks, and no other one at that time."""
    example(3)[1].resize((1200, 800)).save(tmp_path / "photo.png")
    several = Landmarks.load(model.checkpoint, device="cpu", threads=4)
    expected = model(tmp_path / "photo.png").garment.landmarks
    for _ in range(3):
        picture = Image.open(tmp_path / "photo.png")
        for result in several([picture] * 6):
            np.testing.assert_allclose(result.garment.landmarks, expected, atol=1e-2)


def test_pixels_may_be_changed_once_they_are_given(model: Landmarks) -> None:
    """What the caller does to an array later changes no answer; nor does the model write to it."""
    pixels = np.asarray(example(2)[1]).copy()
    pixels.flags.writeable = False
    model(pixels)


def test_one_bad_photo_of_many_loses_no_other(model: Landmarks, tmp_path: Path) -> None:
    good = [dots.encoded(example(seed)[1], "JPEG") for seed in range(5)]
    (tmp_path / "truncated.jpg").write_bytes(good[0][: len(good[0]) // 2])
    bad: list[Any] = [tmp_path / "nothing.jpg", b"no picture", tmp_path / "truncated.jpg", "nope://a/b.jpg"]
    mixed = model([good[0], *bad[:2], good[1], good[2], *bad[2:], good[3], good[4]])
    assert [str(error).partition(":")[0] for result in mixed for error in result.errors] == [
        "missing_photo",
        "unreadable_photo",
        "truncated_photo",
        "unreadable_photo",
    ]
    answered = [result for result in mixed if result.garments]
    assert len(answered) == len(good)
    for result, expected in zip(answered, model(good), strict=True):
        same(result, expected)
    assert [result.name for result in mixed[:2]] == ["photo 1", str(tmp_path / "nothing.jpg")]
    with pytest.raises(BadPhoto, match="missing_photo"):
        _ = mixed[1].garment


def test_boxes_of_one_photo_and_of_several(model: Landmarks) -> None:
    """One box, several, none or a bad one: an answer each, of that part of the photo."""
    boxes = [(8.0, 16.0, 104.0, 144.0), (120.0, 8.0, 240.0, 120.0)]
    points = [dots.random_points(np.random.default_rng(3), box) for box in boxes]
    image = dots.photo(points[0], WIDTH, HEIGHT, boxes[0])
    image.paste(dots.photo(points[1], WIDTH, HEIGHT, boxes[1]).crop((112, 0, WIDTH, HEIGHT)), (112, 0))
    both = model(image, boxes)
    for garment, box, expected in zip(both.garments, boxes, points, strict=True):
        assert garment.box == box
        np.testing.assert_allclose(garment.landmarks, expected, atol=120 / dots.SIZE)
    with pytest.raises(UserError, match="answers for 2 garments"):
        _ = both.garment
    same(model(image, np.array(boxes)), both)
    same(model(image, [torch.tensor(box) for box in boxes]), both)
    one, whole, mixed, nothing = model(
        [image, image, image, image], [boxes[0], None, torch.tensor([boxes[1], (9, 9, 9, 9)]), []]
    )
    same(one, model(image, boxes[0]))
    np.testing.assert_array_equal(one.garment.landmarks, both.garments[0].landmarks)
    assert whole.garment.box == (0, 0, WIDTH, HEIGHT)
    assert mixed.garments[0].box == boxes[1]
    assert isinstance(mixed.answers[1], BadBox)
    assert (nothing.answers, nothing.size) == ((), (WIDTH, HEIGHT))


@pytest.mark.parametrize("counts", [[0], [0, 0, 2], [1, 0, 0, 3, 0], [2, 1, 0], []])
def test_photos_without_boxes_keep_their_place(counts: list[int], model: Landmarks) -> None:
    image = example(4)[1]
    boxes = [(10.0 * i, 0.0, 200.0, 150.0) for i in range(3)]
    requests = [Request(image, boxes[:count], str(i)) for i, count in enumerate(counts)]
    found = [(result.name, len(result.garments)) for result in model.stream(iter(requests))]
    assert found == [(str(i), count) for i, count in enumerate(counts)]


WRONG: dict[str, tuple[Any, Any, str]] = {
    "numbers of PyTorch from 0 to 1": (torch.zeros(3, 9, 9), None, r"not \[3, 9, 9\] of torch.float32"),
    "a batch": (np.zeros((2, 9, 9, 3), np.uint8), None, "give several photos as a list"),
    "channels first of NumPy": (np.zeros((3, 9, 9), np.uint8), None, r"\[height, width, 3\] of uint8"),
    "grey": (np.zeros((9, 9), np.uint8), None, r"not \[9, 9\] of uint8"),
    "no pixels": (np.zeros((0, 9, 3), np.uint8), None, r"not \[0, 9, 3\]"),
    "a number": ([3], None, "photo 1 is of type int"),
    "boxes of another number of photos": (["a.jpg"], [None, None], "boxes has 2 entries for 1 photos"),
    "three corners": ("a.jpg", (1, 2, 3), "a.jpg: a box is x1 y1 x2 y2, not 1"),
    "a box of five": ("a.jpg", [(1, 2, 3, 4, 5)], "a box is x1 y1 x2 y2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_photo_or_box_is_told_at_once(case: str, model: Landmarks) -> None:
    photos, boxes, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        model(photos, boxes)


def test_landmarks_that_the_garment_type_lacks_are_left_out(tmp_path: Path) -> None:
    """Of one network that tells one type or the other: the same answer, but for what the type does not have."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "grey")
    both, left = (
        Landmarks.load(typed.write_checkpoint(str(tmp_path / told), told), device="cpu", threads=1)(image)
        for told in ("both", "left")
    )
    assert (both.garment.garment_type, left.garment.garment_type) == ("both", "left")
    assert left.garment.garment_type_score == pytest.approx(0.9)
    np.testing.assert_array_equal(left.garment.landmarks[0], both.garment.landmarks[0])
    assert left.garment.score[0] == both.garment.score[0] > 0
    assert np.isfinite(both.garment.landmarks).all()
    assert np.isnan(left.garment.landmarks[1]).all()
    assert np.isnan(left.garment.score[1])
    assert both.garment.visibility is not None
    assert both.garment.visibility.tolist() == [Visibility.VISIBLE, Visibility.VISIBLE]
    assert left.garment.visibility is not None
    assert left.garment.visibility.tolist() == [Visibility.VISIBLE, Visibility.ABSENT]
    assert left.garment.visibility.dtype == np.int8
    # Drawn: the right dot's red appears only where there is one, on a grey photo.
    drawn = [np.asarray(result.plot(names=False)).astype(int) for result in (both, left)]
    ink = [int((picture[..., 0] > picture[..., 1:].max(axis=2) + 40).sum()) for picture in drawn]
    assert ink[0] > 50
    assert ink[1] == 0


def test_a_model_that_does_not_tell_the_type_leaves_nothing_out(tmp_path: Path) -> None:
    labels = Labels(FASHION8)
    network = build_model("gle", {"backbone": "test_resnet", "modules": 0, "width": 16}, labels).eval()
    card = dots.card("gle", {"backbone": "test_resnet", "modules": 0, "width": 16}, labels, dots.SIZE)
    checkpoint.save(str(tmp_path / "gle"), network, card)
    result = Landmarks.load(tmp_path / "gle", device="cpu")(example()[1])
    garment = result.garment
    assert (garment.garment_type, garment.garment_type_score, garment.visibility) == (None, None, None)
    assert np.isfinite(garment.landmarks).all()
    coco = result.to_coco()
    (annotation,) = coco["annotations"]
    assert [category["name"] for category in coco["categories"]] == ["upper", "lower", "full", "garment"]
    assert annotation["category_id"] == coco["categories"][-1]["id"] == 4
    assert annotation["num_keypoints"] == len(FASHION8)
    assert annotation["keypoints"][2::3] == [2] * len(FASHION8)


def test_pycocotools_loads_the_export(tmp_path: Path) -> None:
    """Each annotation has its type's landmarks where the answer has them; what cannot be read is listed."""
    model = Landmarks.load(typed.write_checkpoint(str(tmp_path / "model"), "left"), device="cpu")
    results = [
        *model([example(6)[1], b"no picture"]),
        model(example(7)[1], [(0, 0, 99, 99), (9, 9, 200, 100)]),
    ]
    value = to_coco(results, model.landmark_set)
    (tmp_path / "coco.json").write_text(json.dumps(value, allow_nan=False))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "coco.json"))
    assert [(image["width"], image["height"]) for image in coco.imgs.values()] == [(WIDTH, HEIGHT)] * 2
    assert {category["name"]: category["keypoints"] for category in coco.cats.values()} == {
        "both": ["left_dot", "right_dot"],
        "left": ["left_dot"],
    }
    garments = [garment for result in results for garment in result.garments]
    assert len(coco.anns) == len(garments) == 3
    for annotation, garment in zip(coco.anns.values(), garments, strict=True):
        assert annotation["category_id"] == 7
        x, y, v = annotation["keypoints"]
        np.testing.assert_allclose((x, y), garment.landmarks[0], atol=1e-3)
        assert v == 2
        assert annotation["score"] == pytest.approx(float(garment.score[0]), abs=1e-3)
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == garment.box
        assert annotation["area"] == width * height
    assert [annotation["image_id"] for annotation in coco.anns.values()] == [1, 2, 2]
    assert [error["photo"] for error in value["info"]["errors"]] == ["photo 2"]


def test_supervision_is_named_where_it_is_missing(model: Landmarks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        model(example()[1]).to_supervision()


def test_supervision_gets_the_landmarks(tmp_path: Path) -> None:
    pytest.importorskip("supervision", reason="the package supervision is not installed")
    model = Landmarks.load(typed.write_checkpoint(str(tmp_path / "model"), "left"), device="cpu")
    result = model(example(8)[1], [(0, 0, 99, 99), (9, 9, 200, 100)])
    found = result.to_supervision()
    assert (found.xy.shape, found.visible.tolist()) == ((2, 2, 2), [[True, False]] * 2)
    for i, garment in enumerate(result.garments):
        np.testing.assert_array_equal(found.xy[i], [garment.landmarks[0], (0, 0)])
        np.testing.assert_array_equal(found.keypoint_confidence[i], [garment.score[0], 0])
    assert found.class_id.tolist() == [1, 1]
    assert found.data["class_name"].tolist() == ["left", "left"]
    assert len(model(b"no picture").to_supervision()) == 0


def write_run(root: Path, name: str, begun: str, write: Callable[[str], str] = dots.write_checkpoint) -> str:
    run = root / "runs" / name
    write(str(run / "checkpoints" / "00000001"))
    checkpoint.point(str(run), "best", "checkpoints/00000001")
    storage.write_json(str(run / "run.json"), {"begun": begun})
    return str(run)


def write_classifier(url: str) -> str:
    labels = Labels(FASHION8, ("Blouse", "Jeans"))
    config = {"backbone": "test_resnet", "label": "category"}
    checkpoint.save(url, build_model("resnet", config, labels), dots.card("resnet", config, labels, 64))
    return url


def test_without_a_name_the_newest_run_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those with a best checkpoint of a landmark model; a variable goes before, and what is named before that."""
    monkeypatch.delenv("GLEFLD_CHECKPOINT", raising=False)
    monkeypatch.setenv("GLEFLD_ROOT", str(tmp_path))
    with pytest.raises(UserError, match=f"no checkpoint is named, and {tmp_path}/runs has no run"):
        Landmarks.load()
    old = write_run(tmp_path, "z-old", "2026-01-01T00:00:00+00:00")
    new = write_run(tmp_path, "a-new", "2026-02-01T00:00:00+00:00")
    write_run(tmp_path, "classifier", "2026-03-01T00:00:00+00:00", write_classifier)
    os.makedirs(tmp_path / "runs" / "unfinished" / "checkpoints")
    best = "checkpoints/00000001"
    assert Landmarks.load(device="cpu").checkpoint == f"{new}/{best}"
    monkeypatch.setenv("GLEFLD_CHECKPOINT", old)
    assert Landmarks.load(device="cpu").checkpoint == f"{old}/{best}"
    assert Landmarks.load(Path(new), device="cpu").checkpoint == f"{new}/{best}"
    monkeypatch.chdir(tmp_path)
    assert Landmarks.load("runs/a-new", device="cpu").checkpoint == f"{new}/{best}"
    with pytest.raises(UserError, match="is a classifier"):
        Landmarks.load("runs/classifier", device="cpu")


def cut_pointer(run: Path) -> None:
    (run / "best.json").write_text("{")


def point_elsewhere(run: Path) -> None:
    (run / "best.json").write_text('{"checkpoint": "checkpoints/00000009"}')


def cut_card(run: Path) -> None:
    (run / "checkpoints" / "00000001" / "model.json").write_text("[]")


def cut_record(run: Path) -> None:
    (run / "run.json").write_text("[]")


@pytest.mark.parametrize("damage", [cut_pointer, point_elsewhere, cut_card, cut_record])
def test_a_damaged_run_is_passed_over_and_a_line_says_so(
    damage: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who names no run gets the one before it, and is told why."""
    monkeypatch.delenv("GLEFLD_CHECKPOINT", raising=False)
    old = write_run(tmp_path, "old", "2026-01-01T00:00:00+00:00")
    new = write_run(tmp_path, "new", "2026-02-01T00:00:00+00:00")
    assert default_checkpoint(str(tmp_path)) == (new, "the newest run")
    assert not caplog.records
    damage(Path(new))
    assert default_checkpoint(str(tmp_path)) == (old, "the newest run")
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"the run {new} is damaged and passed over: ")


def test_a_device_that_is_not_there_is_told(model: Landmarks) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device gpu: this machine has no GPU"):
            Landmarks.load(model.checkpoint, device="gpu")
    with pytest.raises(UserError, match="give auto, cpu, gpu"):
        Landmarks.load(model.checkpoint, device="abacus")


def test_the_package_has_no_other_names() -> None:
    assert glefld.Landmarks is Landmarks
    with pytest.raises(AttributeError, match="no attribute 'Landmark'"):
        _ = glefld.Landmark
