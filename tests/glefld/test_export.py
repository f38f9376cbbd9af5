"""Exported models: one file answers as its checkpoint does, whatever the photo, without PyTorch and without glefld."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.export import Dim

from glefld import Landmarks
from glefld.data import host
from glefld.data.picture import Normalisation
from glefld.detect import Detector
from glefld.errors import BadAnswer, BadPhoto, UserError
from glefld.export import export, facts, quiet, run_onnx, write_onnx
from glefld.landmarks import Result
from glefld.models import MODELS, checkpoint, distribution
from glefld.models.graph import crops
from glefld.onnx_model import OnnxDetector, OnnxPredictor
from glefld.prediction import Detected, open_pixels
from glefld.schema import Visibility
from tests import dots, typed
from tests.dots import card
from tests.glefld.models.test_every_model import CASES, EACH_SYSTEM, LABELS, build

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT = 240, 160
BOXES = [(0, 0, WIDTH, HEIGHT), (30.5, 10.25, 199.75, 150), (-20, 60, 90, 400), (100, 70, 130, 95)]
#: A case for each system that finds landmarks. SANL's guide is a gradient, so without it.
SYSTEMS = [
    "sanl-nonlocal" if case == "sanl" else case
    for case in EACH_SYSTEM
    if MODELS[CASES[case][0]].task == "landmarks"
]


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Grey blots and fine noise: what is filtered in another way, or sampled elsewhere, shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    return np.clip(np.asarray(coarse, int) + rng.integers(-40, 41, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """The decoding's steps are unrolled, and thirty of them take PyTorch a minute to export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "STEPS", 3)
        yield


@pytest.fixture(scope="module")
def place(few_steps: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dots' network and a model that tells types and visibility, each as a checkpoint and as ONNX."""
    root = tmp_path_factory.mktemp("export")
    dots.write_checkpoint(str(root / "dots"))
    typed.write_checkpoint(str(root / "typed"), "left")
    for name in ("dots", "typed"):
        export(str(root / name), root / f"{name}.onnx", "onnx")
    return root


def both(place: Path, name: str) -> tuple[Landmarks, Landmarks]:
    """The checkpoint with PyTorch, and the file with ONNX Runtime."""
    return (
        Landmarks.load(place / name, device="cpu", threads=1),
        Landmarks.load(place / f"{name}.onnx", threads=2),
    )


def same(ours: Result, theirs: Result, pixels: float = 0.01, scores: float = 1e-3) -> None:
    """Up to rounding the answers are the same, and so is what is wrong."""
    assert (ours.name, ours.size, ours.boxes) == (theirs.name, theirs.size, theirs.boxes)
    assert [str(error) for error in ours.errors] == [str(error) for error in theirs.errors]
    for one, other in zip(ours.garments, theirs.garments, strict=True):
        assert one.box == other.box
        assert one.landmarks.dtype == other.landmarks.dtype == np.float32
        np.testing.assert_allclose(one.landmarks, other.landmarks, atol=pixels)
        np.testing.assert_allclose(one.score, other.score, atol=scores)
        assert one.garment_type == other.garment_type
        assert one.garment_type_score == pytest.approx(other.garment_type_score, abs=1e-5)
        assert (one.visibility is None) == (other.visibility is None)
        if one.visibility is not None:
            assert other.visibility is not None
            assert one.visibility.dtype == other.visibility.dtype == np.int8
            np.testing.assert_array_equal(one.visibility, other.visibility)


@pytest.mark.parametrize("size", [(240, 160), (61, 500), (33, 20), (1, 1)])
@pytest.mark.parametrize("side", [32, 56])
def test_the_crop_is_that_of_the_input_pipeline(size: tuple[int, int], side: int) -> None:
    """To the level, in all but a few of a thousand pixels, where sums round differently: enlarged or shrunk."""
    pixels, norm = noise(*size), Normalisation((0.0, 0.0, 3.0), (1.0, 1.0, 1.0))
    boxes = [crop.box for crop in (open_pixels(pixels).crop(box, side) for box in boxes_in(*size))]
    wanted = np.empty((len(boxes), side, side, 3), np.float32)
    for box, out in zip(boxes, wanted, strict=True):
        host.render(open_pixels(pixels).crop(box, side).picture, norm, out)
    found = crops(torch.from_numpy(pixels), *torch.tensor(boxes).double().unbind(dim=1), side, norm.fill)
    levels = found.permute(0, 2, 3, 1).numpy() - norm.mean
    assert np.abs(levels - wanted).max() <= 1
    assert (levels != wanted).mean() < 0.003


def boxes_in(width: int, height: int) -> list[tuple[float, ...]]:
    """The whole photo, its middle, a box that reaches beyond it, and one of a few pixels."""
    shares = ((0, 0, 1, 1), (0.21, 0.3, 0.77, 0.9), (-0.4, 0.4, 0.5, 1.6), (0.5, 0.45, 0.62, 0.63))
    return [tuple(np.array(share) * (width, height, width, height)) for share in shares]


def test_a_detectors_crop_is_that_of_the_input_pipeline() -> None:
    """The square around a whole photo, with the normalisation's grey beside it."""
    norm = Normalisation((120.0, 118.0, 122.0), (1.0, 1.0, 1.0))
    for width, height in ((300, 40), (50, 333)):
        pixels = noise(width, height)
        crop = open_pixels(pixels).whole(64)
        wanted = np.empty((64, 64, 3), np.float32)
        host.render(crop.picture, norm, wanted)
        x1, y1 = crop.to_photo @ (0, 0, 1)
        x2, y2 = crop.to_photo @ (64, 64, 1)
        sides = torch.tensor([[x1, y1, x2, y2]]).double().unbind(dim=1)
        levels = (
            crops(torch.from_numpy(pixels), *sides, 64, norm.fill)[0].permute(1, 2, 0).numpy() - norm.mean
        )
        assert np.abs(levels - wanted).max() <= 1
        assert (levels != wanted).mean() < 0.003


@pytest.mark.parametrize("case", ["fpn", "gle-1"])
def test_a_system_exports(case: str, tmp_path: Path) -> None:
    """Either kind of maps, with random weights, several boxes and photos of other sizes than the traced one."""
    name, config = CASES[case]
    model = build(case).eval()
    saved = card(name, config, LABELS, 32, model.normalisation)
    checkpoint.save(str(tmp_path / "model"), model, saved)
    export(str(tmp_path / "model"), tmp_path / "model.onnx", "onnx")
    ours, theirs = both(tmp_path, "model")
    for photo, boxes in ((noise(WIDTH, HEIGHT), BOXES), (noise(30, 77), None)):
        same(ours(photo, boxes), theirs(photo, boxes), pixels=0.05)
    assert theirs.card == saved
    assert theirs.landmark_set == ours.landmark_set


class Networks(nn.Module):
    """All systems' networks beside one another."""

    def __init__(self) -> None:
        super().__init__()
        self.models = nn.ModuleList(build(case).eval() for case in SYSTEMS)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[n, 3, S, S] -> heatmaps of each"""
        return tuple(model(images).heatmaps for model in self.models)


def test_every_systems_network_has_a_graph(tmp_path: Path) -> None:
    """All in one, since an export takes ten seconds; crop and decoding, which they share, are other tests' matter."""
    networks, path = Networks(), tmp_path / "networks.onnx"
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), quiet():
        program = torch.export.export(networks, (images[:2],), dynamic_shapes=({0: Dim("n")},), strict=False)
        write_onnx(program, {"images": {0: "count"}}, SYSTEMS, {}, path)
        for count in (1, 3):
            found = run_onnx(path, {"images": images[:count]})
            for case, ours, theirs in zip(SYSTEMS, networks(images[:count]), found, strict=True):
                torch.testing.assert_close(
                    theirs, ours, atol=1e-4, rtol=1e-3, msg=lambda text, of=case: f"{of}: {text}"
                )


def test_a_guide_cannot_be_exported(tmp_path: Path) -> None:
    name, config = CASES["sanl"]
    checkpoint.save(str(tmp_path), build("sanl"), card(name, config, LABELS, 32))
    with pytest.raises(UserError, match="its attention is a gradient") as error:
        export(str(tmp_path), tmp_path / "model.onnx", "onnx")
    assert "--model.attention nonlocal or none" in str(error.value)


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with random weights, as a checkpoint ``finder`` and as ONNX: all of its scores are low."""
    root = tmp_path_factory.mktemp("finder")
    name, config = CASES["fcos"]
    model = build("fcos").eval()
    saved = dataclasses.replace(card(name, config, LABELS, 64, model.normalisation), least_score=0.03)
    checkpoint.save(str(root / "finder"), model, saved)
    export(str(root / "finder"), root / "finder.onnx", "onnx")
    return root


def test_a_detector_exports(finder: Path) -> None:
    """With its crop of the whole photo, non-maximum suppression and the choice among its boxes."""
    ours = Detector(str(finder / "finder"), torch.device("cpu"), most=7)
    theirs = OnnxDetector(str(finder / "finder.onnx"), most=7)
    photos = [open_pixels(noise(*size)).whole(64) for size in ((240, 160), (50, 333), (64, 64), (700, 690))]
    missing = BadPhoto("missing_photo", "of a test")
    for one, other in zip(ours.detect([*photos, missing]), theirs.detect([*photos, missing]), strict=True):
        if isinstance(one, BadPhoto):
            assert other is one
            continue
        assert isinstance(one, Detected)
        assert isinstance(other, Detected)
        assert 0 < len(one.boxes) <= 7
        np.testing.assert_allclose(one.score, other.score, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)
    with pytest.raises(UserError, match="most_garments"):
        OnnxDetector(str(finder / "finder.onnx"), most=100)
    with pytest.raises(UserError, match="least_score"):
        OnnxDetector(str(finder / "finder.onnx"), least_score=0.01)


def test_a_detector_finds_garments_for_an_exported_model(finder: Path, place: Path) -> None:
    """Both files, both checkpoints, and either with the other: in the same boxes, or in none."""
    photos = [noise(WIDTH, HEIGHT), noise(90, 200)]
    answers = [
        Landmarks.load(place / model, detector=finder / detector, device="cpu")(photos, [None, [BOXES[1]]])
        for model in ("dots", "dots.onnx")
        for detector in ("finder", "finder.onnx")
    ]
    for others in answers[1:]:
        for one, other in zip(answers[0], others, strict=True):
            assert len(one.garments) == len(other.garments) > 0
            for ours, theirs in zip(one.garments, other.garments, strict=True):
                np.testing.assert_allclose(ours.box, theirs.box, atol=0.05)
                assert (ours.box_score is None) == (theirs.box_score is None)
    for wrong, role in (("dots", "detector"), ("finder", "checkpoint")):
        path = (place if wrong == "dots" else finder) / f"{wrong}.onnx"
        with pytest.raises(UserError, match="detector"):
            Landmarks.load(path if role == "checkpoint" else place / "dots", detector=path, device="cpu")
    nothing = Landmarks.load(place / "dots.onnx", detector=finder / "finder.onnx", least_score=0.99)
    (answer,) = nothing(noise(WIDTH, HEIGHT)).answers
    assert str(answer) == "no_garment: no box has a score of 0.990 or more"


def test_photos_of_any_kind_have_the_checkpoints_answers(place: Path, tmp_path: Path) -> None:
    """Turned by EXIF, decoded at a reduced size, of odd sides, as PNG, as pixels; and what is wrong with some."""
    rng = np.random.default_rng(1)
    photos: list[object] = [b"no picture", tmp_path / "missing.jpg"]
    for width, height in ((WIDTH, HEIGHT), (1201, 803)):
        image = dots.photo(dots.random_points(rng, (0, 0, width, height)), width, height)
        photos += [np.asarray(image), dots.encoded(image, "PNG")]
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            photos.append(dots.encoded(image, "JPEG", exif=exif, quality=95))
    ours, theirs = both(place, "dots")
    boxes = [None if i % 3 else [*BOXES, (5, 5, 5, 9), (900, 10, 1100, 700)] for i in range(len(photos))]
    distances = []
    for one, other in zip(ours(photos, boxes), theirs(photos, boxes), strict=True):
        same(one, other, pixels=math.inf, scores=math.inf)
        for mine, its in zip(one.garments, other.garments, strict=True):
            far = np.linalg.norm(mine.landmarks - its.landmarks, axis=-1)[its.score > 0.5]
            distances += far.tolist()  # a dot outside the box is nowhere
    assert len(distances) > 30
    # A level that OpenCV rounds otherwise can move a dot of a few pixels.
    assert np.median(distances) < 0.001
    assert np.quantile(distances, 0.9) < 0.05
    assert max(distances) < 0.5


def test_types_and_visibility_are_those_of_the_checkpoint(place: Path) -> None:
    ours, theirs = both(place, "typed")
    result = theirs(noise(WIDTH, HEIGHT), BOXES)
    same(ours(noise(WIDTH, HEIGHT), BOXES), result)
    assert {garment.garment_type for garment in result.garments} == {"left"}
    assert all(np.isnan(garment.landmarks[1]).all() for garment in result.garments)


def test_mirror_images_are_averaged(place: Path, tmp_path: Path) -> None:
    export(str(place / "dots"), tmp_path / "mirrored.onnx", "onnx", mirror=True)
    photo = noise(WIDTH, HEIGHT)
    wanted = Landmarks.load(place / "dots", device="cpu", mirror=True)(photo, BOXES)
    found = Landmarks.load(tmp_path / "mirrored.onnx", mirror=True)(photo, BOXES)
    plain = Landmarks.load(place / "dots.onnx")(photo, BOXES)
    same(dataclasses.replace(wanted, name=found.name), found)
    assert np.abs(plain.garments[0].landmarks - found.garments[0].landmarks).max() > 1


def test_what_the_file_says_of_itself(place: Path) -> None:
    """In words that any program can read, and as the card that its checkpoint has."""
    facts = OnnxPredictor(str(place / "typed.onnx")).facts
    assert json.loads(facts["landmarks"]) == ["left_dot", "right_dot"]
    assert json.loads(facts["mirror_pairs"]) == [["left_dot", "right_dot"]]
    assert json.loads(facts["garment_types"]) == {"both": ["left_dot", "right_dot"], "left": ["left_dot"]}
    assert json.loads(facts["visibility"])["3"] == "absent"
    assert (facts["model"], facts["input_size"], facts["mirror"]) == ("fpn", str(dots.SIZE), "false")
    ours, theirs = both(place, "typed")
    assert ours.card == theirs.card
    assert (
        ours.predictor.name.rpartition("@")[2]
        == theirs.predictor.name.rpartition("@")[2]
        == facts["checkpoint"]
    )


def test_axes_of_any_size_have_names(place: Path) -> None:
    session = OnnxPredictor(str(place / "typed.onnx")).session
    assert {each.name: each.shape for each in session.get_inputs()} == {
        "photo": ["height", "width", 3],
        "boxes": ["count", 4],
    }
    assert all(each.shape[0] == "count" for each in session.get_outputs())


@pytest.mark.parametrize(
    ("title", "first", "words"),
    [
        ("fld", "random", "the weights: the terms of fld, which"),
        ("fld (rendered)", "runs/first", "the weights: trained on rendered photos, so no data set's terms"),
    ],
)
def test_the_licence_follows_from_the_data(title: str, first: str, words: str, place: Path) -> None:
    """Rendered photos bind nobody, but what a training started from may."""
    model, found = checkpoint.load(str(place / "dots"))
    licence = facts(
        str(place / "dots"), model, dataclasses.replace(found, dataset=title, weights=first), False
    )["licence"]
    assert words in licence
    assert licence.endswith(f"of what they started from: {first}")


def test_a_box_without_area_is_nan(place: Path) -> None:
    """For those who use the file without this project, which would not ask. Where visibility is told, all is absent."""
    boxes = np.array([[5, 5, 5, 9], [0, 0, WIDTH, HEIGHT], [-9, 5, -3, 9], [50, 50, 20, 60]], np.float32)
    for name in ("dots", "typed"):
        found = OnnxPredictor(str(place / f"{name}.onnx")).run(photo=noise(WIDTH, HEIGHT), boxes=boxes)
        for key in ("landmarks", "scores", "garment_type_score"):
            lost = np.isnan(found[key].reshape(len(boxes), -1)).all(axis=1)
            assert lost.tolist() == [True, False, True, True], key
        if name == "typed":
            absent = (found["visibility"] == Visibility.ABSENT).all(axis=1)
            assert absent.tolist() == [True, False, True, True]


def diverged(path: Path) -> str:
    """Write the file again as of a model that has diverged, with NaN in the place of its weights."""
    import onnx

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
            lost = np.full(tuple(tensor.dims), np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(lost, tensor.name))
    written = path.with_name(f"diverged-{path.name}")
    onnx.save(model, written)
    return str(written)


def test_a_diverged_network_has_no_answer(place: Path, finder: Path) -> None:
    """Neither a place somewhere nor, of a detector, that there is nothing."""
    (answer,) = Landmarks.load(diverged(place / "dots.onnx"))(noise(WIDTH, HEIGHT)).answers
    assert isinstance(answer, BadAnswer)
    assert str(answer) == "not_finite: 2 of 2 heatmaps, so the model has diverged"
    detector = OnnxDetector(diverged(finder / "finder.onnx"))
    (found,) = detector.detect([open_pixels(noise(90, 80)).whole(64)])
    assert isinstance(found, BadAnswer)
    assert str(found) == "not_finite: the boxes, so the model has diverged"


def test_a_program_of_torch_export(place: Path, tmp_path: Path) -> None:
    """It answers as the ONNX file does, and says the same of itself."""
    done = export(str(place / "typed"), tmp_path / "model.pt2", "torch")
    extra = {"glefld.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["glefld.json"]) == done.facts
    session = OnnxPredictor(str(place / "typed.onnx")).session
    for count in (1, 3):
        photo, boxes = noise(90 * count, 77), np.array(BOXES[:count], np.float32)
        with torch.no_grad():
            answers = program(torch.from_numpy(photo), torch.from_numpy(boxes))
        for one, other in zip(answers, session.run(None, {"photo": photo, "boxes": boxes}), strict=True):
            np.testing.assert_allclose(one.numpy(), other, atol=1e-2)


def example() -> str:
    """The program in docs/inference.md that does without this project."""
    (found,) = re.findall(
        r"```python\n(import json\n.*?)```", (ROOT / "docs/inference.md").read_text(), re.DOTALL
    )
    return found


def test_the_example_of_the_docs_works_without_this_project(place: Path, tmp_path: Path) -> None:
    """As it stands: with ONNX Runtime, Pillow and NumPy alone it prints the checkpoint's answer."""
    (tmp_path / "model.onnx").write_bytes((place / "dots.onnx").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    points = dots.random_points(np.random.default_rng(2), (0, 0, HEIGHT, WIDTH))
    image = dots.photo(points, HEIGHT, WIDTH).transpose(Image.Transpose.ROTATE_90)
    image.save(tmp_path / "dress.jpg", exif=exif, quality=95)
    code = example() + "\nimport sys\nassert not {'glefld', 'torch'} & set(sys.modules)\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    garment = Landmarks.load(place / "dots", device="cpu")(tmp_path / "dress.jpg").garment
    for line, name, xy, score in zip(
        done.stdout.splitlines(), dots.DOTS.landmarks, garment.landmarks, garment.score, strict=True
    ):
        told, *numbers = line.split()
        assert told == name
        np.testing.assert_allclose([float(number) for number in numbers], [*xy, score], atol=0.1)


def test_an_exported_model_answers_without_pytorch(place: Path, tmp_path: Path) -> None:
    """Through the Python API, and no slow package is loaded for it."""
    image = dots.photo(dots.random_points(np.random.default_rng(3), (0, 0, WIDTH, HEIGHT)), WIDTH, HEIGHT)
    image.save(tmp_path / "photo.jpg")
    code = (
        "import sys; from glefld import Landmarks; model = Landmarks.load(sys.argv[1]);"
        "print(model(sys.argv[2]).garment.garment_type);"
        "print({'torch', 'timm', 'cv2', 'nvidia', 'ray', 'mlflow'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(place / "dots.onnx"), str(tmp_path / "photo.jpg")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "dots\nset()\n"), done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "run on the CPU"),
        ({"precision": "bf16"}, "compute in fp32"),
        ({"mirror": True}, "exported without it"),
    ],
)
def test_what_a_file_cannot_do_is_told(options: dict[str, object], message: str, place: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        Landmarks.load(place / "dots.onnx", **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_what_is_no_exported_model_is_told(tmp_path: Path) -> None:
    import onnx

    (tmp_path / "garbage.onnx").write_bytes(b"no model")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [])
    graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
    other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(other, tmp_path / "other.onnx")
    for name, message in (
        ("garbage", "cannot be read by ONNX Runtime"),
        ("other", "was not made by glefld export"),
        ("missing", "there is no such file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Landmarks.load(tmp_path / f"{name}.onnx")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    missing: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f"need the package {missing}, which is not"):
        export(str(place / "dots"), tmp_path / "model.onnx", "onnx")
    if missing == "onnxruntime":
        with pytest.raises(UserError, match="onnxruntime"):
            Landmarks.load(place / "dots.onnx")
